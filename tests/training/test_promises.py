"""Messages that promise something: it is there, and where it is not, they do not promise it."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import data, pcd, quiet

import ebmcore
from ebmcore.cli import main
from ebmcore.errors import CheckpointError, DivergenceError, EbmcoreError, UsageError
from ebmcore.testing import Identity, Quadratic
from ebmcore.training import checkpoints, latest_checkpoint, load_run

SOURCE = Path(__file__).resolve().parents[2] / "ebmcore"
PROMISES = (
    r"last (?:good )?(?:checkpoint|one) is|is complete|to resume from|resume it with|resume from the last checkpoint|"
    r"trains it from the start|holds the (?:results|plugin)|(?:samples|scores) in \{\}|the energy of step \{\} in \{\}|"
    r"(?:is|are|was) (?:kept|saved) in"
)


def promised(message):
    """The checkpoints that a message names."""
    return [Path(found.rstrip(";:,.)")) for found in re.findall(r"/\S*step-\d{8}", message)]


class Fails(Quadratic):
    """An energy that fails, or is NaN, from a call on."""

    def __init__(self, error=None):
        super().__init__((2,))
        self.error = error

    def forward(self, x):
        if not next(self.fails):
            return super().forward(x)
        if self.error is not None:
            raise self.error
        return super().forward(x) * torch.nan


def after(calls):
    """Whether each call fails: those after the first ``calls``."""
    return itertools.chain(itertools.repeat(False, calls), itertools.repeat(True))


def run_that_fails(tmp_path, late, error=None, **options):
    energy = Fails(error)
    energy.fails = after(late)
    loss = ebmcore.create_loss("cd", energy, Identity())
    with pytest.raises(EbmcoreError) as caught:
        quiet(loss, data(), steps=20, out=tmp_path / "run", log_every=1, **options)
    return str(caught.value)


@pytest.mark.parametrize("error", [None, MemoryError("it is full"), torch.OutOfMemoryError("it is full")])
def test_end_names_the_last_checkpoint_or_says_that_there_is_none(tmp_path, error):
    """Divergence and the end of memory, before the first checkpoint and after it."""
    early = run_that_fails(tmp_path / "early", 3, error, checkpoint_every=5)
    assert "there is no checkpoint" in early
    assert latest_checkpoint(tmp_path / "early/run/checkpoints") is None
    late = run_that_fails(tmp_path / "late", 9, error, checkpoint_every=2)
    assert promised(late) == [latest_checkpoint(tmp_path / "late/run/checkpoints")]


@pytest.mark.parametrize("late", [0, 1])
def test_memory_that_ends_when_a_run_resumes_names_its_checkpoint(tmp_path, monkeypatch, late):
    """When the energy is tried, and when the checkpoint is loaded."""
    energy = Fails(MemoryError("it is full"))
    energy.fails = after(100)
    loss = ebmcore.create_loss("cd", energy, Identity())
    quiet(loss, data(), steps=4, out=tmp_path, checkpoint_every=2)
    energy.fails = after(late)
    if late:
        monkeypatch.setattr(type(loss), "load_state_dict", lambda *_, **__: energy(data()) and energy(data()))
    with pytest.raises(UsageError, match="out of memory before") as caught:
        quiet(loss, data(), steps=8, out=tmp_path, resume=True)
    assert promised(str(caught.value)) == [latest_checkpoint(tmp_path / "checkpoints")]


def test_memory_that_ends_in_a_metric_names_its_step(tmp_path):
    def measure(energy):
        raise MemoryError

    with pytest.raises(
        UsageError, match="out of memory while measuring after step 4; the last checkpoint is .*step-00000002"
    ):
        quiet(pcd(), data(), steps=8, out=tmp_path, checkpoint_every=2, measure=measure, measure_every=4)


def test_loss_that_diverges_names_the_last_checkpoint(tmp_path):
    """An error that the loss raises of itself too."""

    class Lost(ebmcore.BaseLoss):
        def __init__(self):
            super().__init__()
            self.energy = Quadratic((2,))

        def forward(self, x):
            if self.step == 3:
                raise DivergenceError("everything is lost")
            return self.energies(x).mean()

    with pytest.raises(DivergenceError, match="stopped at step 4: everything is lost; there is no checkpoint"):
        quiet(Lost(), data(), steps=8, out=tmp_path / "one")
    with pytest.raises(DivergenceError, match="everything is lost; the last checkpoint is .*step-00000002") as caught:
        quiet(Lost(), data(), steps=8, out=tmp_path / "two", checkpoint_every=2)
    assert all(path.is_dir() for path in promised(str(caught.value)))


@pytest.mark.parametrize("after", [0, 2])
def test_failed_write_names_the_last_good_checkpoint(tmp_path, monkeypatch, after):
    written = []

    def replaced(*arguments, before=checkpoints.os.replace):
        if arguments[1].name.startswith("step-"):
            written.append(arguments)
            if len(written) > after:
                raise OSError(28, "No space left on device")
        return before(*arguments)

    monkeypatch.setattr(checkpoints.os, "replace", replaced)
    with pytest.raises(CheckpointError) as caught:
        quiet(pcd(), data(), steps=8, out=tmp_path, checkpoint_every=2)
    if after:
        assert promised(str(caught.value))[1:] == [latest_checkpoint(tmp_path / "checkpoints")]
    else:
        assert "there is none before it" in str(caught.value)
        assert latest_checkpoint(tmp_path / "checkpoints") is None


@pytest.mark.parametrize("n", [1, 2])
def test_damaged_checkpoint_names_another_that_is_there(tmp_path, n):
    """The advice is followed: where there is another checkpoint, the run resumes from it."""
    quiet(pcd(), data(), steps=2 * n, out=tmp_path, checkpoint_every=2)
    last = latest_checkpoint(tmp_path / "checkpoints")
    (last / "checkpoint.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        quiet(pcd(), data(), steps=8, out=tmp_path, resume=True)
    if n == 1:
        assert "start the run again with another --out" in str(caught.value)
        return
    assert "remove it to resume from step-00000002" in str(caught.value)
    checkpoints.remove(last)
    assert quiet(pcd(), data(), steps=8, out=tmp_path, resume=True).step == 8


TRAIN = "train --energy rbm --energy.hidden 4 --sampler gibbs --loss pcd --data bars-and-stripes --progress false --steps 2 --out"


def test_a_run_without_a_checkpoint_starts_as_its_message_says(tmp_path, capsys):
    assert main([*TRAIN.split(), str(tmp_path / "run")]) == 0
    checkpoints.remove(latest_checkpoint(tmp_path / "run/checkpoints"))
    with pytest.raises(CheckpointError, match="trains it from the start") as caught:
        load_run(tmp_path / "run")
    command = re.search("'ebmcore (.*)'", str(caught.value))[1]
    assert main(command.split()) == 0
    assert load_run(tmp_path / "run").step == 2


def test_what_commands_say_is_there(tmp_path, capsys):
    """Each names, when it has ended, what it has written."""
    run = tmp_path / "run"
    rows = tmp_path / "rows.npy"
    np.save(rows, np.zeros((2, 1, 4, 4), dtype=np.float32))
    for command, name in (
        (f"{TRAIN} {run}", "run"),
        (f"sample {run} -n 2 --steps 1 --out {tmp_path}/samples.npy", "samples.npy"),
        (f"score {run} {rows} --out {tmp_path}/scores.csv", "scores.csv"),
        (f"export {run} --out {tmp_path}/energy.pt", "energy.pt"),
    ):
        assert main(command.split()) == 0
        said = capsys.readouterr().out
        assert str(tmp_path / name) in said
        assert (tmp_path / name).exists()


def strings(path):
    """The strings of a module with ``{}`` for what they format, without its docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    passed = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            passed |= {id(part) for part in ast.walk(node) if part is not node}
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        if id(node) not in passed:
            yield text


def test_each_promise_has_a_test():
    """A message that promises something is one of those whose test is named here."""
    modules = [path for path in SOURCE.rglob("*.py") if "testing" not in path.parts]
    modules += SOURCE.parent.glob("plugins/*/ebm_plugin_*/**/*.py")
    found = {
        (path.relative_to(SOURCE.parent).as_posix(), match[0])
        for path in modules
        for text in strings(path)
        for match in re.finditer(PROMISES, text)
    }
    assert found == TESTED.keys()
    for place, name in TESTED.values():
        assert f"def {name}(" in (SOURCE.parent / "tests" / place).read_text(encoding="utf-8"), name


TESTED = {
    ("ebmcore/training/progress.py", "last checkpoint is"): (
        "training/test_promises.py",
        "test_end_names_the_last_checkpoint_or_says_that_there_is_none",
    ),
    ("ebmcore/training/fit.py", "last checkpoint is"): (
        "training/test_promises.py",
        "test_memory_that_ends_when_a_run_resumes_names_its_checkpoint",
    ),
    ("ebmcore/training/fit.py", "is complete"): (
        "training/test_stopping.py",
        "test_signal_costs_no_step",
    ),
    ("ebmcore/training/launch.py", "resume from the last checkpoint"): (
        "training/test_launch.py",
        "test_others_end_when_one_process_is_killed",
    ),
    ("ebmcore/training/checkpoints.py", "last good one is"): (
        "training/test_promises.py",
        "test_failed_write_names_the_last_good_checkpoint",
    ),
    ("ebmcore/training/checkpoints.py", "to resume from"): (
        "training/test_promises.py",
        "test_damaged_checkpoint_names_another_that_is_there",
    ),
    ("ebmcore/training/directory.py", "resume it with"): (
        "cli/test_train.py",
        "test_an_existing_directory_is_never_overwritten",
    ),
    ("ebmcore/training/runs.py", "trains it from the start"): (
        "training/test_promises.py",
        "test_a_run_without_a_checkpoint_starts_as_its_message_says",
    ),
    ("ebmcore/cli/train.py", "holds the results"): (
        "training/test_promises.py",
        "test_what_commands_say_is_there",
    ),
    ("ebmcore/cli/sample.py", "samples in {}"): (
        "training/test_promises.py",
        "test_what_commands_say_is_there",
    ),
    ("ebmcore/cli/score.py", "scores in {}"): (
        "training/test_promises.py",
        "test_what_commands_say_is_there",
    ),
    ("ebmcore/cli/export.py", "the energy of step {} in {}"): (
        "training/test_promises.py",
        "test_what_commands_say_is_there",
    ),
    ("ebmcore/cli/new.py", "holds the plugin"): (
        "cli/test_new.py",
        "test_inside_the_repository_it_goes_among_the_plugins_and_needs_no_ci",
    ),
}
