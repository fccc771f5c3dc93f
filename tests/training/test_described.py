"""A resumed run is made of what its checkpoint says: other components are refused by name, the same ones never."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_runs import data, quiet
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

import ebmcore
from ebmcore import BaseSampler
from ebmcore.errors import CheckpointError
from ebmcore.testing import Identity
from ebmcore.training.batches import Reading
from ebmcore.training.described import describe
from ebmcore.training.opening import open_examples


class Bowl(nn.Module):
    """An energy with one option of each kind."""

    def __init__(self, power=2, act=None, widths=(3, 3), scale=1.0, shift=None):
        super().__init__()
        self.exponent, self._scale, self.widths = power, scale, widths
        self.shift = torch.zeros(2) if shift is None else shift
        self.net = nn.Sequential(nn.Linear(2, 3), nn.SiLU() if act is None else act, nn.Linear(3, 1))

    def forward(self, x):
        return self.net(x + self.shift).squeeze(-1) + self._scale * x.abs().pow(self.exponent).sum(1)


class OtherBowl(Bowl):
    pass


def frozen():
    energy = Bowl()
    energy.net[0].requires_grad_(False)
    return energy


def tempering(step_size=0.1):
    inner = ebmcore.create_sampler("langevin", step_size=step_size)
    return ebmcore.create_sampler("tempering", inner=inner, n_rungs=2)


def gaussian(learn):
    return ebmcore.create_energy("gaussian-rbm", (2,), hidden=3, learn_variance=learn)


def cd(energy=None, sampler=None):
    torch.manual_seed(0)
    energy = Bowl() if energy is None else energy()
    return ebmcore.create_loss("cd", energy, Identity() if sampler is None else sampler())


def resumed(tmp_path, first, second, x=None, other=None, **options):
    x = data() if x is None else x
    quiet(first, x, steps=1, out=tmp_path, **options)
    return quiet(second, x if other is None else other, steps=2, out=tmp_path, resume=True, **options)


OTHERS = {
    "exponent": (Bowl, lambda: Bowl(power=4), r"energy\.exponent=2, not 4"),
    "private": (Bowl, lambda: Bowl(scale=0.5), r"energy\._scale=1\.0, not 0\.5"),
    "tensor": (Bowl, lambda: Bowl(shift=torch.ones(2)), r"energy\.shift="),
    "layer": (Bowl, lambda: Bowl(act=nn.ReLU()), r"energy\.net\.1\.class='SiLU', not 'ReLU'"),
    "layer-option": (
        lambda: Bowl(act=nn.LeakyReLU(0.1)),
        lambda: Bowl(act=nn.LeakyReLU(0.2)),
        r"energy\.net\.1='LeakyReLU\(negative_slope=0\.1\)'",
    ),
    "class": (Bowl, OtherBowl, r"energy\.class='Bowl', not 'OtherBowl'"),
    "frozen": (frozen, Bowl, r"energy\.not trained=\['net\.0\.weight', 'net\.0\.bias'\], not \[\]"),
    "learn_variance": (lambda: gaussian(True), lambda: gaussian(False), r"energy\.not trained=\[\], not \['log_variance'\]"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_energy_is_refused_by_name(tmp_path, case):
    first, second, message = OTHERS[case]
    with pytest.raises(CheckpointError, match=message):
        resumed(tmp_path, cd(first), cd(second))


def test_other_inner_sampler_is_refused(tmp_path):
    """An option of a sampler within another one is compared."""
    with pytest.raises(CheckpointError, match=r"of a run with sampler\.inner\.step_size=0\.1, not 0\.2"):
        resumed(tmp_path, cd(sampler=tempering), cd(sampler=lambda: tempering(0.2)))


class Several(BaseSampler):
    def __init__(self, samplers):
        self.samplers = samplers

    def step(self, energy, state, *, generator=None):
        for sampler in self.samplers:
            state, info = sampler.step(energy, state, generator=generator)
        return state, info


def several(*step_sizes):
    return Several([ebmcore.create_sampler("langevin", step_size=size) for size in step_sizes])


def test_other_sampler_in_a_list_is_refused(tmp_path):
    """Options of samplers in a list are compared."""
    with pytest.raises(CheckpointError, match=r"of a run with sampler\.samplers="):
        resumed(tmp_path, cd(sampler=lambda: several(0.1, 0.2)), cd(sampler=lambda: several(0.1, 0.3)))


def test_value_is_the_same_however_it_is_written(tmp_path):
    """Lists and tuples, whole and real numbers, numpy's and Python's, and defaults left out or given."""
    written = {
        "power": np.float64(2.0),
        "act": nn.SiLU(),
        "widths": [3, 3.0],
        "scale": np.float32(1),
        "shift": torch.zeros(2),
    }
    assert resumed(tmp_path, cd(), cd(lambda: Bowl(**written))).step == 2


def test_moved_module_and_the_same_object_resume(tmp_path):
    """The loss that was trained may be resumed itself, with what its energy counts, and in another precision."""

    class Counts(Bowl):
        def forward(self, x):
            self.calls = getattr(self, "calls", 0) + 1
            self.last = self.calls
            return super().forward(x)

    loss = cd(Counts)
    loss.energy.calls = 0
    with pytest.warns(UserWarning, match=r"training changes energy\.calls, which no checkpoint holds: if later"):
        quiet(loss, data(), steps=1, out=tmp_path)
    with pytest.warns(UserWarning, match=r"training changes energy\.calls, energy\.last"):
        assert quiet(loss, data(), steps=2, out=tmp_path, resume=True).step == 2


class Remembering(nn.Module):
    """A layer that keeps its last result."""

    def __init__(self):
        super().__init__()
        self.last = None

    def forward(self, x):
        self.last = x * 1
        return self.last


class RememberingBowl(Bowl):
    def __init__(self):
        super().__init__(act=Remembering())
        self.last = None

    def forward(self, x):
        self.last = super().forward(x)
        return self.last


def test_kept_activations_are_no_lasting_change(tmp_path):
    """They are those of the last batch, so that no warning names them."""
    assert resumed(tmp_path, cd(RememberingBowl), cd(RememberingBowl)).step == 2


def test_options_of_the_call_are_compared_beside_a_configuration(tmp_path):
    """A configuration for observers does not hide the options of `fit`."""
    quiet(cd(), data(), steps=1, out=tmp_path, config={"note": "first"}, seed=1)
    with pytest.raises(CheckpointError, match=r"of a run with fit\.seed=1, not 2"):
        quiet(cd(), data(), steps=2, out=tmp_path, resume=True, config={"note": "first"}, seed=2)


def test_other_option_of_an_own_optimizer_is_refused(tmp_path):
    def adam(beta):
        return lambda groups: torch.optim.Adam(groups, lr=0.1, betas=(beta, 0.9))

    quiet(cd(), data(), steps=1, out=tmp_path, optimizer=adam(0.5))
    with pytest.raises(CheckpointError, match=r"of a run with optimizer\.betas=\[0\.5, 0\.9\], not \[0\.0, 0\.9\]"):
        quiet(cd(), data(), steps=2, out=tmp_path, resume=True, optimizer=adam(0.0))


def doubled(items):
    return 2 * default_collate(items)


class Rows(Dataset):
    """Examples with noise from a generator: torch's global one, or one of its own."""

    def __init__(self, x, noise=0.0, own=None):
        self.x, self.noise, self.rng = x, noise, own

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return self.x[row] + self.noise * torch.randn(2, generator=self.rng)


def test_other_content_of_a_dataset_is_refused(tmp_path):
    """The contents of examples of a torch ``Dataset`` are compared."""
    with pytest.raises(CheckpointError, match="of a run on other data"):
        resumed(tmp_path, cd(), cd(), Rows(data()), other=Rows(data() + 1))


@pytest.mark.filterwarnings("ignore:the data are torch.float64")
@pytest.mark.parametrize("given", [data, lambda: DataLoader(Rows(data()), batch_size=16), lambda: Rows(data().double())])
def test_another_precision_has_the_same_data(given, tmp_path):
    quiet(cd(), given(), steps=1, out=tmp_path)
    assert quiet(cd(), given(), steps=2, out=tmp_path, resume=True, precision="64-true").step == 2


@pytest.mark.parametrize("collate", [None, doubled])
def test_each_example_of_a_dataset_is_compared(collate, tmp_path):
    """Behind a ``collate_fn`` too."""
    other = data()
    other[50] += 1
    given = (DataLoader(Rows(x), batch_size=16, collate_fn=collate) for x in (data(), other))
    with pytest.raises(CheckpointError, match="of a run on other data: "):
        resumed(tmp_path, cd(), cd(), next(given), other=next(given))


@pytest.mark.parametrize(("n", "size", "alike"), [(2**14, 2, False), (2**14 + 1, 2, True), (2**7, 2**19 + 1, True)])
def test_large_dataset_is_known_by_a_few_examples(n, size, alike):
    """Not one by one where there are more than 16,384 examples or more than 2^26 elements."""
    x = torch.zeros(n, 1).expand(n, size)
    read = set[int]()

    class Noted(Rows):
        def __getitem__(self, row):
            read.add(row)
            return self.x[row]

    open_examples(Noted(x), cd(), Reading()).description()
    assert (len(read) < n) is alike


class Counting(Sampler):
    """Rows that another pass gives in another order, whatever the seed."""

    def __init__(self):
        self.passes = 0

    def __len__(self):
        return 8

    def __iter__(self):
        self.passes += 1
        return iter(range(self.passes % 2, 8 + self.passes % 2))


class Epochs(Sampler):
    """Rows in an order that follows from the epoch, which it keeps."""

    epoch = 0

    def __len__(self):
        return 8

    def __iter__(self):
        return iter(torch.randperm(8, generator=torch.Generator().manual_seed(self.epoch)).tolist())

    def set_epoch(self, epoch):
        self.epoch = epoch


def loader(**options):
    return DataLoader(Rows(data()), **({} if "batch_sampler" in options else {"batch_size": 16}) | options)


ORDERS = {
    "subset": (
        lambda: loader(sampler=SubsetRandomSampler(range(8))),
        lambda: loader(sampler=SubsetRandomSampler(range(8, 16))),
    ),
    "weights": (
        lambda: loader(sampler=WeightedRandomSampler([1.0, 0.0, 1.0], 8)),
        lambda: loader(sampler=WeightedRandomSampler([0.0, 1.0, 1.0], 8)),
    ),
    "batches": (lambda: loader(batch_sampler=[[0, 1], [2]]), lambda: loader(batch_sampler=[[0], [1, 2]])),
    "alone": (
        lambda: loader(batch_size=None, sampler=BatchSampler(range(4), 2, False)),
        lambda: loader(batch_size=None, sampler=BatchSampler(range(4, 8), 2, False)),
    ),
}


@pytest.mark.filterwarnings("ignore:the content of the data is not compared")
@pytest.mark.parametrize(("first", "other"), ORDERS.values(), ids=ORDERS)
def test_other_rows_of_a_loader_are_refused(first, other, tmp_path):
    """By the rows that its sampler gives from one seed, with any sampler; the same rows resume."""
    assert resumed(tmp_path, cd(), cd(), first(), other=first()).step == 2
    with pytest.raises(CheckpointError, match=r"other data \(its sampler gives other rows\)"):
        quiet(cd(), other(), steps=3, out=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"shuffle": True}, "sampler 'SequentialSampler', not 'RandomSampler'"),
        ({"drop_last": True}, "drop_last False, not True"),
        ({"collate_fn": doubled}, "collate_fn None, not 'doubled'"),
    ],
)
def test_other_options_of_a_loader_are_refused(options, told, tmp_path):
    with pytest.raises(CheckpointError, match=rf"other data \({told}\)"):
        resumed(tmp_path, cd(), cd(), loader(), other=loader(**options))


def test_loader_that_was_used_resumes(tmp_path):
    """What a sampler counts during training, such as its epoch, makes it no other one."""
    used = loader(sampler=Epochs())
    quiet(cd(), used, steps=5, out=tmp_path)
    assert quiet(cd(), used, steps=6, out=tmp_path, resume=True).step == 6


def test_order_that_no_seed_gives_again_is_named(tmp_path):
    with pytest.warns(UserWarning, match="the sampler Counting of the DataLoader gives other rows at each draw"):
        assert resumed(tmp_path, cd(), cd(), loader(sampler=Counting()), other=loader(sampler=Counting())).step == 2


def test_dataset_that_draws_resumes(tmp_path):
    """Augmentations by the global generator are compared as functions of the seed."""
    assert resumed(tmp_path, cd(), cd(), Rows(data(), 0.1), other=Rows(data(), 0.1), num_workers=0).step == 2


def test_generators_of_its_own_are_named(tmp_path):
    """A generator whose state no checkpoint holds is named; its draws are not compared, which a resumed run says."""
    rows = [Rows(data(), 0.1, torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    named = pytest.warns(UserWarning, match=r"the data Rows holds a random generator of its own \(rng\)")
    with named, pytest.warns(UserWarning, match="the content of the data is not compared"):
        assert resumed(tmp_path, cd(), cd(), rows[0], other=rows[1]).step == 2


def test_numpy_generator_of_a_sampler_is_named(tmp_path):
    def drawing():
        sampler = Identity()
        sampler.rng = np.random.default_rng(0)
        return sampler

    with pytest.warns(UserWarning, match=r"the sampler Identity holds a random generator of its own \(rng\)"):
        quiet(cd(sampler=drawing), data(), steps=1, out=tmp_path)


class Flow(IterableDataset):
    def __iter__(self):
        return iter(data())


class OtherFlow(Flow):
    pass


def test_resuming_on_an_iterable_dataset_warns(tmp_path):
    """Its content is not compared, unless it was said to differ."""
    quiet(cd(), Flow(), steps=1, out=tmp_path)
    with pytest.warns(UserWarning, match="the content of the data is not compared"):
        quiet(cd(), Flow(), steps=2, out=tmp_path, resume=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet(cd(), Flow(), steps=3, out=tmp_path, resume=True, changed=["data"])


def test_other_iterable_dataset_is_refused(tmp_path):
    """An iterable data set is known by its class."""
    with pytest.raises(CheckpointError, match=r"other data \(class 'Flow', not 'OtherFlow'\)"):
        resumed(tmp_path, cd(), cd(), Flow(), other=OtherFlow())


def named(classes=("a", "c"), columns=("x", "y"), shift=1 / 3):
    """A data set whose values are always the same."""
    data_set = SimpleNamespace(
        train=data(), test=data(2), shape=(2,), state_space="continuous", n_classes=2, classes=classes
    )
    data_set.as_record = lambda: {"columns": list(columns), "shift": [shift]}
    return data_set


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"classes": ("a", "z")}, r"classes \['a', 'c'\], not \['a', 'z'\]"),
        ({"columns": ("x2", "y")}, r"columns \['x', 'y'\], not \['x2', 'y'\]"),
    ],
)
def test_other_names_of_classes_and_columns_are_refused(options, told, tmp_path):
    """Where the values are the same too; a rounding that another machine makes is no difference."""
    assert resumed(tmp_path, cd(), cd(), named(), other=named(shift=1 / 3 + 1e-16)).step == 2
    with pytest.raises(CheckpointError, match=rf"other data \({told}\)"):
        quiet(cd(), named(**options), steps=3, out=tmp_path, resume=True)


def test_long_description_is_a_digest():
    """A description of thousands of layers is recorded as its digest, as a checkpoint's record is of bounded size."""
    deep = nn.Sequential(*[nn.Linear(1, 1) for _ in range(2000)])
    assert list(describe(deep)) == ["parts"]
    other = describe(nn.Sequential(*deep[:-1], nn.SiLU()))
    assert describe(deep) != other
