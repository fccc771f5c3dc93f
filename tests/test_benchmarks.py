"""What a step costs in operators, which no clock and no neighbour changes; and that the benchmark measures what it says."""

from __future__ import annotations

import gc
import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ebmcore.testing.instruments import Storages

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield
    for name in [n for n in sys.modules if n.split(".")[0] in ("systems", "workloads", "run", "report")]:
        del sys.modules[name]


def system(name):
    return importlib.import_module(f"systems.{name}")


def dispatches(unit):
    from run import Dispatches

    unit()
    unit()
    with Dispatches() as counting:
        unit()
    return counting.count


def counts(workload, size=64):
    """Of the floor and of ebmcore."""
    make = getattr(importlib.import_module("workloads"), workload)
    return [dispatches(make(system(name), size)) for name in ("floor", "ebmcore_eager")]


@pytest.mark.parametrize("workload", ["cd", "pcd"])
def test_a_training_step_has_at_most_a_quarter_more_operators_than_the_floor(workload):
    floor, ours = counts(workload)
    assert ours <= 1.25 * floor


def test_a_langevin_step_adds_three_operators_to_its_gradient():
    floor, ours = counts("langevin")
    per_step = (ours - floor) / 20
    assert 3 <= per_step < 3.5  # ones for the gradient, the mean, the normal numbers; the rest is once in a run


def test_a_mala_draw_takes_one_gradient_and_few_operators_more():
    floor, ours = counts("mala")
    assert (ours - floor) / 20 <= 27


def test_an_rbm_step_has_few_operators():
    assert dispatches(system("ebmcore_eager").rbm(torch.rand(100, 64).round(), 16, 0.1, 100).epoch) <= 75


def pcd(n_chains=5000):
    energy = importlib.import_module("workloads").mlp()
    return system("ebmcore_eager").pcd(energy, torch.randn(16, 2), 0.01, 5, 1e-3, n_chains)


def test_sixty_steps_hold_no_more_memory_than_one():
    step = pcd()
    with Storages() as storages:
        step()
        gc.collect()
        after_one = storages.living()
        for _ in range(59):
            step()
        gc.collect()
        assert storages.living() <= after_one


def test_a_step_touches_the_chains_by_index_only():
    class Large(TorchDispatchMode):
        """Operators whose result is as large as the store."""

        def __init__(self):
            super().__init__()
            self.found = set()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.shape[:1] == (5000,):
                self.found.add(function.overloadpacket)
            return result

    step = pcd()
    step()
    with Large() as large:
        step()
    assert large.found == {torch.ops.aten.randperm, torch.ops.aten.index_copy_}


# How many operators a loss has beside its energy calls, its backward passes and the optimizer: random numbers and its formula.
BESIDE_THE_FLOOR = {
    "score-matching": 35,
    "hutchinson": 31,
    "sliced-score-matching": 31,
    "denoising-score-matching": 24,
    "finite-difference-score-matching": 33,
    "nce": 44,
    "conditional-nce": 28,
    "energy-discrepancy": 35,
    "discrete-energy-discrepancy": 37,
    "pseudo-likelihood": 48,
    "ratio-matching": 52,
    "minimum-probability-flow": 51,
}


@pytest.mark.parametrize("loss", BESIDE_THE_FLOOR)
def test_loss_has_few_operators_beside_its_floor(loss):
    """The formula and the random points of each loss without chains take no more operators than written down here."""
    workloads = importlib.import_module("workloads")
    workload = next(w for w in workloads.WORKLOADS if w.function == loss)
    floor, ours = (dispatches(workload.make(system(name), 16)) for name in ("floor", "ebmcore_eager"))
    assert ours - floor <= BESIDE_THE_FLOOR[loss]


@pytest.mark.parametrize("name", ["hand", "ebmcore_eager"])
@pytest.mark.parametrize("function", ["cd", "pcd", "langevin", "mala", "denoising-score-matching", "pseudo-likelihood"])
def test_the_benchmark_checks_what_it_measures(name, function):
    workload = next(w for w in importlib.import_module("workloads").WORKLOADS if w.function == function)
    workload.check(system(name))


def test_a_wrong_result_is_not_measured(capsys):
    from run import checked

    wrong = type(sys)("wrong")
    wrong.langevin = lambda energy, x, step_size: lambda n: x
    assert checked(importlib.import_module("workloads").WORKLOADS[2], {"wrong": wrong}) == {}
    assert "its result is wrong: variance" in capsys.readouterr().out


@pytest.mark.parametrize("loss", ["sliced-score-matching", "ratio-matching"])
def test_loss_that_learns_nothing_is_not_measured(loss):
    """A step that leaves the energy as it is fails the check of a loss on continuous and on binary data."""
    from run import checked

    workload = next(w for w in importlib.import_module("workloads").WORKLOADS if w.function == loss)
    idle = type(sys)("idle")
    idle.LOSSES = {loss: lambda energy, x, lr: lambda: None}
    assert checked(workload, {"idle": idle}) == {}


def test_page_of_losses_has_their_costs():
    """The table gives time, ratios with quartiles, and peers where they were measured."""
    report = importlib.import_module("report")
    row = {"workload": "Loss: nce", "size": "256", "floor": [1.1, 1.25, 1.5], "ms": 1.5}
    rows = [row | {"system": "ebmcore_eager", "hand": [0.5, 0.6, 0.7]}, row | {"system": "ebmkit", "hand": [0.9, 1.2, 1.3]}]
    assert report.costs(rows).splitlines()[-1] == "| nce | 1.5 | 1.25 (1.10 to 1.50) | 0.60 | 0.50 |  |"
