"""Decoders that rank: a classifier made of tokens, and how the two texts of a pair become one prompt.

Decides names of tokens to ids, and the text that is read. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from quire import chat, tasks
from quire.errors import ValidationError
from quire.pooling_requests import Pair

if TYPE_CHECKING:
    from quire.tokenizer import Tokenizer


def label_ids(config: Mapping[str, Any], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """{"classifier_token_ids": ...} for the tokens that classifier_from_token names; {} where nothing is to be done."""
    tokens = config.get("classifier_from_token")
    if config.get("is_original_qwen3_reranker") and not (isinstance(tokens, (list, tuple)) and len(tokens) == 2):
        raise ValidationError(
            "is_original_qwen3_reranker needs the two tokens that the model answers with: hf_overrides="
            '{"architectures": ["Qwen3ForSequenceClassification"], "classifier_from_token": ["no", "yes"], '
            f'"is_original_qwen3_reranker": True}}; classifier_from_token is {tokens!r}'
        )
    if tokens is None or config.get("classifier_token_ids") is not None:
        return {}
    if not isinstance(tokens, (list, tuple)) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise TypeError(f"classifier_from_token must be a list of tokens, got {tokens!r}")
    if tokenizer is None:
        raise ValidationError(
            "classifier_from_token needs the tokenizer, which turns its tokens into ids; with skip_tokenizer_init give "
            "the ids in hf_overrides as classifier_token_ids"
        )
    ids = [tokenizer.token_id(token) for token in tokens]
    if None in ids:
        raise ValidationError(f"classifier_from_token has {tokens[ids.index(None)]!r}, which is no token of the model")
    return {"classifier_token_ids": ids}


def reads_pairs(config: Mapping[str, Any]) -> bool:
    """Whether the tokenizer joins two texts, as for encoders; a decoder reads one text after the other."""
    names = [str(name) for name in config.get("architectures") or ()]
    return tasks.is_cross_encoder(names) or bool(config.get("use_pad_token", False))


def as_prompts(pairs: Sequence[Any], joins: bool, template: Any, tokenizer: Tokenizer | None) -> list[Any]:
    """What is read of each pair; an error stays in the place of its pair.

    A chat template gets a message of the role "query" and one of the role "document".
    """
    if template is None:
        return [pair.first + pair.second if joins and isinstance(pair, Pair) else pair for pair in pairs]
    if tokenizer is None:
        raise ValidationError("score(chat_template=...) needs a tokenizer")
    return [_rendered(pair, template, tokenizer) if isinstance(pair, Pair) else pair for pair in pairs]


def _rendered(pair: Pair, template: Any, tokenizer: Tokenizer) -> Any:
    messages = [{"role": "query", "content": pair.first}, {"role": "document", "content": pair.second}]
    rendering = chat.Rendering(chat_template=template, add_generation_prompt=False)
    (prompt,) = chat.render_all(messages, rendering, tokenizer, None, on_error="return")
    return prompt if isinstance(prompt, Exception) else prompt.text
