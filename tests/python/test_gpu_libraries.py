"""Where NVIDIA's libraries are looked for, and that the plugin of the GPU is told: with a plugin that says what it was
told, wheels that hold empty files, and a cuda.pathfinder of our own.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from quire import gpu_libraries


@pytest.fixture
def no_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter without packages; returns the folder that is its only site-packages."""
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.setattr(sys, "path", ["", str(site)])
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(site))
    for variable in ("QUIRE_CUBLASLT", "QUIRE_NCCL"):
        monkeypatch.delenv(variable, raising=False)
    return site


def put(file: Path) -> str:
    """An empty file; returns its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return str(file.parent)


def pathfinder(monkeypatch: pytest.MonkeyPatch, paths: dict[str, str | None]) -> list[str]:
    """Installs a cuda.pathfinder that knows these; returns the names it will be asked for."""
    asked: list[str] = []

    def load_nvidia_dynamic_lib(name: str) -> SimpleNamespace:
        asked.append(name)
        if name not in paths:
            raise RuntimeError(f"no {name} here")
        return SimpleNamespace(abs_path=paths[name])

    module = ModuleType("cuda.pathfinder")
    module.load_nvidia_dynamic_lib = load_nvidia_dynamic_lib  # type: ignore[attr-defined]
    package = ModuleType("cuda")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "cuda", package)
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", module)
    return asked


def test_wheels_are_taken_newest_first_and_pathfinder_loads_nothing(
    no_wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = pathfinder(monkeypatch, {"cublasLt": "/elsewhere/libcublasLt.so.13", "nccl": "/elsewhere/libnccl.so.2"})
    old = put(no_wheels / "nvidia" / "cublas" / "lib" / "libcublasLt.so.12")
    new = put(no_wheels / "nvidia" / "cu13" / "lib" / "libcublasLt.so.13")
    nccl = put(no_wheels / "nvidia" / "nccl" / "lib" / "libnccl.so.2")
    put(no_wheels / "nvidia" / "cudnn" / "lib" / "libcudnn.so.9")
    assert gpu_libraries.folders_of_libraries() == [new, old, nccl]
    assert asked == []


def test_the_working_directory_is_no_place_for_wheels(no_wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(no_wheels.parent / "nvidia" / "nccl" / "lib" / "libnccl.so.2")
    monkeypatch.chdir(no_wheels.parent)
    pathfinder(monkeypatch, {})
    assert gpu_libraries.folders_of_libraries() == []


def test_pathfinder_finds_what_no_wheel_has(
    no_wheels: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nccl = put(no_wheels / "nvidia" / "nccl" / "lib" / "libnccl.so.2")
    asked = pathfinder(monkeypatch, {"cublasLt": "/conda/lib/libcublasLt.so.12"})
    assert gpu_libraries.folders_of_libraries() == ["/conda/lib", nccl] and asked == ["cublasLt"]

    (no_wheels / "nvidia" / "nccl" / "lib" / "libnccl.so.2").unlink()
    asked = pathfinder(monkeypatch, {"cublasLt": None})
    with caplog.at_level(logging.DEBUG, logger="quire"):
        assert gpu_libraries.folders_of_libraries() == []
    assert asked == ["cublasLt", "nccl"]
    assert "cuda.pathfinder finds no nccl: RuntimeError: no nccl here" in caplog.text


def test_pathfinder_is_not_asked_for_a_library_that_a_variable_names(
    no_wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = pathfinder(monkeypatch, {"cublasLt": "/a/libcublasLt.so.13", "nccl": "/b/libnccl.so.2"})
    monkeypatch.setenv("QUIRE_CUBLASLT", "/mine")
    assert gpu_libraries.folders_of_libraries() == ["/b"] and asked == ["nccl"]


def test_without_pathfinder_there_is_no_error(
    no_wheels: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    with caplog.at_level(logging.DEBUG, logger="quire"):
        assert gpu_libraries.folders_of_libraries() == []
    assert "cuda.pathfinder finds no cublasLt: ModuleNotFoundError" in caplog.text


@pytest.fixture
def with_listener(simt_plugin: Path, tmp_path: Path) -> tuple[dict[str, str], str, str]:
    """The environment of a process whose "cuda" says what it was told and whose wheels are ours, and their folders."""
    listener = simt_plugin.parent / "libquire_listener.so"
    if not listener.exists():
        pytest.skip("the plugins of test_device are not built")
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "libquire_cuda.so").symlink_to(listener)
    site = tmp_path / "site"
    cublas = put(site / "nvidia" / "cu13" / "lib" / "libcublasLt.so.13")
    nccl = put(site / "nvidia" / "nccl" / "lib" / "libnccl.so.2")
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "QUIRE_PLUGIN_PATH": str(tmp_path / "plugins"), "PYTHONPATH": path}, cublas, nccl


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1", "cpu"])
def test_the_plugin_is_told_when_a_model_is_opened(
    tiny_model: Path, with_listener: tuple[dict[str, str], str, str], device: str
) -> None:
    environment, *folders = with_listener
    code = f"""
import sys
from quire import LLM, _quire
try:
    LLM({str(tiny_model)!r}, device={device!r}, num_gpu_blocks_override=64)
except RuntimeError as error:
    print(error)
assert "cuda" not in sys.modules
print(_quire.describe_plugin("cuda"))"""
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    *errors, described = ran.stdout.splitlines()
    told = [] if device == "cpu" else folders
    assert f"'num_devices': 0, 'libraries': {told}" in described and "'problem': ''" in described
    assert errors == ([f"the listener has no device {device[5:] or 0}"] if "cuda" in device else [])


@pytest.mark.parametrize("plugin", [True, False])
def test_pathfinder_is_imported_for_a_plugin_alone(
    tiny_model: Path, tmp_path: Path, with_listener: tuple[dict[str, str], str, str], plugin: bool
) -> None:
    environment, cublas, nccl = with_listener
    Path(nccl, "libnccl.so.2").unlink()
    if not plugin:
        Path(environment["QUIRE_PLUGIN_PATH"], "libquire_cuda.so").unlink()
    (tmp_path / "site" / "cuda").mkdir()
    (tmp_path / "site" / "cuda" / "pathfinder.py").write_text(
        "import types\ndef load_nvidia_dynamic_lib(name):\n"
        "    return types.SimpleNamespace(abs_path=f'/found/{name}/libnccl.so.2')\n"
    )
    code = f"""
import sys
from quire import LLM, _quire
has_plugin = _quire.find_plugin("cuda") != ""
LLM({str(tiny_model)!r}, device="cpu", num_gpu_blocks_override=64)
assert "cuda" not in sys.modules
LLM({str(tiny_model)!r}, device="auto", num_gpu_blocks_override=64)
print(has_plugin, "cuda.pathfinder" in sys.modules, _quire.describe_plugin("cuda")["libraries"] if {plugin} else "")"""
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    if not plugin and ran.stdout.startswith("True"):
        pytest.skip("the CUDA plugin is installed")
    assert ran.stdout.rstrip() == (f"True True {[cublas, '/found/nccl']}" if plugin else "False False")


def test_collect_env_shows_the_plugin(with_listener: tuple[dict[str, str], str, str]) -> None:
    environment, cublas, nccl = with_listener
    command = [sys.executable, "-c", "from quire.cli import main; main()", "collect-env"]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in shown.splitlines()]
    file = f"{environment['QUIRE_PLUGIN_PATH']}/libquire_cuda.so"
    assert ["cuda", "plugin", file] in rows and ["cuda", "devices", "0"] in rows
    assert [row[2] for row in rows if row[:2] == ["cuda", "library"]] == [cublas, nccl]
