"""What a request's text must match: the parameter types of guided decoding, old and new spelling.

Decides only what can be constructed. Serving them comes in a later release; a request that carries one is refused by
name at submission.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_KINDS = ("json", "regex", "choice", "grammar", "json_object")


def _given(params: object, kinds: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(params, name) for name in kinds if getattr(params, name) is not None}


@dataclass
class GuidedDecodingParams:
    """One of json, regex, choice, grammar and json_object."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    backend: str | None = None
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        given = _given(self, _KINDS)
        if len(given) > 1:
            raise ValueError(f"You can only use one kind of guided decoding but multiple are specified: {given}")

    @staticmethod
    def from_optional(
        json: Any = None,
        regex: str | None = None,
        choice: list[str] | None = None,
        grammar: str | None = None,
        json_object: bool | None = None,
        backend: str | None = None,
        whitespace_pattern: str | None = None,
    ) -> GuidedDecodingParams | None:
        """None when nothing is asked for; `json` may also be a pydantic model, as a class or an instance."""
        if all(arg is None for arg in (json, regex, choice, grammar, json_object)):
            return None
        if hasattr(json, "model_json_schema"):
            json = json.model_json_schema()
        return GuidedDecodingParams(json, regex, choice, grammar, json_object, backend, whitespace_pattern)

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
        given = _given(self, (*_KINDS, "structural_tag"))
        if len(given) > 1:
            raise ValueError(
                f"You can only use one kind of structured outputs constraint but multiple are given: {given}"
            )
        if not given:
            raise ValueError("You must use one kind of structured outputs constraint but none are specified.")
