"""Observers: what they are told, and what becomes of one that fails."""

from __future__ import annotations

import sys

import pytest
from small_runs import data, pcd, quiet, run_at, same_state, table

import ebmcore
from ebmcore.errors import DivergenceError, PluginError
from ebmcore.testing import Identity, Quadratic
from ebmcore.training import BaseObserver, fit


def test_tensorboard_gets_the_metrics(tmp_path):
    """Tensorboard gets the metrics when it is installed."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    quiet(pcd(), data(), steps=4, log_every=2, out=tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == [2, 4]


def test_tensorboard_gets_the_hyperparameters(tmp_path):
    """The options of the run are its hyper-parameters, by their dotted names."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    config = {"energy": {"name": "mlp"}, "lr": 0.25, "schedules": {}}
    quiet(pcd(), data(), steps=4, log_every=2, out=tmp_path, config=config)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    found = HParamsPluginData.FromString(content).session_start_info.hparams
    assert (found["energy.name"].string_value, found["lr"].number_value) == ("mlp", 0.25)


def test_new_metric_gets_a_column(tmp_path):
    """A new metric gets a column and loses no row."""
    from ebmcore.training.observers import MetricsFile

    file = MetricsFile(tmp_path / "metrics.csv")
    file.on_start(run_at(0))
    file.on_log(run_at(1), {"loss": 1.0})
    file.on_log(run_at(2), {"loss": 2.0, "acceptance_rate": 0.5})
    rows = table(tmp_path / "metrics.csv")
    assert rows == [
        {"step": "1", "loss": "1.0", "acceptance_rate": ""},
        {"step": "2", "loss": "2.0", "acceptance_rate": "0.5"},
    ]


def test_raising_observer_ends_the_run():
    """An observer that raises ends the run with its name and the event."""

    class Faulty(BaseObserver):
        def on_log(self, run, metrics):
            raise KeyError("mine")

    with pytest.raises(PluginError, match=r"the observer Faulty failed in on_log at step 2: KeyError: 'mine'"):
        quiet(pcd(), data(), steps=4, log_every=2, observers=[Faulty()])


def test_the_progress_bar_shows(capsys):
    fit(pcd(), data(), steps=4, batch_size=16, accelerator="cpu")
    assert "4/4" in capsys.readouterr().out


class Diary(BaseObserver):
    """Writes down what it hears; fails at one event."""

    def __init__(self, fails=""):
        self.heard, self.fails = [], fails

    def hear(self, event):
        self.heard.append(event)
        if event == self.fails:
            sys.exit("enough")

    def on_start(self, run):
        self.hear("on_start")

    def on_log(self, run, metrics):
        self.hear("on_log")

    def on_end(self, run):
        self.hear("on_end")


@pytest.mark.parametrize("event", ["on_start", "on_log", "on_end"])
def test_failing_observer_is_named(event):
    """An observer that fails is named with its plugin and keeps no other from ending."""

    class Plugin:
        @ebmcore.hookimpl
        def ebmcore_register(self, register):
            register.observer("diary", Diary)

    with ebmcore.temporary_plugin(Plugin(), "ebm-plugin-diary"):
        first, faulty, last = Diary(), ebmcore.create_observer("diary", event), Diary()
        with pytest.raises(
            PluginError, match=rf"the observer Diary of ebm-plugin-diary 0 failed in {event}.*SystemExit: enough"
        ):
            quiet(pcd(), data(), steps=2, log_every=2, observers=[first, faulty, last])
    assert first.heard[-1] == "on_end"
    assert (
        last.heard == {"on_start": [], "on_log": ["on_start", "on_end"], "on_end": ["on_start", "on_log", "on_end"]}[event]
    )


def test_reason_for_the_end_comes_first():
    """Why training ended comes before what an observer says of it."""
    loss = ebmcore.create_loss("cd", Quadratic((2,), 1e15), Identity())
    loss.start_chains = lambda x: loss.new_chains(x + 1, {})
    with pytest.raises(DivergenceError, match="training stopped at step 1") as caught:
        quiet(loss, data(), steps=3, log_every=1, observers=[Diary(fails="on_end")])
    assert "the observer Diary failed in on_end" in caught.value.__notes__[0]


class StopAt(BaseObserver):
    """Stops the run at a step."""

    def __init__(self, step):
        self.step = step

    def on_log(self, run, metrics):
        if run.step == self.step:
            run.stop()


def test_stop_ends_with_a_checkpoint(tmp_path):
    """A run that an observer stops ends at that step, with a checkpoint of it, and can be resumed."""
    diary = Diary()
    stopped = quiet(pcd(), data(), steps=8, log_every=2, out=tmp_path, observers=[StopAt(4), diary])
    assert (stopped.step, stopped.checkpoint.name) == (4, "step-00000004")
    assert diary.heard == ["on_start", "on_log", "on_log", "on_end"]
    resumed = pcd()
    quiet(resumed, data(), steps=8, log_every=2, out=tmp_path, resume=True)
    whole = pcd()
    quiet(whole, data(), steps=8, log_every=2)
    assert same_state(resumed, whole)


def test_stop_needs_no_directory():
    assert quiet(pcd(), data(), steps=8, log_every=2, observers=[StopAt(2)]).step == 2


def test_stop_between_logs_waits():
    """An observer that stops the run when no metrics are due ends it at the next step whose metrics are."""

    class AtOnce(BaseObserver):
        def on_start(self, run):
            run.stop()

    assert quiet(pcd(), data(), steps=8, log_every=3, observers=[AtOnce()]).step == 3
