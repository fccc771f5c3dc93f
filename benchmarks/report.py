"""Writes the results of ``run.py`` into ``docs/benchmarks.md``, with a plot. Run by ``make bench``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

ROOT = Path(__file__).parent.parent
PAGE, PLOT, RESULTS = ROOT / "docs/benchmarks.md", ROOT / "docs/images/benchmark.png", Path(__file__).parent / "results"


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


def plot(rows: list[dict[str, Any]]) -> None:
    """A group of bars for each row of the table with one thread."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    groups = list(dict.fromkeys((row["workload"], row["size"]) for row in rows))
    systems = list(dict.fromkeys(row["system"] for row in rows))
    figure, axes = plt.subplots(figsize=(9, 0.55 * len(groups) + 1))
    height = 0.85 / len(systems)
    for i, system in enumerate(systems):
        own = [(groups.index((r["workload"], r["size"])), r["hand"][1]) for r in rows if r["system"] == system]
        axes.barh([at + i * height for at, _ in own], [ratio for _, ratio in own], height, label=system)
    axes.axvline(1, color="k", linewidth=0.8)
    axes.set_yticks([i + 0.4 for i in range(len(groups))], [f"{name}, {size}" for name, size in groups], fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="time relative to the hand-written loop", xlim=(0, 2.5))
    axes.legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(PLOT, dpi=110)


def main() -> None:
    """What stands between the page's two marks is replaced."""
    results = {path.stem.removeprefix("threads-"): json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    parts = [f"## {'One thread' if n == '1' else 'Two threads'}\n\n{table(rows)}" for n, rows in results.items()]
    before, mark, rest = PAGE.read_text().partition("<!-- table -->\n")
    _, end, after = rest.partition("<!-- end of the table -->\n")
    PAGE.write_text(f"{before}{mark}\n" + "\n\n".join(parts) + f"\n\n{end}{after}")
    plot(results["1"])


if __name__ == "__main__":
    main()
