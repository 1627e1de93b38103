"""Texts and pairs of texts to token ids and token types, cut to a length as sentence-transformers cuts them.

Decides truncation: special tokens stay, the end of the text goes, of a pair the end of the longer one. Thread-safe.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quire.errors import ValidationError
from quire.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

Text = str | tuple[str, str]


@dataclass(frozen=True)
class Encoded:
    token_ids: list[int]
    token_type_ids: list[int] | None  # None: all 0
    is_truncated: bool


class TextEncoder:
    """Encodes for one model. The tokenizer of the LLM is left as it is: truncation is a setting of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, do_lower_case: bool, has_token_types: bool = True) -> None:
        self._tokenizer = tokenizer
        self._do_lower_case = do_lower_case
        self._has_token_types = has_token_types  # false: a tokenizer that tells the texts of a pair apart tells nobody
        self._json = tokenizer.fast_json()
        self._fast: dict[int, tokenizers.Tokenizer] = {}
        self._lock = threading.Lock()

    def encode(self, texts: Sequence[Text], max_length: int, add_special_tokens: bool = True) -> list[Encoded]:
        if self._do_lower_case:
            texts = [text.lower() if isinstance(text, str) else (text[0].lower(), text[1].lower()) for text in texts]
        self._check_length(texts, max_length, add_special_tokens)
        if self._json is None:
            return [self._encode_slow(text, max_length, add_special_tokens) for text in texts]
        fast = self._truncating(max_length)
        encode = getattr(fast, "encode_batch_fast", fast.encode_batch)  # leaves out offsets
        return [
            Encoded(one.ids, self._types(text, one.type_ids), bool(one.overflowing))
            for text, one in zip(texts, encode(list(texts), add_special_tokens=add_special_tokens), strict=True)
        ]

    def prompt_length(self, prompt: str, max_length: int, add_special_tokens: bool = True) -> int:
        """The tokens that `prompt` takes at the beginning of a text, counted as sentence-transformers counts them: what
        the tokenizer makes of it alone, without a special token at the end."""
        (encoded,) = self.encode([prompt], max_length, add_special_tokens)
        ids = encoded.token_ids
        return len(ids) - bool(ids and ids[-1] in self._tokenizer.special_ids)

    def _types(self, text: Text, types: list[int]) -> list[int] | None:
        return types if self._has_token_types and isinstance(text, tuple) and any(types) else None

    def _check_length(self, texts: Sequence[Text], max_length: int, add_special_tokens: bool) -> None:
        if not add_special_tokens or not texts:
            return
        is_pair = any(isinstance(text, tuple) for text in texts)
        if self._json is not None:
            num_special = self._truncating(max_length, check=False).num_special_tokens_to_add(is_pair)
        else:
            num_special = self._tokenizer.hf_tokenizer().num_special_tokens_to_add(is_pair)
        if max_length <= num_special:
            raise ValidationError(
                f"truncate_prompt_tokens={max_length} leaves no room for text: the tokenizer adds {num_special} "
                "special tokens"
            )

    def _truncating(self, max_length: int, check: bool = True) -> tokenizers.Tokenizer:
        key = max_length if check else 0
        with self._lock:
            if key not in self._fast:
                import tokenizers

                assert self._json is not None
                fast = tokenizers.Tokenizer.from_str(self._json)
                fast.no_padding()
                if check:
                    fast.enable_truncation(max_length)
                else:
                    fast.no_truncation()
                self._fast[key] = fast
            return self._fast[key]

    def _encode_slow(self, text: Text, max_length: int, add_special_tokens: bool) -> Encoded:
        hf: Any = self._tokenizer.hf_tokenizer()
        first, second = (text, None) if isinstance(text, str) else text
        options = {"add_special_tokens": add_special_tokens, "return_token_type_ids": True}
        whole = hf(first, second, **options)
        cut = hf(first, second, truncation=True, max_length=max_length, **options)
        types = [int(one) for one in cut.get("token_type_ids") or ()]
        ids = [int(one) for one in cut["input_ids"]]
        return Encoded(ids, self._types(text, types), len(whole["input_ids"]) > len(ids))
