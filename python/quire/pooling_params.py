"""Parameters of pooling requests, as vLLM spells them.

Decides their ranges, and what a model allows. How they reach the core is decided in pooling_requests.py.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from quire.errors import ValidationError


@dataclass(repr=False)
class PoolingParams:
    dimensions: int | None = None
    additional_data: Any = None
    # Newer fields.
    use_activation: bool | None = None
    truncate_prompt_tokens: int | None = None
    task: str | None = None
    step_tag_id: int | None = None
    returned_token_ids: list[int] | None = None

    def __post_init__(self) -> None:
        if self.dimensions is not None and self.dimensions < 1:
            raise ValueError("Dimensions must be greater than 0")

    def verify(self, model_config: Any) -> None:
        """ValueError when the model cannot serve these; `model_config` is llm.llm_engine.model_config."""
        verify_dimensions(self.dimensions, model_config.model, vars(model_config.hf_config))

    def clone(self) -> PoolingParams:
        return copy.deepcopy(self)

    def __repr__(self) -> str:
        return f"PoolingParams(dimensions={self.dimensions}, additional_metadata={self.additional_data})"


def verify_dimensions(dimensions: int | None, model: str, config: Mapping[str, Any]) -> None:
    if dimensions is None:
        return
    if not isinstance(dimensions, Integral) or isinstance(dimensions, bool):
        raise TypeError(f"dimensions must be an integer, got {dimensions!r}")
    if dimensions < 1:
        raise ValidationError("Dimensions must be greater than 0")
    allowed = config.get("matryoshka_dimensions")
    if not (config.get("is_matryoshka") or allowed):
        raise ValidationError(
            f'Model "{model}" does not support matryoshka representation, changing output dimensions will lead to '
            "poor results."
        )
    if allowed and dimensions not in allowed:
        raise ValidationError(
            f'Model "{model}" only supports {list(allowed)} matryoshka dimensions, use other output dimensions will '
            "lead to poor results."
        )
