"""What a user gets from `pip install .`: the contents of the wheel, the package it makes, and find_package(quire).

Everything runs on the wheel itself, unpacked as pip would, so a file that only the build tree has cannot help. The
wheel is the one `make` built (build/wheel), else one is built here. It knows nothing of what the engine computes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_WHEEL_BYTES = 30_000_000
MAX_CUDA_WHEEL_BYTES = 150_000_000  # with the plugin for NVIDIA GPUs
CUDA_PLUGIN = "quire/lib/libquire_cuda.so"


def run(command: list[object], **kwargs: object) -> str:
    """Runs a command and returns its standard output; a failure shows all it said."""
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, **kwargs)  # type: ignore[call-overload]
    assert result.returncode == 0, f"{command} exited {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = sorted(ROOT.glob("build/wheel/quire-*.whl"))
    if not built:
        out = tmp_path_factory.mktemp("wheel")
        run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", out, ROOT])
        built = sorted(out.glob("quire-*.whl"))
    assert len(built) == 1, built
    return built[0]


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for sys.path that holds nothing but the unpacked wheel."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def python(site: Path, code: str) -> str:
    """Runs Python code that sees the unpacked wheel before any other quire."""
    return run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(site)}, cwd=site)


def test_wheel_is_small_and_complete(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert wheel.stat().st_size <= (MAX_CUDA_WHEEL_BYTES if CUDA_PLUGIN in names else MAX_WHEEL_BYTES)
    for pattern in (
        r"quire/__init__\.py",
        r"quire/py\.typed",
        r"quire/_quire\.[^/]+\.so",
        r"quire/lib/libquire\.so",
        r"quire/include/quire/quire\.h",
        r"quire/include/quire/types\.h",
        r"quire/include/quire/version\.h",
        r"quire/lib/cmake/quire/quireConfig\.cmake",
        r"quire/demo_model/config\.json",
        r"quire/demo_model/tokenizer\.json",
        r"quire/demo_model/.*\.safetensors",
        r"quire-[^/]+\.dist-info/licenses/LICENSE",
    ):
        assert any(re.fullmatch(pattern, name) for name in names), f"{pattern} is not in {wheel.name}"


def test_wheel_carries_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"quire"}
    unwanted = ("__pycache__", "testing", "libquire_simt")
    assert not [name for name in names if any(part in name for part in unwanted) or name.endswith((".a", ".o"))]


def test_python_sources_are_all_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    files = run(["git", "ls-files", "python/quire"], cwd=ROOT).splitlines() if (ROOT / ".git").exists() else []
    assert not [name for name in files if name.removeprefix("python/") not in names]
    peers = [path.name for path in (ROOT / "bench/peers").glob("*.py")]  # quire bench compare runs them
    assert peers and not [name for name in peers if f"quire/cli/peers/{name}" not in names]


def test_peers_are_found_in_the_package(site: Path, tmp_path: Path) -> None:
    code = "from quire.cli import compare, main; print(compare.peers_folder()); main()"
    command = [sys.executable, "-c", code, "bench", "compare", "--list", "--peers-dir", tmp_path]
    listed = run(command, env={**os.environ, "PYTHONPATH": str(site)}, cwd=site).splitlines()
    assert listed[0] == str((site / "quire/cli/peers").resolve())
    assert [line.split()[0] for line in listed[1:]] == ["llama.cpp", "openvino", "vllm", "transformers"]


def test_native_libraries_need_the_cxx_runtime_alone(site: Path) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("readelf (binutils) is not installed")
    # The CUDA plugin holds the CUDA runtime and finds the driver by itself.
    allowed = re.compile(r"lib(quire|stdc\+\+|gcc_s|c|m|pthread|dl|rt)\.so(\.\d+)?|ld-linux.*")
    for library in [*site.glob("quire/lib/*.so"), *site.glob("quire/_quire.*.so")]:
        dynamic = run(["readelf", "-d", library])
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
        assert needed and not [name for name in needed if not allowed.fullmatch(name)], (library.name, needed)
        # A path of the build machine in the library would load the wrong libquire there and none elsewhere.
        assert set(re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.*)\]", dynamic)) <= {"$ORIGIN/lib"}


def test_library_exports_the_public_api_alone(site: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("nm (binutils) is not installed")
    symbols = run(["nm", "-DC", "--defined-only", site / "quire/lib/libquire.so"])
    exported = {line.split(" ", 2)[2] for line in symbols.splitlines() if line.split(" ", 2)[1] in "TDBR"}
    public = "\n".join(path.read_text() for path in (site / "quire/include/quire").glob("*.h"))
    names = {match[1] for symbol in exported if (match := re.match(r"quire::(\w+)", symbol))}
    assert "version" in names
    hidden = {name for name in names if not re.search(rf"\b{name}\b", public)}
    assert not hidden, f"exported, but in no public header: {sorted(hidden)}"


def test_cuda_plugin_exports_its_entry_alone(site: Path) -> None:
    plugin = site / CUDA_PLUGIN
    if shutil.which("nm") is None or not plugin.is_file():
        pytest.skip("the wheel has no CUDA plugin (QUIRE_CUDA=ON builds it), or nm is not installed")
    symbols = run(["nm", "-D", "--defined-only", plugin])
    assert {line.split()[-1] for line in symbols.splitlines()} == {"quire_device_plugin"}
    # Found beside libquire; without a driver it says so.
    code = "import quire; quire.LLM(quire.__path__[0] + '/demo_model', device='cuda:999')"
    env = {**os.environ, "PYTHONPATH": str(site)}
    result = subprocess.run([sys.executable, "-c", code], env=env, cwd=site, capture_output=True, text=True)
    assert result.returncode == 1
    assert "RuntimeError: device=" in result.stderr, result.stderr


def test_import_loads_no_heavy_package(site: Path) -> None:
    code = "import json, sys, quire; print(json.dumps([quire.__file__, quire.__version__, sorted(sys.modules)]))"
    file, version, modules = json.loads(python(site, code))
    assert Path(file) == site / "quire/__init__.py"
    header = (site / "quire/include/quire/version.h").read_text()
    assert version == ".".join(re.findall(r"QUIRE_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", header))
    assert not {"torch", "transformers", "tokenizers", "safetensors", "pandas", "scipy"} & set(modules)


def test_command_line_starts(site: Path) -> None:
    help_text = python(site, "import sys; sys.argv = ['quire', '--help']; from quire.cli import main; main()")
    for command in ("demo", "generate", "chat", "info", "bench", "collect-env"):
        assert command in help_text


@pytest.fixture(scope="module")
def embed(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/embed, configured and built against the unpacked wheel through find_package(quire)."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("cmake is not on PATH")
    build = tmp_path_factory.mktemp("embed")
    prefix = python(site, "import quire; print(quire.get_cmake_dir())").strip()
    assert Path(prefix) == site / "quire/lib/cmake/quire"
    # Warnings of the public headers would be the application's.
    flags = ["-DCMAKE_CXX_FLAGS=-Wall -Wextra -Wpedantic -Werror", "-DCMAKE_BUILD_TYPE=Release"]
    run([cmake, "-S", ROOT / "examples/embed", "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}", *flags])
    run([cmake, "--build", build])
    return build / "embed"


def test_embedding_application_generates_without_python(embed: Path, site: Path) -> None:
    model = site / "quire/demo_model"
    output = run([embed, model, 1, 5, 9, 13], env={"PATH": "/usr/bin:/bin"})
    lines = [line.split(":") for line in output.splitlines()]
    assert [label for label, _ in lines] == ["generate", "generate", "stream", "running"]
    tokens = [[int(token) for token in rest.split()] for _, rest in lines]
    vocab_size = json.loads((model / "config.json").read_text())["vocab_size"]
    assert 1 <= len(tokens[0]) <= 16 and all(0 <= token < vocab_size for token in tokens[0])
    assert tokens[0] == tokens[1] == tokens[2]  # in a batch of two, and beside a request that is cancelled
    assert tokens[3] == [0]
    # The same ids from the same library through Python.
    code = f"import quire; llm = quire.LLM({str(model)!r}); params = quire.SamplingParams(temperature=0, max_tokens=16)"
    code += "; outputs = llm.generate({'prompt_token_ids': [1, 5, 9, 13]}, params, use_tqdm=False)"
    code += "; print(list(outputs[0].outputs[0].token_ids))"
    assert json.loads(python(site, code)) == tokens[0]


def test_embedding_application_reports_errors(embed: Path, tmp_path: Path) -> None:
    result = subprocess.run([embed, tmp_path / "absent", "1"], capture_output=True, text=True)
    assert result.returncode == 1
    assert "absent" in result.stderr
