"""Workloads: each makes a unit of work of a system, and checks the system's result before its time counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import ebmcore
from ebmcore.testing import Boltzmann

STEP_SIZE, LR = 0.01, 1e-4
Unit = Callable[[], object]


@dataclass(frozen=True)
class Workload:
    """One row of the table for each size.

    Args:
        name: What is done.
        function: Which function of a system does it, or which of its ``LOSSES``.
        sizes: Batch sizes, or sizes of an RBM.
        make: Makes a unit of work of a system: ``(system, size) -> unit``.
        check: Raises `AssertionError` unless the system's result is right.
        per: How many units the figure is of, e.g. steps of a chain in one call.
        compile: Whether ebmcore is also measured compiled.
    """

    name: str
    function: str
    sizes: Sequence[int | tuple[int, int]]
    make: Callable[[ModuleType, int | tuple[int, int]], Unit]
    check: Callable[[ModuleType], None]
    per: int = 1
    compile: bool = True


def function_of(system: ModuleType, name: str) -> Callable[..., Any] | None:
    """The function of that name, or the loss; `None` if the system has none."""
    return getattr(system, "LOSSES", {}).get(name) or getattr(system, name, None)


def mlp(n_in: int = 2) -> nn.Module:
    """The energy of most workloads: ``n_in``-128-128-1, SiLU."""
    torch.manual_seed(0)
    return ebmcore.create_energy("mlp", shape=(n_in,), hidden=(128, 128))


class Quadratic(nn.Module):
    """A Gaussian with a precision and a mean to learn."""

    def __init__(self, precision: float = 1.0) -> None:
        super().__init__()
        self.precision = nn.Parameter(torch.tensor(precision))
        self.mean = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.precision * (x - self.mean).flatten(1).square().sum(1)


def data(*shape: int) -> Tensor:
    """A batch of normal numbers, the same for all systems."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def langevin(system: ModuleType, batch: int) -> Unit:
    move = system.langevin(mlp(), data(batch, 2), STEP_SIZE)
    return lambda: move(20)


def mala(system: ModuleType, chains: int) -> Unit:
    move = system.mala(mlp(32), data(chains, 32), STEP_SIZE)
    return lambda: move(20)


def cd(system: ModuleType, batch: int, n_in: int = 2) -> Unit:
    return system.cd(mlp(n_in), data(batch, n_in), STEP_SIZE, 10, LR)


def pcd(system: ModuleType, batch: int) -> Unit:
    return system.pcd(mlp(), data(batch, 2), STEP_SIZE, 20, LR, 10_000)


def conv(system: ModuleType, batch: int) -> Unit:
    torch.manual_seed(0)
    energy = ebmcore.create_energy("conv", shape=(1, 28, 28))
    return system.pcd(energy, data(batch, 1, 28, 28), STEP_SIZE, 20, LR, 10_000)


def rbm(system: ModuleType, size: tuple[int, int]) -> Unit:
    x = torch.rand(6000, size[0], generator=torch.Generator().manual_seed(0)).round()
    epoch: Unit = system.rbm(x, size[1], 0.01, 100).epoch
    return epoch


def check_variance(function: str, variance: float) -> Callable[[ModuleType], None]:
    """The variance of 20,000 chains on a Gaussian of precision 4, after 200 steps of 0.1; 4 standard errors are 0.04."""

    def check(system: ModuleType) -> None:
        torch.manual_seed(0)
        found = getattr(system, function)(Quadratic(4.0), data(20_000, 1), 0.1)(200).var().item()
        assert abs(found / variance - 1) < 0.04, f"variance {found:.4f}, not {variance:.4f}"

    return check


def check_learning(function: str) -> Callable[[ModuleType], None]:
    """A Gaussian fitted to 2,000 numbers of standard deviation 0.5 has their precision, to the bias of the step size and 10 %."""

    def check(system: ModuleType) -> None:
        torch.manual_seed(0)
        x, energy, extra = 0.5 * data(2000, 1), Quadratic(), () if function == "cd" else (4000,)
        step = getattr(system, function)(energy, x, 0.05, 10, 0.05, *extra)
        for _ in range(400):
            step()
        # Langevin dynamics of step h has the variance 1 / (a (1 - a h / 2)): the precision a that gives the data's.
        h, variance = 0.05, x.var().item()
        expected = (1 - math.sqrt(1 - 2 * h / variance)) / h
        found = energy.precision.item()
        assert abs(found / expected - 1) < 0.1, f"precision {found:.3f}, not {expected:.3f}"

    return check


def check_rbm(system: ModuleType) -> None:
    """On 3x3 bars and stripes a machine of 8 units comes above -5 nats per pattern; at the start it is at -6.2."""
    torch.manual_seed(0)
    x = ebmcore.create_dataset("bars-and-stripes", side=3).train.flatten(1)
    trained = system.rbm(x.repeat(20, 1), 8, 0.1, 32)
    for _ in range(250):
        trained.epoch()
    weight, b, c = (t.detach().double() for t in trained.weights())
    states = ((torch.arange(512)[:, None] >> torch.arange(9)) & 1).double()
    free = states @ b + nn.functional.softplus(states @ weight + c).sum(1)
    likelihood = (x.double() @ b + nn.functional.softplus(x.double() @ weight + c).sum(1)).mean() - free.logsumexp(0)
    assert likelihood > -5, f"log-likelihood {likelihood:.2f}"


def fitted(system: ModuleType, loss: str, energy: nn.Module, x: Tensor, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    step = function_of(system, loss)(energy, x, 0.03, **options)
    for _ in range(400):
        step()


def check_gaussian(loss: str, options: dict[str, Any]) -> Callable[[ModuleType], None]:
    """A Gaussian fitted to images of standard deviation 0.5 has their precision, or of noisy ones; to 10 %."""

    def check(system: ModuleType) -> None:
        x, energy = 0.5 * data(1000, 1, 2, 2), Quadratic()
        fitted(system, loss, energy, x, options)
        expected = 1 / (x.var().item() + options.get("sigma", 0) ** 2)
        found = energy.precision.item()
        assert abs(found / expected - 1) < 0.1, f"precision {found:.3f}, not {expected:.3f}"

    return check


def check_binary(loss: str, options: dict[str, Any]) -> Callable[[ModuleType], None]:
    """A Boltzmann machine fitted to states in the proportions of another one has its parameters, to 0.1."""

    def check(system: ModuleType) -> None:
        made, energy = Boltzmann(4).float(), Boltzmann(4, scale=0.0).float()
        x = made.states().repeat_interleave((1000 * made.probabilities()).round().long(), 0)
        fitted(system, loss, energy, x, options)
        off = max((a - b).abs().max().item() for a, b in zip(parameters(energy), parameters(made), strict=True))
        assert off < 0.1, f"a parameter is {off:.3f} off"

    def parameters(machine: nn.Module) -> list[Tensor]:
        return [machine.bias.detach(), machine.coupling.detach().triu(1)]

    return check


def loss(title: str, name: str, *, binary: bool = False, **options: Any) -> Workload:
    """A step of a loss without chains; the energy is 32-128-128-1."""

    def make(system: ModuleType, batch: int) -> Unit:
        x = data(batch, 32)
        return function_of(system, name)(mlp(32), (x > 0).float() if binary else x, LR, **options)

    check = (check_binary if binary else check_gaussian)(name, options)
    return Workload(f"Loss: {title}", name, (256, 1024), make, check, compile=False)


learns = check_learning("cd")
learns_with_chains = check_learning("pcd")
BATCHES = (64, 256, 1024)
WORKLOADS = [
    Workload("CD-10 step, Langevin, MLP 2-128-128-1, Adam", "cd", BATCHES, cd, learns),
    Workload("PCD-20 step, 10,000 chains, the same energy", "pcd", BATCHES, pcd, learns_with_chains),
    Workload("Langevin alone, per step", "langevin", BATCHES, langevin, check_variance("langevin", 1 / (4 * 0.8)), per=20),
    Workload("MALA, 32-128-128-1, per draw", "mala", (1000,), mala, check_variance("mala", 0.25), per=20),
    Workload("RBM, PCD-1 epoch, 6,000 rows, batch 100", "rbm", ((784, 500), (64, 128)), rbm, check_rbm, compile=False),
    Workload("PCD-20 step, convolutions on 1x28x28", "pcd", (64,), conv, learns_with_chains, compile=False),
    Workload("Loss: cd, 10 Langevin steps", "cd", (256, 1024), partial(cd, n_in=32), learns, compile=False),
    loss("score-matching, exact", "score-matching"),
    loss("score-matching, 1 probe", "hutchinson"),
    loss("sliced-score-matching", "sliced-score-matching"),
    loss("denoising-score-matching", "denoising-score-matching", sigma=0.5),
    loss("finite-difference-score-matching", "finite-difference-score-matching", eps=0.1),
    loss("nce", "nce", noise_ratio=1),
    loss("conditional-nce", "conditional-nce", noise_scale=0.5),
    loss("energy-discrepancy, 16 points", "energy-discrepancy", t=0.25, n_samples=16),
    loss("discrete-energy-discrepancy, 16 points", "discrete-energy-discrepancy", binary=True, t=0.1, n_samples=16),
    *(loss(name, name, binary=True) for name in ("pseudo-likelihood", "ratio-matching", "minimum-probability-flow")),
]
