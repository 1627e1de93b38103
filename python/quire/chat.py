"""Conversations: OpenAI-style messages brought to what a chat template expects, and rendered with it.

Decides what is a conversation, what is a batch of them, which keys of a message count, how content parts become text,
and which template is taken. How a template runs is decided in chat_template.py. Pure functions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire import chat_template as templates
from quire._logging import logger
from quire.errors import ValidationError
from quire.inputs import ParsedPrompt
from quire.tokenizer import Tokenizer

CONTENT_FORMATS = ("auto", "string", "openai")
NO_TEMPLATE = (
    "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template if the "
    "tokenizer does not define one."
)
_TEXT_KEYS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
_MEDIA_TYPES = frozenset(
    "image_url image_embeds image_pil input_image audio_url input_audio audio_embeds video_url video_embeds "
    "image audio video".split()
)
_NO_MEDIA = "This model does not support multi-modal inputs"


def as_conversations(messages: Any) -> list[list[Mapping[str, Any]]]:
    """A conversation is a list of messages; a list whose first element is a list holds several."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise TypeError(
            "messages must be a list of {'role': ..., 'content': ...} messages, or a list of such lists; "
            f"got {type(messages).__name__}"
        )
    if not messages:
        return []
    return [list(one) for one in messages] if isinstance(messages[0], (list, tuple)) else [list(messages)]


@dataclass(frozen=True)
class Rendering:
    """What a call says about its prompts: the arguments of LLM.chat that concern the template."""

    chat_template: str | Path | None = None
    content_format: str = "auto"
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: Sequence[Any] | None = None
    template_kwargs: Mapping[str, Any] | None = None


def rendering_of(arguments: Mapping[str, Any]) -> Rendering:
    """Of all the arguments of a call, by their names."""
    return Rendering(
        arguments["chat_template"],
        arguments["chat_template_content_format"],
        arguments["add_generation_prompt"],
        arguments["continue_final_message"],
        arguments["tools"],
        arguments["chat_template_kwargs"],
    )


# Arguments that chat_template_kwargs may give in the place of those of LLM.chat, and those it may not.
_OWN_ARGUMENTS = ("add_generation_prompt", "continue_final_message", "tools")
_NOT_KWARGS = frozenset("chat_template messages conversation tokenize return_tensors return_dict padding".split())


def render_all(
    messages: Any, rendering: Rendering, tokenizer: Tokenizer, default_template: str | None, on_error: str = "raise"
) -> list[ParsedPrompt | Exception]:
    """The prompt of each conversation. The template writes its special tokens itself, so none are added.

    With on_error="return" an error stands in the place of its conversation.
    """
    conversations = as_conversations(messages)
    kwargs = dict(rendering.template_kwargs or {})
    wrong = sorted(_NOT_KWARGS & set(kwargs))
    if wrong:
        raise ValidationError(f"chat_template_kwargs must not hold {wrong}: they are no variables of a template")
    own = {name: kwargs.pop(name, getattr(rendering, name)) for name in _OWN_ARGUMENTS}
    given = default_template if rendering.chat_template is None else rendering.chat_template
    template = choose_template(given, tokenizer.chat_template, own["tools"])
    form = resolve_content_format(rendering.content_format, template)
    unused = sorted(set(kwargs) - templates.variables(template))
    if unused:
        logger.warning("chat_template_kwargs %s have no effect: the chat template does not read them.", unused)
    more = {"template_kwargs": kwargs}
    prompts: list[ParsedPrompt | Exception] = []
    for position, conversation in enumerate(conversations):
        try:
            text = _render(conversation, form, template, special_tokens=tokenizer.special_tokens, **own, **more)
            prompts.append(ParsedPrompt(text, None, add_special_tokens=False))
        except (ValueError, TypeError, NotImplementedError) as error:
            if on_error == "return":
                prompts.append(error)
            elif len(conversations) > 1:
                raise type(error)(f"{error} (conversation {position})") from error
            else:
                raise
    return prompts


def _render(conversation: Sequence[Any], content_format: str, template: str, **options: Any) -> str:
    """One prompt. Arguments of tool calls are objects, but a template that joins them to text gets them as JSON."""
    try:
        return templates.render(template, parse_messages(conversation, content_format), **options)
    except ValueError as error:
        if not isinstance(error.__cause__, TypeError):
            raise
        try:
            as_text = parse_messages(conversation, content_format, arguments_as_text=True)
            return templates.render(template, as_text, **options)
        except ValueError:
            raise error from error.__cause__


def load_template(value: str | Path | None) -> str | None:
    """A template as it was given: the path of a file, or the text itself."""
    if value is None:
        return None
    if not isinstance(value, (str, Path)):
        raise TypeError(
            f"chat_template must be the text of a template or the path of a file, got {type(value).__name__} "
            "(pass priority by keyword)"
        )
    text = str(value)
    if isinstance(value, Path) or (len(text) < 4096 and "{" not in text and "\n" not in text):
        try:
            return Path(text).read_text(encoding="utf-8")
        except OSError as error:
            raise ValidationError(f"chat_template {text!r} is neither a template nor a readable file") from error
    return text


def choose_template(
    given: str | Path | None, of_tokenizer: str | Mapping[str, str] | None, tools: Sequence[Any] | None
) -> str:
    """The template's text: the given one, else the tokenizer's (its "tool_use" one where there are tools)."""
    named = of_tokenizer if isinstance(of_tokenizer, Mapping) else {}
    if isinstance(given, str) and given in named:
        return named[given]
    text = load_template(given)
    if text is not None:
        return text
    if isinstance(of_tokenizer, str):
        return of_tokenizer
    if tools is not None and "tool_use" in named:
        return named["tool_use"]
    if "default" in named:
        return named["default"]
    if named:
        raise ValidationError(
            f"The tokenizer has several chat templates and none is named 'default': {sorted(named)}. "
            "Pass the name of one as chat_template."
        )
    raise ValidationError(NO_TEMPLATE)


def resolve_content_format(asked: str, template: str) -> str:
    if asked not in CONTENT_FORMATS:
        raise ValidationError(f"chat_template_content_format must be one of {CONTENT_FORMATS}, got {asked!r}")
    detected = templates.content_format(template)
    if asked == "auto":
        return detected
    if asked != detected:
        logger.warning("chat_template_content_format is %r, but the template looks like %r.", asked, detected)
    return asked


def parse_messages(
    messages: Sequence[Any], content_format: str, arguments_as_text: bool = False
) -> list[dict[str, Any]]:
    """The messages as the template sees them."""
    return [_parse_message(message, content_format, arguments_as_text) for message in messages]


def _parse_message(message: Any, content_format: str, arguments_as_text: bool) -> dict[str, Any]:
    if hasattr(message, "model_dump"):
        message = message.model_dump(exclude_none=True)
    if not isinstance(message, Mapping):
        raise TypeError(f"a message must be a dict with 'role' and 'content', got {type(message).__name__}")
    role = message.get("role")
    if not isinstance(role, str):
        raise ValidationError(f"a message must have a 'role' that is a string, got {role!r}")
    parsed: dict[str, Any] = {"role": role, "content": _parse_content(message.get("content"), content_format)}
    if role == "assistant":
        if message.get("tool_calls"):
            parsed["tool_calls"] = [_parse_tool_call(call, arguments_as_text) for call in message["tool_calls"]]
        for key in ("reasoning_content", "reasoning"):
            if message.get(key) is not None:
                parsed[key] = message[key]
    elif role == "tool" and message.get("tool_call_id") is not None:
        parsed["tool_call_id"] = message["tool_call_id"]
    if isinstance(message.get("name"), str):
        parsed["name"] = message["name"]
    return parsed


def _parse_tool_call(call: Any, arguments_as_text: bool) -> Any:
    call = templates.plain(call)
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or "arguments" not in function:
        return call
    arguments = function["arguments"]
    if isinstance(arguments, str):
        try:
            function["arguments"] = json.loads(arguments or "{}")
        except ValueError as error:
            raise ValidationError(f"arguments of a tool call are not valid JSON: {error}") from error
    if arguments_as_text:
        function["arguments"] = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return call


def _parse_content(content: Any, content_format: str) -> str | list[dict[str, Any]]:
    if content is None:
        parts: list[Any] = []
    elif isinstance(content, str):
        parts = [content]
    elif isinstance(content, Sequence):
        parts = list(content)
    else:
        raise TypeError(f"'content' must be a string or a list of parts, got {type(content).__name__}")
    texts = [text for text in map(_part_text, parts) if text is not None]
    if content_format == "openai":
        return [{"type": "text", "text": text} for text in texts]
    return "\n".join(texts)


def _part_text(part: Any) -> str | None:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise TypeError(f"a content part must be a string or a dict, got {type(part).__name__}")
    kind = part.get("type")
    if kind is None:
        if any(key in part for key in ("image_url", "audio_url", "input_audio", "video_url")):
            raise ValidationError(_NO_MEDIA)
        raise ValidationError("Missing 'type' field in multimodal part.")
    if not isinstance(kind, str):
        raise ValidationError("Invalid 'type' field in multimodal part.")
    if kind in _MEDIA_TYPES:
        raise ValidationError(_NO_MEDIA)
    if kind not in _TEXT_KEYS:
        raise NotImplementedError(f"Unknown part type: {kind}")
    text = part.get(_TEXT_KEYS[kind])
    if not text:
        logger.warning("A content part of type %r is empty and is skipped.", kind)
        return None
    if not isinstance(text, str):
        raise TypeError(f"the text of a content part must be a string, got {type(text).__name__}")
    return text
