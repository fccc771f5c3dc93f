"""Noise that is fitted to the data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from ebmcore.distributions import Bernoulli, at_least_float32

RIDGE = 1e-3  # of the mean variance: the covariance of images with constant pixels is singular
_ROWS = 4096  # examples that are widened to float64 at once


class NormalNoise(nn.Module):
    """The normal distribution of the data's mean and whole covariance, to whose diagonal a thousandth of the mean is added."""

    state_space = "continuous"

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = torch.Size(shape)
        d = self.shape.numel()
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("factor", torch.eye(d))
        self.register_buffer("inverse", torch.eye(d))

    def fit(self, x: Tensor, share: Tensor) -> None:
        """Takes the moments of examples ``(N, *shape)`` whose ``share`` ``(N,)`` sums to 1."""
        parts = [(rows.flatten(1).double(), w) for rows, w in zip(x.split(_ROWS), share.split(_ROWS), strict=True)]
        mean = torch.stack([w @ rows for rows, w in parts]).sum(0)
        covariance = torch.stack([(rows - mean).T @ (w[:, None] * (rows - mean)) for rows, w in parts]).sum(0)
        covariance.diagonal().add_(RIDGE * covariance.diagonal().mean().clamp(min=1e-12))
        self.mean.copy_(mean)
        factor = torch.linalg.cholesky(covariance)
        self.factor.copy_(factor)
        self.inverse.copy_(torch.linalg.inv(factor))

    def sample(self, n: int, *, generator: Generator | None = None) -> Tensor:
        mean, factor = at_least_float32(self.mean), at_least_float32(self.factor)
        z = torch.randn((n, len(mean)), generator=generator, dtype=mean.dtype, device=mean.device)
        return (mean + z @ factor.T).view(n, *self.shape)

    def log_prob(self, x: Tensor) -> Tensor:
        mean, inverse = at_least_float32(self.mean), at_least_float32(self.inverse)
        z = (x.flatten(1).to(mean.dtype) - mean) @ inverse.T
        return 0.5 * (len(mean) - z.square().sum(1)) - self.entropy()

    def entropy(self) -> Tensor:
        factor = at_least_float32(self.factor)
        return 0.5 * len(factor) * (1 + math.log(2 * math.pi)) + factor.diagonal().log().sum()


class UniformNoise(nn.Module):
    """Independent uniform components between the smallest and the largest value of the data."""

    state_space = "continuous"

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = torch.Size(shape)
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.ones(()))

    def fit(self, x: Tensor, share: Tensor) -> None:
        counted = x[share > 0]
        self.low.copy_(counted.amin())
        self.high.copy_(counted.amax())

    def sample(self, n: int, *, generator: Generator | None = None) -> Tensor:
        low, high = at_least_float32(self.low), at_least_float32(self.high)
        uniform = torch.rand((n, *self.shape), generator=generator, dtype=low.dtype, device=low.device)
        return torch.lerp(low, high, uniform)

    def log_prob(self, x: Tensor) -> Tensor:
        inside = ((x >= self.low) & (x <= self.high)).flatten(1).all(1)
        return torch.where(inside, -self.entropy(), -torch.inf)

    def entropy(self) -> Tensor:
        return self.shape.numel() * (at_least_float32(self.high) - at_least_float32(self.low)).log()


class BernoulliNoise(nn.Module):
    """Independent binary units with the means of the data, one example of each value added."""

    state_space = "binary"

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("logits", torch.zeros(tuple(shape)))

    def fit(self, x: Tensor, share: Tensor) -> None:
        n_effective = 1 / share.square().sum()  # the number of examples, where all weights are equal
        parts = zip(x.split(_ROWS), share.split(_ROWS), strict=True)
        mean = torch.stack([w @ rows.flatten(1).double() for rows, w in parts]).sum(0)
        self.logits.copy_(((n_effective * mean + 1) / (n_effective + 2)).logit().view_as(self.logits))

    def sample(self, n: int, *, generator: Generator | None = None) -> Tensor:
        return Bernoulli(self.logits).sample(n, generator=generator)

    def log_prob(self, x: Tensor) -> Tensor:
        return Bernoulli(at_least_float32(self.logits)).log_prob(x)

    def entropy(self) -> Tensor:
        logits = at_least_float32(self.logits)
        return -Bernoulli(logits).log_prob(logits.sigmoid()[None]).squeeze()  # linear in the units: the mean of log p


FITTED = {"normal": NormalNoise, "uniform": UniformNoise, "bernoulli": BernoulliNoise}
