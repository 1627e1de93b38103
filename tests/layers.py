#!/usr/bin/env python3
"""Checks that #include directives point down: a file may include its own folder and lower layers only.

Reads every C++ file of cpp/, kernels/ and python/bind/, and fails with one line for each include that points up or
sideways, or is not written from a source root (cpp/, kernels/, cpp/include/, python/). It first runs itself on a small
tree with planted mistakes, so that a checker that finds nothing cannot pass. It knows nothing of what the code means.
Usage: python3 tests/layers.py [ROOT]
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

# Folder or single file -> layer. A file that none of them covers is an error: give its folder a layer first.
LAYERS = {
    "cpp/include/quire/span.h": -1,  # plain values, which the recorder of the lowest layer keeps
    "cpp/include/quire/pooling_types.h": 5,  # plain values, which architectures name as defaults
    "cpp/include/quire/types.h": 6,  # plain values, which the engine takes and returns as they are
    "cpp/base": 0,
    "kernels/params": 1,
    "kernels/cpu": 2,
    "kernels/cuda": 2,
    "cpp/device": 3,
    "cpp/tensor": 4,
    "cpp/comm": 5,
    "cpp/model": 6,
    "cpp/engine": 7,
    "cpp/api": 8,
    "cpp/include/quire": 9,
    "python/bind": 10,
}
# The public headers lie above everything, but somebody must implement them.
IMPLEMENTS = {("cpp/api", "cpp/include/quire")}
PUBLIC = "cpp/include/"
SCANNED = ("cpp", "kernels", "python/bind")
ROOTS = ("cpp", "kernels", "cpp/include", "python")
SUFFIXES = {".h", ".hpp", ".cuh", ".cpp", ".cu", ".inl"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


def layer_of(path: str) -> str | None:
    """The entry of LAYERS that covers the file, given its path from the repository root."""
    return next((entry for entry in LAYERS if path == entry or path.startswith(entry + "/")), None)


def may_include(own: str, other: str | None) -> bool:
    return other is not None and (other == own or (own, other) in IMPLEMENTS or LAYERS[other] < LAYERS[own])


def check_file(root: Path, file: Path) -> list[str]:
    name = file.relative_to(root).as_posix()
    own = layer_of(name)
    if own is None:
        return [f"{name}: lies in no layer; list its folder in tests/layers.py"]
    problems = []
    text = file.read_text(encoding="utf-8")
    for match in INCLUDE.finditer(text):
        quoted, target = match[1] == '"', match[2]
        where = f"{name}:{text.count(chr(10), 0, match.start(2)) + 1}"
        found = next((f"{base}/{target}" for base in ROOTS if (root / base / target).is_file()), None)
        if name.startswith(PUBLIC) and ("/" in target or quoted) and not (found or "").startswith(PUBLIC):
            problems.append(f"{where}: {target}: public headers include the standard library and each other alone")
        elif found is None and quoted:
            problems.append(f'{where}: "{target}" is no file below {", ".join(ROOTS)}')
        elif found is not None and not may_include(own, layer_of(found)):
            layer = LAYERS.get(layer_of(found) or "", "unknown")
            problems.append(f"{where}: includes {found} (layer {layer}) from {own} (layer {LAYERS[own]})")
    return problems


def check_tree(root: Path) -> tuple[int, list[str]]:
    files = sorted(f for top in SCANNED for f in (root / top).rglob("*") if f.is_file() and f.suffix in SUFFIXES)
    return len(files), [problem for file in files for problem in check_file(root, file)]


def self_test() -> None:
    """Plants one mistake of each kind beside allowed includes, and expects exactly the mistakes."""
    tree = {
        "cpp/base/check.h": "#include <vector>\n",
        "cpp/base/up.h": '#include "base/check.h"\n  #  include "engine/engine.h"\n',
        "kernels/params/gemm.h": '#include "base/check.h"\n',
        "kernels/cpu/gemm.cpp": '#include "params/gemm.h"\n#include <nlohmann/json.hpp>\n',
        "kernels/cpu/sideways.cpp": '#include "cuda/gemm.cuh"\n',
        "kernels/cuda/gemm.cuh": "",
        "cpp/model/relative.cpp": '#include "arch.h"\n',
        "cpp/model/arch.h": '#include "cpu/threads.h"\n',
        "kernels/cpu/threads.h": "#include <thread>\n",
        "cpp/engine/engine.h": '#include "model/arch.h"\n',
        "cpp/engine/public.cpp": '#include <quire/quire.h>\n#include "quire/types.h"\n',
        "cpp/model/values.cpp": '#include "quire/types.h"\n',
        "cpp/include/quire/types.h": "#include <vector>\n#include <nlohmann/json.hpp>\n",
        "cpp/api/llm.cpp": '#include "quire/quire.h"\n#include "engine/engine.h"\n',
        "cpp/include/quire/quire.h": '#include "quire/types.h"\n#include "quire/version.h"\n#include <string>\n',
        "cpp/include/quire/version.h": '#include "base/check.h"\n',
        "cpp/elsewhere/file.h": "",
        "python/bind/module.cpp": '#include "quire/quire.h"\n#include <pybind11/pybind11.h>\n#include "bind/cast.h"\n',
        "python/bind/cast.h": '#include "base/check.h"\n',
    }
    expected = {
        "cpp/base/up.h:2",
        "kernels/cpu/sideways.cpp:1",
        "cpp/model/relative.cpp:1",
        "cpp/engine/public.cpp:1",
        "cpp/model/values.cpp:1",
        "cpp/include/quire/types.h:2",
        "cpp/include/quire/version.h:1",
        "cpp/elsewhere/file.h",
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, text in tree.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        count, problems = check_tree(Path(folder))
    got = {problem.split(": ", 1)[0] for problem in problems}
    if count != len(tree) or got != expected or len(problems) != len(expected):
        sys.exit(f"layers.py is broken: expected {sorted(expected)} among {len(tree)} files, got {count}, {problems}")


def main() -> None:
    self_test()
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve()
    count, problems = check_tree(root)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems or count == 0:
        sys.exit(f"layers: {len(problems)} includes point the wrong way in {count} files")
    print(f"layers: the includes of {count} files point down")


if __name__ == "__main__":
    main()
