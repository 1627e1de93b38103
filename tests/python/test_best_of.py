"""best_of: of the sequences that are made, the n likeliest come back, best first."""

from __future__ import annotations

from typing import Any

import pytest
from quire import LLM, RequestOutputKind, SamplingParams

PROMPTS = ["Once upon a time", "The dog"]
FIXED: dict[str, Any] = {"temperature": 1.5, "seed": 5, "max_tokens": 9, "ignore_eos": True}


@pytest.mark.parametrize(("n", "best_of"), [(1, 2), (1, 6), (2, 6), (3, 4)])
@pytest.mark.parametrize("logprobs", [None, 0, 2])
def test_the_likeliest_of_all(llm: LLM, n: int, best_of: int, logprobs: int | None) -> None:
    everything = llm.generate(PROMPTS, SamplingParams(n=best_of, logprobs=0, **FIXED), use_tqdm=False)
    params = SamplingParams(n=n, best_of=best_of, logprobs=logprobs, **FIXED)
    for output, full in zip(llm.generate(PROMPTS, params, use_tqdm=False), everything, strict=True):
        ranked = sorted(full.outputs, key=lambda one: one.cumulative_logprob or 0.0, reverse=True)[:n]
        assert [one.token_ids for one in output.outputs] == [one.token_ids for one in ranked]
        assert [one.text for one in output.outputs] == [one.text for one in ranked]
        assert [one.index for one in output.outputs] == list(range(n))
        for one, expected in zip(output.outputs, ranked, strict=True):
            if logprobs is None:
                assert one.logprobs is None and one.cumulative_logprob is None
            else:
                assert one.cumulative_logprob == expected.cumulative_logprob
                assert one.logprobs is not None and all(
                    len(entry) in (logprobs, logprobs + 1) for entry in one.logprobs
                )


def test_best_of_n_is_n_in_order(llm: LLM) -> None:
    plain = llm.generate(PROMPTS, SamplingParams(n=3, **FIXED), use_tqdm=False)
    best = llm.generate(PROMPTS, SamplingParams(n=3, best_of=3, **FIXED), use_tqdm=False)
    assert [one.outputs for one in best] == [one.outputs for one in plain]


def test_progress_counts_what_comes_back(llm: LLM) -> None:
    counted: list[int] = []

    def bar(total: int, **_: Any) -> Any:
        class Bar:
            postfix = ""

            def update(self, count: int) -> None:
                counted.append(count)

            def close(self) -> None: ...

        counted.append(-total)
        return Bar()

    llm.generate(PROMPTS, SamplingParams(n=2, best_of=4, **FIXED), use_tqdm=bar)
    assert counted[0] == -4 and sum(counted) == 0


def test_iterations_give_the_best_at_the_end(llm: LLM) -> None:
    params = SamplingParams(n=1, best_of=4, **FIXED)
    (expected,) = llm.generate(PROMPTS[:1], params, use_tqdm=False)
    ((_, output),) = llm.generate_iter(PROMPTS[:1], params)
    assert output.outputs == expected.outputs
    (chunk,) = llm.stream(PROMPTS[0], params, output_kind=RequestOutputKind.FINAL_ONLY)
    assert (
        chunk.output is not None and chunk.output.outputs == expected.outputs and chunk.text == expected.outputs[0].text
    )
    with pytest.raises(ValueError, match="best_of must equal n to use output_kind=DELTA.*Use output_kind=FINAL_ONLY"):
        llm.stream(PROMPTS[0], params)
    with pytest.raises(ValueError, match="best_of must equal n to use output_kind=CUMULATIVE"):
        list(llm.generate_iter(PROMPTS, params, output_kind=RequestOutputKind.CUMULATIVE))
    assert llm.stats()["num_running"] == llm.stats()["num_waiting"] == 0
