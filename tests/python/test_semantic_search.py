"""examples/semantic_search finds the paragraphs that the vectors and the reranker say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from quire import LLM

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "semantic_search" / "search.py"
TEXTS = ["The dog found a ball.", "The sun is hot.", "Once upon a time", "She ate an apple."]


def run(*arguments: object, stdin: str = "") -> list[str]:
    command = [sys.executable, str(EXAMPLE), *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, input=stdin)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


@pytest.fixture
def book(tmp_path: Path) -> Path:
    folder = tmp_path / "book"
    folder.mkdir()
    (folder / "one.txt").write_text("\n\n".join(TEXTS[:2]))
    (folder / "two.txt").write_text("\r\n\r\n".join([*TEXTS[2:], TEXTS[0]]))
    return folder


def test_the_nearest_come_first(tiny_model: Path, book: Path) -> None:
    with LLM(str(tiny_model), task="embed") as llm:
        scores = [output.outputs.score for output in llm.score("A red ball", TEXTS, use_tqdm=False)]
    best = sorted(range(4), key=lambda i: -scores[i])[:2]
    count, *lines = run(book, "--model", tiny_model, "--query", "A red ball", "--top", 2)
    assert count == "4 paragraphs"  # one of them stands twice
    assert lines == [f"{scores[i]:7.3f}  {TEXTS[i]}" for i in best]
    asked = run(book, "--model", tiny_model, "--top", 2, stdin="A red ball\n\n")
    assert [line.removeprefix("query> ") for line in asked[1:3]] == lines


def test_a_reranker_has_the_last_word(tiny_model: Path, book: Path, pooling_folders: dict[str, Path]) -> None:
    cross_encoder = pooling_folders["score"]
    with LLM(str(cross_encoder), task="score") as llm:
        scores = [output.outputs.score for output in llm.score("A red ball", TEXTS, use_tqdm=False)]
    best = max(range(4), key=lambda i: scores[i])
    _, line = run(book, "--model", tiny_model, "--rerank", cross_encoder, "--query", "A red ball", "--top", 1)
    assert line == f"{scores[best]:7.3f}  {TEXTS[best]}"
