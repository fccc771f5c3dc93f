"""Every rule of the conformance kit: on binary examples at all sites, and on categorical ones at a random subset."""

import ebmcore.testing

CATEGORICAL = {"state_space": "categorical", "n_sites": 1}
SUBSET = {"pseudo-likelihood": CATEGORICAL, "minimum-probability-flow": CATEGORICAL, "ratio-matching": {"n_sites": 2}}

test_conformance = ebmcore.testing.conformance("ebm-plugin-pseudo-likelihood")
test_conformance_of_subsets = ebmcore.testing.conformance("ebm-plugin-pseudo-likelihood", options=SUBSET)
