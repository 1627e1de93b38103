"""How decode steps are captured and planned on a GPU, from the many arguments that vLLM has had for it.

Decides which batch sizes are captured (`graph_sizes` of the core), whether any are (`enforce_eager`) and whether a
step is planned while the one before it runs (`async_scheduling`). Knows no device: on a CPU nothing is captured.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

from quire.errors import ValidationError

# Fields of CompilationConfig that steer compilation, of which there is none: any value gives the same results.
_COMPILATION_FIELDS = frozenset(
    "level mode backend custom_ops splitting_ops compile_mm_encoder use_inductor compile_sizes "
    "compile_ranges_split_points inductor_compile_config inductor_passes use_inductor_graph_partition "
    "cudagraph_num_of_warmups cudagraph_copy_inputs cudagraph_specialize_lora full_cuda_graph pass_config "
    "debug_dump_path cache_dir local_cache_dir dynamic_shapes_config fast_moe_cold_start".split()
)
_GRAPH_FIELDS = frozenset("use_cudagraph cudagraph_mode cudagraph_capture_sizes max_cudagraph_capture_size".split())
_GRAPH_MODES = ("NONE", "PIECEWISE", "FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE")


def usual_sizes(largest: int) -> list[int]:
    """1, 2, 4 and the multiples of 8 up to `largest`, as vLLM captures them."""
    return [size for size in (1, 2, 4, *range(8, largest + 1, 8)) if size <= largest] or [largest]


def engine_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the core that the arguments stand for; what they leave open is not in it.

    Raises ValidationError for values that no version of vLLM takes.
    """
    options: dict[str, Any] = {}
    if values["disable_async_output_proc"]:
        options["async_scheduling"] = False
    config = _compilation_config(values["compilation_config"])
    sizes = config.get("cudagraph_capture_sizes")
    if sizes is None and config.get("max_cudagraph_capture_size") is not None:
        sizes = usual_sizes(_size("max_cudagraph_capture_size", config["max_cudagraph_capture_size"]))
    if values["cuda_graph_sizes"] is not None:
        sizes = _sizes("cuda_graph_sizes", values["cuda_graph_sizes"])
        if len(sizes) == 1:
            sizes = usual_sizes(sizes[0])
    if values["cudagraph_capture_sizes"] is not None:
        sizes = values["cudagraph_capture_sizes"]
    if sizes is not None:
        options["graph_sizes"] = sorted(set(_sizes("cudagraph_capture_sizes", sizes)))
    mode = config.get("cudagraph_mode")
    if config.get("use_cudagraph") is False or _mode(mode) == "NONE" or options.get("graph_sizes") == []:
        options["enforce_eager"] = True
        options.pop("graph_sizes", None)
    return options


def _compilation_config(given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if isinstance(given, str):
        try:
            given = ast.literal_eval(given)
        except (ValueError, SyntaxError):
            raise ValidationError(f"compilation_config is no number and no dictionary: {given!r}") from None
    if isinstance(given, Integral) and not isinstance(given, bool):
        if int(given) not in range(4):
            raise ValidationError(f"compilation_config: the level must be 0, 1, 2 or 3, got {given}")
        return {}
    if not isinstance(given, Mapping):
        given = {name: value for name, value in vars(given).items() if not name.startswith("_")}
    unknown = sorted(set(given) - _COMPILATION_FIELDS - _GRAPH_FIELDS)
    if unknown:
        raise ValidationError(f"compilation_config has unknown fields: {', '.join(unknown)}")
    return dict(given)


def _mode(mode: Any) -> str | None:
    if mode is None:
        return None
    name = str(getattr(mode, "name", mode)).upper()
    if name not in _GRAPH_MODES:
        raise ValidationError(f"cudagraph_mode must be one of {', '.join(_GRAPH_MODES)}, got {mode!r}")
    return name


def _size(name: str, value: Any) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValidationError(f"{name} must be a batch size of at least 1, got {value!r}")
    return int(value)


def _sizes(name: str, value: Any) -> list[int]:
    if isinstance(value, Integral):
        value = [value]
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes)):
        raise ValidationError(f"{name} must be batch sizes, got {value!r}")
    return [_size(name, each) for each in value]
