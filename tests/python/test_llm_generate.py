"""LLM.generate on a real engine: prompts in, outputs in order, parameters obeyed, log-probabilities consistent."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_llama
from quire import LLM, RequestOutput, SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
PROMPTS = ["Once upon a time", "The dog", "One day the cat said", "A"]


def ids_of(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def test_every_kind_of_prompt(llm: LLM) -> None:
    tokenizer = llm.get_tokenizer()
    ids = tokenizer.encode(PROMPTS[0])
    kinds: list[Any] = [
        PROMPTS[0],
        {"prompt": PROMPTS[0]},
        {"prompt_token_ids": ids},
        {"prompt_token_ids": ids, "prompt": PROMPTS[0]},
        ids,
        np.array(ids),
        tuple(ids),
    ]
    outputs = llm.generate(kinds, GREEDY, use_tqdm=False)
    assert all(one == ids_of(outputs)[0] for one in ids_of(outputs))
    assert [output.prompt for output in outputs] == [PROMPTS[0], PROMPTS[0], None, None, None, None, None]
    assert all(output.prompt_token_ids == ids for output in outputs)
    for kind in kinds:
        assert ids_of(llm.generate(kind, GREEDY, use_tqdm=False)) == ids_of(outputs)[:1]
    assert llm.generate([], GREEDY) == []


def test_outputs_are_complete(llm: LLM) -> None:
    first = next(iter(llm.generate(PROMPTS[:1], GREEDY, use_tqdm=False)))
    (output, other) = llm.generate(PROMPTS[:2], GREEDY, use_tqdm=False)
    assert int(output.request_id) == int(first.request_id) + 1 == int(other.request_id) - 1
    assert output.finished and output.error is None and output.prompt_logprobs is None
    assert isinstance(output.num_cached_tokens, int)
    (completion,) = output.outputs
    assert completion.index == 0 and completion.finish_reason == "length" and completion.stop_reason is None
    assert completion.logprobs is None and completion.cumulative_logprob is None
    assert isinstance(completion.token_ids, list) and len(completion.token_ids) == 12
    metrics = output.metrics
    assert metrics is not None and metrics.first_scheduled_time and metrics.first_token_time and metrics.finished_time
    assert metrics.arrival_time <= metrics.first_scheduled_time <= metrics.first_token_time
    assert metrics.first_token_time <= metrics.last_token_time <= metrics.finished_time
    assert metrics.time_in_queue is not None and metrics.time_in_queue >= 0


def test_order_of_many(llm: LLM) -> None:
    params = [SamplingParams(temperature=0, max_tokens=1 + i % 7, ignore_eos=True) for i in range(40)]
    outputs = llm.generate([[2 + i, 3, 4] for i in range(40)], params, use_tqdm=False)
    assert [output.prompt_token_ids[0] for output in outputs if output.prompt_token_ids] == [2 + i for i in range(40)]
    assert [len(one) for one in ids_of(outputs)] == [1 + i % 7 for i in range(40)]


def test_text_is_what_the_tokenizer_decodes(llm: LLM) -> None:
    tokenizer = llm.get_tokenizer()
    for output in llm.generate(PROMPTS, GREEDY, use_tqdm=False):
        prompt_ids, completion = output.prompt_token_ids, output.outputs[0]
        assert prompt_ids is not None
        whole = tokenizer.decode(prompt_ids + completion.token_ids, skip_special_tokens=True)
        expected = whole[len(tokenizer.decode(prompt_ids, skip_special_tokens=True)) :]
        assert completion.text == expected.rstrip("\ufffd") or expected.startswith(completion.text)
    (silent,) = llm.generate(PROMPTS[0], SamplingParams(detokenize=False), use_tqdm=False)
    assert silent.outputs[0].text == "" and silent.outputs[0].token_ids


def test_max_tokens_none_and_beyond_the_context(tiny_model: Path) -> None:
    with LLM(str(tiny_model), max_model_len=32) as llm:
        for max_tokens in (None, 1000):
            params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
            (output,) = llm.generate([[5, 6, 7]], params, use_tqdm=False)
            assert len(output.outputs[0].token_ids) == 29 and output.outputs[0].finish_reason == "length"


def test_n_sequences(llm: LLM) -> None:
    params = SamplingParams(n=4, temperature=1.5, seed=3, max_tokens=10, ignore_eos=True)
    (output,) = llm.generate(PROMPTS[0], params, use_tqdm=False)
    assert [completion.index for completion in output.outputs] == [0, 1, 2, 3]
    assert len({tuple(completion.token_ids) for completion in output.outputs}) > 1
    alone = [
        llm.generate(
            PROMPTS[0], SamplingParams(temperature=1.5, seed=3 + i, max_tokens=10, ignore_eos=True), use_tqdm=False
        )
        for i in range(4)
    ]
    assert [completion.token_ids for completion in output.outputs] == [ids_of(one)[0] for one in alone]


def test_seeds(llm: LLM) -> None:
    seeded = SamplingParams(temperature=1.0, seed=5, max_tokens=16, ignore_eos=True)
    free = SamplingParams(temperature=1.0, max_tokens=16, ignore_eos=True)
    (one,), (two,) = (ids_of(llm.generate(PROMPTS[0], seeded, use_tqdm=False)) for _ in range(2))
    assert one == two
    draws = {tuple(ids_of(llm.generate(PROMPTS[0], free, use_tqdm=False))[0]) for _ in range(4)}
    assert len(draws) == 4


def test_engine_seed_repeats_and_none_does_not(tiny_model: Path) -> None:
    params = SamplingParams(temperature=1.0, max_tokens=16, ignore_eos=True)

    def draw(seed: int | None) -> list[list[int]]:
        with LLM(str(tiny_model), seed=seed) as llm:
            return ids_of(llm.generate(PROMPTS, params, use_tqdm=False))

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(None) != draw(None)


def test_global_random_state_is_untouched(tiny_model: Path) -> None:
    import random

    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    with LLM(str(tiny_model), seed=0) as llm:
        llm.generate("a", use_tqdm=False)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[index]


@pytest.mark.parametrize("num_logprobs", [0, 1, 5])
def test_logprobs(llm: LLM, num_logprobs: int) -> None:
    params = SamplingParams(temperature=1.3, seed=1, max_tokens=8, logprobs=num_logprobs, ignore_eos=True)
    (output,) = llm.generate(PROMPTS[0], params, use_tqdm=False)
    completion = output.outputs[0]
    assert completion.logprobs is not None and len(completion.logprobs) == len(completion.token_ids) == 8
    for token_id, entry in zip(completion.token_ids, completion.logprobs, strict=True):
        sampled = entry[token_id]
        assert list(entry)[0] == token_id and len(entry) in (max(num_logprobs, 1), num_logprobs + 1)
        assert sampled.rank is not None and sampled.rank >= 1 and sampled.logprob <= 0
        others = [one for other, one in entry.items() if other != token_id]
        assert [one.rank for one in others] == sorted(one.rank or 0 for one in others)
        assert [one.logprob for one in others] == sorted((one.logprob for one in others), reverse=True)
        if sampled.rank <= num_logprobs:
            assert len(entry) == num_logprobs
        assert all(isinstance(one.decoded_token, str) for one in entry.values())
    total = sum(entry[i].logprob for i, entry in zip(completion.token_ids, completion.logprobs, strict=True))
    assert completion.cumulative_logprob == pytest.approx(total, abs=1e-4)


def test_whole_vocabulary_sums_to_one(tiny_model: Path) -> None:
    with LLM(str(tiny_model), max_logprobs=-1) as llm:
        size = llm.info()["vocab_size"]
        params = SamplingParams(temperature=0, max_tokens=2, logprobs=size, ignore_eos=True)
        (output,) = llm.generate(PROMPTS[0], params, use_tqdm=False)
        for entry in output.outputs[0].logprobs or []:
            assert len(entry) == size
            assert math.fsum(math.exp(one.logprob) for one in entry.values()) == pytest.approx(1, abs=1e-4)


def test_raw_logprobs_do_not_depend_on_temperature(llm: LLM) -> None:
    def first(temperature: float, **more: Any) -> dict[int, float]:
        params = SamplingParams(temperature=temperature, seed=0, max_tokens=1, logprobs=5, **more)
        (output,) = llm.generate(PROMPTS[0], params, use_tqdm=False)
        assert output.outputs[0].logprobs
        return {i: one.logprob for i, one in output.outputs[0].logprobs[0].items() if one.rank and one.rank <= 5}

    assert len(first(0.0)) == 5
    assert first(0.0) == first(2.0) == first(2.0, top_k=3)


def test_choices_of_tokens(llm: LLM) -> None:
    def run(**fields: Any) -> list[int]:
        params = SamplingParams(**{"temperature": 0, "max_tokens": 6, "ignore_eos": True, **fields})
        return ids_of(llm.generate(PROMPTS[0], params, use_tqdm=False))[0]

    greedy = run()
    assert set(run(allowed_token_ids=[40, 41])) <= {40, 41}
    assert run(logit_bias={99: 100.0}) == [99] * 6
    assert run(logit_bias={greedy[0]: -100.0})[0] != greedy[0]
    assert (
        run(temperature=1.0, top_k=1) == run(temperature=1.0, top_p=1e-6) == run(temperature=1.0, min_p=1.0) == greedy
    )


def test_penalties(flat: LLM) -> None:
    """Token 99 is wanted by 3, then 98 by 2 and 97 by 1; all else is at zero."""

    def run(**fields: Any) -> list[int]:
        bias = {99: 3.0, 98: 2.0, 97: 1.0}
        params = SamplingParams(**{"temperature": 0, "max_tokens": 4, "ignore_eos": True, "logit_bias": bias, **fields})
        return ids_of(flat.generate("The", params, use_tqdm=False))[0]

    assert run() == [99] * 4
    assert run(presence_penalty=1.5) == [99, 98, 99, 99]
    assert run(frequency_penalty=1.5) == [99, 98, 99, 97]
    assert run(repetition_penalty=10.0) == [99, 98, 97, 99]
    assert run(presence_penalty=-2.0) == [99] * 4


def test_bad_words(llm: LLM) -> None:
    tokenizer = llm.get_tokenizer()
    (word,) = tokenizer.encode(" dog", add_special_tokens=False)
    wanted = {"temperature": 0, "max_tokens": 4, "logit_bias": {word: 100.0}}
    (output,) = llm.generate("The", SamplingParams(**wanted), use_tqdm=False)
    assert output.outputs[0].token_ids == [word] * 4
    (output,) = llm.generate("The", SamplingParams(**wanted, bad_words=[" dog"]), use_tqdm=False)
    plain = tokenizer.encode("dog", add_special_tokens=False)
    banned = word not in output.outputs[0].token_ids
    assert banned == (len(plain) == 1 and plain[0] != word)


def test_end_of_sequence(llm: LLM) -> None:
    """The tokenizer's EOS is id 1; the text never shows it, token_ids keep it, stop_reason says nothing of it."""
    always_eos = {"temperature": 0, "max_tokens": 5, "logit_bias": {1: 100.0}}
    (output,) = llm.generate("The", SamplingParams(**always_eos), use_tqdm=False)
    completion = output.outputs[0]
    assert (completion.token_ids, completion.text) == ([1], "")
    assert (completion.finish_reason, completion.stop_reason) == ("stop", None)
    (output,) = llm.generate("The", SamplingParams(**always_eos, ignore_eos=True), use_tqdm=False)
    assert output.outputs[0].token_ids == [1] * 5 and output.outputs[0].finish_reason == "length"
    (output,) = llm.generate("The", SamplingParams(**always_eos, ignore_eos=True, stop_token_ids=[1]), use_tqdm=False)
    assert output.outputs[0].token_ids == [1] and output.outputs[0].stop_reason == 1
    (output,) = llm.generate("The", SamplingParams(**always_eos, min_tokens=3), use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 4 and 1 not in output.outputs[0].token_ids[:3]
    shown = SamplingParams(**always_eos, skip_special_tokens=False, include_stop_str_in_output=True)
    assert llm.generate("The", shown, use_tqdm=False)[0].outputs[0].text == "<|end|>"


def test_eos_at_the_last_allowed_token_is_a_stop(llm: LLM) -> None:
    (output,) = llm.generate("The", SamplingParams(temperature=0, max_tokens=1, logit_bias={1: 100.0}), use_tqdm=False)
    assert output.outputs[0].finish_reason == "stop"


def test_extra_eos_of_the_generation_config(tmp_path: Path) -> None:
    folder = write_llama(tmp_path)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 7], "temperature": 0.5, "top_k": 20}')
    with LLM(str(folder)) as llm:
        params = SamplingParams(temperature=0, max_tokens=5, logit_bias={7: 100.0})
        (output,) = llm.generate("The", params, use_tqdm=False)
        assert (output.outputs[0].token_ids, output.outputs[0].stop_reason) == ([7], 7)
        defaults = llm.get_default_sampling_params()
        assert (defaults.temperature, defaults.top_k, defaults.max_tokens) == (0.5, 20, 16)
    with LLM(str(folder), generation_config="vllm") as llm:
        assert llm.get_default_sampling_params() == SamplingParams()
    override = {"temperature": 0.25, "max_new_tokens": 3}
    with LLM(str(folder), override_generation_config=override) as llm:
        defaults = llm.get_default_sampling_params()
        assert (defaults.temperature, defaults.top_k, defaults.max_tokens) == (0.25, 20, 3)
        assert len(ids_of(llm.generate([[4, 5]], use_tqdm=False))[0]) <= 3


def test_eos_of_the_tokenizer_counts_even_if_the_config_names_another(tmp_path: Path) -> None:
    folder = write_llama(tmp_path, eos_token_id=9)
    with LLM(str(folder)) as llm:
        params = SamplingParams(temperature=0, max_tokens=5, logit_bias={1: 100.0})
        (output,) = llm.generate("The", params, use_tqdm=False)
        assert (output.outputs[0].token_ids, output.outputs[0].stop_reason) == ([1], None)
        params = SamplingParams(temperature=0, max_tokens=5, logit_bias={9: 100.0})
        (output,) = llm.generate("The", params, use_tqdm=False)
        assert (output.outputs[0].token_ids, output.outputs[0].stop_reason) == ([9], 9)


def test_default_parameters_are_sixteen_tokens(llm: LLM) -> None:
    params = llm.get_default_sampling_params()
    assert params == SamplingParams() and params is not llm.get_default_sampling_params()
    (output,) = llm.generate([[5, 6]], use_tqdm=False)
    assert len(output.outputs[0].token_ids) <= 16


def test_caller_parameters_are_not_changed(llm: LLM) -> None:
    params = SamplingParams(stop=["x"], stop_token_ids=[3], max_tokens=3)
    before = params.clone()
    llm.generate(PROMPTS, params, use_tqdm=False)
    assert params == before


def test_skip_tokenizer_init(tiny_model: Path) -> None:
    with LLM(str(tiny_model), skip_tokenizer_init=True) as llm:
        (output,) = llm.generate([[5, 6, 7]], GREEDY, use_tqdm=False)
        assert output.outputs[0].text == "" and len(output.outputs[0].token_ids) == 12
        with pytest.raises(ValueError, match="You cannot pass text prompts when `skip_tokenizer_init` is True"):
            llm.generate("text", GREEDY)
        with pytest.raises(ValueError, match="Unable to get tokenizer because skip_tokenizer_init is True"):
            llm.get_tokenizer()
        with pytest.raises(ValueError, match="stop strings need a tokenizer"):
            llm.generate([[5]], SamplingParams(stop="a"))


def test_set_tokenizer(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tiny_model))
    with LLM(str(tiny_model), skip_tokenizer_init=True) as llm:
        llm.set_tokenizer(tokenizer)
        assert llm.get_tokenizer() is tokenizer
        (output,) = llm.generate("Once upon", SamplingParams(temperature=0, stop="zzzz"), use_tqdm=False)
        assert output.prompt_token_ids == tokenizer.encode("Once upon")


def test_legacy_prompt_token_ids(llm: LLM) -> None:
    message = re.escape("The keyword arguments {'prompt_token_ids'} are deprecated and will be removed")
    with pytest.warns(DeprecationWarning, match=message):
        (output,) = llm.generate(prompt_token_ids=[5, 6, 7], sampling_params=GREEDY, use_tqdm=False)
    assert output.prompt_token_ids == [5, 6, 7]
    with pytest.warns(DeprecationWarning):
        outputs = llm.generate(prompt_token_ids=[[5], [6, 7]], sampling_params=GREEDY, use_tqdm=False)
    assert [output.prompt_token_ids for output in outputs] == [[5], [6, 7]]


def test_prefix_cache_is_used_and_can_be_reset(llm: LLM) -> None:
    prompt = list(range(2, 70))
    assert llm.reset_prefix_cache() is True
    first, second = (llm.generate([prompt], GREEDY, use_tqdm=False)[0] for _ in range(2))
    assert first.num_cached_tokens == 0 and second.num_cached_tokens == 64
    assert first.outputs[0].token_ids == second.outputs[0].token_ids
    assert llm.reset_prefix_cache() is True
    assert llm.generate([prompt], GREEDY, use_tqdm=False)[0].num_cached_tokens == 0


def test_progress_bar(llm: LLM, capfd: pytest.CaptureFixture[str]) -> None:
    llm.generate(PROMPTS, GREEDY, use_tqdm=True)
    shown = capfd.readouterr()
    assert "Processed prompts: 100%" in shown.err and "est. speed input:" in shown.err and shown.out == ""
    llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert capfd.readouterr() == ("", "")
    bars: list[dict[str, Any]] = []

    class Bar:
        def __init__(self, **options: Any) -> None:
            bars.append(options)
            self.postfix, self.n = "", 0

        def update(self, n: int) -> None:
            bars.append({"n": n, "postfix": self.postfix})

        def close(self) -> None:
            bars.append({"closed": True})

    llm.generate(PROMPTS, SamplingParams(n=2, max_tokens=3), use_tqdm=Bar)
    assert bars[0]["total"] == 8 and bars[0]["desc"] == "Processed prompts" and bars[-1] == {"closed": True}
    assert [bar["n"] for bar in bars[1:-1]] == [2] * 4


def test_enqueue_and_wait(llm: LLM) -> None:
    first = llm.enqueue(PROMPTS[:2], GREEDY)
    second = llm.enqueue([[5, 6]], SamplingParams(max_tokens=2, ignore_eos=True))
    outputs = llm.wait_for_completion(use_tqdm=False)
    assert [output.request_id for output in outputs] == first + second
    assert ids_of(outputs)[:2] == ids_of(llm.generate(PROMPTS[:2], GREEDY, use_tqdm=False))
    assert llm.wait_for_completion(use_tqdm=False) == []


def test_tokenization_kwargs(llm: LLM) -> None:
    (plain,) = llm.generate("The dog", GREEDY, use_tqdm=False)
    options: dict[str, Any] = {"add_special_tokens": False}
    (bare,) = llm.generate("The dog", GREEDY, use_tqdm=False, tokenization_kwargs=options)
    assert plain.prompt_token_ids == [0, *(bare.prompt_token_ids or [])]
    (cut,) = llm.generate("The dog", GREEDY, use_tqdm=False, tokenization_kwargs={"truncate_prompt_tokens": 1})
    assert cut.prompt_token_ids == (plain.prompt_token_ids or [])[-1:]
    with pytest.raises(NotImplementedError, match="padding"):
        llm.generate("The dog", GREEDY, tokenization_kwargs={"padding": True})


def test_engine_view(llm: LLM, tiny_model: Path) -> None:
    view = llm.llm_engine
    assert view.model_config.max_model_len == 256 and view.model_config.get_vocab_size() == llm.info()["vocab_size"]
    assert view.model_config.model == str(tiny_model) and view.model_config.hf_config.model_type == "llama"
    assert view.cache_config.block_size == 16 and view.cache_config.num_gpu_blocks == 512


def test_hf_overrides_and_bin_checkpoints(tmp_path: Path, tiny_model: Path) -> None:
    """The same weights from a .bin file give the same tokens; an override of the config changes them."""
    import shutil

    import torch
    from safetensors.torch import load_file

    with LLM(str(tiny_model)) as llm:
        expected = ids_of(llm.generate(PROMPTS, GREEDY, use_tqdm=False))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, tmp_path / name)
    torch.save(load_file(tiny_model / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with LLM(str(tmp_path)) as llm:
        assert ids_of(llm.generate(PROMPTS, GREEDY, use_tqdm=False)) == expected
    with LLM(str(tiny_model), hf_overrides={"rms_norm_eps": 0.5}) as llm:
        assert ids_of(llm.generate(PROMPTS, GREEDY, use_tqdm=False)) != expected

    def change(config: Any) -> Any:
        config.rms_norm_eps = 0.5
        return config

    with (
        LLM(str(tiny_model), hf_overrides=change) as one,
        LLM(str(tiny_model), hf_overrides={"rms_norm_eps": 0.5}) as two,
    ):
        assert ids_of(one.generate(PROMPTS, GREEDY, use_tqdm=False)) == ids_of(
            two.generate(PROMPTS, GREEDY, use_tqdm=False)
        )
