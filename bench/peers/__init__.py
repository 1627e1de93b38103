"""The engines that `quire bench compare` runs side by side, one file each.

Decides which there are. Everything here runs in the interpreters of several virtual environments, so what is imported
at module level is the standard library; the name of this package is given by whoever loads it (quire_peers).
"""

from __future__ import annotations

import importlib
from pathlib import Path

from .base import Peer

FILES = {
    "quire": "quire_itself",
    "llama.cpp": "llama_cpp",
    "llama.cpp-avx2": "llama_cpp_avx2",
    "openvino": "openvino",
    "vllm": "vllm",
    "transformers": "transformers",
}


def open_peer(name: str, folder: Path) -> Peer:
    """The adapter of an engine; its environments and converted checkpoints lie in `folder`."""
    return importlib.import_module(f".{FILES[name]}", __name__).Adapter(name, folder)
