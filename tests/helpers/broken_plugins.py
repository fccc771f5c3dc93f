"""Distributions with a plugin that is broken somehow, really installed in a folder of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field

from ebmcore.host.report import State

NAME = "ebm-plugin-broken"
HOOK = """
    import ebmcore
    {before}
    @ebmcore.hookimpl
    def ebmcore_register(register):
        register.sampler("broken", "broken_component:Still")
        {after}
"""
STILL = """
    import torch
    from ebmcore import BaseSampler
    {before}
    class Still(BaseSampler):
        exact = True
        def step(self, energy, state, *, generator=None):
            return state, {{}}
"""


def hook(before="", after="pass"):
    return textwrap.dedent(HOOK).format(before=before, after=after)


def component(before=""):
    return textwrap.dedent(STILL).format(before=before)


@dataclass
class Broken:
    """A plugin and what is to become of it.

    Args:
        hook: Source of its light module.
        component: Source of its component's module.
        state: What the host says of it once its light module was wanted.
        asked: What the error says when its component is asked for; empty if it works all the same.
        doctor: What the doctor says.
        changes: The plugin changes these settings of the process, which must be as before.
        entry_point: What it is registered as.
        version: Version in its metadata.
        other: A second distribution with the same hook.
        crashes: Asking ends the interpreter, hangs, or is impossible because torch cannot be imported either.
    """

    hook: str = field(default_factory=hook)
    component: str = field(default_factory=component)
    state: State = State.FAILED
    asked: str = ""
    doctor: str = ""
    entry_point: str = "broken = broken_plugin"
    version: str = "Version: 1.2\n"
    other: str = ""
    crashes: bool = False


def python(program, **environ):
    arguments = [sys.executable, *(["-c", program] if isinstance(program, str) else program)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120, env={**os.environ, **environ})
