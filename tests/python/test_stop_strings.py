"""Stop strings on a real engine: text is cut where the string is, tokens that completed it stay."""

from __future__ import annotations

import pytest
from quire import LLM, SamplingParams


def forced(llm: LLM, text: str, **fields: object) -> tuple[SamplingParams, list[int]]:
    """Parameters that make the model write the tokens of `text` in turn: each is wanted more and, once there, less."""
    ids = llm.get_tokenizer().encode(text, add_special_tokens=False)
    assert len(set(ids)) == len(ids), "each token once"
    bias = {token_id: 100.0 - 4.0 * i for i, token_id in enumerate(ids)}
    params = SamplingParams(
        temperature=0, max_tokens=len(ids), logit_bias=bias, presence_penalty=2.0, repetition_penalty=20.0, **fields
    )
    return params, ids


def written(llm: LLM, **fields: object) -> tuple[str, str | int | None, int]:
    params, _ = forced(llm, " upon the garden with", **fields)
    (output,) = llm.generate("Once", params, use_tqdm=False)
    completion = output.outputs[0]
    return completion.text, completion.stop_reason, len(completion.token_ids)


def test_the_model_writes_what_is_forced(flat: LLM) -> None:
    params, ids = forced(flat, " upon the garden with")
    (output,) = flat.generate("Once", params, use_tqdm=False)
    assert output.outputs[0].token_ids == ids and output.outputs[0].text == " upon the garden with"


@pytest.mark.parametrize(
    ("stop", "text", "reason"),
    [
        ("garden", " upon the ", "garden"),
        (["the", "garden"], " upon ", "the"),
        (["garden", "the"], " upon ", "the"),
        ("n the g", " upo", "n the g"),
        ("never", " upon the garden with", None),
        (" upon", "", " upon"),
    ],
)
def test_text_is_cut_before_the_string(flat: LLM, stop: object, text: str, reason: str | None) -> None:
    got, stop_reason, _ = written(flat, stop=stop)
    assert (got, stop_reason) == (text, reason)


def test_string_may_stay(flat: LLM) -> None:
    assert written(flat, stop="gard", include_stop_str_in_output=True)[0] == " upon the gard"


def test_tokens_that_completed_it_stay(flat: LLM) -> None:
    params, ids = forced(flat, " upon the garden with", stop="garden")
    (output,) = flat.generate("Once", params, use_tqdm=False)
    kept = output.outputs[0].token_ids
    assert kept == ids[: len(kept)] and "garden" in flat.get_tokenizer().decode(kept)
    assert output.outputs[0].finish_reason == "stop"


def test_min_tokens_holds_strings_back(flat: LLM) -> None:
    _, ids = forced(flat, " upon the garden with")
    text, reason, count = written(flat, stop=" upon", min_tokens=len(ids))
    assert (text, reason, count) == (" upon the garden with", None, len(ids))


def test_prompt_is_not_searched(flat: LLM) -> None:
    text, reason, _ = written(flat, stop="Once")
    assert (text, reason) == (" upon the garden with", None)


def test_string_across_an_unfinished_character(flat: LLM) -> None:
    tokenizer = flat.get_tokenizer()
    first, *rest = (tokenizer.convert_tokens_to_ids(char) for char in "ðŁĲķ")
    bias = {first: 100.0, rest[0]: 90.0, rest[1]: 80.0, rest[2]: 70.0}
    params = SamplingParams(
        temperature=0, max_tokens=4, logit_bias=bias, presence_penalty=2.0, repetition_penalty=20.0, stop="🐕"
    )
    (output,) = flat.generate("A dog:", params, use_tqdm=False)
    assert output.outputs[0].token_ids == [first, *rest]
    assert (output.outputs[0].text, output.outputs[0].stop_reason) == ("", "🐕")


def test_special_tokens_that_show(flat: LLM) -> None:
    """With skip_special_tokens=False the names of special tokens are text, so they can be stop strings."""
    user = flat.get_tokenizer().convert_tokens_to_ids("<|user|>")
    wanted = {"temperature": 0, "max_tokens": 3, "logit_bias": {user: 100.0}}
    for stop, text in (("<|user|>", ""), ("user", "<|")):
        params = SamplingParams(**wanted, stop=stop, skip_special_tokens=False)  # type: ignore[arg-type]
        (output,) = flat.generate("Once", params, use_tqdm=False)
        completion = output.outputs[0]
        assert (completion.token_ids, completion.text, completion.stop_reason) == ([user], text, stop)
    params = SamplingParams(**wanted, stop="<|user|>")  # type: ignore[arg-type]
    (output,) = flat.generate("Once", params, use_tqdm=False)
    assert output.outputs[0].finish_reason == "length"
    with pytest.raises(NotImplementedError, match="overlaps the special token"):
        flat.generate("Once", SamplingParams(**wanted, stop="x<|", skip_special_tokens=False))  # type: ignore[arg-type]


def test_stop_strings_on_what_a_random_model_writes(llm: LLM) -> None:
    """The text with a stop string is the text without it, up to its first occurrence."""
    free = SamplingParams(temperature=1.0, seed=2, max_tokens=60, ignore_eos=True)
    for prompt in ("Once", "The dog", "A cat"):
        (whole,) = llm.generate(prompt, free, use_tqdm=False)
        text = whole.outputs[0].text
        for stop in (text[10:12], text[5:9], text[-3:]):
            if "\ufffd" in stop or not stop:
                continue
            params = SamplingParams(temperature=1.0, seed=2, max_tokens=60, ignore_eos=True, stop=stop)
            (output,) = llm.generate(prompt, params, use_tqdm=False)
            assert output.outputs[0].text == text[: text.index(stop)]
            assert output.outputs[0].stop_reason == stop
