"""The process that one engine is measured in: reads a job (JSON), writes what it saw to a file (JSON).

Decides what is timed: loading, and each call of generate on its own. Runs in the engine's own interpreter, which has
neither quire nor the folder of this file on its path. usage: python child.py JOB RESULT
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any


def load_module(name: str, path: Path) -> ModuleType:
    """A file, or a package by its __init__.py, under a name of our choice: adapters are called as what they import."""
    folder = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folder)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def peak_bytes() -> int:
    """Of this process, and of those it started that are still there."""
    total, waiting = 0, [str(os.getpid())]
    while waiting:
        process = Path("/proc", waiting.pop())
        try:
            found = re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text())
            total += int(found[1]) * 1024 if found else 0
            for thread in (process / "task").iterdir():
                waiting += (thread / "children").read_text().split()
        except OSError:
            continue
    return total


def measure(peer: Any, job: dict[str, Any], task: Any, machine: ModuleType) -> dict[str, Any]:
    begin = time.perf_counter()
    peer.load(task)
    result: dict[str, Any] = {"load_seconds": time.perf_counter() - begin, "calls": []}
    for call in job["calls"]:
        with machine.Load() as load:
            begin = time.perf_counter()
            made = peer.generate(call["prompts"], call["num_new"])
            seconds = time.perf_counter() - begin
        if [len(ids) for ids in made] != [call["num_new"]] * len(call["prompts"]):
            raise ValueError(f"{call['num_new']} tokens were wanted of each, got {[len(ids) for ids in made]}")
        first_ids = [[int(token) for token in ids[:6]] for ids in made[:2]]
        seen = {"seconds": seconds, "foreign": load.foreign, "first_ids": first_ids}
        result["calls"].append({**seen, "end": time.monotonic()})
    return {**result, "peak_bytes": peak_bytes(), "version": peer.version()}


def main() -> None:
    here = Path(__file__).resolve()
    sys.path = [entry for entry in sys.path if not entry or Path(entry).resolve() != here.parent]
    job = json.loads(Path(sys.argv[1]).read_text())
    peers = load_module("quire_peers", here.parent / "__init__.py")
    peer = peers.open_peer(job["peer"], Path(job["folder"]))
    if "convert" in job:
        peer.convert(Path(job["convert"]), Path(job["out"]))
        result = {}
    else:
        machine = load_module("quire_machine", Path(job["machine"]))
        task = sys.modules["quire_peers.base"].Task.of(job["task"])
        result = measure(peer, job, task, machine)
    Path(sys.argv[2]).write_text(json.dumps(result))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # engines take seconds to say goodbye, or hang at it


if __name__ == "__main__":
    main()
