"""docs/parallel.md names what there is; docs/scaling.md holds what bench/scaling.py computes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from quire.engine_args import ARGS

ROOT = Path(__file__).resolve().parents[2]


def test_arguments_and_files_of_the_page_exist() -> None:
    page = (ROOT / "docs" / "parallel.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert {"tensor_parallel_size", "collective_timeout", "pipeline_parallel_size"} <= set(rows) <= set(ARGS)
    files = re.findall(r"`((?:cpp|kernels)/[\w/.]+)`", page)
    assert len(files) >= 4 and all((ROOT / file).is_file() for file in files)


def test_the_simulation_is_up_to_date() -> None:
    subprocess.run([sys.executable, ROOT / "bench" / "scaling.py", "--check"], check=True)
    assert (ROOT / "docs" / "images" / "scaling.png").read_bytes().startswith(b"\x89PNG")
