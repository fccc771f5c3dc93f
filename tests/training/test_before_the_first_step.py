"""What cannot be trained is refused in one line before the first step."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from small_runs import cd, data, quiet
from torch import nn
from torch.utils.data import TensorDataset

import ebmcore
from ebmcore.errors import UsageError
from ebmcore.testing import Identity, Quadratic


class Returning(Quadratic):
    def __init__(self, change):
        super().__init__((2,))
        self.change = change

    def forward(self, x):
        return self.change(super().forward(x))


class Classes(nn.Module):
    """An energy of three classes, whose number it declares or not."""

    def __init__(self, declared=None):
        super().__init__()
        if declared is not None:
            self.n_classes = declared
        self.table = nn.Embedding(3, 2)

    def forward(self, x, labels):
        return (x - self.table(labels)).square().sum(1)


@dataclass
class Labelled:
    """A data set with labels."""

    train_labels: torch.Tensor
    test_labels: torch.Tensor
    n_classes: int | None = None
    state_space: str = "continuous"
    shape: tuple[int, ...] = (2,)

    @property
    def train(self):
        return data(len(self.train_labels))

    @property
    def test(self):
        return data(4)


def of(energy):
    return ebmcore.create_loss("cd", energy, Identity())


def refused(loss, x, tmp_path, message, **options):
    with pytest.raises(UsageError, match=message) as caught:
        quiet(loss, x, steps=1, out=tmp_path / "run", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_context_without_gradients_is_refused(context, tmp_path):
    loss, x = cd(), data()
    with context():
        refused(loss, x, tmp_path, rf"gradients, which torch\.{context.__name__}\(\) turns off")


def test_nothing_to_train_is_refused(tmp_path):
    """An energy all of whose parameters are frozen."""
    loss = of(ebmcore.create_energy("mlp", (2,), hidden=(4,)).requires_grad_(False))
    refused(loss, data(), tmp_path, r"there is nothing to train: call energy\.requires_grad_\(True\)")


@pytest.mark.parametrize(("change", "kind"), [(lambda e: {"energy": e}, "dict"), (lambda e: (e, e), "tuple")])
def test_energy_that_returns_no_tensor_is_refused(change, kind, tmp_path):
    refused(of(Returning(change)), data(), tmp_path, rf"the energy returned a {kind}: it must return \(2,\)")


def test_probe_draws_nothing():
    """An energy that draws random numbers leaves the global generator as it was."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    quiet(of(Returning(lambda e: e + torch.rand(()))), data(), steps=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("wrong", [7, -1])
@pytest.mark.parametrize("declared", [None, 3])
def test_labels_out_of_range_are_refused(wrong, declared, tmp_path):
    """By the number of classes where the energy declares it, otherwise by the energy's own error, at the outermost labels."""
    labels = torch.arange(40) % 3
    labels[31] = wrong
    message = "the labels must be from 0 to 2" if declared else rf"cannot take .* under the conditions \[.*{wrong}.*\]"
    refused(of(Classes(declared)), TensorDataset(data(40), labels), tmp_path, message)


def test_labels_of_another_number_than_the_data_declare_are_refused(tmp_path):
    labels = torch.arange(40) % 3
    refused(of(Classes()), Labelled(labels, labels[:4], n_classes=2), tmp_path, "the labels must be from 0 to 1")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 2, 3]), "the test labels must be from 0 to 2"),
        (torch.tensor([0, 1]), r"test_labels must have a row for each of 4 examples, got shape \(2,\)"),
    ],
)
def test_test_labels_are_checked(labels, message, tmp_path):
    refused(of(Classes(3)), Labelled(torch.arange(40) % 3, labels, n_classes=3), tmp_path, message)


def test_labels_of_a_loader_are_checked_as_they_come(tmp_path):
    """Labels of a map-style data set are known when a batch is read."""

    class Items(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, row):
            return data(40)[row], -1

    refused(of(Classes(3)), Items(), tmp_path, "the labels of batch 0 must be from 0 to 2")


def test_labels_that_are_not_used_may_be_any():
    """An energy without conditions trains on data whose labels mark some examples as unlabelled."""
    labels = torch.full((40,), -1)
    assert quiet(cd(), Labelled(labels, labels[:4], n_classes=2), steps=1).step == 1
