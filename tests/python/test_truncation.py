"""truncate_prompt_tokens: the last tokens of a prompt stay, as one call or one parameter object says."""

from __future__ import annotations

from typing import Any

import pytest
from quire import LLM, SamplingParams

FIXED: dict[str, Any] = {"temperature": 0.0, "max_tokens": 4, "ignore_eos": True}
TEXT = "Once upon a time there was a little dog"


@pytest.mark.parametrize("last", [1, 3, 1000])
def test_the_last_tokens_stay(llm: LLM, last: int) -> None:
    ids = llm.get_tokenizer().encode(TEXT)
    (expected,) = llm.generate([ids[-last:]], SamplingParams(**FIXED), use_tqdm=False)
    by_params, by_call = SamplingParams(truncate_prompt_tokens=last, **FIXED), {"truncate_prompt_tokens": last}
    outputs = [
        *llm.generate([TEXT, ids], by_params, use_tqdm=False),
        *llm.generate([TEXT, ids], SamplingParams(**FIXED), use_tqdm=False, tokenization_kwargs=by_call),
        *[output for _, output in llm.generate_iter([TEXT], by_params)],
        *[output for _, output in llm.generate_iter([TEXT], SamplingParams(**FIXED), tokenization_kwargs=by_call)],
        list(llm.stream(TEXT, by_params))[-1].output,
    ]
    for output in outputs:
        assert output is not None and output.prompt_token_ids == ids[-last:] and output.outputs == expected.outputs
    assert outputs[0] is not None and outputs[0].prompt == TEXT


def test_what_a_call_says_goes_first(llm: LLM) -> None:
    params = SamplingParams(truncate_prompt_tokens=5, **FIXED)
    (output,) = llm.generate(TEXT, params, use_tqdm=False, tokenization_kwargs={"truncate_prompt_tokens": 2})
    assert len(output.prompt_token_ids or ()) == 2


def test_each_prompt_has_its_own(llm: LLM) -> None:
    params = [SamplingParams(truncate_prompt_tokens=last, **FIXED) for last in (None, 2, 4)]
    outputs = llm.generate([TEXT] * 3, params, use_tqdm=False)
    assert [len(output.prompt_token_ids or ()) for output in outputs[1:]] == [2, 4]
    assert outputs[0].prompt_token_ids == llm.get_tokenizer().encode(TEXT)


def test_a_prompt_that_is_too_long_fits(llm: LLM) -> None:
    long = "story " * 400
    with pytest.raises(ValueError, match="longer than the maximum model length of 256"):
        llm.generate(long, SamplingParams(**FIXED), use_tqdm=False)
    with pytest.raises(ValueError, match=r"The decoder prompt \(length 256\) is longer than"):
        llm.generate(long, SamplingParams(truncate_prompt_tokens=256, **FIXED), use_tqdm=False)
    (output,) = llm.generate(long, SamplingParams(truncate_prompt_tokens=255, **FIXED), use_tqdm=False)
    assert len(output.prompt_token_ids or ()) == 255 and len(output.outputs[0].token_ids) == 1
    messages = [{"role": "user", "content": long}]
    (output,) = llm.chat(messages, SamplingParams(truncate_prompt_tokens=9, **FIXED), use_tqdm=False)
    assert len(output.prompt_token_ids or ()) == 9


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), ("3", TypeError), (True, TypeError)])
def test_errors(llm: LLM, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="truncate_prompt_tokens must be"):
        SamplingParams(truncate_prompt_tokens=value)
    for call in (llm.generate, llm.generate_iter, llm.stream):
        with pytest.raises(error, match="truncate_prompt_tokens must be"):
            call(TEXT, SamplingParams(**FIXED), tokenization_kwargs={"truncate_prompt_tokens": value})  # type: ignore[operator]
