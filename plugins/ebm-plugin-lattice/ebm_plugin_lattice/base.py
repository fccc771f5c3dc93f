r"""Base of spin models: sites that carry a vector each, and a coupling of each pair of neighbours.

.. math:: E(x) = -\sum_{i<j} J_{ij}\, \sigma_i \cdot \sigma_j - \sum_i h_i \cdot \sigma_i

On a periodic lattice :math:`J_{ij} = J` for nearest neighbours along each axis longer than 1. Along an axis of length 2 the two
sites are neighbours in both directions, so that their bond counts twice, as in the closed forms.

Exact answers come from the sum over all states, and :math:`\log Z` of a lattice in one or two dimensions also from products of
transfer matrices, whose rows and columns are the states of a row of sites.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from ebmcore.distributions import BaseDistribution
from ebmcore.errors import UsageError
from ebmcore.tempering import Tempered

MAX_STATES = 2**20
MAX_ROW_STATES = 2**10  # of a transfer matrix
_CHUNK = 2**16  # states at a time


class SpinModel(nn.Module, ABC):
    """Spins on a lattice or with given couplings. A subclass gives the vectors of sites (`spins`) and the law of one (`draw`).

    Args:
        shape: Shape of one example.
        sites: Shape of the lattice.
        n_values: Number of values of a site.
        coupling: ``J``, a number, or the symmetric matrix ``(n, n)`` of all ``n`` sites in the order of the flattened lattice.
        field: ``h`` for all sites or for each; `None` for none.
        n_components: Length of a field of one site.
    """

    base_type: ClassVar[type]  # distribution of independent sites: where annealing may begin
    unit_logit: ClassVar[float]  # what a field of 1 adds to the logits of a site
    closed_form: ClassVar[str] = ""  # when there is one, in words

    def __init__(
        self,
        shape: Sequence[int],
        sites: Sequence[int],
        n_values: int,
        coupling: float | Sequence[Sequence[float]] | Tensor,
        field: float | Sequence[float] | Tensor | None,
        n_components: int,
    ) -> None:
        super().__init__()
        self.shape, self.sites = torch.Size(shape), torch.Size(sites)
        self.n_sites, self.n_values = self.sites.numel(), n_values
        if self.n_sites < 2:
            raise UsageError(
                f"a spin model couples at least 2 sites, but examples of shape {tuple(self.shape)} have {self.n_sites}"
            )
        self.coupling = nn.Parameter(self._checked_coupling(torch.as_tensor(coupling, dtype=torch.get_default_dtype())))
        self.field: nn.Parameter | None = None
        if field is not None:
            given = torch.as_tensor(field, dtype=torch.get_default_dtype()).flatten()
            if len(given) not in (n_components, self.n_sites * n_components) or not given.isfinite().all():
                raise UsageError(
                    f"field must be {n_components} or {self.n_sites * n_components} numbers, not NaN or infinite, for "
                    f"{self.n_sites} sites, got {len(given)} numbers"
                )
            self.field = nn.Parameter(given.clone().view(-1, n_components))
        # Sites of one colour are independent given the others: they are drawn together.
        colours = self._colours()
        self.order: Tensor
        self.register_buffer("order", colours.argsort(stable=True), persistent=False)
        self.n_of_colour = torch.bincount(colours).tolist()

    def extra_repr(self) -> str:
        return f"shape={tuple(self.shape)}"

    @abstractmethod
    def spins(self, x: Tensor) -> Tensor:
        """Returns the vectors ``(N, n, components)`` of ``n`` sites, given as examples are."""

    @abstractmethod
    def encode(self, values: Tensor) -> Tensor:
        """Returns sites, as examples have them, with the values ``(N, n)``, numbers from 0."""

    @abstractmethod
    def draw(self, logits: Tensor, generator: Generator | None) -> Tensor:
        """Draws sites, as examples have them, by their logits ``(N, n, components)``."""

    def forward(self, x: Tensor) -> Tensor:
        return self._energies(self.spins(x), self.coupling, self.field)

    def _energies(self, spins: Tensor, coupling: Tensor, field: Tensor | None) -> Tensor:
        outer = 0.5 * self._from_neighbours(spins, coupling)
        return -(spins * (outer if field is None else outer + field)).sum((1, 2))

    def _from_neighbours(self, spins: Tensor, coupling: Tensor) -> Tensor:
        """Computes ``sum_j J_ij s_j`` ``(N, n, components)``."""
        if coupling.ndim:
            upper = torch.triu(coupling + coupling.T, 1) / 2
            return torch.einsum("ij,njc->nic", upper + upper.T, spins)
        on_lattice = spins.reshape(-1, *self.sites, spins.shape[-1])
        axes = [axis for axis, length in enumerate(self.sites, start=1) if length > 1]
        rolled = [on_lattice.roll(shift, axis) for axis in axes for shift in (1, -1)]
        return coupling * torch.stack(rolled).sum(0).view_as(spins)

    def _checked_coupling(self, coupling: Tensor) -> Tensor:
        if coupling.ndim and coupling.shape != (self.n_sites, self.n_sites):
            raise UsageError(
                f"coupling must be a number, or a matrix ({self.n_sites}, {self.n_sites}) of the sites, got "
                f"{tuple(coupling.shape)}"
            )
        if not coupling.isfinite().all():
            raise UsageError("coupling holds NaN or infinite values")
        if coupling.ndim and (not torch.equal(coupling, coupling.T) or coupling.diagonal().any()):
            raise UsageError("a coupling matrix must be symmetric with zeros on its diagonal: pass (J + J.T) / 2 without it")
        return coupling.clone()

    def _colours(self) -> Tensor:
        """A colour ``(n,)`` of each site; no two sites of one colour are coupled."""
        if self.coupling.ndim:
            return torch.arange(self.n_sites)  # any pair may be
        n_colours = 3 if any(length % 2 and length > 1 for length in self.sites) else 2
        total = torch.zeros(self.sites, dtype=torch.int64)
        for axis, length in enumerate(self.sites):
            along = torch.arange(length) % 2
            if length % 2 and length > 1:
                along[-1] = 2  # the last site of an odd ring is next to both others
            total += along.view(-1, *[1] * (len(self.sites) - 1 - axis))
        return (total % n_colours).flatten()

    def sample_hidden(self, x: Tensor, *, beta: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        """Draws the first half of a sweep: all colours but the last, in order, each given all other sites.

        The block that these methods call hidden is a second copy of the example ``(N, size)``. Together they sweep through the
        colours and back, which is reversible. A lattice with even sides is a checkerboard of two colours, one with an odd side
        has three, and with a matrix of couplings each site is drawn separately.
        """
        return self._sweep(x, self._classes()[:-1], beta, None, generator).flatten(1)

    def sample_visible(self, hidden: Tensor, *, beta: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        """Draws the second half of a sweep: all colours from the last to the first. Returns examples ``(N, *shape)``."""
        return self._sweep(hidden.view(-1, *self.shape), self._classes()[::-1], beta, None, generator)

    def _classes(self) -> tuple[Tensor, ...]:
        return self.order.split(self.n_of_colour)

    def _sweep(
        self, x: Tensor, classes: Sequence[Tensor], beta: Tensor | None, tilt: Tensor | None, generator: Generator | None
    ) -> Tensor:
        """Draws the sites of each class in turn; ``tilt`` ``(N or 1, n, components)`` is added to the logits."""
        for sites in classes:
            logits = self._from_neighbours(self.spins(x), self.coupling)
            logits = self.unit_logit * (logits if self.field is None else logits + self.field)
            logits = logits if beta is None else beta.reshape(-1, 1, 1) * logits
            drawn = self.draw((logits if tilt is None else logits + tilt)[:, sites], generator)
            x = x.reshape(len(x), self.n_sites, -1).index_copy(1, sites, drawn.to(x.dtype)).view_as(x)
        return x

    def tempered(self, beta: Tensor, base: BaseDistribution | None = None) -> TemperedSpinModel:
        """Returns the model at inverse temperatures ``beta``, with the same sweeps."""
        if base is not None and not isinstance(base, self.base_type):
            raise UsageError(
                f"the base of {type(self).__name__} must be a {self.base_type.__name__} distribution, got {type(base).__name__}"
            )
        return TemperedSpinModel(self, beta, base)

    def initial_distribution(self, shape: Sequence[int]) -> BaseDistribution:
        """Returns the uniform distribution over all states: the model at infinite temperature."""
        logits = torch.zeros(tuple(shape), dtype=self.coupling.dtype, device=self.coupling.device)
        distribution: BaseDistribution = self.base_type(logits)
        return distribution

    def check_enumeration(self) -> None:
        """Raises `UsageError` if there is no way to compute ``log_partition()``."""
        if not (self._has_closed_form() or self._is_narrow() or self._is_small()):
            width = int(math.log(MAX_ROW_STATES, self.n_values) + 1e-9)
            raise UsageError(
                f"log Z is known up to {MAX_STATES:,} states, or on a lattice of two dimensions of which one is at most {width} "
                f"sites{self.closed_form}, but this is {type(self).__name__}({self.extra_repr()}): estimate it, e.g. with the "
                "metric 'ais-ll'"
            )

    @torch.no_grad()
    def log_partition(self) -> Tensor:
        """Computes the exact ``log Z`` in nats, 0-dim float64.

        Raises:
            UsageError: If there is no way to compute it.
        """
        self.check_enumeration()
        if self._has_closed_form():
            return self._by_closed_form()
        if self._is_narrow():
            return self._by_transfer_matrices()
        return torch.logsumexp(-self._energies_of_all_states(), 0)

    def states(self) -> Tensor:
        """Returns all states ``(n_values**n, *shape)``, in the dtype of the model.

        Raises:
            UsageError: If there are more than 1,048,576 of them.
        """
        return torch.cat(list(self._chunks_of_states())).to(self.coupling.dtype)

    @torch.no_grad()
    def probabilities(self) -> Tensor:
        """Computes the exact probability of each of `states`, float64."""
        return torch.softmax(-self._energies_of_all_states(), 0)

    @torch.no_grad()
    def marginals(self) -> Tensor:
        """Computes the exact mean of an example, float64: the probability of each value at each site."""
        total = torch.zeros(self.shape, dtype=torch.float64, device=self.coupling.device)
        for p, x in zip(self.probabilities().split(_CHUNK), self._chunks_of_states(), strict=True):
            total += torch.tensordot(p, x, 1)
        return total

    @torch.no_grad()
    def correlations(self) -> Tensor:
        """Computes the exact mean of the products of spins of each pair of sites, ``(n, n)`` float64."""
        total = torch.zeros(self.n_sites, self.n_sites, dtype=torch.float64, device=self.coupling.device)
        for p, x in zip(self.probabilities().split(_CHUNK), self._chunks_of_states(), strict=True):
            spins = self.spins(x)
            total += torch.einsum("s,sic,sjc->ij", p, spins, spins)
        return total

    def _has_closed_form(self) -> bool:
        return False

    def _by_closed_form(self) -> Tensor:
        raise NotImplementedError

    def _is_small(self) -> bool:
        return self.n_values**self.n_sites <= MAX_STATES

    def _energies_of_all_states(self) -> Tensor:
        coupling, field = self.coupling.double(), None if self.field is None else self.field.double()
        return torch.cat([self._energies(self.spins(x), coupling, field) for x in self._chunks_of_states()])

    def _chunks_of_states(self) -> Any:
        """Yields all states in chunks, in float64."""
        if not self._is_small():
            raise UsageError(f"{self.n_values}^{self.n_sites} states are too many to list: at most {MAX_STATES:,}")
        for codes in torch.arange(self.n_values**self.n_sites, device=self.coupling.device).split(_CHUNK):
            yield self.encode(self._values(codes, self.n_sites)).double().view(-1, *self.shape)

    def _values(self, codes: Tensor, n: int) -> Tensor:
        """Values ``(S, n)`` of ``n`` sites with the numbers ``codes``, the first site fastest."""
        return codes[:, None] // self.n_values ** torch.arange(n, device=codes.device) % self.n_values

    def _long_and_wide(self) -> tuple[int, int]:
        lengths = sorted((length for length in self.sites if length > 1), reverse=True)
        return (lengths[0], lengths[1]) if len(lengths) > 1 else (lengths[0], 1)

    def _is_narrow(self) -> bool:
        """Whether transfer matrices apply: a lattice in one or two dimensions with few states of a row."""
        plane = not self.coupling.ndim and sum(length > 1 for length in self.sites) <= 2
        return plane and self.n_values ** self._long_and_wide()[1] <= MAX_ROW_STATES

    def _by_transfer_matrices(self) -> Tensor:
        coupling = self.coupling.double()
        length, width = self._long_and_wide()
        codes = torch.arange(self.n_values**width, device=coupling.device)
        rows = self.spins(self.encode(self._values(codes, width)).double())  # (R, width, components)
        between = coupling * torch.einsum("aic,bic->ab", rows, rows)
        within = coupling * (rows * rows.roll(1, 1)).sum((1, 2)) if width > 1 else torch.zeros_like(between[0])
        within = within.expand(length, -1)
        if self.field is not None:
            field = self.field.double().expand(self.n_sites, -1).reshape(*(n for n in self.sites if n > 1), -1)
            if field.ndim == 3 and field.shape[0] < field.shape[1]:
                field = field.transpose(0, 1)
            within = within + torch.einsum("lic,aic->la", field.reshape(length, width, -1), rows)
        # Each factor is scaled by its largest entry, so that nothing overflows.
        log_scale = length * between.max() + within.max(1).values.sum()
        step = (between - between.max()).exp()
        product = torch.eye(len(codes), dtype=torch.float64, device=coupling.device)
        for weights in (within - within.max(1, keepdim=True).values).exp():
            product = product @ (weights[:, None] * step)
            largest = product.max()
            product, log_scale = product / largest, log_scale + largest.log()
        return product.trace().log() + log_scale


class TemperedSpinModel(Tempered):
    """``beta E(x) - (1 - beta) log p_0(x)`` of a spin model, whose sites stay independent given their neighbours."""

    energy: SpinModel

    def sample_hidden(self, x: Tensor, *, beta: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        """Draws the first half of a sweep, see `SpinModel.sample_hidden`."""
        return self._sweep(x, self.energy._classes()[:-1], beta, generator).flatten(1)

    def sample_visible(self, hidden: Tensor, *, beta: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        """Draws the second half of a sweep, see `SpinModel.sample_visible`."""
        return self._sweep(hidden.view(-1, *self.energy.shape), self.energy._classes()[::-1], beta, generator)

    def _sweep(self, x: Tensor, classes: Sequence[Tensor], beta: Tensor | None, generator: Generator | None) -> Tensor:
        at, rest = self.beta, 1 - self.beta
        if beta is not None:
            at, rest = beta * at, beta * rest
        logits = None if self.base is None else self.base.logits.reshape(self.energy.n_sites, -1).to(x)
        tilt = None if logits is None else rest.reshape(-1, 1, 1) * logits
        return self.energy._sweep(x, classes, at, tilt, generator)
