"""Prompts: the shapes a caller may give them in, brought to one shape.

Decides what counts as one prompt and what as many, and the errors for anything else. It neither tokenises nor knows a
model. Pure functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypedDict

from quire.errors import ValidationError

if TYPE_CHECKING:
    from typing_extensions import NotRequired


class TextPrompt(TypedDict):
    """A prompt as text."""

    prompt: str
    multi_modal_data: NotRequired[Any]
    mm_processor_kwargs: NotRequired[dict[str, Any]]


class TokensPrompt(TypedDict):
    """A prompt as token ids; `prompt` may carry the text they came from."""

    prompt_token_ids: list[int]
    prompt: NotRequired[str]
    token_type_ids: NotRequired[list[int]]
    multi_modal_data: NotRequired[Any]
    mm_processor_kwargs: NotRequired[dict[str, Any]]


class ExplicitEncoderDecoderPrompt(TypedDict):
    """A prompt of an encoder-decoder model; refused, because there are none."""

    encoder_prompt: Any
    decoder_prompt: Any
    mm_processor_kwargs: NotRequired[dict[str, Any]]


class EmbedsPrompt(TypedDict):
    """A prompt as embeddings; refused by this version."""

    prompt_embeds: Any
    cache_salt: NotRequired[str]


SingletonPrompt = str | TextPrompt | TokensPrompt | list[int]
PromptType = SingletonPrompt

WRONG_TYPE = "inputs must be a string, TextPrompt, or TokensPrompt"
_DICT_KEYS = frozenset(("prompt", "prompt_token_ids", "multi_modal_data", "mm_processor_kwargs", "token_type_ids"))


@dataclass
class ParsedPrompt:
    """Text to tokenise, or token ids (with the text they came from, when the caller said it)."""

    text: str | None
    token_ids: Sequence[int] | None
    add_special_tokens: bool = True


def is_token_ids(value: object) -> bool:
    """Whether `value` is a list of integers, or a one-dimensional integer array."""
    if isinstance(value, (list, tuple)):
        return all(issubclass(kind, Integral) and kind is not bool for kind in set(map(type, value)))
    return _is_array(value) and value.ndim == 1 and value.dtype.kind in "iu"  # type: ignore[attr-defined]


def _is_array(value: object) -> bool:
    return hasattr(value, "ndim") and hasattr(value, "dtype") and hasattr(value.dtype, "kind")


def is_one_prompt(prompts: object) -> bool:
    """Whether what is given for the prompts of a call is itself one prompt."""
    if isinstance(prompts, (str, Mapping, ParsedPrompt)):
        return True
    return hasattr(prompts, "__len__") and len(prompts) > 0 and is_token_ids(prompts)


def as_list(prompts: Any) -> list[Any]:
    """The prompts of a call as a list; a str, a dict and a list of integers count as one prompt."""
    if prompts is None:
        raise TypeError(
            "prompts must be a string, TextPrompt, TokensPrompt, a list of token ids, or a sequence of these; got None"
        )
    if isinstance(prompts, (str, Mapping, ParsedPrompt)):
        return [prompts]
    if _is_array(prompts):
        if prompts.ndim not in (1, 2):
            raise TypeError(f"{WRONG_TYPE}, or a sequence of these; got an array with {prompts.ndim} dimensions")
        return [prompts] if prompts.ndim == 1 else list(prompts)
    if isinstance(prompts, (bytes, bytearray)) or not hasattr(prompts, "__len__"):
        raise TypeError(
            f"{WRONG_TYPE}, or a sequence of these; got {type(prompts).__name__}"
            + (" (LLM.generate_iter takes iterators)" if hasattr(prompts, "__next__") else "")
        )
    items = list(prompts)
    return [items] if items and is_token_ids(items) else items


def parse_prompt(prompt: Any) -> ParsedPrompt:
    """One prompt; TypeError or ValidationError, without its position, for what is none."""
    if isinstance(prompt, str):
        return ParsedPrompt(prompt, None)
    if isinstance(prompt, Mapping):
        return _parse_dict(prompt)
    if is_token_ids(prompt):
        return ParsedPrompt(None, _ids(prompt))
    raise TypeError(f"{WRONG_TYPE}, or a list of token ids; got {_describe(prompt)}")


def _parse_dict(prompt: Mapping[str, Any]) -> ParsedPrompt:
    if "encoder_prompt" in prompt or "decoder_prompt" in prompt:
        raise ValidationError("Cannot pass encoder-decoder prompt to decoder-only models")
    if prompt.get("multi_modal_data"):
        raise ValidationError("Your model does not support multi-modal inputs")
    if prompt.get("prompt_embeds") is not None:
        raise NotImplementedError("prompt_embeds is not supported by this version of quire; give token ids or text.")
    for key in ("mm_processor_kwargs", "token_type_ids"):
        if prompt.get(key):
            raise ValidationError(f"{key} has no meaning for this model: it takes token ids alone")
    text = prompt.get("prompt")
    if text is None and prompt.get("prompt_token_ids") is None:
        raise TypeError(f"{WRONG_TYPE}; a dict needs the key 'prompt' or 'prompt_token_ids', got {sorted(prompt)}")
    unknown = [key for key in prompt if key not in _DICT_KEYS and prompt[key] is not None]
    if unknown:
        raise NotImplementedError(f"Keys {unknown} of a prompt are not supported; known are {sorted(_DICT_KEYS)}.")
    if text is not None and not isinstance(text, str):
        raise TypeError(f"{WRONG_TYPE}; 'prompt' must be a string, got {type(text).__name__}")
    if prompt.get("prompt_token_ids") is not None:
        if not is_token_ids(prompt["prompt_token_ids"]):
            raise TypeError(f"prompt_token_ids must be a list of integers, got {_describe(prompt['prompt_token_ids'])}")
        return ParsedPrompt(None, _ids(prompt["prompt_token_ids"]))
    return ParsedPrompt(text, None)


def _ids(values: Any) -> list[int]:
    return values.tolist() if _is_array(values) else list(map(int, values))


def _describe(value: object) -> str:
    if isinstance(value, (list, tuple)):
        odd = next((item for item in value if not isinstance(item, Integral) or isinstance(item, bool)), None)
        return f"a {type(value).__name__} with an entry of type {type(odd).__name__}"
    return type(value).__name__


def legacy_prompts(prompts: Any, prompt_token_ids: Any) -> list[Any]:
    """The prompts of a call with the deprecated prompt_token_ids argument. Where both are given the text wins."""
    texts = None if prompts is None else _legacy_list(prompts, of_ids=False)
    ids = None if prompt_token_ids is None else _legacy_list(prompt_token_ids, of_ids=True)
    if texts is not None and ids is not None and len(texts) != len(ids):
        raise ValidationError("The lengths of prompts and prompt_token_ids must be the same.")
    if texts is not None:
        return texts
    if ids is None:
        raise ValidationError("Either prompts or prompt_token_ids must be provided.")
    return [{"prompt_token_ids": one} for one in ids]


def _legacy_list(values: Any, of_ids: bool) -> list[Any]:
    if isinstance(values, str) and not of_ids:
        return [values]
    if _is_array(values) and of_ids:
        values = values.tolist()
    if isinstance(values, (list, tuple)):
        if not values:
            raise ValidationError("please provide at least one prompt")
        if of_ids and is_token_ids(values):
            return [list(values)]
        if of_ids and all(is_token_ids(one) for one in values):
            return [_ids(one) for one in values]
        if not of_ids and all(isinstance(one, str) for one in values):
            return list(values)
    raise TypeError("prompt must be a string, array of strings, array of tokens, or array of token arrays")
