"""Which checkpoints of a run stay."""

from __future__ import annotations

import csv
import json

import pytest
from commands import RBM, train
from small_runs import data, pcd, quiet

from ebmcore.cli import main
from ebmcore.errors import UsageError
from ebmcore.training import BaseObserver


def kept(run):
    return [int(path.name.removeprefix("step-")) for path in sorted((run / "checkpoints").glob("step-*"))]


def run(out, **options):
    return quiet(pcd(), data(), out=out, checkpoint_every=2, **({"steps": 10} | options))


@pytest.mark.parametrize(("keep", "steps"), [(1, [10]), (2, [8, 10]), (4, [4, 6, 8, 10]), (9, [2, 4, 6, 8, 10])])
def test_number_of_checkpoints(tmp_path, keep, steps):
    run(tmp_path, keep=keep)
    assert kept(tmp_path) == steps


class Peak:
    """A measurement that is best after six steps, whatever the energy is."""

    def __init__(self):
        self.values = iter([0.0, 1.0, 2.0, 7.0, 3.0, 4.0, 5.0, 6.0])  # after step 1, 2, 4, 6, 8, ...

    def __call__(self, energy):
        return {"peak": next(self.values)}


@pytest.mark.parametrize(("keep", "steps"), [("best peak", [6, 10, 12]), ("best -peak", [2, 10, 12])])
def test_best_checkpoint_stays(tmp_path, keep, steps):
    """Beside the last two, from which the run resumes."""
    run(tmp_path, keep=keep, measure=Peak(), steps=12)
    assert kept(tmp_path) == steps


def test_best_of_a_resumed_run(tmp_path):
    """The value is in the checkpoint: a resumed run knows what was better before it."""
    run(tmp_path, keep="best peak", measure=Peak(), steps=10)
    values = iter([0.0] * 9)
    run(tmp_path, keep="best peak", measure=lambda _: {"peak": next(values)}, steps=16, resume=True)
    assert kept(tmp_path) == [6, 14, 16]


def test_metric_is_read_at_each_checkpoint(tmp_path):
    """Although nothing is logged there otherwise; what a checkpoint records is the value of its step."""
    run(tmp_path, keep="best -loss", log_every=100)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    logged = {int(line.split(",")[0]): float(line.split(",")[lines[0].split(",").index("loss")]) for line in lines[1:]}
    assert sorted(logged) == [1, 2, 4, 6, 8, 10]
    for step in kept(tmp_path):
        record = json.loads((tmp_path / f"checkpoints/step-{step:08d}/checkpoint.json").read_text())
        assert record["best"] == {"metric": "-loss", "value": -logged[step]}
    assert min((step for step in logged if step > 1), key=logged.__getitem__) in kept(tmp_path)


def test_damaged_best_is_none(tmp_path):
    """One that cannot be read is not kept for its value."""

    class Damage(BaseObserver):
        def on_checkpoint(self, run, path):
            if run.step == 6:
                (path / "checkpoint.json").write_text("{")

    run(tmp_path, keep="best peak", measure=Peak(), steps=12, observers=[Damage()])
    assert kept(tmp_path) == [10, 12]


def test_unknown_metric_ends_the_first_step(tmp_path):
    with pytest.raises(UsageError, match="keep='best ll' names no metric of this run: it has loss, "):
        run(tmp_path, keep="best ll")
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("keep", [0, -1, 2.5, "all", "best", "best ", None])
def test_wrong_number_is_refused(tmp_path, keep):
    with pytest.raises(UsageError, match="^keep must be"):
        run(tmp_path, keep=keep)
    assert not list(tmp_path.iterdir())


def test_command_line_keeps_the_best(tmp_path):
    options = "--loss pcd --loss.n_chains 10 --steps 6 --checkpoint_every 1 --metric exact-ll --lr 1.0"
    out = tmp_path / "run"
    assert main([*f"train {RBM} {options} --out {out}".split(), "--keep", "best exact-ll.log_likelihood"]) == 0
    with (out / "metrics.csv").open(newline="") as file:
        values = {int(row["step"]): float(row["exact-ll.log_likelihood"]) for row in csv.DictReader(file)}
    assert sorted(values) == [1, 2, 3, 4, 5, 6]
    assert kept(out) == sorted({5, 6, max(values, key=values.get)})


def test_command_line_keeps_a_number(tmp_path):
    assert train(f"{RBM} --loss cd --steps 6 --checkpoint_every 1 --keep 4", tmp_path / "run") == 0
    assert kept(tmp_path / "run") == [3, 4, 5, 6]
