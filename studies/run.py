"""All studies: prints their table; status 1 unless all verdicts are true.

Run by ``make studies``; ``make studies DATA=directory`` also runs those on MNIST, and then writes the page ``docs/studies.md``
and its plots. Losses, samplers, energies and data are the plugins'; likelihoods are enumerated here.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import bars
import denoising
import densities
import images
import matplotlib as mpl
import recovery
import theory
import torch
import two_modes
from table import Row, markdown

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/studies.md"
PLOTS = {"tempering": ROOT / "docs/images/study-tempering.png", "modes": ROOT / "docs/images/study-two-modes.png"}
SEEDS = 5
T = TypeVar("T")


def main() -> None:
    """Run them, two at a time, the longest first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="directory with MNIST; its studies are not run without it")
    data = parser.parse_args().data
    start = time.perf_counter()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        plain = {name: pool.submit(bars.plain_curve, name) for name in bars.PLAIN}
        mnist = {
            loss: [pool.submit(images.mnist, loss, seed, data) for seed in range(2)] if data else []
            for loss in ("pcd", "cd")
        }
        plane = {loss: [pool.submit(densities.in_plane, loss, seed) for seed in range(2)] for loss in densities.IN_PLANE}
        tempered = [pool.submit(bars.tempered_curve, seed) for seed in range(10)]
        modes = {loss: [pool.submit(two_modes.learned, loss, seed) for seed in range(SEEDS)] for loss in ("ptcd", "pcd")}
        grey = [pool.submit(denoising.learned, seed) for seed in range(3)]
        bits = {loss: [pool.submit(densities.in_bits, loss, seed) for seed in range(3)] for loss in densities.IN_BITS}
        recovered = [pool.submit(recovery.below_the_maximum, trial) for trial in range(SEEDS)]
        variants = {lr: pool.submit(bars.variants, lr) for lr in bars.RATES}
        first = [pool.submit(f) for f in (bars.three_by_three, bars.four_by_four)]
        last = [pool.submit(f) for f in (images.digits, theory.annealing, theory.identities)]

        rows = [row for future in first for row in future.result()]
        curves = {name: future.result() for name, future in plain.items()}
        curves["ptcd"] = [future.result() for future in tempered]
        rows += bars.tempering(curves)
        rows += bars.variant_rows({lr: future.result() for lr, future in variants.items()})
        found = results(modes)
        rows += two_modes.rows({loss: [mass for mass, _ in of] for loss, of in found.items()})
        if data:
            rows += images.mnist_rows(**results(mnist))
        else:
            rows.append(Row("MNIST 784-16, PCD-1 and CD-1", "-149.05", "needs make studies DATA=directory", None))
        rows += densities.plane_rows(results(plane))
        rows += densities.bits_rows(results(bits))
        rows += recovery.rows([future.result() for future in recovered])
        rows += denoising.rows([future.result() for future in grey])
        rows += [row for future in last for row in future.result()]
    publish(rows, curves, {loss: [marginal for _, marginal in of] for loss, of in found.items()})
    print(f"{markdown(rows)}\n\n{(time.perf_counter() - start) / 60:.1f} minutes; {summary(rows)}")
    if any(row.verdict is False for row in rows):
        raise SystemExit(1)


def results(futures: dict[str, list[Future[T]]]) -> dict[str, list[T]]:
    """What the runs of each loss gave."""
    return {loss: [future.result() for future in of] for loss, of in futures.items()}


def summary(rows: list[Row]) -> str:
    """Lists the verdicts that are not true and the studies that were not run."""
    wrong = [row.study for row in rows if row.verdict is False]
    missing = [row.study for row in rows if row.verdict is None]
    told = "not true: " + "; ".join(wrong) if wrong else f"every verdict{' on what was run' if missing else ''} is true"
    if missing:
        told += f"; not run: {'; '.join(missing)}; the page is written only when all studies ran"
    return told


def publish(rows: list[Row], curves: dict[str, list[list[float]]], marginals: dict[str, list[list[float]]]) -> None:
    """Write the page and its plots, or leave them as they are where a study was not run."""
    if any(row.verdict is None for row in rows):
        return
    plot(curves, marginals)
    write_page(rows)


def write_page(rows: list[Row]) -> None:
    """The page of the documentation: what stands between its two marks is replaced by the table."""
    before, mark, rest = PAGE.read_text().partition("<!-- table -->\n")
    _, end, after = rest.partition("<!-- end of the table -->\n")
    PAGE.write_text(f"{before}{mark}\n{markdown(rows)}\n\n{end}{after}")


def plot(curves: dict[str, list[list[float]]], marginals: dict[str, list[list[float]]]) -> None:
    """Likelihoods during training, and the learned densities of two modes."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.5))
    for loss, trials in curves.items():
        values = torch.tensor(trials)
        updates = bars.EVERY * torch.arange(1, values.shape[1] + 1)
        mean, error = values.mean(0), values.std(0) / len(values) ** 0.5
        axes.plot(updates, mean, label=loss)
        axes.fill_between(updates, mean - 2 * error, mean + 2 * error, alpha=0.3)
    axes.set(xlabel="updates", ylabel="log-likelihood of 32 patterns (nats)", ylim=(-450, -80))
    axes.legend()
    figure.tight_layout()
    figure.savefig(PLOTS["tempering"], dpi=120)

    figure, panels = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
    ticks = torch.linspace(-8, 8, 401)
    for panel, (loss, learned) in zip(panels, marginals.items(), strict=True):
        modes = torch.tensor([[1 - two_modes.MASS, -two_modes.AT], [two_modes.MASS, two_modes.AT]])
        normals = torch.exp(-0.5 * ((ticks - modes[:, 1:]) / two_modes.STD) ** 2) / (two_modes.STD * (2 * torch.pi) ** 0.5)
        panel.plot(ticks, (modes[:, :1] * normals).sum(0), "k--", label="data")
        for density in learned:
            panel.plot(ticks, density, alpha=0.6)
        panel.set(title=loss, xlabel="first component", xlim=(-5, 5))
    panels[0].legend()
    figure.tight_layout()
    figure.savefig(PLOTS["modes"], dpi=120)


if __name__ == "__main__":
    main()
