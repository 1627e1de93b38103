"""Random two-layer checkpoints of every family, made by transformers: odd sizes, and each flag config.json can set.

Decides which configurations are compared. Knows nothing of quire. A checkpoint is a function of its case alone. Weights
are scaled so that logits are of order 1 to 10 and every matrix, bias and norm weight matters: an ignored one shows.
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

NUM_PROMPT_TOKENS = 37


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    model_class: str
    config: dict[str, Any]
    num_prompt_tokens: int = NUM_PROMPT_TOKENS
    # transformers picks these rope frequencies by the length of the prompt, quire by max_model_len alone
    length_dependent_rope: bool = False
    embedding_std: float = 1.0

    @property
    def seed(self) -> int:
        return zlib.crc32(self.name.encode())

    def prompt(self) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(0, self.config["vocab_size"], (self.num_prompt_tokens,), generator=generator).tolist()


LLAMA = {
    "vocab_size": 131,
    "hidden_size": 60,
    "intermediate_size": 83,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "rms_norm_eps": 3e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
GPT2 = {
    "vocab_size": 131,
    "n_embd": 60,
    "n_layer": 2,
    "n_head": 5,
    "n_positions": 50,
    "layer_norm_epsilon": 3e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPT = {
    "vocab_size": 131,
    "hidden_size": 60,
    "ffn_dim": 83,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "max_position_embeddings": 50,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}


def rope(rope_type: str, theta: float = 500.0, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": theta, **parameters}}


def llama(name: str, num_prompt_tokens: int = NUM_PROMPT_TOKENS, dependent: bool = False, **changes: Any) -> Case:
    return Case(f"llama-{name}", "LlamaForCausalLM", {**LLAMA, **changes}, num_prompt_tokens, dependent)


def family(prefix: str, model_class: str, base: dict[str, Any], cases: dict[str, dict[str, Any]]) -> list[Case]:
    return [Case(f"{prefix}-{name}", model_class, {**base, **changes}) for name, changes in cases.items()]


YARN = {"factor": 4.0, "original_max_position_embeddings": 24}
SHORT = [1.0 + 0.15 * i for i in range(5)]
LONG = [1.0 + 0.9 * i for i in range(5)]
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.6}

CASES: list[Case] = [
    llama("plain"),
    llama("tied", tie_word_embeddings=True),
    llama("one-kv-head", num_key_value_heads=1),
    llama("no-grouping", num_key_value_heads=6),
    llama("head-dim", head_dim=14),
    llama("attention-bias", attention_bias=True),
    llama("mlp-bias", mlp_bias=True),
    llama("gelu", hidden_act="gelu"),
    llama("relu", hidden_act="relu"),
    llama("rope-theta", **rope("default", 1234.5)),
    llama("rope-linear", **rope("linear", factor=2.5)),
    llama("rope-dynamic-within", num_prompt_tokens=32, max_position_embeddings=32, **rope("dynamic", factor=1.0)),
    llama(
        "rope-dynamic-beyond",
        num_prompt_tokens=80,
        dependent=True,
        max_position_embeddings=32,
        **rope("dynamic", factor=2.5),
    ),
    llama(
        "rope-llama3",
        **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=40),
    ),
    llama("rope-yarn", **rope("yarn", **YARN)),
    llama("rope-yarn-mscale", **rope("yarn", **YARN, mscale=0.7, mscale_all_dim=1.3)),
    llama("rope-yarn-attention-factor", **rope("yarn", **YARN, attention_factor=1.25)),
    llama("rope-yarn-betas", **rope("yarn", **YARN, beta_fast=3.0, beta_slow=0.25, truncate=False)),
    *family(
        "mistral",
        "MistralForCausalLM",
        LLAMA,
        {
            "window": {"sliding_window": 7},
            "no-window": {"sliding_window": None},
            "head-dim": {"sliding_window": 16, "head_dim": 12},
        },
    ),
    *family(
        "qwen2",
        "Qwen2ForCausalLM",
        LLAMA,
        {
            "plain": {},
            "tied": {"tie_word_embeddings": True},
            "window-from-layer-1": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
            "layer-types": {
                "use_sliding_window": True,
                "sliding_window": 5,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            "window-switched-off": {"use_sliding_window": False, "sliding_window": 5, "max_window_layers": 0},
        },
    ),
    *family(
        "qwen3",
        "Qwen3ForCausalLM",
        LLAMA,
        {
            "plain": {"head_dim": 10},
            "default-head-dim": {},
            "attention-bias": {"head_dim": 14, "attention_bias": True, "tie_word_embeddings": True},
            "window": {"head_dim": 10, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0},
        },
    ),
    *family(
        "phi3",
        "Phi3ForCausalLM",
        LLAMA,
        {
            "plain": {"original_max_position_embeddings": 96},
            "partial-rotary": {"rope_parameters": PARTIAL},
            "window": {"sliding_window": 9},
            "tied": {"tie_word_embeddings": True},
            "longrope-short": {
                "max_position_embeddings": 48,
                "original_max_position_embeddings": 48,
                **rope("longrope", short_factor=SHORT, long_factor=LONG, factor=4.0),
            },
        },
    ),
    Case(
        "phi3-longrope-long",
        "Phi3ForCausalLM",
        {
            **LLAMA,
            "original_max_position_embeddings": 24,
            **rope("longrope", short_factor=SHORT, long_factor=LONG),
        },
        length_dependent_rope=True,
    ),
    Case(
        "phi3-longrope-partial",
        "Phi3ForCausalLM",
        {
            **LLAMA,
            "original_max_position_embeddings": 24,
            **rope(
                "longrope",
                short_factor=SHORT[:3],
                long_factor=LONG[:3],
                attention_factor=1.1,
                partial_rotary_factor=0.6,
            ),
        },
        length_dependent_rope=True,
    ),
    *family(
        "gemma2",
        "Gemma2ForCausalLM",
        {**LLAMA, "head_dim": 14, "query_pre_attn_scalar": 11, "sliding_window": 6},
        {
            "plain": {},
            "small-caps": {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 12.0},
            "no-caps": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
            "untied": {"tie_word_embeddings": False},
            "attention-bias": {"attention_bias": True},
            "layer-types": {"layer_types": ["full_attention", "sliding_attention"]},
            "gelu": {"hidden_activation": "gelu"},
        },
    ),
    *family(
        "gpt2",
        "GPT2LMHeadModel",
        GPT2,
        {
            "plain": {},
            "inner": {"n_inner": 77},
            "relu": {"activation_function": "relu"},
            "gelu": {"activation_function": "gelu"},
            "unscaled": {"scale_attn_weights": False},
            "by-layer": {"scale_attn_by_inverse_layer_idx": True},
            "upcast": {"reorder_and_upcast_attn": True},
            "untied": {"tie_word_embeddings": False},
        },
    ),
    *family(
        "opt",
        "OPTForCausalLM",
        OPT,
        {
            "plain": {},
            "post-norm": {"do_layer_norm_before": False},
            "projected": {"word_embed_proj_dim": 34, "do_layer_norm_before": False},
            "no-bias": {"enable_bias": False},
            "no-affine": {"layer_norm_elementwise_affine": False},
            "gelu": {"activation_function": "gelu"},
            "untied": {"tie_word_embeddings": False, "word_embed_proj_dim": 34},
        },
    ),
    # Without the last norm the residual stream reaches the head as it is, so the table is made smaller.
    Case("opt-no-final-norm", "OPTForCausalLM", {**OPT, "_remove_final_layer_norm": True}, embedding_std=0.1),
]


BY_NAME = {case.name: case for case in CASES}
# One of each family, with its most particular flags.
REPRESENTATIVES = [
    "llama-rope-llama3",
    "mistral-window",
    "qwen2-window-from-layer-1",
    "qwen3-attention-bias",
    "phi3-longrope-short",
    "gemma2-small-caps",
    "gpt2-by-layer",
    "opt-projected",
]


def build_model(case: Case) -> transformers.PreTrainedModel:
    """The model in float32, its weights rounded to bfloat16 so that every dtype computes with the same ones."""
    model_class = getattr(transformers, case.model_class)
    model = model_class(model_class.config_class(**case.config)).eval()
    model.set_attn_implementation("eager")
    randomize(model, case.seed, case.embedding_std)
    return model


def randomize(model: transformers.PreTrainedModel, seed: int, embedding_std: float = 1.0) -> None:
    """Fresh weights, rounded to bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() == 1:
            # LayerNorm and RMSNorm weights begin as ones or zeros, biases as zeros: move all of them.
            weight.data += 0.3 * noise
        elif "lm_head" in name:
            weight.data = noise * 4.0 / math.sqrt(weight.shape[1])
        elif any(part in name for part in ("embed", "wte", "wpe")):
            weight.data = noise * embedding_std
        else:
            weight.data = noise * 1.5 / math.sqrt(weight.shape[1])
        weight.data = weight.data.bfloat16().float()


def reference_logits(case: Case, token_ids: list[int], dtype: str = "float32") -> np.ndarray:
    """Of all positions, as transformers computes them in one piece in that dtype; float32."""
    model = build_model(case).to(getattr(torch, dtype))
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0].float().numpy()


def save_checkpoint(case: Case, folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    build_model(case).to(dtype).save_pretrained(folder, **options)
    return folder
