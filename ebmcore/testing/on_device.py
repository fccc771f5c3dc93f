"""The parts of the check of a device that train and measure; `ebmcore.testing.gpu` runs them."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ebmcore
from ebmcore.compiling import CompiledTransitions
from ebmcore.energies import frozen
from ebmcore.errors import PluginError
from ebmcore.samplers import eager_transitions
from ebmcore.testing.checks.stepping import difference, equal
from ebmcore.testing.devices import generator
from ebmcore.testing.rules import expect
from ebmcore.testing.targets import Boltzmann
from ebmcore.training import BaseObserver, Run, fit

NATS = 0.05  # between two precisions, of a likelihood that training raises by more than ten times as much
ROUNDING = 1e-3  # of positions of about unit scale, after 10 compiled steps
SLOW = 3.0  # times the other: beyond it something is wrong, below it the ratio is a figure to read
STEP_SIZE = 0.01
Unit = Callable[[], object]


class _Stopping(BaseObserver):
    """Stops a run at its first checkpoint, as a killed process would."""

    def on_checkpoint(self, run: Run, path: Path) -> None:
        raise InterruptedError


def check_resumption(device: torch.device) -> str:
    """A run that is stopped after a checkpoint and resumed ends, bit for bit, as one that was not."""
    with tempfile.TemporaryDirectory() as folder:
        whole = _trained(device, Path(folder) / "whole")
        stopped = Path(folder) / "stopped"
        try:
            _trained(device, stopped, observers=[_Stopping()])
        except PluginError as error:
            expect(isinstance(error.__cause__, InterruptedError), str(error))
        resumed = _trained(device, stopped, resume=True)
    expect(equal(whole, resumed), f"the resumed run has {difference(whole, resumed)}")
    return f"{len(whole)} tensors are equal, bit for bit"


def _trained(device: torch.device, out: Path, **options: Any) -> list[Tensor]:
    loss = _pcd(_mlp())
    x = torch.randn(500, 2, generator=generator(1))
    _fit(loss, x, device, steps=60, checkpoint_every=30, out=out, **options)
    return [tensor for _, tensor in sorted(loss.state_dict().items())]  # chains that were loaded may be in another order


def check_mixed_precision(device: torch.device) -> str:
    """An RBM that is trained in bf16-mixed reaches the exact likelihood of one that is trained in 32-true, to 0.05 nats."""
    x, found = Boltzmann(8, seed=3).sample(2000, generator=generator(2)), dict[str, float]()
    for precision in ("32-true", "bf16-mixed"):
        energy = _seeded(lambda: ebmcore.create_energy("rbm", shape=(8,), hidden=16))
        loss = ebmcore.create_loss("pcd", energy, ebmcore.create_sampler("gibbs"), n_chains=200)
        found["untrained"] = found.get("untrained", _log_likelihood(energy, x))
        _fit(loss, x, device, steps=400, batch_size=200, lr=0.02, precision=precision)
        expect(
            all(bool(p.isfinite().all()) for p in energy.parameters()), f"{precision} makes parameters that are not finite"
        )
        found[precision] = _log_likelihood(energy, x)
    shown = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
    gap = abs(found["bf16-mixed"] - found["32-true"])
    expect(gap <= NATS and found["32-true"] > found["untrained"] + 10 * NATS, f"log-likelihoods in nats: {shown}")
    return f"log-likelihood in nats: {shown}"


@torch.no_grad()
def _log_likelihood(energy: Any, x: Tensor) -> float:
    x = x.to(next(energy.parameters()).device)
    return float(-energy(x).double().mean() - energy.log_partition())


def check_compiled(device: torch.device) -> str:
    """Given the same random numbers, compiled Langevin steps move chains as eager ones do; the times of both."""
    energy, n_steps = _mlp().to(device), 10
    kernel = ebmcore.create_sampler("langevin", step_size=STEP_SIZE)
    compiled = CompiledTransitions()
    start = torch.randn(256, 2, generator=generator(3)).to(device)
    with frozen(energy), torch.no_grad():
        state = kernel.init(energy, start)

    def move(transitions: Any) -> Tensor:
        g = generator(4, device)
        moved: Tensor = ebmcore.run(kernel, energy, state, n_steps, generator=g, transitions=transitions)[0].x
        return moved

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):  # the second call compiles
            there = move(compiled)
    expect(bool(compiled.graphs), "; ".join(str(w.message) for w in said) or "nothing was compiled")
    here = move(eager_transitions)
    off = float((there - here).abs().max())
    expect(off <= ROUNDING, f"after {n_steps} steps compiled chains are off by {off:.3g}")
    return f"off by {off:.1e}; " + _ratio(lambda: move(compiled), lambda: move(eager_transitions), device, "eager")


def check_convolutional_pcd(device: torch.device) -> str:
    """PCD-20 of a convolutional energy on 28x28 images, beside the usual hand-written loop."""
    batch, n_chains = (8, 1000) if device.type == "cpu" else (64, 10_000)
    x = torch.randn(batch, 1, 28, 28, generator=generator(5)).to(device)
    ours, theirs = (_seeded(lambda: ebmcore.create_energy("conv", shape=(1, 28, 28))).to(device) for _ in range(2))
    loss = _pcd(ours, k_steps=20, n_chains=n_chains).to(device)
    loss.generator = generator(6, device)
    step = _step(loss, x, torch.optim.Adam(ours.parameters(), lr=1e-4))
    by_hand = _langevin_by_hand(theirs, x, 20, n_chains)
    figure = f"batch {batch}; " + _beside(step, by_hand, device)
    expect(all(bool(p.isfinite().all()) for p in ours.parameters()), "training makes parameters that are not finite")
    return figure


def _langevin_by_hand(energy: nn.Module, x: Tensor, k_steps: int, n_chains: int) -> Unit:
    optimizer = torch.optim.Adam(energy.parameters(), lr=1e-4)
    chains = torch.randn(n_chains, *x.shape[1:], device=x.device)

    def step() -> None:
        drawn = torch.randint(n_chains, (len(x),), device=x.device)
        y = chains[drawn]
        for _ in range(k_steps):
            y = y.detach().requires_grad_()
            (grad,) = torch.autograd.grad(energy(y).sum(), y)
            y = y - STEP_SIZE * grad + math.sqrt(2 * STEP_SIZE) * torch.randn_like(y)
        y = chains[drawn] = y.detach()
        loss = energy(x).mean() - energy(y).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def check_rbm(device: torch.device) -> str:
    """PCD-1 of an RBM of 784 visible and 500 hidden units, beside the usual hand-written loop."""
    x = torch.rand(100, 784, generator=generator(7)).round().to(device)
    energy = _seeded(lambda: ebmcore.create_energy("rbm", shape=(784,), hidden=500))
    loss = ebmcore.create_loss("pcd", energy, ebmcore.create_sampler("gibbs"), n_chains=100).to(device)
    loss.generator = generator(8, device)
    step = _step(loss, x, torch.optim.SGD(energy.parameters(), lr=0.01))
    figure = _beside(step, _rbm_by_hand(x, 500), device)
    expect(all(bool(p.isfinite().all()) for p in energy.parameters()), "training makes parameters that are not finite")
    return figure


def _rbm_by_hand(x: Tensor, hidden: int, lr: float = 0.01) -> Unit:
    weight = 0.01 * torch.randn(x.shape[1], hidden, device=x.device)
    b, c = torch.zeros(x.shape[1], device=x.device), torch.zeros(hidden, device=x.device)
    chain = [torch.rand_like(x).round()]

    def step() -> None:
        p_data = torch.sigmoid(x @ weight + c)
        h = torch.bernoulli(torch.sigmoid(chain[0] @ weight + c))
        v = chain[0] = torch.bernoulli(torch.sigmoid(h @ weight.T + b))
        p_model = torch.sigmoid(v @ weight + c)
        weight.add_(lr * (x.T @ p_data - v.T @ p_model) / len(x))
        b.add_(lr * (x.mean(0) - v.mean(0)))
        c.add_(lr * (p_data.mean(0) - p_model.mean(0)))

    return step


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def _mlp() -> nn.Module:
    return _seeded(lambda: ebmcore.create_energy("mlp", shape=(2,), hidden=(128, 128)))


def _pcd(energy: nn.Module, k_steps: int = 5, n_chains: int = 256) -> Any:
    sampler = ebmcore.create_sampler("langevin", step_size=STEP_SIZE)
    return ebmcore.create_loss("pcd", energy, sampler, k_steps, n_chains=n_chains)


def _fit(loss: Any, x: Tensor, device: torch.device, **options: Any) -> None:
    fit(loss, x, accelerator="cpu" if device.type == "cpu" else "gpu", progress=False, **options)


def _step(loss: Any, x: Tensor, optimizer: torch.optim.Optimizer) -> Unit:
    def step() -> None:
        value, _ = loss(x)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return step


def _beside(step: Unit, by_hand: Unit, device: torch.device) -> str:
    return _ratio(step, by_hand, device, "hand-written")


def _ratio(unit: Unit, other: Unit, device: torch.device, what: str, rounds: int = 9, seconds: float = 0.2) -> str:
    """Times two units of work that take turns, and says how the first compares with the other; raises where it is slow."""
    for warm_up in (unit, other) * 2:
        warm_up()
    n = max(1, round(seconds / _seconds(other, 1, device)))
    pairs = [(_seconds(unit, n, device), _seconds(other, n, device)) for _ in range(rounds)]
    low, middle, high = statistics.quantiles([one / two for one, two in pairs], n=4)
    took = 1e3 * statistics.median(one for one, _ in pairs)
    figure = f"{middle:.2f} ({low:.2f} to {high:.2f}) of the time of the {what} one, {took:.3g} ms"
    expect(middle <= SLOW, figure)
    return figure


def _seconds(unit: Unit, n: int, device: torch.device) -> float:
    """The mean time of ``n`` calls, until the device has done what they asked for."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(n):
        unit()
    synchronise(device)
    return (time.perf_counter() - start) / n


def synchronise(device: torch.device) -> None:
    """Waits until the device has done its work; a CPU has always done it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
