"""Every rule of the conformance kit."""

import ebmcore.testing

test_conformance = ebmcore.testing.conformance("ebm-plugin-langevin")

# Bounds so wide that the kit's laws hold, and every other rule meets the reflecting step.
test_conformance_within_bounds = ebmcore.testing.conformance(
    "ebm-plugin-langevin:mala", options={"mala": {"step_size": 0.5, "bounds": (-5000.0, 5000.0)}}
)
