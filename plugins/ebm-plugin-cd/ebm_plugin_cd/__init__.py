"""Contrastive divergence as an ebmcore plugin."""

from __future__ import annotations

import ebmcore


@ebmcore.hookimpl
def ebmcore_register(register: ebmcore.Register) -> None:
    register.loss("cd", "ebm_plugin_cd.loss:ContrastiveDivergence")
