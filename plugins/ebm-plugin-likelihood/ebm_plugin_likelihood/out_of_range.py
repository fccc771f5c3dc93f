"""Share of the model's samples outside the range of the data."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from ebm_plugin_likelihood.common import draw
from ebmcore.errors import UsageError
from ebmcore.samplers import check_sampler, sample
from ebmcore.training import labelled_examples


class OutOfRange:
    """Share of chains outside the range of the training data, from their smallest value to their largest.

    Chains start at training examples, with their labels where the energy takes them, and make ``n_steps`` transitions of the
    sampler. Use the metric for pixels and other values of one scale: chains that leave the range of pixels show that the energy
    has no wall there, and that pictures of them clip. It is one range for all components, because a pixel that is constant in the
    data would otherwise count every chain. Values at the ends are within. Real data without a fixed range, such as a normal
    distribution, have a few values outside by chance.

    Args:
        n_chains: Number of chains.
        n_steps: Transitions of each.

    The result holds ``chains_outside``, the share of chains of which any value is outside, and ``values_outside``, the share of
    all values. Those of chains that became NaN or infinite are outside.

    Example:
        >>> from types import SimpleNamespace
        >>> from ebmcore.testing import ExactGaussian, Quadratic
        >>> data = SimpleNamespace(train=torch.tensor([[-1.0, 0.0], [0.5, 1.0]]), state_space="continuous", shape=(2,))
        >>> metric = OutOfRange(n_chains=10_000, n_steps=1)
        >>> result = metric(Quadratic((2,)), data, sampler=ExactGaussian(), generator=torch.Generator().manual_seed(0))
        >>> abs(result["values_outside"] - 0.3173) < 0.01  # of a standard normal beyond 1 and -1
        True
    """

    state_space = "continuous"
    example_options: ClassVar[dict[str, Any]] = {"n_chains": 50, "n_steps": 5}

    def __init__(self, *, n_chains: int = 500, n_steps: int = 1000) -> None:
        if n_chains < 1 or n_steps < 1:
            raise ValueError(f"n_chains and n_steps must be at least 1, got {n_chains!r} and {n_steps!r}")
        self.n_chains = n_chains
        self.n_steps = n_steps

    def check(self, energy: nn.Module, data: Any, *, sampler: Any = None) -> None:
        """Raises `UsageError` unless the data are real and there is a sampler of real variables."""
        if data.state_space != "continuous":
            raise UsageError(f"out-of-range is for real values, but {type(data).__name__} is {data.state_space}")
        if sampler is None:
            raise UsageError("out-of-range needs a sampler: train with one, or measure another metric")
        if getattr(sampler, "state_space", None) not in (None, "continuous"):
            raise UsageError(
                f"out-of-range is for samplers of real values, but {type(sampler).__name__} is {sampler.state_space}"
            )
        check_sampler(sampler, energy)
        labelled_examples(energy, data)

    def __call__(
        self, energy: nn.Module, data: Any, *, sampler: Any = None, generator: torch.Generator | None = None
    ) -> dict[str, float]:
        """Measures chains of ``sampler`` on ``energy``.

        Args:
            energy: The model; left as it is.
            data: Has ``train`` ``(N, *shape)`` and ``state_space``.
            sampler: The sampler of the chains, that of the training.
            generator: Randomness of the chains, on their device.
        """
        self.check(energy, data, sampler=sampler)
        train = labelled_examples(energy, data)
        rows = draw(train, self.n_chains, generator)
        conditions = {name: t[rows] for name, t in train.conditions.items()}
        x = sample(sampler, energy, train.x[rows], self.n_steps, conditions=conditions, generator=generator)
        outside = ~((x >= train.x.min()) & (x <= train.x.max())).flatten(1)  # NaN is not within
        return {
            "chains_outside": outside.any(1).double().mean().item(),
            "values_outside": outside.double().mean().item(),
        }
