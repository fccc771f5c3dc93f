"""FPCD, Tieleman and Hinton 2009."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from ebmcore import BasePersistentContrastiveDivergence, Sampler
from ebmcore.distributed import mean_over_ranks, world_size
from ebmcore.persistent import PersistentOptions


class FastPersistentContrastiveDivergence(BasePersistentContrastiveDivergence):
    r"""Persistent CD whose chains move under a second set of weights that learns fast and forgets fast.

    The negative chains run under :math:`\theta + \theta_f`; data and negatives are scored at :math:`\theta`, which the optimizer
    trains as usual. After each step

    .. math:: \theta_f \leftarrow \lambda\,\theta_f - \eta_f\,\nabla_\theta L, \qquad
              L = \frac1B\sum_i E_\theta(x_i) - \frac1M\sum_j E_\theta(\hat x_j)

    so that the energy under which chains move is raised quickly where they are: they leave a mode that they have stayed in, and
    mix although the learning rate of :math:`\theta` is small. Works for every energy and sampler, not only RBMs. The gradient is
    taken once more than in persistent CD, one backward pass of the training batch.

    Args:
        energy: The model, any module ``(B, *shape) -> (B,)``.
        sampler: A `Sampler`; its whole state persists with the chain.
        k_steps: Transitions per call, at least 1.
        fast_lr: Learning rate of the fast weights, at least 0; 0 is persistent CD. The paper takes the rate that the slow
            weights begin with, and keeps it.
        fast_decay: What remains of the fast weights after a step, in [0, 1).
        options: Those of every persistent variant, see `ebmcore.BasePersistentContrastiveDivergence`: ``n_chains``,
            ``restart_prob``, ``initial``, ``energy_l2`` (part of ``L`` for both sets of weights), ``joint_forward``.

    ``metrics["fast_weights"]`` is the norm of the fast weights.

    Source: T. Tieleman and G. E. Hinton (2009), "Using fast weights to improve persistent contrastive divergence".

    Example:
        >>> from ebmcore.testing import Identity, Quadratic
        >>> fpcd = FastPersistentContrastiveDivergence(Quadratic((2,)), Identity(), fast_lr=0.1, n_chains=10)
        >>> loss, pred_x = fpcd(torch.ones(4, 2))
        >>> loss.backward()
        >>> bool(torch.allclose(fpcd.fast.precision, -0.1 * fpcd.energy.precision.grad))
        True
    """

    sharded_like_parameters = ("fast",)

    def __init__(
        self,
        energy: nn.Module,
        sampler: Sampler,
        k_steps: int = 1,
        *,
        fast_lr: float = 0.01,
        fast_decay: float = 19 / 20,
        **options: Unpack[PersistentOptions],
    ) -> None:
        super().__init__(energy, sampler, k_steps, **options)
        if not fast_lr >= 0:
            raise ValueError(f"fast_lr must be at least 0, got {fast_lr!r}")
        if not 0 <= fast_decay < 1:
            raise ValueError(f"fast_decay must be in [0, 1), got {fast_decay!r}")
        self.fast_lr = fast_lr
        self.fast_decay = fast_decay
        self.fast = nn.Module()  # buffers: saved and moved with the loss, and no optimizer trains them
        for name, parameter in energy.named_parameters():
            self.fast.register_buffer(name.replace(".", "/"), torch.zeros_like(parameter))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        pred_x = self.draw_negatives(x, *args, **kwargs)  # under theta + theta_fast
        loss = self.compute_loss(x, pred_x, *args, **kwargs)
        self.update_fast_weights(loss)
        return loss, pred_x

    @contextmanager
    def negative_phase(self) -> Iterator[None]:
        """Context in which the energy has the parameters ``theta + theta_fast``; afterwards it has the same tensors as before."""
        parameters = list(self.energy.parameters())
        slow = [parameter.data for parameter in parameters]
        try:
            for parameter, fast in zip(parameters, self.fast.buffers(), strict=True):
                parameter.data = parameter.data + _whole(fast).to(parameter)
            yield
        finally:
            for parameter, data in zip(parameters, slow, strict=True):
                parameter.data = data

    def update_fast_weights(self, loss: Tensor) -> None:
        """``theta_fast <- decay * theta_fast - lr_fast * gradient``; no change if there is no gradient, or one is not finite."""
        if not loss.requires_grad:
            return
        trained = [
            (p, fast) for p, fast in zip(self.energy.parameters(), self.fast.buffers(), strict=True) if p.requires_grad
        ]
        if not trained:
            return
        gradients = torch.autograd.grad(loss, [p for p, _ in trained], retain_graph=True, materialize_grads=True)
        gradients = [mean_over_ranks(gradient) for gradient in gradients]
        finite = torch.stack([gradient.isfinite().all() for gradient in gradients]).all()  # NaN would stay
        for (_, fast), gradient in zip(trained, gradients, strict=True):
            own, gradient = _own_part(fast, gradient)
            moved = torch.sub(self.fast_decay * own, gradient.to(own), alpha=self.fast_lr)
            own.copy_(torch.where(finite, moved, own))
        squares = [own.square().sum() for own, _ in map(_own_part, self.fast.buffers())]
        total = torch.stack(squares).sum()
        sharded = any(map(_is_sharded, self.fast.buffers()))
        self.metrics["fast_weights"] = (mean_over_ranks(total) * world_size() if sharded else total).sqrt()


def _is_sharded(fast: Any) -> bool:
    return hasattr(fast, "full_tensor")  # a DTensor, whose module takes long to import


def _whole(fast: Any) -> Any:
    return fast.full_tensor() if _is_sharded(fast) else fast


def _own_part(fast: Any, other: Tensor | None = None) -> tuple[Tensor, Any]:
    """Returns this process's part of fast weights, and that of a whole tensor of their shape."""
    if not _is_sharded(fast):
        return fast, other
    from torch.distributed.tensor import distribute_tensor

    part = None if other is None else distribute_tensor(other, fast.device_mesh, fast.placements, src_data_rank=None)
    return fast.to_local(), None if part is None else part.to_local()
