"""Losses that match gradients of the energy to flows between noise and data, as an ebmcore plugin."""

from __future__ import annotations

import ebmcore


@ebmcore.hookimpl
def ebmcore_register(register: ebmcore.Register) -> None:
    register.loss("energy-matching", "ebm_plugin_flow_losses.energy_matching:EnergyMatching")
    register.loss("equilibrium-matching", "ebm_plugin_flow_losses.equilibrium_matching:EquilibriumMatching")
