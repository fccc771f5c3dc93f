"""Copies of an energy, and the moving average of its parameters."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ebmcore.errors import UsageError

_REFUSALS = (TypeError, RuntimeError, ValueError, copy.Error, pickle.PicklingError)  # of copy.deepcopy
POWER_ITERATIONS = 30  # enough, because they begin at the singular vectors of weights nearby


def copy_energy(energy: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a copy of an energy that shares no tensor with it.

    `copy.deepcopy` refuses a module that keeps the result of a computation among its attributes, as those of
    ``torch.nn.utils.spectral_norm`` and ``weight_norm`` do after a forward: of such a tensor the copy has the value. It also
    refuses objects such as a lock or an open file: these the copy shares.

    Args:
        energy: The energy.
        memo: Copies by the ``id`` of what they replace, as `copy.deepcopy` takes them.

    Raises:
        UsageError: If the energy holds a module that refuses to be copied.

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
    except _REFUSALS:
        _replace_uncopyable(energy, own, {})
    try:
        return copy.deepcopy(energy, dict(own))
    except _REFUSALS as error:
        raise UsageError(
            f"the energy {type(energy).__name__} cannot be copied ({type(error).__name__}: {error}): let the __deepcopy__ of "
            "its modules return a copy"
        ) from error


def _replace_uncopyable(value: Any, memo: dict[int, Any], seen: dict[int, Any]) -> None:
    """Add to ``memo`` each object within a value that cannot be copied though its parts can; modules are left out."""
    if id(value) in seen or _copies(value, memo):
        return
    seen[id(value)] = value  # itself, as the id of an object that is gone may be that of another
    parts = _parts(value)
    for part in parts:
        _replace_uncopyable(part, memo, seen)
    if isinstance(value, nn.Module) or not all(_copies(part, memo) for part in parts) or _copies(value, memo):
        return
    memo[id(value)] = value.detach().clone() if isinstance(value, Tensor) else value


def _parts(value: Any) -> list[Any]:
    """The objects that `copy.deepcopy` copies with a value."""
    if isinstance(value, Tensor):
        return []
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple | set):
        return list(value)
    if isinstance(value, MethodType):
        return [value.__self__]
    try:
        made = value.__reduce_ex__(4)
    except _REFUSALS:
        return []
    return list(made[1:]) if isinstance(made, tuple) else []


def _copies(value: Any, memo: dict[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(memo))
    except _REFUSALS:
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
    average = AveragedModel(nn.Identity(), multi_avg_fn=get_ema_multi_avg_fn(decay))
    average.module = copy_energy(energy)  # which the constructor would copy by copy.deepcopy
    return average


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
