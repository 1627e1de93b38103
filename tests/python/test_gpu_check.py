"""bench/gpu_check.sh without a GPU: every section ends well on the emulation, and the record and the report come out.

The programs and the package are taken from QUIRE_GPU_PROGRAMS, or from the build tree of `make test`. What only a GPU
gives (floors, goals, traces) is tested on records made up here, whose numbers are chosen and not measured.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(os.environ.get("QUIRE_GPU_PROGRAMS", ROOT / "build/dev"))
NEEDED = ("test_kernels_simt", "test_device_simt", "bench_simt_kernels", "libquire_simt.so")


def check(folder: Path, settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    # A program that finds no GPU first on the path: what is tested is the way without one.
    hidden = folder / "hidden"
    hidden.mkdir()
    (hidden / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n", encoding="utf-8")
    (hidden / "nvidia-smi").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{hidden}:{os.environ['PATH']}",
        "QUIRE_GPU_PROGRAMS": str(PROGRAMS),
        "PYTHON": sys.executable,
        **settings,
    }
    environment.pop("QUIRE_TEST_DEVICE", None)
    command = [str(ROOT / "bench/gpu_check.sh"), str(folder / "out")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [name for name in (*NEEDED, "quire/_quire*.so") if not any(PROGRAMS.rglob(name))]
    if missing:
        pytest.skip(f"{', '.join(missing)} not built in {PROGRAMS}; set QUIRE_GPU_PROGRAMS")
    folder = tmp_path_factory.mktemp("gpu_check")
    done = check(folder, {})
    assert done.returncode == 0, done.stdout + done.stderr + (folder / "out/log.txt").read_text(encoding="utf-8")
    return folder / "out"


def lines_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "record.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_section_ends_well(out: Path) -> None:
    sections = {line["section"]: line["status"] for line in lines_of(out) if line["kind"] == "section"}
    assert sections == {
        "machine": "ok",
        "build": "ok",
        "cases": "ok",
        "benchmark": "ok",
        "peers": "ok",
        "engine": "ok",
        "pytest": "ok",
        "engine_peers": "ok",
        "sanitizer": "skipped",
    }


def test_every_family_has_a_figure_and_a_peer(out: Path) -> None:
    lines = lines_of(out)
    families = {line["case"].split("/")[0] for line in lines if line["kind"] == "case"}
    assert families == {"decode", "prefill", "sampling", "gemm", "norm", "rope_kv_write", "plan"}
    assert [line for line in lines if line["kind"] in ("failed", "skipped")] == []
    peers = {line["case"].split("/")[0] for line in lines if line["kind"] == "peer"}
    assert peers == {"decode", "prefill", "sampling", "gemm", "norm"}
    assert all(line["us"] > 0 for line in lines if line["kind"] in ("case", "peer"))


def test_tests_ran_and_passed(out: Path) -> None:
    tests = {line["group"]: line for line in lines_of(out) if line["kind"] == "tests"}
    assert set(tests) == {"simt", "pytest"}
    assert tests["simt"]["passed"] > 5
    # The one case that `-k plain` selects, test_tokens_of_the_cpu[plain]; `make test` runs through the others.
    assert (tests["pytest"]["passed"], tests["pytest"].get("skipped", 0)) == (1, 0)
    assert [failure for line in tests.values() for failure in line["failures"]] == []


def test_every_workload_of_the_engine_has_a_figure(out: Path) -> None:
    lines = lines_of(out)
    assert [line for line in lines if line["kind"] == "engine_failed"] == []
    figures = [line for line in lines if line["kind"] == "engine"]
    assert {line["workload"] for line in figures} >= {"decode", "throughput", "startup", "memory", "sleep"}
    device = figures[0]["device"]
    assert device in ("simt", "cpu") and {line["device"] for line in figures} == {device}
    decodes = {line["shape"]["batch"]: line for line in figures if line["workload"] == "decode"}
    assert set(decodes) == {1, 4}
    assert all(line["ms"] > 0 and line["floor_ms"] is None for line in decodes.values())
    assert all(line["counters"]["generated_tokens"] > 0 for line in decodes.values())
    (start,) = [line for line in figures if line["workload"] == "startup"]
    phases = sum(start["phases"][name] for name in ("python", "import", "load", "first_token"))
    assert start["seconds"] == pytest.approx(phases, rel=0.05)
    asleep = {line["level"]: line for line in figures if line["workload"] == "sleep"}
    assert set(asleep) == {1, 2}
    for line in asleep.values():
        assert line["sleep_seconds"] > 0 and line["wake_weights_seconds"] > 0
        assert line["graphs_captured_again"] == 0
    traces = {line["source"]: line for line in lines if line["kind"] == "engine_trace"}
    assert set(traces) == ({"stream", "recorder"} if device == "simt" else {"stream"})
    assert len(traces["stream"]["token_us"]) > 3
    if device == "simt":
        assert traces["recorder"]["steps"] >= 6 and traces["recorder"]["kernel_us"]["paged_attention"] > 0
    peers = {(line["peer"], line["case"]) for line in lines if line["kind"] == "engine_peer"}
    assert ("transformers", "decode/toy/b1") in peers


def test_the_report_claims_nothing_of_a_gpu(out: Path) -> None:
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert not report["is_measured"]
    assert [goal["state"] for goal in report["goals"]] == ["not measured"] * len(report["goals"])
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "These times tell nothing of a GPU" in text
    engine = ("## Engine on", "### Decode and throughput", "### Start", "### Steps", "ours over transformers")
    for heading in ("## Goals", "## Sections", "## Tests", "## decode", "## sampling", "## gemm", *engine):
        assert heading in text


def test_a_section_that_fails_ends_no_other(out: Path, tmp_path: Path) -> None:
    """Without the package the engine is not timed, the build says why, and the rest goes on."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in NEEDED:
        (programs / name).symlink_to(next(PROGRAMS.rglob(name)))
    settings = {"QUIRE_GPU_PROGRAMS": str(programs), "QUIRE_GPU_SECTIONS": "build cases engine pytest report"}
    assert check(tmp_path, settings).returncode == 1
    sections = {line["section"]: line for line in lines_of(tmp_path / "out") if line["kind"] == "section"}
    found = {name: line["status"] for name, line in sections.items()}
    assert found == {"build": "failed", "cases": "ok", "engine": "skipped", "pytest": "skipped"}
    assert "no Python package" in sections["build"]["note"]


def test_an_unknown_section_is_refused(tmp_path: Path) -> None:
    done = check(tmp_path, {"QUIRE_GPU_SECTIONS": "build benchmarks"})
    assert done.returncode == 2
    assert "no section benchmarks" in done.stderr


# The programs of bench/ on records and traces that are made up.


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))


class FakeEngine:
    """Takes `slowdown` times the floor, by a clock of its own."""

    def __init__(self, model: str, slowdown: float, monkeypatch: pytest.MonkeyPatch) -> None:
        from gpu_models import work_of

        self.work, self.slowdown, self.now = work_of(model), slowdown, 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def generate(self, prompts: list[list[int]], new_tokens: list[int], temperature: float) -> int:
        lengths = [(len(prompt), new) for prompt, new in zip(prompts, new_tokens)]
        if max(new_tokens) > 1:
            self.now += self.slowdown * self.work.generate_seconds(lengths, 4000.0, 700.0)
        return sum(new_tokens)

    def counters(self) -> dict[str, float]:
        return {"step_seconds": self.now, "device_idle_seconds": 0.02 * self.now, "num_steps": self.now * 100}


def fake_record(monkeypatch: pytest.MonkeyPatch, slowdown: float) -> list[dict[str, Any]]:
    import gpu_workloads as workloads

    ceilings, lines = workloads.Ceilings(4000.0, 700.0), []
    for workload in (
        workloads.decode("llama-8b", "full"),
        workloads.throughput_8b("qwen3-8b", "full"),
        workloads.throughput_nano("qwen3-0.6b", "full"),
    ):
        engine = FakeEngine(workload.model, slowdown, monkeypatch)
        lines += workload.lines(engine, ceilings, workloads.Clock(1e9))
    return [{**line, "device": "cuda"} for line in lines]


@pytest.mark.parametrize("slowdown", [1.0, 1.25])
def test_workloads_measure_what_an_engine_takes(slowdown: float, bench: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_engine_report as report

    lines = fake_record(monkeypatch, slowdown)
    assert {line["kind"] for line in lines} == {"engine"}
    for line in lines:
        assert report.share_of_floor(line) == pytest.approx(1 / slowdown, rel=0.01), line["case"]
    names = [line["case"] for line in lines]
    assert names[0] == "decode/llama-8b/b1" and names[8] == "decode/llama-8b/b256"
    assert names[-3:] == [
        "throughput/qwen3-8b/n256_i1024_o1024",
        "throughput/qwen3-0.6b/nano_n64_quarter",
        "throughput/qwen3-0.6b/nano_n256",
    ]
    assert lines[-1]["shape"] == {"num_prompts": 256, "prompt_tokens": 142827, "output_tokens": 133966}  # nano-vllm's


def test_a_short_time_takes_a_smaller_size(bench: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_workloads as workloads

    workload = workloads.throughput_8b("qwen3-8b", "full")
    engine = FakeEngine("qwen3-8b", 1.0, monkeypatch)
    lines = list(workload.lines(engine, workloads.Ceilings(), workloads.Clock(25.0)))
    found = {line["case"].split("/")[-1]: line["kind"] for line in lines}
    assert found["n256_i1024_o1024"] == "engine_skipped"
    assert [name for name, kind in found.items() if kind == "engine"] == ["n32_i1024_o64", "n256_i1024_o512"]


def goals_of(folder: Path, lines: list[dict[str, Any]]) -> dict[str, str]:
    (folder / "parts").mkdir(exist_ok=True)
    (folder / "parts/engine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    command = [sys.executable, str(ROOT / "bench/gpu_report.py"), str(folder / "parts"), str(folder / "out")]
    subprocess.run(command, check=True, capture_output=True)
    report = json.loads((folder / "out/report.json").read_text(encoding="utf-8"))
    return {goal["goal"]: goal["state"] for goal in report["goals"]}


def test_goals_follow_the_figures(bench: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    start = {"kind": "engine", "case": "startup/llama-8b", "workload": "startup", "model": "llama-8b", "device": "cuda"}
    start |= {"phases": {"load": 2.0}, "reported": {}}
    fast = [*fake_record(monkeypatch, 1.0), {**start, "seconds": 2.5}]
    slow = [*fake_record(monkeypatch, 2.0), {**start, "seconds": 3.5}]
    found = goals_of(tmp_path, fast)
    eight, start_goal = "Llama 8B bf16, batch 1, 1,024 tokens", "start to first token, Llama 8B in the page cache"
    nano, idle = "Qwen3-0.6B, nano-vllm's 256 requests", "GPU idle between steps, Llama 8B, batch 1"
    assert (found[eight], found[nano], found[start_goal], found[idle]) == ("met", "met", "met", "not met")
    assert found["Llama 1B bf16, batch 1, 1,024 tokens"] == "not measured"
    text = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    assert "| 100% |" in text and "tell nothing of a GPU" not in text
    found = goals_of(tmp_path, slow)
    assert {found[name] for name in (eight, nano, start_goal, idle)} == {"not met"}
    assert "not measured" == goals_of(tmp_path, [{**line, "device": "cpu"} for line in fast])[eight]
    # Faster than the bytes allow is no success.
    assert "not measured" == goals_of(tmp_path, fake_record(monkeypatch, 0.5))[eight]


def test_a_trace_is_cut_into_steps(bench: None) -> None:
    """Steps of 3 kernels of 10 us, the last two overlapping, 4 us between steps: 25 us busy of 30."""
    import gpu_trace

    events: list[dict[str, Any]] = []
    for step in range(20):
        begin = 30.0 * step
        for name, at in (("embedding_kernel<bf16>", 0.0), ("gemm", 11.0), ("norm", 16.0)):
            events.append({"ph": "X", "cat": "kernel", "name": name, "ts": begin + at, "dur": 10.0})
        events.append({"ph": "X", "cat": "cuda_runtime", "name": "cudaGraphLaunch", "ts": begin + 1, "dur": 3.0})
    random.Random(0).shuffle(events)
    found = gpu_trace.summary(events)
    assert found["step_us"] == pytest.approx(30)
    assert found["kernels_a_step"] == pytest.approx(3)
    assert found["idle_share"] == pytest.approx(5 / 30)
    assert found["idle_between_steps_share"] == pytest.approx(4 / 30)
    assert found["kernel_us"] == pytest.approx({"embedding_kernel<bf16>": 10, "gemm": 10, "norm": 10})
    assert len(found["spans"]["device"]) == 9 and len(found["spans"]["host"]) == 3
    with pytest.raises(RuntimeError, match="embedding"):
        gpu_trace.summary([event for event in events if "embedding" not in event["name"]])


def test_a_trace_without_all_of_the_device_is_refused(bench: None) -> None:
    """Two steps of two layers on a track of their own, beside the host's."""
    import gpu_trace

    def event(tid: int, category: str, name: str, begin: float, duration: float) -> dict[str, Any]:
        return {"ph": "X", "tid": tid, "cat": category, "name": name, "ts": begin, "dur": duration, "args": {}}

    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "thread_name", "tid": tid, "args": {"name": name}}
        for tid, name in enumerate(("engine", "device stream"))
    ]
    for begin in (0.0, 40.0):
        events += [
            event(0, "step", "step", begin, 35),
            event(1, "step", "step", begin + 10, 20),
            event(1, "kernel", "embedding", begin + 10, 2),
            event(1, "part", "layer 0", begin + 12, 5),
            event(1, "kernel", "gemm", begin + 12, 4),
            event(1, "part", "layer 1", begin + 20, 5),
            event(1, "kernel", "gemm", begin + 20, 3),
        ]
    found = gpu_trace.device_track(events)
    assert (found["steps"], found["step_us"], found["kernels_a_step"]) == (2, 20, 3)
    assert found["kernel_us"] == {"gemm": 7, "embedding": 2}
    with pytest.raises(RuntimeError, match="no track of the device"):
        gpu_trace.device_track([one for one in events if one["args"] != {"name": "device stream"}])
    for name, message in (("layer 1", "other layers"), ("embedding", "with the kernels")):
        last = max(i for i, one in enumerate(events) if one["name"] == name)
        without = [one for i, one in enumerate(events) if one["name"] != name or (name == "layer 1" and i != last)]
        with pytest.raises(RuntimeError, match=message):
            gpu_trace.device_track(without)


def test_a_job_out_of_time_is_killed_with_all_it_started(bench: None, tmp_path: Path) -> None:
    program = tmp_path / "jobs.py"
    program.write_text(
        f"""import sys
sys.path.insert(0, {str(ROOT / "bench")!r})
import subprocess, time
from gpu_jobs import Job, main

def slow(context):
    yield {{"kind": "engine", "case": "first"}}
    child = subprocess.Popen(["sleep", "600"])
    yield {{"kind": "engine", "case": "pid", "pid": child.pid}}
    time.sleep(600)

main("", lambda scale: [Job("slow", 1.0, slow), Job("quick", 1.0, lambda c: iter([{{"kind": "engine", "case": "x"}}]))])
""",
        encoding="utf-8",
    )
    command = [sys.executable, str(program), "--device", "cpu", "--seconds", "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    lines = [json.loads(text) for text in done.stdout.splitlines()]
    assert done.returncode == 1
    by_case = {line["case"]: line for line in lines if line["kind"] != "engine_job"}
    assert "killed after" in by_case["slow"]["reason"]
    assert {"first", "x"} <= set(by_case)
    status = Path(f"/proc/{by_case['pid']['pid']}/stat")
    assert not status.exists() or status.read_text().split()[2] == "Z"


def test_checkpoints_are_what_transformers_would_save(bench: None, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    import gpu_models

    for name in ("toy", "toy-qwen3"):
        folder = gpu_models.write_checkpoint(name, tmp_path / name)
        lm, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        assert lm.dtype == torch.bfloat16
        matrices = [p for p in lm.parameters() if p.dim() == 2]
        untied = 0 if lm.config.tie_word_embeddings else lm.get_input_embeddings().weight.numel()
        assert gpu_models.work_of(name).weight_bytes == 2 * (sum(p.numel() for p in matrices) - untied)
        assert 0.01 < min(p.float().std().item() for p in matrices)
