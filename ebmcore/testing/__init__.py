"""Tools for tests of losses and samplers: energies whose answers are known in closed form."""

from ebmcore.testing.samplers import Identity
from ebmcore.testing.targets import Boltzmann, DoubleWell, Quadratic

__all__ = ["Boltzmann", "DoubleWell", "Identity", "Quadratic"]
