"""Parameters of pooling requests, as vLLM spells them; the methods that take them come in a later release."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any


@dataclass(repr=False)
class PoolingParams:
    dimensions: int | None = None
    additional_data: Any = None

    def __post_init__(self) -> None:
        if self.dimensions is not None and self.dimensions < 1:
            raise ValueError("Dimensions must be greater than 0")

    def clone(self) -> PoolingParams:
        return copy.deepcopy(self)

    def __repr__(self) -> str:
        return f"PoolingParams(dimensions={self.dimensions}, additional_metadata={self.additional_data})"
