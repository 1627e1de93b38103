#!/usr/bin/env python3
"""Prints what pyproject.toml asks for, one requirement a line, so an environment can be made before quire is built.

Usage: requirements.py build|run|EXTRA... ("build" is what --no-build-isolation needs, "run" the run-time dependencies).
An extra that names extras of quire itself ("quire[torch,test]") is followed. It installs nothing.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10: pip carries the same parser
    from pip._vendor import tomli as tomllib  # type: ignore[no-redef]


def requirements(project: dict, group: str) -> list[str]:
    if group == "build":
        scikit = project["tool"]["scikit-build"]
        return [*project["build-system"]["requires"], f"cmake{scikit['cmake']['version']}", "ninja"]
    if group == "run":
        return project["project"]["dependencies"]
    extras = project["project"]["optional-dependencies"]
    if group not in extras:
        sys.exit(f"requirements.py: no group {group!r}; there are build, run, {', '.join(extras)}")
    lines = []
    for requirement in extras[group]:
        own = re.fullmatch(r"quire\[([\w, -]+)\]", requirement)
        groups = [name.strip() for name in own[1].split(",")] if own else []
        lines += [line for name in groups for line in requirements(project, name)] if own else [requirement]
    return lines


def main() -> None:
    pyproject = Path(__file__).parent.parent / "pyproject.toml"
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    for group in sys.argv[1:]:
        print("\n".join(requirements(project, group)))


if __name__ == "__main__":
    main()
