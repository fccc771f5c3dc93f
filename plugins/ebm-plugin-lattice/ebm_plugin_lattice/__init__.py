"""Ising and Potts models as an ebmcore plugin."""

from __future__ import annotations

import ebmcore


@ebmcore.hookimpl
def ebmcore_register(register: ebmcore.Register) -> None:
    register.energy("ising", "ebm_plugin_lattice.ising:Ising")
    register.energy("potts", "ebm_plugin_lattice.potts:Potts")
