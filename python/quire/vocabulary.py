"""The bytes behind every token id, read off a tokenizer once.

Decides how a token's string becomes bytes: byte-level alphabets, sentencepiece pieces with byte fallback, word pieces.
The core matches stop strings on these bytes. Special tokens have none: they never show in the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Keeps its own text in the output whatever stands before or after it; used where a decoder must be asked.
_ANCHOR = "a"


@lru_cache(maxsize=1)
def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: printable Latin-1 stands for itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    alphabet.update({chr(0x100 + position): byte for position, byte in enumerate(others)})
    return alphabet


def decoder_steps(decoder: Any) -> list[dict[str, Any]]:
    """The steps of a decoder of the tokenizers library, as its own JSON describes them."""
    if decoder is None:
        return []
    state = decoder.__getstate__()
    described = json.loads(state if isinstance(state, str) else bytes(state).decode())
    return described["decoders"] if described["type"] == "Sequence" else [described]


def piece_decoder(steps: Iterable[dict[str, Any]]) -> Callable[[str], bytes] | None:
    """Token string -> bytes for the decoders whose pieces do not depend on their neighbours; None for others."""
    by_type = {step["type"]: step for step in steps}
    if "ByteLevel" in by_type:
        return _byte_level_piece
    space = None
    if "Metaspace" in by_type:
        space = by_type["Metaspace"].get("replacement", "▁")
    elif "Replace" in by_type and by_type["Replace"].get("content") == " ":
        space = by_type["Replace"]["pattern"].get("String")
    if space is not None:
        return _sentencepiece_piece(space)
    if "WordPiece" in by_type:
        prefix = by_type["WordPiece"].get("prefix", "##")
        return lambda piece: (piece[len(prefix) :] if piece.startswith(prefix) else " " + piece).encode()
    if "BPEDecoder" in by_type:
        suffix = by_type["BPEDecoder"].get("suffix", "</w>")
        return lambda piece: piece.replace(suffix, " ").encode()
    return None


def _byte_level_piece(piece: str) -> bytes:
    alphabet = byte_level_alphabet()
    try:
        return bytes([alphabet[char] for char in piece])
    except KeyError:  # not of this alphabet: an added token, kept as it is
        return piece.encode()


def _sentencepiece_piece(space: str) -> Callable[[str], bytes]:
    def decode(piece: str) -> bytes:
        byte = _BYTE_PIECE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace(space, " ").encode()

    return decode


def asked_piece(decode: Callable[[list[int]], str], anchor_id: int) -> Callable[[int], bytes]:
    """Token id -> bytes by asking the tokenizer what the token adds to the text of an anchor."""
    before = decode([anchor_id])

    def piece(token_id: int) -> bytes:
        both = decode([anchor_id, token_id])
        return (both[len(before) :] if both.startswith(before) else decode([token_id])).encode()

    return piece
