"""Score matching as an ebmcore plugin."""

from __future__ import annotations

import ebmcore


@ebmcore.hookimpl
def ebmcore_register(register: ebmcore.Register) -> None:
    register.loss("score-matching", "ebm_plugin_score_matching.exact:ScoreMatching")
    register.loss("sliced-score-matching", "ebm_plugin_score_matching.sliced:SlicedScoreMatching")
    register.loss("denoising-score-matching", "ebm_plugin_score_matching.denoising:DenoisingScoreMatching")
    register.loss(
        "finite-difference-score-matching", "ebm_plugin_score_matching.finite_difference:FiniteDifferenceScoreMatching"
    )
