"""score as vLLM has it, bad prompts of all pooling methods, and calls side by side.

Models are random BERTs with a tokenizer of words; what they compute is compared in models/test_pooling_parity.py.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import TEXT
from pooling_models import MAX_LENGTH
from quire import (
    LLM,
    EmbeddingRequestOutput,
    ScoringRequestOutput,
)
from quire.errors import RequestError


def vectors(outputs: list[EmbeddingRequestOutput]) -> np.ndarray:
    return np.array([output.outputs.embedding for output in outputs])


# score (spec 2.7).


def test_cross_encoder_pairs(scorer: LLM) -> None:
    hf = scorer.get_tokenizer()
    query, documents = TEXT[0], TEXT[1:3]
    outputs = scorer.score(query, documents, use_tqdm=False)
    assert [type(output) for output in outputs] == [ScoringRequestOutput] * 2
    for document, output in zip(documents, outputs, strict=True):
        pair = hf(query, document, truncation=True, max_length=MAX_LENGTH + 8, return_token_type_ids=True)
        assert output.prompt_token_ids == pair["input_ids"] and 1 in pair["token_type_ids"]
        prompt = {"prompt_token_ids": pair["input_ids"], "token_type_ids": pair["token_type_ids"]}
        (same,) = scorer.encode(prompt, use_tqdm=False)
        assert output.outputs.score == float(same.outputs.array()[0])
        (untyped,) = scorer.encode({"prompt_token_ids": pair["input_ids"]}, use_tqdm=False)
        assert output.outputs.score != float(untyped.outputs.array()[0])
        assert 0 < output.outputs.score < 1
    assert outputs[0].outputs.score != outputs[1].outputs.score
    assert repr(outputs[0].outputs) == f"ScoringOutput(score={outputs[0].outputs.score})"
    with pytest.warns(DeprecationWarning, match="`score` attribute"):
        assert outputs[0].outputs.embedding == [outputs[0].outputs.score]
    (cut,) = scorer.score(query, documents[0], truncate_prompt_tokens=9, use_tqdm=False)
    assert cut.prompt_token_ids == hf(query, documents[0], truncation=True, max_length=9)["input_ids"]


def test_score_of_several_labels(pooling_folders: dict[str, Path]) -> None:
    with LLM(str(pooling_folders["classify"])) as llm:
        with pytest.raises(ValueError, match="pooled_data should be a scalar score"):
            llm.score("a", "b", use_tqdm=False)


def test_score_lengths(scorer: LLM, embedder: LLM) -> None:
    for llm in (scorer, embedder):
        assert len(llm.score("a", "b", use_tqdm=False)) == 1
        assert len(llm.score("a", ["b", "c", "d"], use_tqdm=False)) == 3
        one_to_one = llm.score(["a", "cat"], ["b", "dog"], use_tqdm=False)
        for (first, second), output in zip((("a", "b"), ("cat", "dog")), one_to_one, strict=True):
            assert llm.score(first, second, use_tqdm=False)[0].outputs == output.outputs
        for first, second in ((["a", "b"], "c"), (["a", "b"], ["c", "d", "e"])):
            with pytest.raises(ValueError, match="Input lengths must be either 1:1, 1:N or N:N"):
                llm.score(first, second)
        with pytest.raises(ValueError, match="At least one text element must be given"):
            llm.score([], [])
        with pytest.raises(ValueError, match="At least one text_pair element must be given"):
            llm.score("a", [])
        with pytest.raises(ValueError, match="Multi-modal prompt is not supported for scoring"):
            llm.score({"prompt": "a", "multi_modal_data": {"image": 1}}, "b")


def test_bi_encoder_cosine(embedder: LLM) -> None:
    (output,) = embedder.score(TEXT[0], TEXT[1], use_tqdm=False)
    a, b = vectors(embedder.embed(TEXT[:2], use_tqdm=False))
    assert output.outputs.score == pytest.approx(a @ b, abs=1e-6)
    first, second = output.request_id.split("_")
    assert int(second) == int(first) + 1
    hf = embedder.get_tokenizer()
    ids = [hf.encode(text, truncation=True, max_length=MAX_LENGTH) for text in TEXT[:2]]
    assert output.prompt_token_ids == [*ids[0], hf.pad_token_id, *ids[1]]
    tokens = hf.encode("the little dog", add_special_tokens=False)
    (by_ids,) = embedder.score({"prompt_token_ids": tokens}, {"prompt": TEXT[1]}, use_tqdm=False)
    assert by_ids.outputs == embedder.score("the little dog", TEXT[1], use_tqdm=False)[0].outputs


# Bad prompts.


def test_empty_text_is_its_special_tokens(embedder: LLM) -> None:
    hf = embedder.get_tokenizer()
    assert embedder.embed("", use_tqdm=False)[0].prompt_token_ids == [hf.cls_token_id, hf.sep_token_id]


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ([], ValueError, "prompt cannot be empty"),
        (3, TypeError, "inputs must be a string, TextPrompt, or TokensPrompt"),
        ({"prompt_token_ids": [1, 10**6]}, ValueError, "Token id 1000000 is out of vocabulary"),
        (
            {"prompt_token_ids": [1] * (MAX_LENGTH + 1)},
            ValueError,
            f"maximum model length of {MAX_LENGTH}",
        ),
        ({"prompt_token_ids": [1, 2], "token_type_ids": [0]}, ValueError, "token_type_ids has 1 entries for 2 tokens"),
        ({"prompt": "a", "token_type_ids": [0]}, ValueError, "beside prompt_token_ids"),
        ({"encoder_prompt": "a"}, ValueError, "encoder-decoder"),
    ],
)
def test_one_bad_prompt_of_many(embedder: LLM, prompt: Any, error: type[Exception], message: str) -> None:
    prompts = [TEXT[0], TEXT[1], prompt, TEXT[2]]
    with pytest.raises(error) as caught:
        embedder.embed(prompts, use_tqdm=False)
    assert message in str(caught.value) and "(prompt 2)" in str(caught.value)
    assert caught.value.indices == (2,)
    outputs = embedder.embed(prompts, use_tqdm=False, on_error="return")
    assert outputs[2].outputs is None and message in outputs[2].error and outputs[2].finished
    good = [output for i, output in enumerate(outputs) if i != 2]
    assert [output.error for output in good] == [None] * 3
    want = embedder.embed([TEXT[0], TEXT[1], TEXT[2]], use_tqdm=False)
    assert [output.outputs for output in good] == [output.outputs for output in want]
    assert embedder.stats()["num_waiting"] == 0


def test_token_types_must_exist(embedder: LLM) -> None:
    prompt = {"prompt_token_ids": [1, 2], "token_type_ids": [0, 7]}
    with pytest.raises(ValueError, match="Token type id 7"):
        embedder.embed(prompt, use_tqdm=False)


def test_score_keeps_the_rest(scorer: LLM, embedder: LLM) -> None:
    for llm in (scorer, embedder):
        outputs = llm.score(TEXT[0], [TEXT[1], 5, TEXT[2]], use_tqdm=False, on_error="return")  # type: ignore[list-item]
        assert outputs[1].outputs is None and "inputs must be a string" in outputs[1].error
        want = llm.score(TEXT[0], [TEXT[1], TEXT[2]], use_tqdm=False)
        assert [outputs[0].outputs, outputs[2].outputs] == [output.outputs for output in want]


def test_errors_behind_the_first_slice(embedder: LLM) -> None:
    """Prompts are tokenised while others run; a bad one late in the list ends the call and leaves nothing queued."""
    prompts: list[Any] = [TEXT[i % 4] for i in range(2000)]
    prompts[1700] = {"prompt_token_ids": [10**6]}
    with pytest.raises(RequestError, match=r"out of vocabulary.*\(prompt 1700\)"):
        embedder.embed(prompts, use_tqdm=False)
    assert embedder.stats()["num_waiting"] == 0
    outputs = embedder.embed(prompts, use_tqdm=False, on_error="return")
    assert [i for i, output in enumerate(outputs) if output.error] == [1700]
    want = embedder.embed(TEXT, use_tqdm=False)
    assert all(output.outputs == want[i % 4].outputs for i, output in enumerate(outputs) if i != 1700)


def test_without_a_tokenizer(pooling_folders: dict[str, Path], embedder: LLM) -> None:
    ids = embedder.get_tokenizer().encode(TEXT[0])
    with LLM(str(pooling_folders["embed"]), skip_tokenizer_init=True) as llm:
        assert llm.embed([ids], use_tqdm=False)[0].outputs == embedder.embed(TEXT[0], use_tqdm=False)[0].outputs
        with pytest.raises(ValueError, match="skip_tokenizer_init"):
            llm.embed("a", use_tqdm=False)


# Calls side by side, and their ends.


def test_threads(embedder: LLM) -> None:
    def run(which: int) -> list[Any]:
        return [output.outputs for output in embedder.embed([TEXT[which % 4], f"cat {which}"] * 5, use_tqdm=False)]

    alone = [run(which) for which in range(16)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(16))) == alone
    assert not any(thread.name == "quire-tokenise" for thread in threading.enumerate())


def test_interrupt_leaves_nothing_behind(embedder: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    from quire.pooling_runner import _Call

    want = [output.outputs for output in embedder.embed(TEXT, use_tqdm=False)]
    real, calls = _Call.run, []

    def interrupted(call: _Call) -> list[Any]:
        calls.append(call)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(call)

    with monkeypatch.context() as patch:
        patch.setattr(_Call, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            embedder.embed(TEXT * 500, use_tqdm=False)
    assert len(calls) == 2 and embedder.stats()["num_waiting"] == 0
    assert [output.outputs for output in embedder.embed(TEXT, use_tqdm=False)] == want


def test_progress_bar(embedder: LLM) -> None:
    counts: list[int] = []

    class Bar:
        def __init__(self, total: int, desc: str, **_: Any) -> None:
            assert (total, desc) == (3, "Processed prompts")

        def update(self, count: int) -> None:
            counts.append(count)

        def close(self) -> None:
            counts.append(0)

    embedder.embed(["a", "b", "c"], use_tqdm=Bar)
    assert sum(counts) == 3 and counts[-1] == 0


def test_closed(pooling_folders: dict[str, Path]) -> None:
    llm = LLM(str(pooling_folders["embed"]))
    llm.close()
    with pytest.raises(RuntimeError, match="closed"):
        llm.embed("a")
