"""Cases, the objects that checks receive: one class for each kind of component."""

from __future__ import annotations

from ebmcore.testing.cases.base import SPACES, Case, SteppingCase, network
from ebmcore.testing.cases.losses import N_CHAINS, LossCase
from ebmcore.testing.cases.others import CommandCase, DatasetCase, EnergyCase, MetricCase, ObserverCase, RecipeCase
from ebmcore.testing.cases.samplers import SamplerCase
from ebmcore.testing.devices import generator

__all__ = [
    "CASES",
    "N_CHAINS",
    "SPACES",
    "Case",
    "CommandCase",
    "DatasetCase",
    "EnergyCase",
    "LossCase",
    "MetricCase",
    "ObserverCase",
    "RecipeCase",
    "SamplerCase",
    "SteppingCase",
    "generator",
    "network",
]

CASES: dict[str, type[Case]] = {
    c.kind: c for c in (LossCase, SamplerCase, EnergyCase, DatasetCase, MetricCase, ObserverCase, RecipeCase, CommandCase)
}
