"""The base of all cases: one component under test, and what a check needs to make and run it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ebmcore.testing.devices import seeded
from ebmcore.testing.rules import ConformanceError

SPACES = ("continuous", "binary", "categorical")
KIT = "ebmcore.testing:"  # how plain data names a class of the kit


def network(*shape: int) -> nn.Module:
    """A small smooth energy on examples of a shape; the same one for the same number of components."""
    size = torch.Size(shape).numel()
    with seeded(0):
        layers = nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.SiLU(), nn.Linear(16, 1), nn.Flatten(0))
    return Confined(layers)


class Confined(nn.Module):
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
        name: Name that messages use.
        component: Its class.
        given: Options from a test or a command line; they take precedence over ``example_options``.
    """

    name: str
    component: Any
    given: Mapping[str, Any] = field(default_factory=dict)
    kind: ClassVar[str] = ""

    @property
    def options(self) -> dict[str, Any]:
        """The options with which the component is made unless a check asks for others."""
        options = {**getattr(self.component, "example_options", {}), **self.given}
        return {name: _of_the_kit(value) for name, value in options.items()}

    @property
    def expected_failures(self) -> Mapping[str, str]:
        """The checks that its author declares to fail, each with the reason."""
        expected: Mapping[str, str] = getattr(self.component, "expected_failures", {})
        return expected

    @property
    def obstacle(self) -> str | None:
        """Reason why no instance can be made from what the component declares; `None` if one can."""
        return self.missing(**self.options)

    def accepts(self, *options: str) -> bool:
        """Whether its constructor names these options."""
        return set(options) <= set(inspect.signature(self.component).parameters)

    def make(self, **options: Any) -> Any:
        """Make an instance."""
        return self.construct(**self.options | options)

    def construct(self, *args: Any, **options: Any) -> Any:
        """Call the constructor, each time from the same global random state: random initial values are the same ones."""
        missing = self.missing(*args, **options)
        if missing:
            raise ConformanceError(missing)
        with seeded(0):
            return self.component(*args, **options)

    def missing(self, *args: Any, **options: Any) -> str | None:
        """Describe the required options of the constructor that the component does not give; `None` if there are none."""
        try:
            inspect.signature(self.component).bind(*args, **options)
        except TypeError as error:
            if "missing" in str(error):
                return (
                    f"{self.component.__name__} cannot be made: {error}. Give the options that the kit shall use in the class "
                    "attribute example_options, or conformance(..., options=...), or `ebmcore check NAME --option`"
                )
        return None


def _of_the_kit(value: Any) -> Any:
    """An instance of the class of the kit that plain data names as ``"ebmcore.testing:SiteGibbs"``; any other value itself."""
    if not (isinstance(value, str) and value.startswith(KIT)):
        return value
    from ebmcore import testing

    name = value.removeprefix(KIT)
    if name not in testing.__all__:
        raise ConformanceError(f"example_options names {value!r}, and the kit has no {name!r}")
    return getattr(testing, name)()


class SteppingCase(Case):
    """A component that makes steps with random numbers: a loss or a sampler."""

    def use(
        self, instance: Any = None, *, seed: int = 0, x: Tensor | None = None, energy: nn.Module | None = None
    ) -> list[Tensor]:
        """Return all results of a few steps, from a generator with that seed, on examples of `shape` unless ``x`` is given."""
        raise NotImplementedError

    def call(self, instance: Any, x: Tensor) -> Any:
        """Return the result of a call of a loss on examples."""
        raise NotImplementedError

    def stepper(self, device: torch.device | None = None) -> Callable[[], None]:
        """Return a function that makes one step per call, on a batch of 64; what it needs is moved to ``device``, if given."""
        raise NotImplementedError

    def instance(self, energy: nn.Module) -> Any:
        """An instance that works on ``energy``; a sampler receives the energy at each call."""
        return self.make()

    def energy(self, *shape: int) -> nn.Module:
        """An energy on examples of a shape of four components that it can work with."""
        raise NotImplementedError

    def moody(self) -> nn.Module:
        """An energy with batch norm, dropout and spectral norm that it can work with, on examples of `shape`."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an example unless a check asks for another: four components."""
        return (4,)

    @property
    def takes_any_shape(self) -> bool:
        """Whether the kit may choose the shape of the examples."""
        return True

    def start(self, n: int = 23, *shape: int, seed: int = 1) -> Tensor:
        """Examples ``(n, *shape)`` of four components, of `shape` unless another is given."""
        raise NotImplementedError

    def draws(self) -> bool:
        """Whether the result depends on the generator."""
        raise NotImplementedError
