#!/usr/bin/env python3
"""Compiles every CUDA kernel with nvcc, for every architecture, and says what each one uses.

Decides which kernels are acceptable: none may spill registers unless docs/kernel_spills.txt lists it, a wgmma kernel
must contain HGMMA instructions, and a hot kernel must not touch local memory. Knows nothing of what the kernels
compute; needs nvcc but no GPU. cuobjdump and nvdisasm are taken from PATH or from the wheels nvidia-cuda-cuobjdump and
nvidia-cuda-nvdisasm (the extra quire[kernels]); without them the machine code is not looked at, which is said.

usage: python tools/kernel_report.py [--check] [--only REGEX] [--jobs 2]
  writes the table between the markers in docs/kernels.md; --check compares instead of writing
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "kernels" / "cuda"
DOCUMENT = ROOT / "docs" / "kernels.md"
ALLOWED_SPILLS = ROOT / "docs" / "kernel_spills.txt"
BEGIN, END = "<!-- kernel table: begin -->", "<!-- kernel table: end -->"
ARCHITECTURES = ("80", "90a")
FLAGS = ("-std=c++20", "-O3", "--expt-relaxed-constexpr", f"-I{ROOT / 'kernels'}", f"-I{ROOT / 'cpp'}")


@dataclass(frozen=True)
class Kernel:
    file: str
    arch: str
    name: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_bytes: int


def architectures_of(file: Path) -> tuple[str, ...]:
    """Files named *_sm90* hold instructions that only sm_90a has."""
    return ("90a",) if "_sm90" in file.stem else ARCHITECTURES


def short_name(demangled: str) -> str:
    """quire::cuda::(anonymous namespace)::f<int, 64>(quire::Args) -> f<int, 64>"""
    head = re.sub(r"\((?!anonymous)[^()]*\)\s*$", "", demangled)
    head = re.sub(r"^void ", "", head).replace("(anonymous namespace)::", "")
    return re.sub(r"quire::(cuda::)?", "", head)


def parse(log: str, file: str, arch: str) -> list[Kernel]:
    pattern = re.compile(
        r"Compiling entry function '(?P<name>\w+)' for.*?"
        r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
        r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
        re.DOTALL,
    )
    found = list(pattern.finditer(log))
    names = demangle([match["name"] for match in found])
    kernels = []
    for match, name in zip(found, names, strict=True):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        spills = int(match["stores"]) + int(match["loads"])
        kernels.append(
            Kernel(
                file, arch, short_name(name), int(match["registers"]), int(shared[1]) if shared else 0,
                int(match["stack"]), spills,
            )
        )  # fmt: skip
    return kernels


def demangle(names: list[str]) -> list[str]:
    tool = shutil.which("c++filt")
    if not tool or not names:
        return names
    return subprocess.run([tool, *names], check=True, capture_output=True, text=True).stdout.splitlines()


def find_disassembler() -> dict[str, str] | None:
    """The environment in which cuobjdump runs and finds nvdisasm, or None."""
    wheel = [str(Path(folder) / "nvidia" / "cu13" / "bin") for folder in sys.path if folder]
    path = os.pathsep.join([os.environ.get("PATH", ""), *wheel])
    found = shutil.which("cuobjdump", path=path) and shutil.which("nvdisasm", path=path)
    return {**os.environ, "PATH": path} if found else None


def compile_file(nvcc: str, file: Path, arch: str, folder: Path) -> tuple[list[Kernel], list[str]]:
    name = file.relative_to(KERNELS).as_posix()
    target = folder / f"{name.replace('/', '_')}.{arch}.cubin"
    command = [nvcc, *FLAGS, "-Xptxas", "-v", "-cubin",
               f"-gencode=arch=compute_{arch},code=sm_{arch}", "-o", str(target), str(file)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        return [], [f"{name} does not compile for sm_{arch}:\n{done.stderr}"]
    return parse(done.stderr, name, arch), machine_code_problems(target, name)


def machine_code_problems(cubin: Path, name: str) -> list[str]:
    environment = find_disassembler()
    if environment is None or not re.search("_sm90|attention_bf16|attention_f16|gemm/gemm", name):
        return []
    tool = shutil.which("cuobjdump", path=environment["PATH"])
    listing = subprocess.run(
        [str(tool), "-sass", str(cubin)], check=True, capture_output=True, text=True, env=environment
    ).stdout
    problems = []
    for function in listing.split("Function : ")[1:]:
        kernel = short_name(demangle([function.split("\n", 1)[0].strip()])[0])
        if "_sm90" in name and "HGMMA" not in function:
            problems.append(f"{name}: {kernel} has no HGMMA instruction")
        if re.search(r"\b(LDL|STL)\b", function):
            problems.append(f"{name}: {kernel} uses local memory")
    return problems


def table(kernels: list[Kernel], compiler: str) -> str:
    lines = [
        f"Compiled by nvcc {compiler}.",
        "",
        "| kernel | file | sm | registers | static shared bytes | spill bytes |",
        "|---|---|---|---|---|---|",
    ]
    for k in sorted(kernels, key=lambda k: (k.file, k.name, k.arch)):
        lines.append(f"| `{k.name}` | {k.file} | {k.arch} | {k.registers} | {k.shared_bytes} | {k.spill_bytes} |")
    return "\n".join(lines)


def spill_problems(kernels: list[Kernel]) -> list[str]:
    allowed: dict[str, int] = {}
    if ALLOWED_SPILLS.exists():
        for line in ALLOWED_SPILLS.read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                bytes_text, key = line.split(maxsplit=1)
                allowed[key] = int(bytes_text)
    return [
        f"{k.file}: {k.name} for sm_{k.arch} spills {k.spill_bytes} bytes (allowed: {limit})"
        for k in kernels
        if k.spill_bytes > (limit := allowed.get(f"sm_{k.arch} {k.name}", 0))
    ]


def update_document(text: str, check: bool) -> list[str]:
    document = DOCUMENT.read_text(encoding="utf-8")
    head, rest = document.split(BEGIN)
    old, tail = rest.split(END)
    if check and old.strip().splitlines()[:1] != text.splitlines()[:1]:
        print(f"the table of {DOCUMENT.name} is of another compiler and was not compared", file=sys.stderr)
        return []
    if check:
        return [] if old.strip() == text else [f"{DOCUMENT.name} is out of date; run tools/kernel_report.py"]
    DOCUMENT.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}", encoding="utf-8")
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if docs/kernels.md has another table")
    parser.add_argument("--only", default="", help="only files whose path matches; prints, writes nothing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        sys.exit(
            "kernel_report.py: nvcc is not on PATH; install the CUDA toolkit (13.0 is what the table was made with)"
        )
    files = [file for file in sorted(KERNELS.glob("*/*.cu")) if re.search(arguments.only, str(file))]
    start = time.monotonic()
    kernels: list[Kernel] = []
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        jobs = [
            pool.submit(compile_file, nvcc, file, arch, Path(folder))
            for file in files
            for arch in architectures_of(file)
        ]
        for job in concurrent.futures.as_completed(jobs):
            found, wrong = job.result()
            kernels += found
            problems += wrong
    problems += spill_problems(kernels)
    version = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    text = table(kernels, version.split("release ")[-1].split()[1].lstrip("V"))
    print(text)
    print(f"{len(kernels)} kernels of {len(files)} files in {time.monotonic() - start:.0f} s", file=sys.stderr)
    if find_disassembler() is None:
        print("cuobjdump and nvdisasm not found: the machine code was not looked at", file=sys.stderr)
    if not arguments.only:
        problems += update_document(text, arguments.check)
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
