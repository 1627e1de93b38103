"""Runs the examples of a page of docs/ as they are printed: each section after the lines at the top alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Page:
    def __init__(self, name: str) -> None:
        self.path = Path(__file__).resolve().parents[2] / "docs" / name
        self.text = self.path.read_text(encoding="utf-8")
        self.first, *self.sections = re.split(r"^## (?=.)", self.text, flags=re.MULTILINE)

    def run_first(self) -> dict[str, Any]:
        """The names that the lines at the top make."""
        names: dict[str, Any] = {}
        self._run(self.first, names)
        return names

    def run_section(self, section: str, names: dict[str, Any]) -> None:
        assert self._run(section, dict(names)), "a section has an example"

    def _run(self, part: str, names: dict[str, Any]) -> int:
        blocks = list(BLOCK.finditer(part))
        for match in blocks:
            # At the line where it stands in the page, so that a traceback names it.
            line = self.text[: self.text.index(part) + match.start(1)].count("\n")
            exec(compile("\n" * line + match[1], str(self.path), "exec"), names)
        return len(blocks)
