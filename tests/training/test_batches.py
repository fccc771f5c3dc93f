"""Batches of examples in memory, of datasets and of loaders."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_runs import cd, data, quiet
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import ebmcore
from ebmcore.errors import UsageError
from ebmcore.testing import ExactGaussian, Identity, Quadratic
from ebmcore.training.batches import Reading
from ebmcore.training.opening import labelled_examples, open_examples
from ebmcore.training.order import StepBatches


def opened(given, loss=None, weights=None, **reading):
    return open_examples(given, cd() if loss is None else loss, Reading(batch_size=4, **reading), weights)


def drawn(given, n, start=0, **reading):
    """The examples of ``n`` batches."""
    return [batch.args[0] for batch in itertools.islice(opened(given, **reading).starting_at(start), n)]


class Rows(Dataset):
    """Ten examples, each its number twice."""

    def __len__(self):
        return 10

    def __getitem__(self, i):
        return torch.full((2,), float(i))


class Noisy(Rows):
    """What augmentations do: numbers of each library's global generator."""

    def __getitem__(self, i):
        return torch.stack([torch.rand(()) + i, torch.tensor(np.random.rand(), dtype=torch.float32)])


class Flow(IterableDataset):
    def __init__(self, n=10):
        self.n = n

    def __iter__(self):
        return (torch.full((2,), float(i)) for i in range(self.n))


def test_epochs_visit_each_example_once():
    """An epoch visits each example once and the next in another order."""
    order = StepBatches(100, 64, seed=0)
    steps = list(itertools.islice(order, 4))
    first, second = steps[0] + steps[1], steps[2] + steps[3]
    assert [len(s) for s in steps] == [64, 36, 64, 36]
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second


@pytest.mark.parametrize("start", [0, 1, 3, 5])
def test_batches_from_a_step_on(start):
    """Batches from a step on are those of the whole run."""
    whole = list(itertools.islice(StepBatches(100, 64, seed=3), 8))
    assert list(itertools.islice(StepBatches(100, 64, seed=3, start=start), 8 - start)) == whole[start:]


def test_ranks_share_an_epoch():
    parts = [list(itertools.chain(*itertools.islice(StepBatches(101, 16, seed=0, rank=r, world=3), 3))) for r in range(3)]
    assert [len(p) for p in parts] == [34, 34, 34]
    assert set(itertools.chain(*parts)) == set(range(101))


@pytest.mark.parametrize(
    "other", [Rows(), TensorDataset(torch.arange(10.0)[:, None].expand(10, 2)), np.arange(10.0)[:, None].repeat(2, 1)]
)
@pytest.mark.filterwarnings("ignore:the data are torch.float64")
def test_any_form_of_the_same_examples(other):
    """A tensor, a numpy array and a dataset of the same examples give the same batches."""
    plain = drawn(torch.arange(10.0)[:, None].expand(10, 2), 5)
    assert all(map(torch.equal, plain, drawn(other, 5)))


def loaders():
    rows = Rows()
    plain = torch.Generator()
    return {
        "in order": DataLoader(rows, batch_size=3),
        "shuffled": DataLoader(rows, batch_size=3, shuffle=True),
        "own generator": DataLoader(rows, batch_size=3, shuffle=True, generator=plain),
        "weighted": DataLoader(rows, batch_size=3, sampler=WeightedRandomSampler(torch.arange(10.0), 9)),
        "subset": DataLoader(rows, batch_size=3, sampler=SubsetRandomSampler([1, 5, 7, 8, 9]), drop_last=True),
        "iterable": DataLoader(Flow(), batch_size=3),
        "of batches": DataLoader(TensorDataset(torch.arange(60.0).view(5, 6, 2)), batch_size=None),
        "noisy": DataLoader(Noisy(), batch_size=3, shuffle=True),
    }


@pytest.mark.parametrize("name", loaders())
def test_loader_from_a_step_on(name):
    """Batches of a loader are a function of seed and number, so that a resumed run sees the same."""
    whole = drawn(loaders()[name], 9, seed=5)
    for start in (1, 4, 6):
        torch.manual_seed(start)
        np.random.seed(start)
        assert all(map(torch.equal, whole[start:], drawn(loaders()[name], 9 - start, start, seed=5)))


@pytest.mark.parametrize("name", ["shuffled", "own generator", "weighted", "noisy"])
def test_loader_draws_by_the_seed(name):
    one, other = drawn(loaders()[name], 6, seed=1), drawn(loaders()[name], 6, seed=2)
    assert not all(map(torch.equal, one, other))


def test_loader_keeps_its_sampler():
    """Examples of weight 0 are not drawn, a loader in order stays in order, and its batch size and drop_last are kept."""
    assert 0.0 not in torch.cat(drawn(loaders()["weighted"], 30))
    assert torch.cat(drawn(loaders()["in order"], 4))[:, 0].tolist() == list(range(10))
    assert [len(x) for x in drawn(loaders()["in order"], 4)] == [3, 3, 3, 1]
    assert [len(x) for x in drawn(loaders()["subset"], 4)] == [3, 3, 3, 3]


@pytest.mark.parametrize("name", ["in order", "shuffled", "iterable"])
def test_ranks_share_the_batches_of_a_loader(name):
    one = drawn(loaders()[name], 4)
    ranks = [drawn(loaders()[name], 2, rank=rank, world=2) for rank in range(2)]
    assert all(map(torch.equal, one, [ranks[0][0], ranks[1][0], ranks[0][1], ranks[1][1]]))


def test_workers_change_no_number():
    """What a data set draws at random is the same with two workers as with none, and again in another run."""
    none = drawn(Noisy(), 6)
    assert all(map(torch.equal, none, drawn(Noisy(), 6, num_workers=2)))
    assert not torch.equal(none[0], none[3])
    assert len(torch.cat(none[:3])[:, 1].unique()) == 10  # an epoch of examples without a repeated number


def test_making_batches_leaves_global_generators_alone():
    for given in (data(), Noisy(), loaders()["shuffled"], loaders()["iterable"], loaders()["own generator"]):
        before, of_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
        drawn(given, 5)
        assert torch.equal(before, torch.get_rng_state())
        assert (of_numpy == np.random.get_state()[1]).all()


def test_iterable_data_start_again():
    assert torch.cat(drawn(Flow(), 6))[:, 0].tolist() == [*range(10), *range(10)]


def test_iterable_data_that_end_are_refused():
    class Once(IterableDataset):
        left = iter(torch.ones(8, 2))

        def __iter__(self):
            return self.left

    with pytest.raises(UsageError, match="must give its examples again when it is iterated again"):
        drawn(Once(), 3)


def test_iterable_data_have_no_epochs():
    with pytest.raises(UsageError, match="give the length of training as steps"):
        quiet(cd(), Flow(), epochs=1)
    assert quiet(cd(), Flow(), steps=3).step == 3


def test_loader_trains_with_its_batch_size(tmp_path):
    result = quiet(cd(), DataLoader(Rows(), batch_size=5), epochs=3, batch_size=None)
    assert result.step == 6
    for given in (16, 64):
        with pytest.raises(UsageError, match=f"batch_size={given}, but the DataLoader has batches of 5"):
            quiet(cd(), DataLoader(Rows(), batch_size=5), epochs=3, batch_size=given)


@pytest.mark.parametrize(
    ("item", "positions", "names"),
    [
        (lambda x, y: x, 1, set()),
        (lambda x, y: (x, y), 2, set()),
        (lambda x, y: (x, {"y": y}), 1, {"y"}),
        (lambda x, y: {"x": x, "y": y}, 1, {"y"}),
        (lambda x, y: [x, y], 2, set()),
    ],
)
def test_items_of_all_forms(item, positions, names):
    items = [item(torch.zeros(2), torch.tensor(i)) for i in range(6)]

    class Items(Rows):
        def __len__(self):
            return 6

        def __getitem__(self, i):
            return items[i]

    class Taking(Quadratic):
        def forward(self, x, *args, **kwargs):
            return super().forward(x)

    batch = next(opened(Items(), ebmcore.create_loss("cd", Taking((2,)), Identity())).starting_at(0))
    assert len(batch.args) == positions
    assert batch.named.keys() == names
    assert batch.args[0].shape == (4, 2)


@pytest.mark.parametrize(
    ("item", "told"),
    [
        ({"image": torch.zeros(2), "label": 1}, "must hold the example as 'x', but holds image, label: rename it"),
        ("text", "but holds a str"),
        ((torch.zeros(2), "text"), "but holds a tuple|but holds a list"),
    ],
)
def test_items_of_other_forms_are_refused(item, told):
    class Items(Rows):
        def __getitem__(self, i):
            return item

    with pytest.raises(UsageError, match=told):
        quiet(cd(), Items(), steps=1)


@pytest.mark.parametrize("given", [3, "text", [1.0], {"x": 1}, None, len, object(), torch.zeros(4), torch.tensor(1.0)])
def test_no_data_are_refused(given):
    with pytest.raises(UsageError, match="^data must be a tensor"):
        quiet(cd(), given, steps=1)


@pytest.mark.parametrize("given", [torch.zeros(0, 2), np.zeros((0, 2)), TensorDataset(torch.zeros(0, 2))])
def test_empty_data_are_refused(given):
    with pytest.raises(UsageError, match="^data must hold at least one example"):
        quiet(cd(), given, steps=1)


def test_faults_within_items_name_the_batch():
    class Holed(Rows):
        def __getitem__(self, i):
            return torch.tensor([1.0, torch.nan if i == 7 else 0.0])

    with pytest.raises(UsageError, match=r"^the data of batch \d hold 1 NaN and 0 infinite values, in 1 of \d examples"):
        quiet(cd(), Holed(), steps=5, batch_size=2)


def test_description_covers_examples_labels_and_weights():
    """Examples that differ in anything have another description."""
    x, y, w = data(10), torch.arange(10), torch.rand(10)
    tables = [
        opened(TensorDataset(x, y), labelled_loss()),
        opened(TensorDataset(x, y.flip(0)), labelled_loss()),
        opened(TensorDataset(x.flip(0), y), labelled_loss()),
        opened(x),
        opened(x, weights=w),
        opened(x, weights=w.flip(0)),
        opened(x[:9]),
    ]
    described = [table.description()["digest"] for table in tables]
    assert len(set(described)) == len(described)
    assert opened(x.clone()).description() == opened(x).description()


class Labelled(Quadratic):
    def forward(self, x, label):
        return super().forward(x - label[:, None])


def labelled_loss():
    return ebmcore.create_loss("cd", Labelled((2,)), Identity())


def test_labels_of_a_dataset_within_a_data_set():
    """A data set component may keep its examples and labels as a torch Dataset."""
    both = TensorDataset(torch.randn(20, 2), torch.arange(20) % 3)
    source = SimpleNamespace(train=both, test=both, shape=(2,), state_space="continuous")
    batch = next(opened(source, labelled_loss()).starting_at(0))
    rows = [int((both.tensors[0] == x).all(1).nonzero()) for x in batch.args[0]]
    assert torch.equal(batch.args[1], both.tensors[1][rows])


def test_weights_reach_the_loss():
    """Training with weights has the gradient of the weighted mean, of negatives that start at the data too."""
    x, w = torch.randn(16, 2), torch.rand(16)
    energy = Quadratic((2,))
    weighted, plain = Seen(Quadratic((2,)), Identity()), Seen(energy, Identity())
    quiet(weighted, x, weights=w, steps=1, batch_size=16)
    (seen,) = weighted.seen
    order = [int((x == row).all(1).nonzero()) for row in weighted.rows[0]]
    assert torch.allclose(seen, (w / w.mean())[order])
    quiet(plain, x, steps=1, batch_size=16)
    assert plain.seen == [None]
    assert weighted.data_weights is None


class Seen(ebmcore.BaseContrastiveDivergence):
    """Keeps the weights that a call sees."""

    def __init__(self, *args):
        super().__init__(*args)
        self.seen, self.rows = [], []

    def forward(self, x):
        self.seen.append(self.data_weights)
        self.rows.append(x)
        pred_x = self.draw_negatives(x)
        return self.compute_loss(x, pred_x), pred_x

    def compute_loss(self, x, pred_x):
        return self.energy_gap(x, pred_x)


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        (torch.ones(9), "one number for each of 10 examples"),
        (torch.ones(10, 1), "one number for each of 10 examples"),
        (-torch.ones(10), "at least 0"),
        (torch.zeros(10), "not all 0"),
        (torch.full((10,), torch.nan), "must be finite"),
    ],
)
def test_senseless_weights_are_refused(weights, told):
    with pytest.raises(UsageError, match=f"^weights.*{told}"):
        quiet(cd(), data(10), weights=weights, steps=1)


def test_loss_without_weights_refuses_them():
    class Mean(ebmcore.BaseLoss):
        def __init__(self):
            super().__init__()
            self.energy = Quadratic((2,))

        def forward(self, x):
            return self.energies(x).mean()

    with pytest.raises(UsageError, match="the loss Mean takes no weights of examples"):
        quiet(Mean(), data(10), weights=torch.ones(10), steps=1)


def test_weights_of_a_dataset_are_refused():
    with pytest.raises(UsageError, match="weights of examples need examples in memory"):
        quiet(cd(), Rows(), weights=torch.ones(10), steps=1)


def test_weighted_examples_are_those_repeated():
    """CD with the weights 2, 1 has the gradient of the first example given twice."""
    x = torch.tensor([[1.0, -2.0], [0.5, 3.0]])

    def gap(x, weights):
        loss = ebmcore.create_loss("cd", Quadratic((2,)), ExactGaussian())
        loss.data_weights = None if weights is None else weights / weights.mean()
        pred_x = x + 1
        loss.compute_loss(x, pred_x).backward()
        return loss.energy.precision.grad

    twice = gap(x[[0, 0, 1]], None)
    assert torch.allclose(gap(x, torch.tensor([2.0, 1.0])), twice)
    assert not torch.allclose(gap(x, None), twice)


class Columns:
    """What the library `datasets` gives: rows as mappings, in the format that is set; without one, of Python's numbers."""

    column_names = ("x", "label", "note")

    def __init__(self, x, labels, kind=None, columns=("x", "label")):
        self.x, self.labels, self.format = x, labels, {"type": kind, "columns": columns}

    def with_format(self, kind, columns=("x", "label")):
        return Columns(self.x, self.labels, kind, columns)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        item = {"x": self.x[row], "label": self.labels[row], "note": "text"}
        if self.format["type"] in (None, "pandas"):
            item["x"], item["label"] = self.x[row].tolist(), self.labels[row].item()
        if self.format["type"] == "numpy":
            item["x"] = self.x[row].numpy()
        if self.format["type"] == "custom":
            item["x"] = 2 * self.x[row]
        return {name: value for name, value in item.items() if name in self.format["columns"]}


@pytest.mark.parametrize("kind", [None, "pandas", "numpy", "torch", "custom"])
@pytest.mark.parametrize("form", [lambda given: given, lambda given: DataLoader(given, batch_size=4, shuffle=True)])
def test_formats_of_a_table_are_kept_or_made_tensors(kind, form):
    """A format of arrays, or a transform, stays as it is; the columns that are chosen stay in each."""
    x = data(20)
    given = Columns(x, torch.arange(20), kind, ["x"] if kind else ("x", "label"))
    batch = next(opened(form(given), labelled_by_name()).starting_at(0))
    assert set(batch.named) == (set() if kind else {"label"})
    rows = batch.args[0] / (2 if kind == "custom" else 1)
    assert all((x == row).all(1).any() for row in rows)


def test_text_column_is_named():
    given = Columns(data(20), torch.arange(20), "torch", ["x", "note"])
    with pytest.raises(UsageError, match="but holds a list at 'note': leave it out"):
        quiet(labelled_by_name(), given, steps=1)


@pytest.mark.parametrize("collate", [np.stack, lambda rows: (np.stack(rows),), lambda rows: {"x": np.stack(rows)}])
def test_arrays_of_a_collate_function_are_taken(collate):
    loader = DataLoader(Rows(), batch_size=5, collate_fn=lambda rows: collate([row.numpy() for row in rows]))
    assert torch.cat(drawn(loader, 2))[:, 1].tolist() == list(range(10))


@pytest.mark.parametrize("item", [lambda i: torch.zeros(i + 1), lambda i: None, lambda i: object()])
def test_items_that_make_no_batch_are_one_line(item):
    class Items(Rows):
        def __getitem__(self, i):
            return item(i)

    with pytest.raises(
        UsageError, match="^items of a data set must be tensors, arrays or numbers, all of one shape"
    ) as caught:
        quiet(cd(), Items(), steps=1)
    assert "\n" not in str(caught.value)


class Pairs(Rows):
    """The ten examples with a label each, by place or by name."""

    def __init__(self, by_name=False):
        self.by_name = by_name

    def __getitem__(self, i):
        return {"x": super().__getitem__(i), "label": i} if self.by_name else (super().__getitem__(i), i)


class LabelledFlow(IterableDataset):
    def __iter__(self):
        return iter([Pairs()[i] for i in range(10)])


LABELLED = {
    "tensors": lambda: TensorDataset(data(10), torch.arange(10)),
    "loader": lambda: DataLoader(TensorDataset(data(10), torch.arange(10)), batch_size=4),
    "subset": lambda: Subset(TensorDataset(data(10), torch.arange(10)), range(6)),
    "pairs": Pairs,
    "mappings": lambda: Pairs(by_name=True),
    "flow": LabelledFlow,
}


@pytest.mark.parametrize("form", LABELLED)
def test_unconditional_energy_sees_no_label(form):
    """In any form of the data, as with labels of a data set."""
    loss = ebmcore.create_loss("cd", Quadratic((2,)), Identity())
    batch = next(opened(LABELLED[form](), loss).starting_at(0))
    assert (len(batch.args), batch.named) == (1, {})
    assert quiet(loss, LABELLED[form](), steps=1, batch_size=4).step == 1


@pytest.mark.parametrize("form", ["mappings", "named"])
def test_label_of_another_name_is_no_other_energy(form):
    """An energy that may take a condition is not trained without it because the data name it otherwise."""

    class Maybe(Quadratic):
        def forward(self, x, y=None):
            return super().forward(x)

    given = SimpleNamespace(train=data(10), train_labels={"label": torch.arange(10)}, test=data(10), shape=(2,))
    given.state_space = "continuous"
    given = Pairs(by_name=True) if form == "mappings" else given
    with pytest.raises(UsageError, match="energy Maybe cannot take examples .* unexpected keyword argument 'label'"):
        quiet(ebmcore.create_loss("cd", Maybe((2,)), Identity()), given, steps=1, batch_size=4)


def test_loss_that_needs_labels_asks_for_them(tmp_path):
    """In one line before the first step, on data without labels."""

    class Hybrid(type(cd())):
        labels = "targets"

        def forward(self, x, y):
            return super().forward(x)

    loss, out = Hybrid(Quadratic((2,)), Identity()), tmp_path / "run"
    with pytest.raises(UsageError, match=r"^the loss Hybrid takes labels .* \(missing a required argument: 'y'\)"):
        quiet(loss, data(10), steps=1, out=out)
    assert not out.exists()
    assert quiet(loss, TensorDataset(data(10), torch.arange(10)), steps=1).step == 1


def labelled_by_name():
    class Named(Quadratic):
        def forward(self, x, *, label):
            return super().forward(x - label[:, None])

    return ebmcore.create_loss("cd", Named((2,)), Identity())


def test_columns_of_a_table_are_named_conditions():
    """A column x holds the examples, and the others are conditions by name."""
    loss = labelled_by_name()
    given = Columns(data(20), torch.arange(20) % 3)
    batch = next(opened(given, loss).starting_at(0))
    rows = [int((given.x == x).all(1).nonzero()) for x in batch.args[0]]
    assert torch.equal(batch.named["label"], given.labels[rows])
    assert quiet(loss, given, steps=2).step == 2


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("name", ["cd", "pcd"])
def test_weighted_gradient_is_that_of_all_examples(name, size):
    """The mean over batches of any size is the gradient on all examples: a weight counts as much in a batch of one."""
    x, w = torch.randn(10, 2), torch.rand(10) * torch.arange(10).remainder(3)

    def gradient(rows):
        options = {"n_chains": 10} if name == "pcd" else {}
        loss = ebmcore.create_loss(name, Quadratic((2,)), Identity(), **options)
        loss.data_weights = (w / w.mean())[rows]
        loss.compute_loss(x[rows], (x + 1)[rows] if name == "cd" else torch.ones(size, 2)).backward()
        return loss.energy.precision.grad

    parts = [gradient(rows) for rows in torch.arange(10).split(size)]
    assert torch.allclose(torch.stack(parts).mean(), gradient(torch.arange(10)), rtol=1e-4)


def test_batches_of_weight_zero_train():
    """Few examples may have all the weight; a batch without any of them changes nothing."""
    weights = torch.tensor([1.0] * 4 + [0.0] * 36)
    assert quiet(cd(), data(40), weights=weights, epochs=2, batch_size=4).step == 20


def test_later_fit_of_other_batches_begins_a_pass():
    """With another size of batches each example is visited once in a pass again."""
    loss = Seen(Quadratic((2,)), Identity())
    quiet(loss, data(40), epochs=1, batch_size=16)
    loss.rows.clear()
    quiet(loss, data(40), epochs=1, batch_size=4)
    assert len(torch.cat(loss.rows).unique(dim=0)) == 40


@pytest.mark.filterwarnings("ignore:training changes")
def test_later_fit_of_other_batches_resumes_where_it_was(tmp_path):
    """With checkpoints such a run begins a pass too, also when it is resumed."""
    whole, stopped, resumed = (Seen(Quadratic((2,)), Identity()) for _ in range(3))
    for loss in (whole, stopped, resumed):
        quiet(loss, data(40), steps=2, batch_size=16)
        loss.rows.clear()
    quiet(whole, data(40), steps=10, batch_size=4, out=tmp_path / "whole")
    quiet(stopped, data(40), steps=6, batch_size=4, out=tmp_path / "run")
    fresh = Seen(Quadratic((2,)), Identity())
    quiet(fresh, data(40), steps=10, batch_size=4, out=tmp_path / "run", resume=True)
    assert len(torch.cat(whole.rows).unique(dim=0)) == 40
    assert torch.equal(torch.cat(stopped.rows + fresh.rows), torch.cat(whole.rows))


def test_loader_of_its_own_way_is_iterated():
    """A loader that changes its batches, on the way to a device for example, gives what it gives."""

    class Doubling(DataLoader):
        def __iter__(self):
            return (2 * batch for batch in super().__iter__())

    assert torch.cat(drawn(Doubling(Rows(), batch_size=5), 2))[:, 0].tolist() == [2 * i for i in range(10)]


def test_sampler_is_told_the_epoch():
    class Counting(torch.utils.data.Sampler):
        epoch = 0

        def __len__(self):
            return 10

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __iter__(self):
            return iter([(i + self.epoch) % 10 for i in range(10)])

    firsts = [x[0, 0].item() for x in drawn(DataLoader(Rows(), batch_size=10, sampler=Counting()), 3)]
    assert firsts == [0, 1, 2]


def test_workers_beside_a_loader_are_refused():
    with pytest.raises(UsageError, match="num_workers is for a Dataset"):
        quiet(cd(), DataLoader(Rows(), batch_size=5), steps=1, num_workers=2, batch_size=5)


@pytest.mark.parametrize("form", ["table", "items"])
def test_conditions_are_looked_at(form):
    """NaN in a condition is a fault of the data; whole numbers of any type become those of embeddings."""
    conditions = torch.zeros(20)
    conditions[3] = torch.nan
    both = TensorDataset(data(20), conditions)
    given = both if form == "table" else torch.utils.data.Subset(both, range(20))
    with pytest.raises(UsageError, match="^the labels.* hold 1 NaN"):
        quiet(labelled_loss(), given, steps=5)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        both = TensorDataset(data(20), (torch.arange(20) % 3).to(dtype))
        batch = next(opened(both, labelled_loss()).starting_at(0))
        assert batch.args[1].dtype == torch.int64


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (np.ma.masked_array(np.zeros((4, 2)), mask=np.eye(4, 2)), "must not be a masked array"),
        (np.array([["a", "b"]]), "must be numbers that torch has"),
        (np.zeros((4, 2), dtype=np.longdouble), "must be numbers that torch has"),
    ],
)
def test_strange_arrays_are_refused(given, told):
    with pytest.raises(UsageError, match=f"^data {told}"):
        quiet(cd(), given, steps=1)


@pytest.mark.filterwarnings("ignore:the data are")
@pytest.mark.parametrize(
    "change", [lambda x: x.astype(">f4"), lambda x: np.asfortranarray(x), lambda x: x[::-1, ::-1], lambda x: x.astype("u2")]
)
def test_arrays_of_any_layout_are_taken(change):
    x = np.arange(20.0).reshape(10, 2)
    table = opened(change(x))
    assert np.array_equal(table.x.numpy(), change(x).astype(np.float32))


def test_digest_covers_a_dataset_within_a_loader():
    x = data(10)
    one, other = (opened(DataLoader(TensorDataset(t), batch_size=5)).description() for t in (x, x.flip(0)))
    shuffled = opened(DataLoader(TensorDataset(x), batch_size=5, shuffle=True)).description()
    assert len({str(one), str(other), str(shuffled)}) == 3


class ByLabel(Quadratic):
    def forward(self, x, y):
        return super().forward(x) + y


@pytest.mark.parametrize(
    ("energy", "expected"),
    [(Quadratic((2,)), {}), (ByLabel((2,)), {"0": [0, 1, 2]}), (ByLabel((2,)).double(), {"0": [0, 1, 2]})],
)
def test_metrics_get_the_labels_an_energy_takes(energy, expected):
    """With examples of its own number type, and weights of mean 1."""
    labels, weights = torch.arange(3, dtype=torch.uint8), torch.tensor([0.0, 1.0, 2.0])
    found = labelled_examples(energy, SimpleNamespace(test=data(3), test_labels=labels, test_weights=weights * 5), "test")
    assert {name: t.tolist() for name, t in found.conditions.items()} == expected
    assert torch.equal(found.weights, weights)
    assert found.x.dtype == energy.precision.dtype


def test_labels_that_an_energy_needs_are_asked_for():
    with pytest.raises(UsageError, match="ByLabel takes conditions .* the train data have no labels"):
        labelled_examples(ByLabel((2,)), SimpleNamespace(train=data(3)))
