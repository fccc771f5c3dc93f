"""Rules for what a loss learns: a Gaussian whose precision matrix is predicted, or the parameters of a Boltzmann machine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebmcore.errors import UsageError
from ebmcore.testing.applies import FITS, FITS_UNITS
from ebmcore.testing.cases import LossCase, generator
from ebmcore.testing.rules import ConformanceError, check, expect
from ebmcore.testing.samplers import ExactGaussian, ExactSamples
from ebmcore.testing.targets import Boltzmann, Gaussian

EXAMPLES = 4096  # fresh ones in each step, so that the noise of the data is part of the fit's standard error
TO_REACH, TO_AVERAGE, BLOCKS = 150, 300, 10
SIGMAS = 5.0  # of ten blocks, whose standard error is itself known to a quarter
FLOOR = 0.02  # relative: the fit follows the mean of many steps, and this much of it is the optimizer's
TOO_NOISY = 0.3
RUNS_AWAY = 3.0
UNIT_FLOOR = 0.05  # of biases and couplings of about 1
VARIANCES, ANGLE = (2.0, 0.5, 1.0), 0.5


@dataclass(frozen=True)
class Fit:
    """A fit and its standard error, each from the means of blocks of training steps.

    Args:
        precision: ``(d, d)``, symmetric.
        mean: ``(d,)``.
        log_partition: Value that the loss reports; `None` if it reports none.
    """

    precision: tuple[Tensor, Tensor]
    mean: tuple[Tensor, Tensor]
    log_partition: tuple[Tensor, Tensor] | None


@check(FITS, since="0.1")
def check_it_fits_a_gaussian(case: LossCase) -> None:
    """On correlated normal data a Gaussian energy learns their mean, and the precision matrix that is predicted for the loss."""
    for shape in ((2,), (1, 2, 1), (3,)):
        covariance = _covariance(torch.Size(shape).numel())
        loss, fit = _fit(case, covariance, shape)
        wanted = _predicted(loss, covariance)
        _expect_precision(fit, wanted, covariance, f"on data of shape {shape}")
        found, error = fit.mean
        off = (found - _MEAN).abs()
        bound = (SIGMAS * error).clamp(min=FLOOR * math.sqrt(max(VARIANCES)))
        expect(bool((off <= bound).all()), f"on data of shape {shape} the mean is off by {float(off.max()):.3f}")
        if fit.log_partition is not None:
            _expect_log_partition(fit, shape)


_MEAN = 0.5


def _covariance(d: int) -> Tensor:
    """A covariance whose axes are neither those of the data nor their diagonals."""
    rotation = torch.eye(d, dtype=torch.float64)
    for i in range(d - 1):
        turn = torch.eye(d, dtype=torch.float64)
        c, s = math.cos(ANGLE), math.sin(ANGLE)
        turn[i : i + 2, i : i + 2] = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
        rotation = rotation @ turn
    return rotation @ torch.diag(torch.tensor(VARIANCES[:d], dtype=torch.float64)) @ rotation.T


def _predicted(loss: Any, covariance: Tensor) -> Tensor:
    """The precision matrix: along each axis of the data 1 over the variance, or what ``fitted_precision`` makes of it."""
    variances, axes = torch.linalg.eigh(covariance)
    fitted = getattr(loss, "fitted_precision", lambda variance: 1 / variance)
    precisions = torch.tensor([fitted(float(v)) for v in variances], dtype=torch.float64)
    predicted: Tensor = axes @ torch.diag(precisions) @ axes.T
    return predicted


def _fit(case: LossCase, covariance: Tensor, shape: tuple[int, ...]) -> tuple[Any, Fit]:
    d, g = len(covariance), generator(1)
    energy = Gaussian(torch.eye(d), shape)
    loss = case.make(energy, ExactGaussian(), examples=shape, **case.chains(EXAMPLES))
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05, betas=(0.9, 0.98))
    factor = torch.linalg.cholesky(covariance).float()
    precisions, means, partitions = [], [], []
    for step in range(TO_REACH + TO_AVERAGE):
        optimizer.param_groups[0]["lr"] = 0.05 if step < TO_REACH else 0.02
        x = (_MEAN + torch.randn(EXAMPLES, d, generator=g) @ factor.T).view(-1, *shape)
        try:
            result = loss(x)
        except UsageError as error:
            if "not positive definite" not in str(error):
                raise
            raise ConformanceError(
                f"on data of shape {shape}, after {step} steps, the precision has lost its sign: is the loss upside down?"
            ) from error
        optimizer.zero_grad()
        (result[0] if isinstance(result, tuple) else result).backward()
        optimizer.step()
        if step >= TO_REACH:
            precision = energy.precision.detach().double()
            precisions.append(0.5 * (precision + precision.T))
            means.append(energy.mean.detach().double().clone())
            partitions += [loss.metrics["log_partition"].detach().double()] if "log_partition" in loss.metrics else []
    return loss, Fit(_blocks(precisions), _blocks(means), _blocks(partitions) if partitions else None)


def _blocks(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The mean over training steps, and its standard error from the means of blocks."""
    blocks = torch.stack(values).view(BLOCKS, -1, *values[0].shape).mean(1)
    return blocks.mean(0), blocks.std(0) / math.sqrt(BLOCKS)


def _expect_precision(fit: Fit, wanted: Tensor, covariance: Tensor, where: str) -> None:
    found, error = fit.precision
    largest = float(wanted.abs().max())
    bound = (SIGMAS * error).clamp(min=FLOOR * largest)
    if bool(((found - wanted).abs() <= bound).all()):
        noise = float(bound.max()) / largest
        expect(
            noise <= TOO_NOISY,
            f"{where} the fit is too noisy to judge, {noise:.0%} of the precision: choose example_options with less noise for "
            "data of unit scale",
        )
        return
    expect(bool(found.isfinite().all()), f"{where} the precision is not finite")
    variances, axes = torch.linalg.eigh(covariance)
    turned, right = axes.T @ found @ axes, (axes.T @ wanted @ axes).diagonal()
    along, ratios = turned.diagonal(), turned.diagonal() / right
    beside = float((turned - torch.diag(along)).abs().max())
    ratio, spread = float(ratios.mean()), float(ratios.max() - ratios.min())
    if float(found.norm()) > RUNS_AWAY * float(wanted.norm()):
        kind = "the fit runs away from the data: is the sign of the loss wrong?"
    elif ratio < 0:
        kind = f"the sign of the energy is wrong: the precision is {ratio:.3f} times the predicted one"
    elif beside > float(bound.max()):
        kind = f"the direction is wrong: along the axes of the data the precision has {beside:.3f} beside its diagonal"
    elif spread < 0.3 * abs(ratio - 1):
        kind = f"the scale is wrong: the precision is {ratio:.3f} times the predicted one"
    else:
        kind = "the error depends on the variance: a loss that smooths the data has the method fitted_precision(variance)"
    pairs = [f"{f:.3f} in place of {w:.3f} at variance {v:.3g}" for f, w, v in zip(along, right, variances, strict=True)]
    expect(False, f"{where} {kind}; the precision is {', '.join(pairs)}")


@check(FITS_UNITS, since="0.1")
def check_it_fits_a_boltzmann_machine(case: LossCase) -> None:
    """On exact samples of a Boltzmann machine of three units another one learns their biases and couplings."""
    target, energy, g = Boltzmann(3, seed=1), Boltzmann(3, scale=0.1, seed=2), generator(1)
    loss = case.make(energy, ExactSamples(energy), examples=(3,), **case.chains(EXAMPLES))
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05, betas=(0.9, 0.98))
    learnt = []
    for step in range(TO_REACH + TO_AVERAGE):
        optimizer.param_groups[0]["lr"] = 0.05 if step < TO_REACH else 0.02
        value = case.value(loss, target.sample(EXAMPLES, generator=g))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step >= TO_REACH:
            learnt.append(_known(energy))
    (found, error), wanted = _blocks(learnt), _known(target)
    off = (found - wanted).abs()
    worst = int((off / (SIGMAS * error).clamp(min=UNIT_FLOOR)).argmax())
    expect(
        bool((off <= (SIGMAS * error).clamp(min=UNIT_FLOOR)).all()),
        f"a bias or coupling is {float(found[worst]):.3f} in place of {float(wanted[worst]):.3f}",
    )


def _known(energy: Boltzmann) -> Tensor:
    """Biases and couplings; only couplings above the diagonal count."""
    above = torch.triu_indices(3, 3, 1)
    return torch.cat([energy.bias.detach(), energy.coupling.detach()[above[0], above[1]]]).double()


def _expect_log_partition(fit: Fit, shape: tuple[int, ...]) -> None:
    assert fit.log_partition is not None, "called where one is reported"
    (found, error), precision = fit.log_partition, fit.precision[0]
    wanted = 0.5 * (len(precision) * math.log(2 * math.pi) - float(torch.logdet(precision)))
    off = float(found) - wanted
    expect(
        abs(off) <= max(0.03, SIGMAS * float(error)),
        f'on data of shape {shape} metrics["log_partition"] is {float(found):.3f}, off the closed form {wanted:.3f} by '
        f"{off:+.3f} nats: do the logits contain the ratio of noise to data?",
    )
