"""The case of a sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ebmcore.energies import frozen, require, supports
from ebmcore.errors import MissingCapabilityError
from ebmcore.samplers import run
from ebmcore.testing.awkward import Moody, Watched
from ebmcore.testing.cases.base import SPACES, SteppingCase, network
from ebmcore.testing.devices import generator
from ebmcore.testing.rules import ConformanceError
from ebmcore.testing.targets import Boltzmann, Enumerable, EnumerableRBM, Gaussian, Ising, Potts


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
        """Number of steps from exact samples: a sampler with memory needs more, until its memory has the right law too."""
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
        assert isinstance(target, Enumerable), "the kit's targets of discrete units can be enumerated"
        states = target.states().flatten(1)
        rows = torch.randint(len(states), (n,), generator=generator(seed))
        return states[rows].reshape(n, *shape).detach()

    def use(
        self, instance: Any = None, *, seed: int = 0, x: Tensor | None = None, energy: nn.Module | None = None
    ) -> list[Tensor]:
        """All tensors of the state after three steps."""
        x = self.start() if x is None else x
        energy = self.energy(*x.shape[1:]).to(x.dtype) if energy is None else energy
        sampler, g = self.make() if instance is None else instance, generator(seed)
        with frozen(energy), torch.no_grad():
            state = sampler.init(energy, x, generator=g)
        return list(run(sampler, energy, state, 3, generator=g)[0].tensors().values())

    def stepper(self, device: torch.device | None = None) -> Callable[[], None]:
        device = torch.get_default_device() if device is None else device
        sampler, energy, g = self.make(), self.energy(*self.shape).to(device), generator(device=device)
        with frozen(energy), torch.no_grad():
            states = [sampler.init(energy, self.start(64).to(device), generator=g)]

        def step() -> None:
            states[0], _ = run(sampler, energy, states[0], 1, generator=g)

        return step

    def draws(self) -> bool:
        return not self.declares("deterministic")

    def laws(self) -> Iterator[tuple[str, float, Any]]:
        """Samplers to test, each with its temperature: with its own options, and at 0.5 if it takes a temperature."""
        sampler = self.make()
        yield "", getattr(sampler, "temperature", 1.0), sampler
        if self.accepts("temperature"):
            yield " at temperature 0.5", 0.5, self.make(temperature=0.5)
