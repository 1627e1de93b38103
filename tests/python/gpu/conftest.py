"""What the tests of the engine on a GPU share: which device is under test, and engines on it that are closed in time.

QUIRE_TEST_DEVICE names the device: cuda, simt (the same backend on the emulation, at smaller sizes), or cpu (a test of
the tests themselves). Without it they run where there is a GPU and a build that can use it, and are skipped elsewhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_llama
from quire import LLM, engine_args

# The cases of every family.
sys.path.append(str(Path(__file__).parents[1] / "models"))

MakeLLM = Callable[..., LLM]
# Where the engine lets one choose, the tests choose that a result does not depend on its batch.
INVARIANT = {"batch_invariant": True} if "batch_invariant" in engine_args.ARGS else {}


def has_gpu() -> bool:
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    except OSError:
        return False
    return done.returncode == 0 and "GPU" in done.stdout


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> str:
    chosen = os.environ.get("QUIRE_TEST_DEVICE", "")
    if chosen:
        assert chosen in ("cuda", "simt", "cpu"), f"QUIRE_TEST_DEVICE={chosen}: expected cuda, simt or cpu"
        return chosen
    if not has_gpu():
        pytest.skip("no CUDA device (nvidia-smi finds none); QUIRE_TEST_DEVICE=simt runs these on the emulation")
    try:
        LLM(str(write_llama(tmp_path_factory.mktemp("probe"))), device="cuda", num_gpu_blocks_override=16).close()
    except NotImplementedError as error:
        pytest.skip(f"there is a GPU, and this build cannot use it: {error}")
    return "cuda"


@pytest.fixture
def make_llm(device: str) -> Iterator[MakeLLM]:
    """Builds an engine on the device under test; all are closed after the test."""
    opened: list[LLM] = []

    def make(folder: Path, **arguments: Any) -> LLM:
        defaults = {"device": device, "seed": 0, "num_gpu_blocks_override": 256, **INVARIANT}
        llm = LLM(str(folder), **{**defaults, **arguments})
        opened.append(llm)
        return llm

    yield make
    for llm in opened:
        llm.close()
