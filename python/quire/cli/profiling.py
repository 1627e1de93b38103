"""`quire bench profile`: where the time of a step goes, by kernel and by part of the host, beside the machine's limits.

Decides what is run and in which order: a short warm-up, the recorded run, the same once more without recording, and
on a CPU the limits in front and behind. How spans become rows is in profile_report.py.
"""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quire.cli import machine, options, profile_report, workloads

if TYPE_CHECKING:
    from quire import LLM

_DEFAULT_PROMPTS, _DEFAULT_INPUT, _DEFAULT_OUTPUT = 1, 128, 128


def profile(
    model: options.Model,
    workload: Annotated[
        str | None, typer.Option(help="; ".join(f"{name}: {w.what}" for name, w in workloads.WORKLOADS.items()))
    ] = None,
    num_prompts: Annotated[int | None, typer.Option(help="Requests at once, instead of a workload.")] = None,
    input_len: Annotated[int | None, typer.Option(help="Tokens of each prompt, instead of a workload.")] = None,
    output_len: Annotated[int | None, typer.Option(help="Tokens to generate for each, instead of a workload.")] = None,
    output_json: Annotated[Path | None, typer.Option(help="Write steps, rows and limits to this file.")] = None,
    output_png: Annotated[Path | None, typer.Option(help="Draw them into this file.")] = None,
    output_spans: Annotated[Path | None, typer.Option(help="Write every span to this file, a JSON line each.")] = None,
    dtype: options.Dtype = None,
    max_model_len: options.MaxModelLen = None,
    num_threads: options.NumThreads = None,
    assignments: options.EngineSet = None,
) -> None:
    """Where the time of a step goes."""
    work = _workload(workload, num_prompts, input_len, output_len)
    if output_png is not None and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--output-png needs matplotlib: pip install matplotlib")
    from quire.cli.bench import open_llm

    with open_llm(model, options.llm_arguments(dtype, max_model_len, num_threads, assignments), work.longest) as llm:
        result, spans = _measure(llm, work)
    host, device = profile_report.tracks(spans)
    wall = result["wall_seconds"]
    steps, rows, outside = profile_report.analyse(host, result["limits"], wall)
    result.update(profile_report.as_json(steps, rows), outside_seconds=outside)
    print(_headline(result))
    print(profile_report.table(steps, rows, outside, wall))
    if device:
        steps, rows, outside = profile_report.analyse(device, result["limits"], wall)
        result["device"] = {**profile_report.as_json(steps, rows), "outside_seconds": outside}
        print(f"\non the stream of the device\n\n{profile_report.table(steps, rows, outside, wall)}")
    if output_json is not None:
        output_json.write_text(json.dumps(result, indent=1) + "\n")
    if output_spans is not None:
        output_spans.write_text("".join(json.dumps(span) + "\n" for span in spans))
    if output_png is not None:
        profile_report.draw(steps, rows, f"{model}, {result['workload']}: {result['what']}", output_png)


def _workload(
    name: str | None, num_prompts: int | None, input_len: int | None, output_len: int | None
) -> workloads.Workload:
    own = {"--num-prompts": num_prompts, "--input-len": input_len, "--output-len": output_len}
    for option, value in own.items():
        if value is not None and name is not None:
            raise ValueError(f"--workload says how much there is to do; leave {option} out")
        if value is not None and value < 1:
            raise ValueError(f"{option} must be at least 1, got {value}")
    if name is not None:
        workloads.chosen([name], list(workloads.WORKLOADS), "workload")
        return workloads.WORKLOADS[name]
    count, prompt, new = num_prompts or _DEFAULT_PROMPTS, input_len or _DEFAULT_INPUT, output_len or _DEFAULT_OUTPUT
    what = f"{count} requests, {prompt} prompt tokens, {new} new ones each"
    return workloads.Workload("own", what, (prompt,) * count, new)


def _measure(llm: LLM, work: workloads.Workload) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a record says beside the rows, and the spans of the recorded run."""
    info, engine = llm.info(), llm._engine
    if "kv_cache_bytes" not in info or llm._task != "generate":
        raise NotImplementedError(
            "quire bench profile is for models that generate text; pooling is traced by start_profile()"
        )
    _run(llm, work, 0, min(2, work.output_len))
    before = _limits(info)
    with machine.Load() as load:
        engine.start_recording()
        try:
            wall = _run(llm, work, 1, work.output_len)
        finally:
            recording = engine.stop_recording()
        plain = _run(llm, work, 2, work.output_len)
    after = _limits(info)
    best = {**before, **{name: max(before[name], after[name]) for name in before if name.endswith(("flops", "second"))}}
    result = {
        "workload": work.name,
        "what": work.what,
        "model": {name: info[name] for name in ("architecture", "dtype", "kernels", "num_threads", "weight_bytes")},
        "machine": machine.describe(),
        "foreign": load.foreign,
        "limits": best,
        "limits_before": before,
        "limits_after": after,
        "wall_seconds": wall,
        "plain_wall_seconds": plain,
        "num_dropped_spans": recording["num_dropped_spans"],
    }
    return result, recording["spans"]


def _run(llm: LLM, work: workloads.Workload, run: int, output_len: int) -> float:
    from quire import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True, detokenize=False)
    prompts: list[Any] = work.prompts(run, llm.info()["vocab_size"])
    begin = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - begin


def _limits(info: dict[str, Any]) -> dict[str, Any]:
    """Of reading as much as a step reads of the weights, with the engine's threads and instructions; zeros of a GPU."""
    from quire import _quire

    if info["device"] != "cpu":
        return {"read_bytes_per_second": 0.0, "bf16_flops": 0.0, "f32_flops": 0.0}
    return _quire.measure_machine(info["kernels"], info["num_threads"], info["weight_bytes"])


def _headline(result: dict[str, Any]) -> str:
    limits, model = result["limits"], result["model"]
    lines = [
        f"{result['workload']}: {result['what']}",
        f"{model['architecture']}, {model['dtype']}, {model['kernels']}, {model['num_threads']} threads",
        f"{result['wall_seconds']:.3f} s, without recording {result['plain_wall_seconds']:.3f} s",
        _limits_line(limits),
    ]
    if result["foreign"] is not None:
        lines.append(f"other processes took {result['foreign']:.1%} of the machine meanwhile")
    if result["num_dropped_spans"]:
        lines.append(f"{result['num_dropped_spans']} spans are missing below: no room for the last, or no times")
    return "\n".join([*lines, ""])


def _limits_line(limits: dict[str, Any]) -> str:
    if not limits["read_bytes_per_second"]:
        return "steps were launched kernel by kernel while they were recorded; a GPU's limits are not measured here"
    return (
        f"limits: reads {limits['read_bytes_per_second'] * 1e-9:.1f} GB/s of {limits['read_bytes'] / 1e6:.0f} MB, "
        f"bf16 {limits['bf16_flops'] * 1e-9:.0f} GFLOP/s, f32 {limits['f32_flops'] * 1e-9:.0f} GFLOP/s"
    )
