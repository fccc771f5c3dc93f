"""Noise-contrastive estimation as an ebmcore plugin."""

from __future__ import annotations

import ebmcore


@ebmcore.hookimpl
def ebmcore_register(register: ebmcore.Register) -> None:
    register.loss("conditional-nce", "ebm_plugin_nce.conditional:ConditionalNoiseContrastiveEstimation")
    register.loss("nce", "ebm_plugin_nce.nce:NoiseContrastiveEstimation")
