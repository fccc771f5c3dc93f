"""What the components of a run are made of, as plain data: recorded in checkpoints, and compared when a run is resumed."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ebmcore import host
from ebmcore.chains import PersistentChains
from ebmcore.losses import BaseLoss
from ebmcore.samplers import Sampler

_MOST = 2**16  # characters of one description; a longer one is recorded as its digest
_LONG = 200  # characters of one value
_LARGE = 2**24  # elements of a tensor whose values are compared
_MODULE = {*vars(nn.Module())}
# What a loss counts or is lent for a call or a run: no option.
_LOSS = {"metrics", "generator", "step", "built", "data_weights", "transitions", "negatives"}
_WHERE = ("path", "directory", "dir")  # ends of names that say where something is, which may be another place by now
_FOREIGN = {"torch", "numpy", *sys.stdlib_module_names}
_WRAPPED = ("inner", "dataset", "datasets", "train")
_NOTHING = object()


def describe(component: object, apart: Sequence[object] = ()) -> dict[str, Any]:
    """Return what a component is made of, as JSON.

    That is: options that it keeps under the names of its constructor's parameters, other attributes that are plain data, layers
    with their options, components within it, values of tensors that are not in its ``state_dict()``, the names of parameters
    that are not trained, and its class where it has no id. Values compare equal however they were written: a tuple is a list.

    Args:
        component: A loss, an energy, a sampler or another object.
        apart: Objects within it that are described on their own.

    Example:
        >>> describe(nn.Sequential(nn.Linear(2, 1)))
        {'layers': ['0'], '0': 'Linear(in_features=2, out_features=1, bias=True)', 'not trained': [], 'class': 'Sequential'}
    """
    found = _described(component, {id(part) for one in apart for _, part in _parts(one)})
    if host.provenance(component)["id"] is None:
        found["class"] = type(component).__qualname__
    text = json.dumps(found, sort_keys=True)
    return found if len(text) <= _MOST else {"parts": _digest(text.encode())}


def describe_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of plain data: of what is long its digest, of real numbers the digits that each machine computes.

    Example:
        >>> describe_record({"columns": ["a", "b"], "shift": [1 / 3]})
        {'columns': ['a', 'b'], 'shift': [0.333333]}
    """
    return {name: _short(_rounded(value)) for name, value in record.items()}


def describe_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the class of an optimizer and its defaults, as JSON, without the learning rate."""
    options = {name: _plain(value, set()) for name, value in optimizer.defaults.items() if name != "lr"}
    return {"class": type(optimizer).__qualname__} | {n: value for n, value in options.items() if value is not _NOTHING}


def describe_function(function: object) -> Any:
    """Return the name of a function, or what an object that is called is made of, as JSON.

    Example:
        >>> describe_function(partial(torch.mean, dim=0))
        ['mean', [], {'dim': 0}]
    """
    plain = _plain(function, set())
    return type(function).__qualname__ if plain is _NOTHING else plain


def generators_within(component: object) -> list[str]:
    """Return the names of attributes of a component, and of what it wraps, that are random generators."""
    numpy: Any = getattr(sys.modules.get("numpy"), "random", None)
    kinds = (torch.Generator, random.Random, *(() if numpy is None else (numpy.Generator, numpy.RandomState)))
    found: set[str] = set()
    left, seen = [component], set[int]()
    while left:
        outer = left.pop()
        for _, part in _parts(outer):
            if id(part) not in seen:
                seen.add(id(part))
                # The generator of a loss or a loader is set for each run or pass.
                held = {} if isinstance(part, DataLoader | BaseLoss) else getattr(part, "__dict__", {})
                found |= {name for name, value in held.items() if isinstance(value, kinds)}
                left += [getattr(part, name, None) for name in _WRAPPED]
        left += outer if isinstance(outer, list | tuple) else ()
    return sorted(found)


def _parts(component: object) -> Iterator[tuple[str, object]]:
    """A component and the modules within it, by their paths."""
    return component.named_modules() if isinstance(component, nn.Module) else iter([("", component)])


def _described(component: object, seen: set[int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    fixed: list[str] = []
    for path, part in _parts(component):
        if id(part) in seen or isinstance(part, PersistentChains):
            continue
        seen.add(id(part))
        options, kind = _kept(part, seen), type(part).__name__
        if part is component:
            found |= options
        else:
            found[path] = {"class": kind, **options} if options else f"{kind}({cast(nn.Module, part).extra_repr()})"
        if isinstance(part, nn.Module):
            prefix = f"{path}." if path else ""
            fixed += [prefix + name for name, p in part._parameters.items() if p is not None and not p.requires_grad]
    return found | ({"not trained": fixed} if isinstance(component, nn.Module) else {})


def _kept(part: object, seen: set[int]) -> dict[str, Any]:
    """Options under the constructor's names; of a module or a sampler also its other attributes that are plain data."""
    values: dict[str, Any] = {}
    if isinstance(part, nn.Module):
        if _is_foreign(part) and part.extra_repr():  # a layer of torch, which names its options there
            return {}
        values = {name: value for name, value in vars(part).items() if name not in _MODULE | _LOSS}
        if _is_foreign(part):  # whose other attributes are its own affair, such as addresses
            values = {name: value for name, value in values.items() if not name.startswith("_")}
        values |= {name: part._buffers[name] for name in part._non_persistent_buffers_set}
        values |= {"layers": [*part._modules]} if part._modules else {}
    elif isinstance(part, Sampler) or is_dataclass(part):
        values = dict(getattr(part, "__dict__", {}))
    if not _is_foreign(part):
        values |= _options(part)
    plain = {name: _plain(value, seen) for name, value in sorted(values.items()) if not name.endswith(_WHERE)}
    return {name: value for name, value in plain.items() if value is not _NOTHING}


def _options(component: object) -> dict[str, Any]:
    """What a component keeps under the names of its constructors' parameters."""
    found: dict[str, Any] = {}
    for cls in type(component).__mro__:
        made_by = vars(cls).get("__init__")
        for name in inspect.signature(made_by).parameters if isinstance(made_by, FunctionType) else ():
            value = getattr(component, name, component)
            # A tensor that a property computes follows from parameters, which training changes.
            if value is not component and (not isinstance(value, Tensor) or name in vars(component)):
                found.setdefault(name, value)
    return found


def _plain(value: Any, seen: set[int]) -> Any:
    """The value as JSON; `_NOTHING` where it is not compared."""
    kind = type(value).__module__.partition(".")[0]
    if kind == "numpy":
        value = value.item() if hasattr(value, "item") and not getattr(value, "shape", ()) else _from_numpy(value)
    if value is None or isinstance(value, bool | int | float | str):
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value
    if isinstance(value, Tensor):
        return _of_tensor(value)
    if isinstance(value, Mapping):
        return _short({str(name): one for name, v in value.items() if (one := _plain(v, seen)) is not _NOTHING})
    if isinstance(value, list | tuple):
        return _short([one for v in value if (one := _plain(v, seen)) is not _NOTHING])
    if isinstance(value, set | frozenset):
        return _short(sorted(str(v) for v in value))
    if isinstance(value, partial):
        return _plain([value.func, value.args, value.keywords], seen)
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, FunctionType | BuiltinFunctionType | MethodType | type):
        return value.__name__
    if id(value) in seen or (_is_foreign(value) and not isinstance(value, nn.Module)):
        return _NOTHING
    return {"class": type(value).__name__, **_described(value, seen)}


def _from_numpy(array: Any) -> Any:
    return torch.as_tensor(array) if getattr(array, "dtype", None) is not None and array.dtype.kind in "biuf" else _NOTHING


def _of_tensor(value: Tensor) -> Any:
    if not value.is_leaf or value.requires_grad or value.is_meta or value.numel() > _LARGE:
        return _NOTHING
    if value.ndim == 0:
        return value.item()
    wide = value.detach().cpu().contiguous()
    wide = wide.double() if wide.is_floating_point() else wide  # so that no other precision is another value
    return f"{tuple(value.shape)} {_digest(wide.flatten().view(torch.uint8).numpy().tobytes())[:16]}"


def _short(value: Any) -> Any:
    text = json.dumps(value, sort_keys=True)
    return value if len(text) <= _LONG else _digest(text.encode())[:16]


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _is_foreign(value: object) -> bool:
    """Whether an object is of torch, numpy or Python, not of a plugin or of the user."""
    return type(value).__module__.partition(".")[0] in _FOREIGN


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
