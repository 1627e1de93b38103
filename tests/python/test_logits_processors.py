"""SamplingParams.logits_processors: signatures, arrays and tensors, errors, and that nobody else pays."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quire import LLM, SamplingParams

torch = pytest.importorskip("torch")

PROMPT = {"prompt_token_ids": [7, 8, 9]}


def params(*processors: Any, **values: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 5, "ignore_eos": True, "logits_processors": list(processors), **values})


def force(token_id: int) -> Any:
    def only(output: list[int], logits: np.ndarray) -> np.ndarray:
        logits[:] = -np.inf
        logits[token_id] = 0.0
        return logits

    return only


def tokens(llm: LLM, wish: SamplingParams) -> list[int]:
    (output,) = llm.generate(PROMPT, wish, use_tqdm=False)
    assert output.error is None
    return list(output.outputs[0].token_ids)


def test_two_arguments_get_the_output_so_far(llm: LLM) -> None:
    seen: list[tuple[list[int], Any]] = []

    def count_up(output: list[int], logits: np.ndarray) -> None:
        seen.append((output, logits))
        logits[20 + len(output)] = 1e4  # in place

    assert tokens(llm, params(count_up)) == [20, 21, 22, 23, 24]
    assert [output for output, _ in seen] == [[20, 21, 22, 23, 24][:length] for length in range(5)]
    for length, (_, logits) in enumerate(seen):  # may be kept
        assert logits.dtype == np.float32
        assert logits.shape == (llm.info()["vocab_size"],)
        assert logits[20 + length] == 1e4


def test_three_arguments_get_the_prompt_too(llm: LLM) -> None:
    def from_prompt(prompt: list[int], output: list[int], logits: np.ndarray) -> np.ndarray:
        assert prompt == PROMPT["prompt_token_ids"]
        changed = np.full(logits.shape, -1e9, dtype=np.float64)  # another array, another dtype
        changed[prompt[len(output) % 3]] = 0.0
        return changed

    assert tokens(llm, params(from_prompt)) == [7, 8, 9, 7, 8]


class Callable3:
    def __call__(self, prompt: Any, output: Any, logits: Any) -> Any:
        logits[prompt[0] + 1] = 1e4
        return logits


def test_objects_methods_and_partials(llm: LLM) -> None:
    def shifted(shift: int, output: list[int], logits: np.ndarray) -> None:
        logits[shift] = 1e5

    assert tokens(llm, params(Callable3())) == [8] * 5
    assert tokens(llm, params(functools.partial(shifted, 30))) == [30] * 5
    assert tokens(llm, params(Callable3(), functools.partial(shifted, 31))) == [31] * 5  # in their order


def test_torch_where_it_is_asked_for(llm: LLM) -> None:
    kinds = []

    def annotated(output: list[int], logits: torch.Tensor) -> torch.Tensor:
        kinds.append(type(logits))
        return logits.index_fill(0, torch.tensor([41]), 1e4).double()

    def marked(output: list[int], logits: Any) -> None:
        kinds.append(type(logits))
        logits[42] = 2e4

    marked.wants_torch = True  # type: ignore[attr-defined]
    assert tokens(llm, params(annotated)) == [41] * 5
    assert tokens(llm, params(annotated, marked)) == [42] * 5
    assert set(kinds) == {torch.Tensor}


def test_equals_logit_bias(llm: LLM) -> None:
    def bias(output: list[int], logits: np.ndarray) -> None:
        logits[5] += np.float32(1.5)
        logits[6] -= np.float32(2.25)

    for seed in range(8):
        values = {"seed": seed, "temperature": 1.3, "max_tokens": 12, "top_p": 0.9}
        assert tokens(llm, params(bias, **values)) == tokens(llm, params(logit_bias={5: 1.5, 6: -2.25}, **values))


def test_the_others_in_a_batch_keep_their_bits(llm: LLM) -> None:
    free = SamplingParams(seed=5, logprobs=2, max_tokens=12, ignore_eos=True)
    (alone,) = llm.generate(PROMPT, free, use_tqdm=False)
    wishes = [params(force(9), max_tokens=8), free, params(force(10), n=2)]
    mixed = llm.generate([PROMPT] * 3, wishes, use_tqdm=False)
    assert mixed[1].outputs[0].token_ids == alone.outputs[0].token_ids
    assert mixed[1].outputs[0].cumulative_logprob == alone.outputs[0].cumulative_logprob
    assert list(mixed[0].outputs[0].token_ids) == [9] * 8
    assert [list(one.token_ids) for one in mixed[2].outputs] == [[10] * 5] * 2


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (lambda output, logits: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda output, logits: logits[:-1], "must return its .* logits or None, got float32 of shape"),
        (lambda output, logits: "text", "must return its .* logits or None, got <U4 of shape"),
    ],
)
def test_an_exception_ends_its_request_alone(llm: LLM, result: Any, says: str) -> None:
    import re

    def late(output: list[int], logits: np.ndarray) -> Any:
        return result(output, logits) if len(output) == 2 else None

    bad, good = llm.generate([PROMPT] * 2, [params(late), params(force(11))], use_tqdm=False)
    assert bad.error is not None
    assert re.search(says, bad.error)
    assert bad.error.startswith("a logits processor of the request failed: ")
    assert bad.outputs[0].finish_reason == "error"
    assert len(bad.outputs[0].token_ids) == 2
    assert good.error is None
    assert list(good.outputs[0].token_ids) == [11] * 5
    assert tokens(llm, params(force(12))) == [12] * 5


def test_bad_ones_are_refused_before_any_work(llm: LLM) -> None:
    with pytest.raises(TypeError, match=r"logits_processors\[1\] must be callable, got int"):
        llm.generate(PROMPT, params(force(1), 5), use_tqdm=False)
    with pytest.raises(ValueError, match=r"logits_processors\[0\] must take .*its signature is \(logits\)"):
        llm.generate(PROMPT, params(lambda logits: None), use_tqdm=False)
    with pytest.raises(ValueError, match=r"\(prompt 1\)"):
        llm.generate([PROMPT] * 2, [params(), params(lambda a, b, c, d: None)], use_tqdm=False)


def test_streams_too(llm: LLM) -> None:
    ids = [i for chunk in llm.stream(PROMPT, params(force(13))) for i in chunk.token_ids]
    assert ids == [13] * 5


def test_interrupt_reaches_the_caller(tiny_model: Path) -> None:
    def interrupted(output: list[int], logits: np.ndarray) -> None:
        raise KeyboardInterrupt

    with LLM(str(tiny_model), num_gpu_blocks_override=64) as engine:
        with pytest.raises(KeyboardInterrupt):
            engine.generate(PROMPT, params(interrupted, max_tokens=50), use_tqdm=False)
        assert engine.stats()["num_running"] == 0
        assert tokens(engine, params(force(14))) == [14] * 5


def test_on_an_asynchronous_device(tiny_model: Path, simt_plugin: Path) -> None:
    free = SamplingParams(seed=5, temperature=0.0, max_tokens=6, ignore_eos=True)
    with LLM(str(tiny_model), dtype="float32", device="simt", max_model_len=64, max_num_seqs=4) as engine:
        (alone,) = engine.generate(PROMPT, free, use_tqdm=False)
        mixed = engine.generate([PROMPT] * 2, [params(force(15)), free], use_tqdm=False)
    assert list(mixed[0].outputs[0].token_ids) == [15] * 5
    assert mixed[1].outputs[0].token_ids == alone.outputs[0].token_ids


# Processors that are made for each request.


class Forcing:
    """As vLLM's AdapterLogitsProcessor: a function for each request, from its extra_args."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    @classmethod
    def validate_params(cls, wish: SamplingParams) -> None:
        if not isinstance((wish.extra_args or {}).get("force", 0), int):
            raise ValueError(f"force must be a token id, got {(wish.extra_args or {})['force']!r}")

    def new_req_logits_processor(self, wish: SamplingParams) -> Any:
        self.seen.append((wish.extra_args, wish.max_tokens))
        token_id = (wish.extra_args or {}).pop("force", None)
        return None if token_id is None else force(token_id)


def test_extra_args_reach_what_makes_processors(llm: LLM) -> None:
    maker = Forcing()
    wishes = [params(maker, max_tokens=2 + i, extra_args={"force": 30 + i}) for i in range(3)]
    wishes.append(params(maker, max_tokens=3, temperature=0))  # none of its business
    outputs = llm.generate([PROMPT] * 4, wishes, use_tqdm=False)
    assert [list(output.outputs[0].token_ids) for output in outputs[:3]] == [[30] * 2, [31] * 3, [32] * 4]
    (free,) = llm.generate([PROMPT], params(max_tokens=3, temperature=0), use_tqdm=False)
    assert outputs[3].outputs[0].token_ids == free.outputs[0].token_ids
    assert [max_tokens for _, max_tokens in maker.seen] == [2, 3, 4, 3]
    assert wishes[0].extra_args == {"force": 30}, "it was given a copy"


def test_processors_keep_their_order_around_one_that_is_made(llm: LLM) -> None:
    wish = params(force(7), Forcing(), extra_args={"force": 8})
    assert tokens(llm, wish) == [8] * 5
    assert tokens(llm, params(Forcing(), force(7), extra_args={"force": 8})) == [7] * 5


def test_extra_args_that_are_refused(llm: LLM) -> None:
    with pytest.raises(NotImplementedError, match=r"SamplingParams.extra_args \['a', 'b'\] would be read by nobody"):
        tokens(llm, params(force(7), extra_args={"b": 1, "a": 2}))
    assert tokens(llm, params(force(7), extra_args={})) == [7] * 5
    with pytest.raises(ValueError, match="force must be a token id, got 'x'"):
        tokens(llm, params(Forcing(), extra_args={"force": "x"}))
    with pytest.raises(TypeError, match=r"logits_processors\[1\] must be an object, got the class Forcing"):
        tokens(llm, params(force(7), Forcing, extra_args={"force": 1}))
    good, bad = params(Forcing(), extra_args={"force": 9}), params(Forcing(), extra_args={"force": "x"})
    first, second = llm.generate([PROMPT] * 2, [good, bad], use_tqdm=False, on_error="return")
    assert first.outputs[0].token_ids == [9] * 5 and "force must be a token id" in (second.error or "")
