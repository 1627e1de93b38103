#!/usr/bin/env python3
"""Turns the parts of a run of bench/gpu_check.sh into one record, a report and pictures.

Reads every *.jsonl (sections, machine, ceilings, cases, peers, engine), cases-*.json (GoogleTest) and pytest*.xml of a
folder; writes record.jsonl (all lines, with what the tests said), report.json (tables and goals), report.md and, where
matplotlib is installed, report.png (kernels) and engine.png. Decides what a share and a goal are; a goal is met, not
met, or not measured. What concerns the engine is in gpu_engine_report.py. It needs nothing but Python's own library
otherwise, and makes a report of whatever parts there are.

usage: python bench/gpu_report.py PARTS OUT
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import gpu_engine_report as engine_report

Line = dict[str, Any]
FAMILIES = ("decode", "prefill", "sampling", "gemm", "norm", "rope_kv_write", "plan")
FILTERED = ("top_k", "top_p", "top_k_top_p")


class Record:
    """The lines of a run, by kind."""

    def __init__(self, lines: list[Line]) -> None:
        self.lines = lines
        self.cases = {line["case"]: line for line in lines if line["kind"] == "case"}
        machines = self.of("machine")
        self.machine: Line = machines[0] if machines else {}
        self.is_measured = self.machine.get("backend") == "cuda"
        self.engine = engine_report.EngineLines(lines)
        self.peers: dict[str, dict[str, float]] = {}
        for line in self.of("peer"):
            self.peers.setdefault(self.shape_key(line["case"]), {})[line["peer"]] = line["us"]

    def of(self, *kinds: str) -> list[Line]:
        return [line for line in self.lines if line["kind"] in kinds]

    def ceiling(self, name: str, unit: str = "gb_s") -> float:
        return max((line[unit] for line in self.of("ceiling") if line["name"] == name), default=0.0)

    def shape_key(self, case: str) -> str:
        """Kernels of ours that work on one shape share its peers, whatever their pages."""
        whole = self.cases.get(case, {}).get("shape", {})
        shape = {key: value for key, value in whole.items() if key not in ("kernel", "page")}
        return case.split("/")[0] + json.dumps(shape, sort_keys=True)

    def peers_of(self, case: str) -> dict[str, float]:
        return self.peers.get(self.shape_key(case), {})

    def share(self, case: str) -> float | None:
        """Of the bandwidth of a copy."""
        copy = self.ceiling("copy")
        return self.cases[case]["gb_s"] / copy if case in self.cases and copy > 0 else None


def read_lines(parts: Path) -> list[Line]:
    lines = []
    for path in sorted(parts.glob("*.jsonl")):
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue  # the last line of a program that was killed
            if isinstance(line, dict) and "kind" in line:
                lines.append(line)
    return lines


def read_tests(path: Path) -> Line:
    """What GoogleTest wrote, as one line."""
    line: Line = {"kind": "tests", "group": path.stem.removeprefix("cases-")}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {**line, "run": 0, "passed": 0, "skipped": 0, "failures": ["no report: the program was killed"]}
    tests = [test for suite in report["testsuites"] for test in suite["testsuite"] if test["status"] == "RUN"]
    failed = [test for test in tests if test.get("failures")]
    skipped = sum(test.get("result") == "SKIPPED" for test in tests)
    failures = [
        f"{test['classname']}.{test['name']}: {test['failures'][0]['failure'].strip()[:400]}" for test in failed
    ]
    passed = len(tests) - len(failed) - skipped
    return {**line, "run": len(tests), "passed": passed, "skipped": skipped, "failures": failures}


def read_pytest(path: Path) -> Line:
    """What pytest wrote with --junitxml, as one line."""
    line: Line = {"kind": "tests", "group": path.stem}
    try:
        cases = list(ElementTree.parse(path).iter("testcase"))
    except (ElementTree.ParseError, OSError):
        return {**line, "run": 0, "passed": 0, "skipped": 0, "failures": ["no report: the program was killed"]}
    failures, skipped = [], 0
    for case in cases:
        wrong = case.find("failure") if case.find("failure") is not None else case.find("error")
        skipped += case.find("skipped") is not None
        if wrong is not None:
            text = (wrong.get("message") or wrong.text or "").strip()
            failures.append(f"{case.get('classname')}.{case.get('name')}: {text[:400]}")
    return {**line, "run": len(cases), "passed": len(cases) - len(failures) - skipped, "skipped": skipped,
            "failures": failures}  # fmt: skip


# Goals ---------------------------------------------------------------------------------------------------------------


def goal(name: str, wanted: str, value: float | None, is_met: bool, text: str) -> Line:
    state = "not measured" if value is None else "met" if is_met else "not met"
    return {"goal": name, "wanted": wanted, "value": value, "state": state, "got": text if value is not None else "-"}


def decode_goal(record: Record, length: int, wanted: float) -> Line:
    share = record.share(f"decode/d128/b64/l{length}/uniform") if record.is_measured else None
    got = f"{share:.0%}" if share is not None else "-"
    name = f"paged decode, 64 x {length}, head_dim 128"
    return goal(name, f"at least {wanted:.0%} of a copy's bandwidth", share, (share or 0) >= wanted, got)


def prefill_goal(record: Record) -> Line:
    found = {kernel: record.cases.get(f"prefill/d128/l4096/{kernel}") for kernel in ("sm90", "sm90_p128", "paged")}
    rates = {kernel: line["tflop_s"] for kernel, line in found.items() if line and record.is_measured}
    best = max(rates, key=lambda kernel: rates[kernel], default=None)
    value = rates[best] if best else None
    got = f"{value:.0f} TFLOP/s ({best})" if value is not None else "-"
    return goal("prefill, head_dim 128, causal, 4096", "at least 560 TFLOP/s", value, (value or 0) >= 560, got)


def sampling_goal(record: Record) -> Line:
    times = {wish: record.cases.get(f"sampling/v131072/b128/{wish}") for wish in FILTERED}
    measured = {wish: line["us"] for wish, line in times.items() if line and record.is_measured}
    worst = max(measured, key=lambda wish: measured[wish], default=None)
    value = measured[worst] if worst else None
    got = f"{value:.1f} us ({worst}, the slowest filter)" if value is not None else "-"
    return goal("sampling, 128 x 131,072", "at most 60 us", value, value is not None and value <= 60, got)


def gemm_goal(record: Record, model: str) -> Line:
    shares: dict[str, float] = {}
    for case, line in record.cases.items():
        if record.is_measured and case.startswith(f"gemm/{model}/") and line["shape"]["m"] <= 16:
            shares[case] = record.share(case) or 0.0
    worst = min(shares, key=lambda case: shares[case], default=None)
    value = shares[worst] if worst else None
    got = f"{value:.0%} ({worst}, the worst)" if value is not None else "-"
    name = f"gemm, M <= 16, Llama {model} shapes"
    return goal(name, "at least 85% of a copy's bandwidth", value, (value or 0) >= 0.85, got)


def goals_of(record: Record) -> list[Line]:
    return [
        decode_goal(record, 1024, 0.75),
        decode_goal(record, 8192, 0.90),
        prefill_goal(record),
        sampling_goal(record),
        gemm_goal(record, "8b"),
        gemm_goal(record, "1b"),
        *engine_report.goals(record.engine),
    ]


# Markdown ------------------------------------------------------------------------------------------------------------


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]) + "\n"


def family_rows(record: Record, family: str) -> tuple[list[str], list[list[str]]]:
    """Ours, its shares of the ceilings, and for each peer its time over ours: above 1 we are faster."""
    cases = [case for case in record.cases if case.split("/")[0] == family]
    peers = list(dict.fromkeys(peer for case in cases for peer in record.peers_of(case)))
    copy, read, matmul = record.ceiling("copy"), record.ceiling("read"), record.ceiling("torch_matmul", "tflop_s")
    rows = []
    for case in cases:
        line = record.cases[case]
        us, gb_s, tflop_s = line["us"], line.get("gb_s"), line.get("tflop_s")
        theirs = record.peers_of(case)
        rows.append(
            [
                case,
                f"{us:.2f}",
                f"{gb_s:.0f}" if gb_s else "-",
                f"{gb_s / copy:.0%}" if gb_s and copy else "-",
                f"{gb_s / read:.0%}" if gb_s and read else "-",
                f"{tflop_s:.1f}" if tflop_s else "-",
                f"{tflop_s / matmul:.0%}" if tflop_s and matmul else "-",
                *(f"{theirs[peer] / us:.2f}" if peer in theirs else "-" for peer in peers),
            ]
        )
    head = ["case", "us", "GB/s", "of copy", "of read", "TFLOP/s", "of matmul", *(f"{peer} / ours" for peer in peers)]
    return head, rows


def sections_text(record: Record) -> str:
    rows = [
        [line["section"], line["status"], f"{line['seconds']:.0f} s", line.get("note", "")]
        for line in record.of("section")
    ]
    return table(["section", "status", "time", ""], rows)


def tests_text(record: Record) -> str:
    lines = record.of("tests")
    if not lines:
        return "No test ran.\n"
    rows = [
        [line["group"], str(line["run"]), str(line["passed"]), str(line["skipped"]), str(len(line["failures"]))]
        for line in lines
    ]
    text = table(["group", "run", "passed", "skipped", "failed"], rows)
    failures = [failure for line in lines for failure in line["failures"]]
    for failure in failures[:40]:
        text += "\n- `" + failure.replace("\n", " ").replace("`", "'") + "`"
    return text + (f"\n- and {len(failures) - 40} more\n" if len(failures) > 40 else "\n")


def ceilings_text(record: Record) -> str:
    found = [("copy", "gb_s", "GB/s"), ("read", "gb_s", "GB/s"), ("torch_copy", "gb_s", "GB/s")]
    parts = [f"{name} {record.ceiling(name):.0f} {unit}" for name, key, unit in found if record.ceiling(name)]
    if record.ceiling("torch_matmul", "tflop_s"):
        parts.append(f"bf16 matmul {record.ceiling('torch_matmul', 'tflop_s'):.1f} TFLOP/s")
    return "Ceilings of this run: " + (", ".join(parts) if parts else "none measured") + ".\n"


def name_of(record: Record) -> str:
    devices = [line["text"].split(",")[0] for line in record.of("device")]
    return record.machine.get("name") or (devices[0] if devices else "no device")


def markdown(record: Record, goals: list[Line]) -> str:
    text = "# Kernels and engine: " + name_of(record) + "\n\n"
    if not record.is_measured and not record.engine.is_measured:
        text += "**No GPU: the emulation at toy sizes. These times tell nothing of a GPU; no goal is measured.**\n\n"
    for line in record.of("device"):
        text += f"{line['text']}\n\n"
    for line in record.of("peers"):
        text += "Peers: " + ", ".join(f"{k} {v}" for k, v in line["versions"].items() if v) + ".\n\n"
        break
    text += ceilings_text(record) + "\n## Goals\n\n"
    text += table(["goal", "wanted", "got", ""], [[g["goal"], g["wanted"], g["got"], g["state"]] for g in goals])
    text += "\n## Sections\n\n" + sections_text(record) + "\n## Tests\n\n" + tests_text(record)
    for family in FAMILIES:
        head, rows = family_rows(record, family)
        if rows:
            text += f"\n## {family}\n\n" + table(head, rows)
    text += engine_report.text(record.engine)
    missing = record.of("failed", "skipped", "peer_failed", "engine_failed", "engine_skipped")
    if missing:
        text += "\n## What gave no figure\n\n"
    for line in missing[:60]:
        who = f" ({line['peer']})" if "peer" in line else ""
        text += f"- {line['kind']}: {line['case']}{who}: {line['reason']}\n"
    return text + (f"- and {len(missing) - 60} more, in record.jsonl\n" if len(missing) > 60 else "")


# Picture -------------------------------------------------------------------------------------------------------------


def series(record: Record, prefix: str, x: str, y: str, suffix: str = "") -> tuple[list[float], list[float]]:
    """Points of the cases between prefix and suffix, by a value of their shape; y "share" is of a copy's bandwidth."""
    points = []
    for case, line in record.cases.items():
        if case.startswith(prefix) and case.endswith(suffix) and x in line["shape"]:
            value = (record.share(case) or 0.0) * 100 if y == "share" else line.get(y)
            if value:
                points.append((float(line["shape"][x]), value))
    points.sort()
    return [p[0] for p in points], [p[1] for p in points]


def peer_series(record: Record, prefix: str, suffix: str, x: str, y: str, peer: str) -> tuple[list[float], list[float]]:
    points = []
    for case, line in record.cases.items():
        us = record.peers_of(case).get(peer)
        if case.startswith(prefix) and case.endswith(suffix) and us:
            value = us if y == "us" else line["flops"] / us * 1e-6
            points.append((float(line["shape"][x]), value))
    points.sort()
    return [p[0] for p in points], [p[1] for p in points]


def draw(record: Record, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(13, 9), layout="constrained")
    peers = sorted({peer for of_shape in record.peers.values() for peer in of_shape})

    def plot(where: Any, points: tuple[list[float], list[float]], label: str, style: str = "o-") -> None:
        if points[0]:
            where.plot(*points, style, label=label)

    decode, prefill, sampling, gemm = axes.flat
    dims = sorted({line["shape"]["head_dim"] for case, line in record.cases.items() if case.startswith("decode/")})
    for dim in dims:
        for batch in (1, 8, 64, 256):
            plot(decode, series(record, f"decode/d{dim}/b{batch}/", "length", "share", "uniform"), f"d{dim}, {batch}")
    decode.set(title="paged decode, uniform lengths", xlabel="keys", ylabel="% of a copy's bandwidth")
    for dim in (64, 128, 256):
        for kernel in ("sm90", "sm90_p128", "paged"):
            plot(prefill, series(record, f"prefill/d{dim}/", "length", "tflop_s", f"/{kernel}"), f"d{dim} {kernel}")
    for peer in peers:
        points = peer_series(record, "prefill/d128/", "/paged", "length", "tflop_s", peer)
        plot(prefill, points, f"d128 {peer}", "x--")
    prefill.set(title="prefill, causal", xlabel="tokens of a sequence", ylabel="TFLOP/s")
    vocabularies = {line["shape"]["vocab_size"] for line in record.cases.values() if "vocab_size" in line["shape"]}
    for vocab in sorted(vocabularies)[-1:]:
        for wish in ("greedy", *FILTERED):
            plot(sampling, series(record, f"sampling/v{vocab}/", "batch", "us", f"/{wish}"), wish)
        for peer in peers:
            points = peer_series(record, f"sampling/v{vocab}/", "/top_k_top_p", "batch", "us", peer)
            plot(sampling, points, f"top_k_top_p {peer}", "x--")
        sampling.set_title(f"sampling, {vocab:,} tokens")
    sampling.set(xlabel="rows", ylabel="us")
    for model in ("8b", "1b", "toy"):
        for linear in ("qkv", "o", "gate_up", "down", "head"):
            plot(gemm, series(record, f"gemm/{model}/{linear}/", "m", "share"), f"{model} {linear}")
    gemm.set(title="weight-streaming gemm", xlabel="rows (M)", ylabel="% of a copy's bandwidth")
    for each in axes.flat:
        each.grid(alpha=0.3)
        each.spines[["top", "right"]].set_visible(False)
        if each.lines:
            each.set_xscale("log", base=2)
            each.set_ylim(bottom=0)
            each.legend(frameon=False, fontsize=7)
    if sampling.lines:
        sampling.set_yscale("log")
    name = name_of(record)
    figure.suptitle(name if record.is_measured else f"{name}: a test of the report, times without meaning")
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    tests = [read_tests(path) for path in sorted(arguments.parts.glob("cases-*.json"))]
    tests += [read_pytest(path) for path in sorted(arguments.parts.glob("pytest*.xml"))]
    record = Record(read_lines(arguments.parts) + tests)
    goals = goals_of(record)
    text = "".join(json.dumps(line) + "\n" for line in record.lines)
    (arguments.out / "record.jsonl").write_text(text, encoding="utf-8")
    tables = {}
    for family in FAMILIES:
        head, rows = family_rows(record, family)
        tables[family] = [dict(zip(head, row)) for row in rows]
    report = {
        "machine": record.machine,
        "is_measured": record.is_measured or record.engine.is_measured,
        "ceilings": record.of("ceiling"),
        "goals": goals,
        "sections": record.of("section"),
        "tests": tests,
        "tables": tables,
        "engine": {
            heading: [dict(zip(head, row)) for row in rows]
            for heading, head, rows in engine_report.tables(record.engine)
        },
    }
    (arguments.out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "report.md").write_text(markdown(record, goals), encoding="utf-8")
    try:
        if record.cases or not record.engine.cases:
            draw(record, arguments.out / "report.png")
        ceilings = (
            record.ceiling("copy") or record.ceiling("torch_copy"),
            record.ceiling("torch_matmul", "tflop_s"),
        )
        kernels = list(record.cases.values())
        engine_report.draw(record.engine, kernels, ceilings, name_of(record), arguments.out / "engine.png")
    except ImportError as error:
        print(f"no picture: {error}")
    for each in goals:
        print(f"{each['state']:>12}  {each['goal']}: {each['got']} (wanted {each['wanted']})")


if __name__ == "__main__":
    main()
