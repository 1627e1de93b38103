"""Recordings of an engine's steps as Chrome traces, which Perfetto and chrome://tracing open.

Decides where a trace goes and how spans become events: those of the host on one track, those of a GPU's stream on
another. What is recorded is the core's: the parts of each step, and the kernels in them.
"""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TRACKS = ("engine", "device stream")  # by tid
_KNOWN = ("profiler", "torch_profiler_dir", "torch_profiler_use_gzip")
NOT_ENABLED = (
    "Profiler is not enabled. Build the LLM with profiler_config={'profiler': 'torch', 'torch_profiler_dir': DIR}, or "
    "set VLLM_TORCH_PROFILER_DIR before that."
)


@dataclass(frozen=True)
class TraceSettings:
    folder: Path | None  # None: profiling is off
    use_gzip: bool = False


def trace_settings(profiler_config: Any) -> TraceSettings:
    """From profiler_config, a dict or an object with its fields, or the environment."""
    if profiler_config is None:
        folder = os.environ.get("VLLM_TORCH_PROFILER_DIR")
        return TraceSettings(Path(folder).expanduser() if folder else None)
    given = profiler_config if isinstance(profiler_config, Mapping) else vars(profiler_config)
    unknown = [name for name, value in given.items() if name not in _KNOWN and value not in (None, False, 0, "")]
    if unknown:
        raise NotImplementedError(
            f"profiler_config: {', '.join(sorted(unknown))} is not supported; there are {', '.join(_KNOWN)}"
        )
    if given.get("profiler") not in (None, "torch"):
        raise NotImplementedError(
            f"profiler_config: profiler={given['profiler']!r} is not supported; 'torch' writes a trace of the "
            "engine's own recorder, of a GPU too."
        )
    if not given.get("torch_profiler_dir"):
        if given.get("profiler") is None:
            return TraceSettings(None)
        raise ValueError("profiler_config: torch_profiler_dir must be set, the folder that traces are written to")
    return TraceSettings(Path(given["torch_profiler_dir"]).expanduser(), bool(given.get("torch_profiler_use_gzip")))


def write_trace(recording: Mapping[str, Any], settings: TraceSettings, prefix: str | None, rank: int = 0) -> Path:
    """Writes the events of a recording; returns the file."""
    assert settings.folder is not None
    settings.folder.mkdir(parents=True, exist_ok=True)
    suffix = ".pt.trace.json.gz" if settings.use_gzip else ".pt.trace.json"
    path = settings.folder / f"{prefix or 'quire'}_rank{rank}.{time.time_ns()}{suffix}"
    with gzip.open(path, "wt") if settings.use_gzip else path.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
        names = [("process_name", "quire", 0), *(("thread_name", track, tid) for tid, track in enumerate(_TRACKS))]
        has_device = any(span["on_device"] for span in recording["spans"])
        for name, value, tid in names if has_device else names[:2]:
            event = {"ph": "M", "name": name, "pid": rank, "tid": tid, "args": {"name": value}}
            file.write(json.dumps(event) + ",\n")
        file.write(",\n".join(json.dumps(_event(span, rank)) for span in recording["spans"]))
        file.write(f'\n], "otherData": {{"num_dropped_spans": {recording["num_dropped_spans"]}}}}}\n')
    return path


def _name(span: Mapping[str, Any]) -> str:
    """Layers by their number, which viewers do not show in the names of events."""
    layer = span["arguments"].get("layer")
    return str(span["name"]) if layer is None else f"{span['name']} {layer:.0f}"


def _event(span: Mapping[str, Any], rank: int) -> dict[str, Any]:
    return {
        "ph": "X",
        "cat": span["category"],
        "name": _name(span),
        "ts": span["begin_ns"] / 1000,
        "dur": span["duration_ns"] / 1000,
        "pid": rank,
        "tid": int(span["on_device"]),
        "args": dict(span["arguments"]),
    }
