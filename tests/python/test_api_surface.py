"""The surface of vLLM's offline API: names, order and defaults of every parameter, and what happens to each."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import quire
from quire import LLM, SamplingParams, engine_args, speculative
from quire.engine_args import ARGS, Use

INIT_0_8_4: list[tuple[str, Any]] = [
    ("model", inspect.Parameter.empty),
    ("tokenizer", None),
    ("tokenizer_mode", "auto"),
    ("skip_tokenizer_init", False),
    ("trust_remote_code", False),
    ("allowed_local_media_path", ""),
    ("tensor_parallel_size", 1),
    ("dtype", "auto"),
    ("quantization", None),
    ("revision", None),
    ("tokenizer_revision", None),
    ("seed", None),
    ("gpu_memory_utilization", 0.9),
    ("swap_space", 4),
    ("cpu_offload_gb", 0),
    ("enforce_eager", None),
    ("max_seq_len_to_capture", 8192),
    ("disable_custom_all_reduce", False),
    ("disable_async_output_proc", False),
    ("hf_overrides", None),
    ("mm_processor_kwargs", None),
    ("task", "auto"),
    ("override_pooler_config", None),
    ("compilation_config", None),
]
ENGINE_ARGS_0_8_4 = """
served_model_name hf_config_path download_dir code_revision config_format load_format ignore_patterns
model_loader_extra_config use_tqdm_on_load model_impl max_model_len max_num_seqs max_num_batched_tokens block_size
enable_prefix_caching prefix_caching_hash_algo enable_chunked_prefill max_num_partial_prefills max_long_partial_prefills
long_prefill_token_threshold disable_chunked_mm_input disable_sliding_window disable_cascade_attn use_v2_block_manager
num_lookahead_slots num_scheduler_steps multi_step_stream_outputs scheduler_delay_factor preemption_mode
num_gpu_blocks_override scheduling_policy scheduler_cls kv_cache_dtype calculate_kv_scales max_logprobs enable_lora
enable_lora_bias max_loras max_lora_rank max_cpu_loras fully_sharded_loras lora_extra_vocab_size lora_dtype
long_lora_scaling_factors enable_prompt_adapter max_prompt_adapters max_prompt_adapter_token speculative_config
guided_decoding_backend logits_processor_pattern limit_mm_per_prompt disable_mm_preprocessor_cache enable_sleep_mode
generation_config override_generation_config rope_scaling rope_theta pipeline_parallel_size data_parallel_size
enable_expert_parallel distributed_executor_backend worker_cls worker_extension_cls max_parallel_loading_workers device
tokenizer_pool_size tokenizer_pool_type tokenizer_pool_extra_config qlora_adapter_name_or_path enable_reasoning
reasoning_parser kv_transfer_config otlp_traces_endpoint collect_detailed_traces additional_config disable_log_stats
hf_token
""".split()
INIT_0_33 = """
runner convert allowed_media_domains chat_template offload_group_size offload_num_in_group offload_prefetch_step
offload_params enable_return_routed_experts pooler_config structured_outputs_config profiler_config attention_config
kv_cache_memory_bytes quantization_config logits_processors spec_method spec_model spec_tokens
""".split()


def test_constructor_parameters_in_order() -> None:
    parameters = [
        (name, parameter.default)
        for name, parameter in inspect.signature(LLM.__init__).parameters.items()
        if name != "self" and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    assert parameters == INIT_0_8_4
    for name, default in INIT_0_8_4[1:]:
        assert ARGS[name].default == default


def test_every_known_argument_has_a_decision() -> None:
    for name in [*ENGINE_ARGS_0_8_4, *INIT_0_33]:
        assert name in ARGS, name
    for name, arg in ARGS.items():
        if arg.use in (Use.NO_EFFECT, Use.ONLY):
            assert len(arg.note) > 10, f"{name}: say why, or what to use instead"
    assert len(engine_args.describe()) == len(ARGS)


def test_engine_arguments_are_options_of_the_core() -> None:
    from quire import _quire

    of_core = {name for name, _ in _quire.engine_option_fields()}
    sent = {name for name, arg in ARGS.items() if arg.use is Use.ENGINE}
    sent |= {"device", "load_format", "config_overrides", "graph_sizes", "quantization"}  # made of others
    both = {"num_speculative_tokens": 1, "prompt_lookup_min": 1, "prompt_lookup_max": 1}
    sent |= set(speculative.engine_options({"method": "ngram", **both}))
    sent |= set(speculative.engine_options({"method": "draft_model", "model": "quire/demo", **both}))
    # The tokenizer's end of sequence goes with each request, as a stop token, because set_tokenizer can change it.
    assert sent == of_core - {"eos_token_ids"}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (
            "generate",
            "prompts sampling_params prompt_token_ids use_tqdm lora_request prompt_adapter_request "
            "guided_options_request priority",
        ),
        (
            "chat",
            "messages sampling_params use_tqdm lora_request chat_template chat_template_content_format "
            "add_generation_prompt continue_final_message tools mm_processor_kwargs",
        ),
        (
            "enqueue",
            "prompts sampling_params lora_request priority use_tqdm tokenization_kwargs mm_processor_kwargs",
        ),
        (
            "enqueue_chat",
            "messages sampling_params use_tqdm lora_request priority chat_template chat_template_content_format "
            "add_generation_prompt continue_final_message tools chat_template_kwargs tokenization_kwargs "
            "mm_processor_kwargs",
        ),
        (
            "preprocess_chat",
            "messages chat_template chat_template_content_format add_generation_prompt continue_final_message tools "
            "chat_template_kwargs mm_processor_kwargs",
        ),
    ],
)
def test_methods_take_what_vllm_takes(method: str, expected: str) -> None:
    parameters = list(inspect.signature(getattr(LLM, method)).parameters.values())[1:]
    positional = [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    assert positional == expected.split()


def test_newer_keywords_are_there() -> None:
    assert {"tokenization_kwargs", "mm_processor_kwargs"} <= set(inspect.signature(LLM.generate).parameters)
    assert {"chat_template_kwargs", "priority"} <= set(inspect.signature(LLM.chat).parameters)
    of_generate = set(inspect.signature(LLM.generate).parameters) - {"prompts", "use_tqdm"}
    for method in (LLM.stream, LLM.generate_iter):
        assert of_generate <= set(inspect.signature(method).parameters)


def test_public_names() -> None:
    for name in quire.__all__:
        assert getattr(quire, name) is not None
    assert set(quire.__all__) <= set(dir(quire))
    assert re.fullmatch(r"\d+\.\d+\.\d+", quire.__version__)
    assert ".".join(map(str, quire.__version_tuple__)) == quire.__version__
    with pytest.raises(AttributeError, match="nonsense"):
        quire.nonsense  # noqa: B018
    assert Path(quire.__file__).with_name("py.typed").exists()


def test_positional_arguments_warn(tiny_model: Path) -> None:
    message = re.escape("The positional arguments ['tokenizer', 'tokenizer_mode'] are deprecated and will be removed")
    with pytest.warns(DeprecationWarning, match=message):
        LLM(str(tiny_model), None, "auto").close()


def test_model_alone_does_not_warn(tiny_model: Path, recwarn: pytest.WarningsRecorder) -> None:
    LLM(str(tiny_model)).close()
    LLM(model=tiny_model).close()
    assert not [warning for warning in recwarn if warning.category is DeprecationWarning]


def test_legacy_switch() -> None:
    assert LLM.DEPRECATE_LEGACY and LLM.DEPRECATE_INIT_POSARGS
    try:
        with LLM.deprecate_legacy_api():
            assert LLM.DEPRECATE_LEGACY
        assert not LLM.DEPRECATE_LEGACY
    finally:
        LLM.DEPRECATE_LEGACY = True


def test_rope_arguments_are_deprecated(tiny_model: Path) -> None:
    with pytest.warns(DeprecationWarning, match="rope_theta are deprecated; use hf_overrides"):
        with LLM(str(tiny_model), rope_theta=500.0) as one:
            params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
            ids = [[7, 8, 9, 10, 11, 12]]
            changed = one.generate(ids, params, use_tqdm=False)[0].outputs[0].token_ids
    with LLM(str(tiny_model), hf_overrides={"rope_theta": 500.0}) as two:
        assert two.generate(ids, params, use_tqdm=False)[0].outputs[0].token_ids == changed


@pytest.mark.parametrize(
    "arguments",
    [
        {"enforce_eager": True},
        {"swap_space": 0},
        {"max_seq_len_to_capture": 128},
        {"disable_custom_all_reduce": True},
        {"compilation_config": 3},
        {"enable_chunked_prefill": False},
        {"enable_prefix_caching": False},
        {"block_size": 32},
        {"max_num_seqs": 1, "max_num_batched_tokens": 1},
        {"max_num_batched_tokens": 300},
        {"distributed_executor_backend": "mp"},
        {"tensor_parallel_size": 2},
        {"tensor_parallel_size": 4, "collective_timeout": 60},
        {"task": "generate"},
        {"runner": "generate"},
        {"dtype": "float32"},
        {"dtype": "float"},
        {"device": "cpu"},
        {"gpu_memory_utilization": 0.3},
        {"kv_cache_memory_bytes": 4 << 20},
        {"cpu_isa": "portable"},
        {"num_threads": 1},
        {"load_format": "safetensors"},
        {"disable_log_stats": False},
    ],
    ids=str,
)
def test_accepted_arguments_do_not_change_greedy_output(llm: LLM, tiny_model: Path, arguments: dict[str, Any]) -> None:
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    prompts = ["Once upon a time", "The dog"]
    expected = [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]
    with LLM(str(tiny_model), **arguments) as other:
        got = [output.outputs[0].token_ids for output in other.generate(prompts, params, use_tqdm=False)]
    assert got == expected


def test_torch_dtypes_are_understood(tiny_model: Path) -> None:
    import torch

    with LLM(str(tiny_model), dtype=torch.bfloat16) as llm:
        assert llm.info()["dtype"] == "bfloat16"
    with LLM(str(tiny_model)) as llm:  # a float32 checkpoint stays float32 on a CPU
        assert llm.info()["dtype"] == "float32"


def test_cache_size_of_the_environment(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "0.01")
    with LLM(str(tiny_model)) as llm:
        assert 0.009 * 2**30 < llm.info()["kv_cache_bytes"] <= 0.01 * 2**30
