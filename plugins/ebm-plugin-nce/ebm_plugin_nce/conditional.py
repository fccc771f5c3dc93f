"""Conditional NCE, Ceylan and Gutmann 2018."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ebmcore import BaseLoss


class ConditionalNoiseContrastiveEstimation(BaseLoss):
    r"""Conditional noise-contrastive estimation: which of an example and its noisy copy is the example?

    .. math:: L = \frac{2}{BK}\sum_i\sum_{j=1}^K \operatorname{softplus}\big(E(x_i) - E(\tilde x_{ij})\big),
              \qquad \tilde x_{ij} \sim q(\cdot \mid x_i)

    The noise is symmetric, ``q(u | v) = q(v | u)``, so that its density cancels, and so does ``log Z``: only the energy is
    learned. At any scale of the noise the minimum is the distribution of the data, not of noisy data. As normal noise goes to 0
    the loss tends to score matching, :math:`L = 2\log 2 + \frac{\sigma^2}{2}(\frac12|\nabla E|^2 - \Delta E) + \dots`

    Args:
        energy: The model, any module ``(B, *shape) -> (B,)``.
        noise: ``"normal"``, added to continuous data; or ``"bit-flips"``, which flips each binary unit independently.
        noise_scale: Standard deviation of normal noise, above 0; or the probability of a flip, above 0 and below 1.
        n_samples: Noisy copies of each example, at least 1.

    Source: C. Ceylan and M. U. Gutmann (2018), "Conditional noise-contrastive estimation of unnormalised models".

    Example:
        >>> import torch
        >>> from ebmcore.testing import Quadratic
        >>> ConditionalNoiseContrastiveEstimation(Quadratic((2,)), n_samples=4)(torch.randn(64, 2)).shape
        torch.Size([])
    """

    weighted = True
    double_backward = False

    def __init__(
        self,
        energy: nn.Module,
        *,
        noise: Literal["normal", "bit-flips"] = "normal",
        noise_scale: float = 0.5,
        n_samples: int = 1,
    ) -> None:
        super().__init__()
        if noise not in ("normal", "bit-flips"):
            raise ValueError(f"noise must be 'normal' or 'bit-flips', got {noise!r}")
        if not noise_scale > 0:
            raise ValueError(f"noise_scale must be above 0, got {noise_scale!r}")
        if noise == "bit-flips" and not noise_scale < 1:
            raise ValueError(f"noise_scale is the probability of a flip, which must be below 1, got {noise_scale!r}")
        if isinstance(n_samples, bool) or not isinstance(n_samples, int) or n_samples < 1:
            raise ValueError(f"n_samples must be a whole number of at least 1, got {n_samples!r}")
        self.energy, self.noise, self.noise_scale, self.n_samples = energy, noise, noise_scale, n_samples
        self.state_space = "continuous" if noise == "normal" else "binary"

    def perturb(self, x: Tensor) -> Tensor:
        """Returns ``x`` ``(N, *shape)`` with fresh noise."""
        if self.noise == "normal":
            return x + self.noise_scale * torch.randn_like(x, generator=self.generator)
        uniform = torch.rand(x.shape, generator=self.generator, device=x.device)
        return torch.where(uniform < self.noise_scale, 1 - x, x)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        k = self.n_samples
        points = torch.cat([x, self.perturb(x.repeat_interleave(k, 0))])
        args = [torch.cat([t, t.repeat_interleave(k, 0)]) for t in args]
        kwargs = {name: torch.cat([t, t.repeat_interleave(k, 0)]) for name, t in kwargs.items()}
        data, noisy = self.energies(points, *args, **kwargs).split([len(x), k * len(x)])
        terms = 2 * softplus(data[:, None] - noisy.view(len(x), k)).mean(1)
        return (terms if self.data_weights is None else self.data_weights.to(terms) * terms).mean()
