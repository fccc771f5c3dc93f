"""Restricted Boltzmann machines and block Gibbs sampling as an ebmcore plugin."""

from __future__ import annotations

import ebmcore


@ebmcore.hookimpl
def ebmcore_register(register: ebmcore.Register) -> None:
    register.energy("rbm", "ebm_plugin_rbm.rbm:RBM")
    register.energy("gaussian-rbm", "ebm_plugin_rbm.gaussian:GaussianRBM")
    register.energy("potts-rbm", "ebm_plugin_rbm.potts:PottsRBM")
    register.sampler("gibbs", "ebm_plugin_rbm.gibbs:Gibbs")
