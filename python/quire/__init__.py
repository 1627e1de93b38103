"""quire: offline inference of large language models, with vLLM's LLM class on a C++ engine.

Decides which names are public. Nothing is imported until it is used: `import quire` costs milliseconds and pulls in
neither numpy nor transformers nor torch. Called from any thread.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quire.beam_search import BeamSearchOutput, BeamSearchSequence
    from quire.errors import ModelNotFoundError, QuireError, RequestError, ValidationError
    from quire.inputs import PromptType, TextPrompt, TokensPrompt
    from quire.llm import LLM
    from quire.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput, StreamChunk
    from quire.pooler_config import PoolerConfig
    from quire.pooling_outputs import (
        ClassificationOutput,
        ClassificationRequestOutput,
        EmbeddingOutput,
        EmbeddingRequestOutput,
        PoolingOutput,
        PoolingRequestOutput,
        ScoringOutput,
        ScoringRequestOutput,
    )
    from quire.pooling_params import PoolingParams
    from quire.sampling_params import (
        BeamSearchParams,
        GuidedDecodingParams,
        RequestOutputKind,
        SamplingParams,
        StructuredOutputsParams,
    )

    __version__: str
    __version_tuple__: tuple[int, ...]

# Public name -> the module that defines it.
_EXPORTS = {
    "LLM": "llm",
    "SamplingParams": "sampling_params",
    "BeamSearchParams": "sampling_params",
    "BeamSearchOutput": "beam_search",
    "BeamSearchSequence": "beam_search",
    "GuidedDecodingParams": "sampling_params",
    "StructuredOutputsParams": "sampling_params",
    "RequestOutputKind": "sampling_params",
    "PoolingParams": "pooling_params",
    "PoolerConfig": "pooler_config",
    "PoolingOutput": "pooling_outputs",
    "PoolingRequestOutput": "pooling_outputs",
    "EmbeddingOutput": "pooling_outputs",
    "EmbeddingRequestOutput": "pooling_outputs",
    "ClassificationOutput": "pooling_outputs",
    "ClassificationRequestOutput": "pooling_outputs",
    "ScoringOutput": "pooling_outputs",
    "ScoringRequestOutput": "pooling_outputs",
    "PromptType": "inputs",
    "TextPrompt": "inputs",
    "TokensPrompt": "inputs",
    "RequestOutput": "outputs",
    "CompletionOutput": "outputs",
    "Logprob": "outputs",
    "RequestMetrics": "outputs",
    "StreamChunk": "outputs",
    "QuireError": "errors",
    "ValidationError": "errors",
    "RequestError": "errors",
    "ModelNotFoundError": "errors",
}

__all__ = [
    "LLM",
    "BeamSearchOutput",
    "BeamSearchParams",
    "BeamSearchSequence",
    "ClassificationOutput",
    "ClassificationRequestOutput",
    "CompletionOutput",
    "EmbeddingOutput",
    "EmbeddingRequestOutput",
    "GuidedDecodingParams",
    "Logprob",
    "ModelNotFoundError",
    "PoolerConfig",
    "PoolingOutput",
    "PoolingParams",
    "PoolingRequestOutput",
    "PromptType",
    "QuireError",
    "RequestError",
    "RequestMetrics",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "ScoringOutput",
    "ScoringRequestOutput",
    "StreamChunk",
    "StructuredOutputsParams",
    "TextPrompt",
    "TokensPrompt",
    "ValidationError",
    "__version__",
    "__version_tuple__",
    "get_cmake_dir",
]


def get_cmake_dir() -> str:
    """The folder to name in CMAKE_PREFIX_PATH, so that find_package(quire) in a C++ project finds this installation."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib", "cmake", "quire")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = importlib.import_module("quire._quire").version()
    elif name == "__version_tuple__":
        value = tuple(int(part) for part in __getattr__("__version__").split("."))
    elif name in _EXPORTS:
        value = getattr(importlib.import_module(f"quire.{_EXPORTS[name]}"), name)
    else:
        raise AttributeError(f"module 'quire' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
