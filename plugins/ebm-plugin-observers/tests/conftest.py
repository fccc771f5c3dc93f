"""One thread, so that results repeat and neighbours do not matter; MLflow's files, since making its database takes seconds."""

import os

import pytest
import torch

from ebmcore import BaseContrastiveDivergence
from ebmcore.testing import ExactGaussian, Quadratic
from ebmcore.training import fit

# As the observer does, before a test imports MLflow itself.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("WANDB_MODE", "offline")


class CD(BaseContrastiveDivergence):
    """Contrastive divergence."""

    def forward(self, x, *args, **kwargs):
        pred_x = self.draw_negatives(x, *args, **kwargs)
        return self.compute_loss(x, pred_x, *args, **kwargs), pred_x

    def compute_loss(self, x, pred_x, *args, **kwargs):
        return self.energy_gap(x, pred_x, *args, **kwargs)


@pytest.fixture
def train():
    """Trains a small energy and returns it."""

    def run(*observers, shape=(2,), data=None, energy=None, sampler=None, **options):
        loss = CD(energy or Quadratic(shape), sampler or ExactGaussian())
        data = torch.randn(40, *shape, generator=torch.Generator().manual_seed(0)) if data is None else data
        options = {"batch_size": 8, "log_every": 1, "accelerator": "cpu", "progress": False} | options
        fit(loss, data, observers=observers, **options)
        return loss.energy

    return run
