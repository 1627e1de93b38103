"""The examples of docs/memory.md run as they are printed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from doc_examples import BLOCK, Page

PAGE = Page("memory.md")
RUNNABLE = [section for section in PAGE.sections if BLOCK.search(section)]


@pytest.fixture(scope="module")
def names() -> Iterator[dict[str, Any]]:
    made = PAGE.run_first()
    yield made
    made["llm"].close()


@pytest.mark.parametrize("section", RUNNABLE, ids=lambda section: section.splitlines()[0])
def test_examples(names: dict[str, Any], section: str) -> None:
    PAGE.run_section(section, names)
    assert not names["llm"].is_sleeping()


def test_there_is_something_to_run() -> None:
    assert len(RUNNABLE) >= 5
