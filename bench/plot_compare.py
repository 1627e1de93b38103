#!/usr/bin/env python3
"""Draws bench/results/compare-*.json (records of bench/compare.py) as one figure: how many times transformers' speed.

Decides only how the records look; needs matplotlib. Bars are ratios of medians, whiskers the extremes of the runs.
usage: python bench/plot_compare.py [--out docs/images/compare.svg]
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LABELS = {
    "start": "process start\nto first token",
    "decode": "decode,\none sequence",
    "batch": "64 requests\nat once",
    "prefill": "prefill of\n1,024 tokens",
}


def ratios(runs: dict[str, list[float]], workload: str) -> tuple[float, float, float]:
    """Median, smallest and largest speed of quire in units of transformers' median speed."""
    theirs = statistics.median(runs["transformers"])
    speeds = [theirs / ours if workload == "start" else ours / theirs for ours in runs["quire"]]
    return statistics.median(speeds), min(speeds), max(speeds)


def draw(records: list[dict[str, Any]], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "quire"  # the same file for the same figures
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 2.8), layout="constrained")
    width = 0.8 / len(records)
    for i, record in enumerate(records):
        for j, workload in enumerate(LABELS):
            middle, low, high = ratios(record["runs"][workload], workload)
            x = j + (i - (len(records) - 1) / 2) * width
            label = f"{record['shape']} shape" if j == 0 else None
            axes.bar(x, middle, width * 0.92, color=("#1f6f8b", "#e08e45", "#7a5195")[i], label=label)
            axes.errorbar(x, middle, [[middle - low], [high - middle]], color="#333333", capsize=3, linewidth=1)
            axes.annotate(
                f"{middle:.1f}", (x, high), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=9
            )
    axes.axhline(1, color="#333333", linewidth=1)
    axes.set_xticks(range(len(LABELS)), list(LABELS.values()))
    axes.set_ylabel("speed, transformers = 1")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images/compare.svg")
    arguments = parser.parse_args()
    paths = sorted((ROOT / "bench/results").glob("compare-*.json"), reverse=True)
    if not paths:
        parser.error("bench/results holds no compare-*.json; make one with bench/compare.py --json")
    draw([json.loads(path.read_text(encoding="utf-8")) for path in paths], arguments.out)


if __name__ == "__main__":
    main()
