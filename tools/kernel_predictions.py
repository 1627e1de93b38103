#!/usr/bin/env python3
"""Predicts the time of every kernel of a decode step from its bytes, its flops and the launches.

The model: a kernel takes max(bytes / bandwidth, flops / rate), plus the gap between two dependent launches. The
constants are what one H200 is known to reach (4.3 TB/s of reads, 790 TFLOP/s of dense bf16) and a 1.3 us gap between
kernels replayed from a graph; programmatic dependent launch hides most of the gap, so the gap row is an upper bound.
These are predictions. No figure here was measured.

usage: python tools/kernel_predictions.py [--check]   writes the tables into docs/kernels.md, or compares
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "kernels.md"
BEGIN, END = "<!-- predictions: begin -->", "<!-- predictions: end -->"

BYTES_PER_US = 4.3e6  # 4.3 TB/s
FLOPS_PER_US = 790e6  # 790 TFLOP/s
GAP_US = 1.3
BATCHES = (1, 32, 256)
CONTEXT = 1024
ELEMENT = 2  # bytes of bf16


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
    goal_us: dict[int, float]  # a whole step, where a goal is set


# Goals: G1 (8B, batch 1: 3.9 ms), G2 (1B, batch 1: 0.72 ms).
SHAPES = (
    Shape("Llama-3.1-8B", 32, 4096, 14336, 32, 8, 128, 128256, {1: 3900.0}),
    Shape("Llama-3.2-1B", 16, 2048, 8192, 32, 8, 64, 128256, {1: 720.0}),
)


@dataclass(frozen=True)
class Work:
    kernel: str
    count: int  # launches a step
    bytes: float
    flops: float

    @property
    def us(self) -> float:
        return max(self.bytes / BYTES_PER_US, self.flops / FLOPS_PER_US)


def gemm(name: str, count: int, batch: int, rows: int, cols: int, out_bytes: float) -> Work:
    weight = rows * cols * ELEMENT
    return Work(name, count, weight + batch * cols * ELEMENT + batch * out_bytes, 2.0 * batch * rows * cols)


def step(s: Shape, batch: int) -> list[Work]:
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    qkv = q + 2 * kv
    residual = 4 * s.hidden  # float32
    keys = batch * CONTEXT * kv * 2 * ELEMENT
    logits = 4.0 * batch * s.vocab
    return [
        # Counts and ids, the sampling parameters in and out, and the page ids of the context in and out.
        Work("prepare_batch", 1, batch * (64 + 2 * 112 + 2 * 4 * CONTEXT // 16), 0),
        Work("plan_attention", 1, batch * 64, 0),
        Work("embedding", 1, batch * (s.hidden * ELEMENT + residual), 0),
        Work("norm (2 a layer, 1 final)", 2 * s.layers + 1, batch * (residual + s.hidden * ELEMENT), 0),
        gemm("gemm qkv", s.layers, batch, qkv, s.hidden, qkv * ELEMENT),
        Work("rope_kv_write", s.layers, batch * ELEMENT * (2 * q + 4 * kv), 0),
        Work("paged_attention", s.layers, keys + batch * 2 * q * ELEMENT, 4.0 * batch * CONTEXT * s.heads * s.head_dim),
        gemm("gemm attention output (+ residual)", s.layers, batch, s.hidden, q, 2 * residual),
        gemm("gemm gate and up", s.layers, batch, 2 * s.intermediate, s.hidden, s.intermediate * ELEMENT),
        gemm("gemm down (+ residual)", s.layers, batch, s.hidden, s.intermediate, 2 * residual),
        gemm("gemm head", 1, batch, s.vocab, s.hidden, 4.0 * s.vocab),
        Work("sample (top_k, top_p)", 2, logits, 0),
        Work("store_sampled", 1, batch * 12, 0),
    ]


def table(s: Shape) -> list[str]:
    steps = [step(s, batch) for batch in BATCHES]
    lines = [
        f"### {s.name}, bf16, {CONTEXT:,} tokens of context",
        "",
        "| kernel | launches a step | " + " | ".join(f"us each, batch {batch}" for batch in BATCHES) + " |",
        "|---|---|" + "---|" * len(BATCHES),
    ]
    for works in zip(*steps, strict=True):
        cells = " | ".join(f"{work.us:.2f}" for work in works)
        lines.append(f"| {works[0].kernel} | {works[0].count} | {cells} |")
    launches = sum(work.count for work in steps[0])
    sums = [sum(work.count * work.us for work in works) for works in steps]
    lines.append(f"| **sum of the kernels** | {launches} | " + " | ".join(f"{us:,.0f}" for us in sums) + " |")
    gaps = launches * GAP_US
    lines.append("| with all gaps | | " + " | ".join(f"{us + gaps:,.0f}" for us in sums) + " |")
    for batch, us in s.goal_us.items():
        left = us - sums[BATCHES.index(batch)]
        lines += [
            "",
            f"Goal at batch {batch}: {us:,.0f} us. The kernels alone need {us - left:,.0f} us, so at most "
            f"{left:,.0f} us may go to gaps and imperfect kernels: {left / launches:.2f} us a launch.",
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if docs/kernels.md has other tables")
    arguments = parser.parse_args()
    text = "\n".join(line for shape in SHAPES for line in [*table(shape), ""]).strip()
    document = DOCUMENT.read_text(encoding="utf-8")
    head, rest = document.split(BEGIN)
    old, tail = rest.split(END)
    if not arguments.check:
        DOCUMENT.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}", encoding="utf-8")
    elif old.strip() != text:
        sys.exit(f"{DOCUMENT.name} is out of date; run tools/kernel_predictions.py")


if __name__ == "__main__":
    main()
