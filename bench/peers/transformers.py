"""Hugging Face transformers: one static batch, padded on the left.

Runs in the interpreter that compares where that has torch and transformers and no environment was made for it.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from .base import Environment, Peer, Task


class Adapter(Peer):
    distribution = "transformers"
    importing = "from transformers import AutoModelForCausalLM"
    note = "AutoModelForCausalLM.generate, sdpa, one batch padded on the left"
    environments = (Environment("transformers", (("torch==2.13.0", "transformers==5.23.0", "accelerate"),)),)

    def python(self) -> Path:
        own = super().python()
        return own if super().missing() is None else Path(sys.executable)

    def missing(self) -> str | None:
        here = all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))
        return None if here else super().missing()

    def load(self, task: Task) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(task.threads)
        self._model = AutoModelForCausalLM.from_pretrained(
            str(task.checkpoint), dtype=torch.bfloat16, attn_implementation="sdpa"
        )
        self._model.eval()

    def generate(self, prompts: list[list[int]], num_new: int) -> list[list[int]]:
        import torch

        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            made = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=num_new,
                min_new_tokens=num_new,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return made[:, longest:].tolist()
