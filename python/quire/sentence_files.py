"""The files of a sentence-transformers model that the Python layer reads: modules, lengths, prompts.

Decides what they say about texts; how vectors are pooled is read by the core. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from quire import model_source
from quire.errors import ValidationError


def has_pooling_module(path: Path) -> bool:
    """Whether sentence-transformers' modules.json names a Pooling module."""
    return _pooling_folder(path) is not None


def _pooling_folder(path: Path) -> Path | None:
    file = path / "modules.json"
    if not file.exists():
        return None
    try:
        modules = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValidationError(f"{file} is not valid JSON: {error}") from error
    for module in modules if isinstance(modules, list) else ():
        if isinstance(module, Mapping) and str(module.get("type", "")).endswith("Pooling"):
            return path / str(module.get("path", ""))
    return None


def read_sentence_config(path: Path) -> dict[str, Any]:
    """sentence_bert_config.json: max_seq_length, do_lower_case."""
    return model_source.read_json(path / "sentence_bert_config.json")


class Prefix(NamedTuple):
    """What is put before each text."""

    text: str = ""
    is_pooled: bool = True  # False: the model reads its tokens, the pooler leaves them out


NO_PREFIX = Prefix()


@dataclass(frozen=True)
class SentencePrompts:
    """What config_sentence_transformers.json says is put before a text."""

    by_name: Mapping[str, str]
    default_name: str | None
    are_pooled: bool  # include_prompt of the pooling configuration

    def prefix(self, name: str | None) -> Prefix:
        """The prompt called `name`; None: the default one, "" where there is none."""
        name = self.default_name if name is None else name
        if name is None:
            return NO_PREFIX
        if name not in self.by_name:
            raise ValidationError(
                f"Prompt name {name!r} not found in the configured prompts dictionary with keys "
                f"{sorted(self.by_name)}.",
                parameter="prompt_name",
                value=name,
            )
        return Prefix(self.by_name[name], self.are_pooled)


def read_sentence_prompts(path: Path) -> SentencePrompts:
    config = model_source.read_json(path / "config_sentence_transformers.json")
    prompts = {str(name): str(text) for name, text in (config.get("prompts") or {}).items()}
    folder = _pooling_folder(path)
    pooling = {} if folder is None else model_source.read_json(folder / "config.json")
    return SentencePrompts(prompts, config.get("default_prompt_name"), bool(pooling.get("include_prompt", True)))
