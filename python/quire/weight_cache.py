"""Where packed weights are kept between starts, and what is there.

A model's weights are packed for the processor once; the next start maps the file. LLM(weight_cache=...) says whether
and where. The files' format is the core's (cpp/model/packed_copy.cpp); of it only the beginning is read here.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

ENVIRONMENT = "QUIRE_WEIGHT_CACHE"
_OFF = ("0", "off", "false", "no")
_HEADER = struct.Struct("<8sQQQQ")  # magic, bytes of the description, where the data begin, their bytes, checksum
_MAGIC = b"quirepk1"


def default_folder() -> Path:
    """$QUIRE_WEIGHT_CACHE, else quire/weights in $XDG_CACHE_HOME or ~/.cache."""
    given = os.environ.get(ENVIRONMENT, "")
    if given and given.lower() not in _OFF:
        return Path(given).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(caches) if caches else Path.home() / ".cache") / "quire" / "weights"


def resolve(value: bool | str | PathLike[str] | None) -> str:
    """The folder for `weight_cache`, "" for none. None: as the environment says, else the default folder.

    Raises:
        TypeError: something that is neither a bool nor a path.
    """
    if value is None:
        value = os.environ.get(ENVIRONMENT, "").lower() not in _OFF
    if isinstance(value, bool):
        return str(default_folder()) if value else ""
    if not isinstance(value, (str, PathLike)) or not os.fspath(value):
        raise TypeError(f"weight_cache must be True, False or a folder, got {value!r}")
    return str(Path(value).expanduser())


@dataclass(frozen=True)
class PackedFile:
    """A file of packed weights: of which checkpoint files, for which kernels, when it was used last (epoch seconds)."""

    path: Path
    num_bytes: int
    used: float
    model: str
    kernels: str


def files(folder: Path) -> list[PackedFile]:
    """Those in a folder, the one used last first."""
    return sorted(_files(folder), key=lambda file: -file.used)


def _files(folder: Path) -> Iterator[PackedFile]:
    for path in folder.glob("*.packed"):
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size or not header.startswith(_MAGIC):
                continue
            text = file.read(_HEADER.unpack(header)[1]).decode(errors="replace")
        status = path.stat()
        lines: dict[str, str] = {}
        for line in text.split("\n"):
            name, _, rest = line.partition(" ")
            lines.setdefault(name, rest)
        model = str(Path(lines.get("file", "?").rsplit(" ", 4)[0]).parent)
        yield PackedFile(path, status.st_size, status.st_mtime, model, lines.get("kernels", "?"))


def problem(file: PackedFile) -> str:
    """What is wrong with a file, all of which is read; "" if it is as it was written."""
    from quire import _quire

    return _quire.problem_of_packed_weights(str(file.path))


def clear(folder: Path) -> int:
    """Deletes the files of a folder; engines that have one mapped keep it. Returns their bytes."""
    total = 0
    for path in folder.glob("*.packed"):
        total += path.stat().st_size
        path.unlink()
    return total
