"""Tensors of what a user gives: arrays, labels and other conditions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ebmcore.errors import UsageError
from ebmcore.training.data import as_floating, check_dense, check_values


def is_numpy(values: Any) -> bool:
    return type(values).__module__.partition(".")[0] == "numpy"


def from_numpy(values: Any) -> Tensor:
    if hasattr(values, "mask"):
        raise UsageError("data must not be a masked array, whose masked values are numbers too: pass data.filled(value)")
    try:
        return _native(values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"data must be numbers that torch has, got an array of {values.dtype}: convert it") from error


def _native(array: Any) -> Tensor:
    return torch.as_tensor(array.astype(array.dtype.newbyteorder("="), order="C"))


def as_tensor(values: Any, what: str) -> Tensor:
    try:
        made = _native(values) if is_numpy(values) else torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{what} must be numbers, a tensor or what becomes one, got {type(values).__name__}") from error
    check_dense(made, what)
    return made


def as_label(values: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """A label or another condition: whole numbers are those of embeddings, real ones of the energy's type and finite."""
    check_dense(values, what)
    if values.is_floating_point():
        values = as_floating(values, dtype, None, what, warn=False)
        if values.is_cpu:
            check_values(values, None, what)
        return values
    return values if values.dtype in (torch.bool, torch.int64) or values.is_complex() else values.to(torch.int64)
