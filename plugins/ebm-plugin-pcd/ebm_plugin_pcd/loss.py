"""PCD, Tieleman 2008."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from ebmcore import BasePersistentContrastiveDivergence, Sampler
from ebmcore.persistent import PersistentOptions


class PersistentContrastiveDivergence(BasePersistentContrastiveDivergence):
    r"""Persistent contrastive divergence: the negative chains continue where they stopped in the last step.

    .. math:: L = \frac1B\sum_i E(x_i) - \frac1M\sum_j E(\hat x_j),
              \qquad \hat x_j \leftarrow T^k(\cdot \mid \hat x_j)

    With a learning rate small against the mixing of the chains, they stay near the model's distribution, and the gradient
    near the likelihood's. Each step draws as many different chains as the batch has examples (all of them, if they are
    fewer) and writes them back into their slots.

    Args:
        energy: The model, any module ``(B, *shape) -> (B,)``.
        sampler: A `Sampler`; its whole state persists with the chain.
        k_steps: Transitions per call, at least 1.
        n_chains: Number of chains, independent of the batch size; in distributed training over all ranks.
        restart_prob: Probability that a drawn chain restarts from the initial distribution, in [0, 1].
        initial: Where chains start: ``"model"``, the energy's own initial distribution (Bernoulli for binary units) or a
            standard normal where it has none; ``"data"``, rows of the batch; ``"uniform"``, uniform noise in [-1, 1]; or an
            object with ``sample(n, *, generator)``.
        data_noise: Standard deviation of normal noise that is added to the data, at least 0: the model then learns the smoothed
            data.
        energy_l2: Weight of the mean squared energies, a regulariser; 0 turns it off.
        joint_forward: Score data and negatives in one forward of the concatenated batch.

    Source: T. Tieleman (2008), "Training restricted Boltzmann machines using approximations to the likelihood gradient";
    restarts: Y. Du and I. Mordatch (2019), "Implicit generation and modeling with energy-based models".

    Example:
        >>> import torch
        >>> from ebmcore.testing import Identity, Quadratic
        >>> pcd = PersistentContrastiveDivergence(Quadratic((2,)), Identity(), n_chains=10)
        >>> loss, pred_x = pcd(torch.ones(4, 2))
        >>> pred_x.shape, pcd.chain.shape
        (torch.Size([4, 2]), torch.Size([10, 2]))
    """

    def __init__(
        self,
        energy: nn.Module,
        sampler: Sampler,
        k_steps: int = 1,
        *,
        data_noise: float = 0.0,
        **options: Unpack[PersistentOptions],
    ) -> None:
        super().__init__(energy, sampler, k_steps, **options)
        if not data_noise >= 0:
            raise ValueError(f"data_noise must be at least 0, got {data_noise!r}")
        self.data_noise = data_noise

    def fitted_precision(self, variance: float) -> float:
        return 1 / (variance + self.data_noise**2)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.data_noise:
            x = x + self.data_noise * torch.randn_like(x, generator=self.generator)
        return super().forward(x, *args, **kwargs)
