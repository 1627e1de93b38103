"""The text of generated tokens: all at once when a request has finished, piece by piece while it streams.

Decides what the text is: what the tokenizer decodes with a few prompt tokens before it (so that a leading space stays),
without the stop token, cut at the stop string, without a character that is still incomplete. Both ways give the same
text. The core decides *when* a request stops; nothing here does. Called from the thread of the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quire.tokenizer import Tokenizer

CONTEXT_TOKENS = 6
_INCOMPLETE = "\ufffd"


@dataclass(frozen=True)
class TextOptions:
    """What a request says about its text."""

    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    stop: tuple[str, ...] = ()


class Detokenizer:
    """Decodes a growing list of tokens. Text that later tokens may still change is not given out."""

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], options: TextOptions) -> None:
        self._tokenizer = tokenizer
        self._options = options
        self._ids = list(prompt_token_ids[-CONTEXT_TOKENS:])
        # Of _ids: [prefix, read) is context whose text is known, [read, end) has not been given out.
        self._prefix, self._read = 0, len(self._ids)
        self.text = ""

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(
            ids, self._options.skip_special_tokens, self._options.spaces_between_special_tokens
        )

    def push(self, token_ids: Sequence[int]) -> str:
        """Appends tokens and returns the text they complete; tokens whose character is incomplete wait.

        Byte tokens (<0xNN>) go one by one: their decoder gives up a whole run of them for one bad byte, so the text
        would depend on how many are looked at together.
        """
        new, begin = "", 0
        for position, token_id in enumerate(token_ids):
            if token_id in self._tokenizer.byte_token_ids:
                new += self._push(token_ids[begin:position]) + self._push(token_ids[position : position + 1])
                begin = position + 1
        return new + self._push(token_ids[begin:])

    def _push(self, token_ids: Sequence[int]) -> str:
        if not token_ids:
            return ""
        self._ids.extend(token_ids)
        before = self._decode(self._ids[self._prefix : self._read])
        end = len(self._ids)
        while end > self._read:
            after = self._decode(self._ids[self._prefix : end])
            if not after.endswith(_INCOMPLETE):
                break
            end -= 1
        else:
            return ""
        if not after.startswith(before):  # the prompt ended inside a character
            before = before.rstrip(_INCOMPLETE)
        new = after[len(before) :] if after.startswith(before) else self._decode(self._ids[self._read : end])
        if new:  # tokens without text are no context: a decoder may strip the space after them
            self._prefix, self._read = self._read, end
        self.text += new
        return new

    def waiting(self) -> str:
        """The text of tokens whose last character is incomplete, as far as it goes."""
        before = self._decode(self._ids[self._prefix : self._read])
        after = self._decode(self._ids[self._prefix :])
        return after[len(before) :] if after.startswith(before) else ""


def final_text(
    tokenizer: Tokenizer | None,
    prompt_token_ids: Sequence[int],
    token_ids: Sequence[int],
    options: TextOptions,
    stop_string: str | None,
    stopped_by_token: bool,
) -> str:
    """The text of a finished sequence."""
    if tokenizer is None or not options.detokenize:
        return ""
    if stopped_by_token and not options.include_stop_str_in_output:
        token_ids = token_ids[:-1]
    if stop_string is None:
        return decode_all(tokenizer, prompt_token_ids, token_ids, options)
    # The core looked after each token, so the match ends in the text of the last one.
    before = decode_all(tokenizer, prompt_token_ids, token_ids[:-1], options)
    detokenizer = Detokenizer(tokenizer, prompt_token_ids, options)
    detokenizer.push(token_ids)
    text = detokenizer.text + detokenizer.waiting()  # the last token may complete the match and begin a character
    return cut(text, len(before), stop_string, options.include_stop_str_in_output)


def decode_all(
    tokenizer: Tokenizer, prompt_token_ids: Sequence[int], token_ids: Sequence[int], options: TextOptions
) -> str:
    detokenizer = Detokenizer(tokenizer, prompt_token_ids, options)
    detokenizer.push(token_ids)
    return detokenizer.text


def cut(text: str, old_length: int, stop_string: str, include: bool) -> str:
    """The text up to a match that ends after its first `old_length` characters (past the match with `include`)."""
    position = text.find(stop_string, max(0, old_length - len(stop_string) + 1))
    if position < 0:  # the tokenizer spells the bytes of these tokens differently in context
        position = text.rfind(stop_string)
    if position < 0:
        return text
    return text[: position + len(stop_string) if include else position]


class StreamedText:
    """The text of one streamed sequence. Holds back what may be the beginning of a stop string."""

    def __init__(self, tokenizer: Tokenizer | None, prompt_token_ids: Sequence[int], options: TextOptions) -> None:
        self._detokenizer = None
        if tokenizer is not None and options.detokenize:
            self._detokenizer = Detokenizer(tokenizer, prompt_token_ids, options)
        self._stop = options.stop
        self._given = 0

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that is now certain, after tokens that did not end the sequence."""
        if self._detokenizer is None:
            return ""
        self._detokenizer.push(token_ids)
        text = self._detokenizer.text
        end = len(text) - max((possible_beginning(text, stop) for stop in self._stop), default=0)
        if end <= self._given:
            return ""
        piece, self._given = text[self._given : end], end
        return piece

    def finish(self, whole_text: str) -> str:
        """What is still missing of the finished sequence's text."""
        piece, self._given = whole_text[self._given :], len(whole_text)
        return piece


def possible_beginning(text: str, stop: str) -> int:
    """How many characters at the end of `text` are a proper beginning of `stop`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
