"""Checkpoints of random weights with the shapes of well-known small models, in bfloat16, from numpy alone.

Decides the shapes and the values: N(0, 0.02) from a seed of each tensor, the same bytes everywhere. Speed is
comparable, text is not. The tokenizer is one of bytes: engines that insist on one find it, and nothing is ever
encoded with it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "S": {  # SmolLM2-135M
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "rope_theta": 100000.0,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "seed": 101,
    },
    "M": {  # Qwen2.5-0.5B
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "seed": 102,
    },
    "L": {  # Llama-3.2-1B
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "seed": 103,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "T": {  # of nobody: to try the command itself
        "model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 2048, "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "seed": 104,
    },
}  # fmt: skip
STD = 0.02
SPECIAL = ("<|endoftext|>", "<|pad|>")


def tensors(shape: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the order of the file."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    head_dim = hidden // shape["num_attention_heads"]
    widths = {"q": hidden, "k": shape["num_key_value_heads"] * head_dim, "v": shape["num_key_value_heads"] * head_dim}
    yield "model.embed_tokens.weight", (shape["vocab_size"], hidden)
    for layer in range(shape["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        for name, width in widths.items():
            yield f"{prefix}self_attn.{name}_proj.weight", (width, hidden)
            if shape["model_type"] == "qwen2":
                yield f"{prefix}self_attn.{name}_proj.bias", (width,)
        yield prefix + "self_attn.o_proj.weight", (hidden, hidden)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        yield prefix + "mlp.gate_proj.weight", (inner, hidden)
        yield prefix + "mlp.up_proj.weight", (inner, hidden)
        yield prefix + "mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)


def make_checkpoint(shape: dict[str, Any], folder: Path) -> None:
    """Nothing is done where it is there; config.json is written last."""
    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    _write_weights(shape, folder / "model.safetensors")
    files = {
        "tokenizer.json": _tokenizer(),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[0], "pad_token": SPECIAL[1],
            "bos_token": SPECIAL[0], "model_max_length": shape["max_position_embeddings"],
        },
        "generation_config.json": {"eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 1, "do_sample": False},
        "config.json": _config(shape),
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1))


def _write_weights(shape: dict[str, Any], path: Path) -> None:
    import numpy

    specs = list(tensors(shape))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, size in specs:
        end = offset + 2 * math.prod(size)
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for i, (name, size) in enumerate(specs):
            if "norm" in name:
                values = numpy.ones(size, numpy.float32)
            else:  # a generator for each: independent of the order of the others
                draw = numpy.random.default_rng([shape["seed"], i])
                values = draw.standard_normal(size, numpy.float32) * numpy.float32(STD)
            bits = values.view(numpy.uint32)
            file.write(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16).tobytes())  # nearest, even


def _config(shape: dict[str, Any]) -> dict[str, Any]:
    llama = shape["model_type"] == "llama"
    more = {"attention_bias": False, "mlp_bias": False} if llama else {"use_sliding_window": False}
    return {
        "architectures": ["LlamaForCausalLM" if llama else "Qwen2ForCausalLM"],
        **{name: value for name, value in shape.items() if name != "seed"},
        **more,
        "head_dim": shape["hidden_size"] // shape["num_attention_heads"],
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 1,
    }


def _tokenizer() -> dict[str, Any]:
    """Every byte is a token, in GPT-2's spelling of bytes, and one pair, since an empty list is refused by some."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spelling = {byte: chr(byte) for byte in shown}
    spelling |= {byte: chr(256 + i) for i, byte in enumerate(byte for byte in range(256) if byte not in shown)}
    vocab = {text: i for i, text in enumerate([*SPECIAL, *(spelling[byte] for byte in range(256)), "th"])}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [{"id": i, "content": text, **added} for i, text in enumerate(SPECIAL)],
        "pre_tokenizer": level, "post_processor": level, "decoder": level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": ["t h"],
        },
    }  # fmt: skip


def num_parameters(shape: dict[str, Any]) -> tuple[int, int]:
    """Of the layers, and of the output matrix, which is the embeddings."""
    sizes = {name: math.prod(size) for name, size in tensors(shape)}
    head = sizes["model.embed_tokens.weight"]
    return sum(sizes.values()) - head, head


def kv_bytes_per_token(shape: dict[str, Any]) -> int:
    head_dim = shape["hidden_size"] // shape["num_attention_heads"]
    return 2 * 2 * shape["num_hidden_layers"] * shape["num_key_value_heads"] * head_dim
