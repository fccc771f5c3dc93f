"""Writes the results of ``run.py`` into ``docs/benchmarks.md``, with a plot, and those of losses into ``docs/choose-a-loss.md``.

Run by ``make bench``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

ROOT = Path(__file__).parent.parent
PAGE, PLOT, RESULTS = ROOT / "docs/benchmarks.md", ROOT / "docs/images/benchmark.png", Path(__file__).parent / "results"
LOSSES = ROOT / "docs/choose-a-loss.md"  # the page of the workloads whose name begins with "Loss: "


BATCHES = ("64", "256", "1024")
CD, PCD, LANGEVIN, MALA, RBM, CONV = range(6)  # the order of the workloads
# Workload, system, what it is compared with, and the most that it may take of that at each size.
BOUNDS: list[tuple[int, str, str, dict[str, float]]] = [
    *((w, "ebmcore_eager", "floor", dict(zip(BATCHES, (1.2, 1.1, 1.1), strict=True))) for w in (CD, PCD)),
    *((w, "ebmcore_eager", "torchebm", dict(zip(BATCHES, (0.65, 1.0, 1.0), strict=True))) for w in (CD, PCD)),
    *((w, "ebmcore_eager", "ebmkit", dict.fromkeys(BATCHES, 1.0)) for w in (CD, PCD)),
    *((w, "ebmcore_compiled", "floor", dict(zip(BATCHES, (0.75, 0.9, 0.92), strict=True))) for w in (CD, PCD)),
    (LANGEVIN, "ebmcore_compiled", "floor", dict(zip(BATCHES, (0.53, 0.75, 0.83), strict=True))),
    (MALA, "ebmcore_eager", "floor", {"1000": 1.3}),
    (RBM, "ebmcore_eager", "floor", {"784x500": 1.12, "64x128": 2.0}),
    (RBM, "ebmcore_eager", "sklearn", {"784x500": 0.72, "64x128": 0.5}),
    *((CONV, "ebmcore_eager", peer, {"64": 1.0}) for peer in ("torchebm", "ebmkit")),
]


PEERS = ("ebmkit", "torchebm")


def is_loss(workload: str) -> bool:
    """Whether a workload is a step of one loss, all with the same energy."""
    return workload.startswith("Loss: ")


def bounds(rows: list[dict[str, Any]]) -> list[str]:
    """Check the bounds, by medians of ratios to the floor or the quotient of two systems' to the hand-written loop."""
    names = list(dict.fromkeys(row["workload"] for row in rows))
    at = {(row["workload"], row["size"], row["system"]): row for row in rows}
    lines = []
    of_losses = [
        (name, "ebmcore_eager", peer, dict.fromkeys(BATCHES[1:], 1.15 if peer == "floor" else 1.0))
        for name in names
        if is_loss(name)
        for peer in ("floor", *PEERS)
    ]
    for workload, system, reference, sizes in [*((names[w], *rest) for w, *rest in BOUNDS if w < len(names)), *of_losses]:
        for size, bound in sizes.items():
            own, other = (at.get((workload, size, one)) for one in (system, reference))
            if own is None or other is None:
                continue
            ratio = own["floor"][1] if reference == "floor" else own["hand"][1] / other["hand"][1]
            verdict = "held" if ratio <= bound else "MISSED"
            lines.append(f"{workload:<48} {size:>8} {system:<17} {ratio:5.3f} of {reference}, at most {bound}: {verdict}")
    return lines


def table(rows: list[dict[str, Any]]) -> str:
    """Ratios to the hand-written loop with their quartiles, to the floor, and counts of operators."""
    lines = [
        "| workload | size | system | of the hand-written loop (quartiles) | of the floor | ms | dispatches | first 2 calls, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, median, high = row["hand"]
        dispatches = "" if row["dispatches"] is None else f"{row['dispatches']:.0f}"
        lines.append(
            f"| {row['workload']} | {row['size']} | {row['system']} | {median:.2f} ({low:.2f} to {high:.2f}) | "
            f"{row['floor'][1]:.2f} | {row['ms']:.3g} | {dispatches} | {row['cold']:.2g} |"
        )
    return "\n".join(lines)


def costs(rows: list[dict[str, Any]]) -> str:
    """A line for each loss: the time of ebmcore's step, and its ratios at each batch size."""
    at = {(row["workload"], row["size"], row["system"]): row for row in rows}
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    lines = [
        f"| loss | ms | of the floor (quartiles) | of the hand-written loop | {' | '.join(f'of {peer}' for peer in PEERS)} |"
    ]
    lines.append("|" + "---|" * (4 + len(PEERS)))
    for workload in dict.fromkeys(row["workload"] for row in rows):
        own = [at[workload, size, "ebmcore_eager"] for size in sizes]
        of_peers = [
            ", ".join(
                f"{row['hand'][1] / at[workload, row['size'], peer]['hand'][1]:.2f}"
                for row in own
                if (workload, row["size"], peer) in at
            )
            for peer in PEERS
        ]
        cells = [
            workload.removeprefix("Loss: "),
            ", ".join(f"{row['ms']:.3g}" for row in own),
            ", ".join("{1:.2f} ({0:.2f} to {2:.2f})".format(*row["floor"]) for row in own),
            ", ".join(f"{row['hand'][1]:.2f}" for row in own),
            *of_peers,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]]) -> None:
    """A group of bars for each row of the table with one thread."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    groups = list(dict.fromkeys((row["workload"], row["size"]) for row in rows))
    systems = list(dict.fromkeys(row["system"] for row in rows))
    figure, axes = plt.subplots(figsize=(9, 0.55 * len(groups) + 1))
    height, colors = 0.85 / len(systems), mpl.colormaps["tab20"]
    for i, system in enumerate(systems):
        own = [(groups.index((r["workload"], r["size"])), r["hand"][1]) for r in rows if r["system"] == system]
        axes.barh([at + i * height for at, _ in own], [ratio for _, ratio in own], height, label=system, color=colors(i))
    axes.axvline(1, color="k", linewidth=0.8)
    axes.set_yticks([i + 0.4 for i in range(len(groups))], [f"{name}, {size}" for name, size in groups], fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="time relative to the hand-written loop", xlim=(0, 2.5))
    axes.legend(fontsize=7, loc="upper right")
    axes.margins(y=0.01)
    figure.tight_layout()
    figure.savefig(PLOT, dpi=110)


def write(page: Path, text: str) -> None:
    """Replaces the text between the page's two marks."""
    before, mark, rest = page.read_text().partition("<!-- table -->\n")
    _, end, after = rest.partition("<!-- end of the table -->\n")
    page.write_text(f"{before}{mark}\n{text}\n\n{end}{after}")


def main() -> None:
    """Write both tables and the plot, and print the bounds."""
    results = {path.stem.removeprefix("threads-"): json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    for n, found in results.items():
        print(f"threads: {n}", *bounds(found["rows"]), sep="\n")
    others = {n: [row for row in found["rows"] if not is_loss(row["workload"])] for n, found in results.items()}
    parts = [
        f"## {'One thread' if n == '1' else 'Two threads'}\n\nProcessor: {found['processor']}.\n\n{table(others[n])}"
        for n, found in results.items()
    ]
    write(PAGE, "\n\n".join(parts))
    one_thread = results["1"]
    losses = [row for row in one_thread["rows"] if is_loss(row["workload"])]
    write(LOSSES, f"Processor: {one_thread['processor']}, one thread.\n\n{costs(losses)}")
    plot(others["1"])


if __name__ == "__main__":
    main()
