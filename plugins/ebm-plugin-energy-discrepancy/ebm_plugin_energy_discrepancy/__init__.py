"""Energy discrepancies as an ebmcore plugin."""

from __future__ import annotations

import ebmcore


@ebmcore.hookimpl
def ebmcore_register(register: ebmcore.Register) -> None:
    register.loss("discrete-energy-discrepancy", "ebm_plugin_energy_discrepancy.discrete:DiscreteEnergyDiscrepancy")
    register.loss("energy-discrepancy", "ebm_plugin_energy_discrepancy.continuous:EnergyDiscrepancy")
