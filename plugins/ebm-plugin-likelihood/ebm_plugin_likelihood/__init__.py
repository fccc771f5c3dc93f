"""Log-likelihoods, and a look at where samples lie, as an ebmcore plugin."""

from __future__ import annotations

import ebmcore


@ebmcore.hookimpl
def ebmcore_register(register: ebmcore.Register) -> None:
    register.metric("exact-ll", "ebm_plugin_likelihood.exact:ExactLogLikelihood")
    register.metric("grid-ll", "ebm_plugin_likelihood.grid:GridLogLikelihood")
    register.metric("ais-ll", "ebm_plugin_likelihood.ais:AISLogLikelihood")
    register.metric("reverse-ais-ll", "ebm_plugin_likelihood.ais:ReverseAISLogLikelihood")
    register.metric("pseudo-ll", "ebm_plugin_likelihood.pseudo:PseudoLogLikelihood")
    register.metric("out-of-range", "ebm_plugin_likelihood.out_of_range:OutOfRange")
