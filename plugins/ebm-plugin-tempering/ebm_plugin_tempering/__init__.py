"""Parallel tempering as an ebmcore plugin."""

from __future__ import annotations

import ebmcore


@ebmcore.hookimpl
def ebmcore_register(register: ebmcore.Register) -> None:
    register.sampler("tempering", "ebm_plugin_tempering.tempering:Tempering")
    register.loss("ptcd", "ebm_plugin_tempering.loss:ParallelTemperingContrastiveDivergence")
