"""The case that a check is given: one component, and all that a check needs to try it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ebmcore.energies import frozen, require, supports
from ebmcore.errors import MissingCapabilityError
from ebmcore.losses import BaseContrastiveDivergence, BaseLoss
from ebmcore.samplers import Sampler, run
from ebmcore.testing.awkward import Moody, Watched
from ebmcore.testing.samplers import Drift
from ebmcore.testing.targets import Boltzmann, Enumerable, EnumerableRBM, Gaussian, Ising, Potts

N_CHAINS = 16
SPACES = ("continuous", "binary", "categorical")


def generator(seed: int = 0, device: str = "cpu") -> torch.Generator:
    """A generator with a fixed seed."""
    return torch.Generator(device).manual_seed(seed)


def network(*shape: int) -> nn.Module:
    """A small smooth energy on examples of a shape; the same one for the same number of components."""
    size = torch.Size(shape).numel()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.SiLU(), nn.Linear(16, 1), nn.Flatten(0))
    return _Confined(layers)


class _Confined(nn.Module):
    """A network with a quadratic term, so that its distribution exists."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        energies: Tensor = self.layers(x)
        return energies + 0.5 * x.flatten(1).square().sum(1)


@dataclass(frozen=True)
class Case:
    """One component under test.

    Args:
        name: How messages call it.
        component: Its class.
    """

    name: str
    component: type[Any]
    kind: ClassVar[str] = ""

    @property
    def options(self) -> dict[str, Any]:
        """Options with which it is made unless a check says otherwise."""
        options = getattr(self.component, "example_options", {})
        return dict(options() if callable(options) else options)

    def accepts(self, *options: str) -> bool:
        """Whether its constructor names these options."""
        return set(options) <= set(inspect.signature(self.component).parameters)

    def make(self, **options: Any) -> Any:
        """An instance."""
        return self.construct(**self.options | options)

    def construct(self, *args: Any, **options: Any) -> Any:
        """Call the constructor; arguments that are missing are the author's to declare."""
        try:
            inspect.signature(self.component).bind(*args, **options)
        except TypeError as error:
            if "missing" in str(error):
                raise ConformanceError(
                    f"{self.component.__name__} cannot be made: {error}. Give the options that the kit shall use in the class "
                    "attribute example_options"
                ) from error
        return self.component(*args, **options)


class SteppingCase(Case):
    """A component that makes steps with random numbers: a loss or a sampler."""

    def use(
        self,
        instance: Any = None,
        *,
        seed: int = 0,
        x: Tensor | None = None,
        energy: nn.Module | None = None,
    ) -> list[Tensor]:
        """All that a few steps give, from a generator with that seed, on examples of shape ``(4,)`` unless ``x`` is given."""
        raise NotImplementedError

    def stepper(self, device: str = "cpu") -> Callable[[], None]:
        """A function that makes one step after the other, on a batch of 64."""
        raise NotImplementedError

    def instance(self, energy: nn.Module) -> Any:
        """An instance that works on ``energy``; a sampler is handed it at each call."""
        return self.make()

    def energy(self, *shape: int) -> nn.Module:
        """An energy on examples of a shape of four components that it can work with."""
        raise NotImplementedError

    def moody(self) -> nn.Module:
        """An energy with batch norm, dropout and spectral norm that it can work with, on examples of shape ``(4,)``."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an example unless a check asks for another: four components."""
        return (4,)

    def start(self, n: int = 23, *shape: int, seed: int = 1) -> Tensor:
        """Examples ``(n, *shape)`` of four components, of `shape` unless another is given."""
        raise NotImplementedError

    def draws(self) -> bool:
        """Whether another generator gives another result."""
        raise NotImplementedError


class LossCase(SteppingCase):
    """A loss under test."""

    kind = "loss"

    @property
    def cd(self) -> bool:
        """Whether it is of the contrastive-divergence family."""
        return issubclass(self.component, BaseContrastiveDivergence) and self.component.family == "contrastive-divergence"

    @property
    def persistent(self) -> bool:
        """Whether its chains persist."""
        return self.cd and bool(self.component.persistent)

    def make(self, energy: nn.Module | None = None, sampler: Sampler | None = None, **options: Any) -> Any:
        """A loss for ``energy`` (a small network on four components), with a generator of its own.

        Where the loss needs a sampler and none is given, it gets one that follows the gradient with noise; a persistent one
        gets 16 chains.
        """
        energy = network(4) if energy is None else energy
        args = (energy, sampler or Drift()) if self.component.needs_sampler else (energy,)
        still = (
            {"restart_prob": 0.0} if self.persistent and self.accepts("restart_prob") else {}
        )  # a check asks for restarts
        loss: BaseLoss = self.construct(*args, **self.chains(N_CHAINS) | self.options | still | options)
        loss.generator = generator()
        return loss

    def use(
        self,
        instance: Any = None,
        *,
        seed: int = 0,
        x: Tensor | None = None,
        energy: nn.Module | None = None,
    ) -> list[Tensor]:
        """What one call gives: loss, negatives and the parameters' gradients."""
        x = self.start(8) if x is None else x
        loss = self.make(energy or self.energy(*x.shape[1:])).to(x.dtype) if instance is None else instance
        loss.generator = generator(seed)
        loss.zero_grad()
        result = loss(x)
        parts = list(result) if isinstance(result, tuple) else [result]
        if parts[0].requires_grad:
            parts[0].backward()
        return [part.detach() for part in parts] + [p.grad.clone() for p in loss.parameters() if p.grad is not None]

    def stepper(self, device: str = "cpu") -> Callable[[], None]:
        loss: Any = self.make(**self.chains(128))
        loss, x = loss.to(device), self.start(64).to(device)
        loss.generator = generator(device=device)
        optimizer = torch.optim.SGD(loss.parameters(), lr=1e-3)

        def step() -> None:
            result = loss(x)
            optimizer.zero_grad()
            (result[0] if isinstance(result, tuple) else result).backward()
            optimizer.step()

        return step

    def instance(self, energy: nn.Module) -> Any:
        return self.make(energy)

    def chains(self, n: int) -> dict[str, Any]:
        """The option that gives a persistent loss ``n`` chains; none for another."""
        return {"n_chains": n} if self.persistent else {}

    def energy(self, *shape: int) -> nn.Module:
        return network(*shape)

    def moody(self) -> nn.Module:
        return Moody((4,))

    def start(self, n: int = 8, *shape: int, seed: int = 1) -> Tensor:
        return torch.randn(n, *(shape or (4,)), generator=generator(seed))

    def draws(self) -> bool:
        if self.cd:
            return True
        a, b = self.use(seed=5), self.use(seed=6)
        return any(not torch.equal(s, t) for s, t in zip(a, b, strict=True))

    @property
    def has_parameters(self) -> bool:
        """Whether it has parameters beside the energy's."""
        loss = self.make()
        return len(list(loss.parameters())) > len(list(loss.energy.parameters()))

    def fill(self, loss: Any, rows: Tensor) -> None:
        """Put given chains into a persistent loss."""
        chain = loss.initialize_persistent_chain(tuple(rows.shape))
        with torch.no_grad():
            chain.copy_(rows)


class SamplerCase(SteppingCase):
    """A sampler under test."""

    kind = "sampler"

    @property
    def space(self) -> str | None:
        """The state space that it declares."""
        space: str | None = getattr(self.make(), "state_space", None)
        if space not in (None, *SPACES):
            raise ConformanceError(f"state_space is {space!r}: declare {', '.join(map(repr, SPACES))}, or None for any")
        return space

    @property
    def shape(self) -> tuple[int, ...]:
        return (2, 2) if self.space == "categorical" else (4,)  # the last axis of a categorical example are its values

    def declares(self, name: str) -> bool:
        """Whether it declares a property, such as ``exact``."""
        return bool(getattr(self.make(), name, False))

    def fits(self, energy: nn.Module) -> bool:
        """Whether it can run on that energy."""
        if self.space not in (None, getattr(energy, "state_space", None)):
            return False
        return all(supports(energy, capability) for capability in self.requires)

    @property
    def requires(self) -> tuple[type, ...]:
        """The capabilities that it asks of an energy."""
        capabilities: tuple[type, ...] = getattr(self.make(), "requires", ())
        return capabilities

    @property
    def discrete(self) -> list[Enumerable]:
        """Targets that can be enumerated and that it can run on, in double precision."""
        targets: list[Enumerable] = [EnumerableRBM((2, 2), 3), Boltzmann(4), Ising((2, 2)), Potts(2, 3)]
        return [target.double() for target in targets if self.fits(target)]

    @property
    def tiny(self) -> list[Enumerable]:
        """Targets of two units, for samplers whose chains have a memory."""
        targets: list[Enumerable] = [EnumerableRBM((2,), 1), Boltzmann(2), Potts(1, 3)]
        return [target.double() for target in targets if self.fits(target)]

    def settled(self, n_steps: int) -> int:
        """Steps from exact samples: those of a sampler with memory need time until what it remembers is of its law too."""
        return 40 if self.declares("has_memory") else n_steps

    @property
    def continuous(self) -> bool:
        """Whether it moves in continuous spaces."""
        return self.fits(Gaussian(torch.eye(2)))

    def energy(self, *shape: int) -> nn.Module:
        """A target of a shape of four components.

        Raises:
            MissingCapabilityError: If the kit has none with the capabilities that it requires.
        """
        if self.continuous:
            return Gaussian(torch.eye(4), shape) if self.requires else network(*shape)
        for candidate in (EnumerableRBM(shape, 3), Boltzmann(4), Potts(2, 2)):
            if self.fits(candidate):
                return candidate
        for capability in self.requires:
            require(EnumerableRBM(), capability, asked_by=self.component.__name__)
        raise MissingCapabilityError(f"the kit has no target that {self.component.__name__} can run on")

    def moody(self) -> nn.Module:
        if self.continuous and not self.requires:
            return Moody((4,))
        return Watched(self.energy(*self.shape), Moody(self.shape))

    def start(self, n: int = 23, *shape: int, seed: int = 1) -> Tensor:
        """Positions in the sampler's state space."""
        shape = shape or self.shape
        if self.continuous:
            return torch.randn(n, *shape, generator=generator(seed))
        target = self.energy(*self.shape)
        assert isinstance(target, Enumerable)
        states = target.states().flatten(1)
        rows = torch.randint(len(states), (n,), generator=generator(seed))
        return states[rows].reshape(n, *shape).detach()

    def use(
        self,
        instance: Any = None,
        *,
        seed: int = 0,
        x: Tensor | None = None,
        energy: nn.Module | None = None,
    ) -> list[Tensor]:
        """All tensors of the state after three steps."""
        x = self.start() if x is None else x
        energy = self.energy(*x.shape[1:]).to(x.dtype) if energy is None else energy
        sampler, g = self.make() if instance is None else instance, generator(seed)
        with frozen(energy), torch.no_grad():
            state = sampler.init(energy, x, generator=g)
        return list(run(sampler, energy, state, 3, generator=g)[0].tensors().values())

    def stepper(self, device: str = "cpu") -> Callable[[], None]:
        sampler, energy, g = self.make(), self.energy(*self.shape).to(device), generator(device=device)
        with frozen(energy), torch.no_grad():
            states = [sampler.init(energy, self.start(64).to(device), generator=g)]

        def step() -> None:
            states[0], _ = run(sampler, energy, states[0], 1, generator=g)

        return step

    def draws(self) -> bool:
        return not self.declares("deterministic")

    def laws(self) -> Iterator[tuple[str, float, Any]]:
        """Samplers to test, each with its temperature: as its options are, and at 0.5 where it takes a temperature."""
        sampler = self.make()
        yield "", getattr(sampler, "temperature", 1.0), sampler
        if self.accepts("temperature"):
            yield " at temperature 0.5", 0.5, self.make(temperature=0.5)


class EnergyCase(Case):
    """An energy under test."""

    kind = "energy"

    def make(self, shape: tuple[int, ...] = (1, 2, 2), **options: Any) -> Any:
        """An energy on examples of a shape, with the same random parameters each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            energy = self.construct(shape, **self.options | options)
            with torch.no_grad():
                for parameter in energy.parameters():
                    parameter.add_(0.5 * torch.randn_like(parameter))
        return energy

    def batch(self, n: int = 5) -> Tensor:
        """Examples ``(n, 1, 2, 2)`` in its state space."""
        x = torch.randn(n, 1, 2, 2, generator=generator(1))
        if self.space == "categorical":
            return one_hot(x.argmax(-1), 2).to(x.dtype)
        return (x > 0).to(x.dtype) if self.space == "binary" else x

    @property
    def space(self) -> str | None:
        """The state space that it declares."""
        space: str | None = getattr(self.component, "state_space", None)
        return space

    @property
    def discrete(self) -> bool:
        """Whether it is an energy of binary or categorical units."""
        return self.space in ("binary", "categorical")

    def can(self, capability: type) -> bool:
        """Whether it has a capability."""
        return supports(self.component, capability)


class DatasetCase(Case):
    """A data set under test."""

    kind = "dataset"


class MetricCase(Case):
    """A metric under test."""

    kind = "metric"


class ObserverCase(Case):
    """An observer under test."""

    kind = "observer"


CASES: dict[str, type[Case]] = {
    c.kind: c for c in (LossCase, SamplerCase, EnergyCase, DatasetCase, MetricCase, ObserverCase)
}
