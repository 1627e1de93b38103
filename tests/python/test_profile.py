"""`quire bench profile`: spans become rows that add up; names and counts on a real engine; errors before any work."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from quire.cli import profile_report, workloads
from test_cli import quire

LIMITS = {"read_bytes_per_second": 1e9, "bf16_flops": 1e12, "f32_flops": 1e11}


def span(category: str, name: str, begin: int, duration: int, **arguments: Any) -> dict[str, Any]:
    return {
        "category": category,
        "name": name,
        "begin_ns": begin,
        "duration_ns": duration,
        "on_device": False,
        "arguments": arguments,
    }


def gemm(begin: int, duration: int, m: float, **more: Any) -> dict[str, Any]:
    shape = {"m": m, "n": 64.0, "k": 32.0, "gated": 0.0, "dtype": "bfloat16", "bytes": 4000.0, "flops": 1e6}
    return span("kernel", "gemm", begin, duration, **{**shape, **more})


SPANS = [
    span("step", "step", 0, 100_000),
    span("step", "plan", 0, 10_000, num_tokens=8.0, num_seqs=2.0, num_samples=2.0),
    span("step", "run", 20_000, 70_000),
    gemm(20_000, 30_000, 8.0),
    gemm(50_000, 20_000, 8.0, n=128.0, gated=1.0),
    span("step", "step", 100_000, 40_000),
    span("step", "plan", 101_000, 1_000, num_tokens=2.0, num_seqs=2.0, num_samples=2.0),
    span("step", "run", 110_000, 20_000),
    gemm(111_000, 8_000, 2.0),
    span("step", "step", 150_000, 20_000),
    span("step", "plan", 151_000, 1_000, num_tokens=2.0, num_seqs=2.0, num_samples=2.0),
    gemm(155_000, 2_000, 4.0, dtype="float32"),
    span("step", "step", 180_000, 1_000),  # nothing to plan
    span("step", "plan", 180_000, 500),
]


def test_time_is_counted_once() -> None:
    own = [round(seconds * 1e9) for _, seconds in profile_report.own_seconds(SPANS)]
    assert own[:5] == [20_000, 10_000, 20_000, 30_000, 20_000]
    assert sum(own) == 100_000 + 40_000 + 20_000 + 1_000
    assert [step for step, _ in profile_report.own_seconds(SPANS)] == [0] * 5 + [5] * 4 + [9] * 3 + [12] * 2


def test_rows() -> None:
    steps, rows, outside = profile_report.analyse(SPANS, LIMITS, 200e-6)
    assert [(one.kind, one.count, one.num_tokens, one.num_seqs) for one in steps] == [
        ("prefill", 1, 8, 2),
        ("decode", 2, 4, 4),
    ]
    assert outside == pytest.approx(200e-6 - 160e-6)
    found = {(row.step, row.label): row for row in rows}
    product = found["decode", "gemm 64x32"]
    assert (product.calls, product.rows, product.is_kernel) == (2, 3.0, True)
    assert product.seconds == pytest.approx(10e-6) and product.share == pytest.approx(10 / 60)
    assert product.median_seconds == pytest.approx(5e-6)
    # 4,000 bytes take 4 us; a million operations 1 us in bfloat16 and 10 us in float32.
    assert product.limit_seconds == pytest.approx(4e-6 + 10e-6)
    assert product.of_limit == pytest.approx(1.4)
    assert found["prefill", "gemm 128x32 gated"].calls == 1
    assert found["prefill", "host: launches"].seconds == pytest.approx(20e-6)
    assert found["prefill", "host: launches"].of_limit is None
    for one in steps:
        assert sum(row.seconds for row in rows if row.step == one.kind) == pytest.approx(one.seconds)
        assert sum(row.share for row in rows if row.step == one.kind) == pytest.approx(1.0)
    assert [row.step for row in rows] == sorted((row.step for row in rows), reverse=True)
    shown = profile_report.table(steps, rows, outside, 200e-6)
    assert "decode: 2 steps of 0.030 ms, 2.0 tokens of 2.0 sequences each; 30.0% of the run" in shown
    assert "outside of steps: 0.04 ms, 20.0% of the run" in shown


def test_a_step_that_plans_two_and_one_that_only_fetches() -> None:
    """The first fills the device's queue: a prompt, and the decode behind it. The last one empties it."""
    spans = [
        span("step", "step", 0, 100),
        span("step", "plan", 0, 10, num_tokens=8.0, num_seqs=2.0, num_samples=2.0),
        span("step", "plan", 20, 10, num_tokens=2.0, num_seqs=2.0, num_samples=2.0),
        span("step", "step", 100, 50),
        span("step", "plan", 100, 1),
        span("step", "fetch", 110, 30),
    ]
    (first, last), rows, outside = profile_report.analyse(spans, LIMITS, 150e-9)
    assert (first.kind, first.count, first.num_tokens, first.num_seqs) == ("prefill", 1, 10, 4)
    assert (last.kind, last.count, last.num_tokens) == ("decode", 1, 0) and outside == pytest.approx(0.0, abs=1e-12)
    mine = {row.label: row.calls for row in rows if row.step == "prefill"}
    assert mine == {"host: plan": 2, "host: between the parts": 1}


def test_the_stream_of_a_device_has_rows_of_its_own() -> None:
    """Steps say themselves how large they are; what lies between the kernels of one is a row."""
    sizes = {"num_tokens": 2.0, "num_seqs": 2.0, "num_samples": 2.0}
    mine = [
        span("step", "step", 30_000, 20_000, **sizes),
        span("part", "layer", 31_000, 18_000, layer=0.0),
        gemm(31_000, 8_000, 2.0),
        gemm(40_000, 4_000, 2.0),
        span("step", "step", 60_000, 10_000, **sizes),
        gemm(60_000, 9_000, 2.0),
    ]
    for one in mine:
        one["on_device"] = True
    host, device = profile_report.tracks(sorted(SPANS + mine, key=lambda one: one["begin_ns"]))
    assert host == SPANS and device == mine
    (step,), rows, outside = profile_report.analyse(device, dict.fromkeys(LIMITS, 0.0), 200e-6)
    assert (step.kind, step.count, step.num_tokens) == ("decode", 2, 4) and step.seconds == pytest.approx(30e-6)
    found = {row.label: row for row in rows}
    assert found["gemm 64x32"].calls == 3 and found["gemm 64x32"].seconds == pytest.approx(21e-6)
    assert found["between the kernels"].seconds == pytest.approx(9e-6)
    assert not found["between the kernels"].is_kernel and found["gemm 64x32"].of_limit is None
    assert outside == pytest.approx(170e-6) and len(found) == 2


def test_layers_change_no_row() -> None:
    kernels = [one for one in SPANS if one["category"] == "kernel"]
    parts = [span("part", "layer", one["begin_ns"], one["duration_ns"], layer=0.0) for one in kernels]
    both = sorted(SPANS + parts, key=lambda one: (one["begin_ns"], one["category"] == "kernel"))
    assert profile_report.analyse(both, LIMITS, 200e-6) == profile_report.analyse(SPANS, LIMITS, 200e-6)


def test_workloads_are_those_of_the_description() -> None:
    a, b, c, d = (workloads.WORKLOADS[name] for name in "abcd")
    assert [(len(w.prompt_lens), w.output_len) for w in (a, b, c, d)] == [(1, 128), (1, 1), (64, 128), (64, 32)]
    assert (a.longest, b.longest, d.longest) == (256, 1025, 576)
    assert all(64 <= length <= 256 for length in c.prompt_lens) and len(set(c.prompt_lens)) > 20
    prompts, others = d.prompts(1, 50_000), d.prompts(2, 50_000)
    assert prompts == d.prompts(1, 50_000)
    assert len({tuple(prompt[:512]) for prompt in prompts}) == 1 and len({tuple(p[512:]) for p in prompts}) == 64
    assert prompts[0][:512] != others[0][:512]
    assert all(0 <= token < 100 for prompt in a.prompts(0, 100) for token in prompt)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("profile")
    size = ("--num-prompts", 3, "--input-len", 20, "--output-len", 4)
    files = ("--output-json", folder / "profile.json", "--output-spans", folder / "spans.jsonl")
    shown = quire("bench", "profile", "quire/demo", *size, *files, "--num-threads", 2)
    spans = [json.loads(line) for line in (folder / "spans.jsonl").read_text().splitlines()]
    return shown, json.loads((folder / "profile.json").read_text()), spans


def test_kernels_of_the_demo_model(profiled: tuple[str, dict[str, Any], list[dict[str, Any]]]) -> None:
    """Five layers of 256, four heads of 64 over two, 688 inner columns, 2,048 tokens."""
    shown, result, spans = profiled
    steps = {one["kind"]: one for one in result["steps"]}
    assert (steps["prefill"]["count"], steps["prefill"]["num_tokens"]) == (1, 60)
    assert (steps["decode"]["count"], steps["decode"]["num_tokens"]) == (3, 9)
    calls = {
        "embedding": 1,
        "norm": 11,
        "gemm 512x256": 5,
        "gemm 256x256": 5,
        "gemm 1376x256 gated": 5,
        "gemm 256x688": 5,
        "gemm 2048x256": 1,
        "rope_kv_write": 5,
        "paged_attention": 5,
        "sample": 1,
    }
    for kind in ("prefill", "decode"):
        rows = {row["label"]: row for row in result["rows"] if row["step"] == kind}
        count = steps[kind]["count"]
        assert {name: row["calls"] for name, row in rows.items() if row["is_kernel"]} == {
            name: times * count for name, times in calls.items()
        }
        tokens = steps[kind]["num_tokens"] / count
        assert rows["gemm 512x256"]["flops"] == 2 * tokens * 512 * 256 * 5 * count
        assert rows["gemm 2048x256"]["flops"] == 2 * 3 * 2048 * 256 * count  # of the rows that sample
        assert rows["gemm 512x256"]["of_limit"] is None or rows["gemm 512x256"]["of_limit"] > 0
        assert sum(row["seconds"] for row in rows.values()) == pytest.approx(steps[kind]["seconds"])
        host = {name for name, row in rows.items() if not row["is_kernel"]}
        assert {"host: plan", "host: prepare", "host: launches", "host: fetch", "host: commit"} <= host
    assert result["num_dropped_spans"] == 0 and result["limits"]["read_bytes_per_second"] > 0
    names = Counter((one["category"], one["name"]) for one in spans)
    assert names["kernel", "gemm"] == 4 * 21 and names["step", "step"] == 4
    # Keys that are seen: 20 by the last of each prompt, then one more in each of three decodes.
    attention = [one["arguments"] for one in spans if one["name"] == "paged_attention"]
    assert [arguments["keys"] for arguments in attention[::5]] == [60, 63, 66, 69]
    assert "gemm 1376x256 gated" in shown and "limits: reads" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workload", "z"), "there is no workload 'z'; there are: a, b, c, d"),
        (("--workload", "a", "--input-len", 5), "--workload says how much there is to do; leave --input-len out"),
        (("--num-prompts", 0), "--num-prompts must be at least 1, got 0"),
        (("--workload", "b"), "input and output together are 1025 tokens, and the model takes 1024"),
    ],
)
def test_errors(arguments: tuple[object, ...], message: str) -> None:
    assert quire("bench", "profile", "quire/demo", *arguments, fails=True) == f"quire: {message}\n"


def test_kernels_of_a_device(simt_plugin: Path, tmp_path: Path) -> None:
    """Both tracks on the emulated GPU, where steps are planned ahead; the kernels are on its stream."""
    size = ("--num-prompts", 2, "--input-len", 4, "--output-len", 3, "--max-model-len", 64)
    file = tmp_path / "profile.json"
    sets = ("--set", "device=simt", "--set", "max_num_seqs=4", "--set", "dtype=bfloat16")
    shown = quire("bench", "profile", "quire/demo", *size, *sets, "--output-json", file)
    result = json.loads(file.read_text())
    assert not any(row["is_kernel"] for row in result["rows"]) and result["num_dropped_spans"] == 0
    device = result["device"]
    steps = {one["kind"]: one for one in device["steps"]}
    assert (steps["prefill"]["count"], steps["prefill"]["num_tokens"]) == (1, 8)
    assert (steps["decode"]["count"], steps["decode"]["num_tokens"]) == (2, 4)
    rows = {row["label"]: row for row in device["rows"] if row["step"] == "decode"}
    calls = {"embedding": 1, "gemm 1376x256 gated": 5, "paged_attention": 5, "plan_attention": 1, "prepare_batch": 1}
    assert {name: rows[name]["calls"] / 2 for name in calls} == calls
    assert rows["gemm 512x256"]["bytes"] > 0 and rows["gemm 512x256"]["of_limit"] is None
    assert not rows["between the kernels"]["is_kernel"]
    for kind, one in steps.items():
        mine = [row["seconds"] for row in device["rows"] if row["step"] == kind]
        assert sum(mine) == pytest.approx(one["seconds"])
    assert "on the stream of the device" in shown and "kernel by kernel" in shown and "of limit" in shown


def test_pooling_models_are_refused(pooling_folders: dict[str, Path]) -> None:
    message = quire("bench", "profile", pooling_folders["embed"], "--input-len", 4, "--output-len", 1, fails=True)
    assert "for models that generate text" in message


def test_picture(tmp_path: Path) -> None:
    target = tmp_path / "profile.png"
    if importlib.util.find_spec("matplotlib") is None:
        message = quire("bench", "profile", "quire/demo", "--output-png", target, fails=True)
        assert message == "quire: --output-png needs matplotlib: pip install matplotlib\n"
        return
    steps, rows, _ = profile_report.analyse(SPANS, LIMITS, 200e-6)
    profile_report.draw(steps, rows, "title", target)
    assert target.read_bytes().startswith(b"\x89PNG") and target.stat().st_size > 10_000
