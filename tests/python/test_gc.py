"""Memory goes back: `del llm` frees at once without the collector, close() too, and cycles of loading do not grow."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import psutil
import pytest
from checkpoints import write_llama
from quire import LLM, SamplingParams

PARAMS = SamplingParams(max_tokens=4, logprobs=2, ignore_eos=True)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 45 MB of weights, so that a leak shows."""
    return write_llama(
        tmp_path_factory.mktemp("large"), hidden_size=512, intermediate_size=2048, num_attention_heads=32
    )


def resident() -> int:
    return psutil.Process().memory_info().rss


def use(llm: LLM) -> None:
    llm.generate(["Once", "The dog"], PARAMS, use_tqdm=False)
    list(llm.stream("Once", PARAMS))
    list(llm.generate_iter(["Once"], PARAMS))
    with pytest.raises(ValueError):
        llm.generate([[10**6]], PARAMS, use_tqdm=False)


def test_weakref_dies_on_del(tiny_model: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        llm = LLM(str(tiny_model))
        use(llm)
        view, engine, dead = llm.llm_engine, weakref.ref(llm.llm_engine), weakref.ref(llm)
        del llm
        assert dead() is None
        del view
        assert engine() is None
    finally:
        gc.enable()


def test_interrupted_iteration_keeps_nothing(tiny_model: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        llm = LLM(str(tiny_model))
        iterator = llm.generate_iter(["Once"] * 5, PARAMS)
        next(iterator)
        dead = weakref.ref(llm)
        del llm, iterator
        assert dead() is None
    finally:
        gc.enable()


def test_outputs_outlive_the_engine(tiny_model: Path) -> None:
    with LLM(str(tiny_model)) as llm:
        (output,) = llm.generate("Once", PARAMS, use_tqdm=False)
    del llm
    completion = output.outputs[0]
    assert completion.logprobs is not None
    assert [list(entry)[0] for entry in completion.logprobs] == completion.token_ids
    assert all(one.decoded_token is not None for entry in completion.logprobs for one in entry.values())


@pytest.mark.parametrize("how", ["del", "close", "with"])
def test_resident_memory_goes_back(large: Path, how: str) -> None:
    def cycle() -> None:
        llm = LLM(str(large), kv_cache_memory_bytes=32 << 20)
        use(llm)
        if how == "close":
            llm.close()
        elif how == "with":
            with llm:
                pass
        else:
            del llm

    cycle()  # what is loaded once stays: libraries, the thread pool
    before = resident()
    for _ in range(10):
        cycle()
    assert resident() - before < 24 << 20, "one engine has more than twice that"


def test_pending_requests_do_not_keep_it(tiny_model: Path) -> None:
    llm = LLM(str(tiny_model))
    llm.enqueue(["Once"] * 4, SamplingParams(max_tokens=100, ignore_eos=True))
    dead = weakref.ref(llm)
    del llm
    assert dead() is None


def containers_kept(llm: LLM, num_requests: int, num_tokens: int, logprobs: int | None) -> int:
    """How many objects that the collector counts a call's outputs hold."""
    params = SamplingParams(temperature=0, max_tokens=num_tokens, logprobs=logprobs, ignore_eos=True)
    gc.collect()
    before = gc.get_count()[0]
    outputs = llm.generate([[5 + i] for i in range(num_requests)], params, use_tqdm=False)
    grown = gc.get_count()[0] - before
    assert len(outputs) == num_requests
    return grown


def test_logprobs_cost_no_objects_until_they_are_read(llm: LLM) -> None:
    containers_kept(llm, 8, 4, 20)  # what is made once stays
    gc.collect()
    gc.disable()
    try:
        few_tokens, many_tokens = containers_kept(llm, 8, 4, 20), containers_kept(llm, 8, 64, 20)
        assert abs(many_tokens - few_tokens) < 32, "the number of tokens does not count"
        assert many_tokens - containers_kept(llm, 8, 64, None) < 8 * 8, "a few objects a request"
        more_requests = containers_kept(llm, 32, 64, 20)
        assert more_requests < 4 * many_tokens + 64
        params = SamplingParams(temperature=0, max_tokens=64, logprobs=20, ignore_eos=True)
        (output,) = llm.generate([[5]], params, use_tqdm=False)
        before = gc.get_count()[0]
        logprobs = output.outputs[0].logprobs
        assert logprobs is not None and len(logprobs) == 64 and gc.get_count()[0] - before < 8
        assert len(logprobs[3]) in (20, 21) and gc.get_count()[0] - before < 64, "one position was made"
        assert sum(len(entry) for entry in logprobs) >= 64 * 20 and gc.get_count()[0] - before >= 64
    finally:
        gc.enable()
