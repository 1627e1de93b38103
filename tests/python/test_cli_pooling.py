"""quire embed and quire score: what they read and write, and that bad input is named before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quire import LLM
from test_cli import quire

TEXTS = ["The dog found a ball.", "The sun is hot.", "Once upon a time"]


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(TEXTS) + "\n")
    return path


def test_embed(tiny_model: Path, text_file: Path, tmp_path: Path) -> None:
    with LLM(str(tiny_model), task="embed") as llm:
        expected = [output.outputs.embedding for output in llm.embed(TEXTS, use_tqdm=False)]
    rows = [json.loads(line) for line in quire("embed", tiny_model, text_file).splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    assert [row["embedding"] for row in rows] == expected
    lines = tmp_path / "texts.jsonl"
    lines.write_text(json.dumps(TEXTS[0]) + "\n" + "".join(json.dumps({"body": text}) + "\n" for text in TEXTS[1:]))
    assert quire("embed", tiny_model, lines, "--field", "body", "--output", tmp_path / "out.npy") == ""
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), np.array(expected, np.float32))
    (line,) = quire("embed", tiny_model, stdin=TEXTS[1]).splitlines()
    assert json.loads(line) == rows[1]


def test_only_line_feeds_end_a_line(tiny_model: Path, tmp_path: Path) -> None:
    """JSON leaves U+2028 and U+0085 in strings as they are, and `embed` writes them so."""
    text = "The dog\u2028found\x85a ball."
    lines = tmp_path / "texts.jsonl"
    lines.write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    quire("embed", tiny_model, lines, "--output", tmp_path / "out.jsonl")
    quire("embed", tiny_model, tmp_path / "out.jsonl", "--output", tmp_path / "again.jsonl")
    (row,) = (tmp_path / "again.jsonl").read_text(encoding="utf-8").strip("\n").split("\n")
    assert json.loads(row)["text"] == text


def test_score_ranks(tiny_model: Path, text_file: Path) -> None:
    with LLM(str(tiny_model), task="embed") as llm:
        scores = [output.outputs.score for output in llm.score("A dog", TEXTS, use_tqdm=False)]
    order = sorted(range(3), key=lambda i: -scores[i])
    shown = quire("score", tiny_model, text_file, "--query", "A dog").splitlines()
    assert shown == [f"{scores[i]:8.4f}  {TEXTS[i]}" for i in order]
    rows = [
        json.loads(line)
        for line in quire("score", tiny_model, text_file, "--query", "A dog", "--json", "--top", 2).splitlines()
    ]
    assert rows == [{"query": "A dog", "document": TEXTS[i], "score": scores[i]} for i in order[:2]]


def test_score_of_pairs(tiny_model: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"query": text, "document": TEXTS[0]}) + "\n" for text in TEXTS))
    quire("score", tiny_model, pairs, "--output", tmp_path / "scores.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [row["query"] for row in rows] == TEXTS
    assert rows[0]["score"] == pytest.approx(1) and rows[1]["score"] < 1


def test_bad_input_is_named_before_a_model_is_loaded(tmp_path: Path, text_file: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n\n{"text": 3}\n')
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{\n")
    taken = tmp_path / "taken.npy"
    taken.write_text("mine")
    for arguments, part in (
        (("embed", "/no/model", bad), "bad.jsonl, line 3: wanted a string"),
        (("embed", "/no/model", broken), "broken.jsonl, line 1: not JSON"),
        (("embed", "/no/model", tmp_path / "missing.txt"), "missing.txt"),
        (("embed", "/no/model", text_file, "--output", taken), "taken.npy exists"),
        (("score", "/no/model", bad), "bad.jsonl, line 1: wanted an object with strings as 'query' and 'document'"),
    ):
        message = quire(*arguments, fails=True)
        assert message.startswith("quire: ") and part in message, message
    assert taken.read_text() == "mine"
    assert "There are no texts" in quire("embed", "/no/model", stdin="\n\n", fails=True)
    assert "--query" in quire("score", "/no/model", text_file, "--top", 2, fails=True)


RERANKER = {
    "architectures": ["LlamaForSequenceClassification"],
    "classifier_from_token": ["a", "b"],
    "method": "from_2_way_softmax",
}


@pytest.mark.parametrize(
    ("model", "options", "shown"),
    [
        ("embed", {}, {"task": "embed", "pooling": "MEAN, then length 1", "size of an answer": "32"}),
        ("plain", {"pooler_config": {"pooling_type": "ALL", "normalize": False}}, {"pooling": "ALL, then as it is"}),
        ("score", {}, {"task": "score", "pooling": "CLS, then sigmoid", "size of an answer": "1", "token types": "2"}),
        (
            "classify",
            {"task": "classify", "max_num_seqs": 7},
            {"pooling": "CLS, then softmax", "texts a step": "at most 7"},
        ),
        ("decoder", {"task": "reward", "dtype": "bfloat16"}, {"task": "reward", "pooling": "ALL, then as it is"}),
        ("decoder", {"task": "score", "hf_overrides": RERANKER}, {"task": "score", "pooling": "LAST, then sigmoid"}),
    ],
)
def test_info_plans_what_a_pooling_model_takes(
    model: str, options: dict[str, Any], shown: dict[str, str], pooling_folders: dict[str, Path]
) -> None:
    settings = [part for name, value in options.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    plan = json.loads(quire("info", pooling_folders[model], "--json", *settings))
    with LLM(str(pooling_folders[model]), **options) as llm:
        loaded = llm.info()
        assert plan.pop("task") == llm.llm_engine.model_config.task
    taken = {name: seconds for name, seconds in loaded.items() if name.endswith("_seconds")}
    assert {**plan, **taken} == loaded
    assert plan["kv_cache_bytes"] == 0 < plan["step_bytes"] < plan["workspace_bytes"]
    lines = quire("info", pooling_folders[model], *settings).splitlines()
    rows = dict(line.split("  ", 1) for line in lines)
    rows = {name: value.strip() for name, value in rows.items()}
    assert shown.items() <= rows.items()
    assert {"architecture", "longest sequence", "weights", "workspace", "tokens a step", "all together"} <= rows.keys()
    assert "KV cache" not in rows and "scratch of a step" in rows["workspace"]


def test_info_refuses_what_loading_refuses(pooling_folders: dict[str, Path]) -> None:
    for model, setting, part in (
        ("plain", 'pooler_config={"pooling_type": "MAX"}', "Unknown pooling_type 'MAX'"),
        ("plain", "task=generate", "does not support the 'generate' task"),
        ("plain", "task=classify", "does not support the 'classify' task"),
        ("embed", "enable_chunked_prefill=true", "Chunked prefill is not supported"),
        ("embed", 'speculative_config={"method": "ngram", "num_speculative_tokens": 2}', "is for generation"),
        ("embed", "max_model_len=1000", "max_model_len (1000) is greater than"),
    ):
        message = quire("info", pooling_folders[model], "--set", setting, fails=True)
        assert message.startswith("quire: ") and part in message, message


def test_info_counts_a_draft_model(tiny_model: Path) -> None:
    alone = json.loads(quire("info", tiny_model, "--json"))
    draft = json.dumps({"method": "draft_model", "model": str(tiny_model), "num_speculative_tokens": 2})
    both = json.loads(quire("info", tiny_model, "--json", "--set", f"speculative_config={draft}"))
    assert alone["task"] == "generate" and both["weight_bytes"] == 2 * alone["weight_bytes"]
