"""Samplers: Markov kernels with explicit state, and `run`, the one driver of all of them.

A sampler is three pure functions, ``init``, ``step`` and ``refresh``; what a chain carries from step to step lies in its
`ChainState`. The rules that are easy to get wrong (frozen parameters, modes, detaching, chains that leave the finite
numbers) are `run`'s, so that a new sampler is only its mathematics.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from ebmcore._keywords import StrictKeywords
from ebmcore.conditions import condition
from ebmcore.energies import frozen, require

__all__ = ["BaseSampler", "ChainState", "Info", "Observer", "Sampler", "as_rows", "finite_rows", "run", "select_chains"]

Info = Mapping[str, Tensor]
State = TypeVar("State", bound="ChainState")
_CONDITION = "conditions."


@dataclass(eq=False)
class ChainState:
    """The state of ``N`` chains: tensors with the chain first.

    A sampler that carries more than positions derives its own dataclass from it and adds tensors; one that carries something else
    than tensors overrides `tensors` and `with_tensors`. Conditions (labels) belong to the chain; the driver hands them to the
    energy.

    Args:
        x: Positions ``(N, *shape)``: what a loss sees as negative samples.
        conditions: Named conditions, each ``(N, ...)``.
    """

    x: Tensor
    conditions: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)

    def __len__(self) -> int:
        return self.x.shape[0]  # torch's len() takes ten times as long, and this is asked for in every step

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the state by name."""
        kind: Any = type(self)
        own = {name: getattr(self, name) for name in _own_fields(kind)}
        return own | {_CONDITION + name: t for name, t in self.conditions.items()} if self.conditions else own

    def with_tensors(self: State, tensors: Mapping[str, Tensor]) -> State:
        """A state of this kind made of ``tensors``, named as `tensors` names them."""
        own = {name: value for name, value in tensors.items() if not name.startswith(_CONDITION)}
        conditions = {name.removeprefix(_CONDITION): v for name, v in tensors.items() if name.startswith(_CONDITION)}
        return replace(self, **own, conditions=conditions)

    def _moving(self) -> dict[str, Tensor]:
        """What may leave the finite numbers; a condition stays what it was given as, such as a mask of minus infinity."""
        return {n: t for n, t in self.tensors().items() if t.is_floating_point() and not n.startswith(_CONDITION)}

    def finite(self) -> Tensor:
        """``(N,)`` bool: which chains hold only finite numbers, their conditions apart."""
        finite = [finite_rows(t) for t in self._moving().values()]
        if not finite:
            return torch.ones(len(self), dtype=torch.bool, device=self.x.device)
        return finite[0] if len(finite) == 1 else torch.stack(finite).all(0)


@cache
def _own_fields(kind: type[ChainState]) -> tuple[str, ...]:
    return tuple(f.name for f in fields(kind) if f.name != "conditions")


def finite_rows(t: Tensor) -> Tensor:
    """``(N,)`` bool: which rows of ``t`` ``(N, ...)`` hold only finite numbers."""
    if not t.numel():
        return torch.ones(len(t), dtype=torch.bool, device=t.device)
    zeros = t - t  # not a number where t is not finite, and then neither is their sum, which is not false
    return (zeros.sum(tuple(range(1, t.ndim))) if t.ndim > 1 else zeros).logical_not()


def select_chains(mask: Tensor, chosen: State, other: State) -> State:
    """The chains of ``chosen`` where ``mask`` ``(N,)`` holds, those of ``other`` elsewhere."""
    return chosen.with_tensors(tensors_where(mask, chosen, other))


def tensors_where(mask: Tensor, chosen: ChainState, other: ChainState) -> dict[str, Tensor]:
    """The tensors of `select_chains`."""
    others = other.tensors()
    return {name: torch.where(as_rows(mask, t), t, others[name]) for name, t in chosen.tensors().items()}


def as_rows(mask: Tensor, like: Tensor) -> Tensor:
    """``mask`` ``(N,)`` shaped to broadcast over the rows of ``like`` ``(N, ...)``."""
    return mask if like.ndim == 1 else mask.view(-1, *(1,) * (like.ndim - 1))


@runtime_checkable
class Sampler(Protocol):
    """A Markov kernel whose state is explicit. Hidden attributes carry no chain.

    A sampler never owns the energy: it receives it at each call.
    """

    def init(self, energy: nn.Module, x: Tensor, *, generator: torch.Generator | None = None) -> ChainState:
        """The state of chains at positions ``x`` ``(N, *shape)``."""
        ...

    def step(self, energy: nn.Module, state: Any, *, generator: torch.Generator | None = None) -> tuple[ChainState, Info]:
        """One transition of every chain.

        Pure: the same inputs and generator state give the same output. ``info`` maps names to tensors ``(N,)``, such as
        ``acceptance_rate``. A chain whose energy is not a number must not stay where it is unseen: keep the energy in the state,
        or make the position not a number.
        """
        ...

    def refresh(self, energy: nn.Module, state: Any) -> ChainState:
        """Compute anew what was cached under old parameters; keep what belongs to the chain."""
        ...


class BaseSampler(StrictKeywords, ABC):
    """Convenience base: a subclass needs only ``step``.

    What a sampler says of itself in class attributes is what the conformance kit (`ebmcore.testing`) holds it to.

    Attributes:
        requires: Capabilities (protocols of `ebmcore.energies`) that the energy must have.
        state_space: ``"continuous"``, ``"binary"`` or ``"categorical"`` if it moves in that space only; `None` for any.
        exact: Whether a step leaves the target distribution invariant. If not, `predicted_bias` says how far off it is.
        reversible: Whether a step is in detailed balance with the target distribution.
        deterministic: Whether it draws no random numbers.
        has_memory: Whether a chain carries more than its position and what follows from it, such as replicas or a momentum:
            from an exact sample and a fresh memory it is of the target distribution only in the long run.
        example_options: Options with which the conformance kit makes one, suited to targets of about unit scale.
    """

    requires: ClassVar[tuple[type, ...]] = ()
    state_space: ClassVar[str | None] = None
    exact: ClassVar[bool] = False
    reversible: ClassVar[bool] = False
    deterministic: ClassVar[bool] = False
    has_memory: ClassVar[bool] = False
    example_options: ClassVar[Mapping[str, Any]] = {}

    def __init__(self) -> None:
        """No options; here so that a sampler without a constructor of its own rejects keywords as the others do."""

    def init(self, energy: nn.Module, x: Tensor, *, generator: torch.Generator | None = None) -> ChainState:
        return ChainState(x)

    @abstractmethod
    def step(
        self, energy: nn.Module, state: Any, *, generator: torch.Generator | None = None
    ) -> tuple[ChainState, Info]: ...

    def refresh(self, energy: nn.Module, state: Any) -> ChainState:
        kept: ChainState = state
        return kept

    def predicted_bias(self, precision: float) -> float | None:
        """Relative error of the variance that the chain reaches on a Gaussian of that precision ``a``: ``Var / (T / a) - 1``.

        0 for an exact sampler. One that is not exact overrides it, or leaves it at `None`: nothing is known.
        """
        return 0.0 if self.exact else None

    def sample(self, energy: nn.Module, x: Tensor, n_steps: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Positions ``(N, *shape)`` after ``n_steps`` transitions from ``x``, which is left as it is.

        Example:
            >>> from ebmcore.testing import Identity, Quadratic
            >>> Identity().sample(Quadratic((2,)), torch.ones(3, 2), n_steps=5)
            tensor([[1., 1.],
                    [1., 1.],
                    [1., 1.]])
        """
        with frozen(energy), torch.no_grad():
            state = self.init(energy, x.detach().clone(), generator=generator)
        return run(self, energy, state, n_steps, generator=generator)[0].x


Observer = Callable[[int, ChainState, Info], None]


def check_sampler(sampler: object, energy: nn.Module) -> None:
    """Raise unless ``sampler`` is one and ``energy`` has what it requires."""
    if isinstance(sampler, type) or not isinstance(sampler, Sampler):
        raise TypeError(
            f"expected a sampler with init(), step() and refresh(), got {sampler!r}: pass an instance, "
            'e.g. ebmcore.create_sampler("langevin", step_size=0.01)'
        )
    for capability in getattr(sampler, "requires", ()):
        require(energy, capability, asked_by=type(sampler).__name__)


def run(
    sampler: Sampler,
    energy: nn.Module,
    state: ChainState,
    n_steps: int,
    *,
    generator: torch.Generator | None = None,
    compile: bool = False,
    observers: Sequence[Observer] = (),
) -> tuple[ChainState, dict[str, Tensor]]:
    """Run ``n_steps`` transitions of every chain. The only driver: losses, metrics and `BaseSampler.sample` use it.

    The energy's parameters are frozen and its modules in evaluation mode meanwhile; all is put back afterwards, also when
    the energy raises. The result is detached. A chain that has left the finite numbers, in any tensor of its state, is
    quarantined: its positions are not finite in the result (never clamped), so that whoever uses them sees it; `finite`
    finds it, `PersistentChains.write` restarts it and the loss gives it weight 0. Nothing here synchronises a device.

    Args:
        sampler: The Markov kernel.
        energy: The energy; it also receives the conditions of each chain.
        state: Where the chains are; not modified.
        n_steps: Number of transitions, at least 1.
        generator: The only source of randomness; `None` uses torch's global one.
        compile: Make the transitions by a compiled graph, of up to 32 steps, see `ebmcore.compiling`: from the same generator
            the same up to rounding. The first call is made without one and the second takes 5 to 30 seconds, for each number of
            chains and of steps; fewer chains than a graph has move without one. Where the sampler's step cannot be traced, a
            warning says why, and the energy's gradient is compiled alone.
        observers: Called as ``observer(i, state, info)`` after each transition; they must not change the state.

    Returns:
        The new state, and each ``info`` averaged over the steps, ``(N,)``.

    Raises:
        RuntimeError: Under ``torch.inference_mode``.

    Example:
        >>> from ebmcore.testing import ExactGaussian, Quadratic
        >>> start, generator = ChainState(torch.zeros(1000, 2)), torch.Generator().manual_seed(0)
        >>> state, info = run(ExactGaussian(), Quadratic((2,), precision=4.0), start, 1, generator=generator)
        >>> bool(abs(state.x.std() - 0.5) < 0.02)
        True
    """
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1, got {n_steps}")
    with frozen(energy), torch.no_grad():
        return advance(sampler, energy, state, n_steps, generator=generator, compile=compile, observers=observers)


def advance(
    sampler: Sampler,
    energy: nn.Module,
    state: ChainState,
    n_steps: int,
    *,
    generator: torch.Generator | None = None,
    compile: bool = False,
    observers: Sequence[Observer] = (),
) -> tuple[ChainState, dict[str, Tensor]]:
    """`run` for who has frozen the energy already and is under ``torch.no_grad``, as a loss is around more than this."""
    move: Callable[..., tuple[ChainState, dict[str, Tensor]]] = transitions
    if compile:
        from ebmcore.compiling.transitions import compiled_transitions  # with all that only compiling needs

        move = partial(compiled_transitions, transitions)
    if not observers:
        state, totals = move(sampler, energy, state, n_steps, generator=generator)
    else:
        totals = {}
        for i in range(n_steps):
            state, info = move(sampler, energy, state, 1, generator=generator)
            _add(totals, info)
            for observe in observers:
                observe(i, state, info)
    return _quarantine(state), {name: total / n_steps for name, total in totals.items()}


def transitions(
    sampler: Sampler, energy: nn.Module, state: ChainState, n_steps: int, *, generator: torch.Generator | None = None
) -> tuple[ChainState, dict[str, Tensor]]:
    """The state after ``n_steps`` transitions, detached, and the sum of what each told."""
    conditions = state.conditions
    energy = condition(energy, conditions)
    totals: dict[str, Tensor] = {}
    for _ in range(n_steps):
        state, info = sampler.step(energy, state, generator=generator)
        _add(totals, info)
    return _detached(state, conditions), {name: total.detach() for name, total in totals.items()}


def _add(totals: dict[str, Tensor], info: Info) -> None:
    for name, value in info.items():
        totals[name] = totals[name] + value if name in totals else value


def _detached(state: State, conditions: Mapping[str, Tensor]) -> State:
    tensors = state.tensors()
    graphs = {name: t.detach() for name, t in tensors.items() if t.requires_grad}
    if graphs:
        state = state.with_tensors(tensors | graphs)
    return state if state.conditions is conditions else replace(state, conditions=conditions)


def _quarantine(state: ChainState) -> ChainState:
    # Positions alone show by themselves that they are not finite; a chain lost elsewhere is marked there.
    if not state.x.is_floating_point() or not state._moving().keys() - {"x"}:
        return state
    return replace(state, x=state.x.masked_fill(~as_rows(state.finite(), state.x), torch.nan))
