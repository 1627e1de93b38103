"""The examples of docs/decoding.md run as they are printed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from doc_examples import BLOCK, Page

PAGE = Page("decoding.md")


@pytest.fixture(scope="module")
def names() -> Iterator[dict[str, Any]]:
    made = PAGE.run_first()
    yield made
    made["llm"].close()


@pytest.mark.parametrize("section", PAGE.sections, ids=lambda section: section.splitlines()[0])
def test_examples(names: dict[str, Any], section: str) -> None:
    PAGE.run_section(section, names)
    stats = names["llm"].stats()
    assert stats["num_running"] == stats["num_waiting"] == 0


def test_there_is_something_to_run() -> None:
    assert len(PAGE.sections) >= 8 and len(BLOCK.findall(PAGE.text)) > len(PAGE.sections)
