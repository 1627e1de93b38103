"""Writes the comparison with other engines into README.md and docs/performance.md, from the runs on record.

    python tools/comparison_table.py            writes the table between the marks in both files
    python tools/comparison_table.py --check    says which file holds another table than the record gives; exit code 1

The full table, with spreads and limits, is what `quire bench compare --from bench/results/engines.jsonl` prints.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from quire.cli import compare_report

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "bench/results/engines.jsonl"
PAGES = ("README.md", "docs/performance.md")
MAX_FOREIGN = 0.15
MARKED = re.compile(r"(<!-- comparison: tools/comparison_table.py -->\n).*?(<!-- /comparison -->)", re.DOTALL)
NAMES = {"openvino": "OpenVINO", "vllm": "vLLM"}


def table() -> str:
    records = [json.loads(line) for line in RECORD.read_text(encoding="utf-8").splitlines() if line]
    rows = compare_report.rows(compare_report.quiet(records, MAX_FOREIGN))
    engines = list(rows[0].cells)
    head = ["", *(NAMES.get(name, name) for name in engines), "times the best peer"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [compare_report.number(row.cells[name].median) if row.cells[name].values else "-" for name in engines]
        better = row.better(row.best_peer)
        label = f"{row.shape} {row.metric.label}, {row.metric.unit}"
        lines.append([label, *cells, f"{better:.2f}" if better is not None else "-"])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes the comparison with other engines into README and docs.")
    parser.add_argument("--check", action="store_true", help="write nothing, say what differs")
    check = parser.parse_args().check
    differing = 0
    for name in PAGES:
        page = ROOT / name
        text = page.read_text(encoding="utf-8")
        new, count = MARKED.subn(lambda found: found[1] + table() + found[2], text)
        if count != 1:
            raise SystemExit(f"{name}: the marks of the comparison stand there {count} times, not once")
        if new != text and check:
            print(f"{name}: another table than {RECORD.relative_to(ROOT)} gives; python tools/comparison_table.py")
            differing = 1
        elif new != text:
            page.write_text(new, encoding="utf-8")
    return differing


if __name__ == "__main__":
    sys.exit(main())
