"""load_weights on every generating family: an LLM that is given another checkpoint's tensors answers as one made of it.

Bit for bit. The checkpoints: tiny_checkpoints.py, each with its own weights and with those of another seed.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from quire import LLM, SamplingParams  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from tiny_checkpoints import BY_NAME, CASES, REPRESENTATIVES, save_checkpoint  # noqa: E402

PARAMS = SamplingParams(temperature=0, max_tokens=8, logprobs=3, prompt_logprobs=1, ignore_eos=True)
PROMPTS: list[Any] = [{"prompt_token_ids": list(range(5, 25))}, {"prompt_token_ids": [7, 8, 9]}]


def answers(llm: LLM) -> list[Any]:
    outputs = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    return [(one.outputs[0].token_ids, one.outputs[0].logprobs, one.prompt_logprobs) for one in outputs]


def open_llm(folder: Path, ranks: int = 1) -> LLM:
    return LLM(
        str(folder),
        seed=0,
        skip_tokenizer_init=True,
        num_gpu_blocks_override=16,
        dtype="float32",
        tensor_parallel_size=ranks,
    )


def check(name: str, folder: Path, ranks: int) -> None:
    case = BY_NAME[name]
    before = save_checkpoint(case, folder / "before")
    after = save_checkpoint(dataclasses.replace(case, name=f"{name}, of another seed"), folder / "after")
    with open_llm(after, ranks) as fresh:
        want = answers(fresh)
    tensors = load_file(after / "model.safetensors")
    with open_llm(before, ranks) as llm:
        old = answers(llm)
        assert llm.load_weights(reversed(list(tensors.items()))) == set(tensors)
        assert answers(llm) == want != old
        llm.reload_weights()
        assert answers(llm) == old


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_another_checkpoints_tensors(tmp_path: Path, name: str) -> None:
    check(name, tmp_path, 1)


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_with_ranks(tmp_path: Path, name: str) -> None:
    check(name, tmp_path, 5 if name.startswith(("gpt2", "opt")) else 2)  # of 5 and of 6 heads
