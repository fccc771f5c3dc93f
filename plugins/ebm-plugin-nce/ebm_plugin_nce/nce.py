"""NCE, Gutmann and Hyvarinen 2010."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ebm_plugin_nce.noise import FITTED
from ebmcore import BaseLoss
from ebmcore.distributions import BaseDistribution
from ebmcore.errors import UsageError


class NoiseContrastiveEstimation(BaseLoss):
    r"""Noise-contrastive estimation: logistic regression of the data against noise of a known density.

    .. math:: L = \frac1B\sum_i \Big[\operatorname{softplus}(-G(x_i))
              + \sum_{j=1}^\nu \operatorname{softplus}(G(\tilde x_{ij}))\Big],
              \qquad G(x) = -E(x) - \log Z - \log q(x) - \log \nu

    with :math:`\nu` noise examples :math:`\tilde x_{ij} \sim q` for each example. ``log Z`` is a parameter of the loss. At the
    optimum it is the log partition function of the energy; ``metrics["log_partition"]`` reports it. The gradient tends to that of
    the likelihood as :math:`\nu` grows.

    No sampler is needed. The noise should resemble the data: where a classifier of the two makes no error, nothing is
    learned. Noise that is fitted sees all training examples before the first step: `ebmcore.training.fit` calls
    `start_from_data`, and so does a training loop by hand.

    Under labels, noise has the label of its example, and ``log Z`` is one number: the energy learns what differs between labels.

    Args:
        energy: The model, any module ``(B, *shape) -> (B,)``.
        noise: ``"normal"``, with the data's mean and whole covariance; ``"uniform"``, between the smallest and the largest value
            of the data; ``"bernoulli"``, for binary data, with their means; or an object with ``sample(n, *, generator)`` and
            ``log_prob(x)``, as those of `ebmcore.distributions`, which is not trained.
        noise_ratio: Noise examples for each example, at least 1.

    Attributes:
        log_partition: ``log Z`` in nats, a 0-dim parameter. It starts at the entropy of noise that is fitted, otherwise at 0.
        awaits_data: Whether the noise is still to be fitted.

    Source: M. Gutmann and A. Hyvarinen (2010), "Noise-contrastive estimation: a new estimation principle for unnormalized
    statistical models".

    Example:
        >>> import torch
        >>> from ebmcore.testing import Quadratic
        >>> nce, x = NoiseContrastiveEstimation(Quadratic((2,))), torch.randn(64, 2)
        >>> nce.start_from_data(x)
        >>> nce(x).shape, list(nce.metrics)
        (torch.Size([]), ['log_partition'])
    """

    weighted = True
    double_backward = False

    def __init__(
        self,
        energy: nn.Module,
        *,
        noise: Literal["normal", "uniform", "bernoulli"] | BaseDistribution = "normal",
        noise_ratio: int = 1,
    ) -> None:
        super().__init__()
        if isinstance(noise_ratio, bool) or not isinstance(noise_ratio, int) or noise_ratio < 1:
            raise ValueError(f"noise_ratio must be a whole number of at least 1, got {noise_ratio!r}")
        own = isinstance(noise, BaseDistribution) and "generator" in inspect.signature(noise.sample).parameters
        if not own and noise not in FITTED:
            raise ValueError(
                f"noise must be 'normal', 'uniform', 'bernoulli' or an object with sample(n, *, generator) and log_prob(x), as "
                f"those of ebmcore.distributions have, got {noise!r}"
            )
        self.energy, self.noise, self.noise_ratio = energy, noise, noise_ratio
        self.state_space = None if own else FITTED[noise].state_space
        self.awaits_data = not own
        self.log_partition = nn.Parameter(torch.zeros(()))

    def build(self, shape: Sequence[int]) -> None:
        if isinstance(self.noise, str):
            self.fitted = FITTED[self.noise](shape)

    @torch.no_grad()
    def start_from_data(self, x: Tensor, weights: Tensor | None = None) -> None:
        """Fits the noise, and starts ``log Z`` at its entropy.

        Args:
            x: All training examples ``(N, *shape)``.
            weights: Their weights ``(N,)``, at least 0, of any scale; `None` for equal ones.
        """
        if not isinstance(self.noise, str):
            raise UsageError("the noise is an object, which is not fitted: leave out start_from_data")
        if not self.built:
            self.build(x.shape[1:])
            self.fitted.to(self.log_partition)
            self.built = True
        share = (x.new_ones(len(x)) if weights is None else weights).double()
        self.fitted.fit(x, share / share.sum())
        self.log_partition.copy_(self.fitted.entropy())
        self.awaits_data = False

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.awaits_data:
            raise UsageError(
                "the noise is fitted to the data, and has not seen them: call start_from_data(x) with all training examples "
                "before the first step, as fit() does"
            )
        nu = self.noise_ratio
        q = self.fitted if isinstance(self.noise, str) else self.noise
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            points = torch.cat([x.detach(), q.sample(nu * len(x), generator=self.generator).to(x)])
            log_noise = q.log_prob(points)
        args = [torch.cat([t, t.repeat_interleave(nu, 0)]) for t in args]
        kwargs = {name: torch.cat([t, t.repeat_interleave(nu, 0)]) for name, t in kwargs.items()}
        logits = -self.energies(points, *args, **kwargs) - self.log_partition - log_noise - math.log(nu)
        self.metrics["log_partition"] = self.log_partition.detach().clone()
        data, noise = logits.split([len(x), nu * len(x)])
        terms = softplus(-data) + softplus(noise).view(len(x), nu).sum(1)
        return (terms if self.data_weights is None else self.data_weights.to(terms) * terms).mean()

    def get_extra_state(self) -> Tensor:
        return torch.stack([super().get_extra_state(), torch.tensor(int(self.awaits_data))])

    def set_extra_state(self, state: Tensor) -> None:
        super().set_extra_state(state[0])
        self.awaits_data = bool(state[1])
