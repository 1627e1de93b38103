"""Traces on the device: its parts and kernels on a track of their own, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import write_llama
from quire import LLM, SamplingParams

pytestmark = pytest.mark.gpu

PARAMS = SamplingParams(max_tokens=6, temperature=0.7, seed=3, ignore_eos=True)
PROMPTS = [[5, 6, 7, 8], [9, 10], [11] * 33]


def tokens(llm: LLM) -> list[list[int]]:
    llm.reset_prefix_cache()
    return [list(output.outputs[0].token_ids) for output in llm.generate(PROMPTS, PARAMS, use_tqdm=False)]


def test_spans_of_the_device(make_llm, device: str, tmp_path: Path) -> None:
    """On a CPU, parts and kernels lie on the host's track, which is the only one."""
    llm = make_llm(write_llama(tmp_path / "model"), profiler_config={"torch_profiler_dir": str(tmp_path / "traces")})
    plain = tokens(llm)
    graphs = llm.stats()["num_graphs"]
    llm.start_profile()
    assert tokens(llm) == plain
    trace = json.loads(llm.stop_profile().read_text())
    assert tokens(llm) == plain
    assert llm.stats()["num_graphs"] == graphs and (graphs > 0) == (device != "cpu")
    assert trace["otherData"]["num_dropped_spans"] == 0
    tracks = {event["args"]["name"]: event["tid"] for event in trace["traceEvents"] if event["name"] == "thread_name"}
    assert set(tracks) == ({"engine"} if device == "cpu" else {"engine", "device stream"})
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    work = [event for event in events if event["tid"] == max(tracks.values())]
    steps = sum(event["name"] == "step" for event in work)
    assert steps >= 6
    for name, count in {"layer 0": 1, "layer 1": 1, "paged_attention": 2, "rope_kv_write": 2, "head": 1}.items():
        assert sum(event["name"] == name for event in work) == count * steps, name
    # Of a track, spans lie in one another or apart.
    for tid in tracks.values():
        ends: list[float] = []
        for event in (event for event in events if event["tid"] == tid):
            while ends and event["ts"] >= ends[-1] - 1e-6:
                ends.pop()
            end = event["ts"] + event["dur"]
            assert not ends or end <= ends[-1] + 1e-3, event
            ends.append(end)
