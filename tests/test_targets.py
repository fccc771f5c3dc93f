"""Targets of the conformance kit: the distributions that are known exactly."""

from __future__ import annotations

import pytest
import torch

from ebmcore.testing import Boltzmann, DoubleWell


def test_a_boltzmann_machine_sums_pairs_once():
    energy = Boltzmann(3)
    x = torch.tensor([[1.0, 1.0, 0.0]])
    expected = -(energy.bias[0] + energy.bias[1] + energy.coupling[0, 1])
    torch.testing.assert_close(energy(x)[0], expected)
    assert energy.probabilities().sum().item() == pytest.approx(1.0)


def test_a_double_well_has_symmetric_wells():
    """The wells lie at plus and minus the width; the barrier between them has the given height."""
    well = DoubleWell(height=8.0, width=2.0)
    x = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 0.0]])
    assert well(x).tolist() == [0.0, 0.0, 8.0]
