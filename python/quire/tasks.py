"""Which task a model is loaded for: text, or one of the pooling tasks.

Decides between what the caller says (task, or runner and convert) and what the checkpoint is. Pure; reads no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quire import sentence_files
from quire.deprecation import warn_deprecated
from quire.errors import ValidationError

POOLING_TASKS = ("embed", "classify", "score", "reward")
_CONVERSIONS = {"embed": "embed", "classify": "classify"}
_SUFFIXES = (
    ("ForCausalLM", "generate"),
    ("ForConditionalGeneration", "generate"),
    ("ChatModel", "generate"),
    ("LMHeadModel", "generate"),
    ("ForSequenceClassification", "classify"),
    ("ForTokenClassification", "classify"),
    ("EmbeddingModel", "embed"),
    ("RewardModel", "reward"),
)
# Encoders whose classifier reads a pair of texts.
_CROSS_ENCODERS = (
    "Bert",
    "Camembert",
    "DistilBert",
    "Gte",
    "GteNew",
    "JinaEmbeddingsV3",
    "ModernBert",
    "MPNet",
    "New",
    "NomicBert",
    "Roberta",
    "XLMRoberta",
)


def resolve_task(values: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> str:
    """ "generate" or a pooling task. `values` are the constructor's arguments, `config` what config.json says."""
    task, runner, convert = values["task"], values["runner"], values["convert"]
    if task != "auto" and (runner != "auto" or convert not in ("auto", "none")):
        raise ValidationError(f"task={task!r} and runner={runner!r}, convert={convert!r} say the same thing; give one.")
    names = [str(name) for name in config.get("architectures") or ()]
    supported = supported_tasks(names)
    preferred = _preferred(names, supported, path)
    if task == "auto":
        return _by_runner(runner, convert, preferred, supported)
    if task == "embedding":
        if preferred != "embed":
            warn_deprecated(
                f"The 'embedding' task will be deprecated; for this model it means {preferred!r}. Pass "
                f"task={preferred!r} instead.",
                stacklevel=5,
            )
        return preferred
    if task not in supported:
        raise _unsupported(task, supported)
    return str(task)


def check_options(values: Mapping[str, Any], task: str) -> None:
    """Refuses what a pooling model has no use for."""
    if task != "generate" and values["enable_chunked_prefill"]:
        raise ValidationError("Chunked prefill is not supported for pooling models")
    if task != "generate" and values["speculative_config"]:
        raise ValidationError(f"speculative_config is for generation; this model runs the task {task!r}")


def supported_tasks(architectures: list[str]) -> tuple[str, ...]:
    """Every model can be pooled; those that generate come first."""
    from quire import _quire

    generates = any(name in _quire.supported_architectures() for name in architectures)
    return (*(("generate",) if generates else ()), *POOLING_TASKS)


def is_cross_encoder(architectures: list[str]) -> bool:
    return any(name.removesuffix("ForSequenceClassification") in _CROSS_ENCODERS for name in architectures)


def is_matryoshka(config: Mapping[str, Any]) -> bool:
    return bool(config.get("is_matryoshka") or config.get("matryoshka_dimensions"))


def _preferred(names: list[str], supported: tuple[str, ...], path: Path) -> str:
    if sentence_files.has_pooling_module(path):
        return "embed"
    if is_cross_encoder(names):
        return "score"
    for name in names:
        for suffix, task in _SUFFIXES:
            if name.endswith(suffix) and task in supported:
                return task
    return supported[0] if supported[0] == "generate" else "embed"


def _by_runner(runner: str, convert: str, preferred: str, supported: tuple[str, ...]) -> str:
    if runner == "draft":
        raise NotImplementedError("runner='draft' is not supported: give the draft model in speculative_config.")
    if runner == "generate" or (runner == "auto" and convert == "none"):
        if "generate" not in supported:
            if runner == "auto":
                return preferred
            raise _unsupported("generate", supported)
        if convert in _CONVERSIONS:
            raise ValidationError(f"convert={convert!r} makes a pooling model; runner={runner!r} does not run it.")
        return "generate" if runner == "generate" else preferred
    if convert in _CONVERSIONS:
        return _CONVERSIONS[convert]
    if runner == "pooling" and preferred == "generate":
        return "embed"
    return preferred


def _unsupported(task: str, supported: tuple[str, ...]) -> ValidationError:
    return ValidationError(
        f"This model does not support the {task!r} task. Supported tasks: {set(supported)}",
        parameter="task",
        value=task,
    )
