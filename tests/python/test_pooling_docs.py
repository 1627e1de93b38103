"""The examples of docs/pooling.md run as they are printed.

The models that they name, besides the embedded one, are small random ones of the same architectures, in folders
of these names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doc_examples import Page
from pooling_models import (
    HIDDEN,
    as_sentence_transformer,
    write_bert,
    write_process_reward_model,
    write_qwen3_with_answers,
)
from safetensors.numpy import load_file, save_file

PAGE = Page("pooling.md")


def write_colbert(folder: Path) -> None:
    write_bert(folder, architectures=["HF_ColBERT"], colbert_dim=12)
    file = folder / "model.safetensors"
    tensors = {f"bert.{name}": tensor for name, tensor in load_file(file).items()}
    tensors["linear.weight"] = np.random.default_rng(3).standard_normal((12, HIDDEN)).astype(np.float32)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def model_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("named")
    as_sentence_transformer(write_bert(root / "sentence-transformers/all-MiniLM-L6-v2"))
    write_bert(root / "cross-encoder/ms-marco-MiniLM-L6-v2", 1)
    write_bert(root / "ProsusAI/finbert", 3)
    write_colbert(root / "colbert-ir/colbertv2.0")
    write_qwen3_with_answers(root / "Qwen/Qwen3-Reranker-0.6B")
    write_process_reward_model(root / "Qwen/Qwen2.5-Math-PRM-7B")
    joined = {"pooling_mode": ["cls", "max", "mean"]}
    as_sentence_transformer(write_bert(root / "example/joined-modes"), pooling=joined)
    prompted = as_sentence_transformer(write_bert(root / "mixedbread-ai/mxbai-embed-large-v1"), "cls_token")
    prompts = {"query": "Represent this sentence for searching relevant passages: ", "passage": ""}
    (prompted / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    return root


@pytest.fixture(scope="module")
def names() -> Iterator[dict[str, Any]]:
    made = PAGE.run_first()
    yield made
    made["llm"].close()


@pytest.mark.parametrize("section", PAGE.sections, ids=lambda section: section.splitlines()[0])
def test_examples(names: dict[str, Any], section: str, model_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model_root)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # a name without a folder shall fail, not be fetched
    PAGE.run_section(section, names)


def test_each_method_has_a_section() -> None:
    titles = {section.splitlines()[0] for section in PAGE.sections}
    assert {"embed", "score", "encode", "classify", "reward", "Rerankers", "Prompts"} <= titles
