"""Small data sets as an ebmcore plugin."""

from __future__ import annotations

import ebmcore


@ebmcore.hookimpl
def ebmcore_register(register: ebmcore.Register) -> None:
    register.dataset("digits", "ebm_plugin_datasets.digits:Digits")
    register.dataset("bars-and-stripes", "ebm_plugin_datasets.bars_and_stripes:BarsAndStripes")
    register.dataset("two-moons", "ebm_plugin_datasets.two_moons:TwoMoons")
    register.dataset("ring-of-gaussians", "ebm_plugin_datasets.ring_of_gaussians:RingOfGaussians")
    register.dataset("eight-gaussians", "ebm_plugin_datasets.eight_gaussians:EightGaussians")
    register.dataset("25-gaussians", "ebm_plugin_datasets.twenty_five_gaussians:TwentyFiveGaussians")
    register.dataset("spirals", "ebm_plugin_datasets.spirals:Spirals")
    register.dataset("rings", "ebm_plugin_datasets.rings:Rings")
    register.dataset("checkerboard", "ebm_plugin_datasets.checkerboard:Checkerboard")
    register.dataset("gray-code", "ebm_plugin_datasets.gray_code:GrayCode")
    register.dataset("ising-samples", "ebm_plugin_datasets.ising_samples:IsingSamples")
    register.dataset("mnist", "ebm_plugin_datasets.mnist:Mnist")
