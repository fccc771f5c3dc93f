"""The optimizers of ``torch.optim`` by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ebmcore._keywords import reject_unknown
from ebmcore.errors import UsageError
from ebmcore.losses import BaseLoss
from ebmcore.training.schedules import close_match

__all__ = ["OPTIMIZERS", "OptimizerChoice", "create_optimizer", "optimizer_class"]

ParameterGroups = list[dict[str, Any]]
OptimizerChoice = str | Mapping[str, Any] | Callable[[ParameterGroups], torch.optim.Optimizer]

_REFUSED = {"lbfgs": "it calls the loss several times in a step", "sparseadam": "it takes sparse gradients only"}
_REFUSED_OPTIONS = {
    "capturable": "it is for steps within a CUDA graph",
    "differentiable": "it is for derivatives of a step",
}
_ALL = {
    name.lower(): kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
}
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {n: kind for n, kind in sorted(_ALL.items()) if n not in _REFUSED}

_REAL = ("adafactor", "muon")  # refuse complex parameters at the first step, or train their real parts alone
_FUSED = ("adam", "adamw", "sgd")  # one kernel for all parameters, measured to be faster on every device


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class of ``torch.optim`` whose name in lower case is ``name``.

    Raises:
        UsageError: If there is none, or this training loop does not support it.
    """
    if name in _REFUSED:
        raise UsageError(
            f"the optimizer {name!r} cannot train here, because {_REFUSED[name]}: choose another, such as 'adam'"
        )
    if name not in OPTIMIZERS:
        raise UsageError(
            f"there is no optimizer {name!r}{close_match(name, OPTIMIZERS)}; torch.optim has {', '.join(OPTIMIZERS)}"
        )
    return OPTIMIZERS[name]


def create_optimizer(choice: OptimizerChoice, loss: BaseLoss, lr: float, precision: str) -> torch.optim.Optimizer:
    """An optimizer of the loss's parameter groups. A group without a learning rate takes ``lr``.

    Raises:
        UsageError: If the choice is not valid, or torch refuses an option.
    """
    groups = loss.parameter_groups()
    if callable(choice):
        own = choice(groups)
        if not isinstance(own, torch.optim.Optimizer):
            raise UsageError(f"the function given as optimizer must return a torch optimizer, got {type(own).__name__}")
        return own
    options = {"name": choice} if isinstance(choice, str) else dict(choice) if isinstance(choice, Mapping) else {}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise UsageError(
            f"optimizer must be a name, a mapping with one under 'name', or a function of parameter groups; got {choice!r}"
        )
    kind: Any = optimizer_class(name)
    if "lr" in options or "params" in options:
        raise UsageError(
            f"the optimizer's learning rate is the option lr of the training, not of the optimizer; got {choice!r}"
        )
    reject_unknown(f"the optimizer {name!r}", kind, options)
    for option, reason in _REFUSED_OPTIONS.items():
        if options.get(option):
            raise UsageError(f"the optimizer's option {option!r} cannot be used here, because {reason}: leave it out")
    options = {option: tuple(value) if isinstance(value, list) else value for option, value in options.items()}
    if options.get("fused") is None and name in _FUSED and not options.get("foreach"):
        # With scaled gradients a fused kernel would unscale them itself, and clipping come too early. SGD's knows no shards, and
        # none knows complex numbers.
        sharded = any(hasattr(p, "placements") for p in loss.parameters())
        real = all(p.is_floating_point() for p in loss.parameters())
        options["fused"] = real and precision != "16-mixed" and not (name == "sgd" and sharded)
    if (options.get("fused") or name in _REAL) and any(p.is_complex() for p in loss.parameters()):
        remedy = "choose another, such as 'adam'" if name in _REAL else "leave out its option 'fused'"
        raise UsageError(f"the optimizer {name!r} cannot train complex parameters, which this model has: {remedy}")
    try:
        made: torch.optim.Optimizer = kind(groups, lr=lr, **options)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UsageError(f"the optimizer {name!r}: {error}") from error
    return made
