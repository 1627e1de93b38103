"""Log-probabilities of prompts and of generated tokens: values, ranks, limits, memory, and no say of the batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import load_reference, write_llama
from quire import LLM, SamplingParams

PROMPT = [(37 * i + 11) % 300 + 5 for i in range(45)]
GREEDY = {"temperature": 0, "max_tokens": 1, "ignore_eos": True}
BLOCKS = {"num_gpu_blocks_override": 64}


def entries(logprobs: Any) -> list[list[tuple[int, float, int | None]]]:
    """Everything of a prompt's logprobs but the first position, exactly."""
    assert logprobs is not None and logprobs[0] is None
    return [[(i, one.logprob, one.rank) for i, one in entry.items()] for entry in logprobs[1:]]


def judge(llm: LLM, prompt: list[int], number: int = 3, **more: Any) -> list[list[tuple[int, float, int | None]]]:
    (output,) = llm.generate([prompt], SamplingParams(prompt_logprobs=number, **{**GREEDY, **more}), use_tqdm=False)
    return entries(output.prompt_logprobs)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def reference_logits(tiny_model: Path) -> np.ndarray:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model = load_reference(tiny_model)
    with torch.no_grad():
        return model(torch.tensor([PROMPT])).logits[0].float().numpy()


@pytest.fixture(scope="module")
def float32_llm(tiny_model: Path) -> Any:
    with LLM(str(tiny_model), dtype="float32", seed=0, max_logprobs=-1, **BLOCKS) as llm:
        yield llm


# Prompt log-probabilities.


@pytest.mark.parametrize("number", [0, 1, 7])
def test_prompt_logprobs_are_those_of_transformers(float32_llm: LLM, reference_logits: np.ndarray, number: int) -> None:
    params = SamplingParams(prompt_logprobs=number, **GREEDY)
    (output,) = float32_llm.generate([PROMPT], params, use_tqdm=False)
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == len(PROMPT) and output.prompt_logprobs[0] is None
    expected = log_softmax(reference_logits)
    for position in range(1, len(PROMPT)):
        entry, row = output.prompt_logprobs[position], expected[position - 1]
        assert entry is not None
        token = PROMPT[position]
        assert list(entry)[0] == token and len(entry) in (max(number, 1), number + 1)
        for token_id, one in entry.items():
            assert one.logprob == pytest.approx(row[token_id], abs=1e-4)
        close = np.abs(row - row[token]) < 1e-4  # neighbours that rounding may put on either side
        better = int((row > row[token] + 1e-4).sum())
        assert entry[token].rank is not None and better + 1 <= entry[token].rank <= better + int(close.sum())
        others = [i for i, one in entry.items() if one.rank is not None and one.rank <= number]
        assert min((row[i] for i in others), default=np.inf) >= np.sort(row)[::-1][:number].min(initial=np.inf) - 1e-4
    assert output.outputs[0].logprobs is None and output.outputs[0].cumulative_logprob is None


def test_prompt_logprobs_is_a_lazy_list_with_text(llm: LLM) -> None:
    (output,) = llm.generate(["Once upon a time"], SamplingParams(prompt_logprobs=2, **GREEDY), use_tqdm=False)
    assert output.prompt_logprobs is not None and output.prompt_token_ids is not None
    assert isinstance(output.prompt_logprobs, list)
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    assert output.prompt_logprobs[0] is None and output.prompt_logprobs[:1] == [None]
    assert output.prompt_logprobs[-1] is output.prompt_logprobs[len(output.prompt_token_ids) - 1]
    entry = output.prompt_logprobs[-1]
    assert entry is not None and all(one.decoded_token is not None for one in entry.values())
    assert list(output.prompt_logprobs)[1:] == output.prompt_logprobs[1:]


def test_prompt_of_one_token_has_one_position(llm: LLM) -> None:
    (output,) = llm.generate([[7]], SamplingParams(prompt_logprobs=2, **GREEDY), use_tqdm=False)
    assert output.prompt_logprobs == [None]


def test_prompt_logprobs_none_when_not_asked_for(llm: LLM) -> None:
    (output,) = llm.generate([PROMPT], SamplingParams(logprobs=1, **GREEDY), use_tqdm=False)
    assert output.prompt_logprobs is None


def test_prompt_logprobs_true_is_one(llm: LLM) -> None:
    assert judge(llm, PROMPT, True) == judge(llm, PROMPT, 1)


def test_prompt_logprobs_do_not_depend_on_sampling(llm: LLM) -> None:
    drawn = judge(llm, PROMPT, temperature=1.5, top_k=3, seed=5, repetition_penalty=1.7, logit_bias={3: 50.0}, n=3)
    assert drawn == judge(llm, PROMPT)


def test_prompt_logprobs_with_and_without_a_prefix_hit(llm: LLM) -> None:
    llm.reset_prefix_cache()
    fresh = judge(llm, PROMPT)
    plain = SamplingParams(**GREEDY)
    assert llm.generate([PROMPT], plain, use_tqdm=False)[0].num_cached_tokens == 32  # now it is in the cache
    (output,) = llm.generate([PROMPT], SamplingParams(prompt_logprobs=3, **GREEDY), use_tqdm=False)
    assert output.num_cached_tokens == 0
    assert entries(output.prompt_logprobs) == fresh
    assert llm.generate([PROMPT], plain, use_tqdm=False)[0].outputs[0].token_ids == output.outputs[0].token_ids


@pytest.mark.parametrize("budget", [1, 7, 16, 44, 45, 128])
def test_prompt_logprobs_have_the_same_bits_in_any_chunks(tiny_model: Path, llm: LLM, budget: int) -> None:
    with LLM(str(tiny_model), max_num_batched_tokens=budget, max_num_seqs=min(budget, 3), **BLOCKS) as chunked:
        assert judge(chunked, PROMPT) == judge(llm, PROMPT)


def test_prompt_logprobs_have_the_same_bits_among_others(llm: LLM) -> None:
    prompts = [PROMPT[:n] for n in (45, 2, 17, 33, 1, 40)]
    asked = [None, 2, 0, 5, 1, 3]
    params = [SamplingParams(prompt_logprobs=number, **GREEDY) for number in asked]
    together = llm.generate(prompts, params, use_tqdm=False)
    for prompt, number, output in zip(prompts, asked, together, strict=True):
        if number is None:
            assert output.prompt_logprobs is None
        else:
            assert entries(output.prompt_logprobs) == judge(llm, prompt, number)


def test_prompt_logprobs_survive_preemption(tiny_model: Path, llm: LLM) -> None:
    """Preempted while it generates, and in the middle of its prompt: what was judged before stays."""
    with LLM(
        str(tiny_model), num_gpu_blocks_override=7, max_model_len=96, max_num_batched_tokens=20, max_num_seqs=3
    ) as poor:
        params = SamplingParams(prompt_logprobs=2, **{**GREEDY, "max_tokens": 40})
        outputs = poor.generate([PROMPT, PROMPT[:40], PROMPT[:30]], params, use_tqdm=False)
        assert poor.stats()["num_preemptions"] > 0
    for output in outputs:
        assert output.prompt_token_ids is not None
        assert entries(output.prompt_logprobs) == judge(llm, output.prompt_token_ids, 2)


def test_prompt_logprobs_in_a_stream(llm: LLM) -> None:
    params = SamplingParams(prompt_logprobs=3, **{**GREEDY, "max_tokens": 3})
    *_, last = llm.stream(PROMPT, params)
    assert last.output is not None and entries(last.output.prompt_logprobs) == judge(llm, PROMPT)
    ((_, output),) = llm.generate_iter([PROMPT], params)
    assert entries(output.prompt_logprobs) == judge(llm, PROMPT)


def test_prompt_logprobs_on_the_emulated_gpu(simt_plugin: Path, tiny_model: Path, float32_llm: LLM) -> None:
    options = {"max_model_len": 64, "max_num_seqs": 4, "max_num_batched_tokens": 16, **BLOCKS}
    with LLM(str(tiny_model), device="simt", dtype="float32", **options) as gpu:
        params = SamplingParams(prompt_logprobs=2, **GREEDY)
        outputs = gpu.generate([PROMPT[:21], PROMPT[:5]], params, use_tqdm=False)
        alone = judge(gpu, PROMPT[:21], 2)
    assert entries(outputs[0].prompt_logprobs) == alone
    for output in outputs:
        assert output.prompt_token_ids is not None
        got, want = entries(output.prompt_logprobs), judge(float32_llm, output.prompt_token_ids, 2)
        assert [[(i, rank) for i, _, rank in entry] for entry in got] == [[(i, r) for i, _, r in e] for e in want]
        np.testing.assert_allclose(
            [value for entry in got for _, value, _ in entry], [v for e in want for _, v, _ in e], atol=1e-4
        )


MEMORY_PROGRAM = """
import json, resource, sys
from quire import LLM, SamplingParams
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
prompt = [(37 * i) % 150000 for i in range(2000)]
llm = LLM(sys.argv[1], skip_tokenizer_init=True, max_num_seqs=64, num_gpu_blocks_override=160, load_format="dummy")
llm.generate([prompt], SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
llm.reset_prefix_cache()
before = peak()
(output,) = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1), use_tqdm=False)
print(json.dumps([peak() - before, len(output.prompt_logprobs)]))
"""


def test_prompt_logprobs_of_a_large_vocabulary_take_little_memory(tmp_path: Path) -> None:
    """All logits of the prompt would be 1.2 GB; those of 64 rows, which a step has room for anyway, are 39 MB."""
    folder = write_llama(
        tmp_path, with_tokenizer=False, vocab_size=152_000, hidden_size=32, head_dim=8, max_position_embeddings=2048
    )
    run = subprocess.run([sys.executable, "-c", MEMORY_PROGRAM, str(folder)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    extra, positions = json.loads(run.stdout)
    assert positions == 2000
    assert extra < 128 << 20


# Limits.


def test_limits_of_logprobs(llm: LLM, float32_llm: LLM) -> None:
    vocab_size = llm.info()["vocab_size"]
    for name, which in (("logprobs", "sample"), ("prompt_logprobs", "prompt")):
        for number, said in ((21, 21), (-1, vocab_size)):
            message = f"Requested {which} logprobs of {said}, which is greater than max allowed: 20"
            params = SamplingParams(**{name: number}, **GREEDY)
            with pytest.raises(ValueError, match=message):
                llm.generate([PROMPT], params, use_tqdm=False)
            with pytest.raises(ValueError, match=message):
                next(iter(llm.stream(PROMPT, params)))
            with pytest.raises(ValueError, match=message):
                next(iter(llm.generate_iter([PROMPT], params)))
            with pytest.raises(ValueError, match=message):
                llm.chat([{"role": "user", "content": "hi"}], params, use_tqdm=False)
            with pytest.raises(ValueError, match=message):
                llm.enqueue([PROMPT], params)
            (output,) = llm.generate([PROMPT], [params], use_tqdm=False, on_error="return")
            assert output.error is not None and message in output.error
        with pytest.raises(ValueError, match=f"Requested {which} logprobs of {vocab_size + 1}, .*: {vocab_size}"):
            float32_llm.generate([PROMPT], SamplingParams(**{name: vocab_size + 1}, **GREEDY), use_tqdm=False)
        with pytest.raises(ValueError, match=f"{name} must be non-negative, got -2."):
            SamplingParams(**{name: -2})


def test_minus_one_is_the_whole_vocabulary(float32_llm: LLM) -> None:
    vocab_size = float32_llm.info()["vocab_size"]
    params = SamplingParams(logprobs=-1, prompt_logprobs=-1, **GREEDY)
    (output,) = float32_llm.generate([PROMPT[:9]], params, use_tqdm=False)
    assert output.prompt_logprobs is not None and output.outputs[0].logprobs is not None
    for entry in [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]:
        assert sorted(entry) == list(range(vocab_size))
        assert sum(np.exp(one.logprob) for one in entry.values()) == pytest.approx(1, abs=1e-4)


# What is reported: logprobs_mode.

SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0, "repetition_penalty": 1.4, "logit_bias": {3: 2.0, 9: -4.0}},
    {"temperature": 0.7, "seed": 3},
    {"temperature": 1.6, "seed": 4, "top_k": 12},
    {"temperature": 0.8, "seed": 5, "top_p": 0.8},
    {"temperature": 1.3, "seed": 6, "min_p": 0.1, "presence_penalty": 0.5},
    {"temperature": 1.1, "seed": 7, "top_k": 30, "top_p": 0.9, "min_p": 0.01, "allowed_token_ids": list(range(5, 200))},
]


def processed(logits: np.ndarray, prompt: list[int], setting: dict[str, Any]) -> np.ndarray:
    """The first output token's logits as they are drawn from, in double precision, written for clarity."""
    x = logits.astype(np.float64).copy()
    if "allowed_token_ids" in setting:
        x[[i for i in range(len(x)) if i not in set(setting["allowed_token_ids"])]] = -np.inf
    for token, bias in setting.get("logit_bias", {}).items():
        x[token] += bias
    for token in set(prompt):
        penalty = setting.get("repetition_penalty", 1.0)
        x[token] = x[token] / penalty if x[token] > 0 else x[token] * penalty
    if setting["temperature"] == 0:
        return x
    x /= setting["temperature"]
    probabilities = np.exp(x - x.max())
    x[probabilities < setting.get("min_p", 0.0)] = -np.inf
    if "top_k" in setting:
        x[x < np.sort(x)[-setting["top_k"]]] = -np.inf
    order = np.argsort(-x, kind="stable")
    mass = np.exp(x[order] - x.max()) / np.exp(x - x.max()).sum()
    if "top_p" in setting:
        x[order[np.cumsum(mass) - mass >= setting["top_p"]]] = -np.inf
    return x


@pytest.fixture(scope="module")
def by_mode(tiny_model: Path) -> Any:
    options = {"dtype": "float32", "seed": 0, "max_logprobs": -1, **BLOCKS}
    modes = ("raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits")
    engines = {mode: LLM(str(tiny_model), logprobs_mode=mode, **options) for mode in modes}
    yield engines
    for engine in engines.values():
        engine.close()


def all_values(llm: LLM, setting: dict[str, Any]) -> tuple[int, np.ndarray]:
    params = SamplingParams(max_tokens=1, ignore_eos=True, logprobs=-1, **setting)
    (output,) = llm.generate([PROMPT], params, use_tqdm=False)
    assert output.outputs[0].logprobs is not None
    (entry,) = output.outputs[0].logprobs
    return output.outputs[0].token_ids[0], np.array([entry[i].logprob for i in range(llm.info()["vocab_size"])])


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_logprobs_mode(by_mode: dict[str, LLM], reference_logits: np.ndarray, setting: dict[str, Any]) -> None:
    logits = reference_logits[-1]
    expected = processed(logits, PROMPT, setting)
    want = {
        "raw_logits": logits,
        "raw_logprobs": log_softmax(logits),
        "processed_logits": expected,
        "processed_logprobs": log_softmax(expected),
    }
    tokens = set()
    for mode, llm in by_mode.items():
        token, values = all_values(llm, setting)
        tokens.add(token)
        np.testing.assert_array_equal(np.isinf(values), np.isinf(want[mode]), err_msg=mode)
        np.testing.assert_allclose(values, want[mode], atol=3e-4, err_msg=mode)
        assert np.isfinite(values[token])
    assert len(tokens) == 1  # what is reported does not change what is drawn


def test_logprobs_mode_of_prompts(by_mode: dict[str, LLM], reference_logits: np.ndarray) -> None:
    """Nothing is drawn, so processed values are the raw ones."""
    for mode, llm in by_mode.items():
        want = reference_logits if mode.endswith("logits") else log_softmax(reference_logits)
        for position, entry in enumerate(judge(llm, PROMPT, 2, temperature=0.5)):
            for token, value, _ in entry:
                assert value == pytest.approx(want[position][token], abs=1e-4), mode


def test_logprobs_mode_on_the_emulated_gpu(simt_plugin: Path, tiny_model: Path, by_mode: dict[str, LLM]) -> None:
    options = {"max_model_len": 64, "max_num_seqs": 2, "dtype": "float32", "max_logprobs": -1, **BLOCKS}
    for mode in ("raw_logits", "processed_logprobs", "processed_logits"):
        with LLM(str(tiny_model), device="simt", logprobs_mode=mode, **options) as gpu:
            for setting in (SETTINGS[1], SETTINGS[6]):
                got, want = all_values(gpu, setting), all_values(by_mode[mode], setting)
                assert got[0] == want[0]
                np.testing.assert_allclose(got[1], want[1], atol=1e-4, err_msg=mode)


def test_unknown_logprobs_mode(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="Invalid logprobs_mode 'cooked'.*raw_logits"):
        LLM(str(tiny_model), logprobs_mode="cooked")
