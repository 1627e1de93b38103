"""Runs one planted bug and passes only if the sanitizer's report names the planted line.

Usage: planted_bugs.py PROGRAM SOURCE NAME SANITIZER. The line is the one marked "// planted: NAME" in SOURCE; the bug
"sound" is none, and must run without a report.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPORTS = {
    "address": ("ERROR: AddressSanitizer", "runtime error:"),
    "thread": ("WARNING: ThreadSanitizer: data race",),
}


def run(command: list[str]) -> tuple[int, str]:
    options = {
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "TSAN_OPTIONS": "exitcode=66",
    }
    done = subprocess.run(command, env=os.environ | options, capture_output=True, text=True, errors="replace")
    return done.returncode, done.stdout + done.stderr


def main() -> None:
    program, source, name, sanitizer = sys.argv[1:]
    code, output = run([program, name])
    if "unexpected memory mapping" in output:  # ThreadSanitizer and too much address randomisation
        code, output = run(["setarch", "-R", program, name])
    reported = any(report in output for report in REPORTS[sanitizer])
    if name == "sound":
        if code != 0 or reported or "ran" not in output:
            sys.exit(f"a correct kernel was reported ({code}):\n{output}")
        return
    lines = Path(source).read_text(encoding="utf-8").splitlines()
    planted = [i + 1 for i, line in enumerate(lines) if line.endswith(f"// planted: {name}")]
    if len(planted) != 1:
        sys.exit(f"{source} marks {name} {len(planted)} times")
    place = f"{Path(source).name}:{planted[0]}"
    if code == 0 or not reported or place not in output:
        sys.exit(f"expected a report that names {place}, got exit status {code}:\n{output}")
    print(next(line for line in output.splitlines() if place in line).strip())


if __name__ == "__main__":
    main()
