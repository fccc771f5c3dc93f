"""Bases of losses: what a contrastive-divergence variant is assembled from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ebmcore._keywords import StrictKeywords
from ebmcore.chains import PersistentChains
from ebmcore.conditions import condition, name_conditions, split_conditions
from ebmcore.diagnostics import Diagnostics
from ebmcore.distributed import world
from ebmcore.distributions import InitialDistribution, Normal
from ebmcore.energies import (
    SupportsDataStatistics,
    SupportsInitialDistribution,
    check_energies,
    first_tensor,
    frozen,
    set_plainly,
    supports,
)
from ebmcore.errors import DivergenceError, UsageError
from ebmcore.samplers import ChainState, Sampler, advance, as_rows, check_sampler, finite_rows


class BaseLoss(StrictKeywords, nn.Module, ABC):
    """A loss that trains an energy.

    What a loss says of itself in class attributes is what the conformance kit (`ebmcore.testing`) holds it to.

    Attributes:
        family: ``"contrastive-divergence"`` or ``"other"``.
        needs_sampler: Whether its constructor takes a sampler after the energy.
        example_options: Further options with which the conformance kit makes one.
        metrics: Detached 0-dim diagnostics of the last call. Reading one (``.item()``) is the only synchronisation.
        generator: Source of the loss's randomness, on its device; `None` uses torch's global generator.
    """

    family: ClassVar[str] = "other"
    needs_sampler: ClassVar[bool] = False
    state_space: ClassVar[str | None] = None
    labels: ClassVar[str | None] = "conditions"
    example_options: ClassVar[Mapping[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.step = 0
        self.built = False
        self.metrics: MutableMapping[str, Tensor] = {}
        self.generator: torch.Generator | None = None

    def fitted_precision(self, variance: float) -> float:
        """The precision of a quadratic energy that minimises the loss on normal data of that variance: 1 over it.

        A loss that smooths the data, such as denoising score matching with ``1 / (variance + sigma**2)``, overrides it.
        """
        return 1 / variance

    def build(self, shape: Sequence[int]) -> None:
        """Make the parts whose shape depends on the data; none by default."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups as torch's optimizers take them."""
        return [{"params": list(self.parameters())}]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile what the loss samples: nothing, by default."""

    @abstractmethod
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The scalar loss (0-dim) of a batch ``x`` ``(B, *shape)``, or a tuple whose first item is it."""


class BaseContrastiveDivergence(BaseLoss):
    r"""Base of the contrastive-divergence (CD) family.

    The gradient of the negative log-likelihood of an energy-based model is

    .. math:: \nabla_\theta L = E_{data}[\nabla_\theta E_\theta(x)] - E_{model}[\nabla_\theta E_\theta(x)],

    and a CD variant is a way to draw the negative samples of the second term: from where the chains start
    (`start_chains`), by which sampler and for how many steps, and what becomes of the chains (`keep_chains`). A variant
    writes ``forward`` and ``compute_loss`` from the pieces below; plain CD-k is two lines of the one and one of the other.

    Args:
        energy: The model, any module ``(B, *shape) -> (B,)``.
        sampler: A `Sampler`. It receives the energy at each call.
        k_steps: Transitions per call, at least 1.
        energy_l2: Weight of the mean squared energies of data and negatives, a regulariser (Du and Mordatch, 2019,
            "Implicit generation and modeling with energy-based models"). Off by default: with it the loss is no longer
            invariant to a constant added to the energy.
        joint_forward: Score data and negatives in one forward of the concatenated batch, which is faster on small batches
            and gives both the same batch statistics. Set it to `False` for an energy whose value for one example must not
            depend on the other half, or whose memory does not allow it.

    Attributes:
        persistent: Whether chains go on where they stopped in the last call. Its constructor then takes ``n_chains``.
        starts_at_data: Whether new chains start at a copy of the data; a persistent variant's do not.
        chains: The store of persistent chains; empty in a variant that has none.
        generator: As in `BaseLoss`. Without one the chains of a process group's ranks are drawn from generators that are seeded
            from the global one and the rank, for ranks with the same seed must not draw the same chains.
        compiled: Whether transitions are compiled, see `compile`.

    Source: G. E. Hinton (2002), "Training products of experts by minimizing contrastive divergence".

    Example:
        >>> from ebmcore.testing import ExactGaussian, Quadratic
        >>> class CD(BaseContrastiveDivergence):
        ...     def forward(self, x, *args, **kwargs):
        ...         pred_x = self.draw_negatives(x, *args, **kwargs)
        ...         return self.compute_loss(x, pred_x, *args, **kwargs), pred_x
        ...
        ...     def compute_loss(self, x, pred_x, *args, **kwargs):
        ...         return self.energy_gap(x, pred_x, *args, **kwargs)
        >>> cd = CD(Quadratic((2,)), ExactGaussian(), k_steps=1)
        >>> loss, pred_x = cd(torch.randn(8, 2))
        >>> loss.backward()
        >>> loss.shape, pred_x.shape, cd.energy.precision.grad is not None
        (torch.Size([]), torch.Size([8, 2]), True)
    """

    family = "contrastive-divergence"
    needs_sampler = True
    persistent: ClassVar[bool] = False
    starts_at_data: ClassVar[bool] = True

    def __init__(
        self,
        energy: nn.Module,
        sampler: Sampler,
        k_steps: int = 1,
        *,
        energy_l2: float = 0.0,
        joint_forward: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(energy, nn.Module):
            raise TypeError(
                f"energy must be a torch.nn.Module that maps (B, *shape) to (B,), got {type(energy).__name__}: "
                "wrap a function in a module's forward()"
            )
        if isinstance(k_steps, bool) or not isinstance(k_steps, int) or k_steps < 1:
            raise ValueError(f"k_steps must be a whole number of at least 1, got {k_steps!r}")
        if not energy_l2 >= 0:
            raise ValueError(f"energy_l2 must be at least 0, got {energy_l2!r}")
        check_sampler(sampler, energy)
        self.energy = energy
        self.sampler = sampler
        self.k_steps = k_steps
        self.energy_l2 = energy_l2
        self.joint_forward = joint_forward
        self.chains = PersistentChains()
        self.compiled = False
        self._negatives: ChainState | None = None
        self.register_load_state_dict_post_hook(_move_loaded_chains)  # type: ignore[no-untyped-call]

    @abstractmethod
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The loss of a batch and the negative samples.

        Args:
            x: Real data ``(B, *shape)`` in the loss's dtype, on its device.
            args: Conditions of the data (labels), tensors with one row for each example. The energy receives them with
                ``x``, and each chain keeps its own.
            kwargs: Conditions by name.

        Returns:
            The 0-dim loss, and the detached negative samples ``pred_x``.
        """

    @abstractmethod
    def compute_loss(self, x: Tensor, pred_x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The 0-dim loss for given negatives: its gradient is the CD estimate of the likelihood's.

        Args:
            x: Real data ``(B, *shape)``.
            pred_x: Negative samples ``(M, *shape)``, detached. A row that is not finite has weight 0.
            args: Conditions of the data.
            kwargs: Conditions by name.
        """

    @property
    def chain(self) -> Tensor | None:
        """Live positions of the persistent chains; `None` until first used."""
        return self.chains.x

    @property
    def device(self) -> torch.device:
        """Where the energy is."""
        first = first_tensor(self.energy)
        return torch.device("cpu") if first is None else first.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the energy, and so of data and chains."""
        first = first_tensor(self.energy, floating=True)
        return torch.get_default_dtype() if first is None else first.dtype

    def initial_distribution(self, shape: Sequence[int], x: Tensor | None = None) -> InitialDistribution:
        """Where chains of examples of ``shape`` start: the energy's own distribution, else a standard normal.

        Args:
            shape: The shape of one example.
            x: The current batch, for variants that start chains from data; `None` where there is none yet.
        """
        if supports(self.energy, SupportsInitialDistribution):
            own: InitialDistribution = self.energy.initial_distribution(torch.Size(shape))  # type: ignore[operator]
            return own
        return Normal(torch.zeros(tuple(shape), dtype=self.dtype, device=self.device))

    def initialize_persistent_chain(self, shape: Sequence[int]) -> Tensor:
        """The chain state of ``shape`` (number of chains first), from the initial distribution.

        The same shape again returns the same live tensor, in the loss's dtype and on its device; another shape starts the
        chains anew.
        """
        with self._apart():
            return self._allocate(tuple(shape), None)

    def draw_negatives(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Start chains, make ``k_steps`` transitions, keep the chains; return their positions, detached.

        A chain that has left the finite numbers is not finite in the result, counted in ``metrics["quarantined"]`` and without
        influence on the loss.

        Raises:
            DivergenceError: If no chain is finite.
        """
        self._check_batch(x)
        if self.training and torch.is_grad_enabled() and supports(self.energy, SupportsDataStatistics):
            with torch.no_grad():
                self.energy.observe_data(x, *args, **kwargs)  # type: ignore[operator]
        with self._apart(), self.negative_phase(), frozen(self.energy), torch.no_grad():
            state = self.start_chains(x, *args, **kwargs)
            state, info = advance(
                self.sampler, self.energy, state, self.k_steps, generator=self.generator, compile=self.compiled
            )
            self.keep_chains(state)
        told = Diagnostics()
        for name, value in info.items():
            told.later(name, _mean_of_finite, state, value)
        set_plainly(self, "_negatives", state)
        set_plainly(self, "metrics", told)
        return state.x

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Draw negatives by compiled graphs from now on, see `ebmcore.samplers.run`.

        Unlike ``torch.nn.Module.compile`` it takes no options, and leaves scoring as it is: a step's time is in its transitions.
        """
        if args or kwargs:
            raise UsageError("compile() of a loss takes no options: compile the energy yourself for others")
        self.compiled = True

    def negative_phase(self) -> AbstractContextManager[None]:
        """What holds while chains start and move: nothing, unless a variant's negatives are those of another energy."""
        return nullcontext()

    def start_chains(self, x: Tensor, *args: Any, **kwargs: Any) -> ChainState:
        """Where the chains of this call start: a copy of the data, unless a variant says otherwise."""
        return self.new_chains(x.detach().clone(), name_conditions(args, kwargs, x))

    def keep_chains(self, state: ChainState) -> None:
        """What becomes of the chains after their transitions: nothing, unless a variant keeps them."""

    def new_chains(self, x: Tensor, conditions: Mapping[str, Tensor]) -> ChainState:
        """Sampler state of chains at ``x`` that carry ``conditions``."""
        state = self.sampler.init(condition(self.energy, conditions), x, generator=self.generator)
        if not conditions:
            return state
        return state.with_tensors(state.tensors() | {f"conditions.{name}": t for name, t in conditions.items()})

    def energy_gap(self, x: Tensor, pred_x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        r"""Mean energy of the data minus mean energy of the finite negatives, plus the L2 term; 0-dim.

        .. math:: \frac1B\sum_i E(x_i) - \frac1M\sum_j E(\hat x_j)
                  + \lambda \Big(\frac1B\sum_i E(x_i)^2 + \frac1M\sum_j E(\hat x_j)^2\Big)

        Negatives of the last `draw_negatives` (that tensor or a detached view of it) are scored under their own conditions, any
        others under those given here, row by row. An energy that is not finite at finite negatives makes the loss not finite.
        """
        self._check_batch(x)
        if pred_x.shape[1:] != x.shape[1:]:
            raise UsageError(
                f"data and negatives must be examples of one shape, got {tuple(x.shape[1:])} and {tuple(pred_x.shape[1:])}"
            )
        conditions = name_conditions(args, kwargs, x)
        negative_conditions = self._conditions_of(pred_x, conditions)
        finite = finite_rows(pred_x)
        # A stand-in with weight 0 where a chain is not finite: 0 * NaN would still be NaN in the gradient.
        stand_in = x if x.shape == pred_x.shape else x[:1]
        scored = torch.where(as_rows(finite, pred_x), pred_x.detach() if pred_x.requires_grad else pred_x, stand_in)
        energies = self._score(x, scored, conditions, negative_conditions)
        counted = finite.to(energies.dtype)
        n_finite = counted.sum()
        _assert_async(n_finite, "every negative sample has left the finite numbers")
        n = x.shape[0]
        weights = torch.cat([energies.new_full((n,), 1 / n), counted / -n_finite])
        gap = (weights * energies).sum()  # a dot product would be autocast
        told, values = Diagnostics(self.metrics), energies.detach()
        for name, measure in _MEASURES.items():
            told.later(name, measure, values, weights, n)
        set_plainly(self, "metrics", told)
        if not self.energy_l2:
            return gap
        l2 = self.energy_l2 * (weights.abs() * energies.square()).sum()
        told["energy_l2"] = l2.detach()
        return gap + l2

    def _score(
        self, x: Tensor, pred_x: Tensor, conditions: Mapping[str, Tensor], negative_conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """Energies of the data, then of the negatives."""
        if self.joint_forward:
            both = {name: torch.cat([t, negative_conditions[name]]) for name, t in conditions.items()}
            return self._energies(torch.cat([x, pred_x]), both)
        return torch.cat([self._energies(x, conditions), self._energies(pred_x, negative_conditions)])

    def _energies(self, x: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        args, kwargs = split_conditions(conditions)
        values = check_energies(self.energy(x, *args, **kwargs), x)
        return values if values.dtype.itemsize >= 4 else values.float()  # for means of half-precision energies

    def _conditions_of(self, pred_x: Tensor, conditions: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        last = None if self._negatives is None else self._negatives.x
        if last is not None and (last.data_ptr(), last.shape) == (pred_x.data_ptr(), pred_x.shape):
            assert self._negatives is not None
            return self._negatives.conditions
        return name_conditions((), conditions, pred_x)  # one row for each negative, or an error that says so

    def _apart(self) -> AbstractContextManager[None]:
        return nullcontext() if self.generator is not None or world()[1] == 1 else self._generator_of_the_rank()

    @contextmanager
    def _generator_of_the_rank(self) -> Iterator[None]:
        seed = int(torch.randint(2**62, ())) ^ (world()[0] * _GOLDEN % 2**62)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        try:
            yield
        finally:
            self.generator = None

    def _allocate(self, shape: tuple[int, ...], x: Tensor | None) -> Tensor:
        chains, dtype, device = self.chains, self.dtype, self.device
        chains.follow(dtype, device)  # the energy may have been moved by itself
        if chains.x is not None and chains.hold(shape):
            chains.share()
            return chains.x
        initial = self.initial_distribution(shape[1:], x)
        return chains.allocate(shape, initial, dtype=dtype, device=device, generator=self.generator)

    def _check_batch(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or x.ndim < 2 or not x.shape[0]:
            given = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise UsageError(f"x must be a tensor (B, *shape) with at least one example, got {given}")
        if x.dtype != self.dtype and not torch.is_autocast_enabled(x.device.type):
            raise UsageError(f"x is {x.dtype} but the loss is {self.dtype}: pass x.to(loss.dtype), or move the loss")


_GOLDEN = 0x9E3779B97F4A7C15  # spreads small numbers over all bits


def _mean_of_finite(state: ChainState, value: Tensor) -> Tensor:
    finite = state.finite()
    return torch.where(finite, value, 0).sum() / finite.sum()


# What a loss tells: of the energies of a batch's ``n`` data and its negatives, and of their weights.
def _mean_data(energies: Tensor, weights: Tensor, n: int) -> Tensor:
    return energies[:n].mean()


def _mean_negatives(energies: Tensor, weights: Tensor, n: int) -> Tensor:
    return -(weights * energies)[n:].sum()


def _gap(energies: Tensor, weights: Tensor, n: int) -> Tensor:
    return (weights * energies).sum()


def _number_lost(energies: Tensor, weights: Tensor, n: int) -> Tensor:
    return (weights[n:] == 0).sum()


_MEASURES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "energy_data": _mean_data,
    "energy_negatives": _mean_negatives,
    "energy_gap": _gap,
    "quarantined": _number_lost,
}


def _assert_async(condition: Tensor, message: str) -> None:
    """Raise unless ``condition`` holds; on an accelerator without waiting for the device."""
    try:
        torch._assert_async(condition, message)
    except RuntimeError as error:
        raise DivergenceError(
            f"{message}: lower the step size or the learning rate, or regularise the energy "
            "(energy_l2, spectral normalisation)"
        ) from error


def _move_loaded_chains(loss: nn.Module, _: Any) -> None:
    assert isinstance(loss, BaseContrastiveDivergence)
    loss.chains.follow(loss.dtype, loss.device)
