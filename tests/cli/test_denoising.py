"""Denoising score matching from the command line: no sampler to train, levels of noise in each spelling, samples at a level."""

from __future__ import annotations

import pytest
import torch

import ebmcore
from ebmcore.cli import main

TRAIN = ["train", "--loss", "denoising-score-matching", "--steps", "2", "--batch_size", "8"]
DIGITS = ["--data", "digits", "--data.binary", "false", "--energy.widths", "[4]"]


def test_denoising_trains_without_a_sampler(tmp_path):
    """A run needs no sampler, and samples with one that is given afterwards."""
    out = tmp_path / "run"
    assert main([*TRAIN, "--loss.sigma", "0.3", "--energy", "resnet", *DIGITS, "--out", str(out)]) == 0
    langevin = ["--sampler", "langevin", "--sampler.step_size", "0.005", "-n", "3", "--steps", "2"]
    assert main(["sample", str(out), *langevin, "--out", str(tmp_path / "x.safetensors")]) == 0
    assert ebmcore.load_run(out).score(torch.zeros(2, 1, 8, 8)).shape == (2,)


@pytest.mark.parametrize(
    ("levels", "sigma", "sigma_max"),
    [
        (["--loss.sigma", "0.3"], 0.3, None),
        (["--loss.sigma", "[0.1, 0.3]"], [0.1, 0.3], None),
        (["--loss.sigma", "0.01", "--loss.sigma_max", "1"], 0.01, 1),
    ],
)
def test_levels_of_noise_reach_the_energy(tmp_path, levels, sigma, sigma_max):
    """A noise-conditional energy trains on labelled data, whose labels it does not take, resumes, and samples at a level."""
    out = tmp_path / "run"
    assert main([*TRAIN, *levels, "--energy", "noise-conditional", *DIGITS, "--out", str(out)]) == 0
    assert main(["train", "--resume", str(out), "--steps", "3"]) == 0
    run = ebmcore.load_run(out)
    assert (run.step, run.loss.sigma, run.loss.sigma_max) == (3, sigma, sigma_max)
    langevin = ["--sampler", "langevin", "--sampler.step_size", "0.005", "-n", "3", "--steps", "2"]
    assert main(["sample", str(out), *langevin, "--condition", "0.1", "--out", str(tmp_path / "x.safetensors")]) == 0


def test_another_loss_says_what_the_energy_needs(tmp_path, capsys):
    """A loss that hands no level over is refused before the first step, and nothing is written."""
    command = ["train", "--loss", "score-matching", "--steps", "2", "--energy", "noise-conditional", *DIGITS]
    assert main([*command, "--out", str(tmp_path / "run")]) == 2
    assert "missing 1 required keyword-only argument: 'sigma'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
