"""Whatever parameters are combined, the outputs keep what the API promises. Hypothesis chooses; the model is the demo.

The invariants are read off the outputs and off transformers' tokenizer, never off quire's own way to make them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from quire import LLM, CompletionOutput, RequestOutput, RequestOutputKind, SamplingParams

MAX_LEN = 96
COMMON_IDS = [15, 17, 262, 286, 332, 403, 5, 1000]  # the demo often writes the first ones
PROMPTS = ["Once upon a time", "The dog", 'Lily said: "', "é 🐕", [0, 431, 441], [17], "word " * 80]
STOPS = [".", " the", "e", "ing", "\n", "was a", '!"', "Lily"]
BIASED = st.sampled_from([0, 1, 2, *COMMON_IDS])  # the first are special tokens


@pytest.fixture(scope="module")
def demo() -> Iterator[LLM]:
    with LLM("quire/demo", seed=0, max_model_len=MAX_LEN, num_gpu_blocks_override=256) as llm:
        yield llm


def optional(values: st.SearchStrategy[Any], otherwise: Any = None) -> st.SearchStrategy[Any]:
    return st.one_of(st.just(otherwise), values)


@st.composite
def parameters(draw: st.DrawFn) -> dict[str, Any]:
    temperature = draw(st.sampled_from([1.0, 2.0, 0.3, 0.0]))
    n = 1 if temperature == 0.0 else draw(st.integers(1, 3))
    max_tokens = draw(optional(st.integers(1, 24)))
    fields: dict[str, Any] = {
        "n": n,
        "best_of": None if temperature == 0.0 else draw(optional(st.integers(n, n + 2))),
        "temperature": temperature,
        "seed": draw(st.integers(0, 5)),
        "presence_penalty": draw(st.sampled_from([0.0, -2.0, 1.5])),
        "frequency_penalty": draw(st.sampled_from([0.0, 0.5])),
        "repetition_penalty": draw(st.sampled_from([1.0, 1.3])),
        "top_p": draw(st.sampled_from([1.0, 1.0, 0.9, 0.8, 0.01])),
        "top_k": draw(st.sampled_from([-1, 0, 5, 50, 1])),
        "min_p": draw(st.sampled_from([0.0, 0.0, 0.02, 0.1, 1.0])),
        "max_tokens": max_tokens,
        "min_tokens": draw(st.integers(0, min(6, max_tokens or 6))),
        "ignore_eos": draw(st.booleans()),
        "stop_token_ids": draw(optional(st.lists(st.sampled_from(COMMON_IDS), max_size=3))),
        "logprobs": draw(optional(st.integers(0, 5))),
        "detokenize": draw(st.sampled_from([True, True, True, False])),
        "skip_special_tokens": draw(st.booleans()),
        "spaces_between_special_tokens": draw(st.booleans()),
        "include_stop_str_in_output": draw(st.booleans()),
        "truncate_prompt_tokens": draw(optional(st.integers(1, 40))),
        "logit_bias": draw(optional(st.dictionaries(BIASED, st.sampled_from([-100.0, 5.0, 12.0]), max_size=3))),
        "allowed_token_ids": draw(st.sampled_from([None, None, None, [17], [2, *range(400, 700)]])),
        "bad_words": draw(optional(st.lists(st.sampled_from(["dog", "the", "."]), max_size=2))),
    }
    fields["stop"] = draw(optional(st.lists(st.sampled_from(STOPS), max_size=3))) if fields["detokenize"] else None
    return fields


class Checker:
    """What must hold of one output, by the parameters it was asked with."""

    def __init__(self, llm: LLM, fields: dict[str, Any], output: RequestOutput) -> None:
        self.tokenizer = llm.get_tokenizer()
        self.fields, self.output = fields, output
        self.eos = self.tokenizer.eos_token_id
        self.all_eos = {self.eos, *llm.info()["eos_token_ids"]}  # generation_config.json names another one
        self.prompt_ids = output.prompt_token_ids or []

    def check(self) -> None:
        output = self.output
        assert output.finished and output.error is None and output.metrics is not None
        assert [one.index for one in output.outputs] == list(range(self.fields["n"]))
        for completion in output.outputs:
            self.lengths(completion)
            self.end(completion)
            self.logprobs(completion)
            self.text(completion)
        sums = [one.cumulative_logprob for one in output.outputs]
        if (self.fields["best_of"] or 0) > self.fields["n"] and None not in sums:
            assert sums == sorted(sums, reverse=True)  # type: ignore[type-var]

    def lengths(self, one: CompletionOutput) -> None:
        assert isinstance(one.token_ids, list) and one.token_ids
        room = MAX_LEN - len(self.prompt_ids)
        longest = room if self.fields["max_tokens"] is None else min(room, self.fields["max_tokens"])
        assert len(one.token_ids) <= longest
        assert len(one.token_ids) >= min(self.fields["min_tokens"], longest)
        if one.finish_reason == "length":
            assert len(one.token_ids) == longest and one.stop_reason is None
        allowed = self.fields["allowed_token_ids"]
        assert allowed is None or set(one.token_ids) <= set(allowed)

    def end(self, one: CompletionOutput) -> None:
        assert one.finish_reason in ("stop", "length") and one.finished()
        stop_ids = set(self.fields["stop_token_ids"] or ())
        ends = stop_ids | (set() if self.fields["ignore_eos"] else self.all_eos)
        ending = [position for position, token in enumerate(one.token_ids) if token in ends]
        in_time = [position for position in ending if position + 1 >= self.fields["min_tokens"]]
        assert in_time in ([], [len(one.token_ids) - 1]), "nothing comes after a stop token"
        if isinstance(one.stop_reason, str):
            assert one.finish_reason == "stop" and one.stop_reason in (self.fields["stop"] or ())
        elif one.finish_reason == "stop":
            assert one.token_ids[-1] in ends
            primary = one.token_ids[-1] == self.eos and not self.fields["ignore_eos"]
            assert one.stop_reason == (None if primary else one.token_ids[-1])
        else:
            assert not in_time

    def logprobs(self, one: CompletionOutput) -> None:
        count = self.fields["logprobs"]
        if count is None:
            assert one.logprobs is None and one.cumulative_logprob is None
            return
        assert one.logprobs is not None and len(one.logprobs) == len(one.token_ids)
        for token, entry in zip(one.token_ids, one.logprobs, strict=True):
            assert next(iter(entry)) == token and len(entry) in {max(1, count), count + 1}
            assert all(value.logprob <= 0.0 and value.rank >= 1 for value in entry.values())
            others = [value for other, value in entry.items() if other != token or value.rank <= count]
            others.sort(key=lambda value: value.rank)
            assert [value.logprob for value in others] == sorted((v.logprob for v in others), reverse=True)
            top = {value.rank for value in entry.values() if value.rank <= count}
            assert len(top) == min(count, len(entry)) or len({v.logprob for v in entry.values()}) < len(entry)
            assert (entry[token].decoded_token is not None) == self.fields["detokenize"]
        total = sum(entry[token].logprob for token, entry in zip(one.token_ids, one.logprobs, strict=True))
        assert one.cumulative_logprob is not None
        assert math.isclose(one.cumulative_logprob, total, rel_tol=1e-5, abs_tol=1e-4)

    def decoded(self, token_ids: list[int]) -> str:
        """transformers' text of the tokens where they stand: after the prompt."""
        options = {"skip_special_tokens": self.fields["skip_special_tokens"]}
        options["clean_up_tokenization_spaces"] = False
        before = self.tokenizer.decode(self.prompt_ids, **options)
        both = self.tokenizer.decode(self.prompt_ids + token_ids, **options)
        if both.startswith(before):
            return str(both[len(before) :])
        return str(self.tokenizer.decode(token_ids, **options))

    def text(self, one: CompletionOutput) -> None:
        if not self.fields["detokenize"]:
            assert one.text == ""
            return
        include = self.fields["include_stop_str_in_output"]
        by_token = one.finish_reason == "stop" and not isinstance(one.stop_reason, str)
        shown = one.token_ids[:-1] if by_token and not include else one.token_ids
        whole = self.decoded(shown)
        if isinstance(one.stop_reason, str):
            cut = whole[len(one.text) :] if include else whole[len(one.text) + len(one.stop_reason) :]
            assert whole.startswith(one.text if include else one.text + one.stop_reason) or "\ufffd" in whole
            assert len(cut) < 40, "no more than the rest of one token"
            if include:
                assert one.text.endswith(one.stop_reason)
            elif self.fields["min_tokens"] == 0:
                assert one.stop_reason not in one.text
        elif "\ufffd" in whole:  # characters that are not whole: what is shown is certain
            assert whole.startswith(one.text.rstrip("\ufffd")) or "\ufffd" in one.text
        else:
            assert one.text == whole
        if self.fields["min_tokens"] == 0 and not isinstance(one.stop_reason, str):
            last = self.decoded(shown[-1:]) if by_token else ""
            before = one.text[: len(one.text) - len(last)] if last else one.text
            for stop in self.fields["stop"] or ():
                assert stop not in before or self.in_special(shown, stop)

    def in_special(self, token_ids: list[int], stop: str) -> bool:
        return any(stop in self.decoded([token]) for token in token_ids if token in self.tokenizer.all_special_ids)


def refusal(llm: LLM, prompt: Any, fields: dict[str, Any]) -> str | None:
    """Why this combination is refused, by the rules of the API; None where it must run."""
    ids = prompt if isinstance(prompt, list) else llm.get_tokenizer().encode(prompt)
    ids = ids[-fields["truncate_prompt_tokens"] :] if fields["truncate_prompt_tokens"] else ids
    return "is longer than the maximum model length" if len(ids) >= MAX_LEN else None


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(fields=parameters(), prompt=st.sampled_from(PROMPTS), data=st.data())
def test_invariants(demo: LLM, fields: dict[str, Any], prompt: Any, data: st.DataObject) -> None:
    params = SamplingParams(**fields)
    before = params.clone()
    expected_error = refusal(demo, prompt, fields)
    if expected_error is not None:
        with pytest.raises((ValueError, NotImplementedError), match=f"{expected_error}|special token"):
            demo.generate([prompt], params, use_tqdm=False)
        return
    try:
        (output,) = demo.generate([prompt], params, use_tqdm=False)
    except NotImplementedError as error:
        note(str(error))
        assert not fields["skip_special_tokens"] and fields["stop"] and "special token" in str(error)
        return
    assert params == before, "a caller's parameters are not changed"
    ids = prompt if isinstance(prompt, list) else demo.get_tokenizer().encode(prompt)
    assert output.prompt_token_ids == ids[-(fields["truncate_prompt_tokens"] or MAX_LEN) :]
    assert output.prompt == (None if isinstance(prompt, list) else prompt)
    Checker(demo, fields, output).check()
    # The same again, among others, in another method, and in pieces.
    others = [SamplingParams(temperature=0.0, max_tokens=3), params, SamplingParams(seed=1, max_tokens=7)]
    among = demo.generate(["A", prompt, [5, 6]], others, use_tqdm=False)
    assert among[1].outputs == output.outputs
    ((_, iterated),) = demo.generate_iter([prompt], params)
    assert iterated.outputs == output.outputs
    if (fields["best_of"] or 0) > fields["n"]:
        every = SamplingParams(**{**fields, "n": fields["best_of"], "best_of": None, "logprobs": 0})
        (full,) = demo.generate([prompt], every, use_tqdm=False)
        ranked = sorted(full.outputs, key=lambda one: one.cumulative_logprob or 0.0, reverse=True)
        assert [one.token_ids for one in output.outputs] == [one.token_ids for one in ranked[: fields["n"]]]
    else:
        chunks = list(demo.stream(prompt, params))
        assert chunks[-1].output is not None and chunks[-1].output.outputs == output.outputs
        for one in output.outputs:
            own = [chunk for chunk in chunks if chunk.index == one.index]
            assert "".join(chunk.text for chunk in own) == one.text
            assert [token for chunk in own for token in chunk.token_ids] == one.token_ids
            assert [chunk.finish_reason for chunk in own][-1] == one.finish_reason
    if fields["n"] > 1 and not fields["best_of"]:
        which = data.draw(st.integers(0, fields["n"] - 1), label="which")
        alone = SamplingParams(**{**fields, "n": 1, "seed": fields["seed"] + which})
        (single,) = demo.generate([prompt], alone, use_tqdm=False)
        assert single.outputs[0].token_ids == output.outputs[which].token_ids, "sequence i draws with seed + i"


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(each=st.lists(st.tuples(parameters(), st.sampled_from(PROMPTS)), max_size=5), data=st.data())
def test_many_at_once(demo: LLM, each: list[tuple[dict[str, Any], Any]], data: st.DataObject) -> None:
    """Lists of parameters, bad ones among them: every output in its place, as if it had been alone."""
    prompts, params = [prompt for _, prompt in each], [SamplingParams(**fields) for fields, _ in each]
    outputs = demo.generate(prompts, params, use_tqdm=False, on_error="return")
    assert len(outputs) == len(each)
    kinds = st.sampled_from([None, RequestOutputKind.FINAL_ONLY])
    got = dict(demo.generate_iter(iter(prompts), iter(params), on_error="return", output_kind=data.draw(kinds)))
    assert sorted(got) == list(range(len(each)))
    for position, (output, (fields, prompt)) in enumerate(zip(outputs, each, strict=True)):
        assert (output.error is None) == (output.outputs[0].finish_reason != "error")
        assert got[position].outputs == output.outputs and got[position].error == output.error
        if output.error is None:
            assert refusal(demo, prompt, fields) is None
            Checker(demo, fields, output).check()
    ids = [int(output.request_id) for output in outputs]
    assert ids == sorted(ids)
