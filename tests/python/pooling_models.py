"""Random BERTs with a tokenizer of words, as encoders, classifiers and sentence-transformers models.

Decides nothing about quire. A checkpoint is a function of its arguments.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import TEXT, llama_config, llama_tensors, write_tokenizer
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HIDDEN, MAX_LENGTH = 32, 24


SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@functools.cache
def word_tokenizer() -> Tokenizer:
    """Trained once: training twice may number the words differently."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        TEXT, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIALS, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def write_word_tokenizer(folder: Path) -> int:
    tokenizer = word_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIALS, strict=True))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))
    return tokenizer.get_vocab_size()


def bert_tensors(vocab_size: int, num_labels: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)

    def matrix(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    tensors: dict[str, np.ndarray] = {}
    for name, rows in (("word", vocab_size), ("position", MAX_LENGTH + 8), ("token_type", 2)):
        tensors[f"embeddings.{name}_embeddings.weight"] = matrix(rows, HIDDEN) * 5
    layer = "encoder.layer.0."
    linears = {f"{layer}attention.self.{part}": (HIDDEN, HIDDEN) for part in ("query", "key", "value")}
    linears[f"{layer}attention.output.dense"] = (HIDDEN, HIDDEN)
    linears[f"{layer}intermediate.dense"], linears[f"{layer}output.dense"] = (48, HIDDEN), (HIDDEN, 48)
    if num_labels:
        linears["pooler.dense"], linears["classifier"] = (HIDDEN, HIDDEN), (num_labels, HIDDEN)
    for name, shape in linears.items():
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = matrix(*shape) * 2, matrix(shape[0])
    for name in ("embeddings.", f"{layer}attention.output.", f"{layer}output."):
        tensors[f"{name}LayerNorm.weight"] = np.ones(HIDDEN, np.float32) + matrix(HIDDEN)
        tensors[f"{name}LayerNorm.bias"] = matrix(HIDDEN)
    if num_labels:
        tensors = {name if name.startswith("classifier") else f"bert.{name}": one for name, one in tensors.items()}
    return tensors


def write_bert(folder: Path, num_labels: int = 0, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = write_word_tokenizer(folder)
    config = {
        "architectures": ["BertForSequenceClassification" if num_labels else "BertModel"],
        "model_type": "bert",
        "vocab_size": vocab_size,
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": MAX_LENGTH + 8,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        **({"num_labels": num_labels} if num_labels else {}),
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(bert_tensors(vocab_size, num_labels), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def as_sentence_transformer(
    folder: Path,
    mode: str = "mean_tokens",
    normalizes: bool = True,
    dense: int = 0,
    pooling: dict[str, Any] | None = None,
    num_modes: int = 1,
) -> Path:
    """`pooling` is what 1_Pooling/config.json says instead of `mode`, of which a dense layer gets `num_modes`."""
    modules = ["Transformer", "Pooling", *(["Dense"] if dense else []), *(["Normalize"] if normalizes else [])]
    listed = [
        {"idx": i, "name": str(i), "path": f"{i}_{name}" if i else "", "type": f"sentence_transformers.models.{name}"}
        for i, name in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    flags = {f"pooling_mode_{one}": one == mode for one in ("cls_token", "mean_tokens", "lasttoken")}
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": HIDDEN, **(flags if pooling is None else pooling)})
    )
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": MAX_LENGTH, "do_lower_case": False})
    )
    if dense:
        random = np.random.default_rng(2)
        (folder / "2_Dense").mkdir()
        config = {"in_features": HIDDEN * num_modes, "out_features": dense, "bias": True}
        config["activation_function"] = "torch.nn.modules.activation.Tanh"
        (folder / "2_Dense" / "config.json").write_text(json.dumps(config))
        weight = random.standard_normal((dense, HIDDEN * num_modes)).astype(np.float32)
        bias = random.standard_normal(dense).astype(np.float32)
        save_file({"linear.weight": weight, "linear.bias": bias}, folder / "2_Dense" / "model.safetensors")
    return folder


def _write_decoder(folder: Path, tokens: dict[str, int], extra: Any, **changes: Any) -> Path:
    """A random decoder whose tokenizer has `tokens` besides, at these ids. `extra` adds tensors to a Llama's."""
    write_tokenizer(folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    for token, i in tokens.items():
        tokenizer["model"]["vocab"][token] = i
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
        tokenizer["added_tokens"].append({"id": i, "content": token, **flags})
    file.write_text(json.dumps(tokenizer))
    vocab_size = 1 + max(tokenizer["model"]["vocab"].values())
    config = llama_config(vocab_size, hidden_size=32, num_attention_heads=4, head_dim=8, **changes)
    tensors = llama_tensors(config)
    for layer in range(config["num_hidden_layers"]):
        tensors |= {f"model.layers.{layer}.self_attn.{name}": one for name, one in extra(config).items()}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_qwen3_with_answers(folder: Path) -> Path:
    """A Qwen3 with the tokens "no" and "yes"."""

    def norms(config: dict[str, Any]) -> dict[str, np.ndarray]:
        return {f"{one}_norm.weight": np.ones(config["head_dim"], np.float32) for one in "qk"}

    names = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    return _write_decoder(folder, {"no": 512, "yes": 513}, norms, **names)


def write_process_reward_model(folder: Path) -> Path:
    """A Qwen2 with two layers of a reward, and the tag of Qwen's process reward models."""
    random = np.random.default_rng(4)

    def biases(config: dict[str, Any]) -> dict[str, np.ndarray]:
        rows = {"q": config["num_attention_heads"], "k": 2, "v": 2}
        return {f"{one}_proj.bias": random.standard_normal(8 * n).astype(np.float32) for one, n in rows.items()}

    names = {"architectures": ["Qwen2ForProcessRewardModel"], "model_type": "qwen2", "tie_word_embeddings": False}
    _write_decoder(folder, {"<extra_0>": 151651}, biases, **names)
    file = folder / "model.safetensors"
    shapes = {"0.weight": (32, 32), "0.bias": (32,), "2.weight": (2, 32), "2.bias": (2,)}
    head = {f"score.{name}": random.standard_normal(shape).astype(np.float32) / 4 for name, shape in shapes.items()}
    save_file({**load_file(file), **head}, file, metadata={"format": "pt"})
    return folder
