"""Functions that the likelihood metrics share."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ebmcore.conditions import condition
from ebmcore.errors import UsageError
from ebmcore.training import LabelledExamples, copy_energy, labelled_examples

CONFIDENCE = 0.95


def check_test_examples(metric: str, energy: nn.Module, data: Any) -> LabelledExamples:
    """Returns the test examples; raises `UsageError` if there are none, or if they lack the labels that the energy needs."""
    if len(data.test) == 0:
        raise UsageError(f"{metric} needs at least one test example")
    return labelled_examples(energy, data, "test")


def float64_copy(energy: nn.Module) -> nn.Module:
    """Returns a copy in float64, in evaluation mode and without gradients; the model does not change."""
    with torch.no_grad():  # in which the parameters of a scripted module stay leaves
        copied = copy_energy(energy).double().eval()
    for parameter in copied.parameters():  # a scripted module has no requires_grad_()
        parameter.requires_grad = False
    return copied


def energies(energy: nn.Module, x: Tensor, conditions: Mapping[str, Tensor], chunk: int = 65_536) -> Tensor:
    """Computes the energies of many examples under their conditions, or one condition for all, chunk by chunk, detached."""
    named = {name: t.expand(len(x), *t.shape[1:]) for name, t in conditions.items()}
    with torch.enable_grad():  # for an energy that takes a gradient of its own; no parameter has one
        return torch.cat(
            [
                condition(energy, {name: t[rows] for name, t in named.items()})(x[rows]).detach()
                for rows in torch.arange(len(x), device=x.device).split(chunk)
            ]
        )


def groups(examples: LabelledExamples) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Returns the distinct conditions of examples, one row of each, and the number of its condition for each example ``(N,)``.

    Without conditions there is one group. The numbers are on the CPU.
    """
    if not examples.conditions:
        return [{}], torch.zeros(len(examples.x), dtype=torch.long, device="cpu")
    values = torch.cat([t.flatten(1) if t.ndim > 1 else t[:, None] for t in examples.conditions.values()], dim=1)
    numbers = values.unique(dim=0, return_inverse=True)[1].cpu()
    firsts = [int((numbers == group).int().argmax()) for group in range(int(numbers.max()) + 1)]
    return [{name: t[row : row + 1] for name, t in examples.conditions.items()} for row in firsts], numbers


def under(examples: LabelledExamples, conditions: Mapping[str, Tensor]) -> LabelledExamples:
    """Returns the examples that have a condition; all of them if none has it."""
    rows = torch.ones(len(examples.x), dtype=torch.bool, device=examples.x.device)
    for name, t in conditions.items():
        rows &= (examples.conditions[name] == t).flatten(1).all(1) if t.ndim > 1 else examples.conditions[name] == t
    rows = rows if rows.any() else ~rows
    weights = None if examples.weights is None else examples.weights[rows]
    return LabelledExamples(examples.x[rows], {name: t[rows] for name, t in examples.conditions.items()}, weights)


def draw(examples: LabelledExamples, n: int, generator: torch.Generator | None) -> Tensor:
    """Returns the row numbers of ``n`` examples drawn with replacement, by their weights where they have any."""
    if examples.weights is None:
        return torch.randint(len(examples.x), (n,), generator=generator, device=examples.x.device)
    return torch.multinomial(examples.weights, n, replacement=True, generator=generator)


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Returns the mean over the last axis."""
    return values.mean(-1) if weights is None else (weights * values).sum(-1) / weights.sum(-1)


def interval(bootstrap: Tensor) -> tuple[float, float]:
    """Returns the central 95 % of bootstrap replications."""
    tail = (1 - CONFIDENCE) / 2
    low, high = torch.quantile(bootstrap, bootstrap.new_tensor([tail, 1 - tail])).tolist()
    return low, high


def resample(n: int, n_bootstrap: int, generator: torch.Generator | None) -> Tensor:
    """Returns row numbers ``(n_bootstrap, n)`` drawn with replacement on the CPU, there by the seed of another's generator."""
    if generator is not None and generator.device.type != "cpu":
        generator = torch.Generator().manual_seed(generator.initial_seed())
    return torch.randint(n, (n_bootstrap, n), generator=generator, device="cpu")


def mean_with_interval(
    name: str, values: Tensor, weights: Tensor | None, n_bootstrap: int, generator: torch.Generator | None
) -> dict[str, float]:
    """Returns the mean of ``values`` as ``name`` and its 95 % bootstrap interval over the examples."""
    values, weights = values.cpu(), None if weights is None else weights.cpu()
    rows = resample(len(values), n_bootstrap, generator)
    low, high = interval(weighted_mean(values[rows], None if weights is None else weights[rows]))
    return {name: weighted_mean(values, weights).item(), "interval_low": low, "interval_high": high}


def warn_of_other_law(sampler: Any) -> None:
    """Warns if the chains of the training followed another distribution than ``exp(-E)`` on all of space, which is measured."""
    temperature = getattr(sampler, "temperature", 1.0)
    if temperature != 1.0:
        warnings.warn(
            f"the model was trained with chains at temperature {temperature:g}, so they sampled exp(-E / {temperature:g}); "
            "this is the likelihood of exp(-E), another distribution",
            stacklevel=3,
        )
    bounds = getattr(sampler, "bounds", None)
    if bounds is not None:
        warnings.warn(
            f"the model was trained with chains within the bounds {bounds}, so they sampled exp(-E) restricted to them; this is "
            "the likelihood of exp(-E) on all of space, another distribution",
            stacklevel=3,
        )
