"""Every rule of the conformance kit: on a lattice, without a field, and with given couplings."""

import ebmcore.testing

FIELDLESS = {"ising": {"field": None}, "potts": {"field": None}}
PAIRS = [[0.0, 0.3, 0.0, -0.5], [0.3, 0.0, 0.8, 0.1], [0.0, 0.8, 0.0, 0.4], [-0.5, 0.1, 0.4, 0.0]]
GIVEN = {"ising": {"coupling": PAIRS, "field": [0.1, 0.2, -0.3, 0.0]}, "potts": {"coupling": [[0.0, 0.7], [0.7, 0.0]]}}

test_conformance = ebmcore.testing.conformance("ebm-plugin-lattice")
test_conformance_without_field = ebmcore.testing.conformance("ebm-plugin-lattice", options=FIELDLESS)
test_conformance_of_couplings = ebmcore.testing.conformance("ebm-plugin-lattice", options=GIVEN)
