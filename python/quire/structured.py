"""What a request's text must match: the parameter types of vLLM, old and new spelling, brought to one form.

Decides what can be constructed and what each spelling means. `constraint_of(params)` is the one form that an engine
takes: a `Constraint`, frozen and hashable, so a compiled grammar can be cached by content. Its fields:

    kind                   "json", "json_object", "regex", "choice", "grammar" or "structural_tag"
    text                   the JSON schema, regular expression, grammar or structural tag; "" for json_object and choice
    choices                the strings of "choice", in the caller's order
    any_whitespace         whether JSON may hold whitespace between its parts
    additional_properties  whether objects of a schema without "additionalProperties" may have other keys
    whitespace_pattern     a regular expression for that whitespace, or None
    backend, fallback      the backend asked for ("" where none was), and whether another may serve in its place

It knows no grammar engine: that a schema, an expression or a grammar compiles is found where it is compiled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from quire.errors import ValidationError

_KINDS = ("json", "regex", "choice", "grammar", "json_object")
_ALL_KINDS = (*_KINDS, "structural_tag")


def _given(params: object, kinds: tuple[str, ...] = _ALL_KINDS) -> dict[str, Any]:
    return {name: getattr(params, name) for name in kinds if getattr(params, name) is not None}


def _schema(value: Any) -> Any:
    """`value`, or the schema of a pydantic model, given as a class or an instance."""
    return value.model_json_schema() if hasattr(value, "model_json_schema") else value


@dataclass
class GuidedDecodingParams:
    """One of json, regex, choice, grammar and json_object; the keyword-only fields are newer than vLLM 0.8.4."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    backend: str | None = None
    whitespace_pattern: str | None = None
    structural_tag: str | None = field(default=None, kw_only=True)
    disable_fallback: bool = field(default=False, kw_only=True)
    disable_any_whitespace: bool = field(default=False, kw_only=True)
    disable_additional_properties: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if len(_given(self)) > 1:
            raise ValueError(f"You can only use one kind of guided decoding but multiple are specified: {vars(self)}")

    @staticmethod
    def from_optional(
        json: Any = None,
        regex: str | None = None,
        choice: list[str] | None = None,
        grammar: str | None = None,
        json_object: bool | None = None,
        backend: str | None = None,
        whitespace_pattern: str | None = None,
        structural_tag: str | None = None,
    ) -> GuidedDecodingParams | None:
        """None when nothing is asked for; `json` may also be a pydantic model, as a class or an instance."""
        if all(arg is None for arg in (json, regex, choice, grammar, json_object, structural_tag)):
            return None
        return GuidedDecodingParams(
            _schema(json),
            regex,
            choice,
            grammar,
            json_object,
            backend,
            whitespace_pattern,
            structural_tag=structural_tag,
        )

    @property
    def backend_name(self) -> str:
        return (self.backend or "").split(":")[0]

    def backend_options(self) -> list[str]:
        name, _, options = (self.backend or "").partition(":")
        return options.split(",") if name and options else []

    def no_fallback(self) -> bool:
        return "no-fallback" in self.backend_options()


@dataclass
class StructuredOutputsParams:
    """The newer name of GuidedDecodingParams: exactly one of the first five, or a structural tag."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    structural_tag: str | None = None

    def __post_init__(self) -> None:
        given = _given(self)
        if len(given) > 1:
            raise ValueError(
                f"You can only use one kind of structured outputs constraint but multiple are specified: {vars(self)}"
            )
        if not given:
            raise ValueError(
                f"You must use one kind of structured outputs constraint but none are specified: {vars(self)}"
            )

    def all_constraints_none(self) -> bool:
        return not _given(self)

    def all_non_structural_tag_constraints_none(self) -> bool:
        return not _given(self, _KINDS)


class LLMGuidedOptions(TypedDict, total=False):
    """Deprecated: what generate's guided_options_request takes as a dict."""

    guided_json: Any
    guided_regex: str
    guided_choice: list[str]
    guided_grammar: str
    guided_decoding_backend: str
    guided_whitespace_pattern: str
    guided_json_object: bool


@dataclass
class GuidedDecodingRequest:
    """Deprecated: what generate's guided_options_request takes as an object."""

    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_decoding_backend: str | None = None
    guided_whitespace_pattern: str | None = None
    guided_json_object: bool | None = None

    def __post_init__(self) -> None:
        if len(_given(self, tuple(f"guided_{kind}" for kind in _KINDS))) > 1:
            raise ValueError(f"You can only use one kind of guided decoding but multiple are specified: {vars(self)}")


def guided_of_request(request: GuidedDecodingRequest | Mapping[str, Any]) -> GuidedDecodingParams | None:
    """The parameters that a guided_options_request stands for."""
    if isinstance(request, Mapping):
        if len(request) > 1:
            raise ValidationError(
                f"You can only use one guided decoding but multiple is specified: {dict(request)}",
                parameter="guided_options_request",
            )
        unknown = sorted(set(request) - set(GuidedDecodingRequest.__dataclass_fields__))
        if unknown:
            known = sorted(GuidedDecodingRequest.__dataclass_fields__)
            raise TypeError(f"guided_options_request has unknown keys {unknown}; known are {known}")
        request = GuidedDecodingRequest(**request)
    if not isinstance(request, GuidedDecodingRequest):
        raise TypeError(
            f"guided_options_request must be a dict or a GuidedDecodingRequest, got {type(request).__name__}"
        )
    return GuidedDecodingParams.from_optional(
        json=request.guided_json,
        regex=request.guided_regex,
        choice=request.guided_choice,
        grammar=request.guided_grammar,
        json_object=request.guided_json_object,
        backend=request.guided_decoding_backend,
        whitespace_pattern=request.guided_whitespace_pattern,
    )


@dataclass(frozen=True)
class Constraint:
    """One form for all spellings; see the head of this file."""

    kind: str
    text: str = ""
    choices: tuple[str, ...] = ()
    any_whitespace: bool = True
    additional_properties: bool = True
    whitespace_pattern: str | None = None
    backend: str = ""
    fallback: bool = True


def constraint_of(params: GuidedDecodingParams | StructuredOutputsParams | None) -> Constraint | None:
    """What `params` ask for; None where they ask for nothing. Errors for what no engine could read."""
    if params is None:
        return None
    if not isinstance(params, (GuidedDecodingParams, StructuredOutputsParams)):
        raise TypeError(
            "guided_decoding must be GuidedDecodingParams and structured_outputs StructuredOutputsParams; "
            f"got {type(params).__name__}"
        )
    given = _given(params)
    if len(given) > 1:  # fields can be assigned after construction
        raise ValidationError(f"Only one constraint of a text can be given, got {sorted(given)}")
    if not given:
        return None
    ((kind, value),) = given.items()
    text, choices = _content(kind, value)
    guided = params if isinstance(params, GuidedDecodingParams) else None
    options = guided.backend_options() if guided else []
    return Constraint(
        kind,
        text,
        choices,
        any_whitespace=not (params.disable_any_whitespace or "disable-any-whitespace" in options),
        additional_properties=not (params.disable_additional_properties or "disable-additional-properties" in options),
        whitespace_pattern=params.whitespace_pattern,
        backend=guided.backend_name if guided else "",
        fallback=not (guided and (guided.disable_fallback or guided.no_fallback())),
    )


def _content(kind: str, value: Any) -> tuple[str, tuple[str, ...]]:
    """(text, choices) of a constraint."""
    if kind == "json_object":
        if value is not True:
            raise ValidationError(f"json_object must be True, or None for no constraint; got {value!r}")
        return "", ()
    if kind == "choice":
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise TypeError(f"choice must be a list of strings, got {type(value).__name__}")
        if not value or not all(isinstance(one, str) and one for one in value):
            raise ValidationError(f"choice must be a list of strings, none of them empty; got {value!r}")
        return "", tuple(value)
    if kind in ("json", "structural_tag"):
        return _json_text(kind, _schema(value)), ()
    if not isinstance(value, str):
        raise TypeError(f"{kind} must be a string, got {type(value).__name__}")
    if not value:
        raise ValidationError(f"{kind} must not be an empty string")
    return value, ()


def _json_text(kind: str, value: Any) -> str:
    """JSON in one spelling, keys in the caller's order: the order of a schema's properties is that of the output."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValidationError(f"Invalid JSON grammar specification. {kind} is not JSON: {error}") from error
    elif not isinstance(value, Mapping):
        raise TypeError(f"{kind} must be JSON text, a dict or a pydantic model; got {type(value).__name__}")
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ValidationError(
            f"Invalid JSON grammar specification. {kind} cannot be written as JSON: {error}"
        ) from error
