"""``ebmcore new plugin``: a small, complete distribution to start from. Its files are in the folder ``template``."""

from __future__ import annotations

import datetime
import os
import shlex
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from importlib_metadata import version
from packaging.utils import InvalidName, canonicalize_name
from packaging.version import Version

from ebmcore import host
from ebmcore.cli.listing import Parser
from ebmcore.errors import UsageError
from ebmcore.host.registry import known_plugins

_CI = "ci.yml"
# Which file of the template becomes which file of the plugin; that of the component is in `_COMPONENT`.
_FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "LICENSE": "LICENSE",
    "plugin.py": "$package/__init__.py",
    "py.typed": "$package/py.typed",
    "conftest.py": "tests/conftest.py",
    "conformance.py": "tests/test_${short}_conformance.py",
    _CI: ".github/workflows/test.yml",
}
# The component's template, its file, and the target that the plugin registers, where they are not those of a class.
_COMPONENT = {
    "other loss": ("other_loss.py", "$package/loss.py", "$package.loss:$cls"),
    "recipe": ("recipe.yaml", "$package/recipes/$name.yaml", "$package:recipes/$name.yaml"),
    "command": ("command.py", "$package/command.py", "$package.command:main"),
}
_CLASS = ("$kind.py", "$package/$kind.py", "$package.$kind:$cls")
_LANGEVIN = "--sampler langevin --sampler.step_size 0.01"
_EPOCH = "--epochs 1 --out runs/first"
# First command for a component of each kind.
_FIRST = {
    "loss": f"train --energy mlp {_LANGEVIN} --loss $name --data two-moons {_EPOCH}",
    "other loss": f"train --energy mlp --loss $name --data two-moons {_EPOCH}",
    "sampler": f"train --energy mlp --sampler $name --sampler.step_size 0.01 --loss pcd --data two-moons {_EPOCH}",
    "energy": f"train --energy $name {_LANGEVIN} --loss pcd --data two-moons {_EPOCH}",
    "dataset": f"train --energy mlp {_LANGEVIN} --loss pcd --data $name {_EPOCH}",
    "metric": f"train --energy mlp {_LANGEVIN} --loss pcd --data two-moons --metric $name {_EPOCH}",
    "observer": f"train --energy mlp {_LANGEVIN} --loss pcd --data two-moons --observer $name {_EPOCH}",
    "recipe": f"train --recipe $name {_EPOCH}",
    "command": "$name --name world",
}
_OPTIONS = {
    "loss": [
        ("k_steps", "1", "transitions per call"),
        ("energy_l2", "0", "weight of the mean squared energies, a regulariser"),
        ("joint_forward", "true", "score data and negatives in one forward"),
    ],
    "other loss": [("sigma", "0.3", "standard deviation of the noise on the data")],
    "sampler": [("step_size", "required", "`h`, in squared units of `x`")],
    "energy": [
        ("shape", "required", "shape of one example; on the command line it comes from the data"),
        ("hidden", "64", "number of hidden units"),
    ],
    "dataset": [
        ("n_train", "2000", "number of training examples"),
        ("n_test", "500", "number of test examples"),
        ("seed", "0", "seed of the examples"),
    ],
    "metric": [("n_examples", "1000", "number of examples of each set that are used")],
    "observer": [("every", "10", "logged steps from one line to the next")],
    "recipe": [("all of `ebmcore train`", "as in the file", "each overrides what the recipe says")],
    "command": [("--name", "required", "whom to greet")],
}


def new(arguments: Sequence[str]) -> None:
    """Render the template of a plugin into a new directory, all of it or nothing."""
    parser = Parser(
        "ebmcore new", description="Make a plugin to start from: a distribution with a component, tests and README."
    )
    parser.add_argument("what", metavar="plugin", choices=["plugin"], help="the word 'plugin'")
    parser.add_argument(
        "name", metavar="NAME", help="what the component is to be called; the distribution is ebm-plugin-NAME"
    )
    parser.add_argument("--kind", required=True, metavar="KIND", choices=host.KINDS, help=f"one of {', '.join(host.KINDS)}")
    parser.add_argument(
        "--base", choices=["cd", "other"], help="of a loss: on contrastive divergence (default), or outside it"
    )
    parser.add_argument("--directory", type=Path, metavar="DIR", help="where to put it; default ebm-plugin-NAME")
    options = parser.parse_args(arguments)
    if options.base is not None and options.kind != "loss":
        raise UsageError(f"--base is for losses, not for a {options.kind}: leave it out")
    variant = "other loss" if options.base == "other" else options.kind
    name = _checked_name(options.name, options.kind)
    distribution = f"ebm-plugin-{name}"
    repository = _kernel_repository(options.directory or Path.cwd())
    directory = options.directory or (repository / "plugins" if repository else Path()) / distribution
    if directory.absolute() == Path.cwd():
        raise UsageError("the current directory cannot be replaced: give --directory a path below it, or leave it out")
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise UsageError(f"{directory} exists and is not an empty directory: choose another --directory")
    values = {
        "name": name,
        "short": name.replace("-", "_"),
        "kind": options.kind,
        "distribution": distribution,
        "package": distribution.replace("-", "_"),
        "cls": _class_name(name, options.kind),
        "kernel": ".".join(map(str, Version(version("ebmcore")).release[:2])),
        "year": str(datetime.date.today().year),
        "first": Template(f"ebmcore {_FIRST[variant]}").substitute(name=name),
        "options": "\n".join(["| option | default | meaning |", "|---|---|---|"])
        + "".join(f"\n| `{option}` | {default} | {meaning} |" for option, default, meaning in _OPTIONS[variant]),
    }
    source, file, target = _COMPONENT.get(variant, _CLASS)
    values["target"] = Template(target).substitute(values)
    _write(directory, _render({**_FILES, source: file}, values, with_ci=repository is None))
    print(f"{directory} holds the plugin {distribution} with the {options.kind} {name!r}. Next:\n")
    for line in (f"cd {shlex.quote(str(directory))}", "pip install -e '.[dev]'", "pytest", values["first"]):
        print(f"  {line}")


def _checked_name(given: str, kind: str) -> str:
    try:
        name: str = canonicalize_name(given, validate=True).removeprefix("ebm-plugin-")
    except InvalidName as error:
        raise UsageError(f"{given!r} is no valid project name: use letters, digits and '-', as in my-cd") from error
    distribution = f"ebm-plugin-{name}"
    taken = {c.name: c.id for c in host.list_components(kind)} | {
        n: f"{d}:{n}" for (k, n), d in known_plugins().items() if k == kind
    }
    if name in taken:
        raise UsageError(f"the {kind} {name!r} exists already, as {taken[name]}: choose another name")
    if distribution in {report.distribution for report in host.plugins()} | set(known_plugins().values()):
        raise UsageError(f"the distribution {distribution} exists already: choose another name")
    return name


def _class_name(name: str, kind: str) -> str:
    words = [word.capitalize() for word in name.split("-")]
    joined = "".join([*words, kind.capitalize()])
    return joined if joined.isidentifier() else "".join([kind.capitalize(), *words])


def _kernel_repository(path: Path) -> Path | None:
    """The checkout of ebmcore that a path lies in."""
    for folder in (path.absolute(), *path.absolute().parents):
        pyproject = folder / "pyproject.toml"
        if pyproject.is_file() and (folder / "plugins").is_dir():
            project = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("project", {})
            if project.get("name") == "ebmcore":
                return folder
    return None


def _render(chosen: Mapping[str, str], values: Mapping[str, str], *, with_ci: bool) -> dict[Path, str]:
    template = files("ebmcore.cli") / "template"
    return {
        Path(Template(target).substitute(values)): Template(
            (template / f"{Template(source).substitute(values)}.template").read_text(encoding="utf-8")
        ).substitute(values)
        for source, target in chosen.items()
        if with_ci or source != _CI
    }


def _write(directory: Path, rendered: Mapping[Path, str]) -> None:
    directory = directory.absolute()
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = directory.with_name(f".{directory.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for path, text in rendered.items():
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / path).write_text(text, encoding="utf-8")
        os.replace(temporary, directory)  # an empty directory is replaced
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
