"""The machine that speed was measured on: its name, and what else it was doing.

Decides what a record says of it. Reads /proc; where that is not there, what it would tell is None.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import time
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "num_cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def cpu_name() -> str:
    found = re.search(r"model name\s*: (.*)", _read("/proc/cpuinfo"))
    return found[1] if found else platform.processor() or "unknown"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


_SHORTEST = 0.2  # seconds; CPU time is counted in hundredths


class Load:
    """What other processes took of the machine in its `with` block, as a share of all its CPUs; None of a short one."""

    foreign: float | None = None

    def __enter__(self) -> Load:
        self._busy, self._own, self._begin = _busy_seconds(), _own_seconds(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        busy, own, elapsed = _busy_seconds(), _own_seconds(), time.perf_counter() - self._begin
        if busy is None or self._busy is None or elapsed < _SHORTEST:
            return
        others = (busy - self._busy) - (own - self._own)
        self.foreign = round(max(0.0, others / (elapsed * (os.cpu_count() or 1))), 3)


def _busy_seconds() -> float | None:
    """Of all CPUs, since the machine started: neither idle nor waiting; what the hypervisor took counts."""
    found = re.match(r"cpu\s+([\d ]+)", _read("/proc/stat"))
    if not found:
        return None
    ticks = [int(value) for value in found[1].split()]
    busy = sum(ticks[:3]) + sum(ticks[5:8])  # user nice system | idle iowait | irq softirq steal
    return busy / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
