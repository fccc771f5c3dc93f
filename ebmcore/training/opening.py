"""Training examples of what a user gives: a tensor, an array, a data set, a loader."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    TensorDataset,
    default_collate,
)

from ebmcore.conditions import name_conditions
from ebmcore.errors import UsageError
from ebmcore.losses import BaseLoss
from ebmcore.training.batches import Batch, Examples, Items, LabelledExamples, Reading, Stream, Table
from ebmcore.training.data import DataSource, as_floating, check_dense, check_labels, check_values
from ebmcore.training.order import LoaderBatches, StepBatches
from ebmcore.training.tensors import as_label, as_tensor, from_numpy, is_numpy


def open_examples(data: Any, loss: BaseLoss, reading: Reading, weights: Any = None) -> Examples:
    """Return the training examples of ``data``, in any of the forms that `ebmcore.training.fit` takes.

    Raises:
        UsageError: If there are none, or they cannot be what the loss is trained on.
    """
    labels: Any = None
    if not isinstance(data, Tensor | Dataset) and isinstance(data, DataSource):
        # A torch Dataset may have a flag called train.
        labels = getattr(data, "train_labels", None)
        weights = getattr(data, "train_weights", None) if weights is None else weights
        data = data.train
    taker = loss.forward if loss.labels == "targets" else getattr(loss, "energy", loss).forward
    return _open(data, replace(reading, taker=_alone if loss.labels is None else taker), labels, weights)


def _alone(x: Tensor) -> None:
    """Take the examples without their labels."""


def check_labelled(loss: BaseLoss, batch: Batch) -> None:
    """Check that a loss can be called with a batch.

    Raises:
        UsageError: If it cannot without labels that the batch does not have.
    """
    try:
        inspect.signature(loss.forward).bind(*batch.args, **batch.named)
    except TypeError as error:
        raise UsageError(
            f"the loss {type(loss).__name__} takes labels beside the examples, and the data have no labels that are these "
            f"({error}): give the data labels, as train_labels of a data set or --data.labels on the command line"
        ) from error


def labelled_examples(
    energy: nn.Module, data: Any, part: str = "train", *, dtype: torch.dtype | None = None
) -> LabelledExamples:
    """Return the examples of a data set for a metric, with the labels that the energy takes beside them as conditions.

    Args:
        energy: The energy.
        data: The data set; see `DataSource`.
        part: ``"train"`` or ``"test"``.
        dtype: Floating-point type of examples and real labels; `None` is that of the energy.

    Raises:
        UsageError: If there is no example, or the data have no labels and the energy needs some.

    Example:
        >>> from types import SimpleNamespace
        >>> from ebmcore.testing import Quadratic
        >>> labelled_examples(Quadratic((2,)), SimpleNamespace(train=torch.zeros(3, 2))).conditions
        {}
    """
    x, labels, weights = (getattr(data, name, None) for name in (part, f"{part}_labels", f"{part}_weights"))
    own = (t.dtype for t in (*energy.parameters(), *energy.buffers()) if t.is_floating_point())
    reading = Reading(
        dtype=dtype or next(own, torch.get_default_dtype()),
        space=getattr(data, "state_space", None),
        warn=False,
        taker=energy.forward,
    )
    (x, *args), named, weights = _open(x, reading, labels, weights).whole()
    try:
        inspect.signature(energy.forward).bind(x, *args, **named)
    except TypeError as error:
        raise UsageError(
            f"the energy {type(energy).__name__} takes conditions beside the examples, and the {part} data have no labels "
            f"that are these: give the data set {part}_labels"
        ) from error
    return LabelledExamples(x, name_conditions(tuple(args), named, x), weights)


def _open(data: Any, reading: Reading, labels: Any, weights: Any) -> Examples:
    if is_numpy(data):
        data = from_numpy(data)
    if hasattr(data, "toarray"):
        raise UsageError(f"data must be a tensor or an array, got {type(data).__name__}: pass data.toarray()")
    if hasattr(data, "to_numpy"):
        raise UsageError(f"data must be a tensor or an array, got {type(data).__name__}: pass data.to_numpy()")
    data = _of_tensors(data)
    if isinstance(data, TensorDataset) and labels is None:
        data, *labels = data.tensors
    if isinstance(data, Tensor):
        _check_size(data)
        by_name = labels if isinstance(labels, Mapping) else {}
        by_place = [] if labels is None or by_name else labels if isinstance(labels, list) else [labels]
        args, named = [as_tensor(t, "labels") for t in by_place], {name: as_tensor(t, name) for name, t in by_name.items()}
        return Table(data, reading, args, named, weights)
    if weights is not None:
        raise UsageError("weights of examples need examples in memory: pass a tensor (N, *shape), not a Dataset")
    loader = data if isinstance(data, DataLoader) else None
    dataset: Any = data if loader is None else _of_tensors(loader.dataset)
    if loader is not None and reading.num_workers:
        raise UsageError("num_workers is for a Dataset: give it to the DataLoader, or pass its .dataset")
    own_way = loader is not None and (loader.batch_sampler is None or type(loader).__iter__ is not DataLoader.__iter__)
    if isinstance(dataset, IterableDataset) or own_way:
        if loader is None:
            loader = DataLoader(dataset, reading.batch_size, num_workers=reading.num_workers)
        return Stream(loader, reading)
    _check_size(dataset)
    order: StepBatches = StepBatches(
        len(dataset), reading.batch_size, seed=reading.seed, rank=reading.rank, world=reading.world
    )
    if loader is None:
        return Items(dataset, reading, order, num_workers=reading.num_workers)
    batch_sampler: Any = loader.batch_sampler
    if not len(batch_sampler):
        raise UsageError(
            f"the DataLoader gives no batch of {len(dataset)} examples: leave out drop_last, or lower its batch_size"
        )
    if not isinstance(getattr(batch_sampler, "sampler", None), DistributedSampler):  # whose ranks are fit's own affair
        order = LoaderBatches(batch_sampler, seed=reading.seed, rank=reading.rank, world=reading.world)
    kept = ("num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "prefetch_factor")
    collate = None if loader.collate_fn is default_collate else loader.collate_fn
    return Items(dataset, reading, order, collate, **{name: getattr(loader, name) for name in kept})


def _of_tensors(data: Any) -> Any:
    """A data set of the library datasets with items of tensors, unless its items are arrays or a user's own."""
    if not (hasattr(data, "with_format") and hasattr(data, "column_names")):
        return data
    formatted = getattr(data, "format", None)
    known = formatted if isinstance(formatted, Mapping) else {}
    if known.get("type") in ("torch", "numpy", "custom"):
        return data
    return data.with_format("torch", **({"columns": known["columns"]} if known.get("type") else {}))


def loader_batch_size(data: Any) -> int | None:
    """Return the batch size that a ``DataLoader`` has already; `None` where `fit` says it."""
    sampler = getattr(data, "batch_sampler", None) if isinstance(data, DataLoader) else None
    return sampler.batch_size if isinstance(sampler, BatchSampler) else None


def _check_size(data: Any) -> None:
    if isinstance(data, Tensor):
        check_dense(data, "the data")  # first, as a nested tensor has no size
    if (
        isinstance(data, str | bytes | Mapping | Sequence)
        or not hasattr(data, "__getitem__")
        or not hasattr(data, "__len__")
    ):
        raise UsageError(
            f"data must be a tensor (N, *shape), a numpy array, a torch Dataset or DataLoader, or a data set, got "
            f"{type(data).__name__}"
        )
    if isinstance(data, Tensor) and data.ndim < 2:
        raise UsageError(f"data must be a tensor (N, *shape) with a row for each example, got shape {tuple(data.shape)}")
    if len(data) == 0:
        raise UsageError("data must hold at least one example, got none")


def check_test(data: DataSource, reading: Reading, shape: Sequence[int], *, labelled: bool) -> None:
    """Check the test examples of a data set, which metrics measure at the end, and their labels.

    Args:
        data: The data set. Test examples that are no tensor or array are not checked.
        reading: How its training examples are read.
        shape: Shape of one of these.
        labelled: Whether labels are used.

    Raises:
        UsageError: If they are not such as the training examples, or there is not one label of a class for each example.
    """
    test = as_tensor(data.test, "the test data") if is_numpy(data.test) else data.test
    labels = getattr(data, "test_labels", None) if labelled and hasattr(test, "__len__") else None
    given = labels.values() if isinstance(labels, Mapping) else [] if labels is None else [labels]
    known = [as_label(as_tensor(one, "test_labels"), reading.dtype, "test_labels") for one in given]
    for one in known:
        if one.shape[:1] != (len(test),):
            raise UsageError(f"test_labels must have a row for each of {len(test)} examples, got shape {tuple(one.shape)}")
    check_labels(known, reading.n_classes, "the test labels")
    if not isinstance(test, Tensor) or not len(test):
        return
    if tuple(test.shape[1:]) != tuple(shape):
        raise UsageError(
            f"the test data have examples of shape {tuple(test.shape[1:])}, but the training examples have {tuple(shape)}: give "
            "both one shape"
        )
    test = as_floating(test, reading.dtype, reading.space, "the test data", warn=False)
    check_values(test, reading.space, "the test data")
    if reading.bounds is not None:
        low, high = reading.bounds
        beyond = int(((test < low) | (test > high)).flatten(1).any(1).sum())
        if beyond:  # as a scaling that the training examples say leaves some
            warnings.warn(
                f"{beyond} of {len(test)} test examples are beyond the bounds {tuple(reading.bounds)} of the sampler, where no "
                "chain is: a likelihood of them is not that of the chains",
                UserWarning,
                stacklevel=3,
            )
