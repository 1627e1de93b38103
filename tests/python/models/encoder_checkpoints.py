"""Random two-layer checkpoints of pooling models, made by transformers: encoders, classifiers, decoders.

Decides which configurations are compared. Knows nothing of quire. A checkpoint is a function of its case alone; every
matrix, bias and norm weight matters, so an ignored one shows.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tiny_checkpoints import GPT2, LLAMA, randomize

LENGTHS = (1, 2, 17, 40, 33)


@dataclasses.dataclass(frozen=True)
class PoolingCase:
    name: str
    model_class: str
    config: dict[str, Any]
    has_token_types: bool = False
    lengths: tuple[int, ...] = LENGTHS

    @property
    def seed(self) -> int:
        return zlib.crc32(self.name.encode())

    def texts(self) -> list[list[int]]:
        """Token ids, without those that a model treats in a way of its own (padding)."""
        random = np.random.default_rng(self.seed)
        low = max(2, (self.config.get("pad_token_id") or 0) + 1)
        return [random.integers(low, self.config["vocab_size"], length).tolist() for length in self.lengths]

    def token_types(self) -> list[list[int] | None]:
        """The second half of each text is of type 1, where there are types."""
        if not self.has_token_types:
            return [None] * len(self.lengths)
        return [[int(2 * i >= length) for i in range(length)] for length in self.lengths]


BERT = {
    "vocab_size": 131,
    "hidden_size": 60,
    "intermediate_size": 83,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "max_position_embeddings": 48,
    "layer_norm_eps": 3e-5,
    "pad_token_id": 0,
}
ROBERTA = {**BERT, "pad_token_id": 1}
DISTILBERT = {
    "vocab_size": 131,
    "dim": 60,
    "hidden_dim": 83,
    "n_layers": 2,
    "n_heads": 5,
    "max_position_embeddings": 48,
    "pad_token_id": 0,
}
MODERNBERT = {
    "vocab_size": 131,
    "hidden_size": 60,
    "intermediate_size": 83,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "max_position_embeddings": 64,
    "local_attention": 14,
    "norm_eps": 3e-5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
MODERNBERT_BIASES = {"attention_bias": True, "mlp_bias": True, "norm_bias": True}
GTE = {**BERT, "type_vocab_size": 2}
# Texts beyond the distance from which a bias is constant; the padding token, id 1, is not among their tokens.
MPNET = {**BERT, "pad_token_id": 1, "max_position_embeddings": 202}
T5 = {
    "vocab_size": 131,
    "d_model": 60,
    "d_kv": 14,
    "d_ff": 83,
    "num_layers": 3,
    "num_heads": 5,
    "layer_norm_epsilon": 3e-5,
}
FAR = (1, 2, 40, 200, 33)
THETAS = {
    "full_attention": {"rope_type": "default", "rope_theta": 500.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
THETA = {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}
LABELS = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
DECODER = {**LLAMA, "pad_token_id": 0}
QWEN3 = {**DECODER, "head_dim": 16}


def cases(
    prefix: str,
    model_class: str,
    base: dict[str, Any],
    changes: dict[str, Any],
    types: bool,
    lengths: tuple[int, ...] = LENGTHS,
) -> list[PoolingCase]:
    return [
        PoolingCase(f"{prefix}-{name}", model_class, {**base, **own}, types, lengths) for name, own in changes.items()
    ]


ENCODERS = [
    *cases(
        "bert",
        "BertModel",
        BERT,
        {
            "plain": {},
            "gelu-new": {"hidden_act": "gelu_new"},
            "relu": {"hidden_act": "relu"},
            "three-types": {"type_vocab_size": 3},
            "head-dim-64": {"hidden_size": 128, "num_attention_heads": 2},
        },
        True,
    ),
    *cases("roberta", "RobertaModel", ROBERTA, {"plain": {}, "pad-5": {"pad_token_id": 5}}, True),
    *cases("xlm-roberta", "XLMRobertaModel", ROBERTA, {"one-type": {"type_vocab_size": 1}}, False),
    *cases("camembert", "CamembertModel", ROBERTA, {"plain": {"type_vocab_size": 1}}, False),
    *cases(
        "distilbert",
        "DistilBertModel",
        DISTILBERT,
        {"plain": {}, "relu": {"activation": "relu"}, "sinusoidal": {"sinusoidal_pos_embds": True}},
        False,
    ),
    *cases(
        "modernbert",
        "ModernBertModel",
        MODERNBERT,
        {
            "plain": {},
            "biases": MODERNBERT_BIASES,
            "layer-types": {"layer_types": ["sliding_attention", "full_attention"] * 2},
            "thetas": {"rope_parameters": THETAS, "hidden_activation": "silu"},
        },
        False,
    ),
    *cases("nomic-bert", "NomicBertModel", BERT, {"plain": {"hidden_act": "silu"}, "theta": THETA}, True),
    *cases("gte", "GteModel", GTE, {"plain": {}, "theta": THETA}, True),
    *cases("gte", "GteModel", BERT, {"no-types": {"type_vocab_size": 0}}, False),
    *cases("jina-v3", "JinaEmbeddingsV3Model", ROBERTA, {"plain": {"type_vocab_size": 1}, "theta": THETA}, False),
    *cases(
        "mpnet",
        "MPNetModel",
        MPNET,
        {"plain": {}, "head-dim-64": {"hidden_size": 128, "num_attention_heads": 2}},
        False,
        FAR,
    ),
    *cases(
        "t5",
        "T5EncoderModel",
        T5,
        {
            "relu": {},
            "gated-gelu": {"feed_forward_proj": "gated-gelu"},
            "gated-silu": {"feed_forward_proj": "gated-silu"},
            "near": {"relative_attention_num_buckets": 12, "relative_attention_max_distance": 20},
            "far": {"relative_attention_num_buckets": 50, "relative_attention_max_distance": 700},
            "head-dim-64": {"d_kv": 64, "num_heads": 2},
        },
        False,
        FAR,
    ),
    *cases("mt5", "MT5EncoderModel", T5, {"plain": {"feed_forward_proj": "gated-gelu"}}, False, FAR),
]
DECODERS = [
    PoolingCase("llama-model", "LlamaModel", DECODER),
    PoolingCase("mistral-window", "MistralModel", {**DECODER, "sliding_window": 7}),
    PoolingCase("qwen2-model", "Qwen2Model", DECODER),
    PoolingCase("qwen3-model", "Qwen3Model", QWEN3),
    PoolingCase("qwen3-for-causal-lm", "Qwen3ForCausalLM", QWEN3),
    PoolingCase("gemma2-model", "Gemma2Model", {**DECODER, "head_dim": 14, "sliding_window": 6}),
    PoolingCase("phi3-model", "Phi3Model", {**DECODER, "original_max_position_embeddings": 96}),
    PoolingCase("gpt2-model", "GPT2Model", GPT2),
]
CLASSIFIERS = [
    *cases(
        "bert-classifier",
        "BertForSequenceClassification",
        BERT,
        {"three": LABELS, "one": {"num_labels": 1}},
        True,
    ),
    *cases("roberta-classifier", "RobertaForSequenceClassification", ROBERTA, {"three": LABELS}, True),
    *cases("xlm-roberta-classifier", "XLMRobertaForSequenceClassification", ROBERTA, {"one": {"num_labels": 1}}, True),
    *cases("camembert-classifier", "CamembertForSequenceClassification", ROBERTA, {"three": LABELS}, True),
    *cases("distilbert-classifier", "DistilBertForSequenceClassification", DISTILBERT, {"three": LABELS}, False),
    *cases(
        "modernbert-classifier",
        "ModernBertForSequenceClassification",
        {**MODERNBERT, **LABELS},
        {
            "cls": {},
            "mean": {"classifier_pooling": "mean"},
            "biases": {**MODERNBERT_BIASES, "classifier_bias": True, "classifier_activation": "silu"},
        },
        False,
    ),
    *cases("mpnet-classifier", "MPNetForSequenceClassification", MPNET, {"three": LABELS}, False, FAR),
    *cases("nomic-bert-classifier", "NomicBertForSequenceClassification", BERT, {"three": LABELS}, True),
    *cases("gte-classifier", "GteForSequenceClassification", GTE, {"three": LABELS, "one": {"num_labels": 1}}, True),
    *cases("jina-v3-classifier", "JinaEmbeddingsV3ForSequenceClassification", ROBERTA, {"three": LABELS}, False),
    PoolingCase("qwen2-classifier", "Qwen2ForSequenceClassification", {**DECODER, **LABELS}),
    PoolingCase("qwen3-classifier", "Qwen3ForSequenceClassification", {**QWEN3, **LABELS}),
    PoolingCase("llama-classifier", "LlamaForSequenceClassification", {**DECODER, **LABELS}),
    PoolingCase("mistral-classifier", "MistralForSequenceClassification", {**DECODER, **LABELS}),
]


def build(case: PoolingCase) -> transformers.PreTrainedModel:
    """The model in float32, its weights rounded to bfloat16 so that every dtype computes with the same ones."""
    model_class = getattr(transformers, case.model_class)
    model = model_class(model_class.config_class(**case.config)).eval()
    model.set_attn_implementation("eager")
    randomize(model, case.seed)
    for name, weight in model.named_parameters():
        if name.endswith("SelfAttention.q.weight"):  # T5, whose queries are trained to need no scale
            weight.data = (weight.data / math.sqrt(case.config["d_kv"])).bfloat16().float()
    return model


def save(case: PoolingCase, folder: Path) -> Path:
    build(case).save_pretrained(folder)
    return folder


def _inputs(case: PoolingCase) -> list[dict[str, torch.Tensor]]:
    inputs = []
    for ids, types in zip(case.texts(), case.token_types(), strict=True):
        inputs.append({"input_ids": torch.tensor([ids])})
        if types is not None:
            inputs[-1]["token_type_ids"] = torch.tensor([types])
    return inputs


def hidden_states(case: PoolingCase) -> list[np.ndarray]:
    """Those after the last layer and its norm, text by text: nothing is padded."""
    model = build(case).base_model
    with torch.no_grad():
        return [model(**one).last_hidden_state[0].numpy() for one in _inputs(case)]


def logits(case: PoolingCase) -> list[np.ndarray]:
    model = build(case)
    with torch.no_grad():
        return [model(**one).logits[0].numpy() for one in _inputs(case)]
