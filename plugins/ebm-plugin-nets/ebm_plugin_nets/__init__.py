"""Neural-network energies as an ebmcore plugin."""

from __future__ import annotations

import ebmcore


@ebmcore.hookimpl
def ebmcore_register(register: ebmcore.Register) -> None:
    register.energy("mlp", "ebm_plugin_nets.mlp:MLP")
    register.energy("conv", "ebm_plugin_nets.conv:Conv")
    register.energy("conditional-conv", "ebm_plugin_nets.conditional:ConditionalConv")
