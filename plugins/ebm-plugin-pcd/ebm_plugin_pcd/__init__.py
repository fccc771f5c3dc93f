"""Persistent contrastive divergence as an ebmcore plugin."""

from __future__ import annotations

import ebmcore


@ebmcore.hookimpl
def ebmcore_register(register: ebmcore.Register) -> None:
    register.loss("pcd", "ebm_plugin_pcd.loss:PersistentContrastiveDivergence")
    register.recipe("du-mordatch-2019", "ebm_plugin_pcd:recipes/du-mordatch-2019.yaml")
    register.recipe("nijkamp-2019", "ebm_plugin_pcd:recipes/nijkamp-2019.yaml")
