"""Bars and stripes: published likelihoods, and the learning rates that each loss tolerates."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from machines import Machines, alone, best_possible, for_each, summed_log_likelihoods
from table import Row, mean_and_error

import ebmcore
from ebm_plugin_rbm.rbm import RBM


def train(
    loss: str,
    machines: Machines,
    x: torch.Tensor,
    lr: float,
    updates: int,
    every: int,
    falling: bool = False,
    **options: Any,
) -> torch.Tensor:
    """Full-batch training of all machines; their exact summed log-likelihoods on the way, ``(updates / every, T)``."""
    batch = for_each(x, len(machines.weight))
    if loss != "cd":
        options = {"n_chains": len(x)} | options
    cd = ebmcore.create_loss(loss, machines, ebmcore.create_sampler("gibbs"), **options)
    optimizer = torch.optim.SGD(machines.parameters(), lr=lr)
    patterns, curve = x[: len(x.unique(dim=0)) + 2], []  # the data once: two of the patterns stand in them twice
    for update in range(updates):
        if falling:
            optimizer.param_groups[0]["lr"] = lr * (1 - update / updates)
        value, _ = cd(batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if (update + 1) % every == 0:
            curve.append(summed_log_likelihoods(machines, patterns))
    return torch.stack(curve)


def small(trials: int, visible: int, hidden: int) -> Machines:
    """Weights from N(0, 0.01^2), biases of 0."""
    weight = 0.01 * torch.randn(trials, visible, hidden)
    return Machines(weight, torch.zeros(trials, visible), torch.zeros(trials, hidden))


def patterns(side: int) -> torch.Tensor:
    """All bars and stripes, the two uniform ones twice."""
    return ebmcore.create_dataset("bars-and-stripes", side=side).train


def three_by_three() -> list[Row]:
    """CD-1 and PCD-1 on 3x3 bars and stripes, 25 trials, as Melchior, Fischer and Wiskott (2016) trained them."""
    published, best = {"cd": -64.99, "pcd": -58.16}, {}
    spread = {"cd": 3.63, "pcd": 5.50}
    rows = []
    for loss in ("cd", "pcd"):
        torch.manual_seed(0)
        curve = train(loss, small(25, 9, 4), patterns(3), lr=0.05, updates=50_000, every=100)
        best[loss] = curve.max(0).values.tolist()
        mean, error = mean_and_error(best[loss])
        said = f"{published[loss]} +- {spread[loss]}"
        ours = f"{mean:.2f} +- {statistics.stdev(best[loss]):.2f} (standard error {error:.2f})"
        name = f"bars and stripes 3x3, {loss.upper()}-1, best of training"
        rows.append(Row(name, said, ours, abs(mean - published[loss]) < 3.5))
    lead = statistics.mean(best["pcd"]) - statistics.mean(best["cd"])
    rows.append(Row("bars and stripes 3x3, lead of PCD-1", "6.83, at least 3", f"{lead:.2f}", lead > 3))
    return rows


def four_by_four() -> list[Row]:
    """CD-1 on 4x4 bars and stripes, 10 trials, as in the tutorial of the Shark library."""
    torch.manual_seed(0)
    weight, b, c = (0.2 * torch.rand(10, *shape) - 0.1 for shape in ((16, 32), (16,), (32,)))
    curve = train("cd", Machines(weight, b, c), patterns(4), lr=0.1, updates=1000, every=1000)
    mean, error = mean_and_error(curve[-1].tolist())
    return [Row("bars and stripes 4x4, CD-1, 1,000 steps", "-192.5", f"{mean:.1f} +- {error:.1f}", -198 < mean < -186)]


UPDATES, EVERY = 10_000, 500
PLAIN = {"cd": ("cd", 1), "pcd": ("pcd", 1), "pcd-10": ("pcd", 10)}  # loss and transitions per update
LEVEL = 0.01  # a likelihood that loses less than this share of what it gained does not fall


def plain_curve(name: str) -> list[list[float]]:
    """Likelihood of one of ``PLAIN`` on the way, at the constant rate of 0.1, 16 hidden units, 128 chains, 10 trials."""
    loss, k_steps = PLAIN[name]
    torch.manual_seed(0)
    x = patterns(4).repeat(4, 1, 1, 1)
    return train(loss, small(10, 16, 16), x, lr=0.1, updates=UPDATES, every=EVERY, k_steps=k_steps).T.tolist()


def tempered_curve(seed: int) -> list[float]:
    """The same of parallel tempering, one trial: each chain's ladder exchanges by itself, so machines do not share one."""
    torch.manual_seed(seed)
    x, rbm = patterns(4), RBM((1, 4, 4), hidden=16)
    ptcd = ebmcore.create_loss("ptcd", rbm, ebmcore.create_sampler("gibbs"), n_rungs=10, min_beta=0.0, n_chains=128)
    optimizer, batch, curve = torch.optim.SGD(rbm.parameters(), lr=0.1), x.repeat(4, 1, 1, 1), []
    for update in range(UPDATES):
        value, _ = ptcd(batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if (update + 1) % EVERY == 0:
            curve.append(float(summed_log_likelihoods(alone(rbm), x)))
    return curve


def tempering(curves: dict[str, list[list[float]]]) -> list[Row]:
    """Results of ten trials of each: PTCD ends above PCD, at equal compute too; CD-1 rises and falls, PTCD does not fall."""
    setting = "bars and stripes 4x4, 16 hidden units, rate 0.1, at the end"
    return [
        lead_of_ptcd(f"{setting}: PTCD - PCD-1", curves["ptcd"], curves["pcd"]),
        lead_of_ptcd("the same, PTCD - PCD-10, as many transitions as PTCD's ten rungs", curves["ptcd"], curves["pcd-10"]),
        rises_then_falls("the same, mean likelihood of CD-1", curves["cd"]),
        does_not_fall("the same, mean likelihood of PTCD", curves["ptcd"]),
    ]


def lead_of_ptcd(study: str, ptcd: list[list[float]], other: list[list[float]]) -> Row:
    """Whether PTCD ends above another loss."""
    (high, high_error), (low, low_error) = (mean_and_error([trial[-1] for trial in trials]) for trials in (ptcd, other))
    lead, error = high - low, (high_error**2 + low_error**2) ** 0.5
    ours = f"{lead:.1f} +- {error:.1f} ({high:.1f} and {low:.1f}; best possible {best_possible(patterns(4)):.1f})"
    return Row(study, "above 2 standard errors", ours, lead > 2 * error)


def rises_then_falls(study: str, trials: list[list[float]]) -> Row:
    """Whether the best point of the mean curve is above its first and its last point."""
    (rise, rise_error), (fall, fall_error), told = rise_and_fall(trials)
    verdict = rise > 2 * rise_error and fall > 2 * fall_error
    return Row(study, "rises, then falls, each by more than 2 standard errors", told, verdict)


def does_not_fall(study: str, trials: list[list[float]]) -> Row:
    """Whether it keeps what it gained; the curve fluctuates, so its best point is somewhat above its last one in any case."""
    (rise, _), (fall, _), told = rise_and_fall(trials)
    return Row(study, f"does not fall: by less than {LEVEL:.0%} of its rise", told, fall < LEVEL * rise)


def rise_and_fall(trials: list[list[float]]) -> tuple[tuple[float, float], tuple[float, float], str]:
    """From the first to the best point of the mean curve, and from there to the last: mean over trials, standard error."""
    mean = [statistics.mean(at) for at in zip(*trials, strict=True)]
    best = mean.index(max(mean))
    rise = mean_and_error([trial[best] - trial[0] for trial in trials])
    fall = mean_and_error([trial[best] - trial[-1] for trial in trials])
    told = (
        f"{mean[0]:.1f} after {EVERY} updates, {mean[best]:.1f} at best, {mean[-1]:.1f} at the end; rise {rise[0]:.1f} +- "
        f"{rise[1]:.1f}, fall {fall[0]:.1f} +- {fall[1]:.1f}"
    )
    return rise, fall, told


RATES, FALLING_UPDATES = (0.2, 0.05), 20_000
LOSSES = ("cd", "pcd", "fpcd")


def variants(lr: float) -> dict[str, list[float]]:
    """Likelihood per pattern of each loss after ``FALLING_UPDATES`` at a rate that falls from ``lr`` to 0, 5 trials.

    With constant rates the chains of PCD keep pushing the model around. The fast weights of FPCD learn at the rate that the slow
    ones begin with, as in its paper.
    """
    found = {}
    for loss in LOSSES:
        torch.manual_seed(0)
        options = {"fast_lr": lr} if loss == "fpcd" else {}
        x = patterns(4).repeat(4, 1, 1, 1)
        curve = train(loss, small(5, 16, 16), x, lr, FALLING_UPDATES, FALLING_UPDATES, falling=True, **options)
        found[loss] = (curve[-1] / 32).tolist()
    return found


def variant_rows(found: dict[float, dict[str, list[float]]]) -> list[Row]:
    """PCD is ahead of CD-1 at the smaller rate; FPCD is ahead of PCD at the larger one."""
    at = {(lr, loss): mean_and_error(values) for lr, of in found.items() for loss, values in of.items()}

    def told(lr: float) -> str:
        return ", ".join(f"{loss} {at[lr, loss][0]:.2f} +- {at[lr, loss][1]:.2f}" for loss in LOSSES)

    def ahead(lr: float, first: str, second: str) -> bool:
        (high, high_error), (low, low_error) = at[lr, first], at[lr, second]
        return high - low > 2 * (high_error**2 + low_error**2) ** 0.5

    return [
        Row("per pattern, rate falling from 0.05", "PCD above CD-1", told(0.05), ahead(0.05, "pcd", "cd")),
        Row("per pattern, rate falling from 0.2", "FPCD above PCD", told(0.2), ahead(0.2, "fpcd", "pcd")),
    ]
