"""Tools for tests of losses and samplers: energies whose answers are known in closed form."""

from ebmcore.testing.samplers import ExactGaussian, Identity
from ebmcore.testing.targets import Boltzmann, DoubleWell, Quadratic

__all__ = ["Boltzmann", "DoubleWell", "ExactGaussian", "Identity", "Quadratic"]
