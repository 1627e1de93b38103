"""The examples of docs/weights.md run as they are printed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doc_examples import BLOCK, Page

pytest.importorskip("torch")

PAGE = Page("weights.md")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("cwd"))
        made = PAGE.run_first()
        yield made
        made["llm"].close()
        (folder,) = Path().iterdir()
        assert folder.name == "traces" and len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("section", PAGE.sections, ids=lambda section: section.splitlines()[0])
def test_examples(names: dict[str, Any], section: str) -> None:
    PAGE.run_section(section, names)


def test_there_is_something_to_run() -> None:
    assert len(PAGE.sections) >= 6 and len(BLOCK.findall(PAGE.text)) > len(PAGE.sections)
