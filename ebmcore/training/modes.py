"""What an energy does in training and not in evaluation, where that would make its gradients those of another function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from ebmcore.energies import frozen
from ebmcore.errors import UsageError
from ebmcore.losses import BaseContrastiveDivergence, BaseLoss

_COMPARED = 8  # examples: the fewer, the more the statistics of their halves differ
_TF32 = 2**-10  # relative precision of an accelerator's products, which may be less than that of its numbers


def check_modes(loss: BaseLoss, energy: nn.Module, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> None:
    """Check that the gradients of a contrastive-divergence loss are those of the energy that its chains follow.

    Chains follow the energy in evaluation mode. With ``joint_forward=False`` the energies of a few examples in training mode
    are compared with those of their halves; those of an energy that draws random numbers beside dropout are not.

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
    half = min(_COMPARED, len(args[0])) // 2
    if loss.joint_forward or half < 2:
        return
    together, again = (_energies(loss, args, kwargs, slice(2 * half), seed) for seed in (0, 1))
    if not torch.equal(together, again):
        return
    apart = torch.cat([_energies(loss, args, kwargs, rows, 0) for rows in (slice(half), slice(half, 2 * half))])
    precision = max(torch.finfo(args[0].dtype).eps, 0 if together.is_cpu else _TF32)
    rounding = max(precision**0.5 * together.abs().max(), 0.01 * (together.max() - together.min()))
    if (together - apart).abs().max() > rounding:
        raise UsageError(
            "joint_forward=False gives data and negatives other batch statistics, on which the energies of "
            f"{type(energy).__name__} depend in training: leave it out, or what normalises over the batch"
        )


def _energies(
    loss: BaseContrastiveDivergence, args: Sequence[Tensor], kwargs: Mapping[str, Tensor], rows: slice, seed: int
) -> Tensor:
    """The energies of some rows in training mode without dropout, which leave no trace in the energy."""
    modes = [(module, module.training) for module in loss.energy.modules()]
    device = args[0].device
    with frozen(loss.energy), torch.enable_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for module, training in modes:
            module.training = training and not isinstance(module, _DropoutNd)
        return loss.energies(*(t[rows] for t in args), **{name: t[rows] for name, t in kwargs.items()}).detach()
