"""The README says what the records of the benchmarks say, and its links lead somewhere."""

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_holds_the_medians_of_the_records() -> None:
    command = [sys.executable, str(ROOT / "tools/comparison_table.py"), "--check"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    "workload, said", [("decode", r"([\d.]+) times in single decode"), ("batch", r"([\d.]+) with 64 requests")]
)
def test_ratios_to_transformers_are_those_of_the_record(workload: str, said: str) -> None:
    runs = json.loads((ROOT / "bench/results/compare-S.json").read_text(encoding="utf-8"))["runs"][workload]
    found = re.search(said, README)
    assert found is not None
    assert float(found[1]) == pytest.approx(
        statistics.median(runs["quire"]) / statistics.median(runs["transformers"]), rel=0.02
    )


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#]+)", README)
    assert links
    for link in links:
        assert link.startswith("http") or (ROOT / link).exists(), link
