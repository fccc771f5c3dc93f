"""Losses of binary and categorical data that compare an example with its neighbours, as an ebmcore plugin."""

from __future__ import annotations

import ebmcore


@ebmcore.hookimpl
def ebmcore_register(register: ebmcore.Register) -> None:
    register.loss("minimum-probability-flow", "ebm_plugin_pseudo_likelihood.minimum_probability_flow:MinimumProbabilityFlow")
    register.loss("pseudo-likelihood", "ebm_plugin_pseudo_likelihood.pseudo_likelihood:PseudoLikelihood")
    register.loss("ratio-matching", "ebm_plugin_pseudo_likelihood.ratio_matching:RatioMatching")
