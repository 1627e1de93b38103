"""`quire bench compare`: quire and other engines on the same checkpoints and workloads, in alternating runs.

Decides what is run, in which order and what a record of a run says. Each run is a process of its own: quire, a peer,
quire, the next peer, round after round. What fails is recorded with its reason, and the rest goes on. The engines'
adapters are the files of bench/peers; how records become tables is in compare_report.py.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from quire.cli import compare_report, machine, workloads

Record = dict[str, Any]
NAMES = (*workloads.WORKLOADS, "e")
REPEATS = {"a": 2, "b": 3, "c": 1, "d": 1}  # timed calls of a process; the median counts
FIRST_TOKEN = workloads.Workload("e", "process start to the first token, and import", (16,), 1)
DEFAULT_FOLDER = Path("~/.cache/quire/peers")


def compare(
    peers: Annotated[str, typer.Option(help="Engines to compare with.")] = "llama.cpp,openvino,vllm,transformers",
    shapes: Annotated[str, typer.Option(help="Shapes of models: S 135M, M 0.5B, L 1.2B, T tiny.")] = "S,M",
    names: Annotated[
        str, typer.Option("--workloads", help="As of quire bench profile; e: start and import.")
    ] = "a,b,c,d,e",
    rounds: Annotated[int, typer.Option(help="Runs of each engine and workload; quire has one beside each.")] = 3,
    threads: Annotated[int, typer.Option(help="CPU threads of each engine.")] = 2,
    timeout: Annotated[float, typer.Option(help="Seconds that one run may take.")] = 900,
    peers_dir: Annotated[
        Path, typer.Option(help="Holds the peers' environments, checkpoints and logs.")
    ] = DEFAULT_FOLDER,
    output_json: Annotated[Path | None, typer.Option("--json", help="Add each run to this file, a line each.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table to this file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the ratios into this file.")] = None,
    max_foreign: Annotated[
        float, typer.Option(help="Leave runs out of the table during which others took more of the machine.")
    ] = 1.0,
    earlier: Annotated[
        list[Path] | None, typer.Option("--from", help="Run nothing: the table of this file of runs. May be repeated.")
    ] = None,
    setup: Annotated[bool, typer.Option("--setup", help="Make the environments of the peers and end.")] = False,
    list_peers: Annotated[bool, typer.Option("--list", help="Say which peers are ready and end.")] = False,
) -> None:
    """quire and other engines, side by side."""
    package = load_peers()
    known_peers = [name for name in package.FILES if name != "quire"]
    known_shapes = sys.modules["quire_peers.checkpoints"].SHAPES
    chosen_peers = workloads.chosen(peers, known_peers, "peer")
    chosen_shapes = workloads.chosen(shapes, list(known_shapes), "shape")
    chosen_names = workloads.chosen(names, NAMES, "workload")
    for option, value in (("--rounds", rounds), ("--threads", threads), ("--timeout", timeout)):
        if value < 1:
            raise ValueError(f"{option} must be at least 1, got {value}")
    if not 0 <= max_foreign <= 1:
        raise ValueError(f"--max-foreign is a share of the machine, from 0 to 1, got {max_foreign}")
    if threads > (num_cpus := len(os.sched_getaffinity(0))):
        raise ValueError(f"--threads {threads}: this process may use {num_cpus} CPUs")
    if png is not None and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--png needs matplotlib: pip install matplotlib")
    for path in (output_json, markdown, png):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{path} cannot be written: there is no folder {path.absolute().parent}")
    folder = peers_dir.expanduser().resolve()
    engines = {name: open_peer(name, folder) for name in ("quire", *chosen_peers)}
    if list_peers or setup:
        _list(engines, chosen_peers, setup)
        return
    if earlier:
        records = [json.loads(line) for path in earlier for line in path.read_text().splitlines()]
    else:
        job = Job(engines, folder, threads, timeout)
        records = []
        for record in job.run(chosen_shapes, chosen_names, rounds):
            records.append(record)
            print(compare_report.line(record), file=sys.stderr, flush=True)
            if output_json is not None:
                with output_json.open("a") as file:
                    file.write(json.dumps(record) + "\n")
    records = compare_report.quiet(records, max_foreign)
    table = compare_report.markdown(records)
    if markdown is not None:
        markdown.write_text(table + "\n")
    if png is not None:
        compare_report.draw(compare_report.rows(records), png)
    print(table)


def peers_folder() -> Path:
    """In an installed package a part of it, in a checkout bench/peers."""
    here = Path(__file__).resolve()
    places = (here.parent / "peers", here.parents[3] / "bench" / "peers")
    for place in places:
        if (place / "__init__.py").exists():
            return place
    raise ValueError(f"the adapters of the peers are neither in {places[0]} nor in {places[1]}")


def load_peers() -> ModuleType:
    """The package of the adapters, as child.py loads it too."""
    path = peers_folder() / "__init__.py"
    spec = importlib.util.spec_from_file_location("quire_peers", path, submodule_search_locations=[str(path.parent)])
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["quire_peers"] = package
    spec.loader.exec_module(package)
    importlib.import_module("quire_peers.checkpoints")
    return package


def open_peer(name: str, folder: Path) -> Any:
    return sys.modules["quire_peers"].open_peer(name, folder)


def _list(engines: dict[str, Any], peers: list[str], setup: bool) -> None:
    failed = []
    for name in peers:
        state = engines[name].missing()
        if setup and state is not None:
            try:
                engines[name].setup()
                state = engines[name].missing()
            except OSError as error:
                state = str(error)
                failed.append(name)
        print(f"{name:<13} {state or 'ready'}", flush=True)
    if failed:
        raise ValueError(f"could not be installed: {', '.join(failed)}")


class Job:
    """All runs of one call of the command."""

    def __init__(self, engines: dict[str, Any], folder: Path, threads: int, timeout: float) -> None:
        self._engines, self._folder, self._threads, self._timeout = engines, folder, threads, timeout
        self._checkpoints = sys.modules["quire_peers.checkpoints"]
        self._with_torch = [open_peer(name, folder) for name in ("transformers", "vllm")]
        self._machine = {**machine.describe(), "threads": threads}
        self._broken: dict[tuple[str, str, str], str] = {}  # (engine, shape, workload): why it is not run again
        self._position = 0

    def run(self, shapes: list[str], names: list[str], rounds: int) -> Iterator[Record]:
        for shape in shapes:
            values = self._checkpoints.SHAPES[shape]
            self._checkpoints.make_checkpoint(values, self._checkpoint(shape))
            reasons = {name: self._unready(engine, shape) for name, engine in self._engines.items()}
            for name in names:
                self._broken |= {(engine, shape, name): why for engine, why in reasons.items() if why}
                yield from self._cell(shape, name, rounds)

    def _cell(self, shape: str, name: str, rounds: int) -> Iterator[Record]:
        """One workload on one shape. A peer that failed is recorded once and left out."""
        peers = [engine for engine in self._engines if engine != "quire"]
        torch_flops = [self._torch_flops()]
        limits = self._limits(shape)
        for round_index in range(rounds):
            order = [engine for peer in peers for engine in ("quire", peer)] or ["quire"]
            for engine in order:
                if (engine, shape, name) in self._broken and round_index:
                    continue
                record = self._record(engine, shape, name, round_index)
                after = self._limits(shape)
                yield {**record, "limits_before": limits, "limits_after": after, "torch_bf16_flops": torch_flops[-1]}
                limits = after
            if round_index == rounds - 1:
                torch_flops.append(self._torch_flops())
                yield {"shape": shape, "workload": name, "torch_bf16_flops": torch_flops, "machine": self._machine}

    def _record(self, engine: str, shape: str, name: str, round_index: int) -> Record:
        self._position += 1
        adapter = self._engines[engine]
        record: Record = {
            "engine": engine, "shape": shape, "workload": name, "round": round_index, "position": self._position,
            "note": adapter.note, "machine": self._machine, "date": time.strftime("%Y-%m-%d %H:%M:%S"),
            "floor": floor(self._checkpoints, shape, name),
        }  # fmt: skip
        why = self._broken.get((engine, shape, name))
        if why is None:
            try:
                return {**record, **self._measured(engine, shape, name, round_index)}
            except RuntimeError as error:
                why = self._broken[engine, shape, name] = str(error)
        return {**record, "error": why}

    def _measured(self, engine: str, shape: str, name: str, round_index: int) -> Record:
        work = workloads.WORKLOADS.get(name, FIRST_TOKEN)
        vocab_size = self._checkpoints.SHAPES[shape]["vocab_size"]
        calls = list(calls_of(work, round_index, vocab_size))
        task = {
            "checkpoint": str(self._checkpoint(shape)), "converted": str(self._converted(engine, shape)),
            "threads": self._threads, "max_model_len": work.longest, "max_num_seqs": len(work.prompt_lens),
            "kv_bytes": kv_bytes(self._checkpoints, shape, work), "shared_len": work.shared_len,
        }  # fmt: skip
        begin = time.monotonic()
        seen = self._child(engine, {"task": task, "calls": calls}, f"{shape}-{name}")
        record = {**seen}
        if name == "e":
            imported = time.monotonic()
            self._start([str(self._engines[engine].python()), "-c", self._engines[engine].importing], engine, "import")
            record |= {"start_seconds": seen["calls"][0]["end"] - begin, "import_seconds": time.monotonic() - imported}
        else:
            record |= {"speed": speed(name, work, seen["calls"])}
        return record

    def _child(self, engine: str, job: dict[str, Any], what: str) -> Record:
        with tempfile.TemporaryDirectory() as scratch:
            request, answer = Path(scratch, "job.json"), Path(scratch, "result.json")
            rest = {"peer": engine, "folder": str(self._folder), "machine": machine.__file__}
            request.write_text(json.dumps({**job, **rest}))
            script = peers_folder() / "child.py"
            self._start([str(self._engines[engine].python()), str(script), str(request), str(answer)], engine, what)
            return json.loads(answer.read_text())

    def _start(self, command: list[str], engine: str, what: str) -> None:
        """Runs to the end; what it says goes to a log, and its last line into the error."""
        log = self._folder / "logs" / f"{engine}-{what}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._variables(self._engines[engine]),
                preexec_fn=os.setpgrp,
            )
            try:
                process.wait(self._timeout)
            except subprocess.TimeoutExpired:
                raise RuntimeError(f"not done after {self._timeout:.0f} s") from None
            finally:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                process.wait()
        if process.returncode:
            said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            raise RuntimeError((said[-1] if said else f"ended with {process.returncode}")[:300])

    def _variables(self, engine: Any) -> dict[str, str]:
        variables = {**os.environ, **engine.variables(self._threads)}
        if str(engine.python()) != sys.executable:
            variables.pop("PYTHONPATH", None)  # of this interpreter
        return variables

    def _unready(self, engine: Any, shape: str) -> str | None:
        """Why an engine cannot run this shape; writes its form of the checkpoint."""
        if why := engine.missing():
            return why
        out = self._converted(engine.name, shape)
        if engine.converts and not out.exists():
            out.parent.mkdir(parents=True, exist_ok=True)
            part = out.with_name(out.name + ".part")
            job = {"convert": str(self._checkpoint(shape)), "out": str(part)}
            try:
                self._child(engine.name, job, f"{shape}-convert")
            except RuntimeError as error:
                return f"could not convert the checkpoint: {error}"
            part.rename(out)
        return None

    def _checkpoint(self, shape: str) -> Path:
        return self._folder / "checkpoints" / shape

    def _converted(self, engine: str, shape: str) -> Path:
        return self._folder / "converted" / engine / shape

    def _limits(self, shape: str) -> dict[str, Any]:
        from quire import _quire

        weight_bytes = 2 * sum(self._checkpoints.num_parameters(self._checkpoints.SHAPES[shape]))
        return _quire.measure_machine("", self._threads, weight_bytes)

    def _torch_flops(self) -> float | None:
        """What torch's product reaches, where an environment with torch is ready, of a peer that runs or of another."""
        for engine in self._with_torch:
            if engine.missing() is None:
                command = [str(engine.python()), str(peers_folder() / "gemm_rate.py"), str(self._threads)]
                ran = subprocess.run(command, capture_output=True, text=True, env=self._variables(engine))
                return float(ran.stdout) if ran.returncode == 0 else None
        return None


def calls_of(work: workloads.Workload, round_index: int, vocab_size: int) -> Iterator[dict[str, Any]]:
    """A short warm-up, then the timed ones: of decode each after one that makes a single token."""
    if work.name == "e":
        yield {"prompts": work.prompts(round_index, vocab_size), "num_new": 1}
        return
    yield {"prompts": work.prompts("warm-up", vocab_size)[:8], "num_new": min(work.output_len, 8)}
    for i in range(REPEATS[work.name]):
        if work.name == "a":
            yield {"prompts": work.prompts(f"{round_index}/{i}/first", vocab_size), "num_new": 1}
        yield {"prompts": work.prompts(f"{round_index}/{i}", vocab_size), "num_new": work.output_len}


def speed(name: str, work: workloads.Workload, calls: list[dict[str, Any]]) -> float:
    """Tokens a second: new ones in a, else prompt and new ones, but for b, where the new one is not counted."""
    seconds = [call["seconds"] for call in calls[1:]]
    if name == "a":
        more = [both - first for first, both in zip(seconds[::2], seconds[1::2])]
        return statistics.median((work.output_len - 1) / one for one in more)
    prompt = sum(work.prompt_lens) + work.shared_len * len(work.prompt_lens)
    new = work.output_len * len(work.prompt_lens) if name != "b" else 0
    return statistics.median((prompt + new) / one for one in seconds)


def kv_bytes(checkpoints: Any, shape: str, work: workloads.Workload) -> int:
    """For every request at its full length with nothing shared, in blocks of up to 128 tokens, in whole GiB."""
    tokens = sum(-(-(work.shared_len + length + work.output_len) // 128) * 128 for length in work.prompt_lens) + 128
    return -(-tokens * checkpoints.kv_bytes_per_token(checkpoints.SHAPES[shape]) // 2**30) * 2**30


def floor(checkpoints: Any, shape: str, name: str) -> dict[str, Any] | None:
    """What no engine can do without: (bytes, operations, times) of the steps, and the tokens that count for speed.

    The prompts together read the weights once, a shared beginning is computed once and its keys and values are read
    once a step, and attention is free of operations.
    """
    if name == "e":
        return None
    work, values = workloads.WORKLOADS[name], checkpoints.SHAPES[shape]
    body, head = checkpoints.num_parameters(values)
    count, new = len(work.prompt_lens), work.output_len
    prompt = work.shared_len + sum(work.prompt_lens)
    weights = 2 * (body + head)
    context = prompt + count * new / 2
    steps = [
        (weights, 2 * body * prompt + 2 * head * count, 1),
        (weights + context * checkpoints.kv_bytes_per_token(values), 2 * (body + head) * count, new - 1),
    ]
    if name == "a":
        return {"steps": steps[1:], "tokens": new - 1}
    if name == "b":
        return {"steps": steps[:1], "tokens": prompt}
    return {"steps": steps, "tokens": prompt + work.shared_len * (count - 1) + new * count}
