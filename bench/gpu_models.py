"""Models by shape, for the benchmarks of an engine: config.json written on the fly, and how much work a shape is.

Decides the shapes (those of the published models; weights are random, so speed is comparable and text is not), the
names and values of a checkpoint that is written where a file is wanted, and the floor of a workload: bytes and flops
that no implementation can do without. Knows no engine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Config = dict[str, Any]
ELEMENT = 2  # bytes of bf16

_LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "vocab_size": 128256, "max_position_embeddings": 131072, "rope_theta": 500000.0, "bos_token_id": 128000,
    "eos_token_id": 128001, "attention_bias": False, "mlp_bias": False, "torch_dtype": "bfloat16",
}  # fmt: skip
_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "vocab_size": 151936, "max_position_embeddings": 40960, "rope_theta": 1000000, "bos_token_id": 151643,
    "eos_token_id": 151645, "attention_bias": False, "use_sliding_window": False, "torch_dtype": "bfloat16",
}  # fmt: skip


def _rope_llama3(factor: float) -> Config:
    return {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip


MODELS: dict[str, Config] = {
    "llama-8b": {
        **_LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False, "rope_scaling": _rope_llama3(8.0),
    },
    "llama-1b": {
        **_LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True, "rope_scaling": _rope_llama3(32.0),
    },
    "qwen3-0.6b": {
        **_QWEN3, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
    },
    "qwen3-8b": {
        **_QWEN3, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False,
    },
    "toy": {
        **_LLAMA, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True, "vocab_size": 512,
        "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2,
    },
    "toy-qwen3": {
        **_QWEN3, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": False, "vocab_size": 512,
        "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2,
    },
}  # fmt: skip


def write_config(model: str, folder: Path) -> Path:
    """A directory for load_format="dummy"."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(MODELS[model], indent=1) + "\n", encoding="utf-8")
    return folder


def tensors_of(config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes as transformers saves them, in the order of a file."""
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        yield prefix + "self_attn.q_proj.weight", (q, hidden)
        yield prefix + "self_attn.k_proj.weight", (kv, hidden)
        yield prefix + "self_attn.v_proj.weight", (kv, hidden)
        yield prefix + "self_attn.o_proj.weight", (hidden, q)
        if config["model_type"] == "qwen3":
            yield prefix + "self_attn.q_norm.weight", (dim,)
            yield prefix + "self_attn.k_norm.weight", (dim,)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        yield prefix + "mlp.gate_proj.weight", (inner, hidden)
        yield prefix + "mlp.up_proj.weight", (inner, hidden)
        yield prefix + "mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)


def checkpoint_bytes(model: str) -> int:
    return sum(ELEMENT * math.prod(shape) for _, shape in tensors_of(MODELS[model]))


def write_checkpoint(model: str, folder: Path) -> Path:
    """A bf16 checkpoint in one file, as fast as files are written: matrices repeat 32 MB of noise, norms are ones."""
    import numpy as np

    write_config(model, folder)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors_of(MODELS[model]):
        end = offset + ELEMENT * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    noise = np.random.default_rng(0).uniform(-0.02, 0.02, 1 << 24).astype("<f4").view("<u4") >> 16
    matrix = memoryview(noise.astype("<u2").tobytes())
    ones = np.float32(1).view(np.uint32) >> 16
    with (folder / "model.safetensors").open("wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, shape in tensors_of(MODELS[model]):
            if len(shape) == 1:
                file.write(np.full(shape, ones, "<u2").tobytes())
                continue
            left = ELEMENT * math.prod(shape)
            while left > 0:
                left -= file.write(matrix[:left])
    return folder


# Floors --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What a model's step must read and multiply."""

    weight_bytes: int  # of the matrices that every step reads; rows of an untied embedding table are not
    weight_flops: int  # of those, a token
    kv_bytes: int  # a token of context
    attention_flops: int  # a query and a token of context

    def decode_seconds(self, batch: int, context: float, gb_s: float, tflop_s: float) -> float:
        """max(bytes / bandwidth, flops / rate) of the matrices, then of attention; 0 TFLOP/s: no rate is known."""
        matrices = limited(self.weight_bytes, self.weight_flops * batch, gb_s, tflop_s)
        keys = batch * context
        return matrices + limited(self.kv_bytes * keys, self.attention_flops * keys, gb_s, tflop_s)

    def prefill_seconds(self, lengths: Sequence[int], tflop_s: float) -> float:
        """Flops alone: causal attention over half the square. 0 where no rate is known: then it is left out."""
        flops = sum(self.weight_flops * length + self.attention_flops * length * length / 2 for length in lengths)
        return flops / tflop_s * 1e-12 if tflop_s > 0 else 0.0

    def generate_seconds(self, lengths: Sequence[tuple[int, int]], gb_s: float, tflop_s: float) -> float:
        """Of prompts and outputs of these lengths, all of them in every step from the first until they end."""
        total = self.prefill_seconds([prompt for prompt, _ in lengths], tflop_s)
        for step in range(1, max(new for _, new in lengths)):
            contexts = [prompt + step for prompt, new in lengths if new > step]
            total += self.decode_seconds(len(contexts), sum(contexts) / len(contexts), gb_s, tflop_s)
        return total


def limited(num_bytes: float, flops: float, gb_s: float, tflop_s: float) -> float:
    return max(num_bytes / gb_s * 1e-9, flops / tflop_s * 1e-12 if tflop_s > 0 else 0.0)


def work_of(model: str) -> Work:
    config = MODELS[model]
    layers, dim = config["num_hidden_layers"], config["head_dim"]
    matrices = [math.prod(shape) for name, shape in tensors_of(config) if len(shape) == 2]
    parameters = sum(matrices)
    if not config["tie_word_embeddings"]:
        parameters -= config["vocab_size"] * config["hidden_size"]
    return Work(
        weight_bytes=ELEMENT * parameters,
        weight_flops=2 * parameters,
        kv_bytes=2 * ELEMENT * layers * config["num_key_value_heads"] * dim,
        attention_flops=4 * layers * config["num_attention_heads"] * dim,
    )
