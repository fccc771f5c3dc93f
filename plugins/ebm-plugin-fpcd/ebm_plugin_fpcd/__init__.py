"""The loss `fpcd` as an ebmcore plugin. Imported by every ``ebmcore list``, so it must not import torch."""

from __future__ import annotations

import ebmcore


@ebmcore.hookimpl
def ebmcore_register(register: ebmcore.Register) -> None:
    register.loss("fpcd", "ebm_plugin_fpcd.loss:FastPersistentContrastiveDivergence")
