"""The Llama decoder of the demo model in plain torch, its weights under Hugging Face names, and the Muon optimiser.

Decides: the shape of the network and what runs in which precision (float32 master weights, bfloat16 products). Knows
nothing of stories, tokens or schedules; used by train_demo_model.py only.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORE = -100  # target of a position that is not counted


@dataclass(frozen=True)
class ModelShape:
    """Hyper-parameters of the Llama decoder, under the names of a Hugging Face config."""

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 688
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 1024
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def project(x: Tensor, weight: Tensor) -> Tensor:
    """Master weights are float32; products run in bfloat16, where a CPU with AVX512-BF16 or a GPU is fastest."""
    return F.linear(x.to(torch.bfloat16), weight.to(torch.bfloat16))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class Dropout(nn.Module):
    """Drops with masks cut at random offsets from one fixed pool: drawing fresh ones is slow on a CPU."""

    def __init__(self, rate: float, pool_size: int = 1 << 24):
        super().__init__()
        self.rate = rate
        mask = (torch.rand(pool_size) >= rate).to(torch.bfloat16) / (1 - rate)
        self.register_buffer("pool", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        offset = random.randrange(self.pool.numel() - x.numel() + 1)
        return x * self.pool[offset : offset + x.numel()].view(x.shape)


class Layer(nn.Module):
    """One decoder layer; q, k, v and gate, up are kept fused and split at export."""

    def __init__(self, shape: ModelShape):
        super().__init__()
        self.shape = shape
        hidden, q_size = shape.hidden_size, shape.num_attention_heads * shape.head_dim
        kv_size = shape.num_key_value_heads * shape.head_dim
        self.split = [q_size, kv_size, kv_size]

        def weight(rows: int, cols: int, gain: float = 1.0) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, cols) * gain / math.sqrt(cols))

        out_gain = 1 / math.sqrt(2 * shape.num_hidden_layers)
        self.qkv = weight(sum(self.split), hidden)
        self.out = weight(hidden, q_size, out_gain)
        self.gate_up = weight(2 * shape.intermediate_size, hidden)
        self.down = weight(hidden, shape.intermediate_size, out_gain)
        self.attn_norm = nn.Parameter(torch.ones(hidden))
        self.mlp_norm = nn.Parameter(torch.ones(hidden))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, dropout: Dropout) -> Tensor:
        shape, (rows, length, _) = self.shape, x.shape
        qkv = project(rms_norm(x, self.attn_norm, shape.rms_norm_eps), self.qkv)
        q, k, v = (t.view(rows, length, -1, shape.head_dim).transpose(1, 2) for t in qkv.split(self.split, -1))
        q, k = rotate(q.float(), cos, sin).to(v.dtype), rotate(k.float(), cos, sin).to(v.dtype)
        repeat = shape.num_attention_heads // shape.num_key_value_heads
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = project(mixed.transpose(1, 2).reshape(rows, length, -1), self.out)
        x = x + dropout(mixed)
        gate, up = project(rms_norm(x, self.mlp_norm, shape.rms_norm_eps), self.gate_up).chunk(2, -1)
        return x + dropout(project(F.silu(gate) * up, self.down))


class Storyteller(nn.Module):
    def __init__(self, shape: ModelShape, dropout: float):
        super().__init__()
        self.shape, self.dropout = shape, Dropout(dropout)
        self.embed = nn.Parameter(torch.randn(shape.vocab_size, shape.hidden_size) * 0.02)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden_size))
        inv_freq = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim)
        angles = torch.outer(torch.arange(shape.max_position_embeddings, dtype=torch.float64), inv_freq).repeat(1, 2)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Sum of the negative log likelihoods (nats) of the targets that are not IGNORE."""
        length = ids.shape[1]
        x = self.dropout(F.embedding(ids, self.embed))
        for layer in self.layers:
            x = layer(x, self.cos[:length], self.sin[:length], self.dropout)
        logits = project(rms_norm(x, self.norm, self.shape.rms_norm_eps), self.embed)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE, reduction="sum")

    def hugging_face_state(self) -> dict[str, Tensor]:
        shape = self.shape
        state = {"model.embed_tokens.weight": self.embed, "model.norm.weight": self.norm}
        for index, layer in enumerate(self.layers):
            prefix = f"model.layers.{index}."
            for name, part in zip("qkv", layer.qkv.split(layer.split), strict=True):
                state[f"{prefix}self_attn.{name}_proj.weight"] = part
            gate, up = layer.gate_up.split(shape.intermediate_size)
            state[prefix + "self_attn.o_proj.weight"] = layer.out
            state[prefix + "mlp.gate_proj.weight"] = gate
            state[prefix + "mlp.up_proj.weight"] = up
            state[prefix + "mlp.down_proj.weight"] = layer.down
            state[prefix + "input_layernorm.weight"] = layer.attn_norm
            state[prefix + "post_attention_layernorm.weight"] = layer.mlp_norm
        return {name: tensor.detach().to(torch.bfloat16).contiguous().clone() for name, tensor in state.items()}


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised by Newton-Schulz steps; equal shapes are stacked into one batch."""

    def __init__(self, params: list[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
            for param in group["params"]:
                by_shape.setdefault(tuple(param.shape), []).append(param)
            for (rows, cols), params in by_shape.items():
                updates = []
                for param in params:
                    buffer = self.state[param].setdefault("momentum", torch.zeros_like(param))
                    buffer.lerp_(param.grad, 1 - group["momentum"])
                    updates.append(param.grad.lerp(buffer, group["momentum"]))
                scale = group["lr"] * max(1.0, rows / cols) ** 0.5
                for param, update in zip(params, orthogonalise(torch.stack(updates)), strict=True):
                    param.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    x = matrices.to(torch.bfloat16)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):  # quintic that pushes every singular value towards 1
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
    return (x.mT if tall else x).float()
