"""CD-k."""

from __future__ import annotations

import pytest

import ebmcore
from ebm_plugin_cd.loss import ContrastiveDivergence
from ebmcore.testing import Identity, Quadratic


def test_it_is_installed_under_its_name():
    loss = ebmcore.create_loss("cd", Quadratic(), Identity(), k_steps=2)
    assert isinstance(loss, ContrastiveDivergence)
    assert ebmcore.host.load("loss", "ebm-plugin-cd:cd") is ContrastiveDivergence


def test_an_unknown_keyword_names_the_accepted_ones():
    with pytest.raises(TypeError, match="it accepts: energy, sampler, k_steps, energy_l2, joint_forward"):
        ContrastiveDivergence(Quadratic(), Identity(), n_chains=3)
