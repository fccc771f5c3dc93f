"""Data from files as an ebmcore plugin: arrays and tables, folders of images, alignments of sequences."""

from __future__ import annotations

import ebmcore


@ebmcore.hookimpl
def ebmcore_register(register: ebmcore.Register) -> None:
    register.dataset("array", "ebm_plugin_files.array:Array")
    register.dataset("images", "ebm_plugin_files.images:Images")
    register.dataset("sequences", "ebm_plugin_files.sequences:Sequences")
