"""A checkpoint in safetensors (bfloat16; Llama or Qwen2) as a GGUF file, weights bit for bit.

Decides names and layout of the tensors. There is no tokenizer in the file: prompts are token ids. Needs gguf and numpy.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(checkpoint: Path, out: Path) -> None:
    import gguf
    import numpy

    config = json.loads((checkpoint / "config.json").read_text())
    architecture = config["model_type"]
    if architecture not in ("llama", "qwen2") or not config["tie_word_embeddings"]:
        raise NotImplementedError(f"GGUF files are written of Llama and Qwen2 with tied embeddings, not {architecture}")
    writer = gguf.GGUFWriter(out, architecture)
    _write_config(writer, config, architecture)
    scaling = config.get("rope_scaling")
    if scaling:
        writer.add_tensor("rope_freqs.weight", numpy.array(_rope_factors(config, scaling), numpy.float32))
    path = checkpoint / "model.safetensors"
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    data = numpy.memmap(path, numpy.uint8, "r", offset=8 + length)
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        values = data[begin:end].view(numpy.uint16).reshape(entry["shape"])
        if architecture == "llama" and ".self_attn.q_proj" in name:
            values = _interleaved(values, config["num_attention_heads"])
        if architecture == "llama" and ".self_attn.k_proj" in name:
            values = _interleaved(values, config["num_key_value_heads"])
        if values.ndim == 1:
            writer.add_tensor(_tensor_name(name), (values.astype(numpy.uint32) << 16).view(numpy.float32))
        else:
            rows = numpy.ascontiguousarray(values).view(numpy.uint8)
            writer.add_tensor(_tensor_name(name), rows, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_config(writer: Any, config: dict[str, Any], architecture: str) -> None:
    import gguf

    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("none")
    if architecture == "llama":
        writer.add_rope_dimension_count(_head_dim(config))


def _head_dim(config: dict[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _tensor_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    layer, rest = name.removeprefix("model.layers.").split(".", 1)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{PARTS[part]}.{kind}"


def _interleaved(rows: Any, num_heads: int) -> Any:
    """Llama's rotation of halves as llama.cpp wants it, of neighbours."""
    return rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def _rope_factors(config: dict[str, Any], scaling: dict[str, Any]) -> list[float]:
    """By how much each frequency is divided."""
    import math

    if scaling["rope_type"] != "llama3":
        raise NotImplementedError(f"no GGUF file is written with rope scaling {scaling['rope_type']!r}")
    head_dim, original = _head_dim(config), scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * config["rope_theta"] ** (i / head_dim)
        smooth = min(1.0, max(0.0, (original / wavelength - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return factors
