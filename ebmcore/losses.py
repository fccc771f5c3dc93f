"""Bases of losses: what a contrastive-divergence variant, and any other loss of an energy, is assembled from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from ebmcore._keywords import StrictKeywords
from ebmcore.chains import PersistentChains, assert_async
from ebmcore.compiling import CompiledTransitions
from ebmcore.conditions import condition, name_conditions, split_conditions
from ebmcore.distributed import rank, world_size
from ebmcore.distributions import InitialDistribution, Normal, at_least_float32
from ebmcore.energies import SupportsDataStatistics, SupportsInitialDistribution, check_energies, frozen, supports
from ebmcore.errors import DivergenceError, UsageError
from ebmcore.random import stream_generator
from ebmcore.samplers import (
    ChainState,
    Sampler,
    Transitions,
    as_rows,
    check_sampler,
    eager_transitions,
    finite_rows,
    quarantine,
)

__all__ = ["BaseContrastiveDivergence", "BaseLoss"]


class BaseLoss(StrictKeywords, nn.Module, ABC):
    """A loss that trains an energy, which it keeps as ``self.energy``.

    What it declares in class attributes decides how the command line, `ebmcore.training.fit` and the conformance kit
    (`ebmcore.testing`) treat it. Keep each option under its own name, so that a schedule can change it.

    Attributes:
        family: ``"contrastive-divergence"`` or ``"other"``.
        needs_sampler: Whether its constructor takes a sampler after the energy.
        state_space: ``"continuous"``, ``"binary"`` or ``"categorical"``; `None` for data of any. An instance may set its own.
        weighted: Whether it takes `data_weights`.
        double_backward: Whether it differentiates a gradient of the energy, which the strategy ``"fsdp"`` cannot.
        labels: Further arguments of ``forward``: ``"conditions"`` of the energy, ``"targets"`` that it never sees, or `None`.
        example_options: Further options (plain data) with which the conformance kit makes one.
        expected_failures: Checks of the kit that are known to fail, each with its reason.
        metrics: Detached 0-dim diagnostics of the last call, by name; a new mapping at each call.
        generator: Source of the loss's randomness, on its device; `None` uses torch's global generator.
        step: Number of the training step, from 0. `ebmcore.training.fit` sets it; it is in ``state_dict()``.
        data_weights: Weights ``(B,)`` of the examples of this call, of mean 1 over all data, as `fit` sets them, or `None`.
        built: Whether `build` was called.
        transitions: What makes the transitions of its samplers: hand it to `ebmcore.samplers.run` or ``sample``; see `compile`.

    Example:
        >>> from ebmcore.testing import Quadratic
        >>> class ScoreMatching(BaseLoss):
        ...     def __init__(self, energy):
        ...         super().__init__()
        ...         self.energy = energy
        ...     def forward(self, x, *args, **kwargs):
        ...         x = x.detach().requires_grad_()
        ...         (grad,) = torch.autograd.grad(self.energies(x, *args, **kwargs).sum(), x, create_graph=True)
        ...         second = [torch.autograd.grad(grad[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(x.shape[1])]
        ...         return (0.5 * grad.square().sum(1) - sum(second)).mean()
        >>> ScoreMatching(Quadratic((2,)))(torch.zeros(8, 2)).item()
        -2.0
    """

    family: ClassVar[str] = "other"
    needs_sampler: ClassVar[bool] = False
    state_space: ClassVar[str | None] = None
    weighted: ClassVar[bool] = False
    double_backward: ClassVar[bool] = True
    labels: ClassVar[str | None] = "conditions"
    example_options: ClassVar[Mapping[str, Any]] = {}
    expected_failures: ClassVar[Mapping[str, str]] = {}
    energy: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.metrics: dict[str, Tensor] = {}
        self.generator: Generator | None = None
        self.step, self.built = 0, False
        self.data_weights: Tensor | None = None
        self.transitions: Transitions = eager_transitions

    @abstractmethod
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Returns the 0-dim loss of ``x`` ``(B, *shape)``, or a tuple that begins with it; `labels` follow, a row for each."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.metrics = {}
        return super().__call__(*args, **kwargs)

    def energies(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Returns the energies ``(B,)`` of ``x`` under its conditions: one number for each example, at least in float32."""
        return at_least_float32(check_energies(self.energy(x, *args, **kwargs), x))

    def build(self, shape: Sequence[int]) -> None:
        """Makes the parts that depend on the ``shape`` of an example, such as a second network; nothing unless overridden.

        `ebmcore.training.fit` calls it once, before it makes an optimizer; so does a training loop by hand.
        """

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns groups as ``torch.optim`` takes them: one, unless overridden to give a part its own ``"lr"``."""
        return [{"params": list(self.parameters())}]

    def compile(self) -> None:
        """Compiles what the loss samples, never the loss itself; see `ebmcore.compiling`.

        A graph is of what was there when it was made: call this again after changing layers of the energy.
        """
        self.transitions = CompiledTransitions()

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.step)  # a tensor, as checkpoints need

    def set_extra_state(self, state: Tensor) -> None:
        self.step = int(state)


class BaseContrastiveDivergence(BaseLoss):
    r"""Base of the contrastive-divergence (CD) family.

    The gradient of the negative log-likelihood of an energy-based model is

    .. math:: \nabla_\theta L = E_{data}[\nabla_\theta E_\theta(x)] - E_{model}[\nabla_\theta E_\theta(x)],

    and a CD variant is a way to draw the negative samples of the second term: where the chains start (`start_chains`), by which
    sampler they move and for how many steps, and what becomes of them (`keep_chains`).

    Args:
        energy: The model, any module ``(B, *shape) -> (B,)``.
        sampler: A `Sampler`. It receives the energy at each call.
        k_steps: Transitions per call, at least 1.
        energy_l2: Weight of the mean squared energies of data and negatives, a regulariser (Du and Mordatch, 2019). With it the
            loss is no longer invariant to a constant added to the energy.
        joint_forward: Score data and negatives in one forward of the concatenated batch, which is faster on small batches and
            gives both the same batch statistics. `False` saves memory; batch normalisation in training is then refused.

    Attributes:
        persistent: Whether chains continue where they stopped in the last call. The constructor then takes ``n_chains``.
        starts_at_data: Whether new chains start at a copy of the data.
        trains_more: Whether parameters beside the energy's are trained, such as those of a second network.
        chains: The store of persistent chains; empty in a variant that has none.
        negatives: The state of the last draw, with the conditions of each negative; `None` before it.
        generator: As in `BaseLoss`; without one, ranks of a process group draw from generators seeded by the global one and rank.

    Source: G. E. Hinton (2002), "Training products of experts by minimizing contrastive divergence".

    Example:
        >>> from ebmcore.testing import ExactGaussian, Quadratic
        >>> class CD(BaseContrastiveDivergence):
        ...     def forward(self, x, *args, **kwargs):
        ...         pred_x = self.draw_negatives(x, *args, **kwargs)
        ...         return self.compute_loss(x, pred_x, *args, **kwargs), pred_x
        ...     def compute_loss(self, x, pred_x, *args, **kwargs):
        ...         return self.energy_gap(x, pred_x, *args, **kwargs)
        >>> [result.shape for result in CD(Quadratic((2,)), ExactGaussian(), k_steps=1)(torch.randn(8, 2))]
        [torch.Size([]), torch.Size([8, 2])]
    """

    family = "contrastive-divergence"
    needs_sampler = weighted = True
    double_backward = False
    persistent: ClassVar[bool] = False
    starts_at_data: ClassVar[bool] = True
    trains_more: ClassVar[bool] = False

    def __init__(
        self, energy: nn.Module, sampler: Sampler, k_steps: int = 1, *, energy_l2: float = 0.0, joint_forward: bool = True
    ) -> None:
        super().__init__()
        if not isinstance(energy, nn.Module):
            raise TypeError(f"energy must be a torch.nn.Module, got {type(energy).__name__}: wrap a function in a module")
        if isinstance(k_steps, bool) or not isinstance(k_steps, int) or k_steps < 1:
            raise ValueError(f"k_steps must be a whole number of at least 1, got {k_steps!r}")
        if not energy_l2 >= 0:
            raise ValueError(f"energy_l2 must be at least 0, got {energy_l2!r}")
        check_sampler(sampler, energy)
        self.energy, self.sampler, self.k_steps = energy, sampler, k_steps
        self.energy_l2, self.joint_forward = energy_l2, joint_forward
        self.chains = PersistentChains()
        self.negatives: ChainState | None = None

    @abstractmethod
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Returns the 0-dim loss of data ``(B, *shape)`` and the detached negative samples ``pred_x``.

        Further arguments, by position or name, are conditions of the data: the energy takes them, and each chain keeps its own.
        """

    @abstractmethod
    def compute_loss(self, x: Tensor, pred_x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Returns the 0-dim loss for given negatives: its gradient is the CD estimate of the likelihood's.

        A function of the values of its arguments, data ``(B, *shape)`` and negatives ``(M, *shape)``, and of named state
        (`negatives`), never of which tensor object holds the values. A negative that is NaN or infinite has weight 0.
        """

    @property
    def chain(self) -> Tensor | None:
        """Live positions of the persistent chains, in the dtype and on the device of the energy; `None` until first used."""
        self.chains.move_to(self.dtype, self.device)  # they may have been loaded, or the energy moved alone
        return self.chains.x

    @property
    def device(self) -> torch.device:
        """Device of the energy."""
        return self._parameter.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the energy, and so of data and chains."""
        return self._parameter.dtype

    @property
    def _parameter(self) -> Tensor:
        modules = self.energy.modules()
        tensors = (t for m in modules for held in (m._parameters, m._buffers) for t in held.values() if t is not None)
        return next((t for t in tensors if t.is_floating_point()), torch.empty(0))

    def initial_distribution(self, shape: Sequence[int], x: Tensor | None = None) -> InitialDistribution:
        """Returns where chains start: the energy's own distribution, else a standard normal. ``x`` is the batch, if any."""
        if supports(self.energy, SupportsInitialDistribution):
            return self.energy.initial_distribution(torch.Size(shape))  # type: ignore[operator,no-any-return]
        return Normal(torch.zeros(tuple(shape), dtype=self.dtype, device=self.device))

    def initialize_persistent_chain(self, shape: Sequence[int]) -> Tensor:
        """Returns the live chains of ``shape`` (number of chains first); allocates them at first and for another shape."""
        chains, like = self.chains, self._parameter
        if not chains.matches(shape):
            return self._allocate_chains(shape, None)
        chains.move_to(like.dtype, like.device)  # the energy may have been moved alone
        chains.keep_local_shard()  # the process group may be younger than the chains
        return chains.tensors["x"]

    def _allocate_chains(self, shape: Sequence[int], x: Tensor | None) -> Tensor:
        with self._rank_generator():
            initial = self.initial_distribution(shape[1:], x)
            return self.chains.allocate(shape, initial, dtype=self.dtype, device=self.device, generator=self.generator)

    def draw_negatives(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Starts chains, makes ``k_steps`` transitions and keeps the chains; returns their positions, detached.

        Chains that are NaN or infinite stay so, and do not count in the loss and in what the sampler reports to ``metrics``.
        """
        self._check_batch(x)
        energy, training = self.energy, self.training and torch.is_grad_enabled()
        with torch.no_grad(), self._rank_generator():
            if training and supports(energy, SupportsDataStatistics):
                energy.observe_data(x, *args, **kwargs)  # type: ignore[operator]
            with self.negative_phase(), frozen(energy):
                state = self.start_chains(x, *args, **kwargs)
                state, totals = self.transitions(self.sampler, energy, state, self.k_steps, generator=self.generator)
                state = quarantine(state)
                self.keep_chains(state)
        self.negatives = state
        if totals:
            finite = state.finite()
            n = self.k_steps * finite.sum()
            self.metrics |= {name: torch.where(finite, total, 0).sum() / n for name, total in totals.items()}
        return state.x  # type: ignore[no-any-return]

    def negative_phase(self) -> AbstractContextManager[None]:
        """Context in which chains start and move; nothing unless a variant's negatives are those of another energy."""
        return nullcontext()

    def start_chains(self, x: Tensor, *args: Any, **kwargs: Any) -> ChainState:
        """Returns the chains that this call moves: a copy of the data unless overridden. Called with the energy frozen."""
        return self.new_chains(x.detach().clone(), name_conditions(args, kwargs, x))

    def keep_chains(self, state: ChainState) -> None:
        """Receives the chains after their transitions; nothing unless a variant keeps them."""

    def new_chains(self, x: Tensor, conditions: Mapping[str, Tensor]) -> ChainState:
        """Returns the sampler's state of new chains at ``x`` that carry ``conditions``."""
        state = self.sampler.init(condition(self.energy, conditions), x, generator=self.generator)
        return replace(state, conditions=conditions) if conditions else state

    def energy_gap(
        self,
        x: Tensor,
        pred_x: Tensor,
        *args: Any,
        data_weights: Tensor | None = None,
        negative_weights: Tensor | None = None,
        negative_conditions: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        r"""Returns the mean energy of the data minus that of the finite negatives, plus the L2 term; 0-dim.

        .. math:: \sum_i w_i E(x_i) - \sum_j v_j E(\hat x_j)
                  + \lambda \Big(\sum_i w_i E(x_i)^2 + \sum_j v_j E(\hat x_j)^2\Big)

        with weights that sum to 1, equal unless given.

        Args:
            x: Real data ``(B, *shape)``.
            pred_x: Negative samples ``(M, *shape)``. A row that is NaN or infinite has weight 0.
            args: Conditions of the data, by position or (``kwargs``) by name.
            data_weights: Weights of the data ``(B,)``, at least 0, normalised here. `None` takes `data_weights`, as they are.
            negative_weights: Weights of the negatives ``(M,)``, at least 0, normalised here.
            negative_conditions: Conditions of the negatives by name (``"0"`` is the first positional one). The default is those
                of the last draw (`negatives`) where chains persist, otherwise those of the data, row by row.

        Raises:
            DivergenceError: If no negative sample is finite; on an accelerator the error is raised asynchronously.
        """
        self._check_batch(x)
        if pred_x.shape[1:] != x.shape[1:]:
            raise UsageError(f"data and negatives must be of one shape, got {tuple(x.shape)} and {tuple(pred_x.shape)}")
        own = self.data_weights if data_weights is None else None
        if own is not None and negative_weights is None and self.starts_at_data and not self.persistent:
            negative_weights = own.double() + 1e-300  # those of where chains started; a batch of zeros loses none
        conditions = name_conditions(args, kwargs, x)
        negative_conditions = self._conditions_of_negatives(pred_x, conditions, negative_conditions)
        finite = finite_rows(pred_x)
        # A stand-in with weight 0 where a chain is not finite: 0 * NaN would still be NaN in the gradient.
        scored = torch.where(as_rows(finite, pred_x), pred_x.detach(), x if x.shape == pred_x.shape else x[:1])
        energies = self._score(x, scored, conditions, negative_conditions)
        of_data = energies.new_full((len(x),), 1 / len(x)) if own is None else (own / len(x)).to(energies.dtype)
        if data_weights is not None:
            of_data = _normalised(data_weights, of_data > 0, energies.dtype, _NO_DATA)
        of_negatives = _normalised(negative_weights, finite, energies.dtype, _ALL_LOST)
        weights = torch.cat([of_data, -of_negatives if own is None else -of_data.sum() * of_negatives])
        gap = weights.dot(energies)
        energy_data = of_data.dot(energies.detach()[: len(x)])
        self.metrics |= {
            "energy_data": energy_data,
            "energy_negatives": energy_data - gap.detach(),
            "energy_gap": gap.detach(),
            "quarantined": finite.logical_not().sum(),
        }
        if not self.energy_l2:
            return gap
        l2 = self.energy_l2 * (weights.abs() * energies.square()).sum()
        self.metrics["energy_l2"] = l2.detach()
        return gap + l2

    def _score(self, x: Tensor, pred_x: Tensor, of_data: Mapping[str, Tensor], of_negatives: Mapping[str, Tensor]) -> Tensor:
        """Returns the energies of the data, then of the negatives, each under its conditions."""
        if self.joint_forward:
            args, kwargs = split_conditions({name: torch.cat([t, of_negatives[name]]) for name, t in of_data.items()})
            return self.energies(torch.cat([x, pred_x]), *args, **kwargs)
        norms = [m for m in self.energy.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if any(m.training or m.running_mean is None for m in norms):
            reason = "joint_forward=False gives data and negatives other batch statistics"
            raise UsageError(f"{reason}: leave it out, or the BatchNorm")
        halves = [(x, *split_conditions(of_data)), (pred_x, *split_conditions(of_negatives))]
        return torch.cat([self.energies(half, *args, **kwargs) for half, args, kwargs in halves])

    def _conditions_of_negatives(
        self, pred_x: Tensor, of_data: Mapping[str, Tensor], given: Mapping[str, Tensor] | None
    ) -> Mapping[str, Tensor]:
        if given is None and of_data and self.persistent:
            if self.negatives is None or len(self.negatives) != len(pred_x):
                raise UsageError(f"these {len(pred_x)} negatives are not those of the last draw: pass negative_conditions")
            given = self.negatives.conditions
        given = of_data if given is None else given
        if given.keys() != of_data.keys():
            raise UsageError(f"the data have the conditions {sorted(of_data)}, the negatives {sorted(given)}: pass the same")
        return name_conditions((), given, pred_x)  # one row for each negative, or an error that says so

    @contextmanager
    def _rank_generator(self) -> Iterator[None]:
        own = self.generator
        if own is None and world_size() > 1:
            seed = int(torch.randint(2**62, ()))  # equal on all ranks where their global seeds are
            self.generator = stream_generator(seed, "chains", rank=rank(), device=self.device)
        try:
            yield
        finally:
            self.generator = own

    def _check_batch(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or x.ndim < 2 or not x.shape[0]:
            given = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise UsageError(f"x must be a tensor (B, *shape) with at least one example, got {given}")
        if x.dtype != self.dtype and not torch.is_autocast_enabled(x.device.type):
            raise UsageError(f"x is {x.dtype} but the loss is {self.dtype}: pass x.to(loss.dtype), or move the loss")

    def _apply(self, fn: Any, recurse: bool = True) -> BaseContrastiveDivergence:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.negatives is not None:
            self.negatives = self.negatives.with_tensors({name: fn(t) for name, t in self.negatives.tensors().items()})
        return self


def _normalised(weights: Tensor | None, counted: Tensor, dtype: torch.dtype, nothing_left: str) -> Tensor:
    """Returns weights that sum to 1, equal unless given, and 0 where not ``counted``."""
    if weights is None:
        weights = counted.to(dtype)
    elif weights.shape != counted.shape:
        raise UsageError(f"weights must be {tuple(counted.shape)}, one for each example, got {tuple(weights.shape)}")
    else:
        weights = torch.where(counted, weights.detach().double(), 0)  # those of annealed chains may exceed float32
        wrong = UsageError("a weight is negative, NaN or infinite: weights must be finite and at least 0")
        assert_async(((weights >= 0) & weights.isfinite()).all(), wrong)
    total = weights.sum()
    assert_async(total, DivergenceError(nothing_left))
    return (weights / total).to(dtype)


_NO_DATA = "every example of the data has weight 0: give data_weights that are not all 0"
_ALL_LOST = "every negative is NaN or infinite or has weight 0: lower the step size or the learning rate, or raise energy_l2"
