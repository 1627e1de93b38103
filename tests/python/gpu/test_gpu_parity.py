"""Tokens and log-probabilities of every family on the device against transformers on the CPU in float32.

The whole vocabulary's log-probabilities at each generated token are the logits but for a constant, through prefill, the
KV cache and decode. bfloat16 and float16: the float32 run of transformers is the truth, and quire's error must not
exceed that of transformers' own run in that dtype.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from quire import SamplingParams  # noqa: E402
from tiny_checkpoints import BY_NAME, REPRESENTATIVES, Case, reference_logits, save_checkpoint  # noqa: E402

pytestmark = pytest.mark.gpu

NUM_NEW = 12
# 1e-4 of a logit, as on the CPU, and as much again of the sum that makes it a log-probability.
TOLERANCE = 2e-4
# The emulation takes its time, and the CPU has all of them in tests/python/models.
CHOSEN = REPRESENTATIVES if os.environ.get("QUIRE_TEST_DEVICE", "cuda") != "cuda" else list(BY_NAME)


def prompt_of(case: Case) -> list[int]:
    """Short enough for the new tokens; where the rope depends on a length, both together are the model's greatest."""
    longest = case.config.get("max_position_embeddings", case.config.get("n_positions", 0))
    scaling = case.config.get("rope_parameters", {})
    if scaling.get("rope_type") == "dynamic":
        longest = int(longest * scaling["factor"])
    return case.prompt()[: longest - NUM_NEW]


def generated(llm, prompt: list[int], vocab_size: int) -> tuple[list[int], np.ndarray]:
    """Greedy tokens, and for each the log-probabilities of the whole vocabulary."""
    params = SamplingParams(temperature=0, max_tokens=NUM_NEW, ignore_eos=True, detokenize=False, logprobs=vocab_size)
    completion = llm.generate([prompt], params, use_tqdm=False)[0].outputs[0]
    rows = [[entries[token].logprob for token in range(vocab_size)] for entries in completion.logprobs]
    return list(completion.token_ids), np.array(rows)


def reference(case: Case, prompt: list[int], tokens: list[int], dtype: str = "float32") -> np.ndarray:
    """Log-probabilities at the same positions, after the same tokens, computed in one piece."""
    logits = torch.from_numpy(reference_logits(case, prompt + tokens, dtype))
    return torch.log_softmax(logits, -1)[len(prompt) - 1 : -1].numpy()


def run(case: Case, folder: Path, make_llm, dtype: str) -> tuple[list[int], list[int], np.ndarray]:
    save_checkpoint(case, folder, getattr(torch, dtype))
    llm = make_llm(folder, dtype=dtype, skip_tokenizer_init=True, max_logprobs=-1)
    prompt = prompt_of(case)
    return prompt, *generated(llm, prompt, case.config["vocab_size"])


@pytest.mark.parametrize("name", CHOSEN)
def test_float32(name: str, make_llm, tmp_path: Path) -> None:
    case = BY_NAME[name]
    prompt, tokens, logprobs = run(case, tmp_path, make_llm, "float32")
    expected = reference(case, prompt, tokens)
    assert logprobs.shape == expected.shape == (NUM_NEW, case.config["vocab_size"])
    assert expected.std(axis=1).min() > 0.3  # else anything would be close
    assert np.abs(logprobs - expected).max() <= TOLERANCE
    # The most likely token, where transformers knows one.
    best, second = np.sort(expected, axis=1)[:, :-3:-1].T
    is_certain = best - second > 2 * TOLERANCE
    assert is_certain.sum() > NUM_NEW // 2
    assert (np.array(tokens) == expected.argmax(axis=1))[is_certain].all()


@pytest.mark.parametrize("name", REPRESENTATIVES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision(name: str, dtype: str, make_llm, tmp_path: Path) -> None:
    case = BY_NAME[name]
    prompt, tokens, logprobs = run(case, tmp_path, make_llm, dtype)
    expected = reference(case, prompt, tokens)
    error = np.sqrt(np.mean((logprobs - expected) ** 2))
    reference_error = np.sqrt(np.mean((reference(case, prompt, tokens, dtype) - expected) ** 2))
    assert 0 < error <= reference_error
