"""Every constructor argument vLLM's LLM ever took, and what quire does with it.

Decides, argument by argument: used, without effect here (and why), refused (and what to use instead). Nothing is
ignored silently: an argument without effect is one whose value cannot change the result. Pure; knows no model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from numbers import Integral, Real
from typing import Any

from quire import graphs, speculative, weight_cache
from quire.deprecation import warn_deprecated
from quire.errors import ValidationError


class Use(Enum):
    ENGINE = "goes to the engine under the same name"
    PYTHON = "used by the Python layer"
    NO_EFFECT = "accepted; the value cannot change a result here"
    ONLY = "accepted with the allowed values; others are refused by name"


@dataclass(frozen=True)
class Arg:
    default: Any
    use: Use
    note: str = ""
    allowed: tuple[Any, ...] = ()  # besides the default, with Use.ONLY
    known: tuple[str, ...] = ()  # strings that exist at all; others are a ValueError


def _engine(default: Any = None, note: str = "") -> Arg:
    return Arg(default, Use.ENGINE, note)


def _python(default: Any = None, note: str = "", known: tuple[str, ...] = ()) -> Arg:
    return Arg(default, Use.PYTHON, note, known=known)


def _no_effect(default: Any, note: str, known: tuple[str, ...] = ()) -> Arg:
    return Arg(default, Use.NO_EFFECT, note, known=known)


def _only(default: Any, note: str, allowed: tuple[Any, ...] = (), known: tuple[str, ...] = ()) -> Arg:
    return Arg(default, Use.ONLY, note, allowed, known)


_LATER = "It comes in a later release."
_ONE_PROCESS = "Start one process a copy of the model and split the prompts."
_NO_PIPELINE = (
    "Ranks share every layer (tensor_parallel_size): layers dealt out among devices would leave all but one idle "
    "within a step."
)
_RANKS = "The ranks of tensor_parallel_size are threads of the calling process, whatever this says."
_NO_ADAPTERS = "Without adapters there is nothing to size."
_NO_CAPTURE = "Nothing is captured or compiled on a CPU."
_TEXT_ONLY = "Only text models run here, and they read no media."
_OFFLOAD = "cpu_offload_gb chooses how much is offloaded; whole layers, evenly spread, two ahead."
_IN_PROCESS = "The engine runs in the calling process, with no workers to configure."

TASKS = ("auto", "generate", "embedding", "embed", "classify", "score", "reward", "transcription")
LOAD_FORMATS = tuple(
    "auto pt safetensors npcache dummy tensorizer sharded_state gguf bitsandbytes mistral runai_streamer "
    "fastsafetensors hf".split()
)
DEVICES = ("auto", "cuda", "neuron", "cpu", "tpu", "xpu", "hpu", "simt")
KV_CACHE_DTYPES = ("auto", "fp8", "fp8_e4m3", "fp8_e5m2", "float32", "bfloat16", "float16")
POLICIES = ("fcfs", "priority")
LOGPROBS_MODES = ("raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits")
GUIDED_BACKENDS = ("auto", "xgrammar", "guidance", "outlines", "lm-format-enforcer")

ARGS: dict[str, Arg] = {
    # The named parameters of LLM.__init__, in order.
    "model": _python(),
    "tokenizer": _python(),
    "tokenizer_mode": _python("auto"),
    "skip_tokenizer_init": _python(False),
    "trust_remote_code": _python(False, "Reaches the tokenizer. Model code of a checkpoint is never run."),
    "allowed_local_media_path": _no_effect("", _TEXT_ONLY),
    "tensor_parallel_size": _engine(1, "1 to 8 ranks that share the model, also one that pools; see docs/parallel.md."),
    "dtype": _engine("auto"),
    "quantization": _only(
        None,
        "int8, on a CPU, rounds the weights as they are loaded. Load an unquantized checkpoint (float32, float16 or "
        "bfloat16).",
        ("int8",),
    ),
    "revision": _python(),
    "tokenizer_revision": _python(),
    "seed": _engine(None, "None: a new one from the operating system. Global random generators are never touched."),
    "gpu_memory_utilization": _engine(0.9),
    "swap_space": _no_effect(4, "Preempted requests are recomputed, never swapped."),
    "cpu_offload_gb": _engine(0, "GiB of layers that stay in CPU memory. No effect on a CPU, where all weights do."),
    "enforce_eager": _engine(None, "True: decode steps on a GPU are not replayed from graphs. " + _NO_CAPTURE),
    "max_seq_len_to_capture": _engine(8192, "Steps with a longer sequence are not replayed. " + _NO_CAPTURE),
    "disable_custom_all_reduce": _engine(
        False,
        "True: sums between GPUs by NCCL; with more than two, batch_invariant=False is needed. No effect on a CPU.",
    ),
    "disable_async_output_proc": _python(False, "True is async_scheduling=False."),
    "hf_token": _python(),
    "hf_overrides": _python(),
    "mm_processor_kwargs": _only(None, _TEXT_ONLY, ({},)),
    "task": _python("auto", "What the model is loaded for; auto: what its architecture and files say.", TASKS),
    "override_pooler_config": _python(None, "The older name of pooler_config."),
    "compilation_config": _python(
        None,
        "Its graph settings are used (use_cudagraph, cudagraph_mode, cudagraph_capture_sizes, "
        "max_cudagraph_capture_size); nothing is compiled.",
    ),
    # EngineArgs of 0.8.4.
    "served_model_name": _no_effect(None, "There is no server."),
    "hf_config_path": _only(None, "Put config.json into the model's directory, or use hf_overrides."),
    "download_dir": _python(),
    "code_revision": _only(None, "Code of a checkpoint is not run."),
    "config_format": _only(
        "auto", "Convert the checkpoint to the Hugging Face format.", ("hf",), ("auto", "hf", "mistral")
    ),
    "load_format": _only("auto", "Convert it to safetensors.", ("safetensors", "pt", "dummy", "hf"), LOAD_FORMATS),
    "ignore_patterns": _python(),
    "model_loader_extra_config": _only(None, "Weights are mapped from safetensors files.", ({},)),
    "use_tqdm_on_load": _no_effect(True, "Weights are mapped at once; there is no bar."),
    "model_impl": _only("auto", "Models run in quire's own engine.", ("vllm",), ("auto", "vllm", "transformers")),
    "max_model_len": _engine(),
    "max_num_seqs": _engine(),
    "max_num_batched_tokens": _engine(),
    "block_size": _engine(),
    "enable_prefix_caching": _engine(),
    "prefix_caching_hash_algo": _no_effect(
        "builtin", "Tokens are compared where hashes agree, so any hash gives the same."
    ),
    "enable_chunked_prefill": _engine(),
    "max_num_partial_prefills": _only(1, "Use long_prefill_token_threshold to share a step among prompts."),
    "max_long_partial_prefills": _only(1, "Use long_prefill_token_threshold to share a step among prompts."),
    "long_prefill_token_threshold": _engine(0),
    "disable_chunked_mm_input": _no_effect(False, _TEXT_ONLY),
    "disable_sliding_window": _only(False, "Set max_model_len to the window to the same end."),
    "disable_cascade_attn": _no_effect(False, "Results do not depend on how attention is split."),
    "use_v2_block_manager": _no_effect(True, "There is one block manager."),
    "num_lookahead_slots": _no_effect(0, "Drafts of speculative_config get their slots by themselves."),
    "num_scheduler_steps": _no_effect(1, "Steps are planned one by one; results are the same."),
    "multi_step_stream_outputs": _no_effect(True, "Steps are planned one by one."),
    "scheduler_delay_factor": _no_effect(0.0, "All prompts of a call are there from the start."),
    "preemption_mode": _only(None, "Preempted requests are recomputed.", ("recompute",), ("recompute", "swap")),
    "num_gpu_blocks_override": _engine(),
    "scheduling_policy": Arg("fcfs", Use.ENGINE, "priority: generate(priority=...) counts.", (), POLICIES),
    "scheduler_cls": _only(None, "The scheduler is part of the engine."),
    "kv_cache_dtype": _only("auto", "The cache has the dtype of the model; set dtype.", (), KV_CACHE_DTYPES),
    "calculate_kv_scales": _only(None, "The cache is not quantized.", (False,)),
    "max_logprobs": _python(20),
    "enable_lora": _only(False, "Merge the adapter into the weights. " + _LATER),
    "enable_lora_bias": _no_effect(False, _NO_ADAPTERS),
    "max_loras": _no_effect(1, _NO_ADAPTERS),
    "max_lora_rank": _no_effect(16, _NO_ADAPTERS),
    "max_cpu_loras": _no_effect(None, _NO_ADAPTERS),
    "fully_sharded_loras": _no_effect(False, _NO_ADAPTERS),
    "lora_extra_vocab_size": _no_effect(256, _NO_ADAPTERS),
    "lora_dtype": _no_effect("auto", _NO_ADAPTERS),
    "long_lora_scaling_factors": _no_effect(None, _NO_ADAPTERS),
    "enable_prompt_adapter": _only(False, "Prompt adapters are not planned."),
    "max_prompt_adapters": _no_effect(1, _NO_ADAPTERS),
    "max_prompt_adapter_token": _no_effect(0, _NO_ADAPTERS),
    "speculative_config": _python(None, "ngram or draft_model. Outputs are the same as without it."),
    "guided_decoding_backend": _python(
        "auto", "auto and guidance are llguidance; xgrammar is xgrammar where it is installed.", GUIDED_BACKENDS
    ),
    "logits_processor_pattern": _no_effect(None, "It guards a server; there is none."),
    "limit_mm_per_prompt": _python(),
    "disable_mm_preprocessor_cache": _no_effect(False, _TEXT_ONLY),
    "enable_sleep_mode": _python(False, "True: sleep(level=1) and sleep(level=2) may be called. It costs nothing."),
    "generation_config": _python("auto"),
    "override_generation_config": _python(),
    "rope_scaling": _python(None, "Deprecated: use hf_overrides."),
    "rope_theta": _python(None, "Deprecated: use hf_overrides."),
    "pipeline_parallel_size": _only(1, _NO_PIPELINE),
    "data_parallel_size": _only(1, _ONE_PROCESS),
    "enable_expert_parallel": _no_effect(False, "There are no models with experts yet."),
    "distributed_executor_backend": _only(None, _RANKS + " There is no other launcher to take part in.", ("uni", "mp")),
    "worker_cls": _only("auto", _IN_PROCESS),
    "worker_extension_cls": _python("", "A class or its qualified name, whose methods collective_rpc can call."),
    "max_parallel_loading_workers": _no_effect(None, "There is one loader."),
    "device": _python("auto", "auto, cpu, cuda or cuda:N; simt is the emulated GPU of the tests.", known=DEVICES),
    "tokenizer_pool_size": _no_effect(0, "Prompts are tokenized in one parallel call."),
    "tokenizer_pool_type": _no_effect("ray", "Prompts are tokenized in one parallel call."),
    "tokenizer_pool_extra_config": _no_effect(None, "Prompts are tokenized in one parallel call."),
    "qlora_adapter_name_or_path": _only(None, "Merge the adapter into the weights."),
    "enable_reasoning": _only(False, "Structured output constrains all of a text. " + _LATER),
    "reasoning_parser": _no_effect(None, "It is read with enable_reasoning, which is refused."),
    "kv_transfer_config": _only(None, _ONE_PROCESS),
    "otlp_traces_endpoint": _only(None, "Read RequestOutput.metrics."),
    "collect_detailed_traces": _only(None, "Read RequestOutput.metrics."),
    "additional_config": _only(None, "There is no platform plug-in to read it.", ({},)),
    "disable_log_stats": _no_effect(True, "RequestOutput.metrics is always filled; nothing is logged."),
    # Newer spellings, up to 0.33.
    "runner": _python(
        "auto", "generate or pooling; the newer way to say task.", ("auto", "generate", "pooling", "draft")
    ),
    "convert": _python("auto", "With runner='pooling': embed or classify.", ("auto", "none", "embed", "classify")),
    "allowed_media_domains": _no_effect(None, _TEXT_ONLY),
    "chat_template": _python(),
    "kv_cache_memory_bytes": _engine(),
    "pooler_config": _python(None, "A PoolerConfig or a dict: how a pooling model pools, where not as its files say."),
    "structured_outputs_config": _python(None, "A dict: backend, disable_fallback, disable_any_whitespace, ..."),
    "profiler_config": _python(None, "A dict with torch_profiler_dir: where stop_profile writes traces."),
    "attention_config": _only(None, "There is one attention implementation a device.", ({},)),
    "quantization_config": _only(None, "Load an unquantized checkpoint."),
    "logits_processors": _only(None, _LATER, ([], ())),
    "logprobs_mode": Arg("raw_logprobs", Use.ENGINE, "What logprobs and prompt_logprobs are.", known=LOGPROBS_MODES),
    "spec_method": _python(None, "Short for speculative_config."),
    "spec_model": _python(None, "Short for speculative_config."),
    "spec_tokens": _python(None, "Short for speculative_config."),
    "offload_group_size": _no_effect(0, _OFFLOAD),
    "offload_num_in_group": _no_effect(1, _OFFLOAD),
    "offload_prefetch_step": _no_effect(1, _OFFLOAD),
    "offload_params": _no_effect(None, _OFFLOAD),
    "enable_return_routed_experts": _only(False, "Mixture-of-experts models come in a later release."),
    "return_sampling_mask": _only(False, _LATER),
    "enable_prompt_embeds": _only(False, "Give token ids or text."),
    "weight_transfer_config": _only(None, _LATER),
    "async_scheduling": _engine(None, "False: a step on a GPU is planned after the one before it. Same results."),
    "cuda_graph_sizes": _python(None, "Batch sizes of captured decode steps; one number: all usual ones up to it."),
    "cudagraph_capture_sizes": _python(None, "Batch sizes of captured decode steps. " + _NO_CAPTURE),
    "disable_hybrid_kv_cache_manager": _no_effect(None, "There is one cache manager."),
    "renderer_num_workers": _no_effect(1, "Prompts are tokenized in one parallel call."),
    "mm_processor_cache_gb": _no_effect(4, _TEXT_ONLY),
    "skip_mm_profiling": _no_effect(False, _TEXT_ONLY),
    "enable_log_requests": _no_effect(False, "Nothing is logged."),
    # quire's own.
    "batch_invariant": _engine(
        None,
        "False: products on a GPU may use cuBLASLt and Hopper's prefill, sums NCCL; bits depend on the batch then.",
    ),
    "collective_timeout": _engine(None, "Seconds that ranks wait for one that does not come; default 300."),
    "num_threads": _engine(None, "CPU threads; default: OMP_NUM_THREADS, else the physical cores."),
    "weight_cache": _engine(
        None,
        "A folder, or False. Packed weights of a CPU are kept there, and mapped by the next start; default: "
        "QUIRE_WEIGHT_CACHE, else ~/.cache/quire/weights. See docs/weights.md.",
    ),
    "cpu_isa": _engine(None, "portable, avx2, avx512 or amx; default: the best the machine has."),
}

_INTEGERS = tuple(
    "max_model_len max_num_seqs max_num_batched_tokens block_size long_prefill_token_threshold num_gpu_blocks_override "
    "kv_cache_memory_bytes num_threads max_seq_len_to_capture".split()
)
_QUANTIZATIONS = frozenset(
    "aqlm awq deepspeedfp tpu_int8 fp8 ptpc_fp8 fbgemm_fp8 modelopt nvfp4 marlin gguf gptq_marlin_24 gptq_marlin "
    "awq_marlin gptq compressed-tensors bitsandbytes qqq hqq experts_int8 neuron_quant ipex quark moe_wna16 torchao "
    "mxfp4 modelopt_fp4 int8".split()
)
_DTYPES = {"auto": "auto", "half": "float16", "float16": "float16", "bfloat16": "bfloat16", "float": "float32"}
_DTYPES["float32"] = "float32"


def resolve(given: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments with their values, after the refusals. `given` holds what the caller said."""
    for name in given:
        if name not in ARGS:
            raise TypeError(f"LLM.__init__() got an unexpected keyword argument {name!r}")
    values = {name: given.get(name, arg.default) for name, arg in ARGS.items()}
    _fold_structured_outputs(values)
    for name, value in values.items():
        _check_known(name, value)
    _check_ranges(values)
    for name, value in values.items():
        arg = ARGS[name]
        if arg.use is Use.ONLY and not any(_same(value, fine) for fine in (arg.default, *arg.allowed)):
            raise NotImplementedError(f"{name}={value!r} is not supported by this version of quire. {arg.note}")
    _fold_rope(values)
    graphs.engine_options(values)  # for its refusals
    values["speculative_config"] = speculative.resolve(values)
    return values


def _same(value: Any, other: Any) -> bool:
    return type(value) is type(other) and value == other


def _check_known(name: str, value: Any) -> None:
    known = ARGS[name].known
    if not known or value is None or not isinstance(value, str):
        return
    if value.split(":")[0] not in known:
        raise _unknown_value(name, value, known)


def _unknown_value(name: str, value: str, known: tuple[str, ...]) -> ValidationError:
    message = {
        "kv_cache_dtype": f"Unknown kv cache dtype: {value}.",
        "task": f"This model does not support the {value!r} task.",
        "guided_decoding_backend": f"Invalid guided_decoding_backend {value!r}, must be one of {list(known)}.",
    }.get(name, f"Invalid {name} {value!r}.")
    return ValidationError(f"{message} Known values: {', '.join(known)}", parameter=name, value=value)


def _check_ranges(values: dict[str, Any]) -> None:
    for name in _INTEGERS:
        value = values[name]
        if value is None:
            continue
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < (0 if name == "long_prefill_token_threshold" else 1):
            hint = " Leave it out to take the model's." if name == "max_model_len" else ""
            raise ValidationError(f"{name} must be positive, got {value}.{hint}", parameter=name, value=value)
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"):
        if not isinstance(values[name], Integral) or values[name] < 1:
            raise ValidationError(f"{name} must be at least 1, got {values[name]!r}.")
    _check_memory(values)
    if not isinstance(values["enable_sleep_mode"], bool):
        raise TypeError(f"enable_sleep_mode must be a bool, got {values['enable_sleep_mode']!r}")
    _check_ranks(values)
    backend = values["distributed_executor_backend"]
    if isinstance(backend, str) and backend not in ("ray", "mp", "uni", "external_launcher"):
        raise ValidationError(
            f"Unrecognized distributed executor backend {backend}. Supported values are 'ray', 'mp' 'uni', "
            "'external_launcher' or custom ExecutorBase subclass."
        )
    quantization = values["quantization"]
    if quantization is not None and quantization not in _QUANTIZATIONS:
        raise ValidationError(f"Unknown quantization method: {quantization}. Must be one of {sorted(_QUANTIZATIONS)}.")
    if values["limit_mm_per_prompt"]:
        raise ValidationError("`limit_mm_per_prompt` is only supported for multimodal models.")
    max_logprobs = values["max_logprobs"]
    if not isinstance(max_logprobs, Integral) or max_logprobs < -1:
        raise ValidationError(f"max_logprobs must be -1 (no limit) or at least 0, got {max_logprobs!r}.")


def _check_memory(values: dict[str, Any]) -> None:
    utilization = values["gpu_memory_utilization"]
    if not isinstance(utilization, Real) or isinstance(utilization, bool):
        raise TypeError(f"gpu_memory_utilization must be a number, got {utilization!r}")
    utilization = float(utilization)
    if utilization > 1.0:
        raise ValidationError(f"GPU memory utilization must be less than 1.0. Got {utilization}.")
    if not utilization > 0.0:
        raise ValidationError(f"gpu_memory_utilization must be greater than 0, got {utilization}.")
    offload = values["cpu_offload_gb"]
    if not isinstance(offload, (int, float)) or not offload >= 0:
        raise ValidationError(f"CPU offload space must be non-negative, but got {offload}")
    swap = values["swap_space"]
    if not isinstance(swap, (int, float)) or swap < 0:
        raise ValidationError(f"swap_space must be non-negative, but got {swap}")


def _check_ranks(values: dict[str, Any]) -> None:
    if not isinstance(values["disable_custom_all_reduce"], bool):
        raise TypeError(f"disable_custom_all_reduce must be a bool, got {values['disable_custom_all_reduce']!r}")
    timeout = values["collective_timeout"]
    if timeout is None:
        return
    if not isinstance(timeout, Real) or isinstance(timeout, bool):
        raise TypeError(f"collective_timeout must be a number of seconds, got {timeout!r}")
    if not float(timeout) > 0.0:
        raise ValidationError(f"collective_timeout must be positive, got {timeout}.")


def _fold_structured_outputs(values: dict[str, Any]) -> None:
    """structured_outputs_config in the older spelling, guided_decoding_backend="name:option,option"."""
    config = values["structured_outputs_config"]
    if config is None:
        return
    if not isinstance(config, Mapping):
        raise TypeError(f"structured_outputs_config must be a dict, got {type(config).__name__}")
    flags = {"disable_fallback": "no-fallback"}
    flags |= {
        f"disable_{what}": f"disable-{what.replace('_', '-')}" for what in ("any_whitespace", "additional_properties")
    }
    for name, value in config.items():
        if name not in ("backend", *flags):
            raise NotImplementedError(
                f"structured_outputs_config[{name!r}] is not supported; there are backend, {', '.join(flags)}."
            )
        if name in flags and not isinstance(value, bool):
            raise TypeError(f"structured_outputs_config[{name!r}] must be a bool, got {value!r}")
    backend = config.get("backend") or "auto"
    older = values["guided_decoding_backend"]
    if older not in (None, "auto", backend):
        raise ValidationError(f"guided_decoding_backend={older!r} and structured_outputs_config={config!r} disagree.")
    options = [option for name, option in flags.items() if config.get(name)]
    values["guided_decoding_backend"] = f"{backend}:{','.join(options)}" if options else backend


def _fold_rope(values: dict[str, Any]) -> None:
    rope = {name: values[name] for name in ("rope_scaling", "rope_theta") if values[name] is not None}
    if not rope:
        return
    warn_deprecated(f"{', '.join(rope)} are deprecated; use hf_overrides={rope!r} instead.", stacklevel=6)
    overrides = values["hf_overrides"]
    if callable(overrides):
        raise ValidationError(f"{', '.join(rope)} cannot be combined with a callable hf_overrides; set them there.")
    values["hf_overrides"] = {**(overrides or {}), **rope}


def dtype_name(dtype: Any) -> str:
    """ "auto" or a dtype name, from what vLLM takes: a name or a torch.dtype."""
    name = dtype.lower() if isinstance(dtype, str) else str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise ValidationError(f"Unknown dtype: {dtype}", parameter="dtype", value=dtype)
    return _DTYPES[name]


def engine_options(values: Mapping[str, Any], config_overrides: str) -> dict[str, Any]:
    """The EngineOptions of the core."""
    options = {name: values[name] for name, arg in ARGS.items() if arg.use is Use.ENGINE and values[name] is not None}
    options["dtype"] = dtype_name(values["dtype"])
    options["quantization"] = values["quantization"] or ""
    options["device"] = _device(values["device"])
    options.update(graphs.engine_options(values))
    options["load_format"] = {"dummy": "dummy"}.get(values["load_format"], "auto")
    options["config_overrides"] = config_overrides
    options["weight_cache"] = weight_cache.resolve(values["weight_cache"])
    seed = values["seed"]
    if seed is not None and (not isinstance(seed, Integral) or isinstance(seed, bool)):
        raise TypeError(f"seed must be an integer, got {seed!r}")
    options["seed"] = int.from_bytes(os.urandom(7), "little") if seed is None else int(seed) % 2**64
    if "kv_cache_memory_bytes" not in options and os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        options["kv_cache_memory_bytes"] = int(float(os.environ["VLLM_CPU_KVCACHE_SPACE"]) * 2**30)
    return options


def _device(device: Any) -> str:
    """The name as the core takes it, from a name or a torch.device: "cuda", "cuda:1", "cpu"."""
    name = str(device)
    if name.split(":")[0] in ("neuron", "tpu", "xpu", "hpu"):
        raise NotImplementedError(f"device={name!r} is not supported by this version of quire. Use 'cuda' or 'cpu'.")
    return name


def describe() -> list[tuple[str, Any, str, str]]:
    """(name, default, what is done with it, note) of every argument, for the documentation."""
    return [(name, arg.default, arg.use.value, arg.note) for name, arg in ARGS.items()]


ConfigOverrides = Mapping[str, Any] | Callable[[Any], Any] | None
