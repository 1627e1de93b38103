"""`quire cache`: the packed weights that are kept on disk."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from quire import weight_cache
from quire.cli.info import in_bytes


def cache(
    folder: Annotated[Path | None, typer.Option(help="Default: where LLM keeps them.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Read all of them and compare with their checksums.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Delete them.")] = False,
) -> None:
    """Packed weights on disk, which the next start of their model maps."""
    where = weight_cache.default_folder() if folder is None else folder
    if clear:
        print(f"{in_bytes(weight_cache.clear(where))} deleted in {where}")
        return
    found = weight_cache.files(where)
    damaged = 0
    for file in found:
        state = ""
        if check:
            problem = weight_cache.problem(file)
            damaged += bool(problem)
            state = f"  {problem or 'as written'}"
        used = datetime.fromtimestamp(file.used).strftime("%Y-%m-%d %H:%M")
        print(f"{in_bytes(file.num_bytes):>9}  used {used}  {file.kernels:<8}  {file.model}{state}")
    print(f"{len(found)} files, {in_bytes(sum(file.num_bytes for file in found))} in {where}")
    if damaged:
        raise typer.Exit(1)
