"""A trained energy outside of its run: a file of weights, a directory that `from_pretrained` reads, or a torch program."""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from importlib_metadata import version
from torch import Tensor, nn

from ebmcore import host
from ebmcore._keywords import constructor_keywords
from ebmcore.energies import frozen
from ebmcore.errors import UsageError
from ebmcore.host.code import is_code
from ebmcore.training.configuration import create
from ebmcore.training.directory import check_directory, open_to_read, read_text, remove, temporary_name, writing
from ebmcore.training.documents import MAX_JSON, load_json
from ebmcore.training.examples import TrainingExamples
from ebmcore.training.numbers import refusing_sizes
from ebmcore.training.options import PLACES
from ebmcore.training.origins import check_installed, origins, recorded_id, warn_of_other_versions
from ebmcore.training.preparation import require_train_extra
from ebmcore.training.runs import TrainedRun, evaluation
from ebmcore.training.state import check_kinds

SUFFIXES = (".safetensors", ".pt", ".pt2")
_WEIGHTS, _CONFIG, _CARD = "model.safetensors", "config.json", "README.md"
_FORMAT = 1


def export(run: TrainedRun, out: Path) -> None:
    """Write the trained energy of a run.

    Args:
        run: The run.
        out: A file or directory that is not there yet: ``FILE.safetensors`` or ``FILE.pt`` gets the ``state_dict()``,
            ``FILE.pt2`` a program of ``torch.export`` for any number of examples, and a directory what `from_pretrained` reads,
            with a model card.

    Raises:
        UsageError: If ``out`` exists, or the energy cannot be written in that way.
    """
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} exists: choose another --out")
    if out.suffix and out.suffix not in SUFFIXES:
        raise UsageError(f"--out must end in {', '.join(SUFFIXES)}, or be a directory without an ending, got {out}")
    import safetensors.torch  # of the extra, which a bare kernel has not

    if out.suffix == ".pt2":
        content = _program(run)
    else:
        weights = _weights(run.energy)
        content = _pickled(weights) if out.suffix == ".pt" else safetensors.torch.save(weights, {"format": "pt"})
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix:
        with writing(out) as file:
            file.write(content)
        return
    directory = temporary_name(out)
    directory.mkdir()
    try:
        (directory / _WEIGHTS).write_bytes(content)
        (directory / _CONFIG).write_text(json.dumps(_record(run), indent=2), encoding="utf-8")
        (directory / _CARD).write_text(model_card(run), encoding="utf-8")
        directory.rename(out)
    except BaseException:
        remove(directory)
        raise


def from_pretrained(directory: str | os.PathLike[str]) -> nn.Module:
    """Load an energy from a directory that ``ebmcore export RUN --out DIRECTORY`` wrote, in evaluation mode, on the CPU.

    Its attribute ``examples`` says what it was trained on, as that of `TrainedRun` does: ``energy.examples.classes`` are the
    names of the classes. An energy with an attribute of that name keeps its own.

    The directory is data and may come from a stranger: the energy is a component of an installed plugin, and nothing in the
    directory is run.

    Raises:
        UsageError: If the directory is none of these, or damaged; or if the energy is a class in a file of its author's, for
            which the model card shows what to do.
        CheckpointError: If the plugin of the energy is not installed; the message has the install command.

    Example:
        >>> import tempfile
        >>> from ebmcore.cli import main
        >>> out = tempfile.mkdtemp()
        >>> command = "train --energy rbm --energy.hidden 4 --sampler gibbs --loss pcd --data bars-and-stripes --steps 2"
        >>> main([*command.split(), "--progress", "false", "--out", f"{out}/run"])
        trained 2 steps; ... holds the results
        0
        >>> main(["export", f"{out}/run", "--out", f"{out}/model"])
        the energy of step 2 in .../model
        0
        >>> from_pretrained(f"{out}/model")(torch.zeros(3, 1, 4, 4)).shape
        torch.Size([3])
    """
    require_train_extra()
    import safetensors.torch

    where = Path(directory)
    check_directory(where)
    config = where / _CONFIG
    try:
        record = load_json(read_text(config, MAX_JSON), config)
        with open_to_read(where / _WEIGHTS) as file:
            tensors = safetensors.torch.load(file.read())
    except OSError as error:
        raise UsageError(f"{where} holds no exported energy: {error.filename} cannot be read ({error.strerror})") from error
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError, OverflowError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{where / _WEIGHTS} is damaged ({error}): export it again") from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise UsageError(f"{config} has no format {_FORMAT}: another version wrote it, or another program")
    options = record.get("energy")
    if not isinstance(options, dict):
        raise UsageError(f"{config} does not say with which options the energy was made: export it again")
    examples = TrainingExamples.from_json(record.get("examples"), config)
    check_installed(record, config)
    name = recorded_id(record, "energy", config)
    if name is None:
        raise UsageError(f"{config} does not say which component the energy is: only installed components are loaded")
    if is_code(name):
        raise UsageError(
            f"the energy in {where} is the class {name} of who trained it, which is not run: make it yourself, then "
            f'energy.load_state_dict(load_file("{where / _WEIGHTS}")), as {where / _CARD} shows'
        )
    warn_of_other_versions(record, config)
    with torch.random.fork_rng(), refusing_sizes():
        energy: nn.Module = create({"energy": {**options, "name": name}}, "energy", shape=examples.shape)
    check_kinds(tensors, energy.state_dict(), where)
    try:
        energy.load_state_dict(tensors)
    except RuntimeError as error:
        raise UsageError(f"the weights in {where} do not fit its {_CONFIG}: {' '.join(str(error).split())}") from error
    if not all(p.isfinite().all() for p in energy.parameters()):
        raise UsageError(f"{where / _WEIGHTS} holds parameters that are NaN or infinite: export the run again")
    if not hasattr(energy, "examples"):
        setattr(energy, "examples", examples)  # noqa: B010 - a type checker takes it for a module
    return energy.eval()


def model_card(run: TrainedRun) -> str:
    """The model card of a trained energy, in Markdown: what it is, how it was trained, its likelihood, use and sources."""
    config, examples = run.config, run.examples
    rows = [
        (part, _called(config[part]["name"]), _options_text(config[part]), _distribution(part, config[part]["name"]))
        for part in ("energy", "loss", "sampler", "data")
        if part in config
    ]
    classes = [type(part) for part in (run.energy, run.loss, run.sampler)] + [host.load("dataset", config["data"]["name"])]
    sources = {source: None for cls in classes for source in _sources(cls)}  # in their order, each once
    results = [
        f"| {_called(name)} | {result['log_likelihood']:.2f} nats | {result.get('step', '')} |"
        for name, result in evaluation(run.directory).items()
        if isinstance(result, Mapping) and isinstance(result.get("log_likelihood"), int | float)
    ]
    lines = [
        "---",
        "library_name: ebmcore",
        "tags: [energy-based-model]",
        "---",
        "",
        "# {} trained by {} on {}".format(*(_called(config[part]["name"]) for part in ("energy", "loss", "data"))),
        "",
        "An energy-based model, `p(x) = exp(-E(x)) / Z`, trained with [ebmcore]"
        f"(https://pypi.org/project/ebmcore/) {version('ebmcore')} for {run.step} steps.",
        f"Examples have the shape {examples.shape} and are {examples.state_space}"
        + (f", from {examples.low:g} to {examples.high:g} in training." if examples.low is not None else "."),
        *_classes(examples),
        "",
        "| part | component | options | distribution |",
        "|---|---|---|---|",
        *(f"| {part} | `{name}` | {options} | {distribution} |" for part, name, options, distribution in rows),
        "",
        "## Likelihood",
        "",
        *(
            ["| metric | log-likelihood per example | step |", "|---|---|---|", *results]
            if results
            else ["It was not measured."]
        ),
        "",
        "## Use",
        "",
        "```python",
        *_loading(run),
        "log_density = -energy(x)  # without the normaliser; x: (N, " + ", ".join(map(str, examples.shape)) + ")",
        "```",
        "",
        "## Sources",
        "",
        *([f"- {source}" for source in sources] or ["The components name none."]),
    ]
    return "\n".join(lines) + "\n"


def _classes(examples: TrainingExamples) -> list[str]:
    """The classes by their numbers, a line for each."""
    if examples.classes is None:
        return []
    lines = [f"- {number}: {' '.join(str(name).split())}" for number, name in enumerate(examples.classes)]
    return [
        "",
        "The labels in `energy(x, labels)` are numbers of classes, which `energy.examples.classes` names:",
        "",
        *lines,
    ]


def _options_text(options: Mapping[str, Any]) -> str:
    """Options as text, without places on the machine of the training."""
    shown = {name: value for name, value in options.items() if name not in ("name", *PLACES)}
    return ", ".join(f"`{name}={value}`" for name, value in shown.items())


def _called(name: str) -> str:
    """The name of a component; of a class in a file, without the folder of that file."""
    place, _, cls = name.rpartition(":")
    return f"{Path(place).name}:{cls}" if place.endswith(".py") else name


def _loading(run: TrainedRun) -> list[str]:
    """The lines of Python that make the exported energy."""
    name = _called(run.config["energy"]["name"])
    if not is_code(name):
        return ["import ebmcore", "", 'energy = ebmcore.from_pretrained("DIRECTORY")']
    place, _, cls = name.rpartition(":")
    options = {option: value for option, value in run.config["energy"].items() if option != "name"}
    if "shape" in constructor_keywords(type(run.energy)):
        options = {"shape": run.examples.shape} | options
    given = ", ".join(f"{option}={value!r}" for option, value in options.items())
    return [
        f"from {place.removesuffix('.py')} import {cls}  # a class of who trained it, which is not part of this directory",
        "from safetensors.torch import load_file",
        "",
        f"energy = {cls}({given})",
        f'energy.load_state_dict(load_file("DIRECTORY/{_WEIGHTS}"))',
        "energy.eval()",
    ]


def _distribution(part: str, name: str) -> str:
    component = host.find("dataset" if part == "data" else part, name)
    if is_code(name):
        return f"none: a class of who trained it, sha256 {component.version[:12]}"
    return f"{component.distribution} {component.version}".strip()


def _sources(cls: type[Any]) -> list[str]:
    """What the docstring of a component names as its sources."""
    found = re.search(
        r"^Source: (.*?)(?:\n\n|\Z)", (cls.__doc__ and inspect.cleandoc(cls.__doc__)) or "", re.DOTALL | re.MULTILINE
    )
    return [" ".join(source.split()).rstrip(".") for source in re.split(r";\s", found.group(1))] if found else []


def _record(run: TrainedRun) -> dict[str, Any]:
    """What `from_pretrained` needs, as JSON."""
    options = {name: value for name, value in run.config["energy"].items() if name != "name"}
    known = origins({"energy": run.energy})
    return {"format": _FORMAT, **known, "energy": options, "examples": run.examples.as_json(), "step": run.step}


def _weights(energy: nn.Module) -> dict[str, Tensor]:
    """The ``state_dict()``, in which two names of one tensor are two, as a file of safetensors needs."""
    state = energy.state_dict()
    strange = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise UsageError(f"the state of {type(energy).__name__} holds {strange[0]}, which is no tensor: keep it in a buffer")
    return {name: t.detach().clone().contiguous() for name, t in state.items()}


def _pickled(weights: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    return buffer.getvalue()


def _program(run: TrainedRun) -> bytes:
    """The energy as a program of ``torch.export``, compared with it."""
    energy, called = run.energy, type(run.energy).__name__
    _, *others = inspect.signature(energy.forward).parameters.values()
    if any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in others):
        raise UsageError(f"the energy {called} takes conditions, of which torch.export knows no shapes: export its weights")
    examples = (torch.rand(n, *run.examples.shape) for n in (2, 3))
    first, second = (x.to(run._dtype(x)) for x in examples)
    try:
        with warnings.catch_warnings(), frozen(energy), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(energy, (first,), dynamic_shapes=({0: torch.export.Dim("batch")},))
            torch.testing.assert_close(program.module()(second), energy(second))
            buffer = io.BytesIO()
            torch.export.save(program, buffer)
    except Exception as error:  # of any kind: the compiler of a program raises many
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"torch.export cannot make a program of the energy {called} ({reason}): export its weights"
        ) from error
    return buffer.getvalue()
