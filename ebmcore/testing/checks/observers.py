"""Rules for observers: what they take, and what they must not change."""

from __future__ import annotations

import contextlib
import inspect
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ebmcore.losses import BaseLoss
from ebmcore.testing.cases import ObserverCase, generator
from ebmcore.testing.instruments import Trace, global_random_state
from ebmcore.testing.rules import ConformanceError, check, expect
from ebmcore.testing.samplers import Identity
from ebmcore.testing.targets import Quadratic
from ebmcore.training import LabelledExamples

# The events of training in the order in which they come, and the names of the arguments of each besides the run.
EVENTS: dict[str, tuple[str, ...]] = {
    "on_start": (),
    "on_log": ("metrics",),
    "on_checkpoint": ("path",),
    "on_end": (),
}


class _MeanEnergy(BaseLoss):
    """The mean energy of the data: the loss of the example run."""

    def __init__(self, energy: Quadratic, sampler: Identity) -> None:
        super().__init__()
        self.energy = energy
        self.sampler = sampler

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.energies(x).mean()


def example_run(directory: Path) -> SimpleNamespace:
    """A run at its beginning, with all that training gives its observers."""
    energy, sampler = Quadratic((2,)), Identity()
    x = torch.randn(20, 2, generator=generator(1))
    loss = _MeanEnergy(energy, sampler)
    data = SimpleNamespace(train=x, test=x, shape=(2,), state_space="continuous")
    return SimpleNamespace(
        config={"energy": "quadratic", "loss": "mean-energy", "steps": 2},
        loss=loss,
        energy=energy,
        data=data,
        examples=LabelledExamples(x, {}),
        sampler=sampler,
        step=0,
        n_steps=2,
        rank=0,
        directory=directory,
        stop=lambda: None,
    )


def _events(run: SimpleNamespace) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The events of a run of two steps; ``run.step`` follows them."""
    checkpoint = run.directory / "checkpoints" / "step-2"
    checkpoint.mkdir(parents=True)
    yield "on_start", ()
    for run.step in (1, 2):
        yield "on_log", ({"loss": 0.5, "energy_data": float(run.step)},)
    yield "on_checkpoint", (checkpoint,)
    yield "on_end", ()


@contextlib.contextmanager
def _directories() -> Iterator[tuple[Path, Path]]:
    """Yields the directory of a run and its parent, which is the current directory within the block."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as around:
        run = Path(around) / "run"
        run.mkdir()
        os.chdir(around)
        try:
            yield run, Path(around)
        finally:
            os.chdir(before)


@check(since="0.1")
def check_it_takes_every_event(case: ObserverCase) -> None:
    """on_start, on_log, on_checkpoint and on_end are there and take what training gives: the run, and metrics or a path."""
    observer = case.make()
    for event, more in EVENTS.items():
        method = getattr(observer, event, None)
        if not callable(method):
            raise ConformanceError(f"it has no {event}: derive from ebmcore.training.BaseObserver")
        try:
            inspect.signature(method).bind("run", *more)
        except TypeError as error:
            expect(False, f"{event} does not take ({', '.join(('run', *more))}): {error}")


@check(since="0.1")
def check_it_names_no_event_that_does_not_exist(case: ObserverCase) -> None:
    """Each method that begins with on_ is an event of training: a misspelt one would never be called."""
    named = {name for name in dir(case.component) if name.startswith("on_")}
    expect(named <= set(EVENTS), f"training never calls {', '.join(sorted(named - set(EVENTS)))}")


@check(since="0.1")
def check_it_follows_a_run(case: ObserverCase) -> None:
    """An observer takes all events of a run, with and without a directory, and returns nothing."""
    for with_directory in (True, False):
        with _directories() as (directory, _):
            observer, run = case.make(), example_run(directory)
            for event, arguments in _events(run):
                run.directory = directory if with_directory else None
                result = getattr(observer, event)(run, *arguments)
                expect(result is None, f"{event} returns a {type(result).__name__}: return nothing")


@check(since="0.1")
def check_it_changes_nothing_of_the_run(case: ObserverCase) -> None:
    """The loss, the energy, the data and the global random state are as before, and files lie in the run's directory alone."""
    with _directories() as (directory, around):
        observer, run = case.make(), example_run(directory)
        trace, random, data = Trace.of(run.loss), global_random_state(), run.data.train.clone()
        held = dict(vars(run))
        for event, arguments in _events(run):
            getattr(observer, event)(run, *arguments)
        changes = trace.changes(run.loss)
        expect(not changes, "; ".join(changes[:4]))
        expect(torch.equal(run.data.train, data), "it changes the data")
        replaced = [name for name, value in held.items() if name != "step" and vars(run)[name] is not value]
        expect(not replaced, f"it sets {', '.join(replaced)} of the run")
        touched = [name for name, state in global_random_state().items() if random.get(name, state) != state]
        expect(not touched, f"it drew from the global generator of {', '.join(touched)}")
        outside = sorted(path.name for path in around.iterdir() if path != directory)
        expect(not outside, f"it writes {', '.join(outside)} into the current directory: write into run.directory")
