"""A run before its first step: its parts are made, and checked against each other."""

from __future__ import annotations

import importlib.util
import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ebmcore.conditions import name_conditions
from ebmcore.energies import frozen, supports
from ebmcore.errors import UsageError
from ebmcore.host.origin import is_out_of_memory
from ebmcore.losses import BaseLoss
from ebmcore.random import stream_seed
from ebmcore.training.averaging import moving_average
from ebmcore.training.batches import Batch, Examples, LabelledExamples, Reading
from ebmcore.training.checkpoints import CheckpointWriter
from ebmcore.training.data import DataSource, SupportsDataStart, check_compatible
from ebmcore.training.described import describe, describe_optimizer, describe_record, generators_within
from ebmcore.training.examples import TrainingExamples
from ebmcore.training.modes import check_modes
from ebmcore.training.observers import BaseObserver, MetricsFile, ProgressBar, TensorBoard
from ebmcore.training.opening import check_labelled, check_test, loader_batch_size, open_examples
from ebmcore.training.optimizers import create_optimizer
from ebmcore.training.options import Options, binding, kept_options
from ebmcore.training.progress import Training, position
from ebmcore.training.run import flat_config
from ebmcore.training.scheduled import ScheduledOptions
from ebmcore.training.sharding import check_shardable, gathered, put_back_on_error, without_parameters
from ebmcore.training.state import TrainingState


def require_train_extra() -> None:
    """Raise `UsageError` with the line that installs what training needs, unless it is there."""
    needed = ("lightning_fabric", "jsonargparse", "yaml", "rich", "matplotlib", "safetensors")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"this needs {', '.join(missing)}, which is not installed: pip install 'ebmcore[train]'")


DEFAULT_BATCH_SIZE = 64


def prepare(loss: BaseLoss, data: Any, weights: Any, options: Options, fabric: Any) -> Training:
    """Check before the first step that the options work, and make the parts of the run."""
    rank, out = fabric.global_rank, options.out
    energy: nn.Module = getattr(loss, "energy", loss)  # a loss may be its own model
    sampler = getattr(loss, "sampler", None)
    own = loader_batch_size(data)
    if own not in (None, options.batch_size):
        raise UsageError(f"batch_size={options.batch_size}, but the DataLoader has batches of {own}: leave it out")
    reading = Reading(
        dtype=floating_dtype(energy, options.precision),
        space=check_compatible(energy, sampler, data, loss),
        bounds=getattr(sampler, "bounds", None),
        n_classes=_n_classes(data, energy, loss),
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        seed=options.seed,
        rank=rank,
        world=fabric.world_size,
    )
    examples = open_examples(data, loss, reading, weights)
    n_steps = options.number_of_steps(examples.steps_per_epoch)
    first_batch = position(loss, examples, options)
    visited = examples.starting_at(first_batch)
    first = next(visited)
    check_labelled(loss, first)
    if isinstance(data, DataSource):
        check_test(data, reading, first.args[0].shape[1:], labelled=bool(first.args[1:] or first.named))
    if first.weights is not None and not loss.weighted:
        raise UsageError(
            f"the loss {type(loss).__name__} takes no weights of examples: choose one that does, or leave them out"
        )
    shape = first.args[0].shape[1:]
    build_loss(loss, shape, options.seed)
    _initialise_lazy(loss, energy, first, options.seed)
    for part in (energy, loss):
        if supports(part, SupportsDataStart) and part.awaits_data:
            part.start_from_data(examples.whole().args[0], examples.weights)  # type: ignore[operator]
    if not any(p.requires_grad for p in loss.parameters()):
        raise UsageError(
            f"no parameter of the loss {type(loss).__name__} or of its energy requires a gradient, so there is nothing to train: "
            "call energy.requires_grad_(True)"
        )
    if options.compile:
        loss.compile()
    parts = {"loss": loss, "energy": energy, "sampler": sampler}
    made: dict[str, Any] = {}
    if out is not None:
        _warn_of_generators({**parts, "data": data})
        made = _made_of(parts, [*parts])
        if options.config is not None:  # which need not hold the options of this call
            made |= {f"fit.{name}": v for name, v in kept_options(replace(options, config=None).as_config()).items()}
    bare = None
    if options.strategy == "fsdp" and fabric.world_size > 1:
        check_shardable(loss, ema_decay=options.ema_decay, compile=options.compile)
        bare = without_parameters(energy)
    with put_back_on_error(loss, bare):
        model = _set_up(fabric, loss)
        optimizer = create_optimizer(options.optimizer, loss, options.lr, options.precision)
        if out is not None and hasattr(optimizer.step, "_wrapped_by_lr_sched"):
            warnings.warn(
                "a torch scheduler hangs on the optimizer, whose count of steps no checkpoint holds, so that a resumed run "
                "would be another: give the rate by schedules={'optimizer.lr': ...}",
                stacklevel=2,
            )
        scheduled = ScheduledOptions(options.schedules, loss, optimizer, n_steps)
        wrapped_optimizer = fabric.setup_optimizers(optimizer)
        average = None if options.ema_decay is None else moving_average(energy, options.ema_decay)
        components = {
            "loss": loss,
            "energy": bare or energy,
            "sampler": sampler,
            "dataset": data if isinstance(data, DataSource) else None,
        }
        if callable(options.optimizer):
            made |= {f"optimizer.{name}": value for name, value in describe_optimizer(optimizer).items()}
        bound, known = None, TrainingExamples.of(data, first.args[0])
        if out is not None:
            bound = binding(options.as_config(), _described(known, examples), made)
        unscheduled = [kind for kind in parts if not any(name.startswith(f"{kind}.") for name in options.schedules)]
        state = TrainingState(
            loss,
            wrapped_optimizer.optimizer,
            average,
            components,
            scheduled.optimizer_options,
            bound,
            known,
            partial(_made_of, parts, unscheduled if out is not None else ()),
            first_batch,
            options.changed,
        )
        if energy is not loss:
            for batch in [first, *(examples.outermost() if loss.labels == "conditions" else [])]:
                _probe(loss, energy, batch, fabric)
            (x, *args), kwargs = fabric.to_device(_for_energy(loss, first))
            with gathered(energy):
                check_modes(loss, energy, [fabric.strategy.precision.convert_input(x), *args], kwargs)
        if out is not None:
            state.check(trained=False)  # raises now, not after hours
        return Training(
            options=options,
            fabric=fabric,
            loss=loss,
            model=model,
            optimizer=wrapped_optimizer,
            energy=energy,
            bare=bare,
            average=average,
            data=data,
            examples=examples,
            seen=_seen(loss, examples.some(first)),
            visited=itertools.chain([first], visited),
            before=loss.step,
            components=components,
            n_steps=n_steps,
            scheduled=scheduled,
            state=state,
            watching=_all_observers(options) if rank == 0 else [],
            writer=None
            if out is None
            else CheckpointWriter(out / "checkpoints", background=options.checkpoint_async, keep=options.kept[0]),
        )


def _made_of(parts: Mapping[str, object], kinds: Sequence[str]) -> dict[str, Any]:
    """What the parts of those kinds are made of, by dotted names; each is described on its own."""
    present = {kind: part for kind, part in parts.items() if part is not None}
    if present["energy"] is present["loss"]:
        del present["energy"]
    apart = {kind: [other for name, other in present.items() if name not in (kind, "loss")] for kind in present}
    return flat_config({kind: describe(part, apart[kind]) for kind, part in present.items() if kind in kinds})


def _warn_of_generators(parts: Mapping[str, object]) -> None:
    for kind, part in parts.items():
        names = generators_within(part)
        if names:
            warnings.warn(
                f"the {kind} {type(part).__name__} holds a random generator of its own ({', '.join(names)}), whose state no "
                "checkpoint holds, so that a resumed run would be another: draw from the generator that a sampler's step() is "
                "given, or from torch's global one",
                stacklevel=2,
            )


def _set_up(fabric: Any, loss: BaseLoss) -> Any:
    try:
        return fabric.setup_module(loss)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{type(loss.energy).__name__} cannot be shared between processes: {reason}") from error


def build_loss(loss: BaseLoss, shape: Sequence[int], seed: int) -> None:
    """Let a loss make the parts whose shape depends on the data, once. Their initial values are a function of the seed."""
    if loss.built:
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "build"))
        loss.build(tuple(shape))
    loss.built = True


def _n_classes(data: Any, energy: nn.Module, loss: BaseLoss) -> int | None:
    """The number of classes that labels of the data may name, where it is known."""
    known = [getattr(part, "n_classes", None) for part in (data, energy)]
    return min((n for n in known if type(n) is int), default=None) if loss.labels is not None else None


def floating_dtype(energy: nn.Module, precision: str) -> torch.dtype:
    """The dtype of examples: that of the energy's parameters, as they will be."""
    if precision == "64-true":
        return torch.float64
    return next((p.dtype for p in energy.parameters() if p.is_floating_point()), torch.get_default_dtype())


def describe_data(data: DataSource, loss: BaseLoss, precision: str) -> dict[str, Any]:
    """What a checkpoint records of the data of a run; see `ebmcore.training.options.binding`."""
    dtype = floating_dtype(getattr(loss, "energy", loss), precision)
    examples = open_examples(data, loss, Reading(dtype=dtype, space=data.state_space))
    return _described(TrainingExamples.of(data, torch.empty(0, *data.shape)), examples)


def _described(known: TrainingExamples, examples: Examples) -> dict[str, Any]:
    """The description of the values, and then what they are called: a table with other columns or classes is another one."""
    values = {"shape": list(known.shape), **examples.description()}
    named = describe_record({"classes": known.classes, **(known.record or {})})
    return values | {name: value for name, value in named.items() if name not in values}


def _initialise_lazy(loss: BaseLoss, energy: nn.Module, batch: Batch, seed: int) -> None:
    """Give lazy layers their parameters, by a forward as they need one. Their values are a function of the seed."""
    if not any(is_lazy(p) for p in energy.parameters()):
        return
    args, kwargs = _first_two(loss, batch)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(stream_seed(seed, "init"))
        (energy if energy is loss else loss.energies)(*args, **kwargs)  # on the CPU, where a module is made


def _for_energy(loss: BaseLoss, batch: Batch) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """What the energy takes of a batch."""
    return (batch.args, batch.named) if loss.labels == "conditions" else (batch.args[:1], {})


def _first_two(loss: BaseLoss, batch: Batch) -> tuple[list[Tensor], dict[str, Tensor]]:
    """What the energy takes of the first two examples of a batch."""
    args, named = _for_energy(loss, batch)
    return [t[:2] for t in args], {name: t[:2] for name, t in named.items()}


def _seen(loss: BaseLoss, batch: Batch) -> LabelledExamples:
    (x, *args), named = _for_energy(loss, batch)
    return LabelledExamples(x, name_conditions(tuple(args), named, x), batch.weights)


def _probe(loss: BaseLoss, energy: nn.Module, batch: Batch, fabric: Any) -> None:
    """Check before the first step that the energy can take the data. Gradients are on, as it may take some of its own."""
    (x, *args), kwargs = fabric.to_device(_first_two(loss, batch))
    devices = [fabric.device] if fabric.device.type == "cuda" else []
    try:
        with gathered(energy), frozen(energy), torch.enable_grad(), fabric.autocast(), torch.random.fork_rng(devices):
            loss.energies(fabric.strategy.precision.convert_input(x), *args, **kwargs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())
        if "required positional argument" in reason or "required keyword-only argument" in reason:
            reason += ": the data have no such labels (--data.labels, or train_labels of the data set)"
        conditions = [str(t.tolist()) for t in (*args, *kwargs.values()) if t.ndim == 1]
        under = f" under the conditions {', '.join(conditions)}" if conditions else ""
        raise UsageError(
            f"the energy {type(energy).__name__} cannot take examples of shape {tuple(x.shape[1:])} ({x.dtype}){under}: {reason}"
        ) from error


def _all_observers(options: Options) -> list[BaseObserver]:
    observers = list(options.observers)
    if options.out is not None:
        observers.append(MetricsFile(options.out / "metrics.csv"))
        if TensorBoard.available:
            observers.append(TensorBoard(options.out / "tensorboard"))
    if options.progress:
        observers.append(ProgressBar())
    return observers
