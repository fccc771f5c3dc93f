"""Samplers: Markov kernels with explicit state, and `run`, the one driver of all of them.

A sampler is three pure functions, ``init``, ``step`` and ``refresh``; what a chain carries from step to step lies in its
`ChainState`. `run` freezes parameters, sets evaluation mode, detaches and finds chains that became NaN or infinite.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from torch import Generator, Tensor, nn

from ebmcore._keywords import StrictKeywords
from ebmcore.conditions import condition, name_conditions
from ebmcore.energies import frozen, require

__all__ = [
    "BaseSampler", "ChainState", "Info", "Observer", "Sampler", "Transitions", "as_rows", "check_sampler",
    "eager_transitions", "finite_rows", "run", "sample", "select_chains",
]  # fmt: skip

Info = Mapping[str, Tensor]
State = TypeVar("State", bound="ChainState")
CONDITION = "conditions."  # prefix of the names that conditions have among the tensors of a state


@dataclass(eq=False)
class ChainState:
    """The state of ``N`` chains: tensors with the chain first.

    A sampler that carries more derives its own dataclass; for fields that are no tensors override `tensors` and `with_tensors`.

    Args:
        x: Positions ``(N, *shape)``: what a loss sees as negative samples.
        conditions: Conditions of each chain (labels) by name, each ``(N, ...)``; the driver hands them to the energy.

    Attributes:
        records: Names of the tensors that record changes of the parameters, such as a log-weight: `Sampler.refresh` updates them.
    """

    x: Tensor
    conditions: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)
    records: ClassVar[tuple[str, ...]] = ()

    def __len__(self) -> int:
        return self.x.shape[0]  # the tensor's own len() is a Python function

    def tensors(self) -> dict[str, Tensor]:
        """Returns all tensors of the state by name; those of conditions are named ``"conditions.<name>"``."""
        own = {name: t for name, t in vars(self).items() if name != "conditions"}
        return own | {CONDITION + name: t for name, t in self.conditions.items()} if self.conditions else own

    def with_tensors(self: State, tensors: Mapping[str, Tensor]) -> State:
        """Returns a state of this kind made of ``tensors``, named as `tensors` names them."""
        own = {name: t for name, t in tensors.items() if not name.startswith(CONDITION)}
        return replace(self, **own, conditions=conditions_among(tensors))

    def finite(self) -> Tensor:
        """Returns ``(N,)`` bool: which chains hold no NaN and no infinity, their conditions aside."""
        tensors = self.tensors().items()
        rows = [finite_rows(t) for name, t in tensors if t.is_floating_point() and not name.startswith(CONDITION)]
        return reduce(torch.logical_and, rows) if rows else self.x.new_ones(len(self), dtype=torch.bool)


def conditions_among(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the conditions among the tensors of a state, by their own names."""
    return {name.removeprefix(CONDITION): t for name, t in tensors.items() if name.startswith(CONDITION)}


def finite_rows(t: Tensor) -> Tensor:
    """Returns ``(N,)`` bool: which rows of ``t`` ``(N, ...)`` hold no NaN and no infinity."""
    zeros = t - t  # NaN where t is not finite
    return (zeros.sum(tuple(range(1, t.ndim))) if t.ndim > 1 else zeros).logical_not()


def select_chains(mask: Tensor, chosen: State, other: State) -> State:
    """Returns the chains of ``chosen`` where ``mask`` ``(N,)`` is true, those of ``other`` elsewhere."""
    others = other.tensors()
    return chosen.with_tensors({n: torch.where(as_rows(mask, t), t, others[n]) for n, t in chosen.tensors().items()})


def as_rows(mask: Tensor, like: Tensor) -> Tensor:
    """Returns ``mask`` ``(N,)`` in a shape that broadcasts over the rows of ``like`` ``(N, ...)``."""
    return mask.view(-1, *(1,) * (like.ndim - 1))


@runtime_checkable
class Sampler(Protocol):
    """A Markov kernel whose state is explicit: no attribute of the sampler belongs to a chain.

    It receives the energy at each call, with its parameters frozen, in evaluation mode, under its conditions and
    ``torch.no_grad``; `ebmcore.energies.value_and_grad` computes gradients with respect to positions there.
    """

    def init(self, energy: nn.Module, x: Tensor, *, generator: Generator | None = None) -> ChainState:
        """Returns the state of chains at positions ``x`` ``(N, *shape)``."""

    def step(self, energy: nn.Module, state: Any, *, generator: Generator | None = None) -> tuple[ChainState, Info]:
        """Makes one transition of every chain; returns the new state and diagnostics.

        Pure: the same inputs and generator state give the same output. ``info`` maps names to tensors ``(N,)``, such as
        ``acceptance_rate``. A NaN energy of a chain has to show in its state: in an energy kept there, or in ``x``.
        """

    def refresh(self, energy: nn.Module, state: Any) -> ChainState:
        """The parameters have changed: recomputes what was cached, keeps what belongs to the chain, updates ``records``."""


class BaseSampler(StrictKeywords, ABC):
    """Convenience base: a subclass needs only ``step``. Keep each option under its own name, so that a schedule can change it.

    What a sampler declares in class attributes is what the conformance kit holds it to.

    Attributes:
        requires: Capabilities (protocols of `ebmcore.energies`) that the energy must have.
        state_space: ``"continuous"``, ``"binary"`` or ``"categorical"`` if it moves in that space only; `None` for any.
        exact: Whether a step leaves the target distribution invariant. If not, `predicted_bias` says how far off it is.
        reversible: Whether a step is in detailed balance with the target distribution.
        deterministic: Whether it draws no random numbers.
        has_memory: Whether a chain carries more than its position and what follows from it, such as replicas or a momentum.
        example_options: Options (plain data) with which the conformance kit makes one, suited to targets of about unit scale.
        expected_failures: Checks of the kit that are known to fail, each with its reason.
    """

    requires: ClassVar[tuple[type, ...]] = ()
    state_space: ClassVar[str | None] = None
    exact: ClassVar[bool] = False
    reversible: ClassVar[bool] = False
    deterministic: ClassVar[bool] = False
    has_memory: ClassVar[bool] = False
    example_options: ClassVar[Mapping[str, Any]] = {}
    expected_failures: ClassVar[Mapping[str, str]] = {}

    def __init__(self) -> None:
        """No options; here so that a sampler without a constructor of its own rejects keywords as the others do."""

    def init(self, energy: nn.Module, x: Tensor, *, generator: Generator | None = None) -> ChainState:
        return ChainState(x)

    @abstractmethod
    def step(self, energy: nn.Module, state: Any, *, generator: Generator | None = None) -> tuple[ChainState, Info]: ...

    def refresh(self, energy: nn.Module, state: Any) -> ChainState:
        return state  # type: ignore[no-any-return]

    def predicted_bias(self, precision: float) -> float | None:
        """Returns the relative error ``Var / (T / a) - 1`` of the variance for a Gaussian of precision ``a``, if known."""
        return 0.0 if self.exact else None

    def sample(self, energy: nn.Module, x: Tensor, n_steps: int, *, generator: Generator | None = None) -> Tensor:
        """Returns positions after ``n_steps`` transitions from ``x``: `ebmcore.samplers.sample` with this sampler."""
        return sample(self, energy, x, n_steps, generator=generator)


Observer = Callable[[int, ChainState, Info], None]
Transitions = Callable[..., tuple[Any, dict[str, Tensor]]]


def check_sampler(sampler: object, energy: nn.Module) -> None:
    """Raises unless ``sampler`` is a sampler and ``energy`` has the capabilities that it requires."""
    if isinstance(sampler, type) or not isinstance(sampler, Sampler):
        raise TypeError(f"expected a sampler with init(), step() and refresh(), got {sampler!r}: pass an instance of one")
    for capability in getattr(sampler, "requires", ()):
        require(energy, capability, asked_by=type(sampler).__name__)


def eager_transitions(
    sampler: Sampler, energy: nn.Module, state: ChainState, n_steps: int, *, generator: Generator | None = None
) -> tuple[ChainState, dict[str, Tensor]]:
    """Makes transitions for `run`, which has frozen the energy: returns the state, detached, and the sums of ``info``."""
    conditions, totals = state.conditions, dict[str, Tensor]()
    energy = condition(energy, conditions)
    for _ in range(n_steps):
        state, info = sampler.step(energy, state, generator=generator)
        _add(totals, info)
    tensors = state.tensors()
    if state.conditions is not conditions or any(t.requires_grad for t in tensors.values()):
        state = replace(state.with_tensors({name: t.detach() for name, t in tensors.items()}), conditions=conditions)
    return state, {name: total.detach() for name, total in totals.items()}


def run(
    sampler: Sampler,
    energy: nn.Module,
    state: ChainState,
    n_steps: int,
    *,
    generator: Generator | None = None,
    transitions: Transitions = eager_transitions,
    observers: Sequence[Observer] = (),
) -> tuple[ChainState, dict[str, Tensor]]:
    """Runs ``n_steps`` transitions of every chain. The only driver: losses, metrics and `sample` use it.

    The energy is frozen meanwhile (`ebmcore.energies.frozen`) and the result is detached. A chain that becomes NaN or infinite in
    any tensor of its state has positions that are so too: losses give it weight 0, persistent ones restart it. Nothing here
    synchronises a device. Raises a `RuntimeError` under ``torch.inference_mode``.

    Args:
        sampler: The Markov kernel.
        energy: The energy; it also receives the conditions of each chain.
        state: Where the chains are; not modified.
        n_steps: Number of transitions, at least 1.
        generator: The only source of randomness; `None` uses torch's global one.
        transitions: What makes the transitions: an `ebmcore.compiling.CompiledTransitions` makes them by compiled graphs.
        observers: Called as ``observer(i, state, info)`` after each transition; they must not change the state.

    Returns:
        The new state, and each ``info`` averaged over the steps, ``(N,)``.

    Example:
        >>> from ebmcore.testing import ExactGaussian, Quadratic
        >>> start, generator = ChainState(torch.zeros(1000, 2)), torch.Generator().manual_seed(0)
        >>> state, info = run(ExactGaussian(), Quadratic((2,), precision=4.0), start, 1, generator=generator)
        >>> bool(abs(state.x.std() - 0.5) < 0.02)
        True
    """
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1, got {n_steps}")
    totals: dict[str, Tensor] = {}
    with frozen(energy), torch.no_grad():
        together = 1 if observers else n_steps
        for i in range(0, n_steps, together):
            state, info = transitions(sampler, energy, state, together, generator=generator)
            _add(totals, info)
            for observe in observers:
                observe(i, state, info)
    return quarantine(state), {name: total / n_steps for name, total in totals.items()}


def sample(
    sampler: Sampler,
    energy: nn.Module,
    x: Tensor,
    n_steps: int,
    *,
    conditions: Mapping[str, Tensor] | None = None,
    generator: Generator | None = None,
    transitions: Transitions = eager_transitions,
) -> Tensor:
    """Starts chains at ``x``, runs ``n_steps`` transitions and returns the positions, detached.

    For losses outside the contrastive-divergence base, metrics and users. A loss hands on ``transitions=self.transitions``.

    Args:
        sampler: The Markov kernel.
        energy: The energy; it also receives ``conditions``.
        x: Where the chains start, ``(N, *shape)``; not modified.
        n_steps: Number of transitions, at least 1.
        conditions: What the energy takes beside ``x``, by name: a keyword, or ``"0"`` for the first positional argument.
        generator: As in `run`, and so is ``transitions``.

    Returns:
        Positions ``(N, *shape)``; those of chains that became NaN or infinite are so.

    Example:
        >>> from ebmcore.testing import Identity, Quadratic
        >>> sample(Identity(), Quadratic((2,)), torch.ones(2, 2), n_steps=5)
        tensor([[1., 1.],
                [1., 1.]])
    """
    check_sampler(sampler, energy)
    conditions = name_conditions((), conditions or {}, x)
    with frozen(energy), torch.no_grad():
        state = replace(sampler.init(condition(energy, conditions), x.clone(), generator=generator), conditions=conditions)
    return run(sampler, energy, state, n_steps, generator=generator, transitions=transitions)[0].x


def _add(totals: dict[str, Tensor], info: Info) -> None:
    for name, value in info.items():
        totals[name] = totals[name] + value if name in totals else value


def quarantine(state: State) -> State:
    """Returns the state with NaN positions for chains that are NaN or infinite in another tensor, where it would not show."""
    if type(state) is ChainState or not state.x.is_floating_point():
        return state
    return replace(state, x=state.x.masked_fill(~as_rows(state.finite(), state.x), torch.nan))
