#!/usr/bin/env python3
"""Simulates how a model scales over 2, 4 and 8 GPUs with tensor parallelism, and says where the time goes.

Every figure is a prediction: nothing here was run on a GPU. Kernels take what tools/kernel_predictions.py says, the
bytes and flops of one rank over 4.3 TB/s and 790 TFLOP/s and a gap a launch. Sums between GPUs take what is published
for NVLink (SGLang's one- and two-shot kernels on H100, github.com/sgl-project/sglang/pull/2904, linear between sizes),
scaled by bandwidth beyond 1 MiB, and over PCIe a model of latency and bandwidth. quire's sums are float32, twice the
bytes of bf16. What host threads take for launches and to meet before each sum is an assumption, drawn where it shows.

usage: python bench/scaling.py [--check]   writes the table of docs/scaling.md and docs/images/scaling.png
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT, PICTURE = ROOT / "docs" / "scaling.md", ROOT / "docs" / "images" / "scaling.png"
BEGIN, END = "<!-- simulation: begin -->", "<!-- simulation: end -->"

BYTES_PER_US, FLOPS_PER_US = 4.3e6, 790e6  # as in tools/kernel_predictions.py
GAP_US = 1.3  # between two launches of a graph; five launches of a layer besides sums
LAUNCHES = 6
MEMORY_BYTES = 141e9  # of an H200
# Of the host, assumed: a meeting of threads before a sum (record, meet, wait for events), and a launch outside a graph.
MEETING_US, EAGER_LAUNCH_US = 8.0, 2.5
RANKS = (1, 2, 4, 8)
PARTS = ("weights", "attention", "launches", "sums", "waiting for hosts")


@dataclass(frozen=True)
class Shape:
    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @property
    def layer_weights(self) -> int:
        qkv = (self.heads + 2 * self.kv_heads) * self.head_dim * self.hidden
        return qkv + self.heads * self.head_dim * self.hidden + 3 * self.hidden * self.intermediate

    @property
    def weights(self) -> int:
        return self.layers * self.layer_weights + self.vocab * self.hidden


SHAPES = (
    Shape("8B", 32, 4096, 14336, 32, 8, 128, 128256),
    Shape("70B", 80, 8192, 28672, 64, 8, 128, 128256),
)


@dataclass(frozen=True)
class Work:
    """A step: `rows` tokens, each of which sees `context` keys; `samples` of them reach the head."""

    name: str
    rows: int
    samples: int
    context: int
    sequences: int


WORKS = (
    Work("decode, 1 sequence", 1, 1, 1024, 1),
    Work("decode, 64 sequences", 64, 64, 1024, 64),
    Work("prompt of 2,048", 2048, 1, 1024, 1),
)

# Published, H100 SXM, NVLink 4: bytes -> us for 2, 4 and 8 ranks.
NVLINK_US = {
    512: (3.7, 4.8, 5.9),
    4 << 10: (3.9, 3.7, 5.7),
    32 << 10: (4.5, 4.8, 7.8),
    256 << 10: (7.9, 13.9, 16.7),
    512 << 10: (12.5, 20.2, 22.1),
    1 << 20: (19.9, 31.1, 33.8),
}
NVLINK_BYTES_PER_US = 0.40e6  # a direction, of 450 GB/s, beyond the published sizes
PCIE_BYTES_PER_US, PCIE_LATENCY_US = 0.045e6, 12.0  # PCIe 5 x16: 45 of 64 GB/s, and a round of peers


def nvlink_us(num_bytes: float, ranks: int) -> float:
    column = {2: 0, 4: 1, 8: 2}[ranks]
    sizes = sorted(NVLINK_US)
    if num_bytes <= sizes[0]:
        return NVLINK_US[sizes[0]][column]
    for low, high in zip(sizes, sizes[1:], strict=False):
        if num_bytes <= high:
            share = (num_bytes - low) / (high - low)
            return NVLINK_US[low][column] * (1 - share) + NVLINK_US[high][column] * share
    moved = 2 * (ranks - 1) / ranks * (num_bytes - sizes[-1])
    return NVLINK_US[sizes[-1]][column] + moved / NVLINK_BYTES_PER_US


def pcie_us(num_bytes: float, ranks: int) -> float:
    moved = 2 * (ranks - 1) / ranks * num_bytes if ranks > 2 else num_bytes
    return PCIE_LATENCY_US * (1 if ranks == 2 else 2) + moved / PCIE_BYTES_PER_US


LINKS = {"NVLink": nvlink_us, "PCIe 5": pcie_us}


def kernel_us(num_bytes: float, flops: float) -> float:
    return max(num_bytes / BYTES_PER_US, flops / FLOPS_PER_US)


def step_us(shape: Shape, work: Work, ranks: int, link: str) -> dict[str, float]:
    """The time of a step by part, in us."""
    weights = shape.layer_weights / ranks
    head = shape.vocab * shape.hidden / ranks
    matrices = shape.layers * kernel_us(2 * weights, 2 * weights * work.rows)
    matrices += kernel_us(2 * head, 2 * head * work.samples)
    kv_heads = max(1, shape.kv_heads // ranks)
    kv_bytes = 2 * 2 * kv_heads * shape.head_dim * work.context * work.sequences
    pairs = work.rows * work.context
    attention = shape.layers * kernel_us(kv_bytes, 4 * shape.heads / ranks * shape.head_dim * pairs)
    sums = 2 * shape.layers + 1
    data = 0.0 if ranks == 1 else sums * LINKS[link](4 * work.rows * shape.hidden, ranks)
    launches = (LAUNCHES * shape.layers + 4) * GAP_US
    busy = matrices + attention + launches + data
    # With ranks a step is not replayed from a graph; what the host does is hidden as far as kernels take longer.
    host = sums * MEETING_US + (LAUNCHES * shape.layers + 4) * EAGER_LAUNCH_US
    waiting = 0.0 if ranks == 1 else max(0.0, host - busy)
    return dict(zip(PARTS, (matrices, attention, launches, data, waiting), strict=True))


def fits(shape: Shape, ranks: int) -> bool:
    return 2 * (shape.weights + shape.vocab * shape.hidden) / ranks < 0.9 * MEMORY_BYTES


def table() -> str:
    lines = []
    for shape in SHAPES:
        lines += [
            f"### {shape.name}, bf16, H200: predicted ms a step",
            "",
            "| step | link | "
            + " | ".join(f"{n} GPU{'s' if n > 1 else ''}" for n in RANKS)
            + " | of 8: sums and hosts |",
            "|---|---|" + "---|" * (len(RANKS) + 1),
        ]
        for work in WORKS:
            for link in LINKS:
                cells, first = [], None
                for ranks in RANKS:
                    total = sum(step_us(shape, work, ranks, link).values()) / 1000
                    if not fits(shape, ranks):
                        cells.append("does not fit")
                        continue
                    first = first or (ranks, total)
                    gain = "" if ranks == first[0] else f" ({first[1] / total:.1f}x)"
                    cells.append(f"{total:.2f}{gain}")
                parts = step_us(shape, work, 8, link)
                share = (parts["sums"] + parts["waiting for hosts"]) / sum(parts.values())
                lines.append(f"| {work.name} | {link} | " + " | ".join(cells) + f" | {share:.0%} |")
        lines.append("")
    return "\n".join(lines)


def draw(path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colors = ("#33658a", "#86bbd8", "#d9d9d9", "#f26419", "#f6ae2d")
    figure, axes = pyplot.subplots(len(SHAPES), len(WORKS), figsize=(13, 7))
    for row, shape in zip(axes, SHAPES, strict=True):
        for axis, work in zip(row, WORKS, strict=True):
            bars = [(ranks, link) for ranks in RANKS for link in LINKS if ranks > 1 or link == "NVLink"]
            bars = [(ranks, link) for ranks, link in bars if fits(shape, ranks)]
            names = ["1" if ranks == 1 else f"{ranks}\n{link}" for ranks, link in bars]
            bottoms = [0.0] * len(bars)
            for part, color in zip(PARTS, colors, strict=True):
                heights = [step_us(shape, work, ranks, link)[part] / 1000 for ranks, link in bars]
                axis.bar(names, heights, bottom=bottoms, label=part, color=color, width=0.7)
                bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
            axis.margins(y=0.08)
            axis.set_title(f"{shape.name}: {work.name}", fontsize=10)
            axis.set_ylabel("predicted ms a step")
            axis.tick_params(axis="x", labelsize=8)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=len(PARTS), frameon=False)
    figure.suptitle("Tensor parallelism on H200s, simulated: predictions, not measurements")
    figure.tight_layout(rect=(0, 0.05, 1, 0.98))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": ""})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare the table with the page; draw nothing")
    arguments = parser.parse_args()
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    written = f"{before}{BEGIN}\n{table()}{END}{after}"
    if arguments.check:
        if written != text:
            sys.exit(f"{DOCUMENT.name} is not what bench/scaling.py computes; run it without --check")
        return
    DOCUMENT.write_text(written, encoding="utf-8")
    draw(PICTURE)


if __name__ == "__main__":
    main()
