"""A result depends on the model, the prompt, the parameters and the seed alone; told through the Python API.

Whatever else is in the batch, however the steps are cut, however small the cache and whatever it already holds: token
ids, text and log-probabilities are equal bit for bit.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quire import LLM, RequestOutput, SamplingParams

Request = tuple[list[int], SamplingParams]

# How the work is cut into steps, and how much room there is; the first is the reference. The smallest cache holds one
# sequence of the greatest length, so that many are preempted.
ENGINES: list[dict[str, Any]] = [
    {"num_gpu_blocks_override": 2048},
    {"max_num_seqs": 1, "max_num_batched_tokens": 1, "num_gpu_blocks_override": 16},
    {"max_num_seqs": 4, "max_num_batched_tokens": 7, "num_gpu_blocks_override": 16},
    {"max_num_seqs": 64, "max_num_batched_tokens": 64, "num_gpu_blocks_override": 18, "block_size": 16},
    {"max_num_seqs": 8, "enable_prefix_caching": False, "num_gpu_blocks_override": 24},
    {"num_threads": 1, "long_prefill_token_threshold": 5, "num_gpu_blocks_override": 64},
]


@pytest.fixture(scope="module")
def engines(tiny_model: Path) -> Iterator[list[LLM]]:
    engines = [LLM(str(tiny_model), seed=0, **arguments) for arguments in ENGINES]
    yield engines
    for engine in engines:
        engine.close()


def everything(output: RequestOutput) -> list[Any]:
    return [
        (c.index, c.token_ids, c.text, c.finish_reason, c.stop_reason, c.cumulative_logprob, list(c.logprobs or ()))
        for c in output.outputs
    ]


def make_request(source: random.Random) -> Request:
    """Some share a beginning, so that the prefix cache has something to find."""
    begin = [7 + i % 50 for i in range(source.choice([0, 16, 40]))]
    prompt = begin + [source.randrange(2, 400) for _ in range(source.randrange(1, 30))]
    random_draw = source.random() < 0.6
    return prompt, SamplingParams(
        n=source.choice([1, 1, 1, 2]) if random_draw else 1,
        temperature=source.choice([0.7, 1.0, 1.5]) if random_draw else 0.0,
        seed=source.randrange(1000),
        top_k=source.choice([-1, 5, 40]),
        top_p=source.choice([1.0, 0.9]),
        min_p=source.choice([0.0, 0.02]),
        presence_penalty=source.choice([0.0, 0.8]),
        frequency_penalty=source.choice([0.0, 0.5]),
        repetition_penalty=source.choice([1.0, 1.3]),
        max_tokens=source.randrange(1, 24),
        min_tokens=source.choice([0, 1]),
        logprobs=source.choice([None, 0, 3]),
        ignore_eos=source.random() < 0.5,
        stop=source.choice([None, None, "e", [" a", "the"]]),
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), count=st.integers(1, 12))
def test_alone_or_together_in_any_engine(engines: list[LLM], seed: int, count: int) -> None:
    source = random.Random(seed)
    requests = [make_request(source) for _ in range(count)]
    reference = engines[0]
    reference.reset_prefix_cache()
    alone = [everything(reference.generate([prompt], params, use_tqdm=False)[0]) for prompt, params in requests]
    order = source.sample(range(count), count)
    for engine in engines:
        for _ in range(2):  # the second time much of the prompts is cached
            outputs = engine.generate([requests[i][0] for i in order], [requests[i][1] for i in order], use_tqdm=False)
            for position, i in enumerate(order):
                assert everything(outputs[position]) == alone[i]


def test_small_caches_did_preempt_and_large_ones_did_hit(engines: list[LLM]) -> None:
    """Else the test above would show nothing."""
    source = random.Random(1)
    params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
    prompts = [[source.randrange(2, 400) for _ in range(20)] for _ in range(12)]
    expected = [everything(output) for output in engines[0].generate(prompts, params, use_tqdm=False)]
    for engine in (engines[2], engines[3]):
        outputs = engine.generate(prompts, params, use_tqdm=False)
        assert [everything(output) for output in outputs] == expected
        assert sum(output.metrics.num_preemptions for output in outputs if output.metrics) > 0
    again = engines[0].generate(prompts, params, use_tqdm=False)
    assert all(output.num_cached_tokens == 16 for output in again)


def test_prompts_that_come_together_are_computed_once(engines: list[LLM]) -> None:
    source = random.Random(2)
    params = SamplingParams(temperature=0, max_tokens=8, logprobs=3, ignore_eos=True)
    begin = [source.randrange(2, 400) for _ in range(40)]
    prompts = [begin + [source.randrange(2, 400) for _ in range(5)] for _ in range(6)]
    for engine in (engines[0], engines[3]):  # in one step, in chunks
        engine.reset_prefix_cache()
        together = engine.generate(prompts, params, use_tqdm=False)
        assert [output.num_cached_tokens for output in together] == [0] + [32] * 5
        for prompt, output in zip(prompts, together):
            engine.reset_prefix_cache()
            assert everything(engine.generate([prompt], params, use_tqdm=False)[0]) == everything(output)


def test_fifty_repeats_among_many(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=9, max_tokens=12, logprobs=2, ignore_eos=True)
    (alone,) = (everything(output) for output in llm.generate([[11, 12, 13]], params, use_tqdm=False))
    outputs = llm.generate([[11, 12, 13]] * 50, params, use_tqdm=False)
    assert all(everything(output) == alone for output in outputs)
