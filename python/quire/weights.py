"""Weights that come from Python: tensors of any library as the core takes them, one at a time.

Decides what a tensor is and what is checked before the first one is written. Names, shapes and the way into the model
are the core's. torch is used where it is loaded already, or where nothing else can read a tensor.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quire import model_source

NamedTensors = Iterable[tuple[str, Any]] | Mapping[str, Any]


@dataclass(frozen=True)
class Origin:
    """Where the weights of an LLM came from, and how a model is found."""

    path: Path
    load_format: str
    download_dir: str | None = None
    hf_token: bool | str | None = None

    def resolve(self, model: str | PathLike[str]) -> Path:
        return model_source.resolve_model(fspath(model), None, self.download_dir, self.hf_token)


def load(
    engine: Any, weights: NamedTensors, atomic: bool = True, settle: Callable[[set[str]], None] | None = None
) -> set[str]:
    """Gives tensors to the core as it asks for them; returns their names, which settle() may object to at the end."""
    items: Iterable[Any] = weights.items() if isinstance(weights, Mapping) else weights
    if isinstance(weights, (Mapping, Sequence)):
        items = [_pair(item) for item in items]
        engine.check_weights([(name, *described) for name, value in items if (described := _describe(value))])
    names: set[str] = set()
    iterator: Iterator[Any] = iter(items)

    def following() -> tuple[str, npt.NDArray[Any], str] | None:
        for item in iterator:
            name, value = _pair(item)
            names.add(name)
            return (name, *as_array(name, value))
        if settle is not None:
            settle(names)
        return None

    engine.load_weights(following, atomic)
    return names


def names_of(weights: NamedTensors) -> set[str]:
    """Asks for every tensor and keeps none."""
    return set(weights) if isinstance(weights, Mapping) else {_pair(item)[0] for item in weights}


def reload(engine: Any, origin: Origin, model: str | PathLike[str] | None = None) -> None:
    """All weights of a directory or of a model on the hub; None: those the LLM began with."""
    if model is None and origin.load_format == "dummy":
        engine.reload_weights("", None)
        return
    path = origin.path if model is None else origin.resolve(model)
    load_format = "auto" if origin.load_format == "dummy" else origin.load_format
    engine.reload_weights(str(path), model_source.load_bin_weights(path, load_format))


def as_array(name: str, value: Any) -> tuple[npt.NDArray[Any], str]:
    """The elements on the host and the name of their dtype; bfloat16 as its bits. Without a copy where there is one."""
    if hasattr(value, "full_tensor"):  # a DTensor: its parts are on several ranks of the trainer
        value = value.full_tensor()
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return model_source.to_numpy(value.detach().cpu().contiguous(), torch)
    if not isinstance(value, np.ndarray):
        value = _from_dlpack(name, value)
        if not isinstance(value, np.ndarray):
            return as_array(name, value)
    if value.dtype.name == "bfloat16":  # of ml_dtypes
        return np.ascontiguousarray(value).view(np.uint16), "bfloat16"
    return value, value.dtype.name


def _from_dlpack(name: str, value: Any) -> Any:
    """A numpy array or, where numpy has no such dtype or cannot reach the memory, a tensor of torch."""
    if not hasattr(value, "__dlpack__"):
        raise TypeError(
            f"{name}: a weight is a torch tensor, a numpy array or something with __dlpack__, got "
            f"{type(value).__name__}"
        )
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError):
        pass
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{name}: numpy cannot read this {type(value).__name__} through DLPack (bfloat16, or memory of a device); "
            "torch can: pip install 'quire[torch]'."
        ) from error
    return torch.from_dlpack(value)


def _pair(item: Any) -> tuple[str, Any]:
    if not isinstance(item, (tuple, list)) or len(item) != 2 or not isinstance(item[0], str):
        raise TypeError(f"weights are (name, tensor) pairs, got {_short(item)}")
    return item[0], item[1]


def _short(item: Any) -> str:
    if isinstance(item, (tuple, list)):
        return f"a {type(item).__name__} of {[type(part).__name__ for part in item[:3]]}"
    return type(item).__name__


def _describe(value: Any) -> tuple[str, tuple[int, ...]] | None:
    """dtype and shape, where they can be told without the elements."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is None or shape is None:
        return None
    name = getattr(dtype, "name", None) or str(dtype).removeprefix("torch.")
    return name, tuple(int(size) for size in shape)
