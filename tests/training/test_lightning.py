"""The module for Lightning on the page about training."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import ebmcore

PAGE = Path(__file__).parents[2] / "docs/training.md"


@pytest.mark.filterwarnings("ignore:.*:FutureWarning")  # of Lightning, by newer releases of torch
@pytest.mark.filterwarnings("ignore:.*:UserWarning:pytorch_lightning")  # its advice on workers and logs
def test_lightning_trains_a_loss(tmp_path, monkeypatch, capsys):
    """The code on the page, as it stands: 20 steps train the weights, and the checkpoint holds the chains."""
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(import torch\nfrom pytorch_lightning.*?)```", PAGE.read_text(), re.DOTALL)
    torch.manual_seed(0)
    moons = ebmcore.create_dataset("two-moons", n_train=1000)
    energy = ebmcore.create_energy("mlp", shape=moons.shape, hidden=(32,))
    langevin = ebmcore.create_sampler("langevin", step_size=0.1)
    pcd = ebmcore.create_loss("pcd", energy, langevin, k_steps=5, n_chains=128)
    before = [p.clone() for p in energy.parameters()]
    exec(code, {"pcd": pcd, "moons": moons, "__name__": "page"})
    assert all(not torch.equal(p, old) for p, old in zip(list(energy.parameters())[:-1], before[:-1], strict=True))
    assert pcd.chain.shape == (128, 2)
    (checkpoint,) = tmp_path.glob("**/*.ckpt")
    saved = torch.load(checkpoint, weights_only=False)
    assert saved["global_step"] == 20
    assert any(torch.is_tensor(t) and torch.equal(t, pcd.chain) for t in saved["state_dict"].values()), saved[
        "state_dict"
    ].keys()
