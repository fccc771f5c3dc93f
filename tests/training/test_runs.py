"""Trained runs, loaded from their directories."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import MOONS, ebmcore, forge, same, tensors, train
from torch import nn

import ebmcore as kernel
from ebmcore import load_run
from ebmcore.errors import CheckpointError, UsageError
from ebmcore.training import read_checkpoint
from ebmcore.training.examples import TrainingExamples


class FromFile:
    """Examples in a .npy file; the training half has labels 0 or 1."""

    state_space = "continuous"

    def __init__(self, path: str) -> None:
        self.train = torch.from_numpy(np.load(path))
        self.test, self.shape = self.train[:2], tuple(self.train.shape[1:])
        self.train_labels = (self.train[:, 0] > 0).long()
        self.n_classes = 2


class OfArrays(FromFile):
    """The same, in arrays of numpy."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.train, self.test, self.train_labels = self.train.numpy(), self.test.numpy(), self.train_labels.numpy()


class Shifted(nn.Module):
    """``E(x, y) = ||x - y||^2 / 2``: the samples of label y are around y."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x, y):
        return 0.5 * (x - 5 * y.view(-1, *[1] * (x.ndim - 1))).flatten(1).square().sum(1) + self.bias


class Plugin:
    @kernel.hookimpl
    def ebmcore_register(self, register):
        register.dataset("from-file", FromFile)
        register.dataset("of-arrays", OfArrays)
        register.energy("shifted", Shifted)


@pytest.fixture(scope="module", autouse=True)
def plugin():
    with kernel.temporary_plugin(Plugin()):
        yield


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "averaged"
    options = "--loss pcd --loss.n_chains 20 --steps 10 --checkpoint_every 5 --ema_decay 0.9 --progress false"
    assert train(f"{MOONS} {options}", out) == 0
    return out


def file_of(path, seed=0):
    np.save(path, np.random.default_rng(seed).normal(size=(30, 2)).astype(np.float32))
    return path


ON_FILE = "--energy mlp --energy.hidden [4] --sampler langevin --sampler.step_size 0.01 --loss pcd --loss.n_chains 10"


@pytest.fixture
def moved(tmp_path):
    """A run on a file, whose file is gone."""
    data = file_of(tmp_path / "data.npy")
    options = f"{ON_FILE} --loss.initial data --steps 4 --progress false --data from-file --data.path {data}"
    assert train(options, tmp_path / "here") == 0
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here").rename(tmp_path / "elsewhere/run")
    data.unlink()
    return tmp_path / "elsewhere/run"


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditional")
    data = file_of(folder / "data.npy")
    sampler = "--sampler langevin --sampler.step_size 0.1"
    options = f"--energy shifted {sampler} --loss cd --steps 2 --progress false --data from-file --data.path {data}"
    assert train(options, folder / "run") == 0
    return folder / "run"


def test_energy_is_the_moving_average(averaged):
    """In evaluation mode; the loss has the energy that was trained."""
    run, saved = load_run(averaged), tensors(averaged)
    assert same(run.energy.state_dict(), {n: saved[f"average.module.{n}"] for n in run.energy.state_dict()})
    assert same(run.loss.energy.state_dict(), {n: saved[f"loss.energy.{n}"] for n in run.energy.state_dict()})
    assert not any(module.training for module in run.energy.modules())


def test_loss_has_its_chains(averaged):
    run, saved = load_run(str(averaged)), tensors(averaged)
    assert torch.equal(run.loss.chain, saved["loss.chains.x"])
    assert torch.equal(run.loss.chains.ages, saved["loss.chains.age"])
    assert run.loss.step == run.step == 10
    assert run.sampler is run.loss.sampler


def test_checkpoint_is_chosen_by_step(averaged):
    assert load_run(averaged, checkpoint=5).step == 5
    with pytest.raises(CheckpointError, match="no checkpoint of step 7: it has those of step 5, 10"):
        load_run(averaged, checkpoint=7)
    with pytest.raises(UsageError, match="checkpoint must be a whole number, got '5'"):
        load_run(averaged, checkpoint="5")


def test_score_is_minus_the_energy(averaged):
    """For each example, however they are cut into batches."""
    run, x = load_run(averaged), torch.randn(7, 2)
    with torch.no_grad():
        wanted = -run.energy(x)
    torch.testing.assert_close(run.score(x), wanted)
    torch.testing.assert_close(run.score(x.double().numpy(), batch_size=3), wanted)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 4), r"of shape \(N, 2\)"),
        (torch.zeros(0, 2), "at least one"),
        (torch.tensor([[0.0, 0.0], [torch.nan, 0.0]]), "hold 1 NaN and 0 infinite values, in 1 of 2 examples"),
    ],
)
def test_other_examples_are_not_scored(averaged, x, message):
    with pytest.raises(UsageError, match=message):
        load_run(averaged).score(x)


def test_values_on_another_scale_are_said(averaged):
    run = load_run(averaged)
    with pytest.warns(UserWarning, match="1 of 2 examples are far outside of the training examples' range"):
        run.score(torch.tensor([[0.0, 0.0], [100.0, 0.0]]))


def test_grey_pixels_are_not_scored_as_bits(tmp_path):
    rbm = "--energy rbm --energy.hidden 2 --sampler gibbs --data bars-and-stripes --data.side 2 --progress false"
    assert train(f"{rbm} --loss cd --steps 1", tmp_path / "run") == 0
    with pytest.raises(UsageError, match=r"values are in \[0, 1\], but go from 255 to 255"):
        load_run(tmp_path / "run").score(torch.full((1, 1, 2, 2), 255.0))


def test_samples_repeat_by_seed(averaged):
    run = load_run(averaged)
    assert torch.equal(run.sample(5, 3, seed=1), run.sample(5, 3, seed=1))
    assert not torch.equal(run.sample(5, 3, seed=1), run.sample(5, 3, seed=2))
    generator = torch.Generator().manual_seed(3)
    assert not torch.equal(run.sample(5, 3, generator=generator), run.sample(5, 3, generator=generator))


@pytest.mark.parametrize(("n", "steps"), [(0, 5), (5, 0), (2.5, 5)])
def test_sizes_of_samples_are_checked(averaged, n, steps):
    with pytest.raises(UsageError, match=r"^(n|steps) must be"):
        load_run(averaged).sample(n, steps)


def test_run_is_used_without_its_data(moved, tmp_path):
    """On another machine: sampled, scored and exported, also where chains started at data."""
    run = load_run(moved)
    assert run.sample(3, 2).shape == (3, 2)
    assert run.score(torch.zeros(3, 2)).shape == (3,)
    assert ebmcore(f"sample {moved} -n 3 --steps 2 --out", tmp_path / "a.png") == 0
    np.save(tmp_path / "x.npy", np.zeros((3, 2), dtype=np.float32))
    assert ebmcore(f"score {moved} {tmp_path / 'x.npy'} --out", tmp_path / "scores.csv") == 0
    for out in ("a.safetensors", "a.pt", "a"):
        assert ebmcore(f"export {moved} --out", tmp_path / out) == 0


def test_chains_started_at_data_go_on(moved):
    """Without data, samples start at the persistent chains."""
    run = load_run(moved)
    start = run.sample(10, 1, sampler=kernel.testing.Identity())
    assert torch.equal(start, run.loss.chain)


@pytest.mark.filterwarnings("ignore:.*rim of the grid")
def test_arrays_of_a_data_set_are_measured(tmp_path):
    """Metrics get tensors of the test data, as they need."""
    data = file_of(tmp_path / "data.npy")
    command = f"{ON_FILE} --steps 2 --progress false --data of-arrays --data.path {data} --metric grid-ll"
    assert train(command, tmp_path / "run") == 0
    assert "grid-ll" in (tmp_path / "run/evaluation.json").read_text()


def test_missing_data_are_named_when_used(moved):
    with pytest.raises((UsageError, OSError), match=r"data\.npy"):
        _ = load_run(moved).data


def test_run_resumes_where_its_data_are_now(moved, tmp_path):
    """By their new path, which further runs find in the configuration."""
    data = file_of(tmp_path / "moved.npy")
    assert ebmcore(f"train --resume {moved} --steps 6 --data.path", data) == 0
    run = load_run(moved)
    assert run.step == 6
    assert run.config["data"]["path"] == str(data)
    assert torch.equal(run.data.train, torch.from_numpy(np.load(data)))


def test_other_data_are_refused(moved, tmp_path, capsys):
    before = (moved / "config.yaml").read_text()
    assert ebmcore(f"train --resume {moved} --steps 6 --data.path", file_of(tmp_path / "other.npy", seed=1)) == 2
    assert "is of a run on other data: " in capsys.readouterr().err
    assert (moved / "config.yaml").read_text() == before


def test_other_data_in_python_are_refused(moved, tmp_path):
    file_of(tmp_path / "data.npy", seed=1)  # another file of that name
    with pytest.raises(CheckpointError, match="other data: use the same"):
        _ = load_run(moved).data


def test_changed_configuration_is_named(moved):
    """The advice is about the file that was changed, whatever the run is loaded for."""
    file = moved / "config.yaml"
    file.write_text(file.read_text().replace("seed: 0", "seed: 7"))
    with pytest.raises(CheckpointError, match=r"seed=0, not 7: give its config\.yaml that one"):
        load_run(moved)


def test_conditions_are_taken_in_turn(conditional):
    """Samples of ``N(5 y, 1)`` lie around 5 y."""
    x = load_run(conditional).sample(200, 100, conditions=[0, 1])
    assert abs(x[0::2].mean()) < 0.3
    assert abs(x[1::2].mean() - 5) < 0.3


def test_score_takes_conditions(conditional):
    run, x = load_run(conditional), torch.tensor([[0.0, 0.0], [5.0, 5.0]])
    bias = run.energy.bias.item()
    torch.testing.assert_close(run.score(x, [0, 1]), torch.tensor([-bias, -bias]))
    torch.testing.assert_close(run.score(x, 1), torch.tensor([-25.0 - bias, -bias]))
    torch.testing.assert_close(run.score(x, {"0": torch.tensor([0, 1])}), torch.tensor([-bias, -bias]))
    with pytest.raises(UsageError, match="one row, or one for each of 2 examples, not 3"):
        run.score(x, [0, 1, 1])


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        (None, r"Shifted needs conditions \(y\)"),
        ([2], "from 0 to 1, the classes of the run"),
        ([], "is empty"),
        ({"z": torch.zeros(1)}, r"Shifted needs conditions \(y\)"),
    ],
)
def test_wrong_conditions_are_one_line(conditional, conditions, message):
    with pytest.raises(UsageError, match=message):
        load_run(conditional).sample(2, 1, conditions=conditions)


def with_classes(path, *classes):
    run = load_run(path)
    return replace(run, examples=replace(run.examples, n_classes=len(classes), classes=classes))


@pytest.mark.parametrize(
    ("classes", "given", "numbers"),
    [
        (("cat", "dog"), "dog", [1]),
        (("cat", "dog"), ["dog", "cat"], [1, 0]),
        (("cat", "dog"), ["1", 0], [1, 0]),
        (("cat", "dog"), np.array(["dog"]), [1]),
        (("cat", "dog"), {"0": ("dog", "cat")}, [1, 0]),
        ((1, 0), 1, [0]),
        ((1, 0), [1.0], [1]),
        ((1, 0), torch.tensor([1]), [1]),
        ((1, 0), np.array([1]), [1]),
        (("01", "1"), "1", [1]),
        ((3, 7), [7], [1]),
        ((3, 7), [1], [1]),
    ],
)
def test_classes_have_names(conditional, classes, given, numbers):
    """A name wins over a number; tensors and arrays hold class numbers."""
    found = with_classes(conditional, *classes).conditions(given)
    assert {name: t.tolist() for name, t in found.items()} == {"0": numbers}


@pytest.mark.parametrize(
    ("classes", "given", "message"),
    [
        (("cat", "dog"), "cow", "^give classes of the run, which has cat, dog: got cow$"),
        (("cat", "dog"), ["cat", 1], "^'1' is no class of the run, which has cat, dog$"),
        ((3, 7), [3, 0], "^'0' is no class of the run, which has 3, 7$"),
        ((3, 7), 2, "from 0 to 1, the classes of the run"),
        (("cat", "dog"), 0.5, "in whole numbers"),
        (tuple(map(str, range(20))), "x", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 10 more"),
    ],
)
def test_unknown_classes_are_one_line(conditional, classes, given, message):
    with pytest.raises(UsageError, match=message):
        with_classes(conditional, *classes).conditions(given)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint64", "int8", "int32", "float16", "float64", "bool", ">i4"])
def test_labels_of_any_type_are_class_numbers(conditional, dtype):
    run, x = load_run(conditional), torch.tensor([[0.0, 0.0], [5.0, 5.0]])
    labels = np.array([0, 1]).astype(dtype)
    assert torch.equal(run.score(x, labels), run.score(x, [0, 1]))
    assert torch.equal(run.sample(2, 1, conditions=labels), run.sample(2, 1, conditions=[0, 1]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[0, 1, 1]], r"cannot take the condition '0' of shape \(2, 3\) \(torch.int64\): "),
        ([[0], [0, 1]], "must be numbers"),
        (float("nan"), "1 NaN"),
        (torch.tensor([0.0, 1.5]), "in whole numbers"),
        (torch.tensor([1j]), "in whole numbers"),
    ],
)
def test_conditions_that_fit_no_energy_are_one_line(conditional, given, message):
    run = load_run(conditional)
    for use in (lambda: run.sample(2, 1, conditions=given), lambda: run.score(torch.zeros(2, 2), given)):
        with pytest.raises(UsageError, match=message) as caught:
            use()
        assert "\n" not in str(caught.value)


def test_unconditional_energy_takes_no_conditions(averaged):
    with pytest.raises(UsageError, match="takes no such conditions"):
        load_run(averaged).sample(2, 1, conditions=1)


def test_run_of_python_is_named(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UsageError, match="was trained from Python"):
        load_run(tmp_path)


def test_examples_are_recorded(averaged):
    run = load_run(averaged)
    info = json.loads((averaged / "checkpoints/step-00000010/checkpoint.json").read_text())
    assert info["examples"] == run.examples.as_json()
    assert run.examples.shape == (2,)
    assert run.examples.low == run.data.train.min()
    assert run.examples.high == run.data.train.max()


@pytest.mark.parametrize(
    "change",
    [{"shape": None}, {"shape": [-1]}, {"shape": [True]}, {"state_space": "grey"}, {"low": "0"}, {"high": None},
     {"n_classes": 2.5}, {"low": float("inf")}, {"classes": "ab"}, {"classes": ["a"]}, {"classes": ["a", "a"]},
     {"classes": ["a", None]}, {"record": []}],
)  # fmt: skip
def test_forged_examples_are_refused(change, tmp_path):
    right = TrainingExamples((2,), "binary", 0.0, 1.0, 2, ("a", 1), {"key": None}).as_json()
    assert TrainingExamples.from_json(right, tmp_path).as_json() == right
    with pytest.raises(CheckpointError, match="does not say what the examples"):
        TrainingExamples.from_json(right | change, tmp_path)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({}, (("a", 7), {"b": [1.5]})),
        ({"classes": ["a", "b", "c"]}, (None, {"b": [1.5]})),
        ({"classes": ["a", object()]}, (None, {"b": [1.5]})),
        ({"classes": ["a", "b" * 2**18]}, (None, {"b": [1.5]})),
        ({"as_record": lambda: {"b": "c" * 2**18}}, (("a", 7), None)),
    ],
)
def test_names_and_record_are_kept_within_limits(change, kept):
    """Names that are none, and more than a checkpoint may hold, are left out."""
    known = {"n_classes": 2, "classes": ["a", 7], "as_record": lambda: {"b": (1.5,)}}
    found = TrainingExamples.of(SimpleNamespace(**known | change), torch.zeros(1, 2))
    assert (found.classes, found.record) == kept


def test_earlier_checkpoints_ask_the_data(averaged, tmp_path):
    """Those written before they held the examples."""
    copy = tmp_path / "run"
    shutil.copytree(averaged, copy)
    forge(copy / "checkpoints/step-00000010", lambda info: info.pop("examples") and None)
    assert load_run(copy).examples == load_run(averaged).examples


def test_run_in_double_precision_keeps_its_digits(tmp_path):
    """Its energy is loaded in float64: the scores are those of the weights in the checkpoint."""
    mlp = "--energy mlp --energy.hidden [4] --sampler langevin --sampler.step_size 0.05 --data two-moons --progress false"
    assert train(f"{mlp} --loss pcd --steps 3 --precision 64-true --ema_decay 0.5", tmp_path / "run") == 0
    run = load_run(tmp_path / "run")
    stored, _ = read_checkpoint(run.checkpoint)
    for name, tensor in run.energy.state_dict().items():
        assert torch.equal(tensor, stored[f"average.module.{name}"])
        assert tensor.dtype == torch.float64
    assert run.score(torch.zeros(1, 2)).dtype == torch.float64
