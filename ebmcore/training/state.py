"""State that a resumed run needs: tensors, and the numbers that optimizers count."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ebmcore.errors import CheckpointError, EbmcoreError
from ebmcore.host.origin import is_out_of_memory
from ebmcore.losses import BaseLoss
from ebmcore.training.averaging import tensors_within
from ebmcore.training.checkpoints import read_checkpoint
from ebmcore.training.examples import TrainingExamples
from ebmcore.training.options import check_binding
from ebmcore.training.origins import check_same, warn_of_other_versions
from ebmcore.training.sharding import like


class TrainingState:
    """State that training changes: `tensors` and `info` go into a checkpoint, and `load` takes them from one.

    Args:
        loss: The loss, with its energy and its chains.
        optimizer: The optimizer as it is before the first step: what it is set to then is no state.
        average: The moving average of the energy, where one is kept.
        components: The components by kind, whose origins a checkpoint records.
        scheduled: Names of the optimizer's options whose values follow from the step.
        binding: Options, components and digest of the data of the run, which a checkpoint is bound to.
        examples: What the run is trained on.
        made: Returns what the components are made of at the moment, apart from what schedules change.
        first_batch: The batch at which the run began.
        allowed: Names of what may differ from the run of a checkpoint that is loaded.
    """

    def __init__(
        self,
        loss: BaseLoss,
        optimizer: torch.optim.Optimizer,
        average: nn.Module | None,
        components: Mapping[str, object],
        scheduled: Collection[str] = (),
        binding: Mapping[str, Any] | None = None,
        examples: TrainingExamples | None = None,
        made: Callable[[], Mapping[str, Any]] = dict,
        first_batch: int = 0,
        allowed: Sequence[str] = (),
    ) -> None:
        self.loss = loss
        self.scheduled = scheduled
        self.optimizer = optimizer
        self.average = average
        self.components = components
        self.binding = binding or {}
        self.examples = examples
        self.made = made
        self.made_at_start = made()
        self.first_batch, self.allowed = first_batch, allowed
        self.changed: set[str] = set()
        self.groups = self._groups()

    def check(self, *, trained: bool = True) -> None:
        """Raise `CheckpointError` if a checkpoint would lose something; warn of what a step has changed, if one was made."""
        self.tensors()
        self.info(trained=trained)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, as one flat mapping."""
        flat: dict[str, Tensor] = {f"loss.{name}": t for name, t in self.loss.state_dict().items()}
        _refuse(self.loss, [name for name, value in flat.items() if not isinstance(value, Tensor)])
        for index, values in self.optimizer.state_dict()["state"].items():
            _refuse(self.optimizer, [name for name, value in values.items() if not isinstance(value, Tensor)])
            flat |= {f"optimizer.{index}.{name}": t for name, t in values.items()}
        if self.average is not None:
            flat |= {f"average.{name}": t for name, t in self.average.state_dict().items()}
        return flat

    def _groups(self) -> list[dict[str, Any]]:
        """Options of the optimizer's groups, apart from those that follow from the step."""
        groups = self.optimizer.state_dict()["param_groups"]
        return [
            {
                k: v.tolist() if isinstance(v, Tensor) else copy.deepcopy(v)
                for k, v in group.items()
                if k not in self.scheduled
            }
            for group in groups
        ]

    def info(self, *, trained: bool = True) -> dict[str, Any]:
        """The binding, the examples, and numbers that optimizers count or change in their groups, as JSON."""
        changed = [
            {name: value for name, value in now.items() if repr(value) != repr(before.get(name))}  # because nan != nan
            for before, now in zip(self.groups, self._groups(), strict=True)
        ]
        for group in changed:
            _refuse(
                self.optimizer, [n for n, v in group.items() if not isinstance(v, int | float | str | tuple | list | None)]
            )
        examples = {} if self.examples is None else {"examples": self.examples.as_json()}
        return {"run": self._lasting(trained), **examples, "optimizer_groups": changed, "first_batch": self.first_batch}

    def _lasting(self, trained: bool) -> dict[str, Any]:
        """The binding without what training changes in the components, such as a counter: it says nothing of another run."""
        now = self.made()
        changed = {name for name, value in self.made_at_start.items() if now.get(name, self) != value}
        # A module whose forward keeps what it has computed, such as an activation, does not describe it any more.
        keeping = {
            path or "loss"
            for path, module in self.loss.named_modules()
            if any(not tensor.is_leaf for tensor in tensors_within(vars(module)))
        }
        told = {name for name in changed - self.changed if name in now or name.rpartition(".")[0] not in keeping}
        if told and trained:
            warnings.warn(
                f"training changes {', '.join(sorted(told))}, which no checkpoint holds: if later steps depend on it, a resumed "
                "run would be another, so keep it in a buffer (register_buffer)",
                UserWarning,
                stacklevel=2,
            )
        self.changed |= changed if trained else set()
        made = self.binding.get("made")
        lasting = {} if made is None else {"made": {name: v for name, v in made.items() if name not in self.changed}}
        return {**self.binding, **lasting}

    def load(self, path: Path) -> int:
        """Load a checkpoint; return the number of steps done."""
        flat, info = read_checkpoint(path)
        warn_of_other_versions(info, path)
        check_same(info, self.components, path, changed=self.allowed)
        check_binding(info.get("run"), self.binding, path, changed=self.allowed)
        first_batch = info.get("first_batch")
        if type(first_batch) is not int or first_batch < 0:
            raise CheckpointError(f"{path} does not say at which batch its run began: it is not a checkpoint of ebmcore")
        self.first_batch = first_batch
        groups: dict[str, dict[str, Tensor]] = {"loss": {}, "optimizer": {}, "average": {}}
        for key, tensor in flat.items():
            group, _, name = key.partition(".")
            if group not in groups:
                raise CheckpointError(f"{path} holds the tensor {key}, which is no part of a run")
            groups[group][name] = tensor
        if bool(groups["average"]) != (self.average is not None):
            kept = "keeps a" if groups["average"] else "keeps no"
            raise CheckpointError(f"{path} {kept} moving average of the parameters: resume with the ema_decay of its run")
        check_kinds(flat, self.tensors(), path)
        try:
            # With both names of a tensor that has two, as a checkpoint has them.
            held: dict[str, Tensor] = dict(self.loss.named_buffers(remove_duplicate=False))
            held |= self.loss.named_parameters(remove_duplicate=False)
            self.loss.load_state_dict({name: like(t, held.get(name)) for name, t in groups["loss"].items()})
            if self.average is not None:
                self.average.load_state_dict(groups["average"])
            own = self.optimizer.state_dict()["param_groups"]
            parameters = dict(enumerate(p for group in self.optimizer.param_groups for p in group["params"]))
            fused = any(group.get("fused") for group in own)
            slots: dict[int, dict[str, Tensor]] = {}
            for key, tensor in groups["optimizer"].items():
                index, _, name = key.partition(".")
                if int(index) not in parameters:
                    raise ValueError(f"it holds {key} of the optimizer, which has no such parameter")
                # A fused kernel checks no shapes, and would write beyond the memory of such a tensor.
                if fused and tensor.shape != (() if name == "step" else parameters[int(index)].shape):
                    raise ValueError(f"{key} of the optimizer has the shape {tuple(tensor.shape)}")
                slots.setdefault(int(index), {})[name] = like(tensor, parameters[int(index)])
            for group, changed in zip(own, self._recorded_changes(info, path), strict=True):
                group |= {name: _as_it_is(v, group.get(name)) for name, v in changed.items()}
            self.optimizer.load_state_dict({"state": slots, "param_groups": own})
        except (RuntimeError, ValueError, TypeError) as error:
            raise _other_configuration(path, error) from error
        return int(info["step"])

    @contextmanager
    def first_step(self, path: Path | None) -> Iterator[None]:
        """Context of the first step after the checkpoint ``path``, which shows whether optimizer and chains can use it."""
        try:
            yield
        except EbmcoreError:
            raise
        except Exception as error:
            if path is None or is_out_of_memory(error):
                raise
            raise _other_configuration(path, error) from error

    def _recorded_changes(self, info: Mapping[str, Any], path: Path) -> Sequence[Mapping[str, Any]]:
        """What the optimizer has changed in its groups; options that the run is bound to do not change."""
        changes = info.get("optimizer_groups")
        if not isinstance(changes, list) or not all(isinstance(group, dict) for group in changes):
            raise CheckpointError(f"{path} does not say what its optimizer changed: it is not a checkpoint of ebmcore")
        optimizer = self.binding.get("options", {}).get("optimizer")
        bound = {"params", *(optimizer if isinstance(optimizer, Mapping) else ())}
        changed = bound.intersection(name for group in changes for name in group)
        if changed:
            raise CheckpointError(f"{path} changes {min(changed)} of the optimizer, which does not change in this run")
        return changes


def _as_it_is(value: Any, own: Any) -> Any:
    """A recorded option in the form that the optimizer keeps it in: a learning rate may be a tensor."""
    if isinstance(own, Tensor):
        return torch.tensor(value, dtype=own.dtype, device=own.device).expand_as(own).clone()
    return tuple(value) if isinstance(value, list) else value


def check_kinds(flat: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    """Raise `CheckpointError` if a checkpoint holds another kind of number under a name than the run has there."""
    own_kinds = {name: _kind(tensor) for name, tensor in own.items()}
    counts = (".chains.id", ".chains.age")  # of chains, which a new loss has none of yet
    own_kinds |= {name: (False, False, torch.int64) for name in flat if name.endswith(counts)}
    other = [name for name, tensor in flat.items() if own_kinds.get(name, _kind(tensor)) != _kind(tensor)]
    other += [name for name, tensor in flat.items() if name.endswith(counts) and tensor.ndim != 1]
    if other:
        found = flat[other[0]]
        raise CheckpointError(f"{path} holds {other[0]} as {found.dtype} {tuple(found.shape)}: it is not of this run")


def _kind(tensor: Tensor) -> tuple[bool, bool, torch.dtype | None]:
    """What a tensor of another precision has in common with this one."""
    inexact = tensor.is_floating_point() or tensor.is_complex()
    return tensor.is_floating_point(), tensor.is_complex(), None if inexact else tensor.dtype


def _other_configuration(path: Path, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return CheckpointError(f"{path} belongs to another configuration than this run's: {reason}")


def _refuse(owner: object, lost: Sequence[str]) -> None:
    if lost:
        raise CheckpointError(
            f"{type(owner).__name__} keeps {', '.join(lost)}, which is no tensor and would be lost: keep it as one (of an "
            "optimizer in its state, of a module as a buffer), or train without out"
        )
