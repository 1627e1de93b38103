"""The pooling of sentence-transformers: every mode, several joined, and prompts that are left out; against itself.

Models are random BERTs with a tokenizer of words, so the vectors of texts differ in every element.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import TEXT, write_llama
from pooling_models import HIDDEN, MAX_LENGTH, as_sentence_transformer, write_bert
from quire import LLM, PoolingParams

FLAGS = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
# One token, several lengths, and one text that is cut.
TEXTS = ["", "dog", "the little dog", *TEXT, " ".join(TEXT[::-1])]
PROMPTS = {"query": "the cat said: do not take ", "document": "", "long": " ".join(TEXT)}


def flags(*names: str) -> dict[str, Any]:
    return {f"pooling_mode_{name}": name in names for name in FLAGS}


def model(folder: Path, pooling: dict[str, Any], prompts: dict[str, Any] | None = None, **options: Any) -> Path:
    as_sentence_transformer(write_bert(folder), pooling=pooling, **options)
    if prompts is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return folder


def reference(folder: Path) -> Any:
    return pytest.importorskip("sentence_transformers").SentenceTransformer(str(folder), device="cpu")


def embedded(llm: LLM, texts: Any, **options: Any) -> np.ndarray:
    return np.array([output.outputs.embedding for output in llm.embed(texts, use_tqdm=False, **options)])


SINGLE = {mode: ({"pooling_mode": mode}, 1) for mode in MODES}
JOINED = {
    "all flags": (flags(*FLAGS), 6),
    "two flags": (flags("mean_tokens", "max_tokens"), 2),
    "no flag": (flags(), 1),
    "no word": ({}, 1),
    "a list in its own order": ({"pooling_mode": ["weightedmean", "cls", "mean_sqrt_len_tokens"]}, 3),
    "a list of one": ({"pooling_mode": ["max"]}, 1),
    "the newer key wins": ({**flags("cls_token"), "pooling_mode": "lasttoken"}, 1),
}
FLAGGED = {f"flag {name}": (flags(name), 1) for name in FLAGS}
CASES = {**SINGLE, **JOINED, **FLAGGED}


@pytest.mark.parametrize("name", CASES)
def test_modes(name: str, tmp_path: Path) -> None:
    pooling, num_modes = CASES[name]
    folder = model(tmp_path / "model", pooling, normalizes=False)
    want = reference(folder).encode(TEXTS)
    assert want.shape == (len(TEXTS), num_modes * HIDDEN) and np.unique(want.round(3), axis=0).shape == want.shape
    with LLM(str(folder)) as llm:
        assert llm.llm_engine.model_config.task == "embed" and llm.info()["num_outputs"] == num_modes * HIDDEN
        got = embedded(llm, TEXTS)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5)
        for text, vector in zip(TEXTS, got, strict=True):  # neighbours change no bit
            assert np.array_equal(embedded(llm, text)[0], vector)


@pytest.mark.parametrize("name", ["weightedmean", "all flags"])
def test_modes_before_other_modules(name: str, tmp_path: Path) -> None:
    pooling, num_modes = CASES[name]
    unit, dense = model(tmp_path / "unit", pooling), tmp_path / "dense"
    model(dense, pooling, dense=12, num_modes=num_modes)
    for folder in (unit, dense):
        with LLM(str(folder)) as llm:
            np.testing.assert_allclose(embedded(llm, TEXTS), reference(folder).encode(TEXTS), atol=1e-5)
            (output,) = llm.score(TEXT[0], TEXT[1], use_tqdm=False)
            a, b = embedded(llm, TEXT[:2])
            assert output.outputs.score == pytest.approx(a @ b, abs=1e-5)
    short = PoolingParams(dimensions=5)
    with LLM(str(unit), hf_overrides={"is_matryoshka": True}) as llm:
        want = reference(unit).encode(TEXTS, truncate_dim=5)
        want /= np.linalg.norm(want, axis=1, keepdims=True)
        np.testing.assert_allclose(embedded(llm, TEXTS, pooling_params=short), want, atol=1e-5)


def test_vectors_of_tokens_are_not_pooled(tmp_path: Path) -> None:
    unit = model(tmp_path / "unit", flags("max_tokens", "mean_tokens"))
    with LLM(str(unit)) as llm:
        (output,) = llm.encode(TEXT[0], pooling_task="token_embed", use_tqdm=False)
        assert output.outputs.array().shape == (len(output.prompt_token_ids), HIDDEN)
    dense = model(tmp_path / "dense", flags("max_tokens", "mean_tokens"), dense=12, num_modes=2)
    with (
        LLM(str(dense)) as llm,
        pytest.raises(ValueError, match=f"vectors of {HIDDEN}, but .* vectors of {2 * HIDDEN}"),
    ):
        llm.encode(TEXT[0], pooling_task="token_embed", use_tqdm=False)
    with pytest.raises(ValueError, match=f"MEAN gives vectors of {HIDDEN}, but .* {2 * HIDDEN}"):
        LLM(str(dense), pooler_config={"pooling_type": "MEAN"})


@pytest.mark.parametrize("name", ["max", "all flags"])
def test_what_the_caller_says_wins(name: str, tmp_path: Path) -> None:
    pooling, num_modes = CASES[name]
    folder = model(tmp_path / "model", pooling, normalizes=False)
    with LLM(str(folder)) as llm:
        expected = " + ".join(MODES) if num_modes > 1 else name
        assert llm.info()["pooling_type"] == expected
    with LLM(str(folder), pooler_config={"pooling_type": "CLS"}) as llm:
        assert llm.info()["pooling_type"] == "CLS"
        assert embedded(llm, TEXTS).shape == (len(TEXTS), HIDDEN)


@pytest.mark.parametrize(
    ("pooling", "message"),
    [
        (
            {"pooling_mode": "median"},
            'Invalid pooling mode: "median" in .*1_Pooling.*Valid pooling modes are: cls, max',
        ),
        ({"pooling_mode": ["mean", 3]}, "Invalid pooling mode: 3"),
        ({"pooling_mode": []}, "empty list of pooling modes"),
        ({"pooling_mode_median_tokens": True}, "pooling_mode_median_tokens"),
        ({"pooling_mode_max_tokens": "yes"}, "pooling_mode_max_tokens.*wrong type"),
    ],
)
def test_modes_that_are_none(pooling: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        LLM(str(model(tmp_path / "model", pooling)))


# Prompts.


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("name", [*SINGLE, "all flags"])
def test_prompts(name: str, include_prompt: bool, tmp_path: Path) -> None:
    """Without include_prompt a prompt is read, and its tokens are not pooled."""
    pooling = {**CASES[name][0], "include_prompt": include_prompt}
    folder = model(tmp_path / "model", pooling, {"prompts": PROMPTS}, normalizes=False)
    peer = reference(folder)
    with LLM(str(folder)) as llm:
        for prompt in PROMPTS:
            got, want = embedded(llm, TEXTS, prompt_name=prompt), peer.encode(TEXTS, prompt_name=prompt)
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5)
        spelled = embedded(llm, [PROMPTS["query"] + text for text in TEXTS])
        same = np.abs(embedded(llm, TEXTS, prompt_name="query") - spelled).max(axis=1) < 1e-6
        assert same.all() if include_prompt or name == "lasttoken" else not same.any()


def test_prompts_that_are_left_out_and_other_options(tmp_path: Path) -> None:
    pooling = {**flags("mean_tokens"), "include_prompt": False}
    prompts = {"prompts": PROMPTS, "default_prompt_name": "query"}
    folder = model(tmp_path / "model", pooling, prompts, normalizes=False)
    (folder / "1_Pooling").rename(folder / "pooling")  # modules.json names the folder
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = "pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    want = reference(folder).encode(TEXTS, prompt_name="query")
    with LLM(str(folder)) as llm:
        np.testing.assert_allclose(embedded(llm, TEXTS), want, rtol=1e-5, atol=2e-5)
        (encoded,) = llm.encode(TEXT[0], use_tqdm=False)
        np.testing.assert_array_equal(encoded.outputs.array(), embedded(llm, TEXT[0])[0].astype(np.float32))
        (rows,) = llm.encode(TEXT[0], pooling_task="token_embed", use_tqdm=False)
        assert rows.outputs.array().shape == (len(rows.prompt_token_ids), HIDDEN)
        # Each text with parameters of its own, and token ids, which get no prompt.
        each = [PoolingParams(), PoolingParams(use_activation=False), PoolingParams()]
        ids = {"prompt_token_ids": rows.prompt_token_ids}
        mixed = embedded(llm, [TEXT[1], TEXT[2], ids], pooling_params=each)
        np.testing.assert_array_equal(mixed[:2], embedded(llm, TEXT[1:3]))
        assert np.abs(mixed[2] - embedded(llm, TEXT[0])[0]).max() > 1e-3
        (score,) = llm.score(TEXT[0], TEXT[1], use_tqdm=False)
        a, b = embedded(llm, TEXT[:2])
        assert score.outputs.score == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)
        many = embedded(llm, [TEXTS[i % len(TEXTS)] for i in range(300)])  # tokenised in two slices
        np.testing.assert_array_equal(many[: len(TEXTS)], embedded(llm, TEXTS))
        np.testing.assert_array_equal(many[-len(TEXTS) :], np.roll(embedded(llm, TEXTS), -(300 % len(TEXTS)), axis=0))


def test_nothing_is_left_of_a_text(tmp_path: Path) -> None:
    """A tokenizer without a token at the end leaves nothing to pool of an empty text behind a prompt."""
    folder = write_llama(tmp_path)
    pooling = {"pooling_mode": "mean", "include_prompt": False}
    as_sentence_transformer(folder, pooling=pooling)
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": PROMPTS}))
    with LLM(str(folder)) as llm:
        texts = ["The dog", "", "A ball"]
        with pytest.raises(ValueError, match=r"Nothing is left to pool: all .* 'the cat said.* \(prompt 1\)"):
            llm.embed(texts, prompt_name="query", use_tqdm=False)
        first, bad, last = llm.embed(texts, prompt_name="query", use_tqdm=False, on_error="return")
        assert "Nothing is left to pool" in bad.error and bad.outputs is None
        good = llm.embed(["The dog", "A ball"], prompt_name="query", use_tqdm=False)
        assert [first.outputs, last.outputs] == [output.outputs for output in good]
        cut = len(llm.get_tokenizer().encode(PROMPTS["query"]))
        with pytest.raises(ValueError, match="Nothing is left to pool"):
            llm.embed("The dog", prompt_name="query", truncate_prompt_tokens=cut, use_tqdm=False)
        assert len(llm.embed("The dog", prompt_name="query", truncate_prompt_tokens=cut + 1, use_tqdm=False)) == 1


def test_emulated_gpu(tmp_path: Path, simt_plugin: Path) -> None:
    pooling = {**flags(*FLAGS), "include_prompt": False}
    folder = model(tmp_path / "model", pooling, {"prompts": PROMPTS}, dense=12, num_modes=6)
    texts = ["dog", "the little dog", TEXT[0]]
    with LLM(str(folder)) as cpu, LLM(str(folder), device="simt") as gpu:
        for prompt in ("document", "query"):
            got, want = (embedded(llm, texts, prompt_name=prompt) for llm in (gpu, cpu))
            np.testing.assert_allclose(got, want, atol=1e-4)
            assert np.array_equal(embedded(gpu, texts[1], prompt_name=prompt)[0], got[1])


def test_low_precision(tmp_path: Path) -> None:
    """Sums are not rounded to the model's dtype."""
    folder = model(tmp_path / "model", flags(*FLAGS), normalizes=False)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    with LLM(str(folder)) as exact, LLM(str(copy), dtype="bfloat16") as rounded:
        want, got = embedded(exact, TEXT), embedded(rounded, TEXT)
        assert max(len(output.prompt_token_ids) for output in exact.embed(TEXT, use_tqdm=False)) == MAX_LENGTH
        scale = np.abs(want).mean(axis=0)
        assert 0 < (np.abs(got - want).mean(axis=0) / scale).mean() < 0.05
