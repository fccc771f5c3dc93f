"""The usual loop of tutorials and papers' repositories."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.nn.functional import logsigmoid, softplus


def langevin(energy: nn.Module, x: Tensor, step_size: float) -> Callable[[int], Tensor]:
    positions = [x.clone()]

    def move(n: int) -> Tensor:
        positions[0] = _langevin(energy, positions[0], step_size, n)
        return positions[0]

    return move


def _langevin(energy: nn.Module, x: Tensor, step_size: float, n: int) -> Tensor:
    for _ in range(n):
        x = x.detach().requires_grad_(True)
        (grad,) = torch.autograd.grad(energy(x).sum(), x)
        x = x - step_size * grad + math.sqrt(2 * step_size) * torch.randn_like(x)
    return x.detach()


def mala(energy: nn.Module, x: Tensor, step_size: float) -> Callable[[int], Tensor]:
    positions = [x.clone()]

    def at(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_(True)
        value = energy(x)
        (grad,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), grad

    def move(n: int) -> Tensor:
        x = positions[0]
        for _ in range(n):
            value, grad = at(x)
            mean = x - step_size * grad
            y = mean + math.sqrt(2 * step_size) * torch.randn_like(x)
            there, grad_there = at(y)
            back = y - step_size * grad_there
            log_q = ((y - mean) ** 2 - (x - back) ** 2).sum(1) / (4 * step_size)
            accepted = torch.log(torch.rand(len(x))) < value - there + log_q
            x = torch.where(accepted[:, None], y, x)
        positions[0] = x
        return x

    return move


def _trained(value: Callable[[], Tensor], parameters: Iterable[Tensor], lr: float) -> Callable[[], None]:
    optimizer = torch.optim.Adam(parameters, lr=lr)

    def step() -> None:
        loss = value()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def cd(energy: nn.Module, x: Tensor, step_size: float, k_steps: int, lr: float) -> Callable[[], None]:
    def value() -> Tensor:
        negatives = _langevin(energy, x, step_size, k_steps)
        return energy(x).mean() - energy(negatives).mean()

    return _trained(value, energy.parameters(), lr)


def pcd(energy: nn.Module, x: Tensor, step_size: float, k_steps: int, lr: float, n_chains: int) -> Callable[[], None]:
    chains = torch.randn(n_chains, *x.shape[1:])

    def value() -> Tensor:
        drawn = torch.randint(n_chains, (len(x),))
        negatives = _langevin(energy, chains[drawn], step_size, k_steps)
        chains[drawn] = negatives
        return energy(x).mean() - energy(negatives).mean()

    return _trained(value, energy.parameters(), lr)


def rbm(x: Tensor, hidden: int, lr: float, batch_size: int) -> Any:
    weight, b, c = 0.01 * torch.randn(x.shape[1], hidden), torch.zeros(x.shape[1]), torch.zeros(hidden)
    chain = [torch.rand(batch_size, x.shape[1]).round()]

    def epoch() -> None:
        for v in x[torch.randperm(len(x))].split(batch_size):
            p_data = torch.sigmoid(v @ weight + c)
            h = torch.bernoulli(torch.sigmoid(chain[0] @ weight + c))
            chain[0] = torch.bernoulli(torch.sigmoid(h @ weight.T + b))
            p_model = torch.sigmoid(chain[0] @ weight + c)
            weight.add_(lr * (v.T @ p_data / len(v) - chain[0].T @ p_model / batch_size))
            b.add_(lr * (v.mean(0) - chain[0].mean(0)))
            c.add_(lr * (p_data.mean(0) - p_model.mean(0)))

    return SimpleNamespace(epoch=epoch, weights=lambda: (weight, b, c))


def _gradient(energy: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_(True)
    return x, torch.autograd.grad(energy(x).sum(), x, create_graph=True)[0]


def score_matching(energy: nn.Module, x: Tensor) -> Tensor:
    x, grad = _gradient(energy, x.flatten(1))
    second = [torch.autograd.grad(grad[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(x.shape[1])]
    return (0.5 * grad.square().sum(1) - sum(second)).mean()


def sliced(energy: nn.Module, x: Tensor) -> Tensor:
    x, grad = _gradient(energy, x)
    v = torch.randn_like(x).sign()
    (second,) = torch.autograd.grad((grad * v).sum(), x, create_graph=True)
    return (0.5 * grad.square() - second * v).flatten(1).sum(1).mean()


def denoising(energy: nn.Module, x: Tensor, *, sigma: float) -> Tensor:
    noise = torch.randn_like(x)
    _, grad = _gradient(energy, x + sigma * noise)
    return 0.5 * (sigma * grad - noise).square().flatten(1).sum(1).mean()


def finite_difference(energy: nn.Module, x: Tensor, *, eps: float) -> Tensor:
    step = eps * torch.randn_like(x).sign()
    ahead, behind, here = energy(x + step), energy(x - step), energy(x)
    return ((ahead - behind).square() / 8 - (ahead + behind - 2 * here)).mean() / eps**2


def nce(energy: nn.Module, x: Tensor, lr: float, *, noise_ratio: int) -> Callable[[], None]:
    noise = MultivariateNormal(x.flatten(1).mean(0), x.flatten(1).T.cov())
    log_z = nn.Parameter(torch.zeros(()))

    def logits(x: Tensor) -> Tensor:
        return -energy(x) - log_z - noise.log_prob(x.flatten(1)) - math.log(noise_ratio)

    def value() -> Tensor:
        drawn = noise.sample((noise_ratio * len(x),)).view(-1, *x.shape[1:])
        return -logsigmoid(logits(x)).mean() - noise_ratio * logsigmoid(-logits(drawn)).mean()

    return _trained(value, [*energy.parameters(), log_z], lr)


def conditional_nce(energy: nn.Module, x: Tensor, *, noise_scale: float) -> Tensor:
    return 2 * softplus(energy(x) - energy(x + noise_scale * torch.randn_like(x))).mean()


def _discrepancy(energy: nn.Module, x: Tensor, perturb: Callable[[Tensor], Tensor], n_samples: int) -> Tensor:
    back = perturb(perturb(x).repeat_interleave(n_samples, 0))
    gaps = energy(x)[:, None] - energy(back).view(-1, n_samples)
    return torch.cat([gaps, torch.zeros(len(x), 1)], 1).logsumexp(1).mean()  # the zeros are the stabilising term, log w


def energy_discrepancy(energy: nn.Module, x: Tensor, *, t: float, n_samples: int) -> Tensor:
    return _discrepancy(energy, x, lambda x: x + math.sqrt(t) * torch.randn_like(x), n_samples)


def discrete_energy_discrepancy(energy: nn.Module, x: Tensor, *, t: float, n_samples: int) -> Tensor:
    flip = (1 - math.exp(-2 * t)) / 2
    return _discrepancy(energy, x, lambda x: torch.where(torch.rand_like(x) < flip, 1 - x, x), n_samples)


def neighbours(energy: nn.Module, x: Tensor, *, term: Callable[[Tensor], Tensor]) -> Tensor:
    here, total = energy(x), torch.zeros(len(x))
    for i in range(x.shape[1]):
        flipped = x.clone()
        flipped[:, i] = 1 - flipped[:, i]
        total = total + term(here - energy(flipped))
    return total.mean()


VALUES: dict[str, Callable[..., Tensor]] = {
    "score-matching": score_matching,
    "hutchinson": sliced,
    "sliced-score-matching": sliced,
    "denoising-score-matching": denoising,
    "finite-difference-score-matching": finite_difference,
    "conditional-nce": conditional_nce,
    "energy-discrepancy": energy_discrepancy,
    "discrete-energy-discrepancy": discrete_energy_discrepancy,
    "pseudo-likelihood": partial(neighbours, term=softplus),
    "ratio-matching": partial(neighbours, term=lambda gap: gap.sigmoid().square()),
    "minimum-probability-flow": partial(neighbours, term=lambda gap: (gap / 2).exp()),
}


def _loss(name: str, energy: nn.Module, x: Tensor, lr: float, **options: Any) -> Callable[[], None]:
    return _trained(lambda: VALUES[name](energy, x, **options), energy.parameters(), lr)


LOSSES = {"nce": nce} | {name: partial(_loss, name) for name in VALUES}
