"""The conditions under which a check applies: what a component declares in its class attributes."""

from __future__ import annotations

from ebmcore.testing.rules import Condition

ANY_SHAPE = Condition(
    "to samplers, and to losses that bring neither energy nor batch of their own", lambda case: case.takes_any_shape
)
ANY_LOSS_ENERGY = Condition("to losses that bring no energy of their own", lambda case: not case.own_energy)
TAKES_SAMPLER = Condition("to losses that take a sampler", lambda case: case.component.needs_sampler)
CONDITIONS = Condition(
    "to losses whose labels are conditions of an energy that the kit may choose",
    lambda case: case.labels == "conditions" and case.takes_any_shape,
)
LABELLED_CD = Condition(
    "to losses of the contrastive-divergence family whose labels are conditions",
    lambda case: case.cd and case.labels == "conditions" and case.takes_any_shape,
)
ONE_BACKWARD = Condition("to losses that declare double_backward = False", lambda case: not case.component.double_backward)
TARGETS = Condition("to losses whose labels are targets", lambda case: case.labels == "targets")
FITS = Condition(
    "to losses of a density on continuous spaces that bring neither energy nor batch of their own",
    lambda case: case.space in (None, "continuous") and case.takes_any_shape and not case.interpolates,
)
FITS_UNITS = Condition(
    "to losses of binary units that bring neither energy nor batch of their own",
    lambda case: case.space == "binary" and case.takes_any_shape,
)
IS_CD = Condition("to losses of the contrastive-divergence family", lambda case: case.cd)
ON_CD_BASE = Condition("to losses on BaseContrastiveDivergence", lambda case: case.on_cd_base)
COMPARABLE = Condition(
    "to losses of the contrastive-divergence family or without randomness", lambda c: c.cd or not c.draws()
)
ENERGY_ALONE = Condition("to losses without parameters of their own", lambda case: not case.has_parameters)
PERSISTENT = Condition("to persistent losses", lambda case: case.persistent)
STARTS_AT_DATA = Condition("to losses that start chains at the data", lambda case: case.cd and case.component.starts_at_data)
RANDOM = Condition("to components that draw random numbers", lambda case: case.draws())
SAMPLES = Condition(
    "to losses of the contrastive-divergence family and samplers that draw random numbers",
    lambda case: case.draws() and (case.kind == "sampler" or case.cd),
)
EXACT = Condition("to samplers declared exact", lambda case: case.declares("exact"))
NOT_EXACT = Condition("to samplers not declared exact", lambda case: not case.declares("exact"))
REVERSIBLE = Condition("to samplers declared reversible", lambda case: case.declares("reversible"))
CONTINUOUS = Condition("to samplers on continuous spaces", lambda case: case.continuous)
ANY_ENERGY = Condition("to samplers that ask the energy for its value alone", lambda case: not case.requires)
DISCRETE = Condition("to samplers on spaces that can be enumerated", lambda case: bool(case.discrete))


def takes(*options: str) -> Condition:
    """Applies where the constructor takes these options."""
    return Condition(f"where the constructor takes {' and '.join(options)}", lambda case: case.accepts(*options))
