"""Outputs: log-probabilities made on access behave as a list of dicts; outputs merge and print as vLLM's."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from quire.outputs import CompletionOutput, LazyLogprobs, Logprob, RequestMetrics, RequestOutput, error_output


def make(num_tokens: int = 3) -> tuple[LazyLogprobs, list[dict[int, Logprob]]]:
    """Column 0 is the sampled token; at even positions it is among the two most likely ones."""
    token_ids = np.array([[10 + i, 10 + i if i % 2 == 0 else 30 + i, 20 + i] for i in range(num_tokens)], np.int32)
    logprobs = np.array([[-1.0 - i, -1.0 - i if i % 2 == 0 else -0.5, -2.0] for i in range(num_tokens)], np.float32)
    ranks = np.array([1 if i % 2 == 0 else 7 for i in range(num_tokens)], np.int32)
    buffer: Any = SimpleNamespace(width=3, token_ids=token_ids, logprobs=logprobs, sampled_ranks=ranks)
    expected = []
    for i in range(num_tokens):
        entry = {10 + i: Logprob(-1.0 - i, int(ranks[i]), f"t{10 + i}")}
        if i % 2:
            entry[30 + i] = Logprob(-0.5, 1, f"t{30 + i}")
        entry[20 + i] = Logprob(-2.0, 2, f"t{20 + i}")
        expected.append(entry)
    return LazyLogprobs(buffer, lambda token_id: f"t{token_id}"), expected


def test_reads_as_a_list() -> None:
    lazy, expected = make()
    assert isinstance(lazy, list) and len(lazy) == 3
    assert lazy[0] == expected[0] and lazy[-1] == expected[2] and lazy[1:] == expected[1:]
    assert list(lazy) == expected and [*lazy] == expected and list(reversed(lazy)) == expected[::-1]
    assert lazy == expected and expected == lazy and not lazy != expected
    assert repr(make()[0]) == repr(expected)
    assert list(lazy[0])[0] == 10  # the sampled token comes first
    assert lazy[0] is lazy[0]
    with pytest.raises(IndexError):
        lazy[3]


@pytest.mark.parametrize("name", ["copy", "pickle", "deepcopy", "add", "radd", "sorted", "index", "contains", "zip"])
def test_untouched_list_is_never_seen_empty(name: str) -> None:
    lazy, expected = make()
    reads = {
        "copy": lambda: lazy.copy() == expected,
        "pickle": lambda: pickle.loads(pickle.dumps(lazy)) == expected,
        "deepcopy": lambda: copy.deepcopy(lazy) == expected,
        "add": lambda: lazy + [] == expected,
        "radd": lambda: [] + lazy == expected,
        "sorted": lambda: sorted(lazy, key=min) == sorted(expected, key=min),
        "index": lambda: lazy.index(expected[1]) == 1,
        "contains": lambda: expected[2] in lazy,
        "zip": lambda: [a for a, _ in zip(lazy, range(3), strict=True)] == expected,
    }
    assert reads[name]()


def test_writes() -> None:
    lazy, expected = make()
    lazy.append({})
    assert lazy == [*expected, {}]
    lazy, expected = make()
    assert lazy.pop(0) == expected[0] and lazy == expected[1:]
    lazy, expected = make()
    lazy[1] = {}
    assert lazy == [expected[0], {}, expected[2]]
    lazy, expected = make()
    lazy.extend(make()[0])
    assert lazy == expected + expected


def test_request_output_add_and_repr() -> None:
    def output(text: str, ids: list[int], finished: bool) -> RequestOutput:
        completion = CompletionOutput(0, text, ids, None, None, "stop" if finished else None)
        return RequestOutput("7", "p", [1], None, [completion], finished)

    first = output("a", [1], False)
    first.add(output("b", [2], True))
    assert (first.outputs[0].text, first.outputs[0].token_ids, first.finished) == ("ab", [1, 2], True)
    assert first.outputs[0].finished() and first.outputs[0] == CompletionOutput(0, "ab", [1, 2], None, None, "stop")
    assert repr(first).startswith("RequestOutput(request_id=7, prompt='p', prompt_token_ids=[1], ")
    assert first.multi_modal_placeholders == {} and first.lora_request is None


def test_completion_output_is_that_of_vllm() -> None:
    names = [entry.name for entry in dataclasses.fields(CompletionOutput)]
    assert (
        names
        == (
            "index text token_ids cumulative_logprob logprobs finish_reason stop_reason lora_request "
            "routed_experts sampling_mask spec_decode_metrics weight_versions kv_transfer_params "
            "hidden_states logits"  # quire's own
        ).split()
    )
    one = CompletionOutput(0, "a'b", [1, 2], -0.5, [{1: Logprob(-0.5)}])
    assert not one.finished() and one == CompletionOutput(0, "a'b", [1, 2], -0.5, [{1: Logprob(-0.5)}])
    assert repr(one) == (
        'CompletionOutput(index=0, text="a\'b", token_ids=[1, 2], cumulative_logprob=-0.5, '
        "logprobs=[{1: Logprob(logprob=-0.5, rank=None, decoded_token=None)}], finish_reason=None, stop_reason=None)"
    )


def test_request_output_takes_what_vllm_has(caplog: pytest.LogCaptureFixture) -> None:
    expected = (
        "request_id prompt prompt_token_ids prompt_logprobs outputs finished metrics lora_request encoder_prompt "
        "encoder_prompt_token_ids num_cached_tokens"
    ).split()
    parameters = inspect.signature(RequestOutput).parameters.values()
    assert [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD] == expected
    output = RequestOutput("0", None, None, None, [], False, multi_modal_placeholders={"image": [1]})
    assert output.multi_modal_placeholders == {"image": [1]} and output != RequestOutput("0", *[None] * 3, [], False)
    for name in ("num_cache_creation_tokens", "kv_transfer_params", "ec_transfer_params", "prompt_token_id_logprobs"):
        assert getattr(output, name) is None
        assert getattr(RequestOutput("0", None, None, None, [], False, **{name: 3}), name) == 3
    assert not caplog.records
    RequestOutput("0", None, None, None, [], False, of_tomorrow=1)
    assert "ignoring extra arguments: {'of_tomorrow': 1}" in caplog.text


def test_metrics_have_both_names() -> None:
    metrics = RequestMetrics(1.0, 4.0, 2.0, 3.0, 1.0, 5.0)
    assert (metrics.queued_ts, metrics.scheduled_ts, metrics.first_token_ts, metrics.last_token_ts) == (1, 2, 3, 4)
    assert metrics.first_token_latency == 2.0 and metrics.finished_time == 5.0
    assert RequestMetrics(1.0, 4.0, None, None, None).first_token_latency is None
    assert {entry.name for entry in dataclasses.fields(RequestMetrics)} >= {
        "scheduler_time",
        "model_forward_time",
        "model_execute_time",
        "spec_token_acceptance_counts",
    }


def test_add_replaces_or_extends_by_index() -> None:
    def piece(index: int, text: str, **end: Any) -> RequestOutput:
        one = CompletionOutput(index, text, (len(text),), -1.0, [{0: Logprob(-1.0)}], **end)  # type: ignore[arg-type]
        return RequestOutput("7", "p", [1], None, [one], False)

    whole = piece(0, "a")
    whole.add(piece(1, "x"))
    whole.add(piece(0, "bc", finish_reason="stop", stop_reason=5))
    first, second = whole.outputs
    assert (first.text, list(first.token_ids), first.stop_reason, second.text) == ("abc", [1, 2], 5, "x")
    assert first.logprobs == [{0: Logprob(-1.0)}] * 2
    whole.add(piece(0, "new"), aggregate=False)
    assert whole.outputs[0].text == "new" and not whole.finished


def test_error_output() -> None:
    output = error_output("3", "text", None, "too long")
    assert output.finished and output.error == "too long" and output.outputs[0].finish_reason == "error"
