"""Every rule of the conformance kit."""

import ebmcore.testing

test_conformance = ebmcore.testing.conformance("ebm-plugin-flow-losses")
