"""scheduling_policy="priority": who goes first, who is preempted, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from quire import LLM, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
PROMPTS = [[5 + i, 9, 11] for i in range(4)]


@pytest.fixture(scope="module")
def one_by_one(tiny_model: Path) -> Iterator[LLM]:
    """One sequence at a time, so that the order in which requests finish is the order in which they started."""
    with LLM(str(tiny_model), scheduling_policy="priority", max_num_seqs=1, num_gpu_blocks_override=32) as llm:
        yield llm


def order_of(outputs: list[Any]) -> list[int]:
    times = [output.metrics.first_scheduled_time for output in outputs]
    assert len(set(times)) == len(times)
    return sorted(range(len(outputs)), key=times.__getitem__)


def test_smaller_priorities_go_first_then_the_earlier(one_by_one: LLM) -> None:
    outputs = one_by_one.generate(PROMPTS, GREEDY, use_tqdm=False, priority=[1, 0, -3, 0])
    assert order_of(outputs) == [2, 1, 3, 0]
    assert [output.prompt_token_ids for output in outputs] == PROMPTS


def test_one_priority_for_all_and_none_at_all(one_by_one: LLM) -> None:
    for priority in (7, None, [], 0, (2, 2, 2, 2)):
        outputs = one_by_one.generate(PROMPTS, GREEDY, use_tqdm=False, priority=priority)
        assert order_of(outputs) == [0, 1, 2, 3]


def test_priority_changes_no_output(one_by_one: LLM, llm: LLM) -> None:
    outputs = one_by_one.generate(PROMPTS, GREEDY, use_tqdm=False, priority=[3, 2, 1, 0])
    expected = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert [o.outputs[0].token_ids for o in outputs] == [o.outputs[0].token_ids for o in expected]


def test_enqueue_and_chat_take_priorities(one_by_one: LLM) -> None:
    one_by_one.enqueue(PROMPTS[:2], GREEDY, priority=[5, 1])
    one_by_one.enqueue(PROMPTS[2:], GREEDY, priority=[-1, 3])
    assert order_of(one_by_one.wait_for_completion(use_tqdm=False)) == [2, 1, 3, 0]
    conversations = [[{"role": "user", "content": text}] for text in ("dog", "cat", "ball")]
    assert order_of(one_by_one.chat(conversations, GREEDY, use_tqdm=False, priority=[1, 2, 0])) == [2, 0, 1]


def test_generate_iter_reads_priorities_with_the_prompts(one_by_one: LLM) -> None:
    def finished(**options: Any) -> list[int]:
        return [i for i, _ in one_by_one.generate_iter(iter(PROMPTS), GREEDY, **options)]

    assert finished(priority=iter([3, 1, 2, 0, 9]), max_in_flight=4) == [3, 1, 2, 0]
    assert finished(priority=iter([3, 1, 2, 0, 9]), max_in_flight=2) == [1, 2, 3, 0]  # what is not read cannot go first
    assert [i for i, _ in one_by_one.generate_iter(PROMPTS, GREEDY, priority=4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="there are more prompts"):
        list(one_by_one.generate_iter(PROMPTS, GREEDY, priority=[1, 2]))


def test_a_stream_goes_before_what_is_queued(one_by_one: LLM) -> None:
    one_by_one.enqueue(PROMPTS[:2], GREEDY, priority=[1, 1])
    *_, streamed = one_by_one.stream(PROMPTS[2], GREEDY, priority=-1)
    queued = one_by_one.wait_for_completion(use_tqdm=False)
    assert streamed.output is not None
    assert order_of([*queued, streamed.output]) == [2, 0, 1]
    *_, streamed = one_by_one.stream_chat([{"role": "user", "content": "dog"}], GREEDY, priority=-1)
    assert streamed.output is not None


def test_the_least_urgent_is_preempted_although_it_came_first(tiny_model: Path, llm: LLM) -> None:
    prompts = [[5 + i] * 30 for i in range(2)]
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    options = {"num_gpu_blocks_override": 6, "max_model_len": 80, "enable_prefix_caching": False}
    for priority, victim in (([1, 0], 0), ([0, 1], 1), ([0, 0], 1)):
        with LLM(str(tiny_model), scheduling_policy="priority", **options) as poor:
            outputs = poor.generate(prompts, params, use_tqdm=False, priority=priority)
        preemptions = [output.metrics.num_preemptions for output in outputs if output.metrics is not None]
        assert preemptions[victim] > 0 and preemptions[1 - victim] == 0
        expected = llm.generate(prompts, params, use_tqdm=False)
        assert [o.outputs[0].token_ids for o in outputs] == [o.outputs[0].token_ids for o in expected]


@pytest.mark.parametrize("priority", [3, [0, 3, 0, 0], (0, 0, 0, 3)])
def test_priority_without_the_policy(llm: LLM, priority: Any) -> None:
    message = "Got priority 3 but Priority scheduling is not enabled."
    with pytest.raises(ValueError, match=message):
        llm.generate(PROMPTS, GREEDY, use_tqdm=False, priority=priority)
    with pytest.raises(ValueError, match=message):
        llm.enqueue(PROMPTS, GREEDY, priority=priority)
    with pytest.raises(ValueError, match=message):
        llm.stream(PROMPTS[0], GREEDY, priority=3)
    with pytest.raises(ValueError, match=message):
        list(llm.generate_iter(PROMPTS, GREEDY, priority=priority))
    assert len(llm.generate(PROMPTS, GREEDY, use_tqdm=False, priority=[0, 0, 0, 0])) == 4


def test_bad_priorities(one_by_one: LLM) -> None:
    with pytest.raises(ValueError, match="priority must be the same. Got 4 prompts and 3 priorities."):
        one_by_one.generate(PROMPTS, GREEDY, use_tqdm=False, priority=[1, 2, 3])
    for bad in (1.5, "1", [1, "2", 2, 3], True):
        with pytest.raises(TypeError, match="priority must be an integer or a list of integers"):
            one_by_one.generate(PROMPTS, GREEDY, use_tqdm=False, priority=bad)
    with pytest.raises(ValueError, match="priority must fit in 32 bits, got 4294967296."):
        one_by_one.generate(PROMPTS, GREEDY, use_tqdm=False, priority=2**32)
    assert one_by_one.stats()["num_waiting"] == 0


def test_unknown_policy(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="Invalid scheduling_policy 'lottery'.*fcfs, priority"):
        LLM(str(tiny_model), scheduling_policy="lottery")
