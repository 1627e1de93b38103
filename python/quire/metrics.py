"""What get_metrics() gives: vLLM's classes of figures, and vLLM's names.

Decides labels and that buckets count everything below them. The figures are the core's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Metric:
    name: str
    labels: dict[str, str]


@dataclass
class Counter(Metric):
    """Goes up only."""

    value: int


@dataclass
class Vector(Metric):
    """One count a position."""

    values: list[int]


@dataclass
class Gauge(Metric):
    """A state of now."""

    value: float


@dataclass
class Histogram(Metric):
    """How many observations were at most each bound, which is a key of `buckets`; the last one is "+Inf"."""

    count: int
    sum: float
    buckets: dict[str, int]


def metrics_of(
    core: list[tuple[str, str, dict[str, str], float, list[float], list[float]]], model: str
) -> list[Metric]:
    return [_metric(*one, model) for one in core]


def _metric(
    name: str, kind: str, labels: dict[str, str], value: float, bounds: list[float], values: list[float], model: str
) -> Metric:
    labels = {"model_name": model, "engine": "0", **labels}
    if kind == "counter":
        return Counter(name, labels, int(value))
    if kind == "gauge":
        return Gauge(name, labels, value)
    if kind == "vector":
        return Vector(name, labels, [int(one) for one in values])
    total, buckets = 0, {}
    for bound, count in zip([*bounds, float("inf")], values, strict=True):
        total += int(count)
        buckets["+Inf" if bound == float("inf") else str(bound)] = total
    return Histogram(name, labels, total, value, buckets)


@dataclass(frozen=True)
class StartupPhase:
    """A part of what LLM() did: its wall time, and the memory that it filled or reserved."""

    name: str
    seconds: float
    num_bytes: int = 0


@dataclass(frozen=True)
class StartupReport:
    """`llm.startup_report`. str() is a table."""

    phases: tuple[StartupPhase, ...]
    total_seconds: float

    def __str__(self) -> str:
        rows = [f"{one.name:12} {one.seconds:9.3f} s {one.num_bytes / 2**20:12.1f} MiB" for one in self.phases]
        return "\n".join([*rows, f"{'total':12} {self.total_seconds:9.3f} s"])


def startup_report(info: dict[str, Any], tokenizer_seconds: float, total_seconds: float) -> StartupReport:
    """Of what the core tells; "files" is what is left: reading configurations, choosing options."""
    core = (
        StartupPhase("device", info["device_seconds"]),
        StartupPhase("plan", info["plan_seconds"]),
        StartupPhase("open", info["open_seconds"]),
        StartupPhase("memory", info["memory_seconds"], info["workspace_bytes"] + info.get("kv_cache_bytes", 0)),
        StartupPhase("weights", info["weight_seconds"], info["weight_bytes"] + info["offloaded_weight_bytes"]),
    )
    files = total_seconds - tokenizer_seconds - info["load_seconds"]
    first = (StartupPhase("tokenizer", tokenizer_seconds), StartupPhase("files", max(0.0, files)))
    return StartupReport(first + core, total_seconds)
