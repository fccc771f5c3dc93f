"""Block Gibbs sampling."""

from __future__ import annotations

import pytest

import ebmcore
from ebm_plugin_rbm.gibbs import Gibbs
from ebmcore.energies import SupportsBlockGibbs
from ebmcore.errors import MissingCapabilityError
from ebmcore.samplers import check_sampler
from ebmcore.testing import Quadratic

N = 100_000
CHI_SQUARE_15_DF = 44.3  # exceeded with probability 1e-4


def test_energy_without_conditionals_is_refused():
    """An energy without conditionals raises an error that names the capability and carries it."""
    with pytest.raises(MissingCapabilityError, match=r"Gibbs needs .*SupportsBlockGibbs") as error:
        check_sampler(Gibbs(), Quadratic())
    assert error.value.capability is SupportsBlockGibbs


def test_it_is_installed_under_its_name():
    assert isinstance(ebmcore.create_sampler("gibbs"), Gibbs)
