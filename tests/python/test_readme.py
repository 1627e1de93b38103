"""The README says what the records of the benchmarks say, and its links lead somewhere."""

import json
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROWS = {"start": "process start", "decode": "decode, one", "batch": "64 requests", "prefill": "prefill of"}


@pytest.mark.parametrize("shape, first_cell", [("S", 2), ("M", 5)])
@pytest.mark.parametrize("workload", ROWS)
def test_the_table_holds_the_medians_of_the_records(shape: str, first_cell: int, workload: str) -> None:
    runs = json.loads((ROOT / f"bench/results/compare-{shape}.json").read_text(encoding="utf-8"))["runs"][workload]
    ours, theirs = (statistics.median(runs[engine]) for engine in ("quire", "transformers"))
    row = next(line for line in README.splitlines() if line.startswith(f"| {ROWS[workload]}"))
    said = [float(cell.replace(",", "")) for cell in row.split("|")[first_cell : first_cell + 3]]
    assert said[0] == pytest.approx(ours, rel=0.01)
    assert said[1] == pytest.approx(theirs, rel=0.01)
    assert said[2] == pytest.approx(theirs / ours if workload == "start" else ours / theirs, rel=0.05)


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#]+)", README)
    assert links
    for link in links:
        assert link.startswith("http") or (ROOT / link).exists(), link
