"""Streaming and as-completed iteration: the pieces make the whole, stop strings never show, nothing runs ahead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from quire import LLM, RequestOutput, SamplingParams, StreamChunk


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
