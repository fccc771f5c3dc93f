"""Small trained runs, for the tests of the command line."""

from __future__ import annotations

import pytest
from commands import MOONS, RBM, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small trained run."""
    out = tmp_path_factory.mktemp("runs") / "rbm"
    assert train(f"{RBM} --loss pcd --loss.n_chains 10 --steps 20 --metric exact-ll --checkpoint_every 10", out) == 0
    return out


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    """A small trained run in two dimensions."""
    out = tmp_path_factory.mktemp("runs") / "moons"
    assert train(f"{MOONS} --loss cd --steps 5 --ema_decay 0.9 --progress false", out) == 0
    return out
