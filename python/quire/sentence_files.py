"""The files of a sentence-transformers model that the Python layer reads: modules, lengths, prompts.

Decides what they say about texts; how vectors are pooled is read by the core. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire import model_source
from quire.errors import ValidationError


def has_pooling_module(path: Path) -> bool:
    """Whether sentence-transformers' modules.json names a Pooling module."""
    file = path / "modules.json"
    if not file.exists():
        return False
    try:
        modules = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValidationError(f"{file} is not valid JSON: {error}") from error
    return isinstance(modules, list) and any(str(module.get("type", "")).endswith("Pooling") for module in modules)


def read_sentence_config(path: Path) -> dict[str, Any]:
    """sentence_bert_config.json: max_seq_length, do_lower_case."""
    return model_source.read_json(path / "sentence_bert_config.json")


@dataclass(frozen=True)
class SentencePrompts:
    """What config_sentence_transformers.json says is put before a text."""

    by_name: Mapping[str, str]
    default_name: str | None
    counts: bool  # false: the pooler must leave the prompt's tokens out, which is not supported

    def prefix(self, name: str | None) -> str:
        """The prompt called `name`; None: the default one, "" where there is none."""
        name = self.default_name if name is None else name
        if name is None:
            return ""
        if name not in self.by_name:
            raise ValidationError(
                f"Prompt name {name!r} not found in the configured prompts dictionary with keys "
                f"{sorted(self.by_name)}.",
                parameter="prompt_name",
                value=name,
            )
        prefix = self.by_name[name]
        if prefix and not self.counts:
            raise NotImplementedError(
                f"The prompt {name!r} belongs to a model that leaves its tokens out of the mean (include_prompt is "
                "false in its pooling configuration); that is not supported by this version of quire."
            )
        return prefix


def read_sentence_prompts(path: Path) -> SentencePrompts:
    config = model_source.read_json(path / "config_sentence_transformers.json")
    prompts = {str(name): str(text) for name, text in (config.get("prompts") or {}).items()}
    pooling = model_source.read_json(path / "1_Pooling" / "config.json")
    return SentencePrompts(prompts, config.get("default_prompt_name"), bool(pooling.get("include_prompt", True)))
