"""Every rule of the conformance kit: on binary and on categorical examples, and at a random subset of sites."""

import ebmcore.testing

SEVERAL_SPACES = ("pseudo-likelihood", "minimum-probability-flow")
CATEGORICAL = {name: {"state_space": "categorical"} for name in SEVERAL_SPACES}
SUBSET = {name: {"n_sites": 2} for name in (*SEVERAL_SPACES, "ratio-matching")}

test_conformance = ebmcore.testing.conformance("ebm-plugin-pseudo-likelihood")
test_conformance_categorical = ebmcore.testing.conformance("ebm-plugin-pseudo-likelihood", options=CATEGORICAL)
test_conformance_at_some_sites = ebmcore.testing.conformance("ebm-plugin-pseudo-likelihood", options=SUBSET)
