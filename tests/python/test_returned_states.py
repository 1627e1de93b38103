"""return_hidden_states and return_logits: transformers' values, and the same bits whatever else happens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_llama
from quire import LLM, BeamSearchParams, CompletionOutput, RequestOutput, RequestOutputKind, SamplingParams

sys.path.append(str(Path(__file__).parent / "models"))

PROMPT = [(37 * i + 11) % 300 + 5 for i in range(45)]
BLOCKS = {"num_gpu_blocks_override": 64}
WANTED: dict[str, Any] = {"return_hidden_states": True, "return_logits": True}
DRAWN: dict[str, Any] = {"temperature": 1.0, "seed": 5, "max_tokens": 9, "ignore_eos": True}


def run(llm: LLM, prompt: list[int] = PROMPT, **more: Any) -> RequestOutput:
    (output,) = llm.generate([prompt], SamplingParams(**{**DRAWN, **WANTED, **more}), use_tqdm=False)
    return output


def expect_same_bits(got: RequestOutput, want: RequestOutput) -> None:
    np.testing.assert_array_equal(got.prompt_hidden_states, want.prompt_hidden_states)
    assert [one.token_ids for one in got.outputs] == [one.token_ids for one in want.outputs]
    for a, b in zip(got.outputs, want.outputs, strict=True):
        np.testing.assert_array_equal(a.hidden_states, b.hidden_states)
        np.testing.assert_array_equal(a.logits, b.logits)


def expect_shapes(llm: LLM, output: RequestOutput) -> None:
    info = llm.info()
    assert output.prompt_token_ids is not None
    assert output.prompt_hidden_states.shape == (len(output.prompt_token_ids), info["hidden_size"])
    assert output.prompt_hidden_states.dtype == np.float32
    for completion in output.outputs:
        count = len(completion.token_ids)
        assert completion.hidden_states.shape == (count, info["hidden_size"])
        assert completion.logits.shape == (count, info["vocab_size"])
        assert completion.hidden_states.dtype == completion.logits.dtype == np.float32
        # The last state of the prompt is what the first token was sampled from.
        np.testing.assert_array_equal(completion.hidden_states[0], output.prompt_hidden_states[-1])


@pytest.mark.parametrize(
    "name", ["llama-plain", "qwen3-attention-bias", "gemma2-small-caps", "gpt2-by-layer", "opt-projected"]
)
def test_values_of_transformers(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tiny_checkpoints import CASES, build_model, save_checkpoint

    (case,) = [case for case in CASES if case.name == name]
    prompt = case.prompt()[:20]
    with LLM(str(save_checkpoint(case, tmp_path)), dtype="float32", skip_tokenizer_init=True, **BLOCKS) as llm:
        output = run(llm, prompt, repetition_penalty=1.5, logit_bias={3: 4.0}, top_k=20)
    (completion,) = output.outputs
    with torch.no_grad():
        tokens = torch.tensor([prompt + completion.token_ids[:-1]])
        expected = build_model(case)(tokens, output_hidden_states=True)
    hidden, logits = expected.hidden_states[-1][0].numpy(), expected.logits[0].numpy()
    assert hidden.std() > 1e-2 and hidden.shape[0] == len(prompt) + len(completion.token_ids) - 1
    np.testing.assert_allclose(output.prompt_hidden_states, hidden[: len(prompt)], atol=1e-4)
    np.testing.assert_allclose(completion.hidden_states, hidden[len(prompt) - 1 :], atol=1e-4)
    np.testing.assert_allclose(completion.logits, logits[len(prompt) - 1 :], atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_states_are_those_the_head_reads(tiny_model: Path, dtype: str) -> None:
    """float32 arrays of numbers that the dtype can hold; the logits are not rounded."""
    torch = pytest.importorskip("torch")
    with LLM(str(tiny_model), dtype=dtype, **BLOCKS) as llm:
        output = run(llm)
        expect_shapes(llm, output)
    states = torch.from_numpy(output.prompt_hidden_states)
    assert torch.equal(states, states.to(getattr(torch, dtype)).float())
    (completion,) = output.outputs
    logits = torch.from_numpy(completion.logits)
    assert not torch.equal(logits, logits.to(getattr(torch, dtype)).float())


def test_nothing_unless_asked(llm: LLM) -> None:
    def has(output: RequestOutput) -> list[bool]:
        (completion,) = output.outputs
        each = (output.prompt_hidden_states, completion.hidden_states, completion.logits)
        return [one is not None for one in each]

    assert has(run(llm, return_hidden_states=False, return_logits=False)) == [False, False, False]
    assert has(run(llm, return_logits=False)) == [True, True, False]
    assert has(run(llm, return_hidden_states=False)) == [False, False, True]


def test_wishes_change_no_token(llm: LLM) -> None:
    plain = run(llm, return_hidden_states=False, return_logits=False)
    assert plain.outputs[0].token_ids == run(llm).outputs[0].token_ids


def test_logits_are_raw(llm: LLM) -> None:
    """Before processors, masks, penalties and temperature."""

    def only_seven(output_token_ids: list[int], logits: Any) -> None:
        logits[:] = -np.inf
        logits[7] = 0.0

    changed = run(llm, logits_processors=[only_seven], max_tokens=1, temperature=0.3, presence_penalty=2.0)
    assert changed.outputs[0].token_ids == [7]
    np.testing.assert_array_equal(changed.outputs[0].logits, run(llm).outputs[0].logits[:1])


def test_several_sequences(llm: LLM) -> None:
    output = run(llm, n=3, temperature=2.0)
    expect_shapes(llm, output)
    assert len({tuple(one.token_ids) for one in output.outputs}) == 3
    for index, completion in enumerate(output.outputs):
        alone = run(llm, seed=DRAWN["seed"] + index, temperature=2.0).outputs[0]
        np.testing.assert_array_equal(completion.hidden_states, alone.hidden_states)
        np.testing.assert_array_equal(completion.logits, alone.logits)
    best = run(llm, n=1, best_of=3, temperature=2.0)
    (chosen,) = [one for one in output.outputs if one.token_ids == best.outputs[0].token_ids]
    np.testing.assert_array_equal(best.outputs[0].hidden_states, chosen.hidden_states)


def test_prefix_in_the_cache(llm: LLM) -> None:
    llm.reset_prefix_cache()
    fresh = run(llm)
    plain = SamplingParams(**DRAWN)
    assert llm.generate([PROMPT], plain, use_tqdm=False)[0].num_cached_tokens == 32  # now it is there
    again = run(llm)
    assert again.num_cached_tokens == 0
    expect_same_bits(again, fresh)
    logits_alone = run(llm, return_hidden_states=False)  # need nothing of the prompt
    assert logits_alone.num_cached_tokens == 32
    np.testing.assert_array_equal(logits_alone.outputs[0].logits, fresh.outputs[0].logits)


@pytest.mark.parametrize("budget", [1, 7, 16, 44, 45, 128])
def test_any_chunks(tiny_model: Path, llm: LLM, budget: int) -> None:
    with LLM(str(tiny_model), max_num_batched_tokens=budget, max_num_seqs=min(budget, 3), **BLOCKS) as chunked:
        expect_same_bits(run(chunked), run(llm))


def test_among_others(llm: LLM) -> None:
    prompts = [PROMPT[:n] for n in (45, 2, 17, 33, 1, 40)]
    wishes: list[dict[str, Any]] = [
        {"return_hidden_states": True},
        {},
        WANTED,
        {"return_logits": True, "prompt_logprobs": 1},
        WANTED,
        {"return_hidden_states": True, "prompt_logprobs": 2, "n": 2},
    ]
    together = llm.generate(prompts, [SamplingParams(**DRAWN, **wish) for wish in wishes], use_tqdm=False)
    for prompt, wish, output in zip(prompts, wishes, together, strict=True):
        want = run(llm, prompt, **{"return_hidden_states": False, "return_logits": False, **wish})
        assert (output.prompt_hidden_states is None) == (not wish.get("return_hidden_states"))
        if output.prompt_hidden_states is not None:
            np.testing.assert_array_equal(output.prompt_hidden_states, want.prompt_hidden_states)
        assert output.prompt_logprobs == want.prompt_logprobs
        for a, b in zip(output.outputs, want.outputs, strict=True):
            assert (a.logits is None) == (not wish.get("return_logits"))
            if a.logits is not None:
                np.testing.assert_array_equal(a.logits, b.logits)
            if a.hidden_states is not None:
                np.testing.assert_array_equal(a.hidden_states, b.hidden_states)


def test_preemption(tiny_model: Path, llm: LLM) -> None:
    """While they generate, and in the middle of a prompt: what was given back before stays."""
    with LLM(
        str(tiny_model), num_gpu_blocks_override=7, max_model_len=96, max_num_batched_tokens=20, max_num_seqs=3
    ) as poor:
        params = SamplingParams(**{**DRAWN, **WANTED, "max_tokens": 40})
        outputs = poor.generate([PROMPT, PROMPT[:40], PROMPT[:30]], params, use_tqdm=False)
        assert poor.stats()["num_preemptions"] > 0
    for output in outputs:
        assert output.prompt_token_ids is not None
        expect_same_bits(output, run(llm, output.prompt_token_ids, max_tokens=40))


def test_with_the_end_of_a_stream(llm: LLM) -> None:
    want = run(llm)
    *before, last = llm.stream(PROMPT, SamplingParams(**DRAWN, **WANTED))
    assert last.output is not None and all(chunk.output is None for chunk in before)
    expect_same_bits(last.output, want)
    whole: RequestOutput | None = None
    for _, output in llm.generate_iter(
        [PROMPT], SamplingParams(**DRAWN, **WANTED), output_kind=RequestOutputKind.DELTA
    ):
        assert (output.prompt_hidden_states is not None) == output.finished
        if whole is None:
            whole = output
        else:
            whole.add(output)
    assert whole is not None
    expect_same_bits(whole, want)


def test_a_cancelled_stream_leaves_nothing(llm: LLM) -> None:
    want = run(llm)
    stream = llm.stream(PROMPT, SamplingParams(**{**DRAWN, **WANTED, "max_tokens": 100}))
    next(iter(stream))
    stream.close()  # type: ignore[attr-defined]
    expect_same_bits(run(llm), want)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_on_the_emulated_gpu(simt_plugin: Path, tiny_model: Path, asynchronous: bool) -> None:
    """From device rows, planned ahead or not; beside requests whose steps would be replayed from graphs."""
    options = {"max_model_len": 64, "max_num_seqs": 4, "max_num_batched_tokens": 16, "dtype": "float32", **BLOCKS}
    more: dict[str, Any] = {"max_tokens": 4}
    with LLM(str(tiny_model), dtype="float32", **BLOCKS) as cpu:
        want = [run(cpu, PROMPT[:n], n=2, **more) for n in (21, 5)]
    with LLM(str(tiny_model), device="simt", async_scheduling=asynchronous, **options) as gpu:
        plain = SamplingParams(**{**DRAWN, "max_tokens": 8})
        wished = SamplingParams(**{**DRAWN, **WANTED, **more, "n": 2})
        prompts = [PROMPT[:21], PROMPT[:5], PROMPT[:9]]
        together = gpu.generate(prompts, [wished, wished, plain], use_tqdm=False)
        alone = run(gpu, PROMPT[:21], n=2, **more)
        assert gpu.generate([PROMPT[:9]], plain, use_tqdm=False)[0].outputs == together[2].outputs
        expect_shapes(gpu, alone)
    expect_same_bits(together[0], alone)
    for got, expected in zip(together, want, strict=False):
        assert [one.token_ids for one in got.outputs] == [one.token_ids for one in expected.outputs]
        np.testing.assert_allclose(got.prompt_hidden_states, expected.prompt_hidden_states, atol=1e-4)
        for a, b in zip(got.outputs, expected.outputs, strict=True):
            np.testing.assert_allclose(a.hidden_states, b.hidden_states, atol=1e-4)
            np.testing.assert_allclose(a.logits, b.logits, atol=1e-4)


def test_more_prompt_than_rows_of_logits(tmp_path: Path) -> None:
    """Hidden states of a step are normed a few rows at a time, in the room that the step's logits have."""
    folder = write_llama(tmp_path, with_tokenizer=False, max_position_embeddings=256)
    prompt = [(37 * i) % 300 + 5 for i in range(200)]
    options: dict[str, Any] = {"skip_tokenizer_init": True, "num_gpu_blocks_override": 32}
    with LLM(str(folder), max_num_seqs=64, **options) as many, LLM(str(folder), max_num_seqs=1, **options) as one:
        expect_same_bits(run(one, prompt), run(many, prompt))


@pytest.mark.parametrize("name", ["return_hidden_states", "return_logits"])
def test_refusals(llm: LLM, name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a bool, got int"):
        SamplingParams(**{name: 1})
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        BeamSearchParams(beam_width=2, max_tokens=2, **{name: True})


def test_outputs_still_compare(llm: LLM) -> None:
    a, b = run(llm).outputs[0], run(llm).outputs[0]
    assert a == b and isinstance(a, CompletionOutput)
