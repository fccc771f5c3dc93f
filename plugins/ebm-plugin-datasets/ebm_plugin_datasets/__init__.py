"""Small data sets as an ebmcore plugin."""

from __future__ import annotations

import ebmcore


@ebmcore.hookimpl
def ebmcore_register(register: ebmcore.Register) -> None:
    register.dataset("digits", "ebm_plugin_datasets.digits:Digits")
    register.dataset("bars-and-stripes", "ebm_plugin_datasets.bars_and_stripes:BarsAndStripes")
    register.dataset("two-moons", "ebm_plugin_datasets.two_moons:TwoMoons")
    register.dataset("ring-of-gaussians", "ebm_plugin_datasets.ring_of_gaussians:RingOfGaussians")
    register.dataset("mnist", "ebm_plugin_datasets.mnist:Mnist")
