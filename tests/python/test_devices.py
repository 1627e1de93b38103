"""device=...: which name reaches which device, and what is said where there is none.

Runs nothing on a device; the plugin of the emulated GPU shows that its errors arrive as Python's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from quire import LLM


def test_the_plugin_that_is_missing_is_named_with_where_it_was_looked_for(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUIRE_PLUGIN_PATH", str(tmp_path))
    with pytest.raises((NotImplementedError, RuntimeError)) as caught:
        LLM(str(tiny_model), device="cuda:999")
    if caught.type is RuntimeError:
        pytest.skip("the CUDA plugin is installed")
    for part in (f"{tmp_path}/libquire_cuda.so", "pip install quire[cuda]", "QUIRE_CUDA=ON", 'device="cpu"'):
        assert part in str(caught.value)


def test_a_broken_plugin_is_no_missing_one(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "libquire_cuda.so").write_text("not a library")
    # In a process of its own: a plugin that is loaded stays loaded.
    code = f"import quire; quire.LLM({str(tiny_model)!r}, device='cuda')"
    environment = {**os.environ, "QUIRE_PLUGIN_PATH": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert 'RuntimeError: the plugin of device="cuda" cannot be loaded' in result.stderr


def test_errors_of_a_plugin_arrive(tiny_model: Path, simt_plugin: Path) -> None:
    with pytest.raises(RuntimeError, match='device="simt:7" does not exist: there is 1 device'):
        LLM(str(tiny_model), device="simt:7")


def test_the_number_of_a_torch_device_is_kept(tiny_model: Path, simt_plugin: Path) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises((NotImplementedError, RuntimeError), match="cuda"):
        LLM(str(tiny_model), device=torch.device("cuda", 99))
    with LLM(str(tiny_model), device=torch.device("cpu"), num_gpu_blocks_override=64) as llm:
        assert llm.info()["device"] == "cpu"


def test_auto_is_no_error(tiny_model: Path) -> None:
    with LLM(str(tiny_model), device="auto", num_gpu_blocks_override=64) as llm:
        outputs = llm.generate({"prompt_token_ids": [1, 2, 3]}, use_tqdm=False)
    assert outputs[0].outputs[0].token_ids
