"""Functions that the likelihood metrics share."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ebmcore.errors import UsageError
from ebmcore.training import copy_energy

CONFIDENCE = 0.95


def check_test_examples(metric: str, data: Any) -> None:
    """Raises `UsageError` if there are no test examples."""
    if len(data.test) == 0:
        raise UsageError(f"{metric} needs at least one test example")


def float64_copy(energy: nn.Module) -> nn.Module:
    """Returns a copy in float64, in evaluation mode and without gradients; the model does not change."""
    with torch.no_grad():  # in which the parameters of a scripted module stay leaves
        copied = copy_energy(energy).double().eval()
    for parameter in copied.parameters():  # a scripted module has no requires_grad_()
        parameter.requires_grad = False
    return copied


def energies(energy: nn.Module, x: Tensor, chunk: int = 65_536) -> Tensor:
    """Computes the energies of many examples, chunk by chunk, detached."""
    with torch.enable_grad():  # for an energy that takes a gradient of its own; no parameter has one
        return torch.cat([energy(part).detach() for part in x.split(chunk)])


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


def mean_with_interval(name: str, values: Tensor, n_bootstrap: int, generator: torch.Generator | None) -> dict[str, float]:
    """Returns the mean of ``values`` as ``name`` and its 95 % bootstrap interval."""
    low, high = interval(values.cpu()[resample(len(values), n_bootstrap, generator)].mean(1))
    return {name: values.mean().item(), "interval_low": low, "interval_high": high}


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
