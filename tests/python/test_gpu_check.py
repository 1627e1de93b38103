"""bench/gpu_check.sh without a GPU: every section ends well on the emulation, and the record and the report come out.

The programs are taken from QUIRE_GPU_PROGRAMS, or from the build tree of `make test`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(os.environ.get("QUIRE_GPU_PROGRAMS", ROOT / "build/dev"))
NEEDED = ("test_kernels_simt", "bench_simt_kernels")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [name for name in NEEDED if not any(PROGRAMS.rglob(name))]
    if missing:
        pytest.skip(f"{', '.join(missing)} not built in {PROGRAMS}; set QUIRE_GPU_PROGRAMS")
    folder = tmp_path_factory.mktemp("gpu_check")
    # An empty folder first on the path hides a GPU: what is tested is the way without one.
    hidden = folder / "hidden"
    hidden.mkdir()
    (hidden / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n", encoding="utf-8")
    (hidden / "nvidia-smi").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{hidden}:{os.environ['PATH']}",
        "QUIRE_GPU_PROGRAMS": str(PROGRAMS),
        "PYTHON": sys.executable,
    }
    command = [str(ROOT / "bench/gpu_check.sh"), str(folder / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
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
    (tests,) = [line for line in lines_of(out) if line["kind"] == "tests"]
    assert tests["passed"] > 5
    assert tests["failures"] == []


def test_the_report_claims_nothing_of_a_gpu(out: Path) -> None:
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert not report["is_measured"]
    assert [goal["state"] for goal in report["goals"]] == ["not measured"] * len(report["goals"])
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "These times tell nothing of a GPU" in text
    for heading in ("## Goals", "## Sections", "## Tests", "## decode", "## sampling", "## gemm"):
        assert heading in text
