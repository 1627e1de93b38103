"""Streaming and as-completed iteration: the pieces make the whole, stop strings never show, nothing runs ahead."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from quire import LLM, RequestOutput, RequestOutputKind, SamplingParams, StreamChunk


def collect(chunks: Iterator[StreamChunk]) -> tuple[dict[int, str], dict[int, list[int]], RequestOutput]:
    texts: dict[int, str] = {}
    tokens: dict[int, list[int]] = {}
    final = None
    for chunk in chunks:
        assert final is None, "the chunk with the output is the last"
        texts[chunk.index] = texts.get(chunk.index, "") + chunk.text
        tokens.setdefault(chunk.index, []).extend(chunk.token_ids)
        final = chunk.output
    assert final is not None
    return texts, tokens, final


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stop", [None, "a", ["e ", "the"]])
def test_pieces_make_the_output_of_generate(llm: LLM, n: int, stop: Any) -> None:
    params = SamplingParams(n=n, temperature=1.0, seed=11, max_tokens=40, stop=stop, ignore_eos=True)
    (expected,) = llm.generate("Once upon a time", params, use_tqdm=False)
    texts, tokens, final = collect(llm.stream("Once upon a time", params))
    for completion, streamed in zip(expected.outputs, final.outputs, strict=True):
        assert completion == streamed
        assert texts[completion.index] == completion.text and tokens[completion.index] == completion.token_ids


def test_comes_in_pieces(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    chunks = list(llm.stream("Once", params))
    assert len(chunks) > 5 and chunks[-1].finish_reason == "length"
    assert all(chunk.finish_reason is None and chunk.output is None for chunk in chunks[:-1])


def test_stream_chat(llm: LLM) -> None:
    conversation = [{"role": "user", "content": "Hi"}]
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    texts, _, final = collect(llm.stream_chat(conversation, params))
    (expected,) = llm.chat(conversation, params, use_tqdm=False)
    assert texts[0] == expected.outputs[0].text and final.prompt == expected.prompt


def test_errors_come_at_the_call(llm: LLM) -> None:
    with pytest.raises(ValueError, match="out of vocabulary"):
        llm.stream([10**6])
    with pytest.raises(ValueError, match="one prompt"):
        llm.stream(["a", "b"])
    with pytest.raises(ValueError, match="one conversation"):
        llm.stream_chat([[{"role": "user", "content": "a"}]] * 2)


def test_leaving_a_stream_cancels_the_request(llm: LLM) -> None:
    chunks = llm.stream("Once", SamplingParams(max_tokens=200, ignore_eos=True))
    next(chunks)
    assert llm.stats()["num_running"] == 1
    chunks.close()  # type: ignore[attr-defined]
    stats = llm.stats()
    assert stats["num_running"] == stats["num_waiting"] == 0
    never_started = llm.stream("Once", SamplingParams(max_tokens=200, ignore_eos=True))
    del never_started
    assert llm.stats()["num_waiting"] == 0


def test_two_streams_at_once(llm: LLM) -> None:
    params = [SamplingParams(temperature=0, max_tokens=10 + i, ignore_eos=True) for i in range(2)]
    expected = llm.generate(["One", "Two"], params, use_tqdm=False)
    streams = [llm.stream(prompt, one) for prompt, one in zip(["One", "Two"], params, strict=True)]
    tokens: list[list[int]] = [[], []]
    for _ in range(60):
        for which, stream in enumerate(streams):
            chunk = next(stream, None)
            tokens[which] += chunk.token_ids if chunk else []
    assert tokens == [output.outputs[0].token_ids for output in expected]


def test_generate_iter_yields_as_completed(llm: LLM) -> None:
    lengths = [40, 2, 20, 4]
    params = [SamplingParams(temperature=0, max_tokens=length, ignore_eos=True) for length in lengths]
    prompts = [[5 + i, 6, 7] for i in range(4)]
    got = list(llm.generate_iter(prompts, params))
    assert [position for position, _ in got] == [1, 3, 2, 0]
    expected = llm.generate(prompts, params, use_tqdm=False)
    for position, output in got:
        assert output.outputs[0].token_ids == expected[position].outputs[0].token_ids


def test_generate_iter_reads_lazily(llm: LLM) -> None:
    read = 0

    def prompts() -> Iterator[list[int]]:
        nonlocal read
        for i in range(100):
            read += 1
            yield [2 + i, 3]

    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    outputs = llm.generate_iter(prompts(), params, max_in_flight=4)
    assert read == 0
    positions = set()
    for done, (position, _) in enumerate(outputs, start=1):
        positions.add(position)
        assert read <= done + 4 + 4
    assert positions == set(range(100))


def test_generate_iter_takes_an_endless_iterator(llm: LLM) -> None:
    def endless() -> Iterator[str]:
        while True:
            yield "Once"

    iterator = llm.generate_iter(endless(), SamplingParams(max_tokens=2), max_in_flight=3)
    assert [next(iterator)[1].finished for _ in range(5)] == [True] * 5
    iterator.close()  # type: ignore[attr-defined]
    assert llm.stats()["num_running"] == llm.stats()["num_waiting"] == 0


def test_generate_iter_errors(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    with pytest.raises(ValueError, match=r"out of vocabulary.*\(prompt 2\)"):
        list(llm.generate_iter([[1], [2], [10**6]], params))
    assert llm.stats()["num_running"] == llm.stats()["num_waiting"] == 0
    got = dict(llm.generate_iter([[1], [10**6], [2]], params, on_error="return"))
    assert got[1].error and got[0].error is None is got[2].error
    with pytest.raises(ValueError):
        list(llm.generate_iter([[1], [2]], [params]))
    with pytest.raises(ValueError, match="max_in_flight must be at least 1"):
        llm.generate_iter([[1]], params, max_in_flight=0)
    assert list(llm.generate_iter([], params)) == []


# What a piece holds.

KINDS = list(RequestOutputKind)
WRITING: dict[str, Any] = {"temperature": 1.0, "seed": 3, "max_tokens": 30, "ignore_eos": True}


@pytest.mark.parametrize("by", ["argument", "params"])
@pytest.mark.parametrize("interval", [None, 1, 4, 100])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_a_stream(llm: LLM, kind: RequestOutputKind, n: int, interval: int | None, by: str) -> None:
    params = SamplingParams(n=n, stop="e t", stream_interval=interval, **WRITING)
    (expected,) = llm.generate("Once", params, use_tqdm=False)
    asked: Any = {"output_kind": kind}
    if by == "params":
        params, asked = SamplingParams(**{**vars_of(params), "output_kind": kind}), {}
        kind = RequestOutputKind.DELTA if kind is RequestOutputKind.CUMULATIVE else kind  # the default means: its own
    chunks = list(llm.stream("Once", params, **asked))
    final = chunks[-1].output
    assert final is not None and [one for one in chunks if one.output is not None] == chunks[-1:]
    assert final.outputs == expected.outputs
    for completion in expected.outputs:
        own = [chunk for chunk in chunks if chunk.index == completion.index]
        assert [chunk.finish_reason for chunk in own[:-1]] == [None] * (len(own) - 1)
        assert (own[-1].finish_reason, own[-1].stop_reason) == (completion.finish_reason, completion.stop_reason)
        if kind is RequestOutputKind.DELTA:
            assert "".join(chunk.text for chunk in own) == completion.text
            assert [token for chunk in own for token in chunk.token_ids] == completion.token_ids
            if interval is not None:  # the first is immediate, the last brings the rest
                assert all(len(chunk.token_ids) >= interval for chunk in own[1:-1])
        else:
            assert (own[-1].text, own[-1].token_ids) == (completion.text, completion.token_ids)
        if kind is RequestOutputKind.CUMULATIVE:
            for before, after in itertools.pairwise(own):
                assert after.text.startswith(before.text) and len(after.token_ids) > len(before.token_ids) >= 0
                assert after.token_ids[: len(before.token_ids)] == before.token_ids
        if kind is RequestOutputKind.FINAL_ONLY:
            assert len(own) == 1
        elif interval in (None, 1):
            assert len(own) > 3


def vars_of(params: SamplingParams) -> dict[str, Any]:
    return {entry.name: getattr(params, entry.name) for entry in dataclasses.fields(params)}


@pytest.mark.parametrize("by", ["argument", "params"])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_many(llm: LLM, kind: RequestOutputKind, n: int, by: str) -> None:
    prompts = ["Once", "The dog", [5, 6, 7]]
    asked: Any = {"output_kind": kind} if by == "argument" else {}
    in_params: Any = {} if by == "argument" else {"output_kind": kind}
    if by == "params" and kind is RequestOutputKind.CUMULATIVE:
        kind = RequestOutputKind.FINAL_ONLY  # the default means: its own
    params = [SamplingParams(n=n, **{**WRITING, "max_tokens": length}, **in_params) for length in (20, 5, 9)]
    expected = llm.generate(prompts, params, use_tqdm=False)
    whole: dict[int, RequestOutput] = {}
    count = 0
    for position, output in llm.generate_iter(prompts, params, **asked):
        count += 1
        assert position not in whole or not whole[position].finished, "the finished output is the last"
        assert (output.metrics is not None) == output.finished == (output.num_cached_tokens is not None)
        if position not in whole:
            whole[position] = output
        else:
            whole[position].add(output, aggregate=kind is RequestOutputKind.DELTA)
    assert count == 3 if kind is RequestOutputKind.FINAL_ONLY else count > 10
    for position, output in whole.items():
        assert output.finished and output.prompt == expected[position].prompt
        assert output.prompt_token_ids == expected[position].prompt_token_ids
        assert sorted(output.outputs, key=lambda one: one.index) == expected[position].outputs


def test_kinds_may_differ_within_a_call(llm: LLM) -> None:
    params = [SamplingParams(**WRITING), SamplingParams(output_kind=RequestOutputKind.DELTA, **WRITING)]
    counts = [0, 0]
    for position, _ in llm.generate_iter([[5], [6]], params):
        counts[position] += 1
    assert counts[0] == 1 and counts[1] > 3


def test_unknown_kind(llm: LLM) -> None:
    with pytest.raises(TypeError, match="output_kind must be a RequestOutputKind, got 'delta'"):
        llm.stream([5], SamplingParams(), output_kind="delta")  # type: ignore[arg-type]


@pytest.mark.parametrize("interval", [1, 4])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_of_a_stream(llm: LLM, kind: RequestOutputKind, n: int, interval: int) -> None:
    params = SamplingParams(n=n, stop="e t", logprobs=2, stream_interval=interval, **WRITING)
    (expected,) = llm.generate("Once", params, use_tqdm=False)
    chunks = list(llm.stream("Once", params, output_kind=kind))
    for completion in expected.outputs:
        own = [chunk for chunk in chunks if chunk.index == completion.index]
        assert completion.logprobs is not None and all(chunk.logprobs is not None for chunk in own)
        assert [len(chunk.logprobs or ()) for chunk in own] == [len(chunk.token_ids) for chunk in own]
        sums = list(itertools.accumulate(e[t].logprob for e, t in zip(completion.logprobs, completion.token_ids)))
        if kind is RequestOutputKind.DELTA:
            assert [entry for chunk in own for entry in chunk.logprobs or ()] == completion.logprobs
            counts = list(itertools.accumulate(len(chunk.token_ids) for chunk in own))
        else:
            counts = [len(chunk.token_ids) for chunk in own]
            for chunk, count in zip(own, counts, strict=True):
                assert chunk.logprobs == completion.logprobs[:count]
        for chunk, count in zip(own, counts, strict=True):  # of all so far in every kind, as in vLLM
            assert chunk.cumulative_logprob == pytest.approx(sums[count - 1], abs=1e-5)
    silent = llm.stream("Once", SamplingParams(**WRITING), output_kind=kind)
    assert all(chunk.logprobs is None and chunk.cumulative_logprob is None for chunk in silent)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_of_many(llm: LLM, kind: RequestOutputKind, n: int) -> None:
    """DELTA: of the new tokens, and of the prompt with the first piece. CUMULATIVE: of all so far."""
    prompts = ["Once upon a time", [5, 6, 7], [9]]
    lengths = (20, 1, 9)
    params = [
        SamplingParams(n=n, logprobs=3, prompt_logprobs=1, **{**WRITING, "max_tokens": length}) for length in lengths
    ]
    expected = llm.generate(prompts, params, use_tqdm=False)
    whole: dict[int, RequestOutput] = {}
    for position, output in llm.generate_iter(prompts, params, output_kind=kind):
        for completion in output.outputs:
            assert completion.logprobs is not None and len(completion.logprobs) == len(completion.token_ids)
            final = expected[position].outputs[completion.index]
            if kind is RequestOutputKind.CUMULATIVE:
                assert completion.logprobs == (final.logprobs or [])[: len(completion.token_ids)]
        is_first = position not in whole
        if kind is RequestOutputKind.DELTA:
            assert (output.prompt_logprobs is not None) == is_first
        else:
            assert output.prompt_logprobs == expected[position].prompt_logprobs
        if is_first:
            whole[position] = output
        else:
            whole[position].add(output, aggregate=kind is RequestOutputKind.DELTA)
    for position, output in whole.items():
        assert output.finished and output.prompt_logprobs == expected[position].prompt_logprobs
        assert sorted(output.outputs, key=lambda one: one.index) == expected[position].outputs


def test_what_one_request_cannot_have_stands_in_its_place(llm: LLM) -> None:
    delta: Any = {"output_kind": RequestOutputKind.DELTA, **WRITING}
    params = [SamplingParams(**WRITING), SamplingParams(**delta), SamplingParams(**delta)]
    params[1].n, params[1].best_of, params[1]._real_n = 3, 3, 1  # as an object that was changed after it was made
    got = list(llm.generate_iter([[5], [6], [7]], params, on_error="return", output_kind=RequestOutputKind.DELTA))
    errors = {position: output.error for position, output in got if output.error is not None}
    assert list(errors) == [1] and "best_of must equal n to use output_kind=DELTA" in (errors[1] or "")
    assert {position for position, output in got if output.finished} == {0, 1, 2}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", ["close", "del", "break", "raise", "never started"])
def test_abandoned_half_way(llm: LLM, kind: RequestOutputKind, end: str) -> None:
    def idle() -> bool:
        stats = llm.stats()
        return stats["num_running"] == stats["num_waiting"] == 0

    long = SamplingParams(**{**WRITING, "max_tokens": 200})
    short = SamplingParams(**{**WRITING, "max_tokens": 2})

    def iterate() -> Iterator[Any]:
        return llm.generate_iter([[5 + i] for i in range(6)], [short, *[long] * 5], output_kind=kind)

    iterator: Any = iterate()
    if end == "never started":
        del iterator
    elif end in ("close", "del"):
        next(iterator)
        assert not idle()
        if end == "close":
            iterator.close()
        del iterator
    elif end == "break":
        del iterator
        for _ in iterate():
            break
    else:

        def prompts() -> Iterator[list[int]]:
            yield [5]
            raise OSError("the file ends")

        with pytest.raises(OSError, match="the file ends"):
            list(llm.generate_iter(prompts(), long, output_kind=kind))
        del iterator
    assert idle()
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    one, two = (llm.generate([[9, 8]], params, use_tqdm=False)[0].outputs for _ in range(2))
    assert one == two


def test_a_bad_prompt_of_a_stream_in_its_place(llm: LLM) -> None:
    (chunk,) = llm.stream([10**6], SamplingParams(), on_error="return")
    assert chunk.finish_reason == "error" and chunk.output is not None
    assert chunk.output.error is not None and "out of vocabulary" in chunk.output.error
