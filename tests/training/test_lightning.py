"""The module for Lightning on the page about training."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/training.md"
BEFORE = """
import torch
import ebmcore
torch.manual_seed(0)
moons = ebmcore.create_dataset("two-moons", n_train=1000)
energy = ebmcore.create_energy("mlp", shape=moons.shape, hidden=(32,))
pcd = ebmcore.create_loss("pcd", energy, ebmcore.create_sampler("langevin", step_size=0.1), k_steps=5, n_chains=128)
before = [p.clone() for p in energy.parameters()]
"""
AFTER = """
import pathlib
assert all(not torch.equal(p, old) for p, old in zip(list(energy.parameters())[:-1], before[:-1], strict=True))
assert pcd.chain.shape == (128, 2)
(checkpoint,) = pathlib.Path().glob("**/*.ckpt")
saved = torch.load(checkpoint, weights_only=False)
assert saved["global_step"] == 20
assert any(torch.is_tensor(t) and torch.equal(t, pcd.chain) for t in saved["state_dict"].values()), list(saved["state_dict"])
"""


def test_lightning_trains_a_loss(tmp_path):
    """The code on the page, as it stands: 20 steps train the weights, and the checkpoint holds the chains."""
    (code,) = re.findall(r"```python\n(import torch\nfrom pytorch_lightning.*?)```", PAGE.read_text(), re.DOTALL)
    environment = os.environ | {"PYTHONPATH": str(Path(sys.prefix) / "lightning"), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", BEFORE + code + AFTER]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
