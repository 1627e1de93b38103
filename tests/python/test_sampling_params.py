"""SamplingParams: defaults, order, messages, normalisation, copies, and agreement with the core's field list."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
from quire import BeamSearchParams, GuidedDecodingParams, RequestOutputKind, SamplingParams, StructuredOutputsParams
from quire.sampling_params import RepetitionDetectionParams, SamplingType

# Name, default: vLLM 0.8.4, in the order of its constructor.
ORDER: list[tuple[str, Any]] = [
    ("n", 1),
    ("best_of", None),
    ("_real_n", None),
    ("presence_penalty", 0.0),
    ("frequency_penalty", 0.0),
    ("repetition_penalty", 1.0),
    ("temperature", 1.0),
    ("top_p", 1.0),
    ("top_k", -1),
    ("min_p", 0.0),
    ("seed", None),
    ("stop", None),
    ("stop_token_ids", None),
    ("ignore_eos", False),
    ("max_tokens", 16),
    ("min_tokens", 0),
    ("logprobs", None),
    ("prompt_logprobs", None),
    ("detokenize", True),
    ("skip_special_tokens", True),
    ("spaces_between_special_tokens", True),
    ("logits_processors", None),
    ("include_stop_str_in_output", False),
    ("truncate_prompt_tokens", None),
    ("output_kind", RequestOutputKind.CUMULATIVE),
    ("output_text_buffer_length", 0),
    ("_all_stop_token_ids", set()),
    ("guided_decoding", None),
    ("logit_bias", None),
    ("allowed_token_ids", None),
    ("extra_args", None),
    ("bad_words", None),
    ("_bad_words_token_ids", None),
]


def test_order_and_defaults() -> None:
    positional = [entry for entry in dataclasses.fields(SamplingParams) if not entry.kw_only]
    assert [entry.name for entry in positional] == [name for name, _ in ORDER]
    parameters = inspect.signature(SamplingParams).parameters
    for name, default in ORDER:
        if name != "_all_stop_token_ids":
            assert parameters[name].default == default, name
    assert SamplingParams(3, None, None, 0.5).presence_penalty == 0.5


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"n": "2"}, ValueError, "n must be an int, but is of type <class 'str'>"),
        ({"n": 0}, ValueError, "n must be at least 1, got 0."),
        ({"n": 2, "best_of": 1}, ValueError, "best_of must be greater than or equal to n, got n=2 and best_of=1."),
        ({"presence_penalty": 2.1}, ValueError, "presence_penalty must be in [-2, 2], got 2.1."),
        ({"frequency_penalty": -3.0}, ValueError, "frequency_penalty must be in [-2, 2], got -3.0."),
        ({"repetition_penalty": 0.0}, ValueError, "repetition_penalty must be greater than zero, got 0.0."),
        ({"temperature": -1.0}, ValueError, "temperature must be non-negative, got -1.0."),
        ({"temperature": float("nan")}, ValueError, "temperature must be non-negative, got nan."),
        ({"temperature": "hot"}, TypeError, "temperature must be a number, got str"),
        ({"top_p": 0.0}, ValueError, "top_p must be in (0, 1], got 0.0."),
        ({"top_k": -2}, ValueError, "top_k must be -1 (disable), or at least 1, got -2."),
        ({"top_k": 1.5}, TypeError, "top_k must be an integer, got float"),
        ({"min_p": 1.5}, ValueError, "min_p must be in [0, 1], got 1.5."),
        ({"max_tokens": 0}, ValueError, "max_tokens must be at least 1, got 0."),
        ({"max_tokens": 1.5}, TypeError, "max_tokens must be an integer, got float"),
        ({"min_tokens": -1}, ValueError, "min_tokens must be greater than or equal to 0, got -1."),
        ({"min_tokens": 17}, ValueError, "min_tokens must be less than or equal to max_tokens=16, got 17."),
        ({"logprobs": -2}, ValueError, "logprobs must be non-negative, got -2."),
        ({"prompt_logprobs": -2}, ValueError, "prompt_logprobs must be non-negative, got -2."),
        ({"truncate_prompt_tokens": 0}, ValueError, "truncate_prompt_tokens must be >= 1, got 0"),
        ({"stop": ["a", ""]}, ValueError, "stop cannot contain an empty string."),
        ({"stop": 3}, TypeError, "not iterable"),
        ({"stop_token_ids": ["a"]}, TypeError, "stop_token_ids must be a list of integers"),
        ({"bad_words": "word"}, TypeError, "bad_words must be a list of strings"),
        (
            {"stop": "a", "detokenize": False},
            ValueError,
            "stop strings are only supported when detokenize is True. Set detokenize=True to use stop.",
        ),
        (
            {"best_of": 2, "output_kind": RequestOutputKind.DELTA},
            ValueError,
            "best_of must equal n to use output_kind=DELTA",
        ),
        ({"n": 2, "temperature": 0.0}, ValueError, "n must be 1 when using greedy sampling, got 2."),
        ({"best_of": 2, "temperature": 0.0}, ValueError, "n must be 1 when using greedy sampling, got 2."),
        ({"best_of": 1.5}, ValueError, "best_of must be an integer, got <class 'float'>"),
        ({"best_of": 0}, ValueError, "best_of must be at least 1, got 0"),
        ({"stream_interval": 0}, ValueError, "stream_interval must be at least 1, got 0."),
        ({"bad_words": ["a", ""]}, ValueError, "bad_words cannot contain an empty string. Got bad_words=['a', '']"),
        ({"extra_args": [1]}, TypeError, "extra_args must be a dict, got list"),
        ({"logit_bias": [1]}, TypeError, "logit_bias must be a dict of token ids to numbers, got list"),
        ({"output_kind": 1}, TypeError, "output_kind must be a RequestOutputKind, got 1"),
        ({"thinking_token_budget": -2}, ValueError, "`thinking_token_budget` must be a non-negative integer or -1"),
        (
            {
                "guided_decoding": GuidedDecodingParams(regex="a"),
                "structured_outputs": StructuredOutputsParams(regex="a"),
            },
            ValueError,
            "Cannot set both guided_decoding and structured_outputs",
        ),
    ],
)
def test_messages(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        SamplingParams(**fields)
    assert message in str(caught.value)


def test_unknown_name_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=1.0)  # type: ignore[call-arg]


def test_normalisation(caplog: pytest.LogCaptureFixture) -> None:
    assert SamplingParams(stop="x").stop == ["x"]
    assert SamplingParams().stop == [] == SamplingParams().bad_words == SamplingParams().stop_token_ids
    assert SamplingParams(seed=-1).seed is None
    assert SamplingParams(logprobs=True).logprobs == 1 == SamplingParams(prompt_logprobs=True).prompt_logprobs
    assert SamplingParams(stop=["ab", "abcd"]).output_text_buffer_length == 3
    assert SamplingParams(stop=["ab"], include_stop_str_in_output=True).output_text_buffer_length == 0
    best = SamplingParams(n=2, best_of=3)
    assert (best.n, best._real_n) == (3, 2)
    greedy = SamplingParams(temperature=0.0, top_p=0.5, top_k=3, min_p=0.1)
    assert (greedy.top_p, greedy.top_k, greedy.min_p) == (1.0, -1, 0.0)
    with caplog.at_level(logging.WARNING, logger="quire"):
        assert SamplingParams(temperature=0.001).temperature == 0.01
    assert "0.001" in caplog.text
    assert SamplingParams(top_k=0).top_k == 0
    assert SamplingParams(stop_token_ids=[3, 4]).all_stop_token_ids == {3, 4}


def test_newer_values_that_mean_nothing_or_everything() -> None:
    assert SamplingParams(logprobs=-1).logprobs == -1 == SamplingParams(prompt_logprobs=-1).prompt_logprobs
    assert SamplingParams(thinking_token_budget=-1).thinking_token_budget is None
    assert SamplingParams(routed_experts_prompt_start=0).routed_experts_prompt_start is None
    assert SamplingParams(best_of=2, n=2, output_kind=RequestOutputKind.DELTA).best_of == 2
    assert [(kind.name, kind.value) for kind in RequestOutputKind] == [
        ("CUMULATIVE", 0),
        ("DELTA", 1),
        ("FINAL_ONLY", 2),
    ]


def test_eos_ids_of_a_generation_config() -> None:
    params = SamplingParams(stop_token_ids=[7])
    params.update_from_generation_config({"eos_token_id": [2, 3]}, 2)
    assert params.stop_token_ids == [7, 3] and params.all_stop_token_ids == {2, 3, 7}
    ignoring = SamplingParams(stop_token_ids=[7], ignore_eos=True)
    ignoring.update_from_generation_config({"eos_token_id": 3}, eos_token_id=2)
    assert ignoring.stop_token_ids == [7] and ignoring.all_stop_token_ids == {2, 3, 7}
    plain = SamplingParams()
    plain.update_from_generation_config({}, None)
    assert plain.stop_token_ids == [] and plain.all_stop_token_ids == set()


def test_bad_words_of_a_tokenizer(tokenizer_folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    params = SamplingParams(bad_words=["dog"])
    assert params.bad_words_token_ids is None
    params.update_from_tokenizer(tokenizer)
    plain, spaced = (tokenizer.encode(text, add_special_tokens=False) for text in ("dog", " dog"))
    kept = [plain, spaced] if len(spaced) == len(plain) and spaced[0] != plain[0] else [plain]
    assert params.bad_words_token_ids == kept
    SamplingParams().update_from_tokenizer(None)


def test_repetition_detection_params() -> None:
    assert RepetitionDetectionParams().max_pattern_size == 0
    assert RepetitionDetectionParams(3, 1, 2).min_count == 2
    with pytest.raises(ValueError, match="with min_pattern_size <= max_pattern_size"):
        RepetitionDetectionParams(1, 2, 2)
    with pytest.raises(ValueError, match="min_count must be >= 2 to detect repetitive patterns"):
        RepetitionDetectionParams(3)


def test_sampling_type() -> None:
    assert SamplingParams(temperature=0).sampling_type == SamplingType.GREEDY
    assert SamplingParams().sampling_type == SamplingType.RANDOM
    assert SamplingParams(seed=1).sampling_type == SamplingType.RANDOM_SEED


def test_from_optional() -> None:
    params = SamplingParams.from_optional(
        n=None, temperature=None, top_p=None, presence_penalty=None, logit_bias={"3": 200.0, "4": -101.0}, max_tokens=5
    )
    assert params.logit_bias == {3: 100.0, 4: -100.0}
    assert params == SamplingParams(max_tokens=5, logit_bias={3: 100.0, 4: -100.0})
    assert SamplingParams(logit_bias={3: 200.0}).logit_bias == {3: 200.0}
    with pytest.raises(ValueError, match=r"logit_bias contains key\(s\) that cannot be converted .*: \['x'\]"):
        SamplingParams.from_optional(logit_bias={"x": 1.0, "3": 1.0})
    newer = SamplingParams.from_optional(structured_outputs=StructuredOutputsParams(regex="a"), stream_interval=3)
    assert newer.structured_outputs is not None and newer.stream_interval == 3
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams.from_optional(temprature=1.0)


def test_from_optional_takes_what_vllm_takes_in_its_order() -> None:
    expected = (
        "n best_of presence_penalty frequency_penalty repetition_penalty temperature top_p top_k min_p seed stop "
        "stop_token_ids bad_words include_stop_str_in_output ignore_eos max_tokens min_tokens logprobs prompt_logprobs "
        "detokenize skip_special_tokens spaces_between_special_tokens logits_processors truncate_prompt_tokens "
        "output_kind guided_decoding logit_bias allowed_token_ids extra_args"
    ).split()
    parameters = inspect.signature(SamplingParams.from_optional).parameters
    assert [name for name in parameters if name != "newer"] == expected
    for name, default in ORDER:
        if name in expected:
            assert parameters[name].default == default, name


def test_clone_is_deep_but_shares_processors() -> None:
    def processor(ids: list[int], logits: Any) -> Any:
        return logits

    class Cloned:
        def clone(self) -> str:
            return "cloned"

    params = SamplingParams(stop=["a"], logit_bias={1: 1.0}, logits_processors=[processor, Cloned()])  # type: ignore[list-item]
    twin = params.clone()
    assert twin.stop == ["a"] and twin.stop is not params.stop and twin.logit_bias is not params.logit_bias
    assert twin.logits_processors is not None
    assert twin.logits_processors[0] is processor and twin.logits_processors[1] == "cloned"
    plain = SamplingParams(n=2, best_of=3, stop="x", seed=4)
    once = SamplingParams(skip_clone=True)
    assert once.clone() is once
    assert plain.clone() == plain == copy.deepcopy(plain) == pickle.loads(pickle.dumps(plain))


def test_repr_lists_fields_in_order() -> None:
    assert repr(SamplingParams(temperature=0.5, stop="x")) == (
        "SamplingParams(n=1, presence_penalty=0.0, frequency_penalty=0.0, repetition_penalty=1.0, temperature=0.5, "
        "top_p=1.0, top_k=-1, min_p=0.0, seed=None, stop=['x'], stop_token_ids=[], bad_words=[], "
        "include_stop_str_in_output=False, ignore_eos=False, max_tokens=16, min_tokens=0, logprobs=None, "
        "prompt_logprobs=None, skip_special_tokens=True, spaces_between_special_tokens=True, "
        "truncate_prompt_tokens=None, guided_decoding=None, extra_args=None)"
    )


def test_beam_search_params() -> None:
    params = BeamSearchParams(4, 8)
    assert (params.ignore_eos, params.temperature, params.length_penalty) == (False, 0.0, 1.0)
    assert [(entry.name, entry.kw_only) for entry in dataclasses.fields(BeamSearchParams)] == [
        ("beam_width", False),
        ("max_tokens", False),
        ("ignore_eos", False),
        ("temperature", False),
        ("length_penalty", False),
        ("include_stop_str_in_output", False),
        ("structured_outputs", True),
        ("skip_special_tokens", True),
        ("watermarking", True),
        ("allowed_token_ids", True),
        ("stop_token_ids", True),  # quire's own, as the next two
        ("stop", True),
        ("length_includes_prompt", True),
    ]
    # None: the text has special tokens, as in vLLM 0.8.4, which has no such field.
    assert params.skip_special_tokens is params.structured_outputs is params.allowed_token_ids is None
    with pytest.raises(TypeError):
        BeamSearchParams(4)  # type: ignore[call-arg]


def test_core_has_every_field_that_python_sends() -> None:
    """What compile_params writes is what the core reads: the same names, none missing on either side."""
    from quire import _quire
    from quire.requests import Limits, compile_params

    limits = Limits(vocab_size=100, max_model_len=64, max_logprobs=20, eos_token_ids=frozenset({1}))
    compiled = compile_params(SamplingParams(), None, limits)
    assert set(compiled.engine) == {name for name, _ in _quire.sampling_param_fields()}
    _quire.validate_sampling_params(compiled.engine)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 0},
        {"presence_penalty": 2.5},
        {"frequency_penalty": -2.5},
        {"repetition_penalty": 0.0},
        {"temperature": -0.5},
        {"top_p": 0.0},
        {"top_k": -2},
        {"min_p": 1.5},
        {"max_tokens": 0},
        {"min_tokens": -1},
        {"min_tokens": 20},
        {"logprobs": -3},
    ],
)
def test_core_refuses_with_the_same_words(fields: dict[str, Any]) -> None:
    from quire import _quire
    from quire.requests import Limits, compile_params

    limits = Limits(vocab_size=100, max_model_len=64, max_logprobs=20, eos_token_ids=frozenset())
    engine = {**compile_params(SamplingParams(), None, limits).engine, **fields}
    with pytest.raises(ValueError) as of_core:
        _quire.validate_sampling_params(engine)
    with pytest.raises(ValueError) as of_python:
        SamplingParams(**fields)
    assert str(of_core.value).split(",")[0] == str(of_python.value).split(",")[0]
