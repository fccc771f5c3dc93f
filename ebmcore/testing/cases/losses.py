"""The case of a loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ebmcore.energies import supports
from ebmcore.losses import BaseContrastiveDivergence, BaseLoss
from ebmcore.samplers import Sampler
from ebmcore.testing.awkward import Moody, Watched
from ebmcore.testing.cases.base import SteppingCase, network
from ebmcore.testing.devices import generator, seeded
from ebmcore.testing.rules import ConformanceError
from ebmcore.testing.samplers import Drift, SiteGibbs
from ebmcore.training import SupportsDataStart

N_CHAINS = 16


class LossCase(SteppingCase):
    """A loss under test.

    The kit tries it on a small network and on normal examples. A loss that asks more of its energy than ``(B, *shape) -> (B,)``
    brings its own `example_energy`, and one that takes other batches its own `example_batch`.
    """

    kind = "loss"

    @property
    def cd(self) -> bool:
        """Whether it is of the contrastive-divergence family."""
        return self.on_cd_base and self.component.family == "contrastive-divergence"

    @property
    def on_cd_base(self) -> bool:
        """Whether it derives from the base of that family."""
        return issubclass(self.component, BaseContrastiveDivergence)

    @property
    def persistent(self) -> bool:
        """Whether its chains persist."""
        return self.cd and bool(self.component.persistent)

    @property
    def interpolates(self) -> bool:
        """Whether it scores points between noise and data, so that it learns no density."""
        return bool(getattr(self.component, "interpolates", False))

    @property
    def labels(self) -> str | None:
        """Meaning of further arguments of a call: conditions of the energy, targets that it never sees, or None."""
        labels: str | None = getattr(self.component, "labels", "conditions")
        return labels

    @property
    def trains_more(self) -> bool:
        """Whether trained parts besides the energy are allowed."""
        return not self.on_cd_base or bool(getattr(self.component, "trains_more", False))

    @property
    def own_energy(self) -> bool:
        """Whether it brings the energy on which it is tried."""
        return hasattr(self.component, "example_energy")

    @property
    def takes_any_shape(self) -> bool:
        return not self.own_energy and not hasattr(self.component, "example_batch")

    @cached_property
    def _own_batch(self) -> tuple[Tensor, ...] | None:
        """The batch that it brings, examples first."""
        if not hasattr(self.component, "example_batch"):
            return None
        with seeded(0):
            batch = self.component.example_batch()
        batch = batch if isinstance(batch, tuple) else (batch,)
        if not all(isinstance(t, Tensor) and len(t) == len(batch[0]) for t in batch):
            raise ConformanceError("example_batch() returns the examples, or a tuple of tensors with a row for each example")
        return batch

    @property
    def shape(self) -> tuple[int, ...]:
        if self._own_batch is not None:
            return tuple(self._own_batch[0].shape[1:])
        return (2, 2) if self.space == "categorical" else (4,)  # the last axis of a categorical example are its values

    @property
    def space(self) -> str | None:
        """The state space in which it is tried: its option ``state_space`` if that is given, or else the one that it declares."""
        space: str | None = self.options.get("state_space", getattr(self.component, "state_space", None))
        return space

    def make(
        self,
        energy: nn.Module | None = None,
        sampler: Sampler | None = None,
        *,
        examples: Sequence[int] | None = None,
        **options: Any,
    ) -> Any:
        """A loss for ``energy``, built for examples of a shape, with a generator of its own.

        Where the loss needs a sampler and none is given, it gets one that follows the gradient with noise; a persistent one
        gets 16 chains.
        """
        energy = self.energy(*(examples or self.shape)) if energy is None else energy
        args = (energy, sampler or self.sampler()) if self.component.needs_sampler else (energy,)
        still = (
            {"restart_prob": 0.0} if self.persistent and self.accepts("restart_prob") else {}
        )  # a check asks for restarts
        loss: BaseLoss = self.construct(*args, **self.chains(N_CHAINS) | self.options | still | options)
        self.build(loss, examples or self.shape)
        loss.generator = generator()
        return loss

    def build(self, loss: Any, shape: Sequence[int]) -> None:
        """Call ``build()``, and ``start_from_data()`` where it awaits data, as training does before it makes an optimizer."""
        with seeded(1):
            loss.build(torch.Size(shape))
            loss.built = True
        if supports(loss, SupportsDataStart) and loss.awaits_data:
            loss.start_from_data(self.start(64, *shape))

    @property
    def obstacle(self) -> str | None:
        args = (None, None) if self.component.needs_sampler else (None,)
        return self.missing(*args, **self.chains(N_CHAINS) | self.options)

    def sampler(self) -> Sampler:
        """A sampler in the loss's state space that draws random numbers."""
        return SiteGibbs() if self.space == "binary" else Drift()

    def call(self, loss: Any, x: Tensor, *, targets: bool = True) -> Any:
        """Return the result of a call on examples ``x`` and the further arguments of `example_batch`."""
        return loss(x, *(self.arguments(len(x)) if targets else ()))

    def value(self, loss: Any, x: Tensor) -> Tensor:
        """The 0-dim loss of a call."""
        result = self.call(loss, x)
        value: Tensor = result[0] if isinstance(result, tuple) else result
        return value

    def arguments(self, n: int) -> tuple[Tensor, ...]:
        """The further arguments for ``n`` examples: those of `example_batch`, row by row; none where it gives none."""
        batch = self._own_batch
        return () if batch is None else tuple(t[torch.arange(n) % len(t)] for t in batch[1:])

    def use(
        self, instance: Any = None, *, seed: int = 0, x: Tensor | None = None, energy: nn.Module | None = None
    ) -> list[Tensor]:
        """Return the results of one call: loss, negatives and the parameters' gradients."""
        x = self.start(8) if x is None else x
        shape = x.shape[1:]
        loss = self.make(energy or self.energy(*shape), examples=shape).to(x.dtype) if instance is None else instance
        loss.generator = generator(seed)
        loss.zero_grad()
        result = self.call(loss, x)
        parts = list(result) if isinstance(result, tuple) else [result]
        if parts[0].requires_grad:
            parts[0].backward()
        return [part.detach() for part in parts] + [p.grad.clone() for p in loss.parameters() if p.grad is not None]

    def stepper(self, device: torch.device | None = None) -> Callable[[], None]:
        device = torch.get_default_device() if device is None else device
        loss: Any = self.make(**self.chains(128))
        loss, x = loss.to(device), self.start(64).to(device)
        arguments = [t.to(device) for t in self.arguments(64)]
        loss.generator = generator(device=device)
        optimizer = torch.optim.SGD(loss.parameters(), lr=1e-3)

        def step() -> None:
            result = loss(x, *arguments)
            optimizer.zero_grad()
            (result[0] if isinstance(result, tuple) else result).backward()
            optimizer.step()

        return step

    def instance(self, energy: nn.Module) -> Any:
        return self.make(energy)

    def chains(self, n: int) -> dict[str, Any]:
        """The option that gives a persistent loss ``n`` chains; empty for any other loss."""
        return {"n_chains": n} if self.persistent else {}

    def energy(self, *shape: int) -> nn.Module:
        if not self.own_energy:
            return network(*shape)
        with seeded(0):
            energy: nn.Module = self.component.example_energy()
        return energy

    def moody(self) -> nn.Module:
        return Watched(self.energy(), Moody(self.shape)) if self.own_energy else Moody(self.shape)

    def start(self, n: int = 8, *shape: int, seed: int = 1) -> Tensor:
        if self._own_batch is not None:
            x = self._own_batch[0][torch.arange(n) % len(self._own_batch[0])]
            return x if seed == 1 else x.roll(seed, 0)
        x = torch.randn(n, *(shape or self.shape), generator=generator(seed))
        if self.space == "categorical":
            return one_hot(x.argmax(-1), x.shape[-1]).to(x.dtype)
        return (x > 0).to(x.dtype) if self.space == "binary" else x

    def draws(self) -> bool:
        if self.cd:
            return True
        a, b = self.use(seed=5), self.use(seed=6)
        return any(not torch.equal(s, t) for s, t in zip(a, b, strict=True))

    @property
    def has_parameters(self) -> bool:
        """Whether it has parameters besides the energy's."""
        loss = self.make()
        return len(list(loss.parameters())) > len(list(loss.energy.parameters()))

    def fill(self, loss: Any, rows: Tensor) -> None:
        """Put given chains into a persistent loss."""
        chain = loss.initialize_persistent_chain(tuple(rows.shape))
        with torch.no_grad():
            chain.copy_(rows)
