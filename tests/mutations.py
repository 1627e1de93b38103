#!/usr/bin/env python3
"""Removes barriers, waits and bound checks from the CUDA kernels, one at a time, and says which test notices.

A test that cannot fail proves nothing: each entry of tests/mutations.json takes one line out of a kernel (or changes
it), compiles that kernel for the emulation, and runs the tests of its family in all thread orders. Every mutant must be
caught. Works on copies; needs a build folder in which test_kernels_simt is built. Entries:
  file     the kernel source to change, from the repository root
  source   the .cu files that include it
  find     text that occurs once in the file ("occurrence": n picks the n-th, from 1)
  replace  what stands there instead (default: nothing)
  filter   GoogleTest filter of the tests that may catch it
  why      what it protects

What only reads too far changes no result, and every order of threads may hide a race: mutants that the plain build does
not catch are tried in the build folders of the address and of the thread sanitizer, where these are given.

usage: python tests/mutations.py BUILD_DIR [--address DIR] [--thread DIR] [--only REGEX] [--write]
  --write puts the table into docs/mutations.md
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TARGET = "test_kernels_simt"
TIMEOUT_S = 300


def mutate(text: str, mutation: dict[str, Any]) -> str:
    pieces = text.split(mutation["find"])
    occurrence = mutation.get("occurrence", 1)
    if "occurrence" not in mutation and len(pieces) != 2:
        sys.exit(f"{mutation['file']}: {mutation['find']!r} occurs {len(pieces) - 1} times instead of once")
    if occurrence >= len(pieces):
        sys.exit(f"{mutation['file']}: {mutation['find']!r} occurs only {len(pieces) - 1} times")
    head = mutation["find"].join(pieces[:occurrence])
    return head + mutation.get("replace", "") + mutation["find"].join(pieces[occurrence:])


def compile_commands(build: Path) -> dict[str, list[str]]:
    """Source file (from the root) -> the command that compiles it for the emulation."""
    commands = {}
    for entry in json.loads((build / "compile_commands.json").read_text(encoding="utf-8")):
        file = Path(entry["file"])
        if file.is_relative_to(ROOT) and "/quire_simt.dir/" in entry["command"]:
            commands[file.relative_to(ROOT).as_posix()] = shlex.split(entry["command"])
    return commands


def link_command(build: Path) -> list[str]:
    done = subprocess.run(
        ["ninja", "-C", str(build), "-t", "commands", TARGET], check=True, capture_output=True, text=True
    )
    line = done.stdout.strip().splitlines()[-1]
    line = re.sub(r"^: && | && :$", "", line)
    return shlex.split(line)


def output_of(command: list[str]) -> str:
    return command[command.index("-o") + 1]


def build_mutant(mutation: dict[str, Any], build: Path, folder: Path) -> tuple[Path | None, str]:
    """The test program with the mutation in it, or the compiler's error."""
    shutil.copytree(ROOT / "kernels", folder / "kernels", dirs_exist_ok=True)
    changed = folder / mutation["file"]
    changed.write_text(mutate(changed.read_text(encoding="utf-8"), mutation), encoding="utf-8")
    link = link_command(build)
    commands = compile_commands(build)
    for source in mutation["source"]:
        command = list(commands[source])
        original = output_of(command)
        target = str(folder / (source.replace("/", "_") + ".o"))
        command[command.index("-o") + 1] = target
        # The copy must win over the original, also for files found through the source root.
        command = [part.replace(str(ROOT / "kernels"), str(folder / "kernels")) for part in command]
        done = subprocess.run(command, cwd=build, capture_output=True, text=True)
        if done.returncode != 0:
            return None, done.stderr
        link = [target if part == original else part for part in link]
    program = folder / TARGET
    link[link.index("-o") + 1] = str(program)
    done = subprocess.run(link, cwd=build, capture_output=True, text=True)
    return (program, "") if done.returncode == 0 else (None, done.stderr)


def caught_by(program: Path, test_filter: str) -> str:
    """The first test that notices, or ""."""
    command = [str(program), f"--gtest_filter={test_filter}", "--gtest_fail_fast"]
    try:
        environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment)
    except subprocess.TimeoutExpired:
        return "(does not end)"
    if done.returncode == 0:
        return ""
    failed = re.search(r"\[  FAILED  \] (\S+)", done.stdout)
    running = re.findall(r"\[ RUN      \] (\S+)", done.stdout)
    return failed[1].rstrip(",") if failed else f"{running[-1] if running else '?'} (ends the program)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--address", type=Path)
    parser.add_argument("--thread", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    mutations = json.loads((ROOT / "tests/mutations.json").read_text(encoding="utf-8"))
    lines = ["| kernel file | without | which protects | caught by |", "|---|---|---|---|"]
    survivors = 0
    for mutation in mutations:
        if not re.search(arguments.only, mutation["file"] + " " + mutation["find"]):
            continue
        test = ""
        for build, how in (
            (arguments.build, ""),
            (arguments.address, " (address sanitizer)"),
            (arguments.thread, " (thread sanitizer)"),
        ):
            if build is None:
                continue
            with tempfile.TemporaryDirectory() as folder:
                program, error = build_mutant(mutation, build.resolve(), Path(folder))
                if program is None:
                    sys.exit(f"{mutation['file']} without {mutation['find']!r} does not compile:\n{error}")
                test = caught_by(program, mutation["filter"])
            if test:
                test += how
                break
        survivors += not test
        change = " ".join(mutation["find"].split())
        if "replace" in mutation:
            change += " -> " + " ".join(mutation["replace"].split())
        change = change.replace("|", "\\|")
        lines.append(f"| {mutation['file']} | `{change}` | {mutation['why']} | {test or '**nothing**'} |")
        print(lines[-1], flush=True)
    if arguments.write:
        head = (
            "# What the kernel tests notice\n\nWritten by `python tests/mutations.py BUILD_DIR --write`: each line of "
            "a kernel below was taken out\nor changed, and the test named last failed.\n\n"
        )
        (ROOT / "docs/mutations.md").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    if survivors:
        sys.exit(f"{survivors} mutants were not caught")


if __name__ == "__main__":
    main()
