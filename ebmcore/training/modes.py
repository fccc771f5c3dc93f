"""What an energy does in training and not in evaluation, where that would make its gradients those of another function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from ebmcore.energies import frozen
from ebmcore.errors import UsageError
from ebmcore.losses import BaseContrastiveDivergence, BaseLoss

_COMPARED = 4  # examples, and as many beside them: the fewer, the more their statistics differ
_ROUNDINGS = 8


def check_modes(loss: BaseLoss, energy: nn.Module, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> None:
    """Check that the gradients of a contrastive-divergence loss are those of the energy that its chains follow.

    Chains follow the energy in evaluation mode. With ``joint_forward=False`` the energies of a few examples in training mode
    are computed beside others and beside copies of themselves, with the same random numbers. An energy with a generator of
    its own, for which these are not the same, is not compared.

    Args:
        loss: The loss. Any but one of contrastive divergence passes.
        energy: Its energy, with whole parameters.
        args: A batch of examples, on the device of the energy, and their conditions by place.
        kwargs: Conditions by name.

    Raises:
        UsageError: If a layer normalises an example by its own statistics in training and by running ones in evaluation, or
            if energies of data and negatives in two forwards depend on the rest of their batch.
    """
    if not isinstance(loss, BaseContrastiveDivergence):
        return
    for name, layer in energy.named_modules():
        if isinstance(layer, _InstanceNorm) and layer.training and layer.running_mean is not None:
            raise UsageError(
                f"{name or 'the energy'} ({type(layer).__name__}) normalises by the statistics of an example in training and by "
                "running ones where chains move, so that gradients would be those of another energy: leave out "
                "track_running_stats=True"
            )
    n = len(args[0])
    if loss.joint_forward or n < 2:
        return
    rows = torch.arange(min(n, 2 * _COMPARED), device=args[0].device)
    half = len(rows) // 2
    with_others, again = (_energies(loss, args, kwargs, rows[: 2 * half])[:half] for _ in range(2))
    with_themselves = _energies(loss, args, kwargs, rows[:half].repeat(2))[:half]
    if not torch.equal(with_others, again):
        return
    # Calls of one shape round alike.
    rounding = _ROUNDINGS * torch.finfo(args[0].dtype).eps * with_others.abs().clamp(min=1)
    if ((with_others - with_themselves).abs() > rounding).any():
        raise UsageError(
            "joint_forward=False gives data and negatives other batch statistics, on which the energies of "
            f"{type(energy).__name__} depend in training: leave it out, or what normalises over the batch"
        )


def _energies(loss: BaseContrastiveDivergence, args: Sequence[Tensor], kwargs: Mapping[str, Tensor], rows: Tensor) -> Tensor:
    """The energies of some rows in training mode, which leave no trace: each call draws the same random numbers."""
    modes = [(module, module.training) for module in loss.energy.modules()]
    device = args[0].device
    with frozen(loss.energy), torch.enable_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        for module, training in modes:
            module.training = training
        return loss.energies(*(t[rows] for t in args), **{name: t[rows] for name, t in kwargs.items()}).detach()
