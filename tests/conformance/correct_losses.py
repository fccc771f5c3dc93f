"""Losses outside contrastive divergence that are right: the kit must pass them all.

They are written as the literature has them, short and without options that the kit does not need.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from ebm_plugin_pcd.loss import PersistentContrastiveDivergence as PCD
from ebmcore import BaseLoss


def flat(x: Tensor) -> Tensor:
    """The examples as rows, ready to be differentiated with respect to."""
    return x.detach().flatten(1).requires_grad_()


class ScoreMatching(BaseLoss):
    """Exact score matching, ``|grad E|^2 / 2 - Laplacian E`` (Hyvarinen, 2005)."""

    def __init__(self, energy):
        super().__init__()
        self.energy = energy

    def objective(self, grad, laplacian):
        return (0.5 * grad.square().sum(1) - laplacian).mean()

    def forward(self, x, *args, **kwargs):
        with torch.enable_grad():
            rows = flat(x)
            energies = self.energy(rows.view(x.shape), *args, **kwargs)
            (grad,) = torch.autograd.grad(energies.sum(), rows, create_graph=True)
            columns = [torch.autograd.grad(g.sum(), rows, create_graph=True)[0][:, i] for i, g in enumerate(grad.unbind(1))]
        return self.objective(grad, torch.stack(columns).sum(0))


class SlicedScoreMatching(BaseLoss):
    """Score matching along random directions (Song et al., 2019)."""

    def __init__(self, energy, n_projections: int = 1):
        super().__init__()
        self.energy = energy
        self.n_projections = n_projections

    def directions(self, rows):
        return torch.randn_like(rows, generator=self.generator)

    def forward(self, x, *args, **kwargs):
        loss = 0.0
        for _ in range(self.n_projections):
            with torch.enable_grad():
                rows = flat(x)
                v = self.directions(rows.detach())
                energies = self.energy(rows.view(x.shape), *args, **kwargs)
                (grad,) = torch.autograd.grad(energies.sum(), rows, create_graph=True)
                along = (grad * v).sum(1)
                (curvature,) = torch.autograd.grad(along.sum(), rows, create_graph=True)
            loss = loss + (0.5 * along.square() - (curvature * v).sum(1)).mean() / self.n_projections
        return loss


class DenoisingScoreMatching(BaseLoss):
    """The score at a noisy example points back to the example (Vincent, 2011)."""

    def __init__(self, energy, sigma: float = 0.3):
        super().__init__()
        self.energy = energy
        self.sigma = sigma

    def fitted_precision(self, variance):
        return 1 / (variance + self.sigma**2)

    def target(self, noise):
        return noise / self.sigma

    def forward(self, x, *args, **kwargs):
        noise = torch.randn_like(x, generator=self.generator).flatten(1)
        with torch.enable_grad():
            rows = flat(x.flatten(1) + self.sigma * noise)
            energies = self.energy(rows.view(x.shape), *args, **kwargs)
            (grad,) = torch.autograd.grad(energies.sum(), rows, create_graph=True)
        return 0.5 * (grad - self.target(noise)).square().sum(1).mean()


class NoiseContrastive(BaseLoss):
    """Logistic regression of data against normal noise, with the log partition as a parameter (Gutmann and Hyvarinen, 2010)."""

    def __init__(self, energy, noise_std: float = 2.0, noise_ratio: int = 2):
        super().__init__()
        self.energy = energy
        self.noise_std = noise_std
        self.noise_ratio = noise_ratio
        self.log_partition = nn.Parameter(torch.zeros(()))

    def log_noise(self, x):
        rows = x.flatten(1) / self.noise_std
        return -0.5 * rows.square().sum(1) - rows.shape[1] * (math.log(self.noise_std) + 0.5 * math.log(2 * math.pi))

    def logits(self, x, *args, **kwargs):
        log_model = -self.energies(x, *args, **kwargs) - self.log_partition
        return log_model - self.log_noise(x) - math.log(self.noise_ratio)

    def forward(self, x, *args, **kwargs):
        n = self.noise_ratio
        noise = self.noise_std * torch.randn_like(x.repeat(n, *[1] * (x.ndim - 1)), generator=self.generator)
        args, kwargs = [a.repeat(n, *[1] * (a.ndim - 1)) for a in args], {k: v.repeat(n) for k, v in kwargs.items()}
        own = [a[: len(x)] for a in args], {k: v[: len(x)] for k, v in kwargs.items()}
        data = self.logits(x, *own[0], **own[1])
        self.metrics["log_partition"] = self.log_partition.detach().clone()
        return softplus(-data).mean() + n * softplus(self.logits(noise, *args, **kwargs)).mean()


class ConditionalNoiseContrastive(BaseLoss):
    """An example against itself with noise added: the partition function cancels (Ceylan and Gutmann, 2018)."""

    def __init__(self, energy, noise_std: float = 1.0):
        super().__init__()
        self.energy = energy
        self.noise_std = noise_std

    def forward(self, x, *args, **kwargs):
        noisy = x + self.noise_std * torch.randn_like(x, generator=self.generator)
        return softplus(self.energies(x, *args, **kwargs) - self.energies(noisy, *args, **kwargs)).mean()


class EnergyDiscrepancy(BaseLoss):
    """Data against contrastive points two steps of noise away (Schroeder et al., 2023)."""

    def __init__(self, energy, t: float = 0.5, n_contrastive: int = 16, w: float = 1.0):
        super().__init__()
        self.energy = energy
        self.t = t
        self.n_contrastive = n_contrastive
        self.w = w

    def labels_of(self, label, m):
        return label.repeat_interleave(m, 0)

    def forward(self, x, *args, **kwargs):
        m = self.n_contrastive
        there = x + math.sqrt(self.t) * torch.randn_like(x, generator=self.generator)
        back = there.repeat_interleave(m, 0)
        back = back + math.sqrt(self.t) * torch.randn_like(back, generator=self.generator)
        args_m, kwargs_m = [self.labels_of(a, m) for a in args], {k: self.labels_of(v, m) for k, v in kwargs.items()}
        data = self.energies(x, *args, **kwargs)
        contrastive = self.energies(back, *args_m, **kwargs_m).view(len(x), m)
        logits = torch.cat([(data[:, None] - contrastive), data.new_full((len(x), 1), math.log(self.w))], 1)
        return torch.logsumexp(logits, 1).mean()
