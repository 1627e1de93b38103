"""The many arguments that say how decode steps are captured and planned: what the core is told, and what is refused."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest
from quire import engine_args
from quire.errors import ValidationError
from quire.graphs import usual_sizes


def core_options(**given: Any) -> dict[str, Any]:
    options = engine_args.engine_options(engine_args.resolve({"model": "m", **given}), "")
    names = ("enforce_eager", "graph_sizes", "async_scheduling", "max_seq_len_to_capture")
    return {name: options[name] for name in names if name in options}


class Mode(Enum):
    NONE = 0
    FULL = 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"enforce_eager": True}, {"enforce_eager": True}),
        ({"enforce_eager": False}, {"enforce_eager": False}),
        ({"max_seq_len_to_capture": 100}, {"max_seq_len_to_capture": 100}),
        ({"disable_async_output_proc": True}, {"async_scheduling": False}),
        ({"async_scheduling": False}, {"async_scheduling": False}),
        ({"compilation_config": 0}, {}),
        ({"compilation_config": 3}, {}),
        ({"compilation_config": "3"}, {}),
        ({"compilation_config": {"level": 3, "use_inductor": True}}, {}),
        ({"compilation_config": "{'cudagraph_capture_sizes': [4, 1]}"}, {"graph_sizes": [1, 4]}),
        ({"compilation_config": {"cudagraph_capture_sizes": [8, 1, 8]}}, {"graph_sizes": [1, 8]}),
        ({"compilation_config": {"max_cudagraph_capture_size": 16}}, {"graph_sizes": [1, 2, 4, 8, 16]}),
        ({"compilation_config": {"use_cudagraph": False}}, {"enforce_eager": True}),
        ({"compilation_config": {"cudagraph_mode": "none"}}, {"enforce_eager": True}),
        ({"compilation_config": {"cudagraph_mode": Mode.NONE}}, {"enforce_eager": True}),
        ({"compilation_config": {"cudagraph_mode": "FULL_AND_PIECEWISE"}}, {}),
        ({"compilation_config": {"cudagraph_capture_sizes": []}}, {"enforce_eager": True}),
        ({"cuda_graph_sizes": [32]}, {"graph_sizes": [1, 2, 4, 8, 16, 24, 32]}),
        ({"cuda_graph_sizes": [3, 5]}, {"graph_sizes": [3, 5]}),
        ({"cudagraph_capture_sizes": [2]}, {"graph_sizes": [2]}),
    ],
)
def test_the_core_is_told(given: dict[str, Any], expected: dict[str, Any]) -> None:
    defaults = {"max_seq_len_to_capture": 8192}
    assert core_options(**given) == {**defaults, **expected}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"compilation_config": 4}, "level must be 0, 1, 2 or 3, got 4"),
        ({"compilation_config": "fast"}, "no number and no dictionary: 'fast'"),
        ({"compilation_config": {"cudagraphs": True}}, "unknown fields: cudagraphs"),
        ({"compilation_config": {"cudagraph_mode": "SOME"}}, "cudagraph_mode must be one of NONE"),
        ({"compilation_config": {"cudagraph_capture_sizes": [0]}}, "batch size of at least 1, got 0"),
        ({"cudagraph_capture_sizes": "8"}, "must be batch sizes, got '8'"),
        ({"cuda_graph_sizes": [1.5]}, "batch size of at least 1, got 1.5"),
        ({"max_seq_len_to_capture": 0}, "max_seq_len_to_capture must be positive, got 0"),
    ],
)
def test_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        core_options(**given)


def test_usual_sizes_are_those_of_vllm() -> None:
    assert usual_sizes(256) == [1, 2, 4, *range(8, 257, 8)] and len(usual_sizes(256)) == 35
    assert usual_sizes(5) == [1, 2, 4]
    assert usual_sizes(1) == [1]
