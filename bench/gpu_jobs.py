"""Runs workloads one after the other, each in a process of its own with a time limit, and collects their lines.

A program calls `main` with its jobs; called with --child it is one of them. Decides how time is dealt out (by weight,
what a job leaves over goes to the later ones), that a job which is killed loses only the line it was working on, and
where models are written. Knows no engine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_workloads import Ceilings, Clock, Line


def scale_of(device: str) -> str:
    return {"cuda": "full", "cpu": "toy"}.get(device, "tiny")


@dataclass
class Context:
    """What a workload gets."""

    device: str
    ceilings: Ceilings
    clock: Clock
    folder: Path  # for models
    extra: dict[str, Any]  # arguments of the engine

    @property
    def scale(self) -> str:
        return scale_of(self.device)

    @property
    def is_toy(self) -> bool:
        return self.scale != "full"


@dataclass(frozen=True)
class Job:
    name: str
    weight: float  # its part of the time
    run: Callable[[Context], Iterator[Line]]
    labels: tuple[tuple[str, str], ...] = ()  # of all its lines
    missing: str = ""  # why it cannot run here


Write = Callable[[Line], None]


def ceilings_in(paths: list[Path]) -> Ceilings:
    best: dict[str, float] = {}
    for path in paths:
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue  # the last line of a program that was killed
            if line.get("kind") == "ceiling":
                value = line.get("gb_s", line.get("tflop_s", 0.0))
                best[line["name"]] = max(value, best.get(line["name"], 0.0))
    return Ceilings(best.get("copy") or best.get("torch_copy", 0.0), best.get("torch_matmul", 0.0))


def scratch_folder() -> Path:
    """Where a checkpoint of 16 GB fits: memory if it does, so that no disk is waited for."""
    shm = Path("/dev/shm")
    has_room = shm.is_dir() and os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 40 << 30
    return Path(tempfile.mkdtemp(prefix="quire-bench-", dir=shm if has_room else None))


def run_child(command: list[str], job: Job, seconds: float, folder: Path, write: Write) -> None:
    part = folder / "part.jsonl"
    part.unlink(missing_ok=True)
    command = [*command, "--child", job.name, "--json", str(part), "--seconds", str(seconds), "--scratch", str(folder)]
    labels, reason, begin = dict(job.labels), "", time.monotonic()
    process = subprocess.Popen(command, stdout=2, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, errors = process.communicate(timeout=seconds)
        if process.returncode:
            reason = f"ended with {process.returncode}: " + " | ".join(errors.strip().splitlines()[-3:])[-400:]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _, errors = process.communicate()
        reason = f"killed after {seconds:.0f} s"
    finally:
        if process.returncode is None:  # this program is being ended
            os.killpg(process.pid, signal.SIGKILL)
    sys.stderr.write(errors)
    for text in part.read_text(encoding="utf-8").splitlines() if part.exists() else ():
        try:
            write(json.loads(text))
        except ValueError:
            continue  # the last line of a process that was killed
    if reason:
        write({"kind": "engine_failed", "case": job.name, **labels, "reason": reason})
    write({"kind": "engine_job", "case": job.name, **labels, "seconds": time.monotonic() - begin, "limit": seconds})


def run_all(arguments: argparse.Namespace, jobs: list[Job], write: Write) -> bool:
    """Whether no job failed."""
    clock, failed = Clock(arguments.seconds), 0
    command = [sys.executable, sys.argv[0], *map(str, arguments.records)]
    command += ["--device", arguments.device, "--llm", arguments.llm]

    def noted(line: Line) -> None:
        nonlocal failed
        failed += line["kind"] == "engine_failed"
        write(line)

    named = [job for job in jobs if re.search(arguments.filter, job.name)]
    for job in named:
        if job.missing:
            write({"kind": "engine_skipped", "case": job.name, **dict(job.labels), "reason": job.missing})
    chosen = [job for job in named if not job.missing]
    for i, job in enumerate(chosen):
        seconds = clock.left() * job.weight / sum(later.weight for later in chosen[i:])
        if seconds < 2:
            write({"kind": "engine_skipped", "case": job.name, **dict(job.labels), "reason": "out of time"})
            continue
        folder = arguments.scratch or scratch_folder()
        try:
            run_child(command, job, seconds, folder, noted)
        finally:
            if folder != arguments.scratch:
                shutil.rmtree(folder, ignore_errors=True)
    return failed == 0


def main(description: str | None, jobs_of: Callable[[str], list[Job]]) -> None:
    """jobs_of(scale) are the jobs of this program. Exit status 1: a job failed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="*", type=Path)
    parser.add_argument("--device", default="cuda", help="other than cuda: toy sizes, as a test of this program")
    parser.add_argument("--filter", default="", help="of the names of jobs, a regular expression")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=1200.0)
    parser.add_argument("--llm", default="{}", help="more arguments of the engine, as JSON")
    parser.add_argument("--scratch", type=Path, help="a folder for models; default: memory or the temporary folder")
    parser.add_argument("--list", action="store_true", help="print the names of the jobs")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    jobs = jobs_of(scale_of(arguments.device))
    if arguments.list:
        print("\n".join(job.name for job in jobs))
        return
    out = arguments.json.open("w", encoding="utf-8") if arguments.json else sys.stdout

    def write(line: Line) -> None:
        print(json.dumps(line), file=out, flush=True)

    if not arguments.child:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the finally of run_child
        sys.exit(0 if run_all(arguments, jobs, write) else 1)
    job = next(job for job in jobs if job.name == arguments.child)
    # A toy has no floor; a job has time to end by itself before it is killed.
    context = Context(
        arguments.device, Ceilings(), Clock(arguments.seconds * 0.85), arguments.scratch, json.loads(arguments.llm)
    )
    if not context.is_toy:
        context.ceilings = ceilings_in(arguments.records)
    for line in job.run(context):
        write({**line, **dict(job.labels), "device": arguments.device})
