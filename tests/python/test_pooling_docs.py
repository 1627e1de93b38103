"""The examples of docs/pooling.md run as they are printed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from doc_examples import Page

PAGE = Page("pooling.md")


@pytest.fixture(scope="module")
def names() -> Iterator[dict[str, Any]]:
    made = PAGE.run_first()
    yield made
    made["llm"].close()


@pytest.mark.parametrize("section", PAGE.sections, ids=lambda section: section.splitlines()[0])
def test_examples(names: dict[str, Any], section: str) -> None:
    PAGE.run_section(section, names)


def test_each_method_has_a_section() -> None:
    titles = {section.splitlines()[0] for section in PAGE.sections}
    assert {"embed", "score", "encode", "classify", "reward"} <= titles
