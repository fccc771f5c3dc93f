"""A user's own classes, named by their place: ``model.py:MyEnergy`` or ``package.module:MyEnergy``.

To register one runs its file, so a name from a configuration or a checkpoint is not registered unless the user allowed it. A
class that was registered is found in this process by `ebmcore.host.find` and the like, under that name.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import re
import sys
import traceback
import warnings
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from ebmcore.errors import UsageError
from ebmcore.host.isolation import preserve_global_state
from ebmcore.host.kinds import check_target
from ebmcore.host.manager import get_manager
from ebmcore.host.registry import SESSION, OwnClass

_NAME = re.compile(r"(?P<place>.+\.py|[^\W\d]\w*(\.[^\W\d]\w*)*):[^\W\d]\w*")


def is_code(name: str) -> bool:
    """Whether a name stands for a class in a file or module; ``ebm-plugin-pcd:pcd`` stands for a component of a plugin."""
    match = _NAME.fullmatch(name)
    return match is not None and match["place"] not in {
        SESSION,
        *(report.distribution for report in get_manager().reports()),
    }


def what_runs(name: str) -> str:
    """The file or module that is run to get the class of that name."""
    place, _, _ = name.rpartition(":")
    return f"the file {Path(place).absolute()}" if place.endswith(".py") else f"the module {place}"


def register_class(kind: str, name: str) -> None:
    """Run the file or module of a class, and make the class a component of this process under that name.

    Files and modules beside it can be imported as ``python model.py`` could import them; relative imports work too. Modules are
    looked for in the current directory and among the installed packages.

    Raises:
        UsageError: If there is no such class, it is no component of that kind, or its file raises an error; the message names
            the line.
    """
    place, _, class_name = name.rpartition(":")
    is_file = place.endswith(".py")
    if is_file and not Path(place).is_file():
        raise UsageError(f"there is no file {place} for the {kind} {name} (in {Path.cwd()})")
    folder = Path(place).absolute().parent if is_file else Path.cwd()
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        with preserve_global_state() as changed:
            module = _import_file(Path(place).absolute()) if is_file else importlib.import_module(place)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: an import must not end the command
        raise UsageError(_failure(place, error, folder)) from error
    if changed:
        warnings.warn(f"{place} changes {', '.join(changed)}; ebmcore restored the old values", UserWarning, stacklevel=2)
    cls = getattr(module, class_name, None)
    if not inspect.isclass(cls):
        raise UsageError(f"{place} has no class {class_name}{_hint(module, class_name)}")
    try:
        check_target(kind, cls)
    except TypeError as error:
        raise UsageError(f"{name} is no {kind}: {error}") from error
    get_manager().add_own(OwnClass(kind, class_name, cls, place, _digest(module)))


def _import_file(path: Path) -> ModuleType:
    """The module of a file, under the name that ``import`` would give it unless another module has that name."""
    name, file = path.stem.replace(".", "_"), str(path)
    if name in sys.modules and getattr(sys.modules[name], "__file__", None) != file:
        name = f"{name}_{hashlib.sha256(file.encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, file, submodule_search_locations=[str(path.parent)])  # for relative imports
    assert spec is not None and spec.loader is not None  # noqa: S101, PT018 - the name ends in .py
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _failure(place: str, error: BaseException, folder: Path) -> str:
    if isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name}."):
        missing = f"there is no module {place}, neither in {folder} nor among the installed packages"
        return f"{missing}: install it, or copy its package there"
    if isinstance(error, SyntaxError):
        return f"{place} cannot be run: {type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(folder)]
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    line = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    return f"{place} cannot be run: {type(error).__name__}: {error}{line}"


def _hint(module: ModuleType, name: str) -> str:
    if hasattr(module, name):
        return f": {name} is of the type {type(getattr(module, name)).__name__}"
    classes = [known for known, one in vars(module).items() if inspect.isclass(one) and one.__module__ == module.__name__]
    close = difflib.get_close_matches(name, classes, n=1)
    return f"; did you mean {close[0]}?" if close else f"; it has {', '.join(classes) or 'none'}"


def _digest(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
