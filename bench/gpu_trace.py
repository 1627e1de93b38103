"""What a device does in some decode steps: from tokens' arrival, the engine's own recorder, CUPTI through torch.

Decides how a trace is cut into steps and what counts as idle. CUPTI sees all kernels of the process, whoever linked the
CUDA runtime; it stretches kernels a little, so shares are of the traced run; a step's untraced time stands beside.
Between steps is the longest gap of each step: from the last kernel of one to the first of the next, where the host has
the word. The recorder times launchers by events, in steps that are launched kernel by kernel; that its trace has every
part of every step is checked here, since elsewhere only the emulation shows it. Knows no engine but through `generate`,
LLM.stream for arrivals and LLM.start_profile.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_workloads import Line, tokens_of

Span = tuple[float, float, str]  # begin and end in us, name
STEPS = {"full": 48, "toy": 48, "tiny": 6}
RECORDED_STEPS = 8
# The one kernel of ours that runs exactly once a step.
MARKER = "embedding"
SHOWN_STEPS = 3
DEVICE_EVENTS = ("kernel", "gpu_memcpy", "gpu_memset")
HOST_EVENTS = ("cuda_runtime", "cuda_driver")


def lines(engine: Any, model: str, device: str, scale: str) -> Iterator[Line]:
    length, steps = 4 if scale != "full" else 1024, STEPS[scale]
    prompt = tokens_of(model, "trace", length)
    yield arrivals(engine, prompt, steps)
    if device != "cpu":
        yield recorded(engine, prompt, min(steps, RECORDED_STEPS))
    if device != "cuda":
        return
    try:
        import torch

        torch.cuda.init()
    except (ImportError, AssertionError, RuntimeError) as error:
        reason = f"no torch for CUDA, whose profiler reads CUPTI: {error}"
        yield {"kind": "engine_skipped", "name": "cupti", "reason": reason}
        return
    for batch in (1, 64):
        prompts = [tokens_of(model, f"trace/{i}", length) for i in range(batch)]
        engine.generate(prompts, [1] * batch, 0.0)
        yield {"name": f"b{batch}", **profiled(engine, prompts, steps)}


def arrivals(engine: Any, prompt: list[int], steps: int) -> Line:
    """When the tokens of one stream reach Python."""
    from quire import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=steps, ignore_eos=True, detokenize=False)
    list(engine.llm.stream(prompt, params))
    begin = time.perf_counter()
    times = [(time.perf_counter() - begin) * 1e6 for chunk in engine.llm.stream(prompt, params) if chunk.token_ids]
    gaps = [after - before for before, after in zip(times, times[1:])]
    if not gaps:
        raise RuntimeError(f"a stream of {steps} tokens came in {len(times)} chunks")
    return {
        "kind": "engine_trace", "name": "arrivals", "source": "stream", "token_us": times,
        "step_us": statistics.median(gaps), "step_us_highest": max(gaps),
    }  # fmt: skip


def recorded(engine: Any, prompt: list[int], steps: int) -> Line:
    """The trace of a few steps of one sequence; RuntimeError where it lacks anything of the device's stream."""
    from quire import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=steps, ignore_eos=True, detokenize=False)
    tokens, seconds = [], []
    for is_recorded in (False, True, False):
        if is_recorded:
            engine.llm.start_profile("check")
        begin = time.perf_counter()
        (output,) = engine.llm.generate([prompt], params, use_tqdm=False)
        seconds.append(time.perf_counter() - begin)
        tokens.append(list(output.outputs[0].token_ids))
        if is_recorded:
            path = engine.llm.stop_profile()
    if tokens[1] != tokens[0] or tokens[2] != tokens[0]:
        raise RuntimeError(f"a recording changed tokens: {tokens}")
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    us_a_step = seconds[2] / steps * 1e6
    return {
        "kind": "engine_trace", "name": "recorder", "source": "recorder", "untraced_step_us": us_a_step,
        **device_track(events),
    }  # fmt: skip


def device_track(events: list[Line]) -> Line:
    """Of the steps on the device's track of a trace of the engine's: each has the layers of the first, in order."""
    tracks = {event["args"]["name"]: event["tid"] for event in events if event["name"] == "thread_name"}
    if "device stream" not in tracks:
        raise RuntimeError(f"the trace has no track of the device, only {sorted(tracks)}")
    mine = [event for event in events if event["ph"] == "X" and event["tid"] == tracks["device stream"]]
    begins = [event["ts"] for event in mine if event["cat"] == "step"]
    layers: list[list[str]] = [[] for _ in begins]
    kernel_us: dict[str, float] = {}
    for event in mine:
        if event["cat"] == "part" and event["name"].startswith("layer "):
            layers[sum(begin <= event["ts"] for begin in begins) - 1].append(event["name"])
        if event["cat"] == "kernel":
            kernel_us[event["name"]] = kernel_us.get(event["name"], 0.0) + event["dur"] / len(begins)
    whole = [f"layer {i}" for i in range(len(layers[0]))]
    if not whole or any(one != whole for one in layers):
        raise RuntimeError(f"steps of the device's track have other layers than {whole}: {layers}")
    total = sum(event["dur"] for event in mine if event["cat"] == "step")
    if total <= 0 or MARKER not in kernel_us:
        raise RuntimeError(f"{len(begins)} steps of {total} us with the kernels {sorted(kernel_us)}")
    return {
        "steps": len(begins),
        "step_us": total / len(begins),
        "kernels_a_step": sum(event["cat"] == "kernel" for event in mine) / len(begins),
        "kernel_us": dict(sorted(kernel_us.items(), key=lambda item: -item[1])),
    }


def profiled(engine: Any, prompts: list[list[int]], steps: int) -> Line:
    from torch.profiler import ProfilerActivity, profile

    new_tokens = [steps] * len(prompts)
    begin = time.perf_counter()
    engine.generate(prompts, new_tokens, 0.0)
    untraced = (time.perf_counter() - begin) / steps
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        engine.generate(prompts, new_tokens, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return {"kind": "engine_trace", "source": "cupti", "untraced_step_us": untraced * 1e6, **summary(events)}


def spans_of(events: list[Line], categories: tuple[str, ...]) -> list[Span]:
    spans = [
        (float(event["ts"]), float(event["ts"]) + float(event.get("dur", 0)), str(event["name"]))
        for event in events
        if event.get("cat") in categories and event.get("ph") == "X"
    ]
    return sorted(spans)


def gaps_of(spans: list[Span]) -> list[tuple[float, float]]:
    """(when, how long) nothing ran, between the first and the last; kernels may overlap."""
    gaps, end = [], spans[0][1]
    for begin, finish, _ in spans[1:]:
        if begin > end:
            gaps.append((end, begin - end))
        end = max(end, finish)
    return gaps


def summary(events: list[Line]) -> Line:
    """Of a Chrome trace: the steps after the first few, which hold the end of the prompt."""
    device = spans_of(events, DEVICE_EVENTS)
    starts = [begin for begin, _, name in device if MARKER in name]
    if len(starts) < SHOWN_STEPS + 3:
        raise RuntimeError(
            f"{len(starts)} kernels named *{MARKER}* in a trace of {len(device)} spans; is it another name now?"
        )
    starts = starts[2:]
    inside = [span for span in device if starts[0] <= span[0] < starts[-1]]
    gaps = gaps_of([*inside, (starts[-1], starts[-1], "the next step")])
    total, steps = starts[-1] - starts[0], len(starts) - 1
    longest = [
        max((long for when, long in gaps if begin <= when < end), default=0.0) for begin, end in zip(starts, starts[1:])
    ]
    by_name: dict[str, float] = {}
    for begin, end, name in inside:
        by_name[name] = by_name.get(name, 0.0) + end - begin
    first = starts[steps // 2]
    last = starts[min(steps // 2 + SHOWN_STEPS, steps)]
    shown = {
        "device": [span for span in device if first <= span[0] < last],
        "host": [span for span in spans_of(events, HOST_EVENTS) if first <= span[0] < last],
    }
    return {
        "steps": steps,
        "step_us": total / steps,
        "idle_share": sum(long for _, long in gaps) / total,
        "idle_between_steps_share": sum(longest) / total,
        "kernels_a_step": len(inside) / steps,
        "kernel_us": dict(sorted(((name[:80], us / steps) for name, us in by_name.items()), key=lambda x: -x[1])[:16]),
        "spans": {
            track: [(round(begin - first, 2), round(end - first, 2), name[:40]) for begin, end, name in spans]
            for track, spans in shown.items()
        },
    }
