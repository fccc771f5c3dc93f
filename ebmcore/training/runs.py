"""Runs on disk: the configuration in a run's directory, and the trained parts made from it again."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ebmcore import host, samplers
from ebmcore.conditions import condition, split_conditions
from ebmcore.distributions import InitialDistribution, Normal, at_least_float32
from ebmcore.energies import SupportsInitialDistribution, check_energies, frozen, supports
from ebmcore.errors import AmbiguousComponentError, CheckpointError, EbmcoreError, UsageError
from ebmcore.host.origin import is_out_of_memory
from ebmcore.losses import BaseLoss
from ebmcore.random import stream_generator, stream_seed
from ebmcore.training.checkpoints import find_checkpoint, read_checkpoint, read_info
from ebmcore.training.configuration import PARTS, REQUIRED, Config, admit, components, create, read_config
from ebmcore.training.data import DataSource, as_floating, check_compatible, check_values
from ebmcore.training.directory import check_file, read_text, writing
from ebmcore.training.documents import MAX_JSON, load_json
from ebmcore.training.examples import TrainingExamples
from ebmcore.training.numbers import BOUNDS, Bounds, refusing_sizes
from ebmcore.training.options import binding, check_binding, check_options
from ebmcore.training.origins import check_installed, check_same, recorded_id, warn_of_other_versions
from ebmcore.training.preparation import build_loss, describe_data, require_train_extra
from ebmcore.training.state import check_kinds
from ebmcore.training.tensors import as_label, as_tensor, is_numpy

CONFIG = "config.yaml"
CODE = "code"  # where a run keeps the files of a user's own classes
EVALUATION = "evaluation.json"
_ADVICE = f"give its {CONFIG}"

Conditions = Mapping[str, Any] | Tensor | Sequence[str | float] | str | float
"""Conditions of an energy by name (``"0"`` is the first positional one), or those of the first alone.

Tensors and arrays hold class numbers; texts and numbers alone or in a list may be names of classes, as
`TrainingExamples.class_numbers` reads them.
"""


@dataclass
class Parts:
    """The components of a run; ``sampler`` is `None` where none was named."""

    data: DataSource
    energy: nn.Module
    sampler: Any
    loss: Any


def build(config: Config) -> Parts:
    """Data, energy, sampler and loss of a configuration; the energy's initial parameters come from its own stream."""
    _check_complete(config)
    data = _create_data(config)
    return Parts(data, *_build_on(config, data))


def _check_complete(config: Config) -> None:
    incomplete = [part for part in REQUIRED if not isinstance(config.get(part), dict) or "name" not in config[part]]
    if incomplete:
        raise UsageError(f"the configuration names no {', '.join(incomplete)}")


def _create_data(config: Config) -> DataSource:
    data = create(config, "data")
    missing = [name for name in ("train", "test", "shape", "state_space") if not hasattr(data, name)]
    if missing:
        raise UsageError(
            f"the dataset {config['data']['name']!r} has no {', '.join(missing)}: see ebmcore.training.DataSource"
        )
    if is_numpy(data.test):  # metrics take tensors
        data.test = as_tensor(data.test, "the test data")
    return data  # type: ignore[no-any-return]


def _build_on(config: Config, data: Any) -> tuple[nn.Module, Any, Any]:
    """Energy, sampler and loss, for data of which no more than shape and state space is known."""
    energy = _create_energy(config, data.shape)
    sampler = create(config, "sampler") if "sampler" in config else None
    kind = host.load("loss", config["loss"]["name"])
    if kind.needs_sampler and sampler is None:
        raise UsageError(f"the configuration names no sampler, which the loss {config['loss']['name']} needs")
    check_compatible(energy, sampler, data)
    loss = create(config, "loss", energy=energy, **({"sampler": sampler} if kind.needs_sampler else {}))
    check_compatible(energy, sampler, data, loss)  # of which the options may say its state space
    build_loss(loss, data.shape, config.get("seed", 0))
    return energy, sampler, loss


def _create_energy(config: Config, shape: Sequence[int]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(stream_seed(config.get("seed", 0), "init"))
        return create(config, "energy", shape=shape)  # type: ignore[no-any-return]


@dataclass
class TrainedRun:
    """A trained run, as `load_run` returns it. It needs the run's data only where `data` is used.

    Args:
        directory: The run's directory.
        config: The configuration, as in ``config.yaml``.
        step: Number of optimizer steps done.
        energy: The trained energy, its moving average where one is kept, on the CPU and in evaluation mode.
        sampler: The run's sampler; `None` where it has none.
        loss: The loss in the state of the checkpoint, its persistent chains included. Its energy is the one that was trained,
            not the average.
        examples: Shape, state space, range and classes of the training examples.
        checkpoint: The checkpoint that was loaded.
    """

    directory: Path
    config: Config
    step: int
    energy: nn.Module
    sampler: Any
    loss: BaseLoss
    examples: TrainingExamples
    checkpoint: Path

    @cached_property
    def data(self) -> DataSource:
        """The data of the run, made when they are first used.

        Raises:
            CheckpointError: If they are not those that the run was trained on.
        """
        with refusing_sizes():
            data = _create_data(self.config)
        info = read_info(self.checkpoint)
        check_same(info, {"dataset": data}, self.checkpoint, "use")
        described = describe_data(data, self.loss, self.config.get("precision", ""))
        check_binding(info.get("run"), binding(self.config, described), self.checkpoint, "use")
        return data

    @cached_property
    def reader(self) -> Any:
        """The data set of the run without its examples, which reads other files and knows their units; see `DataSource`.

        `None` where the data set cannot be made without its examples.

        Raises:
            CheckpointError: If the checkpoint does not hold what the data set needs, and the data are missing or others.
        """
        cls, record = host.load("dataset", self.config["data"]["name"]), self.examples.record
        if not hasattr(cls, "from_record"):
            return None
        if record is None:
            return self.data
        try:
            with refusing_sizes():
                return cls.from_record(record)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{self.checkpoint} does not say how {cls.__name__} reads files: {error}") from error

    def sample(
        self,
        n: int,
        steps: int = 1000,
        *,
        sampler: Any = None,
        conditions: Conditions | None = None,
        seed: int = 0,
        generator: Generator | None = None,
    ) -> Tensor:
        """Draw samples, each from a chain of its own.

        Chains start where new chains of the loss start; where that is at training data (``initial="data"``), they start at the
        persistent chains of the checkpoint instead, so that no data are needed. A loss without chains leaves the start to the
        energy's own initial distribution, otherwise a standard normal.

        Args:
            n: Number of samples.
            steps: Transitions of each chain.
            sampler: Another sampler than the run's.
            conditions: What the energy takes beside ``x``, such as labels: of each sample, or fewer that are taken in turn.
                Names of classes, as in ``["cat", "dog"]``, stand for their numbers.
            seed: Seed of the chains; not used with a ``generator``.
            generator: Source of randomness.

        Returns:
            The samples ``(n, *shape)``.

        Raises:
            UsageError: If there is no sampler, the conditions are not those that the energy takes, or a chain becomes NaN or
                infinite.
        """
        Bounds(1).check("n", n)
        BOUNDS["steps"].check("steps", steps)
        BOUNDS["seed"].check("seed", seed)
        sampler = self.sampler if sampler is None else sampler
        if sampler is None:
            raise UsageError(f"{self.directory} was trained without a sampler: give one (sampler=)")
        check_compatible(self.energy, sampler, self.examples)
        named = {name: t[torch.arange(n) % len(t)] for name, t in self.conditions(conditions).items()}
        generator = stream_generator(seed, "sample") if generator is None else generator
        with refusing_sizes():
            start = self._initial_distribution().sample(n, generator=generator)
            start = start.to(self._dtype(start))
            if named:
                self._energies(start, named)  # raises in one line what the energy does not take
            x = samplers.sample(sampler, self.energy, start, steps, conditions=named, generator=generator)
        if not x.isfinite().all():
            raise UsageError("some chains are NaN or infinite: lower the sampler's step size, or take fewer steps")
        return x

    def score(self, x: Tensor, conditions: Conditions | None = None, *, batch_size: int = 1024) -> Tensor:
        """Compute the log-density ``-E(x)`` of examples without the normaliser, which is the same for all of them.

        Args:
            x: Examples ``(N, *shape)``, on the scale of the training examples; a tensor or an array.
            conditions: What the energy takes beside ``x``, such as labels or names of classes: of each example, or one for all.
            batch_size: Examples in one forward.

        Returns:
            Scores ``(N,)``.

        Raises:
            UsageError: If the examples are not such as the run was trained on.
        """
        Bounds(1).check("batch_size", batch_size)
        x = self._checked(as_tensor(x, "the examples"))
        named = self.conditions(conditions)
        for name, t in named.items():
            if len(t) not in (1, len(x)):
                raise UsageError(
                    f"the condition {name!r} must have one row, or one for each of {len(x)} examples, not {len(t)}"
                )
        named = {name: t.expand(len(x), *t.shape[1:]) for name, t in named.items()}
        energies = [
            self._energies(x[rows], {name: t[rows] for name, t in named.items()})
            for rows in torch.arange(len(x)).split(batch_size)
        ]
        return -at_least_float32(torch.cat(energies))

    def _checked(self, x: Tensor) -> Tensor:
        """Examples of the run's shape and state space, in the dtype of the energy."""
        shape, space = self.examples.shape, self.examples.state_space
        if tuple(x.shape[1:]) != shape or not len(x):
            wanted = ", ".join(map(str, ("N", *shape)))
            raise UsageError(f"the examples must be of shape ({wanted}), at least one, got {tuple(x.shape)}")
        x = as_floating(x, self._dtype(x), space, "the examples", warn=False)
        check_values(x, space, "the examples")
        low, high = self.examples.low, self.examples.high
        if low is not None and high is not None:
            width = high - low
            beyond = int(((x < low - width) | (x > high + width)).flatten(1).any(1).sum())
            if beyond:
                warnings.warn(
                    f"{beyond} of {len(x)} examples are far outside of the training examples' range [{low:g}, {high:g}]: give "
                    "them on the scale of the data that the run was trained on",
                    UserWarning,
                    stacklevel=3,
                )
        return x

    def _dtype(self, x: Tensor) -> torch.dtype:
        """The dtype of the energy."""
        kinds = (t.dtype for t in (*self.energy.parameters(), *self.energy.buffers()) if t.is_floating_point())
        return next(kinds, x.dtype if x.is_floating_point() else torch.float32)

    def conditions(self, given: Conditions | None) -> dict[str, Tensor]:
        """Return conditions as the energy takes them: by name, a row for each, names of classes as numbers.

        Raises:
            UsageError: If the energy takes others, or one is no class of the run.
        """
        called = type(self.energy).__name__
        _, *parameters = inspect.signature(self.energy.forward).parameters.values()
        needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        first = parameters[0].name if parameters and parameters[0].kind is parameters[0].KEYWORD_ONLY else "0"
        values: Mapping[str, Any] = {} if given is None else given if isinstance(given, Mapping) else {first: given}
        args, kwargs = split_conditions(values)
        try:
            inspect.signature(self.energy.forward).bind(None, *args, **kwargs)
        except TypeError as error:
            if not needed:
                raise UsageError(f"the energy {called} takes no such conditions: leave them out ({error})") from error
            raise UsageError(
                f"the energy {called} needs conditions ({', '.join(needed)}), such as labels: give one for each example or all "
                "(--condition, conditions=)"
            ) from error
        return {name: self._condition(name, value, are_labels=len(values) == 1) for name, value in values.items()}

    def _condition(self, name: str, given: Any, *, are_labels: bool) -> Tensor:
        """One condition, a row for each; class numbers are whole ones of the run's classes."""
        what = f"the values of the condition {name!r}"
        if getattr(getattr(given, "dtype", None), "kind", "") in ("U", "S", "O"):  # a numpy array of texts
            given = given.astype(str).tolist()
        plain = (str, int, float)  # True is none of these
        listed = [given] if type(given) in plain else given
        listed = listed if isinstance(listed, list | tuple) and all(type(one) in plain for one in listed) else []
        if listed and (are_labels or any(isinstance(one, str) for one in listed)):
            given = self.examples.class_numbers(listed)
        t: Tensor = torch.atleast_1d(as_label(as_tensor(given, what), self._dtype(torch.zeros(())), what))
        if not len(t):
            raise UsageError(f"the condition {name!r} is empty: give one for each example or for all")
        n_classes = self.examples.n_classes
        if n_classes is None or not are_labels:
            return t
        if t.is_complex() or not bool(((t >= 0) & (t < n_classes) & (t == t.long())).all()):
            got = t.flatten().tolist()[:8]
            raise UsageError(
                f"the labels must be from 0 to {n_classes - 1}, the classes of the run, in whole numbers, got {got}"
            )
        return t.long()

    def _energies(self, x: Tensor, named: Mapping[str, Tensor]) -> Tensor:
        """Energies under conditions, detached."""
        try:
            with frozen(self.energy), torch.enable_grad():  # for an energy that takes a gradient of its own
                return check_energies(condition(self.energy, named)(x), x).detach()
        except (RuntimeError, ValueError, TypeError, LookupError) as error:
            if not named or is_out_of_memory(error):
                raise
            given = ", ".join(f"{name!r} of shape {tuple(t.shape)} ({t.dtype})" for name, t in named.items())
            raise UsageError(
                f"the energy {type(self.energy).__name__} cannot take the condition {given}: {' '.join(str(error).split())}"
            ) from error

    def _initial_distribution(self) -> InitialDistribution:
        shape = torch.Size(self.examples.shape)
        loss: Any = self.loss
        if hasattr(loss, "initial_distribution"):
            start: InitialDistribution = loss.initial_distribution(shape, getattr(loss, "chain", None))
            return start
        if supports(self.energy, SupportsInitialDistribution):
            own: InitialDistribution = self.energy.initial_distribution(shape)  # type: ignore[operator]
            return own
        return Normal(torch.zeros(shape))


def load_run(path: str | os.PathLike[str], *, checkpoint: int | None = None, allow_code: bool = False) -> TrainedRun:
    """Load a trained run from the directory that ``ebmcore train --out`` wrote, to sample from it or score with it.

    Reading a run runs no code, unless ``allow_code`` is given. Its data are not needed, and its plugins must be installed.

    Args:
        path: The run's directory.
        checkpoint: Step of the checkpoint to load; by default the last one.
        allow_code: Whether the files and modules may be run that the run names for classes of one's own
            (``energy: model.py:MyEnergy``).

    Raises:
        UsageError: If it is not the directory of a run.
        CheckpointError: If it has no such checkpoint, or one that is damaged or of another run.
        PluginError: If one of its plugins cannot be loaded.

    Example:
        >>> import tempfile
        >>> from ebmcore.cli import main
        >>> out = tempfile.mkdtemp() + "/run"
        >>> command = "train --energy rbm --energy.hidden 4 --sampler gibbs --loss pcd --data bars-and-stripes --steps 2"
        >>> main([*command.split(), "--progress", "false", "--out", out])
        trained 2 steps; ... holds the results
        0
        >>> run = load_run(out)
        >>> x = run.sample(5, steps=10)
        >>> x.shape, run.score(x).shape
        (torch.Size([5, 1, 4, 4]), torch.Size([5]))
    """
    require_train_extra()
    run = Path(path)
    config = run_config(run, checkpoint)
    admit(components({part: config.get(part) for part in (*REQUIRED, "sampler")}), allowed=allow_code)
    check_plugins(run, checkpoint)
    found = find_checkpoint(run / "checkpoints", checkpoint)
    if found is None:
        raise CheckpointError(f"{run} holds no checkpoint yet: 'ebmcore train --resume {run}' trains it from the start")
    _check_complete(config)
    tensors, info = read_checkpoint(found)
    warn_of_other_versions(info, found)
    check_options(info.get("run"), config, found, _ADVICE)
    with refusing_sizes():
        examples = _recorded_examples(config, info, found)
        energy, sampler, loss = _build_on(config, examples)
    if config.get("precision") == "64-true":
        loss.double()
    check_same(info, {"loss": loss, "energy": energy, "sampler": sampler}, found, _ADVICE)
    then, now = recorded_id(info, "dataset", found), host.find("dataset", config["data"]["name"]).origin["id"]
    if then and then != now:  # told by name, as the data are not made
        raise CheckpointError(f"{found} was written with the dataset {then}, not with {now}: give that one its name again")
    average = "average.module."
    try:
        check_kinds(tensors, {f"loss.{name}": t for name, t in loss.state_dict().items()}, found)
        loss.load_state_dict({n.removeprefix("loss."): t for n, t in tensors.items() if n.startswith("loss.")})
        chains = getattr(loss, "chain", None)
        if chains is not None and tuple(chains.shape[1:]) != examples.shape:
            raise ValueError(f"its chains are of shape {tuple(chains.shape[1:])}, not {examples.shape}")
        kept = {n.removeprefix(average): t for n, t in tensors.items() if n.startswith(average)}
        if kept or energy is loss.energy:  # which may be trained further, in training mode
            energy = _create_energy(config, examples.shape).to(next((p.dtype for p in energy.parameters()), None))
            energy.load_state_dict(kept or loss.energy.state_dict())
    except (RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(f"{found} does not fit {run / CONFIG}: {error}") from error
    if not all(p.isfinite().all() for p in energy.parameters()):  # of which no checkpoint is written
        raise CheckpointError(f"{found} holds parameters that are NaN or infinite: start the run again with another --out")
    return TrainedRun(run, config, int(info["step"]), energy.eval(), sampler, loss, examples, found)


def _recorded_examples(config: Config, info: Mapping[str, Any], where: Path) -> TrainingExamples:
    """What a checkpoint says of its examples; of one written before they did, the data say it."""
    if "examples" in info:
        return TrainingExamples.from_json(info["examples"], where)
    data = _create_data(config)
    return TrainingExamples.of(data, data.train[:1])


def check_plugins(run: Path, step: int | None = None) -> None:
    """Check first that the plugins of a run are installed; see `ebmcore.training.check_installed`."""
    checkpoint = find_checkpoint(run / "checkpoints", step)
    if checkpoint is not None:
        check_installed(read_info(checkpoint), checkpoint)


def run_config(run: Path, step: int | None = None) -> Config:
    """The configuration that a run was started with; a name that several plugins provide by now means what it meant then."""
    if not (run / CONFIG).exists():
        python = ": it was trained from Python, where its energy is made" if (run / "checkpoints").is_dir() else ""
        raise UsageError(f"{run} is not the directory of a run of 'ebmcore train': it holds no {CONFIG}{python}")
    check_file(run / CONFIG)
    config = read_config(run / CONFIG)
    for part in (*REQUIRED, "sampler"):
        chosen = config.get(part)
        if isinstance(chosen, dict) and isinstance(chosen.get("name"), str):
            chosen["name"] = _place_of(chosen["name"], run / CODE / part)
    checkpoint = find_checkpoint(run / "checkpoints", step)
    if checkpoint is None:
        return config
    info = read_info(checkpoint)
    check_options(info.get("run"), config, checkpoint, _ADVICE)
    for part in (*REQUIRED, "sampler"):
        kind = PARTS[part][0]
        try:
            host.find(kind, config[part]["name"])
        except AmbiguousComponentError:
            config[part]["name"] = recorded_id(info, kind, checkpoint) or config[part]["name"]
        except (EbmcoreError, KeyError, TypeError):
            continue  # raises when it is built
    return config


def _place_of(name: str, kept: Path) -> str:
    """The name of a component; of a class whose file is no longer where it was, that in the run's own copy of the file."""
    place, _, cls = name.rpartition(":")
    copy = kept / Path(place).name
    return f"{copy}:{cls}" if place.endswith(".py") and not Path(place).is_file() and copy.is_file() else name


def keep_code(run: Path, config: Config) -> None:
    """Copy the files of a user's own classes into a run's directory, so that the run can be used where they are not.

    The copies are code: they are run where the configuration's are allowed to be, and not otherwise.
    """
    for part in (*REQUIRED, "sampler"):
        place, _, _ = config.get(part, {}).get("name", "").rpartition(":")
        copy = run / CODE / part / Path(place).name
        if place.endswith(".py") and not (copy.exists() and copy.samefile(place)):
            copy.parent.mkdir(parents=True, exist_ok=True)
            with writing(copy) as file:
                file.write(Path(place).read_bytes())


def evaluation(run: Path) -> dict[str, Any]:
    """The results that were written into a run's directory so far.

    Raises:
        UsageError: If the file is damaged or no regular one.
    """
    path = run / EVALUATION
    try:
        known = load_json(read_text(path, MAX_JSON), path)
    except FileNotFoundError:
        return {}
    except UsageError as error:
        raise UsageError(f"{path} is damaged ({error}): move it away") from error
    if not isinstance(known, dict):
        raise UsageError(f"{path} is damaged (it holds no results by their metrics): move it away")
    return known
