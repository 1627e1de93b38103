"""The device gives the CPU's tokens: float32 models, greedy and sampled, with every parameter that touches the choice.

Noise has the same bits on every device and logits differ by rounding, so tokens agree unless a draw falls between the
two roundings; the seeds here are fixed. With QUIRE_TEST_DEVICE=cpu this compares the CPU with itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_llama
from quire import LLM, RequestOutput, SamplingParams

pytestmark = pytest.mark.gpu

PARAMETERS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature": {"temperature": 0.8},
    "hot": {"temperature": 2.5},
    "top_k": {"top_k": 7},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.05},
    "all filters": {"top_k": 40, "top_p": 0.9, "min_p": 0.01, "temperature": 1.2},
    "penalties": {"temperature": 0, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.7},
    "penalties, sampled": {"repetition_penalty": 1.2, "presence_penalty": -0.4, "frequency_penalty": 0.3},
    "logit bias": {"temperature": 0, "logit_bias": {9: 4.0, 11: -50.0}},
    "allowed": {"allowed_token_ids": [5, 8, 13, 21, 34, 55]},
    "bad words": {"temperature": 0, "bad_words": ["a", "the dog"]},
    "end": {"temperature": 1.0, "ignore_eos": False, "min_tokens": 5, "stop_token_ids": list(range(100, 200))},
    "several": {"n": 3, "temperature": 1.0},
}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd": {"hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 10},
    "untied": {"tie_word_embeddings": False, "num_key_value_heads": 4},
}


def params_of(wish: dict[str, Any], seed: int) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 20, "seed": seed, "logprobs": 3, "ignore_eos": True, **wish})


def prompts() -> list[list[int]]:
    lengths = [1, 5, 15, 16, 17, 40, 3, 31, 33, 64, 2, 90, 7, 24]
    return [[3 + (7 * i + 5 * j) % 380 for j in range(length)] for i, length in enumerate(lengths)]


def everything(outputs: list[RequestOutput]) -> list[Any]:
    return [
        [(c.index, list(c.token_ids), c.finish_reason, c.stop_reason, c.text) for c in output.outputs]
        for output in outputs
    ]


def write(folder: Path, shape: dict[str, Any]) -> Path:
    if shape.get("tie_word_embeddings", True):
        return write_llama(folder, **shape)
    from checkpoints import llama_tensors
    from safetensors.numpy import load_file, save_file

    write_llama(folder, **shape)
    tensors = load_file(folder / "model.safetensors")
    vocab_size, hidden = tensors["model.embed_tokens.weight"].shape
    config = {"vocab_size": vocab_size, "hidden_size": hidden, "intermediate_size": 8, "head_dim": 8}
    config |= {"num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 0}
    tensors["lm_head.weight"] = llama_tensors(config, seed=5)["model.embed_tokens.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_of_the_cpu(shape: str, make_llm, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", SHAPES[shape])
    asked = [params_of(wish, 100 + i) for i, wish in enumerate(PARAMETERS.values())]
    with LLM(str(folder), device="cpu", seed=0, num_gpu_blocks_override=256) as cpu:
        expected = cpu.generate(prompts(), asked, use_tqdm=False)
    outputs = make_llm(folder).generate(prompts(), asked, use_tqdm=False)
    for name, ours, theirs in zip(PARAMETERS, everything(outputs), everything(expected)):
        assert ours == theirs, name
    # Logprobs are of the raw logits: the same to rounding, and not the same number everywhere.
    mine, others = ([c.cumulative_logprob for o in out for c in o.outputs] for out in (outputs, expected))
    assert np.ptp(others) > 1
    assert np.allclose(mine, others, atol=5e-3)


def test_requests_without_a_seed_take_the_engines(make_llm, tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "model")
    params = SamplingParams(max_tokens=12, temperature=1.5, ignore_eos=True)
    results = {}
    for seed in (1, 2):
        with LLM(str(folder), device="cpu", seed=seed, num_gpu_blocks_override=64) as cpu:
            expected = everything(cpu.generate(prompts()[:4], params, use_tqdm=False))
        results[seed] = everything(make_llm(folder, seed=seed).generate(prompts()[:4], params, use_tqdm=False))
        assert results[seed] == expected
    assert results[1] != results[2]


def test_streams_and_iterators_give_the_same(make_llm, tmp_path: Path) -> None:
    llm = make_llm(write_llama(tmp_path / "model"))
    params = SamplingParams(max_tokens=16, temperature=0.9, seed=4, ignore_eos=True)
    expected = [list(output.outputs[0].token_ids) for output in llm.generate(prompts()[:5], params, use_tqdm=False)]
    assert len(set(map(tuple, expected))) == 5
    for prompt, tokens in zip(prompts()[:5], expected):
        assert [token for chunk in llm.stream(prompt, params) for token in chunk.token_ids] == tokens
    found = dict(llm.generate_iter(prompts()[:5], params, max_in_flight=2))
    assert [list(found[i].outputs[0].token_ids) for i in range(5)] == expected
