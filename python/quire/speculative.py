"""speculative_config: what may be in it, and the core's options for it.

Decides which method a dict means and what is refused, by name and before anything is loaded or fetched. That outputs
are those of decoding without it is the core's affair. The caller's dict is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

from quire import model_source
from quire.errors import ValidationError

_METHODS = ("ngram", "draft_model")
# Methods of vLLM, up to 0.33, that are not here.
_OTHER_METHODS = frozenset(
    "eagle eagle3 medusa mlp_speculator mtp suffix ngram_gpu extract_hidden_states custom_class dflash dspark".split()
)
_OTHER_MODEL_TYPES = frozenset("eagle medusa mlp_speculator".split())
_KEYS = frozenset(
    "method model num_speculative_tokens prompt_lookup_min prompt_lookup_max max_model_len revision "
    "disable_by_batch_size".split()
)
_ONLY_NGRAM = ("prompt_lookup_min", "prompt_lookup_max")
_ONLY_DRAFT = ("max_model_len", "revision")
# Keys with the values that are fine, and why others are not.
_ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "acceptance_method": (
        (None, "rejection_sampler"),
        "Outputs are those of decoding without speculation, which typical acceptance would change.",
    ),
    "draft_tensor_parallel_size": ((None, 1), "Of several ranks the first runs the draft model."),
    "quantization": ((None,), "Load an unquantized draft model (float32, float16 or bfloat16)."),
    "code_revision": ((None,), "Code of a checkpoint is not run."),
}
# Keys that cannot change an output here: what reads them is refused, or does not exist.
_NO_EFFECT = frozenset("posterior_threshold posterior_alpha disable_logprobs disable_mqa_scorer".split())
_ACCEPTANCE_METHODS = ("rejection_sampler", "typical_acceptance_sampler")


def resolve(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The checked dict of LLM's arguments, without what is None; None: no speculative decoding."""
    config = _one_of(values)
    if config is None:
        return None
    if not isinstance(config, Mapping):
        raise TypeError(f"speculative_config must be a dict, got {config!r}")
    _check_keys(config)
    given = {name: value for name, value in config.items() if value is not None and name in _KEYS}
    given["method"] = _method(given)
    _check_numbers(given)
    other = _ONLY_DRAFT if given["method"] == "ngram" else _ONLY_NGRAM
    for name in other:
        if name in given:
            raise ValidationError(
                f"speculative_config: {name} has no meaning with the method {given['method']!r}.", parameter=name
            )
    return given


def engine_options(
    config: Mapping[str, Any] | None, download_dir: str | None = None, token: bool | str | None = None
) -> dict[str, Any]:
    """The EngineOptions of a checked dict; a draft model is found, or fetched."""
    if config is None:
        return {}
    options: dict[str, Any] = {
        "speculative_method": config["method"],
        "num_speculative_tokens": int(config["num_speculative_tokens"]),
        "speculative_disable_by_batch_size": int(config.get("disable_by_batch_size", 0)),
    }
    if config["method"] == "ngram":
        options.update({name: int(config[name]) for name in _ONLY_NGRAM if name in config})
        return options
    path = model_source.resolve_model(config["model"], config.get("revision"), download_dir, token)
    _check_draft(path)
    return {**options, "draft_model": str(path), "draft_max_model_len": int(config.get("max_model_len", 0))}


def _one_of(values: Mapping[str, Any]) -> Any:
    """speculative_config, or the three arguments that are short for it."""
    short = {"method": values["spec_method"], "model": values["spec_model"]}
    short["num_speculative_tokens"] = values["spec_tokens"]
    short = {name: value for name, value in short.items() if value is not None}
    config = values["speculative_config"]
    if not short:
        return config or None
    if config:
        raise ValidationError("Give either speculative_config or spec_method, spec_model and spec_tokens, not both.")
    return short


def _check_keys(config: Mapping[str, Any]) -> None:
    known = _KEYS | _NO_EFFECT | set(_ONLY)
    unknown = sorted(str(name) for name in config if name not in known)
    if unknown:
        raise ValidationError(
            f"speculative_config: unknown keys {', '.join(unknown)}. Known: {', '.join(sorted(known))}",
            parameter="speculative_config",
        )
    acceptance = config.get("acceptance_method")
    if acceptance is not None and acceptance not in _ACCEPTANCE_METHODS:
        raise ValidationError(
            "Expect acceptance_method to be either rejection_sampler or typical_acceptance_sampler. Instead it is "
            f"{acceptance}."
        )
    for name, (fine, why) in _ONLY.items():
        if config.get(name) not in fine:
            raise NotImplementedError(
                f"speculative_config: {name}={config[name]!r} is not supported by this version of quire. {why}"
            )


def _method(given: Mapping[str, Any]) -> str:
    method, model = given.get("method"), given.get("model")
    if method is None and model is None:
        raise ValidationError("num_speculative_tokens was provided without speculative model.")
    if method is None:
        method = "ngram" if model in ("ngram", "[ngram]") else _guessed_method(model)
    if method in _OTHER_METHODS or str(method).endswith("_mtp"):
        raise NotImplementedError(
            f"speculative_config: the method {method!r} is not supported by this version of quire. Use 'ngram', or "
            "'draft_model' with a smaller model of the same family; outputs are the same with every method."
        )
    if method not in _METHODS:
        raise ValidationError(
            f"speculative_config: unknown method {method!r}. Known: {', '.join(_METHODS)}", parameter="method"
        )
    if method == "ngram" and model not in (None, "ngram", "[ngram]"):
        raise ValidationError(f"speculative_config: the method 'ngram' takes no model, got {model!r}.")
    if method == "draft_model" and model is None:
        raise ValidationError("speculative_config: the method 'draft_model' needs `model`, a directory or a hub id.")
    return str(method)


def _guessed_method(model: Any) -> str:
    """From a model's name, as vLLM does."""
    name = str(model).lower()
    return next((other for other in ("eagle3-", "eagle-") if other in name), "draft_model-")[:-1]


def _check_numbers(given: Mapping[str, Any]) -> None:
    for name in ("num_speculative_tokens", "max_model_len", "disable_by_batch_size", *_ONLY_NGRAM):
        value = given.get(name)
        if value is not None and (not isinstance(value, Integral) or isinstance(value, bool)):
            raise TypeError(f"speculative_config: {name} must be an integer, got {value!r}")
    tokens = given.get("num_speculative_tokens")
    if tokens is None:
        raise ValidationError(
            "num_speculative_tokens must be provided with speculative model unless the draft model config contains an "
            "n_predict parameter."
        )
    if tokens < 1:
        raise ValidationError(f"Expected num_speculative_tokens to be greater than zero ({tokens}).")
    for name in _ONLY_NGRAM:
        if given.get(name, 1) < 1:
            raise ValidationError(f"{name}={given[name]} must be > 0")
    if given.get("max_model_len", 1) < 1:
        raise ValidationError(f"speculative_config: max_model_len must be positive, got {given['max_model_len']}.")
    if given.get("disable_by_batch_size", 2) < 2:
        raise ValidationError(
            "Expect the batch size threshold of disabling speculative decoding is > 1, but got "
            f"disable_by_batch_size={given['disable_by_batch_size']}"
        )
    low, high = (given.get(name) for name in _ONLY_NGRAM)
    if low is not None and high is not None and low > high:
        raise ValidationError(f"prompt_lookup_min={low} must be <= prompt_lookup_max={high}")


def _check_draft(path: Path) -> None:
    """Heads that need the hidden states of their own model are not models."""
    kind = str(model_source.read_config(path).get("model_type"))
    if kind in _OTHER_MODEL_TYPES:
        raise NotImplementedError(
            f"speculative_config: {path} is of the type {kind!r}, which is not supported by this version of quire. Use "
            "a smaller model of the same family."
        )
