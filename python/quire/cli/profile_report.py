"""What a recording says: seconds by step, by kernel and by part of the host, as rows, as a table, as a picture.

Decides how spans are grouped and what a share of the limit is. Knows nothing of how they were recorded; pure functions
but for draw(), which writes a file and needs matplotlib.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Names in the table of what the host does itself, beside the spans that it encloses.
_HOST_LABELS = {
    "run": "host: launches",
    "forward": "host: launches",
    "sample": "host: launches",
    "step": "host: between the parts",
}
_DEVICE_GAPS = "between the kernels"
_OUTSIDE = "outside of steps"


@dataclass
class Row:
    """One kernel (products: of one shape) or one part of the host, in the steps of one kind."""

    step: str  # "decode" or "prefill"
    label: str
    is_kernel: bool
    calls: int = 0
    seconds: float = 0.0
    median_seconds: float = 0.0  # of a call; it tells of the kernel where the mean tells of what else the machine did
    rows: float = 0.0  # that a call computes, on average: of products, norms and the like
    share: float = 0.0  # of the seconds of the steps of its kind
    bytes: float = 0.0
    flops: float = 0.0
    limit_seconds: float = 0.0  # what the machine would need; 0: nobody knows

    @property
    def of_limit(self) -> float | None:
        return self.limit_seconds / self.seconds if self.limit_seconds > 0 and self.seconds > 0 else None


@dataclass
class Steps:
    kind: str
    count: int = 0
    seconds: float = 0.0
    num_tokens: int = 0
    num_seqs: int = 0


def own_seconds(spans: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """Of each span, in their order: the index of its step (-1: in none) and its seconds without those it encloses."""
    own = [span["duration_ns"] * 1e-9 for span in spans]
    step_of = [-1] * len(spans)
    open_spans: list[int] = []
    for i, span in enumerate(spans):
        while open_spans and span["begin_ns"] >= _end(spans[open_spans[-1]]):
            open_spans.pop()
        if open_spans:
            own[open_spans[-1]] -= span["duration_ns"] * 1e-9
            step_of[i] = step_of[open_spans[-1]]
        if span["category"] == "step" and span["name"] == "step":
            step_of[i] = i
        open_spans.append(i)
    return list(zip(step_of, own))


def _end(span: dict[str, Any]) -> int:
    return span["begin_ns"] + span["duration_ns"]


def tracks(spans: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Those of the host, and those of a device's stream, which runs behind it: none on a CPU."""
    return [span for span in spans if not span["on_device"]], [span for span in spans if span["on_device"]]


def step_kind(arguments: dict[str, Any]) -> str:
    """From what was planned. prefill: tokens of prompts are computed, whatever is decoded beside them."""
    return "decode" if arguments["num_tokens"] == arguments["num_samples"] else "prefill"


def label_of(span: dict[str, Any]) -> str:
    name, arguments = span["name"], span["arguments"]
    if span["on_device"] and span["category"] != "kernel":
        return _DEVICE_GAPS
    if span["category"] != "kernel":
        return _HOST_LABELS.get(name, f"host: {name}")
    if name != "gemm":
        return str(name)
    gated = " gated" if arguments["gated"] else ""
    return f"gemm {arguments['n']:.0f}x{arguments['k']:.0f}{gated}"


def limit_seconds(arguments: dict[str, Any], limits: dict[str, Any]) -> float:
    """The larger of reading the bytes and doing the products, as fast as the machine can."""
    seconds = 0.0
    if arguments.get("bytes") and limits["read_bytes_per_second"]:
        seconds = arguments["bytes"] / limits["read_bytes_per_second"]
    rate = limits["bf16_flops" if arguments.get("dtype") == "bfloat16" else "f32_flops"]
    if arguments.get("dtype") == "int8":
        rate = 0.0  # not measured
    if arguments.get("flops") and rate:
        seconds = max(seconds, arguments["flops"] / rate)
    return seconds


def analyse(
    spans: list[dict[str, Any]], limits: dict[str, Any], wall_seconds: float
) -> tuple[list[Steps], list[Row], float]:
    """Of one track: steps by kind, rows by kind and label (the longest first), and the seconds outside of all steps.

    How large a step is its plan says, or two where the host plans ahead, which leaves a last step that only fetches; on
    a device's stream it says so itself.
    """
    spans = [span for span in spans if span["category"] != "part"]  # layers: their kernels are listed by themselves
    plans: dict[int, dict[str, Any]] = {}
    placed = own_seconds(spans)
    for span, (step, _) in zip(spans, placed):
        if span["category"] == "step" and "num_tokens" in span["arguments"]:
            known = plans.get(step, {})
            plans[step] = {name: value + known.get(name, 0.0) for name, value in span["arguments"].items()}
    for span, (step, _) in zip(spans, placed):
        if span["category"] == "step" and span["name"] == "fetch" and step >= 0:
            plans.setdefault(step, dict.fromkeys(("num_tokens", "num_seqs", "num_samples"), 0.0))
    kinds: dict[str, Steps] = {}
    for index, arguments in plans.items():
        steps = kinds.setdefault(step_kind(arguments), Steps(step_kind(arguments)))
        steps.count += 1
        steps.seconds += spans[index]["duration_ns"] * 1e-9
        steps.num_tokens += int(arguments["num_tokens"])
        steps.num_seqs += int(arguments["num_seqs"])
    rows: dict[tuple[str, str], Row] = {}
    seconds: dict[tuple[str, str], list[float]] = {}
    for span, (step, own) in zip(spans, placed):
        if step not in plans:
            continue  # nothing was planned in it
        kind, label, arguments = step_kind(plans[step]), label_of(span), span["arguments"]
        row = rows.setdefault((kind, label), Row(kind, label, span["category"] == "kernel"))
        row.calls += 1
        row.seconds += own
        row.rows += next((arguments[name] for name in ("m", "rows", "tokens") if name in arguments), 0.0)
        seconds.setdefault((kind, label), []).append(own)
        row.bytes += arguments.get("bytes", 0.0)
        row.flops += arguments.get("flops", 0.0)
        row.limit_seconds += limit_seconds(arguments, limits)
    for key, row in rows.items():
        row.share = row.seconds / kinds[row.step].seconds
        row.median_seconds = statistics.median(seconds[key])
        row.rows /= row.calls
    ordered = sorted(kinds.values(), key=lambda steps: -steps.seconds)
    order = [steps.kind for steps in ordered]
    listed = sorted(rows.values(), key=lambda row: (order.index(row.step), -row.seconds))
    return ordered, listed, wall_seconds - sum(steps.seconds for steps in ordered)


def as_json(steps: Iterable[Steps], rows: Iterable[Row]) -> dict[str, Any]:
    return {
        "steps": [asdict(one) for one in steps],
        "rows": [{**asdict(row), "of_limit": row.of_limit} for row in rows],
    }


def table(steps: list[Steps], rows: list[Row], outside: float, wall_seconds: float) -> str:
    lines = []
    for one in steps:
        lines.append(
            f"{one.kind}: {one.count} steps of {one.seconds / one.count * 1e3:.3f} ms, "
            f"{one.num_tokens / one.count:.1f} tokens of {one.num_seqs / one.count:.1f} sequences each; "
            f"{one.seconds / wall_seconds:.1%} of the run"
        )
        header = ("rows", "calls/step", "us/call", "median", "us/step", "share", "GB/s", "GFLOP/s", "of limit")
        mine = [row for row in rows if row.step == one.kind]
        width = max(len(row.label) for row in mine)
        lines.append(f"  {'':<{width}}" + "".join(f"{name:>11}" for name in header))
        for row in mine:
            rate = [f"{row.bytes / row.seconds * 1e-9:.1f}" if row.bytes else ""]
            rate.append(f"{row.flops / row.seconds * 1e-9:.0f}" if row.flops else "")
            rate.append(f"{row.of_limit:.2f}" if row.of_limit is not None else "")
            cells = (
                f"{row.rows:.0f}" if row.rows else "",
                f"{row.calls / one.count:.1f}",
                f"{row.seconds / row.calls * 1e6:.2f}",
                f"{row.median_seconds * 1e6:.2f}",
                f"{row.seconds / one.count * 1e6:.1f}",
                f"{row.share:.1%}",
                *rate,
            )
            lines.append(f"  {row.label:<{width}}" + "".join(f"{cell:>11}" for cell in cells))
        limit = sum(row.limit_seconds for row in mine)
        if limit:
            lines.append(f"  the kernels' limits add up to {limit / one.seconds:.1%} of these steps")
        lines.append("")
    lines.append(f"{_OUTSIDE}: {outside * 1e3:.2f} ms, {outside / wall_seconds:.1%} of the run")
    return "\n".join(lines)


def draw(steps: list[Steps], rows: list[Row], title: str, path: Path) -> None:
    """One bar a kind of step: milliseconds a step, the longest part at the bottom; the limit is hatched in it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = list(dict.fromkeys(row.label for row in sorted(rows, key=lambda row: -row.seconds)))
    colours = dict(zip(labels, (pyplot.get_cmap("tab20")(i % 20) for i in range(len(labels)))))
    figure, all_axes = pyplot.subplots(1, len(steps), figsize=(3.6 * len(steps) + 3, 6), layout="constrained")
    for axes, one in zip([all_axes] if len(steps) == 1 else all_axes, steps):
        bottom = 0.0
        for row in (row for row in rows if row.step == one.kind):
            height = row.seconds / one.count * 1e3
            text = f"{row.label} {row.share:.1%}" + (f" ({row.of_limit:.2f})" if row.of_limit is not None else "")
            axes.bar(0, height, 0.8, bottom, color=colours[row.label], label=text)
            limit = min(row.limit_seconds / one.count * 1e3, height)
            if limit:
                axes.bar(0, limit, 0.8, bottom, color="none", edgecolor="#00000055", hatch="///", linewidth=0)
            bottom += height
        axes.set_xticks([0], [f"{one.kind}, {one.count} steps"])
        axes.set_xlim(-0.5, 0.5)
        axes.set_ylabel("ms a step")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), reverse=True)
    figure.suptitle(f"{title}\nshare of the step (share of the machine's limit, hatched)", fontsize=9)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
