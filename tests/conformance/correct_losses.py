"""Losses that are right, most of them outside contrastive divergence: the kit must pass them all.

They are written as the literature has them, short and without options that the kit does not need.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from ebm_plugin_cd.loss import ContrastiveDivergence as CD
from ebm_plugin_pcd.loss import PersistentContrastiveDivergence as PCD
from ebmcore import BaseLoss
from ebmcore.conditions import name_conditions
from ebmcore.samplers import sample


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


class PseudoLikelihood(BaseLoss):
    """Minus the sum of the log-probabilities of each binary unit given all others (Besag, 1975)."""

    state_space = "binary"

    def __init__(self, energy):
        super().__init__()
        self.energy = energy

    def log_odds(self, x, flipped, *args, **kwargs):
        return self.energies(x, *args, **kwargs) - self.energies(flipped, *args, **kwargs)

    def forward(self, x, *args, **kwargs):
        rows, total = x.flatten(1), 0.0
        for unit in torch.eye(rows.shape[1], dtype=x.dtype, device=x.device):
            flipped = (rows + unit * (1 - 2 * rows)).view(x.shape)
            total = total + softplus(self.log_odds(x, flipped, *args, **kwargs)).mean()
        return total


class Classifier(nn.Module):
    """A classifier whose energy is minus the logsumexp of its logits (Grathwohl et al., 2020)."""

    state_space = "continuous"

    def __init__(self, size: int = 4, n_classes: int = 3):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.SiLU(), nn.Linear(16, n_classes))

    def logits(self, x):
        return self.net(x)

    def forward(self, x):
        return 0.5 * x.flatten(1).square().sum(1) - torch.logsumexp(self.logits(x), 1)


class JEM(PCD):
    """Persistent CD of a classifier's energy plus cross entropy; without targets it is persistent CD."""

    labels = "targets"
    example_energy = Classifier

    @staticmethod
    def example_batch():
        return torch.randn(64, 4), torch.arange(64) % 3

    def forward(self, x, y=None):
        pred_x = self.draw_negatives(x)
        return self.compute_loss(x, pred_x, y), pred_x

    def compute_loss(self, x, pred_x, y=None):
        gap = self.energy_gap(x, pred_x)
        return gap if y is None else gap + cross_entropy(self.energy.logits(x), y)


class HybridScoreMatching(SlicedScoreMatching):
    """Sliced score matching of a classifier's energy plus cross entropy: targets are asked for."""

    labels = "targets"
    example_energy = Classifier
    example_batch = JEM.example_batch

    def forward(self, x, y):
        return super().forward(x) + cross_entropy(self.energy.logits(x), y)


class NoisyEnergy(nn.Module):
    """An energy of an example and of the standard deviation of the noise on it."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 16), nn.SiLU(), nn.Linear(16, 1))

    def forward(self, x, sigma):
        rows = x.flatten(1)
        return self.net(torch.cat([rows, sigma[:, None]], 1)).squeeze(1) + 0.5 * rows.square().sum(1)


class NoiseConditional(BaseLoss):
    """Denoising score matching at many noise levels, each of which the energy is told (Song and Ermon, 2019)."""

    labels = None
    example_energy = NoisyEnergy

    def __init__(self, energy, sigma_min: float = 0.1, sigma_max: float = 1.0):
        super().__init__()
        self.energy = energy
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    def forward(self, x):
        uniform = torch.rand(len(x), generator=self.generator, dtype=x.dtype, device=x.device)
        sigma = self.sigma_min * (self.sigma_max / self.sigma_min) ** uniform
        noise = torch.randn_like(x, generator=self.generator).flatten(1)
        with torch.enable_grad():
            rows = flat(x.flatten(1) + sigma[:, None] * noise)
            energies = self.energies(rows.view(x.shape), sigma)
            (grad,) = torch.autograd.grad(energies.sum(), rows, create_graph=True)
        return 0.5 * (sigma[:, None] * grad - noise).square().sum(1).mean()


class LearntNoise(BaseLoss):
    """Noise-contrastive estimation against a normal noise model with means and scales of its own, made by build()."""

    def __init__(self, energy):
        super().__init__()
        self.energy = energy
        self.log_partition = nn.Parameter(torch.zeros(()))

    def build(self, shape):
        self.noise_mean = nn.Parameter(0.1 * torch.randn(shape.numel()))
        self.noise_log_scale = nn.Parameter(torch.full((shape.numel(),), 0.7))

    def parameter_groups(self):
        own = [self.noise_mean, self.noise_log_scale]
        return [{"params": [*self.energy.parameters(), self.log_partition]}, {"params": own, "lr": 1e-3}]

    def log_noise(self, x):
        z = (x.flatten(1) - self.noise_mean) / self.noise_log_scale.exp()
        return (-0.5 * z.square() - self.noise_log_scale - 0.5 * math.log(2 * math.pi)).sum(1)

    def forward(self, x, *args, **kwargs):
        fresh = torch.randn_like(x, generator=self.generator).flatten(1)
        noise = (self.noise_mean + self.noise_log_scale.exp() * fresh).detach().view(x.shape)
        logits = [
            -self.energies(points, *args, **kwargs) - self.log_partition - self.log_noise(points).detach()
            for points in (x, noise)
        ]
        self.metrics["log_partition"] = self.log_partition.detach().clone()
        # The noise model learns the data by its own likelihood, which does not train the energy.
        return softplus(-logits[0]).mean() + softplus(logits[1]).mean() - self.log_noise(x).mean()


class Adversarial(BaseLoss):
    """A generator draws the negatives, and a term that does not train the energy trains it (Kim and Bengio, 2016)."""

    expected_failures = {"check_it_fits_a_gaussian": "a generator without an entropy term collapses"}

    def __init__(self, energy, hidden: int = 16):
        super().__init__()
        self.energy = energy
        self.hidden = hidden

    def build(self, shape):
        self.net = nn.Sequential(nn.Linear(4, self.hidden), nn.SiLU(), nn.Linear(self.hidden, shape.numel()))

    def parameter_groups(self):
        return [{"params": list(self.energy.parameters())}, {"params": list(self.net.parameters()), "lr": 1e-3}]

    def forward(self, x, *args, **kwargs):
        z = torch.randn(len(x), 4, generator=self.generator, dtype=x.dtype, device=x.device)
        drawn = self.net(z).view(x.shape)
        gap = self.energies(x, *args, **kwargs).mean() - self.energies(drawn.detach(), *args, **kwargs).mean()
        parameters = {name: p.detach() for name, p in self.energy.named_parameters()}
        return gap + torch.func.functional_call(self.energy, parameters, (drawn, *args), kwargs).mean()


class ShortRun(BaseLoss):
    """The energy gap of chains that a sampler moves from noise, outside the CD base."""

    needs_sampler = True
    labels = None

    def __init__(self, energy, sampler, n_steps: int = 3):
        super().__init__()
        self.energy = energy
        self.sampler = sampler
        self.n_steps = n_steps

    def start(self, x):
        noise = torch.randn_like(x, generator=self.generator)
        return self.sample(noise)

    def sample(self, noise):
        return sample(self.sampler, self.energy, noise, self.n_steps, generator=self.generator, transitions=self.transitions)

    def forward(self, x):
        return self.energies(x).mean() - self.energies(self.start(x)).mean()


class CDWithNoiseModel(CD):
    """CD with a trained model beside the energy, as cooperative learning has: the energy's share is that of CD."""

    trains_more = True

    def build(self, shape):
        self.generator_mean = nn.Parameter(torch.ones(tuple(shape)))

    def compute_loss(self, x, pred_x, *args, **kwargs):
        return super().compute_loss(x, pred_x, *args, **kwargs) + (x - self.generator_mean).square().mean()


class NoisyCD(CD):
    """CD whose chains start at the data with noise added."""

    starts_at_data = False

    def start_chains(self, x, *args, **kwargs):
        return self.new_chains(x + 0.1 * torch.randn_like(x, generator=self.generator), name_conditions(args, kwargs, x))


class FastPCD(PCD):
    """PCD whose chains run under parameters moved along the last gradient: zero at first."""

    def __init__(self, energy, sampler, k_steps: int = 1, *, n_chains: int = 256, fast_lr: float = 0.01):
        super().__init__(energy, sampler, k_steps, n_chains=n_chains)
        self.fast_lr = fast_lr
        for i, parameter in enumerate(energy.parameters()):
            self.register_buffer(f"fast_{i}", torch.zeros_like(parameter))

    def draw_negatives(self, x, *args, **kwargs):
        parameters = list(self.energy.parameters())
        fast = [getattr(self, f"fast_{i}") for i in range(len(parameters))]
        with torch.no_grad():
            slow = [p.clone() for p in parameters]
            for p, f in zip(parameters, fast, strict=True):
                p.add_(f)
        try:
            return super().draw_negatives(x, *args, **kwargs)
        finally:
            with torch.no_grad():
                for p, s in zip(parameters, slow, strict=True):
                    p.copy_(s)
