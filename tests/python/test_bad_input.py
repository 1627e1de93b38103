"""Bad input: a clear error of the right type, before any work, and an engine that goes on afterwards."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import llama_config, llama_tensors, write_llama
from quire import LLM, ModelNotFoundError, RequestError, SamplingParams
from safetensors.numpy import load_file, save_file

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)


@pytest.fixture
def copy(tmp_path: Path, tiny_model: Path) -> Path:
    """A checkpoint of one's own to break."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def edit_json(file: Path, **changes: Any) -> None:
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def edit_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# The model.


def test_missing_directory(tmp_path: Path) -> None:
    for kind in (ValueError, FileNotFoundError, ModelNotFoundError):
        with pytest.raises(kind, match=re.escape(str(tmp_path / "none"))):
            LLM(str(tmp_path / "none"))
    with pytest.raises(ModelNotFoundError, match="no config.json"):
        LLM(str(tmp_path), skip_tokenizer_init=True)
    (tmp_path / "file.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="is a file"):
        LLM(str(tmp_path / "file.safetensors"))


def test_unknown_hub_id_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match="nobody/nothing-here.*local cache.*Give the path of a directory"):
        LLM("nobody/nothing-here", download_dir=str(tmp_path))


def test_remote_and_foreign_formats(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="GGUF"):
        LLM(str(tmp_path / "model.gguf"))
    with pytest.raises(NotImplementedError, match="s3://"):
        LLM("s3://bucket/model")


def test_config_is_not_json(copy: Path) -> None:
    (copy / "config.json").write_text("{oops")
    with pytest.raises(ValueError, match="config.json is not valid JSON"):
        LLM(str(copy))


def test_unknown_architecture_lists_the_known(copy: Path) -> None:
    edit_json(copy / "config.json", architectures=["FancyForCausalLM"])
    with pytest.raises(ValueError, match=r"FancyForCausalLM.*are not supported.*LlamaForCausalLM"):
        LLM(str(copy))


def test_config_lacks_a_size(copy: Path) -> None:
    edit_json(copy / "config.json", hidden_size=None)
    with pytest.raises(ValueError, match="hidden_size"):
        LLM(str(copy))


def test_all_bad_weights_are_named_at_once(copy: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        del tensors["model.layers.0.mlp.up_proj.weight"]
        del tensors["model.norm.weight"]
        tensors["model.layers.0.surprise.weight"] = np.zeros((2, 2), np.float32)

    edit_tensors(copy, change)
    with pytest.raises(ValueError) as caught:
        LLM(str(copy))
    for name in ("model.layers.0.mlp.up_proj.weight", "model.norm.weight", "model.layers.0.surprise.weight"):
        assert name in str(caught.value)


def test_misshaped_weight(copy: Path) -> None:
    edit_tensors(copy, lambda tensors: tensors.update({"model.norm.weight": np.ones(65, np.float32)}))
    with pytest.raises(ValueError, match=r"model\.norm\.weight.*65.*64"):
        LLM(str(copy))


def test_truncated_and_overlapping_safetensors(copy: Path) -> None:
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="model.safetensors"):
        LLM(str(copy))
    file.write_bytes(whole[:4])
    with pytest.raises(ValueError, match="model.safetensors"):
        LLM(str(copy))
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    first, second = sorted(
        (name for name in header if name != "__metadata__"), key=lambda n: header[n]["data_offsets"]
    )[:2]
    size = header[second]["data_offsets"][1] - header[second]["data_offsets"][0]
    begin = header[first]["data_offsets"][0]
    header[second]["data_offsets"] = [begin, begin + size]
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
    with pytest.raises(ValueError, match="(?i)overlap"):
        LLM(str(copy))


def test_no_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="safetensors"):
        LLM(str(copy))
    with pytest.raises(ModelNotFoundError, match="pytorch_model"):
        LLM(str(copy), load_format="pt")
    with LLM(str(copy), load_format="dummy") as llm:
        assert llm.generate([[5, 6]], GREEDY, use_tqdm=False)[0].finished


def test_bin_without_torch(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"whatever")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"quire\[torch\]"):
        LLM(str(copy))


def test_missing_tokenizer(copy: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    with pytest.raises(ModelNotFoundError, match="No tokenizer in .*skip_tokenizer_init=True"):
        LLM(str(copy))
    with LLM(str(copy), skip_tokenizer_init=True) as llm:
        assert llm.generate([[5]], GREEDY, use_tqdm=False)[0].finished


def test_tokenizer_of_another_directory(tmp_path: Path, tokenizer_folder: Path) -> None:
    folder = write_llama(tmp_path, with_tokenizer=False)
    with LLM(str(folder), tokenizer=str(tokenizer_folder)) as llm:
        assert llm.generate("Once", GREEDY, use_tqdm=False)[0].prompt_token_ids
    with pytest.raises(ModelNotFoundError):
        LLM(str(folder), tokenizer=str(tmp_path / "none"))


# Sizes.


def test_max_model_len_over_the_model(tiny_model: Path) -> None:
    with pytest.raises(
        ValueError, match=r"User-specified max_model_len \(1000\) is greater than the derived max_model_len"
    ):
        LLM(str(tiny_model), max_model_len=1000)


def test_too_little_memory_says_how_much_and_what_to_do(tiny_model: Path) -> None:
    with pytest.raises(ValueError) as caught:
        LLM(str(tiny_model), kv_cache_memory_bytes=20_000)
    message = str(caught.value)
    assert "256" in message and len(re.findall(r"\d", message)) > 6
    for fix in ("max_model_len", "kv_cache_memory_bytes"):
        assert fix in message


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"gpu_memory_utilization": 1.5}, ValueError, "GPU memory utilization must be less than 1.0. Got 1.5."),
        ({"gpu_memory_utilization": 0.0}, ValueError, "gpu_memory_utilization must be greater than 0"),
        ({"cpu_offload_gb": -1}, ValueError, "CPU offload space must be non-negative, but got -1"),
        ({"max_model_len": 0}, ValueError, "max_model_len must be positive"),
        ({"max_model_len": "long"}, TypeError, "max_model_len must be an integer"),
        ({"max_num_seqs": -1}, ValueError, "max_num_seqs must be positive"),
        (
            {"max_num_batched_tokens": 4, "max_num_seqs": 8},
            ValueError,
            "max_num_batched_tokens (4) must be greater than or equal to max_num_seqs (8).",
        ),
        ({"dtype": "int8"}, ValueError, "Unknown dtype: int8"),
        ({"quantization": "magic"}, ValueError, "Unknown quantization method: magic. Must be one of"),
        ({"quantization": "awq"}, NotImplementedError, "quantization='awq' is not supported"),
        ({"tensor_parallel_size": 3}, ValueError, "heads (4) must be divisible by tensor parallel size (3)."),
        ({"tensor_parallel_size": 9}, ValueError, "tensor_parallel_size must be from 1 to 8, got 9"),
        ({"tensor_parallel_size": 2, "collective_timeout": 0}, ValueError, "collective_timeout must be positive"),
        ({"collective_timeout": "long"}, TypeError, "collective_timeout must be a number of seconds"),
        ({"disable_custom_all_reduce": 1}, TypeError, "disable_custom_all_reduce must be a bool"),
        (
            {"tensor_parallel_size": 3, "task": "embed"},
            ValueError,
            "heads (4) must be divisible by tensor parallel size",
        ),
        ({"tensor_parallel_size": 0}, ValueError, "tensor_parallel_size must be at least 1"),
        ({"pipeline_parallel_size": 2}, NotImplementedError, "pipeline_parallel_size=2"),
        ({"enable_lora": True}, NotImplementedError, "enable_lora=True"),
        ({"speculative_config": {"method": "ngram"}}, ValueError, "num_speculative_tokens must be provided"),
        ({"spec_method": "medusa", "spec_tokens": 2}, NotImplementedError, "the method 'medusa' is not supported"),
        ({"enable_sleep_mode": 1}, TypeError, "enable_sleep_mode"),
        ({"logprobs_mode": "cooked"}, ValueError, "Invalid logprobs_mode 'cooked'."),
        ({"scheduling_policy": "random"}, ValueError, "Invalid scheduling_policy 'random'"),
        ({"kv_cache_dtype": "fp8"}, NotImplementedError, "kv_cache_dtype='fp8'"),
        ({"kv_cache_dtype": "int3"}, ValueError, "Unknown kv cache dtype: int3"),
        ({"task": "dance"}, ValueError, "does not support the 'dance' task"),
        ({"runner": "draft"}, NotImplementedError, "runner='draft'"),
        ({"load_format": "gguf"}, NotImplementedError, "load_format='gguf'"),
        ({"load_format": "floppy"}, ValueError, "Invalid load_format 'floppy'"),
        ({"device": "tpu"}, NotImplementedError, "device='tpu'"),
        ({"device": "abacus"}, ValueError, "Invalid device 'abacus'"),
        ({"device": "cuda:x"}, ValueError, "Unknown device: cuda:x."),
        ({"device": "cpu:1"}, ValueError, "Unknown device: cpu:1."),
        # Without the plugin, without a driver, without so many GPUs.
        ({"device": "cuda:999"}, (NotImplementedError, RuntimeError), "cuda"),
        ({"limit_mm_per_prompt": {"image": 1}}, ValueError, "only supported for multimodal models"),
        ({"distributed_executor_backend": "carrier pigeon"}, ValueError, "Unrecognized distributed executor backend"),
        ({"distributed_executor_backend": "ray"}, NotImplementedError, "distributed_executor_backend='ray'"),
        ({"distributed_executor_backend": "external_launcher"}, NotImplementedError, "threads of the calling process"),
        ({"guided_decoding_backend": "hope"}, ValueError, "Invalid guided_decoding_backend 'hope'"),
        ({"structured_outputs_config": {"backend": "hope"}}, ValueError, "Invalid guided_decoding_backend 'hope'"),
        ({"structured_outputs_config": {"color": 1}}, NotImplementedError, "structured_outputs_config['color']"),
        ({"structured_outputs_config": "xgrammar"}, TypeError, "structured_outputs_config must be a dict, got str"),
        ({"structured_outputs_config": {"disable_fallback": 1}}, TypeError, "must be a bool, got 1"),
        (
            {"structured_outputs_config": {"backend": "xgrammar"}, "guided_decoding_backend": "guidance"},
            ValueError,
            "disagree",
        ),
        ({"max_logprobs": -2}, ValueError, "max_logprobs must be"),
        ({"hf_overrides": "no"}, TypeError, "hf_overrides must be a dict or a callable"),
        ({"generation_config": "/nowhere"}, ValueError, "generation_config='/nowhere'"),
        ({"chat_template": "/nowhere.jinja"}, ValueError, "neither a template nor a readable file"),
        ({"tokenizer_mode": "fancy"}, ValueError, "Unknown tokenizer mode: fancy."),
        ({"cpu_isa": "mmx"}, ValueError, "mmx"),
        ({"seed": "lucky"}, TypeError, "seed must be an integer"),
        ({"temprature": 1.0}, TypeError, "unexpected keyword argument 'temprature'"),
    ],
)
def test_constructor(tiny_model: Path, arguments: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error) as caught:
        LLM(str(tiny_model), **arguments)
    assert message in str(caught.value) or re.search(message, str(caught.value))


# Prompts and parameters.


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ([], ValueError, "The decoder prompt cannot be empty"),
        ({"prompt_token_ids": []}, ValueError, "The decoder prompt cannot be empty"),
        ([5, 10**6], ValueError, "Token id 1000000 is out of vocabulary"),
        ([5, -1], ValueError, "Token id -1 is out of vocabulary"),
        (
            [5] * 256,
            ValueError,
            "The decoder prompt (length 256) is longer than the maximum model length of 256. Make sure that "
            "`max_model_len` is no smaller than the number of text tokens.",
        ),
        ("dog " * 300, ValueError, "is longer than the maximum model length of 256"),
        (3.5, TypeError, "inputs must be a string, TextPrompt, or TokensPrompt"),
        ({"text": "a"}, TypeError, "inputs must be a string, TextPrompt, or TokensPrompt"),
        ({"encoder_prompt": "a"}, ValueError, "Cannot pass encoder-decoder prompt to decoder-only models"),
        ({"prompt": "a", "multi_modal_data": {"image": 0}}, ValueError, "does not support multi-modal inputs"),
    ],
)
def test_bad_prompt_among_good_ones(llm: LLM, prompt: Any, error: type[Exception], message: str) -> None:
    good: list[Any] = ["Once upon", [5, 6, 7]]
    expected = [output.outputs[0].token_ids for output in llm.generate(good, GREEDY, use_tqdm=False)]
    before = llm.stats()
    with pytest.raises(error) as caught:
        llm.generate([good[0], prompt, good[1], prompt], GREEDY, use_tqdm=False)
    assert message in str(caught.value) and "(prompt 1; prompts 3 are bad too)" in str(caught.value)
    assert llm.stats()["num_steps"] == before["num_steps"]
    with pytest.raises(error, match=re.escape(message)):
        llm.generate([prompt], GREEDY, use_tqdm=False)

    first, bad, last = llm.generate([good[0], prompt, good[1]], GREEDY, use_tqdm=False, on_error="return")
    assert [first.outputs[0].token_ids, last.outputs[0].token_ids] == expected
    assert bad.error is not None and message in bad.error
    assert bad.finished and bad.outputs[0].finish_reason == "error" and bad.outputs[0].token_ids == []
    assert [first.error, last.error] == [None, None]


def test_request_error_carries_the_positions(llm: LLM) -> None:
    with pytest.raises(RequestError) as caught:
        llm.generate([[], [5], [10**6]], GREEDY)
    assert caught.value.indices == (0, 2)


def test_empty_text_without_begin_token(llm: LLM) -> None:
    with pytest.raises(ValueError, match="The decoder prompt cannot be empty"):
        llm.generate("", GREEDY, tokenization_kwargs={"add_special_tokens": False})


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"logprobs": 21}, ValueError, "Requested sample logprobs of 21, which is greater than max allowed: 20"),
        ({"allowed_token_ids": []}, ValueError, "allowed_token_ids is not None and empty!"),
        ({"allowed_token_ids": [10**6]}, ValueError, "allowed_token_ids contains out-of-vocab token id!"),
        (
            {"logit_bias": {10**6: 1.0}},
            ValueError,
            "token_id(s) [1000000] in logit_bias contain out-of-vocab token ids.",
        ),
        ({"stop_token_ids": [10**6]}, ValueError, "stop_token_ids [1000000] are out of vocabulary"),
        ({"prompt_logprobs": 21}, ValueError, "Requested prompt logprobs of 21, which is greater than max allowed: 20"),
        ({"logits_processors": [lambda logits: logits]}, ValueError, "logits_processors[0] must take"),
        ({"extra_args": {"a": 1}}, NotImplementedError, "SamplingParams.extra_args"),
        ({"logprob_token_ids": [1]}, NotImplementedError, "SamplingParams.logprob_token_ids"),
        ({"prompt_logprob_token_ids": [1]}, NotImplementedError, "SamplingParams.prompt_logprob_token_ids"),
        ({"prompt_logprob_start": 1}, NotImplementedError, "SamplingParams.prompt_logprob_start"),
        ({"flat_logprobs": True}, NotImplementedError, "SamplingParams.flat_logprobs"),
        ({"skip_reading_prefix_cache": True}, NotImplementedError, "SamplingParams.skip_reading_prefix_cache"),
        ({"thinking_token_budget": 5}, NotImplementedError, "SamplingParams.thinking_token_budget"),
        ({"repetition_detection": object()}, NotImplementedError, "SamplingParams.repetition_detection"),
        ({"watermarking": object()}, NotImplementedError, "SamplingParams.watermarking"),
        ({"routed_experts_prompt_start": 1}, NotImplementedError, "SamplingParams.routed_experts_prompt_start"),
        ({"trace_decode_token_ids": [1]}, NotImplementedError, "SamplingParams.trace_decode_token_ids"),
    ],
)
def test_parameters_a_model_or_this_version_refuses(
    llm: LLM, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    params = SamplingParams(**fields)
    for given in (params, [params]):
        with pytest.raises(error) as caught:
            llm.generate(["Once"], given, use_tqdm=False)
        assert message in str(caught.value)
    with pytest.raises(error, match=r"\(prompt 1\)"):
        llm.generate(["Once", "Once"], [GREEDY, params], use_tqdm=False)
    fine, bad = llm.generate(["Once", "Once"], [GREEDY, params], use_tqdm=False, on_error="return")
    assert fine.error is None and bad.error is not None and message in bad.error


def test_fields_assigned_later_are_checked_too(llm: LLM) -> None:
    params = SamplingParams()
    params.top_p = 7.0
    with pytest.raises(ValueError, match=re.escape("top_p must be in (0, 1], got 7.0.")):
        llm.generate("a", params)
    params = SamplingParams()
    params.stop = "x"
    assert llm.generate("a", params, use_tqdm=False)[0].finished


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"prompts": ["a", "b"], "sampling_params": [GREEDY]},
            ValueError,
            "The lengths of prompts and params must be the same.",
        ),
        ({"prompts": ["a"], "sampling_params": {"max_tokens": 3}}, TypeError, "sampling_params must be SamplingParams"),
        ({"prompts": ["a"], "sampling_params": [None]}, TypeError, "sampling_params must be SamplingParams"),
        ({"prompts": None}, TypeError, "prompts must be"),
        ({"prompts": 5}, TypeError, "inputs must be a string, TextPrompt, or TokensPrompt"),
        (
            {"prompts": ["a"], "lora_request": "adapter"},
            ValueError,
            "Got lora_request adapter but LoRA is not enabled!",
        ),
        ({"prompts": ["a"], "lora_request": [None, None]}, ValueError, "prompts and lora_request must be the same."),
        ({"prompts": ["a"], "priority": [1]}, ValueError, "Got priority 1 but Priority scheduling is not enabled."),
        ({"prompts": ["a"], "prompt_adapter_request": object()}, NotImplementedError, "prompt_adapter_request"),
        ({"prompts": ["a"], "on_error": "explode"}, ValueError, "on_error must be 'raise' or 'return'"),
    ],
)
def test_calls(llm: LLM, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        llm.generate(**arguments)
    assert message in str(caught.value)
    assert llm.generate("a", GREEDY, use_tqdm=False)[0].finished


def test_priorities_of_zero_are_fine(llm: LLM) -> None:
    assert len(llm.generate(["a", "b"], GREEDY, use_tqdm=False, priority=[0, 0])) == 2


def test_closed(tiny_model: Path) -> None:
    llm = LLM(str(tiny_model))
    llm.close()
    llm.close()
    for use in (lambda: llm.generate("a"), lambda: llm.stream("a"), llm.stats, lambda: llm.chat([{"role": "user"}])):
        with pytest.raises(RuntimeError, match="closed"):
            use()


def test_dummy_weights_need_no_files(tmp_path: Path) -> None:
    config = llama_config(512)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with LLM(str(tmp_path), load_format="dummy", skip_tokenizer_init=True) as llm:
        expected = sum(tensor.size for tensor in llama_tensors(config).values())
        assert llm.info()["num_parameters"] == expected
        assert len(llm.generate([[5]], GREEDY, use_tqdm=False)[0].outputs[0].token_ids) == 6
