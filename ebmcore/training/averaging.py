"""Copies of an energy, and the moving average of its parameters."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ebmcore.errors import UsageError

POWER_ITERATIONS = 30  # enough, because they begin at the singular vectors of weights nearby


def copy_energy(energy: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a copy of an energy that shares nothing with it.

    `copy.deepcopy` refuses a module that keeps the result of a computation among its attributes, as those of
    ``torch.nn.utils.spectral_norm`` and ``weight_norm`` do after a forward: of such a tensor the copy has the value.

    Args:
        energy: The energy.
        memo: Copies by the ``id`` of what they replace, as `copy.deepcopy` takes them.

    Raises:
        UsageError: If the energy holds what Python cannot copy, such as a lock or an open file; the message names it.

    Example:
        >>> layer = torch.nn.utils.spectral_norm(nn.Linear(2, 1))
        >>> y = layer(torch.zeros(3, 2))
        >>> torch.equal(copy_energy(layer)(torch.zeros(3, 2)), y)
        True
    """
    computed = [t for module in energy.modules() for t in tensors_within(vars(module)) if not t.is_leaf]
    own: dict[int, Any] = {id(t): t.detach().clone() for t in computed} | (memo or {})
    try:
        return copy.deepcopy(energy, dict(own))
    except (TypeError, RuntimeError) as error:
        for place, module in energy.named_modules():
            for name, value in vars(module).items():
                if name not in ("_parameters", "_buffers", "_modules") and not _copies(value, own):
                    called = f"{place}.{name}" if place else name
                    raise UsageError(
                        f"the energy {type(energy).__name__} cannot be copied, as its attribute {called} cannot "
                        f"({type(value).__name__}): make it where it is used, or give the class __deepcopy__"
                    ) from error
        raise


def _copies(value: Any, memo: dict[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(memo))
    except (TypeError, RuntimeError):
        return False
    return True


def tensors_within(attributes: dict[str, Any]) -> Iterator[Tensor]:
    """Give the tensors among the attributes of an object and within their lists, mappings, tuples and sets."""
    left, seen = [attributes], set[int]()
    while left:
        value: Any = left.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            left += value.values() if isinstance(value, dict) else value


def moving_average(energy: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of the parameters of ``energy``; its buffers are copies of the current ones.

    Buffers are not averaged: the mean of unit vectors is no unit vector, and that of indices no index.
    """
    return AveragedModel(copy_energy(energy), multi_avg_fn=get_ema_multi_avg_fn(decay))


@torch.no_grad()
def refresh_spectral_norms(average: nn.Module) -> None:
    """Recompute the singular vectors of averaged weights, in place of those that were copied from the trained weights."""
    for module in average.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):  # the older form, torch.nn.utils.spectral_norm
                for _ in range(POWER_ITERATIONS):
                    hook.compute_weight(module, do_power_iteration=True)
    for module in filter(parametrize.is_parametrized, average.modules()):
        parametrizations: Any = module.parametrizations
        for name, local in parametrizations.items():
            if any(isinstance(one, _SpectralNorm) for one in local):
                training = local.training
                local.train()
                for _ in range(POWER_ITERATIONS):
                    getattr(module, name)  # makes one iteration in training mode
                local.train(training)
