"""Observers of a run as an ebmcore plugin: trackers, pictures, snapshots, and an early end."""

from __future__ import annotations

import ebmcore


@ebmcore.hookimpl
def ebmcore_register(register: ebmcore.Register) -> None:
    register.observer("archive", "ebm_plugin_observers.archive:Archive")
    register.observer("early-stopping", "ebm_plugin_observers.early_stopping:EarlyStopping")
    register.observer("mlflow", "ebm_plugin_observers.mlflow:Mlflow")
    register.observer("sample-grid", "ebm_plugin_observers.sample_grid:SampleGrid")
    register.observer("wandb", "ebm_plugin_observers.wandb:Wandb")
