"""The examples of docs/decoding.md run as they are printed, each section after the lines at the top alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "decoding.md"
FIRST, *SECTIONS = re.split(r"^## (?=.)", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def padded(section: str, match: re.Match[str]) -> str:
    """The code at the line where it stands in the page, so that a traceback names it."""
    page = PAGE.read_text(encoding="utf-8")
    return "\n" * page[: page.index(section) + match.start(1)].count("\n") + match[1]


@pytest.fixture(scope="module")
def names() -> Iterator[dict[str, Any]]:
    made: dict[str, Any] = {}
    for match in BLOCK.finditer(FIRST):
        exec(compile(padded(FIRST, match), str(PAGE), "exec"), made)
    yield made
    made["llm"].close()


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.splitlines()[0])
def test_examples(names: dict[str, Any], section: str) -> None:
    own = dict(names)
    blocks = list(BLOCK.finditer(section))
    assert blocks, "a section has an example"
    for match in blocks:
        exec(compile(padded(section, match), str(PAGE), "exec"), own)
    stats = names["llm"].stats()
    assert stats["num_running"] == stats["num_waiting"] == 0


def test_there_is_something_to_run() -> None:
    assert len(SECTIONS) >= 8 and len(BLOCK.findall(PAGE.read_text(encoding="utf-8"))) > len(SECTIONS)
