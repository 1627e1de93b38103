"""Small checkpoints for the tests, written with numpy and tokenizers alone: random Llamas, public llama2.c files.

Decides nothing about quire. A random checkpoint is a function of its seed.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
TEXT = [
    "Once upon a time there was a little dog. The dog liked to play in the garden with the children.",
    "One day the dog found a red ball. He was very happy and ran home to show it to his mother.",
    "The cat said: do not take my ball! But the dog smiled, and they played together until the sun went down.",
    "Café, naïve, Köln, 東京, emoji 🐕 and numbers 1234567890.",
]


DEMO = Path(__file__).resolve().parents[2] / "python" / "quire" / "demo_model"  # the embedded checkpoint


def write_tokenizer(folder: Path, vocab_size: int = 512, add_bos: bool = True) -> int:
    """A byte-level BPE with a chat template; returns its real size."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    if add_bos:
        begin = SPECIAL_TOKENS[0]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer.get_vocab_size()


def load_reference(folder: Path | str) -> Any:
    """The model as transformers runs it in float32; of the checkpoint's generation config nothing is left."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config = transformers.GenerationConfig(pad_token_id=0)
    return model.eval()


def llama_config(vocab_size: int, **changes: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": 1,
        **changes,
    }


def llama_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights, large enough that greedy decoding wanders."""
    random = np.random.default_rng(seed)
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (random.standard_normal((rows, columns)) / np.sqrt(columns) * 2).astype(np.float32)

    def norm() -> np.ndarray:
        return (1 + 0.1 * random.standard_normal(hidden)).astype(np.float32)

    tensors = {"model.embed_tokens.weight": matrix(config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors[prefix + "input_layernorm.weight"] = norm()
        tensors[prefix + "post_attention_layernorm.weight"] = norm()
        tensors[prefix + "self_attn.q_proj.weight"] = matrix(heads * head, hidden)
        tensors[prefix + "self_attn.k_proj.weight"] = matrix(kv_heads * head, hidden)
        tensors[prefix + "self_attn.v_proj.weight"] = matrix(kv_heads * head, hidden)
        tensors[prefix + "self_attn.o_proj.weight"] = matrix(hidden, heads * head)
        tensors[prefix + "mlp.gate_proj.weight"] = matrix(inner, hidden)
        tensors[prefix + "mlp.up_proj.weight"] = matrix(inner, hidden)
        tensors[prefix + "mlp.down_proj.weight"] = matrix(hidden, inner)
    tensors["model.norm.weight"] = norm()
    return tensors


def write_llama(folder: Path, seed: int = 0, with_tokenizer: bool = True, **changes: Any) -> Path:
    """A random Llama checkpoint of about 200k parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = write_tokenizer(folder) if with_tokenizer else 512
    config = llama_config(changes.pop("vocab_size", vocab_size), **changes)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(llama_tensors(config, seed), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def convert_llama2c(source: Path, folder: Path) -> Path:
    """A llama2.c checkpoint as a Hugging Face Llama: the q and k rows leave the interleaved rope order."""
    raw = source.read_bytes()
    dim, inner, layers, heads, kv_heads, vocab_size, length = struct.unpack("<7i", raw[:28])
    values = np.frombuffer(raw, dtype="<f4", offset=28)
    head, tied, vocab_size = dim // heads, vocab_size > 0, abs(vocab_size)
    position = 0

    def take(*shape: int) -> np.ndarray:
        nonlocal position
        size = int(np.prod(shape))
        position += size
        return values[position - size : position].reshape(shape)

    def half_rotated(rows: np.ndarray, count: int) -> np.ndarray:
        pairs = rows.reshape(count, head // 2, 2, dim)
        return pairs.transpose(0, 2, 1, 3).reshape(count * head, dim)

    tensors = {"model.embed_tokens.weight": take(vocab_size, dim)}
    names = {
        "input_layernorm": (dim,),
        "self_attn.q_proj": (heads * head, dim),
        "self_attn.k_proj": (kv_heads * head, dim),
        "self_attn.v_proj": (kv_heads * head, dim),
        "self_attn.o_proj": (dim, heads * head),
        "post_attention_layernorm": (dim,),
        "mlp.gate_proj": (inner, dim),
        "mlp.down_proj": (dim, inner),
        "mlp.up_proj": (inner, dim),
    }
    for name, shape in names.items():
        for layer, rows in enumerate(take(layers, *shape)):
            if name.endswith(("q_proj", "k_proj")):
                rows = half_rotated(rows, heads if name.endswith("q_proj") else kv_heads)
            tensors[f"model.layers.{layer}.{name}.weight"] = rows
    tensors["model.norm.weight"] = take(dim)
    take(2, length, head // 2)  # rope tables
    if not tied:
        tensors["lm_head.weight"] = take(vocab_size, dim)
    assert position == values.size, (position, values.size)
    config = llama_config(
        vocab_size,
        hidden_size=dim,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head,
        max_position_embeddings=length,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
