"""`quire embed` and `quire score`: vectors and scores of the texts of files.

Decides what a line of input means and what is written. All input is read and checked before a model is loaded, and a
file that exists is left alone unless --force is given.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from quire.cli import options

Files = Annotated[
    list[Path] | None,
    typer.Argument(help="Text files, a text a line, or .jsonl files; without any, text from standard input."),
]
Field = Annotated[str, typer.Option(help="The key of the text in a JSON object of a .jsonl file.")]
Output = Annotated[Path | None, typer.Option(help="Write here, not to standard output.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the output file if it exists.")]


def embed(
    model: options.Model,
    files: Files = None,
    field: Field = "text",
    output: Annotated[
        Path | None, typer.Option(help="Write here: JSON lines, or for a name that ends in .npy one float32 array.")
    ] = None,
    force: Force = False,
    dimensions: Annotated[int | None, typer.Option(help="Shorter vectors, of a matryoshka model.")] = None,
    dtype: options.Dtype = None,
    max_model_len: options.MaxModelLen = None,
    num_threads: options.NumThreads = None,
    assignments: options.EngineSet = None,
) -> None:
    """Write the vector of each text, in order."""
    texts = [text for _, text in _texts(files, field)]
    _check_output(output, force)
    from quire import LLM, PoolingParams

    arguments = options.llm_arguments(dtype, max_model_len, num_threads, assignments)
    if not {"task", "runner"} & arguments.keys():
        arguments["task"] = "embed"
    with LLM(model, **arguments) as llm:
        params = PoolingParams(dimensions=dimensions)
        outputs = llm.embed(texts, pooling_params=params, use_tqdm=sys.stderr.isatty())
    vectors = [result.outputs.embedding for result in outputs]
    if output is not None and output.suffix == ".npy":
        import numpy as np

        with output.open("wb") as file:
            np.save(file, np.array(vectors, np.float32))
        return
    rows = ({"text": text, "embedding": vector} for text, vector in zip(texts, vectors, strict=True))
    _write_lines(rows, output)


def score(
    model: options.Model,
    files: Files = None,
    query: Annotated[
        str | None, typer.Option(help="Rank the texts by it. Without it the input is .jsonl, of query and document.")
    ] = None,
    field: Field = "text",
    top: Annotated[int | None, typer.Option(min=1, help="Show this many of the best texts.")] = None,
    as_json: options.AsJson = False,
    output: Output = None,
    force: Force = False,
    dtype: options.Dtype = None,
    max_model_len: options.MaxModelLen = None,
    num_threads: options.NumThreads = None,
    assignments: options.EngineSet = None,
) -> None:
    """Rank texts by a query, or score pairs."""
    if query is None and top is not None:
        raise typer.BadParameter("--top ranks texts, and that needs --query")
    pairs = _pairs(files) if query is None else [(query, text) for _, text in _texts(files, field)]
    _check_output(output, force)
    from quire import LLM

    arguments = options.llm_arguments(dtype, max_model_len, num_threads, assignments)
    if not {"task", "runner"} & arguments.keys():
        arguments["runner"] = "pooling"
    with LLM(model, **arguments) as llm:
        documents = [document for _, document in pairs]
        first: Any = query if query is not None else [question for question, _ in pairs]
        outputs = llm.score(first, documents, use_tqdm=sys.stderr.isatty())
    rows: list[dict[str, Any]] = [
        {"query": question, "document": document, "score": result.outputs.score}
        for (question, document), result in zip(pairs, outputs, strict=True)
    ]
    if query is not None:
        rows = sorted(rows, key=lambda row: -row["score"])[:top]
    if query is None or as_json or output is not None:
        _write_lines(iter(rows), output)
        return
    for row in rows:
        print(f"{row['score']:8.4f}  {row['document']}")


def _lines(files: list[Path] | None) -> Iterator[tuple[str, bool, str]]:
    """Where a line stands, whether it is JSON, and the line; empty ones are left out."""
    sources: list[Path | None] = [*files] if files else [None]
    for path in sources:
        source = "standard input" if path is None else str(path)
        whole = sys.stdin.read() if path is None else path.read_text(encoding="utf-8")
        for number, line in enumerate(whole.split("\n"), 1):
            if line.strip():
                yield f"{source}, line {number}", path is not None and path.suffix == ".jsonl", line


def _parsed(place: str, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place}: not JSON: {error}") from None


def _texts(files: list[Path] | None, field: str) -> list[tuple[str, str]]:
    """Each text behind the place where it stands."""
    found = []
    for place, is_json, line in _lines(files):
        value = _parsed(place, line) if is_json else line
        text = value.get(field) if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise ValueError(f"{place}: wanted a string, or an object with a string as {field!r}, got {line[:80]}")
        found.append((place, text))
    if not found:
        raise ValueError("There are no texts in the input.")
    return found


def _pairs(files: list[Path] | None) -> list[tuple[str, str]]:
    found = []
    for place, _, line in _lines(files):
        value = _parsed(place, line)
        query, document = (value.get("query"), value.get("document")) if isinstance(value, dict) else (None, None)
        if not isinstance(query, str) or not isinstance(document, str):
            raise ValueError(f"{place}: wanted an object with strings as 'query' and 'document', got {line[:80]}")
        found.append((query, document))
    if not found:
        raise ValueError("There are no pairs in the input.")
    return found


def _check_output(output: Path | None, force: bool) -> None:
    if output is not None and output.exists() and not force:
        raise ValueError(f"{output} exists; give another --output, or --force to replace it.")


def _write_lines(rows: Iterator[dict[str, Any]], output: Path | None) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if output is None:
        sys.stdout.writelines(lines)
        return
    with output.open("w", encoding="utf-8") as file:
        file.writelines(lines)
