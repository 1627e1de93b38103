#!/usr/bin/env python3
"""Times quire's engine on a device, one JSON object a line, each workload in a process of its own with a time limit.

Reads the ceilings (copy bandwidth, matrix product) from the records of bench_cuda_kernels and bench/gpu_peers.py, so
that each figure stands beside the floor that its bytes and flops set on the same machine; without them, and on a CPU,
there is no floor. Weights are dummies or a file of noise: speed is that of the shape. What the engine says of itself is
optional: LLM.stats() with step_seconds, host_seconds, device_seconds or device_idle_seconds gives shares of a step.

  decode      ms a step by batch at 1,024 tokens of context (Llama-3.2-1B, Llama-3.1-8B)
  throughput  output tokens/s: 256 x 1,024 in / 1,024 out (Qwen3-8B), nano-vllm's 256 requests (Qwen3-0.6B)
  startup     a process from its start to its first token, the checkpoint in the page cache, and its phases
  trace       what the device does in some steps, and how much of the time it does nothing
  memory      what close() gives back            sleep   what sleep() gives back and how long it takes
  invariant   batch_invariant=True against False

usage: python bench/gpu_engine.py [RECORD.jsonl...] [--device cuda|simt|cpu] [--json FILE] [--seconds S] [--filter RE]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gpu_models as models
import gpu_trace as trace
import gpu_workloads as workloads
from gpu_jobs import Context, Job, main
from gpu_workloads import Ceilings, Clock, Line

# Of LLM.stats(): what rises and falls instead of growing.
GAUGES = ("num_running", "num_waiting", "num_blocks", "num_free_blocks", "num_cached_blocks")


class Quire:
    """quire.LLM as an engine that is timed."""

    def __init__(self, context: Context, model: str, **changes: Any) -> None:
        from quire import LLM

        arguments = {**arguments_of(context), **changes}
        if arguments["load_format"] == "dummy":
            models.write_config(model, context.folder / model)
        begin = time.perf_counter()
        self.llm = LLM(str(context.folder / model), **arguments)
        self.seconds = time.perf_counter() - begin
        self.model = model

    def generate(self, prompts: list[list[int]], new_tokens: Sequence[int], temperature: float) -> int:
        from quire import SamplingParams

        params = [
            SamplingParams(temperature=temperature, max_tokens=new, ignore_eos=True, detokenize=False)
            for new in new_tokens
        ]
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        return sum(len(completion.token_ids) for output in outputs for completion in output.outputs)

    def counters(self) -> dict[str, float]:
        stats: dict[str, Any] = {**self.llm.stats()}
        return {name: value for name, value in stats.items() if isinstance(value, (int, float)) and name not in GAUGES}

    def loaded(self) -> Line:
        info = {key: value for key, value in self.llm.info().items() if isinstance(value, (int, float, str))}
        return {
            "kind": "engine_load", "case": f"load/{self.model}", "model": self.model, "weights": "dummy",
            "seconds": self.seconds, "info": info,
        }  # fmt: skip


def arguments_of(context: Context) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "load_format": "dummy", "skip_tokenizer_init": True, "dtype": "bfloat16", "device": context.device,
        "max_model_len": 4096, "max_num_seqs": 256, "seed": 0,
    }  # fmt: skip
    if context.is_toy:
        arguments |= {"max_model_len": 256, "max_num_seqs": 16, "num_gpu_blocks_override": 512}
    return {**arguments, **context.extra}


# Workloads -----------------------------------------------------------------------------------------------------------


def run_shared(context: Context, workload: workloads.Decode | workloads.Throughput) -> Iterator[Line]:
    """A workload that peers are asked too."""
    engine = Quire(context, workload.model)
    yield engine.loaded()
    with engine.llm:
        yield from workload.lines(engine, context.ceilings, context.clock)


_STARTUP = """
import json, sys, time
times = {"python": time.time() - float(sys.argv[1])}
last = time.time()
def phase(name):
    global last
    times[name], last = time.time() - last, time.time()
from quire import LLM, SamplingParams, _quire
phase("import")
llm = LLM(sys.argv[2], **json.loads(sys.argv[3]))
phase("load")
params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)
llm.generate([[1, 2, 3]], params, use_tqdm=False)
phase("first_token")
total = time.time() - float(sys.argv[1])
llm.generate([[1, 2, 4]], params, use_tqdm=False)
phase("second_call")
reported = {k: v for k, v in {**llm.stats(), **llm.info()}.items() if k.endswith("_seconds")}
from quire import engine_args
values = engine_args.resolve({"model": sys.argv[2], **json.loads(sys.argv[3])})
last = time.time()
_quire.plan_model(sys.argv[2], engine_args.engine_options(values, ""))
phase("plan")
print(json.dumps({"seconds": total, "phases": times, "reported": reported}))
"""


def run_startup(context: Context, model: str, repeats: int = 3) -> Iterator[Line]:
    """The file is written just before, so it is in the page cache (or in memory, where the folder is)."""
    folder = context.folder / model
    begin = time.perf_counter()
    models.write_checkpoint(model, folder)
    written = time.perf_counter() - begin
    arguments = json.dumps({**arguments_of(context), "load_format": "auto"})
    runs = []
    for _ in range(repeats):
        spawned = time.time()
        command = [sys.executable, "-c", _STARTUP, str(spawned), str(folder), arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        if context.clock.left() < 2 * (time.time() - spawned):
            break
    runs.sort(key=lambda run: run["seconds"])
    yield {
        "kind": "engine", "case": f"startup/{model}", "workload": "startup", "model": model, **runs[len(runs) // 2],
        "all_seconds": [run["seconds"] for run in runs], "checkpoint_bytes": models.checkpoint_bytes(model),
        "write_seconds": written,
    }  # fmt: skip


def memory_used(device: str) -> int:
    """Bytes: of the GPU, of everybody on it; else of this process."""
    if device != "cuda":
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
    return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]) << 20


def run_memory(context: Context, model: str) -> Iterator[Line]:
    before, opened, closed, held = memory_used(context.device), [], [], 0
    for _ in range(3):
        engine = Quire(context, model)
        engine.generate([workloads.tokens_of(model, "memory", 32)] * 2, [8, 8], 1.0)
        info = engine.llm.info()
        held = info["weight_bytes"] + info["workspace_bytes"] + info["kv_cache_bytes"]
        opened.append(memory_used(context.device))
        engine.llm.close()
        del engine
        closed.append(memory_used(context.device))
    yield {
        "kind": "engine", "case": f"memory/{model}", "workload": "memory", "model": model, "planned_bytes": held,
        "before_bytes": before, "open_bytes": opened, "closed_bytes": closed,
        "given_back": (opened[-1] - closed[-1]) / max(1, opened[-1] - closed[0]),
        "growth_bytes": closed[-1] - closed[0],
    }  # fmt: skip


def run_sleep(context: Context, model: str) -> Iterator[Line]:
    """Levels 1 and 2, three times each, on weights that are copied whatever they are; and what is left each time.

    `left_bytes` is what is in use more than before the engine was made, `context_bytes` what a closed engine leaves:
    the process's context on the device. Of host memory the copy of the weights is counted while it sleeps and after.
    """
    empty = memory_used(context.device)
    engine = Quire(context, model, enable_sleep_mode=True)
    prompts = [workloads.tokens_of(model, "sleep", 32)] * 2
    with engine.llm as llm:
        info = llm.info()
        held = info["weight_bytes"] + info["workspace_bytes"] + info["kv_cache_bytes"]
        engine.generate(prompts, [8, 8], 1.0)
        graphs, opened = llm.stats()["num_graphs"], memory_used(context.device)
        host_before = memory_used("host")
        for level in (1, 2):
            runs = []
            for _ in range(3):
                times = []
                begin = time.perf_counter()
                llm.sleep(level=level)
                times.append(time.perf_counter() - begin)
                left, host = memory_used(context.device) - empty, memory_used("host") - host_before
                for tags in (["weights"], ["kv_cache"]):
                    begin = time.perf_counter()
                    llm.wake_up(tags=tags)
                    times.append(time.perf_counter() - begin)
                if level == 1:
                    engine.generate(prompts, [8, 8], 1.0)
                runs.append((*times, left, host, memory_used("host") - host_before))
                if context.clock.left() < 2 * sum(times):
                    break
            first = runs[0][0]
            runs.sort(key=lambda run: run[0] + run[1] + run[2])
            most = [max(sizes) for sizes in zip(*(run[3:] for run in runs), strict=True)]
            names = ("sleep_seconds", "wake_weights_seconds", "wake_cache_seconds")
            sizes = ("left_bytes", "host_asleep_bytes", "host_awake_bytes")
            yield {
                "kind": "engine", "case": f"sleep/{model}/level{level}", "workload": "sleep", "model": model,
                "level": level, **dict(zip(names, runs[len(runs) // 2][:3], strict=True)),
                "first_sleep_seconds": first, "runs": len(runs), "planned_bytes": held,
                "open_bytes": opened - empty, **dict(zip(sizes, most, strict=True)),
                "graphs_captured_again": llm.stats()["num_graphs"] - graphs,
            }  # fmt: skip
    del llm, engine
    yield {
        "kind": "engine", "case": f"sleep/{model}/closed", "workload": "sleep-closed", "model": model,
        "context_bytes": memory_used(context.device) - empty,
    }  # fmt: skip


def run_invariant(context: Context, model: str) -> Iterator[Line]:
    """Decode by batch, and prompts alone: that is where batch_invariant may choose other kernels."""
    measured: dict[str, list[float]] = {}
    length, count = {"full": (2048, 16), "toy": (48, 4), "tiny": (16, 2)}[context.scale]
    for value in (True, False):
        try:
            engine = Quire(context, model, batch_invariant=value)
        except TypeError as error:
            yield {"kind": "engine_skipped", "case": f"invariant/{model}", "reason": str(error)}
            return
        with engine.llm:
            for line in workloads.decode(model, context.scale, (1, 4) if context.is_toy else (1, 32, 256)).lines(
                engine, Ceilings(), Clock(context.clock.left() / (2 if value else 1))
            ):
                if line["kind"] == "engine":
                    measured.setdefault(f"decode/b{line['shape']['batch']}", []).append(line["ms"])
            prompts = [workloads.tokens_of(model, f"prefill/{i}", length) for i in range(2 * count)]
            engine.generate(prompts[:count], [1] * count, 0.0)
            seconds = workloads.timed(engine, prompts[count:], [1] * count, 0.0)
            measured.setdefault(f"prefill/{count}x{length}", []).append(seconds * 1e3)
    for name, both in measured.items():
        if len(both) == 2:
            yield {
                "kind": "engine", "case": f"invariant/{model}/{name}", "workload": "invariant", "model": model,
                "ms_on": both[0], "ms_off": both[1], "ratio": both[0] / both[1],
            }  # fmt: skip


def run_trace(context: Context, model: str) -> Iterator[Line]:
    engine = Quire(context, model, profiler_config={"torch_profiler_dir": str(context.folder / "traces")})
    with engine.llm:
        for line in trace.lines(engine, model, context.device, context.scale):
            yield {"case": f"trace/{model}/{line.pop('name')}", "workload": "trace", "model": model, **line}


def jobs_of(scale: str) -> list[Job]:
    is_toy = scale != "full"
    small, tiny = ("toy", "toy-qwen3") if is_toy else ("llama-1b", "qwen3-0.6b")
    large, eight = ("toy", "toy-qwen3") if is_toy else ("llama-8b", "qwen3-8b")
    decodes = dict.fromkeys((small, large))
    return [
        *(Job(f"decode/{m}", 30.0, lambda c, m=m: run_shared(c, workloads.decode(m, scale))) for m in decodes),
        Job(f"throughput/{tiny}", 30.0, lambda c: run_shared(c, workloads.throughput_nano(tiny, scale))),
        Job(f"startup/{large}", 35.0, lambda c: run_startup(c, large)),
        Job(f"trace/{large}", 20.0, lambda c: run_trace(c, large)),
        Job(f"memory/{small}", 15.0, lambda c: run_memory(c, small)),
        Job(f"sleep/{eight}", 20.0, lambda c: run_sleep(c, eight)),
        Job(f"throughput-8b/{eight}", 60.0, lambda c: run_shared(c, workloads.throughput_8b(eight, scale))),
        Job(f"invariant/{small}", 20.0, lambda c: run_invariant(c, small)),
    ]


if __name__ == "__main__":
    main(__doc__, jobs_of)
