"""Traces, figures and the report of the start: what is written can be read by others, and counts what was done."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from checkpoints import write_llama
from quire import LLM, SamplingParams
from quire.metrics import Counter, Gauge, Histogram, Metric, Vector

PARAMS = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
PROMPTS: list[Any] = [[5, 6, 7, 8, 9], [7, 8, 9]]


def read_trace(path: Path, has_device: bool = False) -> list[dict[str, Any]]:
    """The complete events of a file, checked as trace viewers read them: with a track of a device, or without."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    trace = json.loads(raw)
    assert trace["displayTimeUnit"] == "ms" and trace["otherData"]["num_dropped_spans"] == 0
    names = {(event["args"]["name"], event["tid"]) for event in trace["traceEvents"] if event["ph"] == "M"}
    assert names == {("quire", 0), ("engine", 0), *([("device stream", 1)] if has_device else [])}
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(events) + len(names) == len(trace["traceEvents"])
    for event in events:
        assert isinstance(event["name"], str) and isinstance(event["args"], dict)
        assert event["ts"] >= 0 and event["dur"] >= 0 and event["pid"] == 0
    assert {event["tid"] for event in events} == ({0, 1} if has_device else {0})
    return events


def parents(events: list[dict[str, Any]]) -> list[str]:
    """The name of the event that each lies in. Events of a thread lie in one another or apart, or viewers drop them."""
    found, open_events = [], []
    for event in events:
        begin, end = event["ts"], event["ts"] + event["dur"]
        while open_events and begin >= open_events[-1]["ts"] + open_events[-1]["dur"] - 1e-6:
            open_events.pop()
        if open_events:
            assert end <= open_events[-1]["ts"] + open_events[-1]["dur"] + 1e-3, (event, open_events[-1])
        found.append(open_events[-1]["name"] if open_events else "")
        open_events.append(event)
    return found


@pytest.mark.parametrize("way", ["config", "object", "gzip", "environment"])
def test_trace(tiny_model: Path, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "traces"
    config: dict[str, Any] = {"profiler": "torch", "torch_profiler_dir": str(folder)}
    options: dict[str, Any] = {"profiler_config": config}
    if way == "object":
        options = {"profiler_config": SimpleNamespace(**config, delay_iterations=0)}
    elif way == "gzip":
        config["torch_profiler_use_gzip"] = True
    elif way == "environment":
        options = {}
        monkeypatch.setenv("VLLM_TORCH_PROFILER_DIR", str(folder))
    with LLM(str(tiny_model), **options) as llm:
        monkeypatch.delenv("VLLM_TORCH_PROFILER_DIR", raising=False)  # read when the LLM is built
        llm.start_profile("mine")
        with pytest.raises(ValueError, match="a recording is under way"):
            llm.start_profile()
        llm.generate(PROMPTS, PARAMS, use_tqdm=False)
        path = llm.stop_profile()
        with pytest.raises(ValueError, match="nothing is recorded"):
            llm.stop_profile()
        llm.start_profile()
        llm.generate(PROMPTS[:1], PARAMS, use_tqdm=False)
        assert llm.stop_profile().name.startswith("quire_rank0.")
    assert path.parent == folder and path.name.startswith("mine_rank0.") and len(list(folder.iterdir())) == 2
    assert path.name.endswith(".pt.trace.json.gz" if way == "gzip" else ".pt.trace.json")
    events = read_trace(path)
    lies_in = dict.fromkeys(zip((event["name"] for event in events), parents(events), strict=True))
    for name, parent in {
        ("plan", "step"),
        ("prepare", "step"),
        ("upload", "step"),
        ("run", "step"),
        ("forward", "run"),
        ("embedding", "forward"),
        ("embedding", "embedding"),
        ("layer 0", "forward"),
        ("layer 1", "forward"),
        ("gemm", "layer 0"),
        ("paged_attention", "layer 1"),
        ("head", "forward"),
        ("gemm", "head"),
        ("sample", "run"),
        ("sample", "sample"),
        ("fetch", "step"),
        ("commit", "step"),
    }:
        assert (name, parent) in lies_in, (name, parent)
    kernels_lie_in = {parent for event, parent in zip(events, parents(events), strict=True) if event["cat"] == "kernel"}
    assert kernels_lie_in == {"embedding", "layer 0", "layer 1", "head", "sample"}
    names = ("forward", "layer 0", "layer 1", "gemm", "paged_attention")
    count = {name: sum(event["name"] == name for event in events) for name in names}
    assert count == {"forward": 4, "layer 0": 4, "layer 1": 4, "gemm": 4 * (2 * 4 + 1), "paged_attention": 4 * 2}
    assert sum(event["args"].get("num_tokens", 0) for event in events if event["name"] == "plan") == 8 + 3 * 2


def test_trace_of_pooling(pooling_folders: dict[str, Path], tmp_path: Path) -> None:
    texts: list[Any] = [[5, 6, 7, 8, 9], [7, 8, 9]]
    with LLM(str(pooling_folders["embed"]), profiler_config={"torch_profiler_dir": str(tmp_path)}) as llm:
        plain = [one.outputs.embedding for one in llm.embed(texts, use_tqdm=False)]
        llm.start_profile()
        assert [one.outputs.embedding for one in llm.embed(texts, use_tqdm=False)] == plain
        events = read_trace(llm.stop_profile())
    lies_in = set(zip((event["name"] for event in events), parents(events), strict=True))
    assert {
        ("plan", "step"),
        ("upload", "step"),
        ("run", "step"),
        ("forward", "run"),
        ("layer 0", "forward"),
        ("gemm", "layer 0"),
        ("pool", "run"),
        ("fetch", "step"),
        ("commit", "step"),
        ("deliver", "step"),
    } <= lies_in
    assert sum(event["args"].get("num_tokens", 0) for event in events if event["name"] == "plan") == 8


def test_trace_of_a_device(tiny_model: Path, tmp_path: Path, simt_plugin: Path) -> None:
    """Parts and kernels on a track of their own; tokens and graphs are what they are without a recording."""
    options: dict[str, Any] = {"device": "simt", "max_model_len": 32, "max_num_seqs": 2, "num_gpu_blocks_override": 16}

    def tokens(llm: LLM) -> list[list[int]]:
        llm.reset_prefix_cache()
        return [list(one.outputs[0].token_ids) for one in llm.generate(PROMPTS, PARAMS, use_tqdm=False)]

    with LLM(str(tiny_model), profiler_config={"torch_profiler_dir": str(tmp_path)}, **options) as llm:
        plain = tokens(llm)
        graphs = llm.stats()["num_graphs"]
        llm.start_profile()
        assert tokens(llm) == plain
        events = read_trace(llm.stop_profile(), has_device=True)
        assert graphs > 0 and tokens(llm) == plain and llm.stats()["num_graphs"] == graphs
    host, device = ([event for event in events if event["tid"] == tid] for tid in (0, 1))
    assert {event["cat"] for event in host} == {"step"}
    assert ("fetch", "step") in set(zip((event["name"] for event in host), parents(host), strict=True))
    order = list(zip((event["name"] for event in device), parents(device), strict=True))
    steps = order.count(("step", ""))
    assert steps == sum(event["name"] == "run" for event in host) >= 4
    for layer in ("layer 0", "layer 1"):
        assert order.count((layer, "step")) == order.count(("paged_attention", layer)) == steps
        assert order.count(("gemm", layer)) == 4 * steps
    assert {event["cat"] for event in device} == {"step", "part", "kernel"}
    first = order[: order.index(("step", ""), 1)]
    parts = [name for name, parent in first if parent == "step"]
    assert parts[-4:] == ["layer 1", "head", "sample", "store_sampled"] and "prepare_batch" in parts
    last = device[-1]
    assert all(event["ts"] > 0 for event in device) and last["ts"] <= max(one["ts"] + one["dur"] for one in host)


def test_profiles_that_cannot_be(tiny_model: Path, tmp_path: Path) -> None:
    with LLM(str(tiny_model)) as llm:
        for call in (llm.start_profile, llm.stop_profile):
            with pytest.raises(RuntimeError, match="Profiler is not enabled."):
                call()
    config = {"torch_profiler_dir": str(tmp_path)}
    with LLM(str(tiny_model), profiler_config=config) as llm:
        with pytest.raises(NotImplementedError, match=r"start_profile\(max_iterations=...\) is not supported"):
            llm.start_profile(max_iterations=3)
        with pytest.raises(ValueError, match="profile_prefix is the beginning of a file's name"):
            llm.start_profile("../x")
    for bad, error, message in (
        ({"profiler": "cuda"}, NotImplementedError, "profiler='cuda' is not supported"),
        ({"profiler": "torch"}, ValueError, "torch_profiler_dir must be set"),
        ({**config, "torch_profiler_with_stack": True}, NotImplementedError, "torch_profiler_with_stack is not"),
    ):
        with pytest.raises(error, match=message):
            LLM(str(tiny_model), profiler_config=bad)
    assert not list(tmp_path.iterdir())


def by_name(metrics: list[Metric]) -> dict[str, Any]:
    return {
        one.name + (f"/{one.labels['finished_reason']}" if "finished_reason" in one.labels else ""): one
        for one in metrics
    }


def test_metrics(tiny_model: Path) -> None:
    with LLM(str(tiny_model), seed=0, num_gpu_blocks_override=64) as llm:
        empty = by_name(llm.get_metrics())
        assert {one.labels["model_name"] for one in empty.values()} == {str(tiny_model)}
        assert empty["vllm:generation_tokens"] == Counter(
            "vllm:generation_tokens", {"model_name": str(tiny_model), "engine": "0"}, 0
        )
        llm.generate([list(range(5, 45)), [7, 8, 9]], PARAMS, use_tqdm=False)
        llm.generate([list(range(5, 45))], SamplingParams(max_tokens=2, n=2, ignore_eos=True), use_tqdm=False)
        now = by_name(llm.get_metrics())
        llm.enqueue([[7, 8, 9]], PARAMS)
        assert by_name(llm.get_metrics())["vllm:num_requests_waiting"].value == 1
        llm.wait_for_completion(use_tqdm=False)
    counters = {name: one.value for name, one in now.items() if isinstance(one, Counter)}
    assert counters["vllm:prompt_tokens"] == 40 + 3 + 40
    assert counters["vllm:generation_tokens"] == 4 + 4 + 2 * 2
    assert counters["vllm:request_success/length"] == 3 and counters["vllm:request_success/stop"] == 0
    assert counters["vllm:prefix_cache_hits"] >= 32
    assert now["vllm:num_requests_running"] == Gauge(
        "vllm:num_requests_running", now["vllm:num_requests_running"].labels, 0.0
    )
    assert 0 <= now["vllm:kv_cache_usage_perc"].value <= 1
    prompts = now["vllm:request_prompt_tokens"]
    assert isinstance(prompts, Histogram) and (prompts.count, prompts.sum) == (3, 83)
    assert prompts.buckets == {
        "1.0": 0, "2.0": 0, "5.0": 1, "10.0": 1, "20.0": 1, "50.0": 3, "100.0": 3, "200.0": 3, "+Inf": 3,
    }  # fmt: skip
    assert now["vllm:request_generation_tokens"].sum == 12 and now["vllm:request_params_n"].sum == 1 + 1 + 2
    assert now["vllm:request_params_max_tokens"].sum == 4 + 4 + 2
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time", "request_decode_time"):
        one = now[f"vllm:{name}_seconds"]
        assert one.count == one.buckets["+Inf"] == 3 and one.sum >= 0
    # Between the tokens of each sequence; the two of the last request come in the same steps.
    between = now["vllm:inter_token_latency_seconds"]
    assert between.count == 3 + 3 + 1 + 1 and list(between.buckets)[:3] == ["0.01", "0.025", "0.05"]
    older = now["vllm:time_per_output_token_seconds"]
    assert (older.count, older.sum, older.buckets) == (between.count, between.sum, between.buckets)
    assert now["vllm:request_time_per_output_token_seconds"].count == 3
    steps = now["vllm:iteration_tokens_total"]
    assert steps.sum >= 43 + 6 and steps.count >= 6


def test_metrics_of_speculation(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "model")
    speculation = {"method": "draft_model", "model": str(folder), "num_speculative_tokens": 3}
    with LLM(str(folder), seed=0, speculative_config=speculation) as llm:
        llm.generate([[5, 6, 7]], SamplingParams(temperature=0, max_tokens=9, ignore_eos=True), use_tqdm=False)
        metrics = by_name(llm.get_metrics())
    per_position = metrics["vllm:spec_decode_num_accepted_tokens_per_pos"]
    assert isinstance(per_position, Vector) and len(per_position.values) == 3
    # A model that is its own draft guesses right.
    assert sum(per_position.values) == metrics["vllm:spec_decode_num_accepted_tokens"].value > 0


def test_metrics_of_pooling_models(pooling_folders: dict[str, Path]) -> None:
    folder = str(pooling_folders["embed"])
    with LLM(folder) as llm:
        llm.embed([[5, 6, 7, 8, 9], [7, 8, 9]], use_tqdm=False)
        with pytest.raises(ValueError, match="out of vocabulary"):
            llm.embed([[5], [10**6]], use_tqdm=False)
        now = by_name(llm.get_metrics())
        assert now["vllm:prompt_tokens"].value == llm.stats()["prompt_tokens"]
    assert {one.labels["model_name"] for one in now.values()} == {folder}
    values = {name.removeprefix("vllm:"): one.value for name, one in now.items() if not isinstance(one, Histogram)}
    assert values == {
        "num_requests_running": 0.0,
        "num_requests_waiting": 0.0,
        "prompt_tokens": 8,
        "request_success/stop": 2,
        "request_success/length": 0,
        "request_success/abort": 0,
        "request_success/error": 0,
    }
    histograms = {name.removeprefix("vllm:"): one for name, one in now.items() if isinstance(one, Histogram)}
    assert {name: one.count for name, one in histograms.items()} == {
        "iteration_tokens_total": 1,
        "request_prompt_tokens": 2,
        "e2e_request_latency_seconds": 2,
        "request_queue_time_seconds": 2,
        "request_inference_time_seconds": 2,
    }
    assert histograms["request_prompt_tokens"].sum == histograms["iteration_tokens_total"].sum == 8


def test_startup_report(llm: LLM, embedder: LLM) -> None:
    for one in (llm, embedder):
        report, info = one.startup_report, one.info()
        phases = {phase.name: phase for phase in report.phases}
        assert list(phases) == ["tokenizer", "files", "device", "plan", "open", "memory", "weights"]
        assert sum(phase.seconds for phase in report.phases) == pytest.approx(report.total_seconds)
        assert all(phase.seconds >= 0 for phase in report.phases) and phases["weights"].seconds > 0
        assert phases["weights"].num_bytes == info["weight_bytes"]
        assert phases["memory"].num_bytes == info["workspace_bytes"] + info["kv_cache_bytes"]
        core = sum(phases[name].seconds for name in ("device", "plan", "open", "memory", "weights"))
        assert core == pytest.approx(info["load_seconds"])
        assert len(str(report).splitlines()) == 8
