"""From the name of a model to a directory on this machine, and what the core cannot read there itself.

Decides where models come from (a directory, the packaged demo, the Hugging Face hub with its local cache first), how
config.json is overridden, and loads .bin checkpoints through torch. Knows nothing of engines.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quire.errors import ModelNotFoundError, ValidationError
from quire.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    import numpy as np

DEMO_MODEL = "quire/demo"
_DEMO_DIRECTORY = Path(__file__).parent / "demo_model"
_SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
_IGNORED = ["original/**/*"]


def resolve_model(
    model: str | os.PathLike[str],
    revision: str | None = None,
    download_dir: str | None = None,
    token: bool | str | None = None,
    ignore_patterns: Sequence[str] | str | None = None,
    with_weights: bool = True,
) -> Path:
    """The directory of a model or tokenizer; fetched from the hub when it is not a directory."""
    name = os.fspath(model)
    if not isinstance(name, str) or not name:
        raise ValidationError(f"model must be a directory or the id of a model on the hub, got {model!r}")
    if name == DEMO_MODEL:
        return _demo_directory()
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.suffix == ".gguf":
        raise NotImplementedError(f"{name}: GGUF files are not supported by this version of quire. Use safetensors.")
    if "://" in name:
        raise NotImplementedError(f"{name}: remote storage is not supported. Copy the model to a directory.")
    if path.is_file():
        raise ValidationError(f"model must be a directory with config.json and weights; {name} is a file.")
    if path.is_absolute() or name[0] in ".~" or name.count("/") > 1:
        raise ModelNotFoundError(f"The model directory {name} does not exist.")
    ignored = [ignore_patterns] if isinstance(ignore_patterns, str) else list(ignore_patterns or _IGNORED)
    return _from_hub(name, revision, download_dir, token, ignored, with_weights)


def _demo_directory() -> Path:
    if not (_DEMO_DIRECTORY / "config.json").exists():
        raise ModelNotFoundError(
            f"The demo model is not in this installation ({_DEMO_DIRECTORY}). Install quire from a wheel, or make the "
            "model with tools/train_demo_model.py."
        )
    return _DEMO_DIRECTORY


def _from_hub(
    name: str,
    revision: str | None,
    download_dir: str | None,
    token: bool | str | None,
    ignored: list[str],
    with_weights: bool,
) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    def snapshot(patterns: list[str], local: bool) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision,
                cache_dir=download_dir,
                token=token,
                allow_patterns=patterns,
                ignore_patterns=ignored,
                local_files_only=local,
            )
        )

    patterns = _SMALL_FILES + (["*.safetensors"] if with_weights else [])
    try:
        path = snapshot(patterns, local=True)
        if _is_complete(path, with_weights):
            return path
    except HFValidationError as error:
        raise ModelNotFoundError(
            f"{name!r} is neither a directory nor the id of a model on the hub: {error}"
        ) from error
    except LocalEntryNotFoundError:
        pass
    try:
        path = snapshot(patterns, local=False)
        if with_weights and not _is_complete(path, with_weights):
            path = snapshot([*_SMALL_FILES, "*.bin"], local=False)
        return path
    except (OSError, ValueError) as error:  # the hub's errors are of both kinds
        raise ModelNotFoundError(
            f"The model {name!r} is neither a directory nor in the local cache "
            f"({download_dir or huggingface_hub.constants.HF_HUB_CACHE}), and it could not be fetched from the hub: "
            f"{type(error).__name__}: {error}. Give the path of a directory, or run once with network access."
        ) from error


def _is_complete(path: Path, with_weights: bool) -> bool:
    """Whether a cached snapshot has all that is needed; shards may be missing after an interrupted download."""
    if not with_weights:
        return any(path.glob("*.json"))
    if not (path / "config.json").exists():
        return False
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (path / index).exists():
            shards = set(json.loads((path / index).read_text())["weight_map"].values())
            return all((path / shard).exists() for shard in shards)
    return any(path.glob("*.safetensors")) or any(path.glob("*.bin"))


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a model directory."""
    return read_json(path / "config.json", required=f"{path} is no model directory: it has no config.json.")


def read_json(path: Path, required: str | None = None) -> dict[str, Any]:
    if not path.exists():
        if required:
            raise ModelNotFoundError(required)
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValidationError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValidationError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def config_overrides(path: Path, overrides: Any, trust_remote_code: bool) -> dict[str, Any]:
    """hf_overrides as keys to merge over config.json: a dict as it is; a callable gets the config of transformers."""
    if overrides is None:
        return {}
    if isinstance(overrides, Mapping):
        return dict(overrides)
    if not callable(overrides):
        raise TypeError(f"hf_overrides must be a dict or a callable, got {type(overrides).__name__}")
    from transformers import AutoConfig

    config = overrides(AutoConfig.from_pretrained(str(path), trust_remote_code=trust_remote_code))
    if not hasattr(config, "to_dict"):
        raise TypeError(f"hf_overrides must return the config, got {type(config).__name__}")
    return config.to_dict()


def to_json(overrides: Mapping[str, Any]) -> str:
    """The overrides as the core takes them; "" for none."""
    if not overrides:
        return ""
    return json.dumps(overrides, default=lambda value: str(value).removeprefix("torch."))


def load_bin_weights(path: Path, load_format: str) -> list[tuple[str, np.ndarray, str]] | None:
    """The tensors of a directory whose weights are in .bin files only; None when the core can read it itself."""
    if load_format not in ("auto", "pt", "hf") or (load_format != "pt" and any(path.glob("*.safetensors"))):
        return None
    index = read_json(path / "pytorch_model.bin.index.json")
    files = sorted({path / name for name in index["weight_map"].values()} if index else path.glob("pytorch_model*.bin"))
    if not files:
        if load_format == "pt":
            raise ModelNotFoundError(f"load_format='pt', but {path} has no pytorch_model*.bin.")
        return None
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{path} has its weights in .bin files, which only torch can read: pip install 'quire[torch]', or convert "
            "them to safetensors."
        ) from error
    weights: list[tuple[str, np.ndarray, str]] = []
    for file in files:
        for name, tensor in torch.load(file, map_location="cpu", weights_only=True, mmap=True).items():
            weights.append((name, *to_numpy(tensor.detach().contiguous(), torch)))
    return weights


def to_numpy(tensor: Any, torch: Any) -> tuple[np.ndarray, str]:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy(), "bfloat16"
    if tensor.dtype in (torch.float16, torch.float32):
        return tensor.numpy(), str(tensor.dtype).removeprefix("torch.")
    if tensor.dtype.is_floating_point:
        return tensor.float().numpy(), "float32"
    return tensor.numpy(), str(tensor.dtype).removeprefix("torch.")


# Values that a generation_config.json may leave at without saying anything.
_GENERATION_DEFAULTS = {"repetition_penalty": 1.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None}


def default_sampling_values(
    path: Path, generation_config: str | os.PathLike[str], override: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What generation_config.json says about sampling, in the names of SamplingParams."""
    values: dict[str, Any] = {}
    source = os.fspath(generation_config)
    if source != "vllm":
        folder = path if source == "auto" else Path(source)
        if source != "auto" and not folder.exists():
            raise ModelNotFoundError(f"generation_config={source!r} is neither 'auto', 'vllm' nor a directory.")
        file = folder / "generation_config.json" if folder.is_dir() else folder
        stored = read_json(file) or (read_config(path) if source == "auto" else {})
        for name in (*_GENERATION_DEFAULTS, "max_new_tokens"):
            if stored.get(name) is not None and stored[name] != _GENERATION_DEFAULTS.get(name):
                values[name] = stored[name]
    allowed = {*_GENERATION_DEFAULTS, "max_new_tokens"}
    values.update({name: value for name, value in (override or {}).items() if name in allowed and value is not None})
    if "max_new_tokens" in values:
        values["max_tokens"] = values.pop("max_new_tokens")
    return values


def model_path(values: Mapping[str, Any]) -> Path:
    """Of checked arguments of an LLM."""
    return resolve_model(
        values["model"], values["revision"], values["download_dir"], values["hf_token"], values["ignore_patterns"]
    )


def tokenizer_of(values: Mapping[str, Any], path: Path) -> Tokenizer:
    """That of the model at `path`, unless the arguments name another."""
    if values["tokenizer"] is not None:
        revision = values["tokenizer_revision"] or values["revision"]
        path = resolve_model(
            values["tokenizer"], revision, values["download_dir"], values["hf_token"], with_weights=False
        )
    return load_tokenizer(path, values["tokenizer_mode"], values["trust_remote_code"])
