"""Metrics for MLflow."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping

from ebm_plugin_observers.trackers import require_library
from ebmcore.training import BaseObserver, Run, flat_config

ID = "mlflow-id.txt"


class Mlflow(BaseObserver):
    """Writes the configuration and the metrics of a run to MLflow.

    A resumed run continues there, by the id in ``mlflow-id.txt``. MLflow's own current run is left alone.

    MLflow's telemetry is turned off, unless ``MLFLOW_DISABLE_TELEMETRY`` says otherwise.

    Args:
        experiment: The experiment, made if it does not exist.
        run_name: Name of the run; `None` is the name of its directory.
        tracking_uri: Where MLflow keeps it; `None` is the environment's ``MLFLOW_TRACKING_URI``, otherwise the SQLite database
            ``mlflow.db`` in the run's directory.

    Raises:
        UsageError: If MLflow is not installed.

    Example:
        >>> observer = Mlflow(experiment="digits")
    """

    def __init__(self, *, experiment: str = "ebmcore", run_name: str | None = None, tracking_uri: str | None = None) -> None:
        require_library("mlflow")
        self.experiment = experiment
        self.run_name = run_name
        self.tracking_uri = tracking_uri

    def on_start(self, run: Run) -> None:
        # Its telemetry draws from Python's global random numbers, at any time, in a thread.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        uri = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None and run.directory is not None:
            uri = f"sqlite:///{run.directory.absolute() / 'mlflow.db'}"
        self.client = MlflowClient(tracking_uri=uri)
        known = None if run.directory is None else run.directory / ID
        if known is not None and run.step > 0 and known.exists():
            self.run_id = known.read_text(encoding="utf-8").strip()
            self.client.update_run(self.run_id, status="RUNNING")
            return
        found = self.client.get_experiment_by_name(self.experiment)
        experiment = self.client.create_experiment(self.experiment) if found is None else found.experiment_id
        # MLflow would make up a name with Python's global random numbers.
        name = self.run_name or (run.directory.absolute().name if run.directory else "ebmcore")
        self.run_id = self.client.create_run(experiment, run_name=name).info.run_id
        for option, value in flat_config(run.config).items():
            self.client.log_param(self.run_id, option, value)
        if known is not None:
            known.write_text(self.run_id, encoding="utf-8")

    def on_log(self, run: Run, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        values = [Metric(metric, value, now, run.step) for metric, value in metrics.items()]
        self.client.log_batch(self.run_id, metrics=values)

    def on_end(self, run: Run) -> None:
        self.client.set_terminated(self.run_id, "FINISHED" if sys.exception() is None else "FAILED")
