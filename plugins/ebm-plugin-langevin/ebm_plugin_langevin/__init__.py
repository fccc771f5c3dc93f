"""Langevin samplers as an ebmcore plugin."""

from __future__ import annotations

import ebmcore


@ebmcore.hookimpl
def ebmcore_register(register: ebmcore.Register) -> None:
    register.sampler("langevin", "ebm_plugin_langevin.langevin:Langevin")
    register.sampler("mala", "ebm_plugin_langevin.mala:MALA")
