"""Records of `quire bench compare` as rows, a Markdown table and a picture.

Decides what counts: medians over runs, the ratio to the best peer of each row, and the share of the machine's limit.
Knows no engine but quire, and runs nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class Metric:
    workload: str
    field: str
    label: str
    unit: str
    higher_is_better: bool
    scale: float = 1.0


METRICS = (
    Metric("a", "speed", "a: decode, one sequence", "tok/s", True),
    Metric("b", "speed", "b: prefill of 1,024 tokens", "tok/s", True),
    Metric("c", "speed", "c: 64 requests", "tok/s", True),
    Metric("c", "peak_bytes", "c: peak memory", "MiB", False, 2.0**-20),
    Metric("d", "speed", "d: 64 requests, 512 shared tokens", "tok/s", True),
    Metric("e", "start_seconds", "e: start to first token", "s", False),
    Metric("e", "import_seconds", "e: import", "s", False),
)


@dataclass(frozen=True)
class Cell:
    """Of one engine: all its runs, or why there are none."""

    values: tuple[float, ...]
    error: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True)
class Row:
    shape: str
    metric: Metric
    cells: dict[str, Cell]
    limit: float | None

    @property
    def best_peer(self) -> str | None:
        medians = {name: cell.median for name, cell in self.cells.items() if name != "quire" and cell.values}
        if not medians:
            return None
        return (max if self.metric.higher_is_better else min)(medians, key=lambda name: medians[name])

    def better(self, peer: str | None) -> float | None:
        """How many times better quire is than a peer."""
        if peer is None or not self.cells["quire"].values or not self.cells[peer].values:
            return None
        ours, theirs = self.cells["quire"].median, self.cells[peer].median
        return ours / theirs if self.metric.higher_is_better else theirs / ours

    @property
    def share(self) -> float | None:
        ours = self.cells["quire"]
        return ours.median / self.limit if self.limit and ours.values else None


def rows(records: Sequence[Record]) -> list[Row]:
    runs = [record for record in records if "engine" in record]
    engines = list(dict.fromkeys(["quire", *(record["engine"] for record in runs)]))
    found = []
    for shape in dict.fromkeys(record["shape"] for record in runs):
        for metric in METRICS:
            here = [record for record in runs if (record["shape"], record["workload"]) == (shape, metric.workload)]
            if here:
                cells = {engine: _cell(here, engine, metric) for engine in engines}
                limit = _limit(here, records) if metric.field == "speed" else None
                found.append(Row(shape, metric, cells, limit))
    return found


def quiet(records: Iterable[Record], max_foreign: float) -> list[Record]:
    """Runs whose timed calls saw more of other processes have no figures any more, but are known to have been."""
    figures = {metric.field for metric in METRICS}

    def silenced(record: Record) -> Record:
        return {name: value for name, value in record.items() if name not in figures}

    return [silenced(record) if foreign(record) > max_foreign else record for record in records]


def foreign(record: Record) -> float:
    """What others took of the machine during the worst of the timed calls."""
    calls = record.get("calls", ())
    return max((call["foreign"] or 0.0 for call in (calls[1:] or calls)), default=0.0)


def _cell(records: Iterable[Record], engine: str, metric: Metric) -> Cell:
    own = [record for record in records if record["engine"] == engine]
    values = tuple(record[metric.field] * metric.scale for record in own if metric.field in record)
    errors = [record["error"] for record in own if "error" in record]
    why = "no quiet run" if own else "not run"
    return Cell(values, errors[-1] if errors else None if values else why)


def _limit(runs: Sequence[Record], records: Iterable[Record]) -> float | None:
    """Tokens a second if every step took what its bytes or its operations take, at the best rates that were seen."""
    measured = [record[key] for record in runs for key in ("limits_before", "limits_after") if record.get(key)]
    if not measured or not runs[0].get("floor"):
        return None
    bandwidth = max(limits["read_bytes_per_second"] for limits in measured)
    flops = max([limits["bf16_flops"] for limits in measured] + _torch_flops(runs[0], records))
    floor = runs[0]["floor"]
    seconds = sum(count * max(size / bandwidth, work / flops) for size, work, count in floor["steps"])
    return floor["tokens"] / seconds


def _torch_flops(run: Record, records: Iterable[Record]) -> list[float]:
    same = [record for record in records if "engine" not in record]
    here = [r for r in same if (r["shape"], r["workload"]) == (run["shape"], run["workload"])]
    return [flops for record in here for flops in record["torch_bf16_flops"] if flops]


def line(record: Record) -> str:
    """What the terminal says of a run while others follow."""
    if "engine" not in record:
        rates = ", ".join(f"{flops * 1e-9:.0f}" if flops else "not measured" for flops in record["torch_bf16_flops"])
        return f"{record['shape']} {record['workload']} torch's product before and after, GFLOP/s: {rates}"
    head = f"{record['shape']} {record['workload']} {record['round']} {record['engine']:<13}"
    if "error" in record:
        return f"{head} failed: {record['error']}"
    shown = [
        f"{metric.label.split(': ')[1]} {number(record[metric.field] * metric.scale)} {metric.unit}"
        for metric in METRICS
        if metric.workload == record["workload"] and metric.field in record
    ]
    return f"{head} {', '.join(shown)}  (others {foreign(record):.0%})"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _shown(cell: Cell) -> str:
    if not cell.values:
        return cell.error if cell.error in ("not run", "no quiet run") else "failed"
    low, high = min(cell.values), max(cell.values)
    spread = f" ({number(low)} to {number(high)})" if len(cell.values) > 1 else ""
    return number(cell.median) + spread + (", then failed" if cell.error else "")


def markdown(records: Sequence[Record]) -> str:
    """The table, and below it what one has to know to read it."""
    table = rows(records)
    if not table:
        return "no runs"
    engines = list(table[0].cells)
    head = ["shape", "workload", *engines, "best peer", "times better", "limit", "share of it"]
    lines = [" | ".join(["", *head, ""]).strip(), "|" + "---|" * len(head)]
    for row in table:
        ratio, share = row.better(row.best_peer), row.share
        cells = [
            row.shape,
            f"{row.metric.label}, {row.metric.unit}",
            *(_shown(row.cells[engine]) for engine in engines),
            row.best_peer or "-",
            f"**{ratio:.2f}**" if ratio else "-",
            number(row.limit) if row.limit else "-",
            f"{share:.0%}" if share else "-",
        ]
        lines.append(" | ".join(["", *cells, ""]).strip())
    return "\n".join([*lines, "", *_notes(records, table)])


def _notes(records: Sequence[Record], table: Sequence[Row]) -> list[str]:
    runs = [record for record in records if "engine" in record]
    machine = runs[-1]["machine"]
    most = max([len(cell.values) for row in table for name, cell in row.cells.items() if name != "quire"], default=0)
    notes = [
        f"Medians (smallest to largest) of up to {most} runs of a peer and of one of quire beside each. A run is a "
        "process, in c the one whose peak memory is told. "
        f"{machine['cpu']}, {machine['threads']} threads, {machine['date']}."
    ]
    for engine in table[0].cells:
        own = [record for record in runs if record["engine"] == engine]
        version = next((record["version"] for record in own if "version" in record), None)
        if version:
            notes.append(f"- {engine} {version}: {own[0]['note']}.{_agreement(runs, engine)}")
    failures: dict[str, list[str]] = {}
    for record in runs:
        if "error" in record:
            cells = failures.setdefault(f"{record['engine']} failed: {record['error']}", [])
            cells.append(f"{record['shape']} {record['workload']}")
    notes += [f"- {why} ({', '.join(dict.fromkeys(cells))})" for why, cells in failures.items()]
    shares = [foreign(record) for record in runs if record.get("calls")]
    if shares:
        notes.append(
            f"- Other processes took {statistics.median(shares):.1%} of the machine during the median run, "
            f"{max(shares):.1%} during the worst."
        )
    return notes + _limit_notes(runs, records)


def _agreement(runs: Sequence[Record], engine: str) -> str:
    """Whether an engine runs the same model: of random weights only the first token says so."""
    if engine == "quire":
        return ""

    def first(name: str) -> dict[tuple[Any, ...], list[int]]:
        return {
            (record["shape"], record["workload"], record["round"]): [ids[0] for ids in record["calls"][-1]["first_ids"]]
            for record in runs
            if record["engine"] == name and "calls" in record
        }

    ours, theirs = first("quire"), first(engine)
    pairs = [pair for key in ours.keys() & theirs.keys() for pair in zip(ours[key], theirs[key])]
    same = sum(one == other for one, other in pairs)
    return f" First tokens that are quire's: {same} of {len(pairs)}." if pairs else ""


def _limit_notes(runs: Sequence[Record], records: Sequence[Record]) -> list[str]:
    measured = [record[key] for record in runs for key in ("limits_before", "limits_after") if record.get(key)]
    if not measured:
        return []

    def span(values: Sequence[float], scale: float) -> str:
        scaled = sorted(value * scale for value in values)
        return f"{number(scaled[0])} to {number(scaled[-1])}, median {number(statistics.median(scaled))}"

    notes = [
        "- Limits were measured before and after each run, the best values of a row count: reads "
        f"{span([limits['read_bytes_per_second'] for limits in measured], 1e-9)} GB/s, "
        f"bf16 {span([limits['bf16_flops'] for limits in measured], 1e-12)} TFLOP/s."
    ]
    torch = [flops for run in records if "engine" not in run for flops in run["torch_bf16_flops"] if flops]
    if torch:
        notes.append(f"- torch's bf16 product of 2,048 cubed reached {span(torch, 1e-12)} TFLOP/s.")
    return notes


def draw(table: Sequence[Row], path: Path) -> None:
    """Bars: how many times better than each peer; they hang down from 1 where it is worse."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if not table:
        raise ValueError("there are no runs to draw")
    peers = [engine for engine in table[0].cells if engine != "quire"]
    shapes = list(dict.fromkeys(row.shape for row in table))
    figure, all_axes = pyplot.subplots(
        len(shapes), 1, figsize=(9, 3.2 * len(shapes)), layout="constrained", squeeze=False
    )
    for shape, axes in zip(shapes, all_axes[:, 0]):
        here = [row for row in table if row.shape == shape]
        width = 0.8 / max(1, len(peers))
        for i, peer in enumerate(peers):
            ratios = [row.better(peer) or 1.0 for row in here]  # of those that failed there is no bar
            places = [j + (i - (len(peers) - 1) / 2) * width for j in range(len(here))]
            axes.bar(places, [ratio - 1 for ratio in ratios], width * 0.92, bottom=1, label=f"than {peer}")
            for x, row, ratio in zip(places, here, ratios):
                text = (f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}") if row.better(peer) else "-"
                place: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 7}
                axes.annotate(text, (x, max(1.0, ratio)), xytext=(0, 2), **place)
        axes.axhline(1, color="#333333", linewidth=1)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.margins(y=0.15)
        axes.set_xticks(range(len(here)), [row.metric.label.replace(", ", ",\n") for row in here], fontsize=8)
        axes.set_ylabel("times better")
        axes.set_title(f"shape {shape}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
