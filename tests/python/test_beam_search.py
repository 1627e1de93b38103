"""LLM.beam_search: against transformers' beam search where the two are the same search, else against vLLM's loop
written out on transformers' log-probabilities; and that nothing but the prompt and the parameters decides."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import DEMO, load_reference, write_llama
from quire import LLM, BeamSearchOutput, BeamSearchParams, SamplingParams

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROMPTS = [
    [7, 301, 22, 95, 180, 44, 9],
    [12],
    list(range(40, 73)),
    [300, 5, 300, 5, 300, 5, 300, 5, 300, 5, 300, 5, 2, 8, 1, 4],
]


def tokens_prompts(prompts: list[list[int]]) -> list[dict[str, list[int]]]:
    return [{"prompt_token_ids": ids} for ids in prompts]


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> Any:
    return load_reference(tiny_model)


@pytest.fixture(scope="module")
def demo() -> Any:
    with LLM("quire/demo", dtype="float32", max_model_len=256, num_gpu_blocks_override=400) as engine:
        yield engine


def hf_beams(model: Any, ids: list[int], width: int, length: int, penalty: float) -> list[tuple[list[int], float]]:
    with torch.no_grad():
        found = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=length,
            length_penalty=penalty,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
    scores = found.sequences_scores.tolist() if found.sequences_scores is not None else [math.nan] * width
    return list(zip(found.sequences.tolist(), scores, strict=True))


def assert_same_beams(
    output: BeamSearchOutput, expected: list[tuple[list[int], float]], num_prompt: int, penalty: float
) -> None:
    assert len(output.sequences) == len(expected)
    for sequence, (tokens, score) in zip(output.sequences, expected, strict=True):
        assert sequence.tokens == tokens
        length = len(tokens) - num_prompt
        if not math.isnan(score):
            assert sequence.cum_logprob / length**penalty == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("width", [2, 3, 8, 64])
@pytest.mark.parametrize("penalty", [1.0, 0.0])
def test_without_stop_tokens_it_is_the_beam_search_of_transformers(
    llm: LLM, reference: Any, width: int, penalty: float
) -> None:
    params = BeamSearchParams(width, 12, ignore_eos=True, length_penalty=penalty, length_includes_prompt=False)
    outputs = llm.beam_search(tokens_prompts(PROMPTS), params)
    for ids, output in zip(PROMPTS, outputs, strict=True):
        assert_same_beams(output, hf_beams(reference, ids, width, 12, penalty), len(ids), penalty)


def test_the_demo_model_finds_what_transformers_finds(demo: LLM) -> None:
    model = load_reference(DEMO)
    tokenizer = demo.get_tokenizer()
    text = "Once upon a time"
    (output,) = demo.beam_search(
        [{"prompt": text}], BeamSearchParams(4, 40, ignore_eos=True, length_includes_prompt=False)
    )
    ids = tokenizer(text)["input_ids"]
    assert_same_beams(output, hf_beams(model, ids, 4, 40, 1.0), len(ids), 1.0)
    assert output.sequences[0].text == tokenizer.decode(output.sequences[0].tokens)
    assert text in str(output.sequences[0].text)


def vllm_loop(
    model: Any, ids: list[int], width: int, max_tokens: int, stop: set[int], penalty: float, with_prompt: bool
) -> list[tuple[list[int], float]]:
    """vLLM's LLM.beam_search, by whole sequences."""

    def score(beam: tuple[list[int], float]) -> float:
        tokens, total = beam
        length = len(tokens) - (1 if tokens[-1] in stop else 0) if with_prompt else len(tokens) - len(ids)
        return total / length**penalty

    num_candidates = max(2, 1 + len(stop)) * width
    beams, completed = [(list(ids), 0.0)], []
    for _ in range(max_tokens):
        if not beams:
            break
        with torch.no_grad():
            logits = model(torch.tensor([tokens for tokens, _ in beams])).logits[:, -1]
        best = torch.log_softmax(logits.float(), -1).topk(num_candidates, sorted=True)
        longer = []
        for (tokens, total), logprobs, token_ids in zip(
            beams, best.values.tolist(), best.indices.tolist(), strict=True
        ):
            for logprob, token in zip(logprobs, token_ids, strict=True):
                beam = ([*tokens, token], total + logprob)
                (completed if token in stop else longer).append(beam)
        beams = sorted(longer, key=score, reverse=True)[:width]
    return sorted(completed + beams, key=score, reverse=True)[:width]


@pytest.mark.parametrize("with_prompt", [True, False])
@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0, -0.5])
def test_stop_tokens_and_both_lengths(llm: LLM, reference: Any, penalty: float, with_prompt: bool) -> None:
    for ids in PROMPTS:
        # Tokens that a search meets: so that sequences do end.
        (free,) = llm.beam_search(tokens_prompts([ids]), BeamSearchParams(4, 8, ignore_eos=True))
        met = [token for sequence in free.sequences for token in sequence.tokens[len(ids) :]]
        stop = sorted({met[3], met[-2]})
        params = BeamSearchParams(
            4,
            10,
            ignore_eos=True,
            length_penalty=penalty,
            stop_token_ids=stop,
            length_includes_prompt=with_prompt,
        )
        (output,) = llm.beam_search(tokens_prompts([ids]), params)
        expected = vllm_loop(reference, ids, 4, 10, set(stop), penalty, with_prompt)
        assert [sequence.tokens for sequence in output.sequences] == [tokens for tokens, _ in expected]
        for sequence, (_, total) in zip(output.sequences, expected, strict=True):
            assert sequence.cum_logprob == pytest.approx(total, abs=1e-4)


def test_the_end_of_sequence_ends_a_sequence_unless_ignored(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "never-ends", eos_token_id=None)
    reference = load_reference(folder)
    with LLM(str(folder), skip_tokenizer_init=True, num_gpu_blocks_override=128) as llm:
        (free,) = llm.beam_search(tokens_prompts(PROMPTS[:1]), BeamSearchParams(4, 8, ignore_eos=True))
    eos = free.sequences[0].tokens[len(PROMPTS[0]) + 2]
    folder = write_llama(tmp_path / "ends", eos_token_id=eos)
    with LLM(str(folder), skip_tokenizer_init=True, num_gpu_blocks_override=128) as llm:
        (output,) = llm.beam_search(tokens_prompts(PROMPTS[:1]), BeamSearchParams(4, 8))
        expected = vllm_loop(reference, PROMPTS[0], 4, 8, {eos}, 1.0, True)
        assert [sequence.tokens for sequence in output.sequences] == [tokens for tokens, _ in expected]
        assert any(sequence.tokens[-1] == eos for sequence in output.sequences)
        assert all(sequence.text is None for sequence in output.sequences)
        (ignored,) = llm.beam_search(tokens_prompts(PROMPTS[:1]), BeamSearchParams(4, 8, ignore_eos=True))
        assert ignored == free


def test_logprobs_are_the_candidates_of_each_token(llm: LLM) -> None:
    (output,) = llm.beam_search(tokens_prompts(PROMPTS[:1]), BeamSearchParams(3, 6, ignore_eos=True))
    for sequence in output.sequences:
        generated = sequence.tokens[len(PROMPTS[0]) :]
        assert len(sequence.logprobs) == len(generated) == 6
        chosen = [entry[token].logprob for entry, token in zip(sequence.logprobs, generated, strict=True)]
        assert sum(chosen) == pytest.approx(sequence.cum_logprob)
        for entry, token in zip(sequence.logprobs, generated, strict=True):
            assert len(entry) == 6
            assert sorted(one.rank for one in entry.values() if one.rank) == [1, 2, 3, 4, 5, 6]
            better = [one for one in entry.values() if one.logprob > entry[token].logprob]
            assert entry[token].rank == 1 + len(better)
        assert (sequence.finish_reason, sequence.stop_reason) == (None, None)


def same_bits(one: list[BeamSearchOutput], other: list[BeamSearchOutput]) -> bool:
    def plain(outputs: list[BeamSearchOutput]) -> list[Any]:
        return [[(s.tokens, s.cum_logprob, list(s.logprobs)) for s in output.sequences] for output in outputs]

    return plain(one) == plain(other)


OPTIONS: list[dict[str, Any]] = [
    {"enable_prefix_caching": False},
    {"block_size": 32},
    {"max_num_seqs": 3},  # fewer places than beams
    {"num_gpu_blocks_override": 4, "max_model_len": 64},  # blocks for one sequence
    {"max_num_batched_tokens": 5, "max_num_seqs": 5},  # beams of a request in several steps
]


@pytest.mark.parametrize("options", OPTIONS, ids=[" ".join(options) for options in OPTIONS])
def test_memory_and_budgets_do_not_change_results(tiny_model: Path, llm: LLM, options: dict[str, Any]) -> None:
    params = BeamSearchParams(6, 20, stop_token_ids=[3, 50, 51, 52], length_penalty=0.7)
    expected = llm.beam_search(tokens_prompts(PROMPTS), params)
    with LLM(str(tiny_model), **{"num_gpu_blocks_override": 512, **options}) as other:
        assert same_bits(expected, other.beam_search(tokens_prompts(PROMPTS), params))
        assert same_bits(expected, other.beam_search(tokens_prompts(PROMPTS), params))  # with what is cached now
        assert same_bits(expected, other.beam_search(tokens_prompts(PROMPTS), params, concurrency_limit=1))
        stats = other.stats()
        assert stats["num_running"] == stats["num_waiting"] == 0
        assert stats["num_free_blocks"] + stats["num_cached_blocks"] == stats["num_blocks"]
        if "max_model_len" in options:
            assert stats["num_preemptions"] > 0
        assert other.reset_prefix_cache()


def test_batch_mates_do_not_change_results(llm: LLM) -> None:
    params = BeamSearchParams(5, 16, ignore_eos=True)
    alone = [llm.beam_search(tokens_prompts([ids]), params)[0] for ids in PROMPTS]
    assert same_bits(alone, llm.beam_search(tokens_prompts(PROMPTS), params))
    # Beside requests that sample, which do not change either.
    drawn = SamplingParams(temperature=1.0, seed=1, max_tokens=60, ignore_eos=True, repetition_penalty=1.1)
    mates = [{"prompt_token_ids": [i + 3, 9]} for i in range(6)]
    before = [output.outputs[0].token_ids for output in llm.generate(mates, drawn, use_tqdm=False)]
    llm.enqueue(mates, drawn)
    assert same_bits(alone, llm.beam_search(tokens_prompts(PROMPTS), params))
    after = [output.outputs[0].token_ids for output in llm.wait_for_completion(use_tqdm=False)]
    assert after == before


def test_the_prompt_is_computed_once(tiny_model: Path) -> None:
    with LLM(str(tiny_model), num_gpu_blocks_override=128, enable_prefix_caching=False) as llm:
        before = llm.stats()
        llm.beam_search(tokens_prompts([PROMPTS[2]]), BeamSearchParams(8, 10, ignore_eos=True))
        after = llm.stats()
    assert after["num_steps"] - before["num_steps"] == 10  # all beams in one batch, one step a token
    assert after["generated_tokens"] - before["generated_tokens"] == 1 + 9 * 8
    assert after["num_preemptions"] == 0


def test_the_end_of_the_context_ends_the_search(tiny_model: Path, reference: Any) -> None:
    with LLM(str(tiny_model), num_gpu_blocks_override=64, max_model_len=16) as llm:
        (output,) = llm.beam_search(tokens_prompts([PROMPTS[0]]), BeamSearchParams(3, 100, ignore_eos=True))
    assert [len(sequence.tokens) for sequence in output.sequences] == [16] * 3
    expected = hf_beams(reference, PROMPTS[0], 3, 9, 1.0)
    assert [sequence.tokens for sequence in output.sequences] == [tokens for tokens, _ in expected]


def test_more_beams_than_tokens(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "few", with_tokenizer=False, vocab_size=6, eos_token_id=None)
    reference = load_reference(folder)
    with LLM(str(folder), skip_tokenizer_init=True, num_gpu_blocks_override=64) as llm:
        (output,) = llm.beam_search(tokens_prompts([[1, 2]]), BeamSearchParams(10, 3, ignore_eos=True))
    logprobs: dict[tuple[int, ...], float] = {(): 0.0}
    for _ in range(3):  # all there are: the first step keeps 6, the second 10 of 36
        longer: dict[tuple[int, ...], float] = {}
        for tokens, total in logprobs.items():
            with torch.no_grad():
                row = torch.log_softmax(reference(torch.tensor([[1, 2, *tokens]])).logits[0, -1].float(), -1)
            longer.update({(*tokens, token): total + row[token].item() for token in range(6)})
        logprobs = dict(sorted(longer.items(), key=lambda item: -item[1])[:10])
    assert [tuple(sequence.tokens[2:]) for sequence in output.sequences] == list(logprobs)


def test_several_prompts_texts_and_progress(llm: LLM) -> None:
    bars: list[Any] = []

    class Bar:
        def __init__(self, total: int, **_: Any) -> None:
            self.total, self.done, self.postfix = total, 0, ""
            bars.append(self)

        def update(self, count: int) -> None:
            self.done += count

        def close(self) -> None:
            pass

    prompts = [{"prompt": "The dog"}, {"prompt_token_ids": [5, 6]}]
    outputs = llm.beam_search(prompts, BeamSearchParams(2, 5), use_tqdm=Bar, concurrency_limit=1)
    assert (bars[0].total, bars[0].done) == (2, 2)
    tokenizer = llm.get_tokenizer()
    for output in outputs:
        assert len(output.sequences) == 2
        for sequence in output.sequences:
            assert sequence.text == tokenizer.decode(sequence.tokens)
    assert str(outputs[0].sequences[0].text).startswith("<|begin|>The dog")
    (bare,) = llm.beam_search(prompts[:1], BeamSearchParams(2, 5, skip_special_tokens=True))
    assert "<|begin|>" not in str(bare.sequences[0].text)
    assert llm.beam_search([], BeamSearchParams(2, 5)) == []


def test_temperature_changes_nothing_and_says_so(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    cold = llm.beam_search(tokens_prompts(PROMPTS[:1]), BeamSearchParams(3, 8))
    assert "temperature" not in caplog.text
    warm = llm.beam_search(tokens_prompts(PROMPTS[:1]), BeamSearchParams(3, 8, temperature=0.9))
    assert same_bits(cold, warm)
    assert "temperature=0.9 changes nothing" in caplog.text


GOOD = {"prompt_token_ids": [1, 2]}


@pytest.mark.parametrize(
    ("prompts", "params", "error", "message"),
    [
        (
            ["text"],
            BeamSearchParams(2, 2),
            TypeError,
            r"beam_search takes TextPrompts and TokensPrompts.*got str \(prompt 0\)",
        ),
        ("text", BeamSearchParams(2, 2), TypeError, "got str"),
        ([GOOD, [1, 2]], BeamSearchParams(2, 2), TypeError, r"got list \(prompt 1\)"),
        ([GOOD], SamplingParams(), TypeError, "params must be BeamSearchParams, got SamplingParams"),
        ([GOOD], None, TypeError, "params must be BeamSearchParams, got NoneType"),
        ([GOOD], BeamSearchParams(0, 2), ValueError, r"beam_width must be in \[1, 1024\], got 0"),
        ([GOOD], BeamSearchParams(2000, 2), ValueError, r"beam_width must be in \[1, 1024\], got 2000"),
        ([GOOD], BeamSearchParams(10**12, 2), ValueError, "beam_width must be in"),
        ([GOOD], BeamSearchParams(2.0, 2), ValueError, "beam_width must be an int"),  # type: ignore[arg-type]
        ([GOOD], BeamSearchParams(True, 2), ValueError, "beam_width must be an int"),
        ([GOOD], BeamSearchParams(2, 0), ValueError, "max_tokens must be at least 1, got 0"),
        ([GOOD], BeamSearchParams(2, None), ValueError, "max_tokens must be an int"),  # type: ignore[arg-type]
        ([GOOD], BeamSearchParams(2, 2, temperature=-1.0), ValueError, "temperature must be non-negative, got -1.0"),
        ([GOOD], BeamSearchParams(2, 2, length_penalty=math.nan), ValueError, "length_penalty must be a finite number"),
        ([GOOD], BeamSearchParams(2, 2, stop_token_ids=[10**6]), ValueError, "out of vocabulary"),
        ([GOOD], BeamSearchParams(2, 2, stop_token_ids=["a"]), TypeError, "stop_token_ids must be a list of integers"),  # type: ignore[list-item]
        ([GOOD], BeamSearchParams(2, 2, watermarking={}), NotImplementedError, "BeamSearchParams.watermarking"),
        ([GOOD, {"prompt_token_ids": []}], BeamSearchParams(2, 2), ValueError, r"cannot be empty \(prompt 1\)"),
        ([{"prompt_token_ids": [10**6]}], BeamSearchParams(2, 2), ValueError, "out of vocabulary"),
        (
            [{"prompt_token_ids": [1] * 5000}],
            BeamSearchParams(2, 2),
            ValueError,
            "longer than the maximum model length",
        ),
        ([{"text": "a"}], BeamSearchParams(2, 2), TypeError, "needs the key 'prompt' or 'prompt_token_ids'"),
    ],
)
def test_bad_input(llm: LLM, prompts: Any, params: Any, error: type[Exception], message: str) -> None:
    before = llm.stats()["num_steps"]
    with pytest.raises(error, match=message):
        llm.beam_search(prompts, params)
    stats = llm.stats()
    assert stats["num_steps"] == before and stats["num_waiting"] == stats["num_running"] == 0


def test_the_core_has_every_field_that_python_sends() -> None:
    from quire import _quire
    from quire.beam_search import compile_params
    from quire.requests import Limits

    limits = Limits(vocab_size=100, max_model_len=64, max_logprobs=20, eos_token_ids=frozenset({1}))
    compiled = compile_params(BeamSearchParams(2, 2), None, limits)
    assert set(compiled.engine) == {name for name, _ in _quire.beam_search_param_fields()}


def test_bad_calls(llm: LLM, tiny_model: Path) -> None:
    params = BeamSearchParams(2, 2)
    with pytest.raises(ValueError, match="concurrency_limit must be a positive integer"):
        llm.beam_search([GOOD], params, concurrency_limit=0)
    with pytest.raises(ValueError, match="LoRA is not enabled"):
        llm.beam_search([GOOD], params, lora_request=object())
    with pytest.raises(NotImplementedError, match=r"beam_search\(priority=1\)"):
        llm.beam_search([GOOD], params, priority=[1])
    closed = LLM(str(tiny_model), num_gpu_blocks_override=64)
    closed.close()
    with pytest.raises(RuntimeError, match="closed"):
        closed.beam_search([GOOD], params)


def test_an_interrupted_search_leaves_nothing(llm: LLM) -> None:
    class Stop(Exception):
        pass

    class Bar:
        def __init__(self, **_: Any) -> None:
            self.postfix = ""

        def update(self, _: int) -> None:
            raise Stop

        def close(self) -> None:
            pass

    long = [GOOD, {"prompt_token_ids": [9] * 100}]
    with pytest.raises(Stop):
        llm.beam_search([*long, *long], BeamSearchParams(4, 100), use_tqdm=Bar)
    stats = llm.stats()
    assert stats["num_running"] == stats["num_waiting"] == 0
    assert stats["num_free_blocks"] + stats["num_cached_blocks"] == stats["num_blocks"]


def test_on_an_asynchronous_device(tiny_model: Path, llm: LLM, simt_plugin: Path) -> None:
    params = BeamSearchParams(3, 8, ignore_eos=True)
    expected = llm.beam_search(tokens_prompts(PROMPTS[:2]), params)
    options: dict[str, Any] = {"device": "simt", "max_model_len": 64, "max_num_seqs": 8, "block_size": 16}
    with LLM(str(tiny_model), **options, num_gpu_blocks_override=32) as device:
        found = device.beam_search(tokens_prompts(PROMPTS[:2]), params)
        mates = [{"prompt_token_ids": [i + 3, 9]} for i in range(3)]
        drawn = SamplingParams(temperature=1.0, seed=1, max_tokens=12, ignore_eos=True)
        before = [output.outputs[0].token_ids for output in device.generate(mates, drawn, use_tqdm=False)]
        device.enqueue(mates, drawn)
        assert same_bits(found, device.beam_search(tokens_prompts(PROMPTS[:2]), params))
        assert [output.outputs[0].token_ids for output in device.wait_for_completion(use_tqdm=False)] == before
    with LLM(str(tiny_model), **options, num_gpu_blocks_override=4) as device:  # blocks for one sequence
        assert same_bits(found, device.beam_search(tokens_prompts(PROMPTS[:2]), params))
    for one, other in zip(found, expected, strict=True):
        assert [sequence.tokens for sequence in one.sequences] == [sequence.tokens for sequence in other.sequences]
        totals = [[sequence.cum_logprob for sequence in output.sequences] for output in (one, other)]
        np.testing.assert_allclose(totals[0], totals[1], atol=1e-3)
