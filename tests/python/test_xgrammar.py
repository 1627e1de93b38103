"""Structured output on xgrammar, where it is installed, and what is said where it is not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from checkpoints import DEMO
from quire import LLM, BeamSearchParams, GuidedDecodingParams, SamplingParams, StructuredOutputsParams, xgrammar_backend
from quire.structured import constraint_of

PROMPT = "Once upon a time"
PERSON = {
    "type": "object",
    "properties": {"name": {"enum": ["Lily", "Tom"]}, "ok": {"type": "boolean"}, "pet": {"$ref": "#/$defs/pet"}},
    "required": ["name", "ok", "pet"],
    "additionalProperties": False,
    "$defs": {"pet": {"type": "string", "minLength": 1, "maxLength": 4}},
}


@pytest.fixture(scope="module")
def engine() -> Iterator[LLM]:
    pytest.importorskip("xgrammar")
    with LLM(str(DEMO), seed=0, max_model_len=256, guided_decoding_backend="xgrammar:no-fallback") as llm:
        yield llm


def texts(llm: LLM, seeds: int = 20, values: dict[str, Any] | None = None, **kind: Any) -> list[tuple[str, str | None]]:
    guided = GuidedDecodingParams(**kind)
    wishes = [
        SamplingParams(**{"temperature": 1.0, "max_tokens": 60, "seed": seed, **(values or {})}, guided_decoding=guided)
        for seed in range(seeds)
    ]
    outputs = llm.generate([PROMPT] * len(wishes), wishes, use_tqdm=False)
    assert [output.error for output in outputs] == [None] * len(wishes)
    return [(one.text, one.finish_reason) for output in outputs for one in output.outputs]


def test_choice(engine: LLM) -> None:
    got = texts(engine, 40, choice=["a cat", "a dog", 'a "word"', "été"])
    assert {reason for _, reason in got} == {"stop"}
    assert len({text for text, _ in got}) > 1 and {text for text, _ in got} <= {"a cat", "a dog", 'a "word"', "été"}


@pytest.mark.parametrize("pattern", ["[a-c]{2,5}x", "(yes|no)!?", r"\d{3}-\d{2}"])
def test_regex(engine: LLM, pattern: str) -> None:
    for text, reason in texts(engine, regex=pattern):
        assert reason == "stop" and re.fullmatch(pattern, text)


def test_json(engine: LLM) -> None:
    for text, reason in texts(engine, json=PERSON, disable_any_whitespace=True):
        value = json.loads(text)
        assert reason == "stop" and not re.search(r"\s", re.sub(r'"(\\.|[^"\\])*"', "", text))
        assert value["name"] in ("Lily", "Tom") and isinstance(value["ok"], bool) and 1 <= len(value["pet"]) <= 4
        assert set(value) == {"name", "ok", "pet"}


def test_json_object(engine: LLM) -> None:
    few = engine.get_tokenizer().convert_tokens_to_ids(list('{}":ab1'))  # with all tokens a story would never end
    got = texts(engine, json_object=True, values={"max_tokens": 100, "allowed_token_ids": few, "temperature": 3.0})
    finished = {text for text, reason in got if reason == "stop"}
    assert len(finished) > 1 and all(isinstance(json.loads(text), dict) for text in finished)


@pytest.mark.parametrize("grammar", ['root ::= "a" [bc]+ "d"', 'start: "a" /[bc]+/ "d"'])
def test_grammar(engine: LLM, grammar: str) -> None:
    finished = [text for text, reason in texts(engine, grammar=grammar) if reason == "stop"]
    assert finished and all(re.fullmatch("a[bc]+d", text) for text in finished)


def test_masks_are_those_of_guidance(engine: LLM) -> None:
    """Where no text is certain, so that llguidance does not insist on one spelling: the same draws."""
    pytest.importorskip("llguidance")
    with LLM(str(DEMO), seed=0, max_model_len=256, guided_decoding_backend="guidance") as other:
        for pattern in ("[a-z ]{5,20}[.!]", "([0-9]|[a-f]){6}"):
            assert texts(other, regex=pattern) == texts(engine, regex=pattern)


def test_beam_search_and_several_sequences(engine: LLM) -> None:
    wish = StructuredOutputsParams(choice=["a red ball", "a blue ball", "a big dog", "two"])
    params = BeamSearchParams(3, 20, structured_outputs=wish, skip_special_tokens=True)
    (output,) = engine.beam_search([{"prompt": "She saw "}], params)
    found = [str(one.text).removeprefix("She saw ") for one in output.sequences]
    assert len(output.sequences) == 3 and set(found) <= set(wish.choice or ())
    assert {text for text, _ in texts(engine, 2, {"n": 4}, choice=["x", "yy"])} <= {"x", "yy"}


def test_both_backends_in_one_batch() -> None:
    pytest.importorskip("xgrammar")
    pytest.importorskip("llguidance")
    with LLM(str(DEMO), seed=0, max_model_len=128) as llm:
        wishes = [
            SamplingParams(seed=1, guided_decoding=GuidedDecodingParams(choice=["x", "y"], backend=backend))
            for backend in ("xgrammar", "guidance", "auto", "xgrammar")
        ]
        outputs = llm.generate([PROMPT] * 4, wishes, use_tqdm=False)
        assert len({output.outputs[0].text for output in outputs}) == 1 and outputs[0].outputs[0].text in ("x", "y")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ({"regex": "("}, "Failed to transform regex into a grammar: "),
        ({"grammar": "root ::= ("}, "Invalid grammar specification. "),
        ({"json": {"type": "integer", "minimum": 3}}, "contains features not supported by xgrammar.*'minimum'"),
        ({"json": {"items": {"anyOf": [{"not": {}}]}}}, r"does not enforce the keywords \['not'\] of a schema"),
        ({"structural_tag": '{"structures": [], "triggers": []}'}, "xgrammar does not support structural tags"),
        ({"json": {}, "whitespace_pattern": " "}, "does not enforce whitespace_pattern"),
    ],
    ids=str,
)
def test_what_it_cannot_hold_is_refused(engine: LLM, kind: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        engine.generate(PROMPT, SamplingParams(guided_decoding=GuidedDecodingParams(**kind)), use_tqdm=False)


def test_what_it_cannot_hold_goes_to_guidance_where_that_may_be() -> None:
    pytest.importorskip("llguidance")
    with LLM(str(DEMO), seed=0, max_model_len=128, guided_decoding_backend="xgrammar") as llm:
        for text, reason in texts(llm, 5, json={"type": "integer", "minimum": 3, "maximum": 7}):
            assert reason == "stop" and 3 <= int(text) <= 7


def test_keywords_of_a_schema_are_told_from_names_of_properties() -> None:
    def lacks(schema: Any) -> str | None:
        constraint = constraint_of(GuidedDecodingParams(json=schema))
        assert constraint is not None
        return xgrammar_backend.what_it_lacks(constraint)

    assert lacks(PERSON) is None
    assert lacks({"properties": {"minimum": {"type": "string"}, "not": {"const": {"pattern": 1}}}}) is None
    assert lacks({"properties": {"a": {"items": {"pattern": "x"}}}}) == "the keywords ['pattern'] of a schema"


def test_without_xgrammar(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "xgrammar", None)
    with LLM(str(DEMO), seed=0, max_model_len=64, guided_decoding_backend="xgrammar:no-fallback") as llm:
        with pytest.raises(ImportError, match="pip install xgrammar"):
            llm.generate(PROMPT, SamplingParams(guided_decoding=GuidedDecodingParams(choice=["x"])), use_tqdm=False)
