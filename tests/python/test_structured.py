"""Parameters of constrained text: construction in every spelling, and the one form they all come to."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from quire import LLM, GuidedDecodingParams, SamplingParams, StructuredOutputsParams
from quire.structured import Constraint, GuidedDecodingRequest, LLMGuidedOptions, constraint_of, guided_of_request

SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"const": "é"}}}
SCHEMA_TEXT = '{"type":"object","properties":{"b":{"type":"string"},"a":{"const":"é"}}}'
KINDS: dict[str, Any] = {
    "json": SCHEMA,
    "regex": "a+",
    "choice": ["x", "y"],
    "grammar": 'root ::= "a"',
    "json_object": True,
}


class Model:
    """What pydantic models have, as classes and as instances."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        return SCHEMA


def test_fields_and_defaults() -> None:
    def positional(kind: type) -> list[tuple[str, Any]]:
        return [(entry.name, entry.default) for entry in dataclasses.fields(kind) if not entry.kw_only]

    kinds = [(name, None) for name in KINDS]
    assert positional(GuidedDecodingParams) == [*kinds, ("backend", None), ("whitespace_pattern", None)]
    assert positional(StructuredOutputsParams) == [
        *kinds,
        ("disable_any_whitespace", False),
        ("disable_additional_properties", False),
        ("whitespace_pattern", None),
        ("structural_tag", None),
    ]
    assert set(LLMGuidedOptions.__annotations__) == {entry.name for entry in dataclasses.fields(GuidedDecodingRequest)}


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_kinds_exclude_each_other(first: str, second: str) -> None:
    if first == second:
        return
    both = {first: KINDS[first], second: KINDS[second]}
    with pytest.raises(ValueError, match="You can only use one kind of guided decoding but multiple are specified: {"):
        GuidedDecodingParams(**both)
    with pytest.raises(ValueError, match="You can only use one kind of guided decoding but multiple are specified: {"):
        GuidedDecodingParams.from_optional(**both)
    with pytest.raises(ValueError, match="You can only use one kind of structured outputs constraint but multiple"):
        StructuredOutputsParams(**both)
    with pytest.raises(ValueError, match="You can only use one kind of guided decoding but multiple are specified: {"):
        GuidedDecodingRequest(**{f"guided_{name}": value for name, value in both.items()})
    with pytest.raises(ValueError, match="You can only use one guided decoding but multiple is specified: {"):
        guided_of_request({f"guided_{name}": value for name, value in both.items()})


def test_none_at_all() -> None:
    assert GuidedDecodingParams().backend_name == "" and GuidedDecodingParams.from_optional(backend="xgrammar") is None
    with pytest.raises(ValueError, match="You must use one kind of structured outputs constraint but none are"):
        StructuredOutputsParams()
    with pytest.raises(ValueError, match="none are specified"):
        StructuredOutputsParams(disable_any_whitespace=True)
    assert constraint_of(None) is None and constraint_of(GuidedDecodingParams()) is None


@pytest.mark.parametrize("given", [Model, Model(), SCHEMA])
def test_from_optional_takes_pydantic_models(given: Any) -> None:
    params = GuidedDecodingParams.from_optional(json=given)
    assert params is not None and params.json == SCHEMA


def test_backend_options() -> None:
    params = GuidedDecodingParams.from_optional(regex="a+", backend="xgrammar:no-fallback,disable-any-whitespace")
    assert params is not None and params.backend_name == "xgrammar" and params.no_fallback()
    assert params.backend_options() == ["no-fallback", "disable-any-whitespace"]
    plain = GuidedDecodingParams(regex="a+", backend="guidance")
    assert plain.backend_name == "guidance" and plain.backend_options() == [] and not plain.no_fallback()


def test_helpers_of_structured_outputs() -> None:
    tag = StructuredOutputsParams(structural_tag="{}")
    assert not tag.all_constraints_none() and tag.all_non_structural_tag_constraints_none()
    assert not StructuredOutputsParams(regex="a").all_non_structural_tag_constraints_none()


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("json", SCHEMA, Constraint("json", SCHEMA_TEXT)),
        ("json", json.dumps(SCHEMA, indent=2), Constraint("json", SCHEMA_TEXT)),
        ("json", Model, Constraint("json", SCHEMA_TEXT)),
        ("json", "true", Constraint("json", "true")),
        ("regex", "a+", Constraint("regex", "a+")),
        ("choice", ["y", "x"], Constraint("choice", choices=("y", "x"))),
        ("grammar", 'root ::= "a"', Constraint("grammar", 'root ::= "a"')),
        ("json_object", True, Constraint("json_object")),
        ("structural_tag", {"type": "structural_tag"}, Constraint("structural_tag", '{"type":"structural_tag"}')),
    ],
)
def test_one_form_of_every_spelling(kind: str, value: Any, expected: Constraint) -> None:
    assert constraint_of(StructuredOutputsParams(**{kind: value})) == expected
    assert constraint_of(GuidedDecodingParams(**{kind: value})) == expected
    assert constraint_of(GuidedDecodingParams.from_optional(**{kind: value})) == expected
    if kind != "structural_tag":
        assert constraint_of(guided_of_request({f"guided_{kind}": value})) == expected
        assert constraint_of(guided_of_request(GuidedDecodingRequest(**{f"guided_{kind}": value}))) == expected
    assert len({expected, constraint_of(StructuredOutputsParams(**{kind: value}))}) == 1, "hashable, by content"


def test_options_of_the_form() -> None:
    new = StructuredOutputsParams(
        json="{}", disable_any_whitespace=True, disable_additional_properties=True, whitespace_pattern=" ?"
    )
    form = Constraint("json", "{}", any_whitespace=False, additional_properties=False, whitespace_pattern=" ?")
    assert constraint_of(new) == form
    options = "no-fallback,disable-any-whitespace,disable-additional-properties"
    old = GuidedDecodingParams(json="{}", backend=f"xgrammar:{options}", whitespace_pattern=" ?")
    assert constraint_of(old) == dataclasses.replace(form, backend="xgrammar", fallback=False)
    between = GuidedDecodingParams(
        json="{}",
        whitespace_pattern=" ?",
        disable_fallback=True,
        disable_any_whitespace=True,
        disable_additional_properties=True,
    )
    assert constraint_of(between) == dataclasses.replace(form, fallback=False)
    request = GuidedDecodingRequest(
        guided_json="{}", guided_decoding_backend="guidance", guided_whitespace_pattern=" ?"
    )
    assert constraint_of(guided_of_request(request)) == Constraint(
        "json", "{}", whitespace_pattern=" ?", backend="guidance"
    )


@pytest.mark.parametrize(
    ("kind", "value", "error", "message"),
    [
        ("json", "{", ValueError, "Invalid JSON grammar specification."),
        ("json", {"a": {1, 2}}, ValueError, "Invalid JSON grammar specification."),
        ("json", 3, TypeError, "json must be JSON text, a dict or a pydantic model; got int"),
        ("regex", 3, TypeError, "regex must be a string, got int"),
        ("regex", "", ValueError, "regex must not be an empty string"),
        ("grammar", b"a", TypeError, "grammar must be a string, got bytes"),
        ("choice", "yes", TypeError, "choice must be a list of strings, got str"),
        ("choice", [], ValueError, "none of them empty"),
        ("choice", ["a", ""], ValueError, "none of them empty"),
        ("choice", [1], ValueError, "choice must be a list of strings"),
        ("json_object", False, ValueError, "json_object must be True, or None for no constraint; got False"),
        ("structural_tag", "x", ValueError, "structural_tag is not JSON"),
    ],
)
def test_what_no_engine_could_read(llm: LLM, kind: str, value: Any, error: type[Exception], message: str) -> None:
    for params in (StructuredOutputsParams(**{kind: value}), GuidedDecodingParams(**{kind: value})):
        with pytest.raises(error) as caught:
            constraint_of(params)
        assert message in str(caught.value)
        with pytest.raises(error):  # before any work, and before the feature is said to be missing
            llm.generate("a", SamplingParams(structured_outputs=params), use_tqdm=False)  # type: ignore[arg-type]


def test_wrong_types() -> None:
    with pytest.raises(TypeError, match="guided_decoding must be GuidedDecodingParams and structured_outputs"):
        constraint_of({"regex": "a"})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="guided_options_request must be a dict or a GuidedDecodingRequest, got str"):
        guided_of_request("regex")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"guided_options_request has unknown keys \['regex'\]"):
        guided_of_request({"regex": "a"})
    changed = StructuredOutputsParams(regex="a")
    changed.choice = ["a"]
    with pytest.raises(ValueError, match="Only one constraint of a text can be given"):
        constraint_of(changed)


def test_guided_options_request(llm: LLM) -> None:
    options = {"guided_regex": "a"}
    params = SamplingParams(max_tokens=2)
    for one in (params, [params], None):
        with pytest.warns(DeprecationWarning, match="use SamplingParams.guided_decoding instead") as caught:
            (output,) = llm.generate(["a"], one, guided_options_request=options, use_tqdm=False)
        assert output.outputs[0].text == "a"
        assert caught[0].filename == __file__
    assert params.guided_decoding is None, "the caller's object stays as it is, so that it can be used again"
    taken = SamplingParams(guided_decoding=GuidedDecodingParams(regex="b"))
    with pytest.warns(DeprecationWarning):
        with pytest.raises(ValueError, match="Cannot set both guided_options_request and params.guided_decoding."):
            llm.generate("a", taken, guided_options_request=options, use_tqdm=False)
    with pytest.warns(DeprecationWarning):
        with pytest.raises(ValueError, match="You can only use one guided decoding but multiple is specified"):
            both = {"guided_regex": "a", "guided_decoding_backend": "xgrammar"}
            llm.generate("a", params, guided_options_request=both, use_tqdm=False)
    for method in (llm.stream, llm.generate_iter):
        with pytest.warns(DeprecationWarning) as caught:
            assert list(method("a", params, guided_options_request=options))  # type: ignore[operator]
        assert caught[0].filename == __file__
