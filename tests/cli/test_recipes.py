"""The recipes of `pcd`: published settings as configurations that train."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import ebm_plugin_pcd
import ebmcore
from ebmcore.cli import main

RECIPES = sorted((Path(ebm_plugin_pcd.__file__).parent / "recipes").glob("*.yaml"))
NOISE = {"du-mordatch-2019": 0.005, "nijkamp-2019": 0.01}  # standard deviation of a step's noise, as published


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_trains_with_its_noise(recipe, tmp_path):
    """A recipe trains, for as many steps as the command line says, and has the noise that its paper says."""
    command = ["train", "--config", str(recipe), "--steps", "2", "--progress", "false"]
    assert main([*command, "--loss.k_steps", "3", "--out", str(tmp_path / "run")]) == 0
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    sampler = ebmcore.create_sampler(config["sampler"].pop("name"), **config["sampler"])
    assert sampler.noise_scale == pytest.approx(NOISE[recipe.stem])
    assert f"{sampler.temperature:g}" in recipe.read_text().replace("5e-5", "5e-05").replace("1.25e-6", "1.25e-06")


def test_the_papers_settings_are_what_stands_there():
    configs = {path.stem: yaml.safe_load(path.read_text()) for path in RECIPES}
    du, nijkamp = configs["du-mordatch-2019"]["loss"], configs["nijkamp-2019"]["loss"]
    assert (du["n_chains"], du["restart_prob"], du["k_steps"], du["energy_l2"], du["initial"]) == (
        10_000,
        0.05,
        60,
        1,
        "uniform",
    )
    assert (nijkamp["restart_prob"], nijkamp["k_steps"], nijkamp["initial"]) == (1.0, 100, "uniform")
