"""Parallel-tempering CD, Desjardins et al. 2010, Cho et al. 2010."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from torch import nn

from ebm_plugin_tempering.tempering import Tempering
from ebmcore import BasePersistentContrastiveDivergence, Sampler
from ebmcore.persistent import PersistentOptions


class ParallelTemperingContrastiveDivergence(BasePersistentContrastiveDivergence):
    r"""Persistent CD whose chains are ladders of replicas, from the model to one so hot that chains cross it freely.

    .. math:: L = \frac1B\sum_i E(x_i) - \frac1M\sum_j E(\hat x_{j,0}), \qquad
              (\hat x_{j,0}, \dots, \hat x_{j,R-1}) \leftarrow T^k(\cdot \mid \hat x_{j,0}, \dots, \hat x_{j,R-1})

    The whole ladder persists; the negatives are its replicas at :math:`\beta = 1`. Use it where the chains of `pcd` stay in
    their modes: replicas bring new modes down the ladder. A step costs ``n_rungs`` times the transitions of `pcd`.
    For every energy and every sampler: it is persistent CD with the sampler `Tempering`.

    Args:
        energy: The model, any module ``(B, *shape) -> (B,)``.
        sampler: The sampler of each replica, with temperature 1.
        k_steps: Transitions of the whole ladder per call, at least 1.
        n_rungs: Number of replicas of each chain; 1 is persistent CD.
        min_beta: The smallest inverse temperature, in [0, 1); the others stand evenly between it and 1.
        betas: The inverse temperatures themselves, falling from 1, in place of ``n_rungs`` and ``min_beta``.
        adapt: Rate at which the ladders adapt to equal swap rates; see `Tempering`.
        options: Those of every persistent variant, see `ebmcore.BasePersistentContrastiveDivergence`: ``n_chains``,
            ``restart_prob``, ``initial``, ``energy_l2``, ``joint_forward``.

    Source: G. Desjardins, A. Courville, Y. Bengio, P. Vincent and O. Delalleau (2010), "Tempered Markov chain Monte Carlo for
    training of restricted Boltzmann machines"; K. Cho, T. Raiko and A. Ilin (2010), "Parallel tempering is efficient for
    learning restricted Boltzmann machines".

    Example:
        >>> import torch
        >>> from ebmcore.testing import Boltzmann, SiteGibbs
        >>> ptcd = ParallelTemperingContrastiveDivergence(Boltzmann(4), SiteGibbs(), n_rungs=3, n_chains=10)
        >>> loss, pred_x = ptcd(torch.ones(6, 4))
        >>> pred_x.shape, ptcd.chain.shape, {"swap_rate", "round_trip_rate"} <= set(ptcd.metrics)
        (torch.Size([6, 4]), torch.Size([10, 4]), True)
    """

    example_options = {"n_rungs": 1}  # noqa: RUF012 - the samplers of the kit know no temperature

    def __init__(
        self,
        energy: nn.Module,
        sampler: Sampler,
        k_steps: int = 1,
        *,
        n_rungs: int = 8,
        min_beta: float = 0.1,
        betas: Sequence[float] | None = None,
        adapt: float = 0.0,
        **options: Unpack[PersistentOptions],
    ) -> None:
        ladder = Tempering(sampler, n_rungs=n_rungs, min_beta=min_beta, betas=betas, adapt=adapt)
        super().__init__(energy, ladder, k_steps, **options)

    @property
    def n_rungs(self) -> int:
        """Number of replicas of each chain, as given."""
        return self.sampler.n_rungs

    @property
    def min_beta(self) -> float:
        """The smallest inverse temperature, as given."""
        return self.sampler.min_beta

    @property
    def adapt(self) -> float:
        """Rate at which the ladders adapt; a schedule may set it."""
        return self.sampler.adapt

    @adapt.setter
    def adapt(self, rate: float) -> None:
        self.sampler.adapt = rate
