"""Persistent contrastive divergence as an ebmcore plugin."""

from __future__ import annotations

import ebmcore


@ebmcore.hookimpl
def ebmcore_register(register: ebmcore.Register) -> None:
    register.loss("pcd", "ebm_plugin_pcd.loss:PersistentContrastiveDivergence")
