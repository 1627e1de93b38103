"""What pooling requests give: PoolingRequestOutput and its specific forms, as vLLM has them.

Decides when a vector becomes a torch.Tensor: when it is looked at, and torch is installed. Plain values.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from quire.deprecation import warn_deprecated

if TYPE_CHECKING:
    import numpy as np

_O = TypeVar("_O")


class PoolingOutput:
    """`data` is a float32 torch.Tensor on the CPU where torch is installed, else a numpy array with `.numpy()`."""

    def __init__(self, data: Any) -> None:
        self._raw = data
        self._data: Any = None

    @property
    def data(self) -> Any:
        if self._data is None:
            self._data = _as_tensor(self._raw)
        return self._data

    def array(self) -> np.ndarray:
        """The same as a numpy array, without torch."""
        import numpy as np

        return self._raw if isinstance(self._raw, np.ndarray) else np.asarray(self._raw)

    @property
    def embedding(self) -> Any:
        warn_deprecated(
            "`LLM.encode()` now stores raw outputs in the `data` attribute. To return embeddings, use `LLM.embed()`. "
            "To return class probabilities, use `LLM.classify()` and access the `probs` attribute. ",
            stacklevel=2,
        )
        return self.data

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PoolingOutput):
            return False
        own, others = self.array(), other.array()
        return own.shape == others.shape and bool((own == others).all())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"PoolingOutput(data={self.data})"


def _as_tensor(raw: Any) -> Any:
    import numpy as np

    if not isinstance(raw, np.ndarray):
        return raw
    if importlib.util.find_spec("torch") is not None:
        import torch

        return torch.from_numpy(raw)
    return raw.view(_array_type())


def _array_type() -> type:
    import numpy as np

    class Array(np.ndarray):
        """An array that answers .numpy() as a tensor does."""

        def numpy(self) -> np.ndarray:
            return self.view(np.ndarray)

    return Array


class PoolingRequestOutput(Generic[_O]):
    """The answer to one prompt. With `error` set, `outputs` is None: the prompt could not be served."""

    def __init__(
        self,
        request_id: str,
        outputs: _O,
        prompt_token_ids: list[int],
        finished: bool,
        num_cached_tokens: int = 0,
        error: str | None = None,
    ) -> None:
        self.request_id = request_id
        self.outputs = outputs
        self.prompt_token_ids = prompt_token_ids
        self.finished = finished
        self.num_cached_tokens = num_cached_tokens
        self.error = error

    def __repr__(self) -> str:
        error = "" if self.error is None else f", error={self.error!r}"
        return (
            f"{type(self).__name__}(request_id={self.request_id!r}, outputs={self.outputs!r}, "
            f"prompt_token_ids={self.prompt_token_ids}, finished={self.finished}{error})"
        )


def _converted(cls: type, output: PoolingRequestOutput[PoolingOutput], part: type) -> Any:
    outputs = None if output.error is not None else part.from_base(output.outputs)  # type: ignore[attr-defined]
    return cls(
        output.request_id, outputs, output.prompt_token_ids, output.finished, output.num_cached_tokens, output.error
    )


@dataclass(repr=False)
class EmbeddingOutput:
    embedding: list[float]

    @staticmethod
    def from_base(pooling_output: PoolingOutput) -> EmbeddingOutput:
        array = pooling_output.array()
        if array.ndim != 1:
            raise ValueError("pooled_data should be a 1-D embedding vector")
        return EmbeddingOutput(array.tolist())

    @property
    def hidden_size(self) -> int:
        return len(self.embedding)

    def __repr__(self) -> str:
        return f"EmbeddingOutput(hidden_size={self.hidden_size})"


class EmbeddingRequestOutput(PoolingRequestOutput[EmbeddingOutput]):
    @staticmethod
    def from_base(request_output: PoolingRequestOutput[PoolingOutput]) -> EmbeddingRequestOutput:
        return _converted(EmbeddingRequestOutput, request_output, EmbeddingOutput)


@dataclass(repr=False)
class ClassificationOutput:
    probs: list[float]

    @staticmethod
    def from_base(pooling_output: PoolingOutput) -> ClassificationOutput:
        array = pooling_output.array()
        if array.ndim != 1:
            raise ValueError("pooled_data should be a 1-D probability vector")
        return ClassificationOutput(array.tolist())

    @property
    def num_classes(self) -> int:
        return len(self.probs)

    def __repr__(self) -> str:
        return f"ClassificationOutput(num_classes={self.num_classes})"


class ClassificationRequestOutput(PoolingRequestOutput[ClassificationOutput]):
    @staticmethod
    def from_base(request_output: PoolingRequestOutput[PoolingOutput]) -> ClassificationRequestOutput:
        return _converted(ClassificationRequestOutput, request_output, ClassificationOutput)


@dataclass(repr=False)
class ScoringOutput:
    score: float

    @staticmethod
    def from_base(pooling_output: PoolingOutput) -> ScoringOutput:
        array = pooling_output.array()
        if array.size != 1:
            raise ValueError("pooled_data should be a scalar score")
        return ScoringOutput(float(array.reshape(())))

    @property
    def embedding(self) -> list[float]:
        warn_deprecated(
            "`LLM.score()` now returns scalar scores. Please access it via the `score` attribute. ", stacklevel=2
        )
        return [self.score]

    def __repr__(self) -> str:
        return f"ScoringOutput(score={self.score})"


class ScoringRequestOutput(PoolingRequestOutput[ScoringOutput]):
    @staticmethod
    def from_base(request_output: PoolingRequestOutput[PoolingOutput]) -> ScoringRequestOutput:
        return _converted(ScoringRequestOutput, request_output, ScoringOutput)
