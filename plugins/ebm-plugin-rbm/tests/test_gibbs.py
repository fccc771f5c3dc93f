"""Block Gibbs sampling."""

from __future__ import annotations

import pytest

import ebmcore
from ebm_plugin_rbm.gibbs import Gibbs
from ebmcore.errors import MissingCapabilityError
from ebmcore.samplers import check_sampler
from ebmcore.testing import Quadratic

N = 100_000
CHI_SQUARE_15_DF = 44.3  # exceeded with probability 1e-4


def test_an_energy_without_conditionals_is_an_error_that_says_what_would_fit():
    with pytest.raises(MissingCapabilityError, match=r"Gibbs needs .*SupportsBlockGibbs.*ebm-plugin-rbm:rbm"):
        check_sampler(Gibbs(), Quadratic())


def test_it_is_installed_under_its_name():
    assert isinstance(ebmcore.create_sampler("gibbs"), Gibbs)
