"""Text to token ids and back, for one model.

Decides where the tokenizer comes from: a tokenizer.json is read by the `tokenizers` library alone, which starts in
milliseconds and imports no torch; everything else is loaded by transformers. Encoding and decoding are thread-safe.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quire import vocabulary
from quire.errors import ModelNotFoundError

if TYPE_CHECKING:
    import tokenizers

MODES = ("auto", "slow", "mistral", "custom")
_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json", "spiece.model", "vocab.txt")
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """What quire needs of a tokenizer. `fast` serves it where there is one, else the transformers object does."""

    def __init__(self, fast: tokenizers.Tokenizer | None, hf: Any, config: dict[str, Any], source: _Source) -> None:
        self._fast = fast
        self._hf = hf
        self._source = source
        self._truncation_side: str | None = None
        self.special_tokens: dict[str, str] = {}
        for name in _SPECIAL_NAMES:
            value = getattr(hf, name, None) if hf is not None else _content(config.get(name))
            if value is not None:
                self.special_tokens[name] = str(value)
        self.chat_template: str | dict[str, str] | None = (
            getattr(hf, "chat_template", None) if hf is not None else config.get("chat_template")
        )
        if hf is not None:
            self._added = {int(i): (str(t), bool(t.special)) for i, t in hf.added_tokens_decoder.items()}
            self._added |= {int(i): (hf.convert_ids_to_tokens(int(i)), True) for i in hf.all_special_ids}
            self._size = len(hf)
        else:
            assert fast is not None
            specials = set(self.special_tokens.values())
            self._added = {
                i: (t.content, t.special or t.content in specials) for i, t in fast.get_added_tokens_decoder().items()
            }
            self._size = fast.get_vocab_size(with_added_tokens=True)
        self.special_ids = frozenset(i for i, (_, special) in self._added.items() if special)
        self.eos_token_id = self.token_id(self.special_tokens.get("eos_token"))
        bytes_as_tokens = (self.token_id(f"<0x{byte:02X}>") for byte in range(256))
        self.byte_token_ids = frozenset(i for i in bytes_as_tokens if i is not None)
        self._pieces: list[bytes] | None = None

    def __len__(self) -> int:
        return self._size

    def token_id(self, token: str | None) -> int | None:
        if token is None:
            return None
        if self._fast is not None:
            return self._fast.token_to_id(token)
        token_id = self._hf.convert_tokens_to_ids(token)  # the unknown token's id for what there is not
        return int(token_id) if token_id is not None and self._hf.convert_ids_to_tokens(token_id) == token else None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        if self._fast is not None:
            return self._fast.encode(text, add_special_tokens=add_special_tokens).ids
        return list(self._hf.encode(text, add_special_tokens=add_special_tokens))

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """One call for all texts; a fast tokenizer works on all cores with the GIL released."""
        if self._fast is not None:
            encode = getattr(self._fast, "encode_batch_fast", self._fast.encode_batch)  # leaves out offsets
            return [one.ids for one in encode(list(texts), add_special_tokens=add_special_tokens)]
        if not texts:
            return []
        encoded = self._hf(list(texts), add_special_tokens=add_special_tokens, return_attention_mask=False)
        return [list(ids) for ids in encoded["input_ids"]]

    def decode(
        self, token_ids: Sequence[int], skip_special_tokens: bool = True, spaces_between_special_tokens: bool = True
    ) -> str:
        """Text of the ids. Ids beyond the tokenizer (padding rows of an embedding) have none."""
        if self._fast is not None:
            return self._fast.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        known = [token_id for token_id in token_ids if token_id < self._size]
        options: dict[str, Any] = {"clean_up_tokenization_spaces": False}
        if not getattr(self._hf, "is_fast", False):
            options["spaces_between_special_tokens"] = spaces_between_special_tokens
        return self._hf.decode(known, skip_special_tokens=skip_special_tokens, **options)

    def token_text(self, token_id: int) -> str:
        """The text of one token, its leading space kept; special tokens by name."""
        if token_id in self._added:
            return self._added[token_id][0]
        pieces = self._all_pieces()
        return pieces[token_id].decode(errors="replace") if token_id < len(pieces) else ""

    def token_bytes(self, vocab_size: int) -> list[bytes]:
        """The bytes of ids 0 to vocab_size - 1; none for special tokens and for ids the tokenizer lacks."""
        pieces = self._all_pieces()[:vocab_size]
        return pieces + [b""] * (vocab_size - len(pieces))

    def special_texts(self) -> dict[int, str]:
        """The names of the special tokens, which show when a request says skip_special_tokens=False."""
        return {i: text for i, (text, special) in self._added.items() if special}

    def fast_json(self) -> str | None:
        """The tokenizer as the `tokenizers` library writes it; None for one that is not of that library."""
        fast = self._fast or getattr(self._hf, "backend_tokenizer", None)
        return None if fast is None else str(fast.to_str())

    def _all_pieces(self) -> list[bytes]:
        if self._pieces is None:
            self._pieces = self._read_pieces()
        return self._pieces

    def _read_pieces(self) -> list[bytes]:
        strings = self._token_strings()
        to_bytes = vocabulary.piece_decoder(self._decoder_steps(strings))
        pieces = [b""] * len(strings)
        asked = None
        for token_id, piece in strings.items():
            if token_id in self._added:
                content, special = self._added[token_id]
                pieces[token_id] = b"" if special else content.encode()
            elif to_bytes is not None:
                pieces[token_id] = to_bytes(piece)
            else:
                asked = asked or vocabulary.asked_piece(self.decode, self._anchor())
                pieces[token_id] = asked(token_id)
        return pieces

    def _anchor(self) -> int:
        return self.encode("a", add_special_tokens=False)[-1]

    def _token_strings(self) -> dict[int, str]:
        """Every id from 0 to the largest; an unused one has the empty string."""
        vocab = self._hf.get_vocab() if self._fast is None else self._fast.get_vocab(with_added_tokens=True)
        by_id = {int(token_id): token for token, token_id in vocab.items()}
        return {token_id: by_id.get(token_id, "") for token_id in range(max(by_id) + 1)}

    def _decoder_steps(self, strings: dict[int, str]) -> list[dict[str, Any]]:
        fast = self._fast or getattr(self._hf, "backend_tokenizer", None)
        if fast is not None:
            return vocabulary.decoder_steps(fast.decoder)
        if hasattr(self._hf, "sp_model"):
            return [{"type": "Metaspace", "replacement": "▁"}]
        if hasattr(self._hf, "byte_decoder"):
            return [{"type": "ByteLevel"}]
        return []

    def hf_tokenizer(self) -> Any:
        """The tokenizer as transformers has it, loaded when first asked for."""
        if self._hf is None:
            self._hf = self._source.load_with_transformers()
            self.set_truncation_side(self._truncation_side)
        return self._hf

    def set_truncation_side(self, side: str | None) -> None:
        """The end of a text that transformers cuts; None: what its files say."""
        self._truncation_side = side
        if self._hf is not None and side is not None:
            self._hf.truncation_side = side


class _Source:
    """Where a tokenizer is and how it was asked for."""

    def __init__(self, path: Path, mode: str, trust_remote_code: bool) -> None:
        self.path, self.mode, self.trust_remote_code = path, mode, trust_remote_code

    def load_with_transformers(self) -> Any:
        options: dict[str, Any] = {"trust_remote_code": self.trust_remote_code, "local_files_only": True}
        if self.mode == "slow":
            options["use_fast"] = False
        loader = self._known_class() if self.mode == "auto" else None
        if loader is None:
            import transformers

            loader = transformers.AutoTokenizer  # imports torch where it is installed
        try:
            return loader.from_pretrained(str(self.path), **options)
        except ValueError as error:
            if not self.trust_remote_code and "trust_remote_code" in str(error):
                raise RuntimeError(
                    "Failed to load the tokenizer. If the tokenizer is a custom tokenizer not yet available in the "
                    "HuggingFace transformers library, consider setting `trust_remote_code=True` in LLM."
                ) from error
            raise

    def _known_class(self) -> Any:
        """The class of a GPT-2 style vocab.json, which needs none of AutoTokenizer's model table (and its torch)."""
        if (self.path / "tokenizer.json").exists() or not (self.path / "merges.txt").exists():
            return None
        name = _read_json(self.path / "tokenizer_config.json").get("tokenizer_class", "")
        if name.removesuffix("Fast") != "GPT2Tokenizer":
            return None
        import transformers

        return getattr(transformers, "GPT2TokenizerFast", None) or transformers.GPT2Tokenizer


def load_tokenizer(path: str | Path, mode: str = "auto", trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer in a directory."""
    mode = mode.lower()
    if mode not in MODES:
        raise ValueError(f"Unknown tokenizer mode: {mode}. Must be either 'auto', 'slow', 'mistral' or 'custom'.")
    if mode in ("mistral", "custom"):
        raise NotImplementedError(
            f"tokenizer_mode={mode!r} is not supported by this version of quire; use 'auto', or pass token ids with "
            "skip_tokenizer_init=True."
        )
    path = Path(path)
    if not any((path / name).exists() for name in _FILES):
        raise ModelNotFoundError(
            f"No tokenizer in {path}: found none of {', '.join(_FILES)}. Pass tokenizer=<directory>, or "
            "skip_tokenizer_init=True to work with token ids alone."
        )
    source = _Source(path, mode, trust_remote_code)
    direct = _load_direct(path) if mode == "auto" else None
    if direct is not None:
        return Tokenizer(direct[0], None, direct[1], source)
    return wrap_tokenizer(source.load_with_transformers())


def wrap_tokenizer(hf: Any) -> Tokenizer:
    """A tokenizer object of transformers that a caller brings."""
    if isinstance(hf, Tokenizer):
        return hf
    return Tokenizer(None, hf, {}, _Source(Path(), "auto", False))


def _load_direct(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]] | None:
    """The tokenizer.json of a directory, or None when tokenizer_config.json asks for more than it holds."""
    if not (path / "tokenizer.json").exists():
        return None
    config = read_tokenizer_config(path)
    if config.get("auto_map"):
        return None
    import tokenizers

    try:
        fast = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path / 'tokenizer.json'} cannot be read: {error}") from error
    fast.no_padding()
    fast.no_truncation()
    for token_id, token in (config.get("added_tokens_decoder") or {}).items():
        if fast.id_to_token(int(token_id)) != _content(token):
            return None
    named = [_content(config.get(name)) for name in _SPECIAL_NAMES]
    if any(token is not None and fast.token_to_id(token) is None for token in named):
        return None
    ids = fast.encode("a", add_special_tokens=True).ids
    plain = fast.encode("a", add_special_tokens=False).ids
    for flag, token, present in (
        ("add_bos_token", "bos_token", ids[: -len(plain)] if len(ids) > len(plain) else []),
        ("add_eos_token", "eos_token", ids[-1:] if ids != plain and ids[-1:] != plain[-1:] else []),
    ):
        wanted, content = config.get(flag), _content(config.get(token))
        has = content is not None and fast.token_to_id(content) in present
        if wanted is not None and bool(wanted) != has and (wanted or present):
            return None
    return fast, config


def read_tokenizer_config(path: Path) -> dict[str, Any]:
    """tokenizer_config.json with the special tokens and chat templates that may lie in files of their own."""
    config = _read_json(path / "tokenizer_config.json")
    for name, value in _read_json(path / "special_tokens_map.json").items():
        config.setdefault(name, value)
    config["chat_template"] = _chat_template(path, config.get("chat_template"))
    return config


def _chat_template(path: Path, from_config: Any) -> str | dict[str, str] | None:
    named: dict[str, str] = {}
    if isinstance(from_config, list):
        named = {entry["name"]: entry["template"] for entry in from_config}
    elif isinstance(from_config, str):
        named = {"default": from_config}
    elif isinstance(from_config, dict):
        named = dict(from_config)
    if (path / "chat_template.jinja").exists():
        named["default"] = (path / "chat_template.jinja").read_text(encoding="utf-8")
    elif not named and (path / "chat_template.json").exists():
        named["default"] = _read_json(path / "chat_template.json")["chat_template"]
    for extra in sorted((path / "additional_chat_templates").glob("*.jinja")):
        named[extra.stem] = extra.read_text(encoding="utf-8")
    if not named:
        return None
    return named["default"] if set(named) == {"default"} else named


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def bad_words_token_ids(tokenizer: Tokenizer, words: Iterable[str]) -> list[list[int]]:
    """Each word as it is and, where that is another single spelling, with a space before it."""
    result: list[list[int]] = []
    for word in words:
        plain = tokenizer.encode(word.lstrip(), add_special_tokens=False)
        spaced = tokenizer.encode(" " + word.lstrip(), add_special_tokens=False)
        if plain:
            result.append(plain)
        if spaced and (not plain or (spaced[0] != plain[0] and len(spaced) == len(plain))):
            result.append(spaced)
    return result
