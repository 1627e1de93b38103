"""Tells the plugin of NVIDIA GPUs where cuBLASLt and NCCL lie, before it is loaded.

Decides the folders: those of NVIDIA's wheels beside the running interpreter, and for a library that no wheel has what
cuda.pathfinder finds (conda, the loader's path, CUDA_HOME). It is asked last because it loads what it finds, and not at
all for a library that its environment variable names: what is loaded already would be taken instead. Which library is
used in the end, the plugin decides (kernels/cuda/library_finder.h). No failure here is an error.
"""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
from pathlib import Path

from quire._logging import logger

# As cuda.pathfinder calls it: its files, and the variable that names it.
_LIBRARIES = {
    "cublasLt": (("libcublasLt.so.13", "libcublasLt.so.12"), "QUIRE_CUBLASLT"),
    "nccl": (("libnccl.so.2",), "QUIRE_NCCL"),
}


def tell_folders(device: str) -> None:
    """Called before a device of that name is opened. Does nothing for others, and where there is no plugin."""
    if device != "auto" and device.partition(":")[0] != "cuda":
        return
    from quire import _quire

    if _quire.find_plugin("cuda"):
        _quire.set_library_folders(folders_of_libraries())


def folders_of_libraries() -> list[str]:
    """The folders that hold cuBLASLt or NCCL, the best first."""
    folders: list[str] = []
    for name, (files, variable) in _LIBRARIES.items():
        found = _folders_of_wheels(files)
        if not found and not os.environ.get(variable):
            found = _folder_by_pathfinder(name)
        folders += (folder for folder in found if folder not in folders)
    return folders


def _folders_of_wheels(files: tuple[str, ...]) -> list[str]:
    roots = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *sys.path])
    wheels = [Path(root, "nvidia") for root in roots if root]  # "" would be the working directory
    try:
        return [str(path.parent) for file in files for wheel in wheels for path in sorted(wheel.glob(f"*/lib/{file}"))]
    except OSError as error:
        logger.debug("NVIDIA's wheels cannot be listed: %s", error)
        return []


def _folder_by_pathfinder(name: str) -> list[str]:
    try:
        pathfinder = importlib.import_module("cuda.pathfinder")
        path = pathfinder.load_nvidia_dynamic_lib(name).abs_path
        return [str(Path(path).parent)] if path else []
    except Exception as error:  # of another package's, whichever it likes
        logger.debug("cuda.pathfinder finds no %s: %s: %s", name, type(error).__name__, error)
        return []
