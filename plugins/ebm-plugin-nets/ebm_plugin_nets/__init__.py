"""Neural-network energies as an ebmcore plugin."""

from __future__ import annotations

import ebmcore


@ebmcore.hookimpl
def ebmcore_register(register: ebmcore.Register) -> None:
    register.energy("mlp", "ebm_plugin_nets.mlp:MLP")
    register.energy("conv", "ebm_plugin_nets.conv:Conv")
    register.energy("conditional-conv", "ebm_plugin_nets.conditional:ConditionalConv")
    register.energy("resnet", "ebm_plugin_nets.resnet:ResNet")
    register.energy("classifier", "ebm_plugin_nets.classifier:Classifier")
    register.energy("noise-conditional", "ebm_plugin_nets.noise_conditional:NoiseConditional")
