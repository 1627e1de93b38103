"""PoolerConfig: how a model pools, where that is not what its checkpoint says.

Decides which spellings there are and what contradicts. What a pooling type does is decided in the core.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from quire import tasks
from quire.errors import ValidationError

POOLING_TYPES = ("LAST", "ALL", "CLS", "STEP", "MEAN")
# Newer fields that nothing here reads, and what to do without them.
_NOT_SERVED = {
    "dimensions": "Use PoolingParams.dimensions.",
    "enable_chunked_processing": "Split long texts yourself, or truncate them.",
    "max_embed_len": "Use max_model_len.",
    "logit_mean": "Shift scores yourself.",
    "logit_sigma": "Scale scores yourself.",
    "logit_bias": "Shift scores yourself.",
}


@dataclass
class PoolerConfig:
    """All None: what the checkpoint says, else what is usual for the architecture and the task."""

    pooling_type: str | None = None
    normalize: bool | None = None
    softmax: bool | None = None
    step_tag_id: int | None = None
    returned_token_ids: list[int] | None = None
    # Newer spellings.
    task: str | None = None
    seq_pooling_type: str | None = None
    tok_pooling_type: str | None = None
    use_activation: bool | None = None
    dimensions: int | None = None
    enable_chunked_processing: bool | None = None
    max_embed_len: int | None = None
    logit_mean: float | None = None
    logit_sigma: float | None = None
    logit_bias: float | None = None

    @staticmethod
    def from_json(json_str: str) -> PoolerConfig:
        return PoolerConfig(**json.loads(json_str))


def pooler_config_of(values: Mapping[str, Any]) -> PoolerConfig:
    """The one of override_pooler_config and pooler_config that was given, also as a dict."""
    given = [values[name] for name in ("override_pooler_config", "pooler_config") if values[name] is not None]
    if len(given) > 1:
        raise ValidationError("override_pooler_config and pooler_config say the same thing; give one.")
    config = given[0] if given else PoolerConfig()
    if isinstance(config, Mapping):
        config = PoolerConfig(**config)
    if not isinstance(config, PoolerConfig):
        raise TypeError(f"pooler_config must be a PoolerConfig or a dict, got {type(config).__name__}")
    return config


def core_options(pooler: PoolerConfig, task: str, hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """The PoolerOptions of the core; refuses what contradicts or is not there."""
    for name, instead in _NOT_SERVED.items():
        if getattr(pooler, name) not in (None, False):
            raise NotImplementedError(f"PoolerConfig.{name} is not supported by this version of quire. {instead}")
    if pooler.task not in (None, task):
        raise ValidationError(f"PoolerConfig.task={pooler.task!r}, but the model is loaded for {task!r}.")
    if pooler.normalize is False and tasks.is_matryoshka(hf_config):
        raise ValidationError(
            "`normalize` must be enabled (set to True) for models that are compatible with Matryoshka Representation."
        )
    types = [one for one in (pooler.pooling_type, pooler.seq_pooling_type, pooler.tok_pooling_type) if one is not None]
    if len(types) > 1:
        raise ValidationError("pooling_type, seq_pooling_type and tok_pooling_type say the same thing; give one.")
    if types and (not isinstance(types[0], str) or types[0].upper() not in POOLING_TYPES):
        raise ValidationError(f"Unknown pooling_type {types[0]!r}. Known values: {', '.join(POOLING_TYPES)}")
    ids = pooler.returned_token_ids
    if ids is not None and not all(isinstance(one, Integral) for one in ids):
        raise TypeError(f"returned_token_ids must be a list of integers, got {ids!r}")
    normalize, softmax = pooler.normalize, pooler.softmax
    if pooler.use_activation is not None:
        normalize = pooler.use_activation if task == "embed" and normalize is None else normalize
        softmax = pooler.use_activation if task != "embed" and softmax is None else softmax
    return {
        "task": task,
        "pooling_type": types[0].upper() if types else None,
        "normalize": normalize,
        "softmax": softmax,
        "step_tag_id": pooler.step_tag_id,
        "returned_token_ids": None if ids is None else [int(one) for one in ids],
    }


def as_dict(pooler: PoolerConfig) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(pooler).items() if value is not None}
