"""The start of a new run from the weights and chains of another."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ebmcore.errors import CheckpointError
from ebmcore.losses import BaseLoss
from ebmcore.training.checkpoints import latest_checkpoint, read_checkpoint
from ebmcore.training.origins import check_same, warn_of_other_versions
from ebmcore.training.state import check_kinds

_AVERAGE = "average.module."


def start_from(loss: BaseLoss, run: str | os.PathLike[str]) -> None:
    """Load the weights and the chains of another run into a loss, with which a new run then starts.

    The energy gets the weights that are measured and sampled: the moving average of the other run where it kept one. Chains,
    other parts of the loss, and its count of steps are those of the last checkpoint. The optimizer is a new one. The data, the
    sampler's and the loss's options may be other ones. Chains are left out where the loss is not persistent, and start as usual
    where the other run has none.

    Args:
        loss: The loss, before `ebmcore.training.fit`; changed in place. Its parameters and buffers must have the names and
            shapes of the other's.
        run: Directory of the other run, ``out`` of its `ebmcore.training.fit`.

    Raises:
        CheckpointError: If it has no checkpoint, or one that is damaged or does not fit; the message names what does not.

    Example:
        >>> import tempfile, torch, ebmcore
        >>> from ebmcore.testing import ExactGaussian, Quadratic
        >>> from ebmcore.training import fit
        >>> first, second = (ebmcore.create_loss("pcd", Quadratic((2,)), ExactGaussian(), n_chains=10) for _ in range(2))
        >>> with tempfile.TemporaryDirectory() as out:
        ...     _ = fit(first, torch.randn(100, 2), steps=2, out=f"{out}/first", progress=False)
        ...     start_from(second, f"{out}/first")
        >>> torch.equal(second.chain, first.chain)
        True
    """
    checkpoint = latest_checkpoint(Path(run) / "checkpoints")
    if checkpoint is None:
        raise CheckpointError(f"{run} holds no checkpoint to start from: name the directory of a run that has one")
    tensors, info = read_checkpoint(checkpoint)
    energy: nn.Module = getattr(loss, "energy", loss)
    check_same(info, {"energy": energy}, checkpoint, "start with")
    warn_of_other_versions(info, checkpoint)
    own: dict[str, Tensor] = loss.state_dict()
    check_kinds(tensors, {f"loss.{name}": tensor for name, tensor in own.items()}, checkpoint)
    prefix = "" if energy is loss else "energy."
    state = {name.removeprefix("loss."): t for name, t in tensors.items() if name.startswith("loss.")}
    state |= {prefix + name.removeprefix(_AVERAGE): t for name, t in tensors.items() if name.startswith(_AVERAGE)}
    if not getattr(loss, "persistent", False):
        state = {name: t for name, t in state.items() if not name.startswith("chains.")}
    problem = _misfit(state, own, getattr(loss, "n_chains", None))
    if problem:
        raise CheckpointError(f"a new run cannot start from {checkpoint}: {problem}")
    try:
        loss.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(f"a new run cannot start from {checkpoint}: {' '.join(str(error).split())}") from error


def _misfit(there: Mapping[str, Tensor], here: Mapping[str, Tensor], n_chains: int | None) -> str:
    """What is wrong with the first tensor that is not of the loss; empty if all are. A loss makes its chains later."""
    for name in sorted({*there, *here}):
        if name.startswith("chains."):
            if name in there and n_chains is not None and there[name].shape[:1] != (n_chains,):
                return f"it has {', '.join(map(str, there[name].shape[:1])) or 'no'} chains, not {n_chains}"
        elif name not in here:
            return f"it has {name}, which is no part of this loss and energy"
        elif name not in there:
            return f"it lacks {name}"
        elif there[name].shape != here[name].shape:
            return f"its {name} has the shape {tuple(there[name].shape)}, not {tuple(here[name].shape)}"
        elif not there[name].isfinite().all():
            return f"its {name} is NaN or infinite"
    return ""
