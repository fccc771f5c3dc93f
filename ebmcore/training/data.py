"""Data for training: what a data set must provide, and what is checked of it before the first step."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ebmcore._keywords import constructor_keywords
from ebmcore.errors import UsageError


@runtime_checkable
class DataSource(Protocol):
    """Interface of a component of the kind ``dataset``.

    Attributes:
        train: Training examples ``(N, *shape)``, floating point; or a torch ``Dataset`` of them.
        test: Test examples ``(M, *shape)``, floating point.
        shape: Shape of one example.
        state_space: ``"continuous"``, ``"binary"`` or ``"categorical"``.

    A data set with labels also has ``train_labels`` and ``test_labels``, each one tensor with a row for each example or a mapping
    of names to such tensors, and ``n_classes``. They reach a loss whose ``labels`` are ``"targets"``, and any other that takes
    labels if its energy does. One whose examples count differently has ``train_weights`` ``(N,)`` and
    ``test_weights`` ``(M,)``, at least 0; metrics use the latter.

    One whose labels have names may have ``classes``, a text or whole number for each class number in order: a checkpoint records
    them, and ``ebmcore sample RUN --condition NAME`` finds them.

    A data set that reads files may have ``examples_of(path)``, which ``ebmcore score`` uses: the examples ``(N, *shape)`` of
    another file, in their order and on the scale of the training examples; and ``labels_of(path)``, a list of their labels as
    ``classes`` has them, or `None` where it has none. One that scales them has ``scaled(x)``, which does so with an array in the
    units of the files, ``unscaled(x)``, its inverse, and ``invertible``, whether there is one. With
    ``as_record()``, which returns what these need as JSON, and the class method ``from_record(record)``, which makes the data
    set without its examples, a run reads files where its data are not.
    """

    train: Tensor
    test: Tensor
    shape: tuple[int, ...]
    state_space: str


@runtime_checkable
class SupportsDataStart(Protocol):
    """Initial values that depend on the data: of an energy, such as an RBM's visible biases, or of a loss, such as its noise.

    `ebmcore.training.fit` sets them before the first step; a training loop by hand calls `start_from_data` itself.

    Attributes:
        awaits_data: Whether they are still to be set. Keep it in ``state_dict()``: a resumed or copied part is not set again.
    """

    awaits_data: bool

    def start_from_data(self, x: Tensor, weights: Tensor | None = None) -> None:
        """Sets them from all training examples ``(N, *shape)`` and, where these have some, their weights ``(N,)``."""


def check_compatible(energy: nn.Module, sampler: object, data: object, loss: object = None) -> str | None:
    """Check that energy, sampler, loss and data live in one state space; return it, `None` if none of them declares one.

    What declares no ``state_space``, such as a tensor of examples, fits any. Data must not have more classes than an energy with
    ``n_classes``.

    Raises:
        UsageError: If they live in different ones, or if there are more classes.
    """
    classes, known = (getattr(part, "n_classes", None) for part in (data, energy))
    if isinstance(classes, int) and isinstance(known, int) and classes > known:
        raise UsageError(
            f"the data set {_name(data)} has {classes} classes, but the energy {_name(energy)} has n_classes={known}: give it "
            f"n_classes={classes}"
        )
    parts = {"data set": data, "energy": energy, "sampler": sampler, "loss": loss}
    spaces = {kind: getattr(part, "state_space", None) for kind, part in parts.items()}
    declared = {kind: space for kind, space in spaces.items() if space is not None}
    first, space = next(iter(declared.items()), ("", None))
    for kind, other in declared.items():
        if other != space:
            name = _name(parts[first])
            fixed = f"{name} is {space}" if first == "data set" else f"the {first} {name} is for {space} data"
            how = f"choose another {first} or {kind}, or the data set's option for {other} examples"
            if "continuous" not in (space, other) and "state_space" in constructor_keywords(type(parts[kind])):
                how = f"give the {kind} the option state_space={space}, or choose another {first}"
            raise UsageError(f"the {kind} {_name(parts[kind])} is for {other} data, but {fixed}: {how}")
    return space


def _name(part: object) -> str:
    return part.__name__ if isinstance(part, type) else type(part).__name__


def as_floating(
    x: Tensor, dtype: torch.dtype, space: str | None, what: str, *, warn: bool = True, remedy: str | None = None
) -> Tensor:
    """Return examples as floating-point numbers of ``dtype``, and say so once; see `check_values` for what they must be.

    Args:
        x: The examples ``(N, *shape)``.
        dtype: The energy's.
        space: The state space, or `None`.
        what: What the examples are called in messages.
        warn: Whether a conversion is said.
        remedy: What a message advises of bytes and of large numbers, in place of a line that converts a tensor.

    Raises:
        UsageError: If the numbers would change, or make no sense as they are. The message has the line that converts them.
    """
    check_dense(x, what)
    if x.dtype == dtype:
        return x
    given = x.dtype
    if x.is_complex():
        raise UsageError(f"{what} are {given}, and energies take real numbers: pass torch.view_as_real(x).float()")
    if not x.is_floating_point() and given != torch.bool and x.numel():
        x = x if given == torch.uint8 else x.to(torch.int64)  # the wider unsigned ones know no minimum
        low, high = x.min().item(), x.max().item()
        high = low + 2**64 if given == torch.uint64 and low < 0 else high  # beyond the range of int64
        if space == "categorical" and high > 1:
            raise UsageError(
                f"{what} are numbers of categories (0 to {high}), not one-hot: pass one_hot(x.long()).float() of nn.functional"
            )
        if given == torch.uint8 and high > 1:
            raise UsageError(
                f"{what} are bytes (0 to {high}), which step sizes are not made for: "
                + (remedy or "pass x.float() / 255 for values in [0, 1], or x.float() / 127.5 - 1 for [-1, 1]")
            )
        exact = 2 / torch.finfo(dtype).eps
        if max(-low, high) > exact:
            raise UsageError(
                f"{what} hold {max(-low, high)}, which {dtype} cannot hold exactly: "
                + (remedy or "scale them, and pass x.float()")
            )
    made = x.to(dtype)
    widened = x.is_floating_point() and given.itemsize < dtype.itemsize
    if x.is_floating_point() and not widened and x.is_cpu:  # elsewhere it would wait for the device
        beyond = made.isinf() & x.isfinite()
        if beyond.any():
            largest = x[beyond].abs().max().item()
            raise UsageError(
                f"{what} hold {largest:g}, which is too large for {dtype}: "
                + (remedy or "scale them, or train in torch.float64, precision='64-true'")
            )
    if warn and not widened:
        warnings.warn(f"{what} are {given}, and are converted to {dtype}", stacklevel=2)
    return made


def check_dense(x: Tensor, what: str) -> None:
    """Check that a tensor holds each of its numbers as such.

    Raises:
        UsageError: If it is sparse, nested or on the device ``"meta"``; the message says what to pass.
    """
    remedy = None
    if x.is_nested:
        remedy = "nested: pass one of examples of one shape, such as x.to_padded_tensor(0)"
    elif x.layout != torch.strided:
        remedy = f"of the layout {x.layout}: pass x.to_dense()"
    elif x.is_meta:
        remedy = "on the device 'meta', which holds no numbers: pass a tensor of another device"
    if remedy is not None:
        raise UsageError(f"{what} are {remedy}")


def check_values(x: Tensor, space: str | None, what: str, bounds: tuple[float, float] | None = None) -> None:
    """Check that examples are finite and lie in a state space: binary ones in [0, 1], categorical ones with rows that sum to 1.

    Args:
        x: The examples ``(N, *shape)``, floating point.
        space: The state space, or `None`.
        what: What the examples are called in the message.
        bounds: Those that a sampler keeps its chains within, or `None`.

    Raises:
        UsageError: If they do not; the message says how many values do not, or how they may be converted.

    Example:
        >>> check_values(torch.tensor([[0.0, 1.0], [0.5, 1.0]]), "binary", "the data")
    """
    if not x.isfinite().all():
        _refuse_not_finite(x, what)
    if space == "binary" and (x.amin() < 0 or x.amax() > 1):
        low, high = x.amin().item(), x.amax().item()
        spins = (low, high) == (-1, 1)
        how = (
            "(x + 1) / 2 turns spins into units"
            if spins
            else "scale them into that range, or threshold them, (x > t).float()"
        )
        raise UsageError(f"{what} are for binary units, whose values are in [0, 1], but go from {low:g} to {high:g}: {how}")
    if space == "categorical":
        sums = x.sum(-1)
        if x.amin() < 0 or (sums - 1).abs().max() > 1e-2:
            raise UsageError(
                f"{what} are for categorical units, whose values on the last axis are at least 0 and sum to 1, but they sum to "
                f"{sums.min().item():g} to {sums.max().item():g}: pass one_hot(x.long()).float() of numbers"
            )
    if bounds is not None and (x.amin() < bounds[0] or x.amax() > bounds[1]):
        raise UsageError(
            f"{what} go from {x.amin().item():.4g} to {x.amax().item():.4g}, but the sampler keeps its chains in the bounds "
            f"{tuple(bounds)}: scale the data, or widen the bounds"
        )


def check_labels(labels: Sequence[Tensor], n_classes: int | None, what: str) -> None:
    """Check that labels number classes, where an example has one label and it is a whole number.

    Args:
        labels: What belongs to the examples, ``(N, ...)`` each.
        n_classes: Number of classes; `None` checks nothing.
        what: What the labels are called in the message.

    Raises:
        UsageError: If one is no number of a class.

    Example:
        >>> check_labels([torch.tensor([0, 2])], 3, "the labels")
    """
    if n_classes is None or len(labels) != 1 or labels[0].dtype != torch.int64 or not labels[0].numel():
        return
    low, high = (end.item() for end in labels[0].aminmax())
    if low < 0 or high >= n_classes:
        raise UsageError(
            f"{what} must be from 0 to {n_classes - 1}, the numbers of {n_classes} classes, but go from {low} to {high}: number "
            "them from 0, or give a larger n_classes"
        )


def _refuse_not_finite(x: Tensor, what: str) -> None:
    wrong = ~x.isfinite()
    rows = wrong.reshape(len(x), -1).any(1)
    columns = wrong.reshape(len(x), -1).all(0)
    n_nan = int(x.isnan().sum())
    message = (
        f"{what} hold {n_nan:,} NaN and {int(wrong.sum()) - n_nan:,} infinite values, in {int(rows.sum()):,} of {len(x):,} "
        f"examples (the first is number {int(rows.int().argmax())}): remove or replace them"
    )
    if columns.any() and len(x) > 1 and x.ndim > 1:
        column = int(columns.int().argmax())
        message += f"; column {column} holds no finite number"
        if x.reshape(len(x), -1)[:, column].isnan().all():
            message += ": it is empty, or a scaling divided a constant column by 0"
    raise UsageError(message)
