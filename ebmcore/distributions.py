"""Simple distributions with explicit generators: where chains start and where annealing begins.

``torch.distributions`` draws from the global generator only, which a sampler must leave alone.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid, one_hot

__all__ = ["BaseDistribution", "Bernoulli", "Categorical", "InitialDistribution", "Normal", "Uniform", "at_least_float32"]


@runtime_checkable
class InitialDistribution(Protocol):
    """A distribution that Markov chains may start from."""

    def sample(self, n: int, *, generator: Generator | None = None) -> Tensor:
        """Draws ``(n, *shape)`` independent positions."""


@runtime_checkable
class BaseDistribution(InitialDistribution, Protocol):
    """A normalised distribution to sample from exactly: the base of annealed importance sampling."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Returns the log-density ``(N,)`` of ``x`` ``(N, *shape)`` in nats, summed over all but the first axis."""


class Normal:
    """Independent normal components.

    Args:
        mean: Means, of the shape of one example.
        std: Standard deviations, a number or of the same shape.

    Example:
        >>> Normal(torch.zeros(2)).log_prob(torch.zeros(1, 2))
        tensor([-1.8379])
    """

    def __init__(self, mean: Tensor, std: Tensor | float = 1.0) -> None:
        self.mean, self.std = mean, torch.as_tensor(std, dtype=mean.dtype, device=mean.device)

    def sample(self, n: int, *, generator: Generator | None = None) -> Tensor:
        mean = self.mean
        return mean + self.std * torch.randn((n, *mean.shape), generator=generator, dtype=mean.dtype, device=mean.device)

    def log_prob(self, x: Tensor) -> Tensor:
        z = (x - self.mean) / self.std
        return -0.5 * (z.square() + torch.log(2 * torch.pi * self.std.square())).flatten(1).sum(1)


class Uniform:
    """Independent uniform components in ``[low, high]``.

    Args:
        like: Gives the shape of one example, dtype and device.
        low: Lower end.
        high: Upper end.

    Example:
        >>> Uniform(torch.zeros(3), -2.0, 2.0).log_prob(torch.ones(1, 3)).exp() * 4**3
        tensor([1.])
    """

    def __init__(self, like: Tensor, low: float = -1.0, high: float = 1.0) -> None:
        if not low < high:
            raise ValueError(f"low must be below high, got {low!r} and {high!r}")
        self.like, self.low, self.high = like, low, high

    def sample(self, n: int, *, generator: Generator | None = None) -> Tensor:
        like, span = self.like, self.high - self.low
        return self.low + span * torch.rand((n, *like.shape), generator=generator, dtype=like.dtype, device=like.device)

    def log_prob(self, x: Tensor) -> Tensor:
        inside = ((x >= self.low) & (x <= self.high)).flatten(1).all(1)
        log_density = -self.like.numel() * math.log(self.high - self.low)
        return torch.where(inside, log_density, -torch.inf).to(x.dtype)


class Bernoulli:
    """Independent binary components in {0, 1} with ``p(1) = sigmoid(logits)``.

    Args:
        logits: Log-odds, of the shape of one example.

    Example:
        >>> Bernoulli(torch.zeros(3)).log_prob(torch.ones(1, 3)).exp()
        tensor([0.1250])
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def sample(self, n: int, *, generator: Generator | None = None) -> Tensor:
        wide = at_least_float32(self.logits.detach())  # uniform numbers in half precision are too coarse for p = 0.001
        uniform = torch.rand((n, *wide.shape), generator=generator, dtype=wide.dtype, device=wide.device)
        return uniform.lt_(wide.sigmoid()).to(self.logits.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        return (x * logsigmoid(self.logits) + (1 - x) * logsigmoid(-self.logits)).flatten(1).sum(1)


class Categorical:
    """Independent categorical components, each one-hot along the last axis, with ``p = softmax(logits)``.

    Args:
        logits: Log-odds, of the shape of one example ``(*units, values)``.

    Example:
        >>> Categorical(torch.zeros(3, 4)).log_prob(torch.eye(4)[None, :3]).exp() * 4**3
        tensor([1.])
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def sample(self, n: int, *, generator: Generator | None = None) -> Tensor:
        return self.draw(self.logits.expand(n, *self.logits.shape), generator)

    @staticmethod
    def draw(logits: Tensor, generator: Generator | None = None) -> Tensor:
        """Draws one example for each row of ``logits`` ``(N, *units, values)``."""
        # Uniform numbers instead of torch.multinomial: each chain's draw is its own, and a step can be compiled.
        wide = at_least_float32(logits)
        uniform = torch.rand(wide.shape[:-1], generator=generator, dtype=wide.dtype, device=wide.device)
        below = uniform.unsqueeze(-1) >= wide.softmax(-1).cumsum(-1)[..., :-1]
        return one_hot(below.sum(-1), logits.shape[-1]).to(logits.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        return (x * self.logits.log_softmax(-1)).flatten(1).sum(1)


def at_least_float32(t: Tensor) -> Tensor:
    """Returns ``t`` in float32 if it is in half precision, else ``t`` itself."""
    return t if t.dtype.itemsize >= 4 else t.float()
