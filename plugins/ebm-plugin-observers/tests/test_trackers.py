"""Weights & Biases and MLflow, with their own libraries and without a network."""

from __future__ import annotations

import importlib.util
import os
from types import SimpleNamespace

import pytest
import wandb
from mlflow import MlflowClient

from ebm_plugin_observers.mlflow import Mlflow
from ebm_plugin_observers.wandb import Wandb
from ebmcore.errors import UsageError

CONFIG = {"energy": {"name": "quadratic"}, "lr": 0.25}


@pytest.mark.parametrize("tracker", [Wandb, Mlflow])
def test_missing_library_is_named(monkeypatch, tracker):
    """Before training, with the line that installs it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    extra = tracker.__name__.lower()
    with pytest.raises(UsageError, match=rf"needs its library: pip install 'ebm-plugin-observers\[{extra}\]'"):
        tracker()


def of_mlflow(out):
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    return client, client.get_run((out / "mlflow-id.txt").read_text())


def test_mlflow_gets_options_and_metrics(train, tmp_path):
    train(Mlflow(experiment="here"), steps=4, log_every=2, out=tmp_path / "run", config=CONFIG)
    client, run = of_mlflow(tmp_path / "run")
    assert run.data.params == {"energy.name": "quadratic", "lr": "0.25"}
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == [2, 4]
    assert client.get_experiment(run.info.experiment_id).name == "here"
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")


def test_mlflow_run_is_resumed(train, tmp_path):
    """A resumed run continues under its id."""
    for steps in (2, 4):
        train(Mlflow(), steps=steps, out=tmp_path / "run", resume=True)
    client, run = of_mlflow(tmp_path / "run")
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3, 4]
    assert len(client.search_runs([run.info.experiment_id])) == 1


def test_mlflow_run_fails_with_training(train, tmp_path):
    def measure(energy):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        train(Mlflow(), steps=4, out=tmp_path / "run", measure=measure, measure_every=2)
    assert of_mlflow(tmp_path / "run")[1].info.status == "FAILED"


@pytest.mark.parametrize(
    ("given", "variable", "used"),
    [("http://a", "http://b", "http://a"), (None, "http://b", "http://b"), (None, None, "sqlite:////runs/one/mlflow.db")],
)
def test_mlflow_store_is_the_nearest(monkeypatch, tmp_path, given, variable, used):
    """That of the option, otherwise that of the environment, otherwise a database in the run's directory."""
    asked = []
    monkeypatch.setattr("mlflow.MlflowClient", lambda tracking_uri: asked.append(tracking_uri) or exit())
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    if variable:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    with pytest.raises(SystemExit):
        Mlflow(tracking_uri=given).on_start(SimpleNamespace(step=0, directory=type(tmp_path)("/runs/one"), config={}))
    assert asked == [used]


def test_wandb_gets_options_and_metrics(train, tmp_path):
    """What wandb would upload lies in the run's directory."""
    train(Wandb(project="here"), steps=4, log_every=2, out=tmp_path / "run", config=CONFIG)
    wandb.teardown()  # waits until it has written all
    name = (tmp_path / "run/wandb-id.txt").read_text()
    (file,) = (tmp_path / "run/wandb").glob(f"offline-run-*/run-{name}.wandb")
    written = file.read_bytes()
    for text in (b"here", b"quadratic", b"energy_data"):
        assert text in written


def test_wandb_run_is_resumed(train, tmp_path):
    """A resumed run continues under its id."""
    for steps in (2, 4):
        train(Wandb(), steps=steps, out=tmp_path / "run", resume=True)
    name = (tmp_path / "run/wandb-id.txt").read_text()
    assert {file.stem for file in (tmp_path / "run/wandb").glob("offline-run-*/run-*.wandb")} == {f"run-{name}"}


def test_wandb_mode_is_one_of_three():
    with pytest.raises(ValueError, match="mode must be 'online', 'offline', 'disabled' or None, got 'on'"):
        Wandb(mode="on")
