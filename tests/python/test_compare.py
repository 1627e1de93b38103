"""`quire bench compare`: what counts in its tables, on records made by hand; a real run beside transformers; errors.

The engines are those of the test environment and one that cannot start. Speed is never asserted.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from quire.cli import compare, compare_report, workloads
from test_cli import quire

PEERS = compare.load_peers()
CHECKPOINTS = sys.modules["quire_peers.checkpoints"]
LIMITS = {"read_bytes_per_second": 1e9, "bf16_flops": 1e9}
FLOOR = {"steps": [(2e9, 1e9, 1), (1e9, 3e9, 2)], "tokens": 16}  # 2 s, then 3 s twice
MACHINE = {"cpu": "a CPU", "threads": 2, "date": "2026-01-01 00:00:00"}


def record(engine: str, workload: str, round_index: int, **more: Any) -> dict[str, Any]:
    calls = [{"seconds": 1.0, "foreign": 0.25, "first_ids": [[7, 1], [8, 1]], "end": 0.0}]
    told = {"engine": engine, "shape": "S", "workload": workload, "round": round_index, "note": f"as {engine} is"}
    rest = {"machine": MACHINE, "limits_before": LIMITS, "limits_after": LIMITS, "floor": FLOOR}
    return {**told, **rest, **({} if "error" in more else {"calls": calls, "version": "1"}), **more}


def records() -> list[dict[str, Any]]:
    found = []
    for round_index, (ours, fast, slow) in enumerate([(1.0, 1.0, 0.5), (9.0, 4.0, 1.0), (2.0, 3.0, 0.25)]):
        found += [
            record("quire", "a", round_index, speed=ours),
            record("fast", "a", round_index, speed=fast),
            record("slow", "a", round_index, speed=slow),
        ]
    found += [
        record("quire", "e", 0, start_seconds=2.0, import_seconds=0.5),
        record("fast", "e", 0, start_seconds=3.0, import_seconds=4.0),
        record("slow", "e", 0, start_seconds=1.0, import_seconds=5.0),
        record("quire", "c", 0, speed=6.0, peak_bytes=2**20),
        record("fast", "c", 0, error="out of memory"),
        record("slow", "c", 0, speed=3.0, peak_bytes=3 * 2**20),
        record("slow", "c", 1, error="gone"),
        record("quire", "d", 0, error="broken"),
        record("fast", "d", 0, speed=1.0),
    ]
    found.append({"shape": "S", "workload": "c", "torch_bf16_flops": [None, 2e9], "machine": MACHINE})
    return found


def test_medians_and_ratios() -> None:
    table = {row.metric.label: row for row in compare_report.rows(records())}
    decode = table["a: decode, one sequence"]
    assert decode.cells["quire"].median == 2.0 and decode.cells["fast"].median == 3.0
    assert decode.best_peer == "fast" and decode.better("fast") == pytest.approx(2 / 3)
    assert decode.better("slow") == pytest.approx(4.0)
    start = table["e: start to first token"]  # lower is better
    assert start.best_peer == "slow" and start.better("slow") == pytest.approx(0.5)
    assert start.limit is None and start.share is None
    assert table["e: import"].best_peer == "fast" and table["e: import"].better("fast") == pytest.approx(8.0)
    assert table["c: peak memory"].cells["quire"].values == (1.0,)  # MiB
    assert table["c: peak memory"].better("slow") == pytest.approx(3.0)


def test_limits() -> None:
    table = {row.metric.label: row for row in compare_report.rows(records())}
    assert table["a: decode, one sequence"].limit == pytest.approx(16 / 8)
    assert table["a: decode, one sequence"].share == pytest.approx(1.0)
    # torch's product is faster than what was measured around the runs, here alone: 2 s, then 1.5 s twice.
    assert table["c: 64 requests"].limit == pytest.approx(16 / 5)
    faster = [{**one, "limits_after": {**LIMITS, "bf16_flops": 3e9}} for one in records()]
    row = compare_report.rows(faster)[0]
    assert row.limit == pytest.approx(16 / 4)


def test_cells_that_failed() -> None:
    table = {row.metric.label: row for row in compare_report.rows(records())}
    many = table["c: 64 requests"]
    assert many.cells["fast"] == compare_report.Cell((), "out of memory")
    assert many.best_peer == "slow" and many.better("fast") is None
    assert many.cells["slow"] == compare_report.Cell((3.0,), "gone")
    shared = table["d: 64 requests, 512 shared tokens"]
    assert shared.best_peer == "fast" and shared.better("fast") is None and shared.share is None
    assert shared.cells["slow"].error == "not run"


def test_markdown() -> None:
    shown = compare_report.markdown(records())
    lines = shown.splitlines()
    assert lines[0] == "| shape | workload | quire | fast | slow | best peer | times better | limit | share of it |"
    cells = "2.00 (1.00 to 9.00) | 3.00 (1.00 to 4.00) | 0.50 (0.25 to 1.00) | fast | **0.67** | 2.00 | 100%"
    assert f"| S | a: decode, one sequence, tok/s | {cells} |" in lines
    assert "| S | c: 64 requests, tok/s | 6.00 | failed | 3.00, then failed | slow | **2.00** | 3.20 | 188% |" in lines
    assert "| S | d: 64 requests, 512 shared tokens, tok/s | failed | 1.00 | not run | fast | - | 2.00 | - |" in lines
    assert "- fast failed: out of memory (S c)" in lines and "- quire failed: broken (S d)" in lines
    assert "- fast 1: as fast is. First tokens that are quire's: 8 of 8." in lines
    assert "Other processes took 25.0% of the machine during the median run, 25.0% during the worst." in shown
    assert compare_report.markdown([]) == "no runs"


def test_quiet_runs() -> None:
    def busy(engine: str, round_index: int, *shares: float | None, **more: Any) -> dict[str, Any]:
        one = record(engine, "a", round_index, **more)
        return {**one, "calls": [{**one["calls"][0], "foreign": share} for share in shares]}

    runs = [
        busy("quire", 0, 0.9, 0.1, speed=1.0),  # of the first call, which warms up, nothing is known
        busy("quire", 1, 0.0, None, 0.3, speed=9.0),
        busy("fast", 0, 0.5, 0.5, speed=2.0),
    ]
    (row,) = compare_report.rows(compare_report.quiet(runs, 0.2))
    assert row.cells["quire"].values == (1.0,) and row.cells["fast"].error == "no quiet run"
    assert "| 1.00 | no quiet run | - | - |" in compare_report.markdown(compare_report.quiet(runs, 0.2))
    assert compare_report.quiet(runs, 0.5) == runs


def test_agreement_counts_first_tokens() -> None:
    other = record("fast", "a", 0, speed=1.0)
    other["calls"] = [{**other["calls"][0], "first_ids": [[7, 2], [9, 1]]}]
    shown = compare_report.markdown([record("quire", "a", 0, speed=1.0), other])
    assert "First tokens that are quire's: 1 of 2." in shown


def test_speed_of_calls() -> None:
    def calls(*seconds: float) -> list[dict[str, Any]]:
        return [{"seconds": one} for one in (100.0, *seconds)]  # the first warms up

    work = workloads.WORKLOADS
    assert compare.speed("a", work["a"], calls(1.0, 2.0)) == pytest.approx(127)
    assert compare.speed("a", work["a"], calls(1.0, 2.0, 3.0, 3.5)) == pytest.approx((127 + 254) / 2)
    assert compare.speed("b", work["b"], calls(4.0, 1.0, 2.0)) == pytest.approx(512)
    assert compare.speed("c", work["c"], calls(2.0)) == pytest.approx((sum(work["c"].prompt_lens) + 64 * 128) / 2)
    assert compare.speed("d", work["d"], calls(1.0)) == pytest.approx(64 * (512 + 32 + 32))


def test_prompts_are_other_ones_in_each_call_and_round() -> None:
    for name in compare.NAMES:
        work = workloads.WORKLOADS.get(name, compare.FIRST_TOKEN)
        calls = [call for run in range(3) for call in compare.calls_of(work, run, 2048)]
        warm_ups = 0 if name == "e" else 3  # of each round the same
        prompts = {tuple(call["prompts"][0]) for call in calls}
        assert len(prompts) == len(calls) - max(0, warm_ups - 1)
        assert list(compare.calls_of(work, 1, 2048)) == list(compare.calls_of(work, 1, 2048))


def test_floor_of_a_workload() -> None:
    shape = CHECKPOINTS.SHAPES["T"]
    body, head = CHECKPOINTS.num_parameters(shape)
    assert head == 2048 * 128
    assert body == 2 * (2 * 128 * 128 + 2 * 64 * 128 + 3 * 128 * 256 + 2 * 128) + 128
    assert CHECKPOINTS.kv_bytes_per_token(shape) == 2 * 2 * 2 * 64
    one = compare.floor(CHECKPOINTS, "T", "a")
    assert one is not None and one["tokens"] == 127
    assert one["steps"] == [(2 * (body + head) + (128 + 64) * 512, 2 * (body + head), 127)]
    shared = compare.floor(CHECKPOINTS, "T", "d")
    assert shared is not None and shared["tokens"] == 64 * (512 + 32 + 32)
    assert shared["steps"][0][1] == 2 * body * (512 + 64 * 32) + 2 * head * 64


def test_checkpoints_are_what_transformers_reads(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    shape = {**CHECKPOINTS.SHAPES["T"], "model_type": "qwen2", "vocab_size": 512}
    CHECKPOINTS.make_checkpoint(shape, tmp_path / "T")
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "T", dtype=torch.bfloat16, output_loading_info=True
    )
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert sum(value.numel() for value in model.parameters()) == sum(CHECKPOINTS.num_parameters(shape))
    assert float(model.lm_head.weight.detach().float().std()) == pytest.approx(CHECKPOINTS.STD, rel=0.02)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "T")
    assert tokenizer.decode(tokenizer("the ü\n")["input_ids"]) == "the ü\n"


def test_gguf_factors_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    rope = pytest.importorskip("transformers.modeling_rope_utils").ROPE_INIT_FUNCTIONS
    values = {name: value for name, value in CHECKPOINTS.SHAPES["L"].items() if name not in ("seed", "model_type")}
    config = transformers.LlamaConfig(**values)
    scaled, _ = rope["llama3"](config, "cpu")
    gguf_file = importlib.import_module("quire_peers.gguf_file")
    factors = gguf_file._rope_factors(values, values["rope_scaling"])
    plain = [values["rope_theta"] ** (-2 * i / 64) for i in range(32)]
    assert [one / factor for one, factor in zip(plain, factors)] == pytest.approx(scaled.tolist(), rel=1e-5)
    assert len({round(factor, 3) for factor in factors}) > 3


def test_run_beside_transformers(tmp_path: Path) -> None:
    """One peer that is there, one that ends with an error, and one that is not installed."""
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    python = tmp_path / "peers/vllm/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho 'no engine in here' >&2\nexit 3\n")
    python.chmod(0o755)
    (tmp_path / "peers/vllm/installed").touch()
    runs, table = tmp_path / "runs.jsonl", tmp_path / "table.md"
    files = ("--json", runs, "--markdown", table, "--peers-dir", tmp_path / "peers")
    what = ("--peers", "transformers,vllm,openvino", "--shapes", "T", "--workloads", "b,e", "--rounds", 1)
    shown = quire("bench", "compare", *what, *files, "--threads", 1)
    assert table.read_text() == shown
    found = [json.loads(line) for line in runs.read_text().splitlines()]
    order = [one["engine"] for one in found if one["workload"] == "b" and "engine" in one]
    assert order == ["quire", "transformers", "quire", "vllm", "quire", "openvino"]
    by_engine = {(one["engine"], one["workload"]): one for one in found if "engine" in one}
    for engine in ("quire", "transformers"):
        one = by_engine[engine, "b"]
        assert one["speed"] > 0 and one["peak_bytes"] > 2**20 and len(one["calls"]) == 4
        start = by_engine[engine, "e"]
        assert start["start_seconds"] > start["load_seconds"] > 0 and start["import_seconds"] > 0
        assert one["limits_before"]["bf16_flops"] > 0 and one["limits_before"]["num_threads"] == 1
    ours, theirs = (by_engine[engine, "b"]["calls"] for engine in ("quire", "transformers"))
    assert [call["first_ids"] for call in ours] == [call["first_ids"] for call in theirs]
    assert by_engine["vllm", "b"]["error"] == "no engine in here"
    assert by_engine["openvino", "e"]["error"].startswith("not installed")
    (torch_flops,) = (one["torch_bf16_flops"] for one in found if "engine" not in one and one["workload"] == "b")
    assert len(torch_flops) == 2 and all(flops > 0 for flops in torch_flops)
    assert "- vllm failed: no engine in here (T b, T e)" in shown and "| transformers | **" in shown
    again = quire("bench", "compare", "--from", runs)
    assert again == shown


def test_a_run_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    job = compare.Job({"quire": PEERS.open_peer("quire", tmp_path)}, tmp_path, 1, 0.5)
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match="not done after"):
        job._start([sys.executable, "-c", "import time; time.sleep(600)"], "quire", "slow")
    assert time.monotonic() - begin < 300
    with pytest.raises(RuntimeError, match="ended with -9"):
        job._start([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], "quire", "gone")


def test_list_of_peers(tmp_path: Path) -> None:
    listed = dict(
        line.split(None, 1) for line in quire("bench", "compare", "--list", "--peers-dir", tmp_path).splitlines()
    )
    assert list(listed) == ["llama.cpp", "openvino", "vllm", "transformers"]
    assert listed["openvino"] == f"not installed (no {tmp_path}/openvino/installed); --setup does it"
    here = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    assert (listed["transformers"] == "ready") == here


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--peers", "vllm,sglang"),
            "there is no peer 'sglang'; there are: llama.cpp, llama.cpp-avx2, openvino, vllm, transformers",
        ),
        (
            ("--peers", "quire"),
            "there is no peer 'quire'; there are: llama.cpp, llama.cpp-avx2, openvino, vllm, transformers",
        ),
        (("--shapes", "S,XL"), "there is no shape 'XL'; there are: S, M, L, T"),
        (("--workloads", "a,f"), "there is no workload 'f'; there are: a, b, c, d, e"),
        (("--workloads", "a,a"), "the workload 'a' is named twice"),
        (("--rounds", 0), "--rounds must be at least 1, got 0"),
        (("--threads", 0), "--threads must be at least 1, got 0"),
        (("--max-foreign", 2), "--max-foreign is a share of the machine, from 0 to 1, got 2.0"),
        (("--timeout", 0), "--timeout must be at least 1, got 0.0"),
        (("--json", "/nowhere/runs.jsonl"), "/nowhere/runs.jsonl cannot be written: there is no folder /nowhere"),
    ],
)
def test_errors(arguments: tuple[object, ...], message: str) -> None:
    assert quire("bench", "compare", *arguments, fails=True) == f"quire: {message}\n"


def test_more_threads_than_cpus() -> None:
    assert "--threads 100000: this process may use" in quire("bench", "compare", "--threads", 100000, fails=True)


def test_picture(tmp_path: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        shown = quire("bench", "compare", "--png", tmp_path / "x.png", fails=True)
        assert shown == "quire: --png needs matplotlib: pip install matplotlib\n"
        return
    compare_report.draw(compare_report.rows(records()), tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_adapters_are_found_or_the_places_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "site/quire/cli/compare.py"
    monkeypatch.setattr(compare, "__file__", str(fake))
    with pytest.raises(ValueError, match="the adapters of the peers are neither in .*cli/peers nor in .*bench/peers"):
        compare.peers_folder()
    packaged = tmp_path / "site/quire/cli/peers/__init__.py"
    packaged.parent.mkdir(parents=True)
    packaged.touch()
    assert compare.peers_folder() == packaged.parent
