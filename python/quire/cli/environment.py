"""`quire collect-env`: what to paste into a bug report. Decides what is worth knowing; changes nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

_PACKAGES = "quire numpy transformers tokenizers safetensors jinja2 huggingface_hub tqdm typer torch".split()
_VARIABLES = (
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_HOME",
    "CUDA_PATH",
    "LD_LIBRARY_PATH",
    "TOKENIZERS_PARALLELISM",
    "PYTHONPATH",
    "LD_PRELOAD",
)
_PREFIXES = ("QUIRE_", "HF_", "VLLM_", "TRANSFORMERS_")
_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")


def collect_env() -> None:
    """Print versions, processor and settings for a bug report."""
    rows = [
        ("system", f"{platform.platform()}, {'-'.join(platform.libc_ver())}"),
        ("python", platform.python_version()),
        ("processor", _processor()),
        ("cores", f"{os.cpu_count()} ({len(os.sched_getaffinity(0))} usable)"),
        ("memory", _memory()),
        *((package, _version(package)) for package in _PACKAGES),
    ]
    try:
        from quire import _quire

        rows.append(("architectures", ", ".join(_quire.supported_architectures())))
        rows += _cuda()
    except ImportError as error:
        rows.append(("core", f"cannot be imported: {error}"))
    for name, value in sorted(os.environ.items()):
        if name in _VARIABLES or name.startswith(_PREFIXES):
            rows.append((name, "(set)" if any(word in name for word in _SECRET) else value))
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


def _cuda() -> list[tuple[str, str]]:
    """The plugin of NVIDIA GPUs, how many it could use and the libraries it opens; or why there is none."""
    from quire import _quire, gpu_libraries

    gpu_libraries.tell_folders("cuda")
    plugin = _quire.describe_plugin("cuda")
    if plugin["problem"]:
        return [("cuda plugin", f"none: {plugin['problem']}")]
    return [
        ("cuda plugin", plugin["file"]),
        ("cuda devices", str(plugin["num_devices"])),
        *(("cuda library", line) for line in plugin["libraries"]),
    ]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _field(path: str, name: str) -> str:
    try:
        for line in Path(path).read_text().splitlines():
            if line.startswith(name):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return "unknown"


def _processor() -> str:
    flags = set(_field("/proc/cpuinfo", "flags").split())
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{_field('/proc/cpuinfo', 'model name')} ({', '.join(known) or 'no AVX2'})"


def _memory() -> str:
    total, free = _field("/proc/meminfo", "MemTotal"), _field("/proc/meminfo", "MemAvailable")
    return f"{total}, {free} available"
