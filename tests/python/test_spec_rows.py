"""Rows of vLLM's behaviour that have no larger test: one test a row, named after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quire
from checkpoints import write_llama
from quire import LLM, GuidedDecodingParams, RequestOutput, SamplingParams
from quire.sampling_params import RequestOutputKind

IDS = [7, 301, 22, 95]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}


def one(llm: LLM, prompt: Any = IDS, **fields: Any) -> RequestOutput:
    (output,) = llm.generate([prompt], SamplingParams(**{**GREEDY, **fields}), use_tqdm=False)
    return output


def tokens(llm: LLM, prompt: Any = IDS, **fields: Any) -> list[int]:
    return list(one(llm, prompt, **fields).outputs[0].token_ids)


# generate.


def test_request_ids_count_over_the_life_of_the_object(tiny_model: Path) -> None:
    with LLM(str(tiny_model), num_gpu_blocks_override=32) as fresh:
        params = SamplingParams(n=2, temperature=1.0, max_tokens=2)
        first = fresh.generate([IDS, IDS], params, use_tqdm=False)
        (chatted,) = fresh.chat([{"role": "user", "content": "Hi"}], params, use_tqdm=False)
        assert [output.request_id for output in (*first, chatted)] == ["0", "1", "2"]
        assert fresh.enqueue([IDS], params) == ["3"]
        (waited,) = fresh.wait_for_completion(use_tqdm=False)
        assert waited.request_id == "3"


def test_prompt_is_none_for_token_prompts_and_the_text_for_texts(llm: LLM) -> None:
    by_ids, by_text = one(llm), one(llm, "Once upon")
    assert (by_ids.prompt, by_ids.prompt_token_ids) == (None, IDS)
    assert by_text.prompt == "Once upon"
    assert by_text.prompt_token_ids == llm.get_tokenizer().encode("Once upon")


def test_default_params_are_used_only_where_none_are_given(tmp_path: Path) -> None:
    folder = write_llama(tmp_path)
    (folder / "generation_config.json").write_text(
        '{"temperature": 0.5, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.3, "max_new_tokens": 4, '
        '"do_sample": false, "num_beams": 4, "length_penalty": 2.0}'
    )
    with LLM(str(folder), num_gpu_blocks_override=32) as own:
        defaults = own.get_default_sampling_params()
        expected = SamplingParams(temperature=0.5, top_k=20, top_p=0.9, repetition_penalty=1.3, max_tokens=4)
        assert defaults == expected  # do_sample, num_beams and the rest are not read
        (output,) = own.generate([IDS], use_tqdm=False)
        assert len(output.outputs[0].token_ids) <= 4
        assert len(tokens(own)) == 6, "given parameters are never merged with them"


# The order of sampling.


def test_greedy_still_applies_bias_and_penalties(flat: LLM) -> None:
    assert tokens(flat, logit_bias={9: 5.0}) == [9] * 6
    assert tokens(flat, logit_bias={9: 1.0, 10: 0.5}, presence_penalty=2.0)[:2] == [9, 10]
    assert tokens(flat, prompt=[9], logit_bias={9: 2.0, 10: 1.5}, repetition_penalty=2.0, max_tokens=1) == [10]


def test_greedy_and_random_rows_of_a_batch_are_their_own(llm: LLM) -> None:
    greedy, drawn = SamplingParams(**GREEDY), SamplingParams(**{**GREEDY, "temperature": 1.2, "seed": 9})
    together = llm.generate([IDS] * 6, [greedy, drawn] * 3, use_tqdm=False)
    alone = [llm.generate([IDS], params, use_tqdm=False)[0].outputs for params in (greedy, drawn)]
    assert alone[0] != alone[1]
    assert [output.outputs for output in together] == alone * 3


def test_greedy_forgets_the_filters() -> None:
    params = SamplingParams(temperature=0, top_p=0.5, top_k=7, min_p=0.3)
    assert (params.top_p, params.top_k, params.min_p) == (1.0, -1, 0.0)


def test_top_k_of_minus_one_and_of_zero_are_all_tokens(llm: LLM) -> None:
    drawn: dict[str, Any] = {"temperature": 3.0, "seed": 4, "max_tokens": 20}
    assert tokens(llm, top_k=-1, **drawn) == tokens(llm, top_k=0, **drawn) == tokens(llm, **drawn)
    assert tokens(llm, top_k=1, **drawn) == tokens(llm, max_tokens=20)


def test_top_k_larger_than_the_vocabulary_is_all_tokens(llm: LLM) -> None:
    drawn: dict[str, Any] = {"temperature": 3.0, "seed": 4}
    assert tokens(llm, top_k=10**6, **drawn) == tokens(llm, **drawn)


def test_ties_at_the_kth_value_are_kept(tmp_path: Path) -> None:
    """In a model whose head is all zeros every token is as likely, so top_k=1 keeps them all."""
    from safetensors.numpy import load_file, save_file

    folder = write_llama(tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= np.float32(0)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with LLM(str(folder), num_gpu_blocks_override=32) as equal:
        assert len(set(tokens(equal, temperature=1.0, seed=1, top_k=1, max_tokens=20))) > 10
        (completion,) = one(equal, logprobs=0).outputs
        assert completion.logprobs is not None
        vocab_size = equal.info()["vocab_size"]
        for token, entry in zip(completion.token_ids, completion.logprobs, strict=True):
            assert token == 0, "greedy takes the first of equals"
            assert list(entry) == [0] and entry[0].rank == vocab_size, "equal ones count in a rank"
            assert entry[0].logprob == pytest.approx(-np.log(vocab_size), abs=1e-5)


# Log-probabilities.


def test_logprobs_of_none_and_of_zero(llm: LLM) -> None:
    (without,), (sampled,) = one(llm).outputs, one(llm, logprobs=0).outputs
    assert without.logprobs is None and without.cumulative_logprob is None
    assert sampled.logprobs is not None and sampled.cumulative_logprob is not None
    assert [list(entry) for entry in sampled.logprobs] == [[token] for token in sampled.token_ids]
    total = sum(entry[token].logprob for entry, token in zip(sampled.logprobs, sampled.token_ids, strict=True))
    assert sampled.cumulative_logprob == pytest.approx(total, abs=1e-5)


def test_logprobs_have_the_sampled_token_first_then_the_likeliest_by_rank(llm: LLM) -> None:
    (completion,) = one(llm, temperature=1.5, seed=3, top_k=8, logprobs=4, max_tokens=30).outputs
    assert completion.logprobs is not None
    for token, entry in zip(completion.token_ids, completion.logprobs, strict=True):
        ranks = [each.rank for each in entry.values()]
        assert next(iter(entry)) == token
        others = [rank for rank in (1, 2, 3, 4) if rank != ranks[0]]
        assert ranks == [ranks[0], *others]
    lengths = {len(entry) for entry in completion.logprobs}
    assert lengths == {4, 5}, "k where the sampled token is among them, else k + 1"


def test_decoded_tokens_are_text_and_none_without_detokenizing(llm: LLM) -> None:
    (shown,), (bare,) = one(llm, logprobs=1).outputs, one(llm, logprobs=1, detokenize=False).outputs
    assert shown.logprobs is not None and bare.logprobs is not None
    assert all(isinstance(each.decoded_token, str) for entry in shown.logprobs for each in entry.values())
    assert bare.text == "" and bare.token_ids == shown.token_ids
    assert {each.decoded_token for entry in bare.logprobs for each in entry.values()} == {None}
    space = llm.get_tokenizer().encode(" dog", add_special_tokens=False)
    assert len(space) == 1
    (forced,) = one(llm, logprobs=0, allowed_token_ids=space, max_tokens=1).outputs
    assert forced.logprobs is not None and forced.logprobs[0][space[0]].decoded_token == " dog"


# The end, and text.


def test_the_first_piece_keeps_its_leading_space(llm: LLM) -> None:
    space = llm.get_tokenizer().encode(" dog", add_special_tokens=False)
    params = SamplingParams(**{**GREEDY, "allowed_token_ids": space, "max_tokens": 3})
    assert one(llm, allowed_token_ids=space, max_tokens=3).outputs[0].text == " dog dog dog"
    assert [chunk.text for chunk in llm.stream(IDS, params) if chunk.text] == [" dog"] * 3


def test_the_end_token_stays_in_the_ids_and_leaves_the_text(llm: LLM) -> None:
    dog = llm.get_tokenizer().encode(" dog", add_special_tokens=False)[0]
    forced: dict[str, Any] = {"allowed_token_ids": [dog], "ignore_eos": False, "stop_token_ids": [dog], "min_tokens": 1}
    (plain,), (kept,) = one(llm, **forced).outputs, one(llm, **forced, include_stop_str_in_output=True).outputs
    assert (plain.token_ids, plain.text, plain.finish_reason, plain.stop_reason) == ([dog], "", "stop", dog)
    assert (kept.token_ids, kept.text, kept.stop_reason) == ([dog], " dog", dog)


def test_a_stop_token_wins_over_a_stop_string(llm: LLM) -> None:
    dog = llm.get_tokenizer().encode(" dog", add_special_tokens=False)[0]
    (completion,) = one(llm, allowed_token_ids=[dog], stop_token_ids=[dog], stop=["dog"]).outputs
    assert completion.stop_reason == dog


# Structured output.


def test_an_object_of_params_is_not_stamped_with_a_backend(llm: LLM) -> None:
    """vLLM 0.8.4 writes the chosen backend into it, and the second prompt fails."""
    pytest.importorskip("llguidance")
    guided = GuidedDecodingParams(choice=["cat", "dog"])
    params = SamplingParams(temperature=1.0, seed=1, guided_decoding=guided)
    for _ in range(2):
        outputs = llm.generate([IDS, "Once"], params, use_tqdm=False)
        assert {output.outputs[0].text for output in outputs} <= {"cat", "dog"}
        assert {output.outputs[0].finish_reason for output in outputs} == {"stop"}
    assert guided == GuidedDecodingParams(choice=["cat", "dog"]) and params.guided_decoding is guided


# Types.


def test_values_of_output_kinds() -> None:
    assert {kind.name: kind.value for kind in RequestOutputKind} == {"CUMULATIVE": 0, "DELTA": 1, "FINAL_ONLY": 2}
    assert SamplingParams().output_kind is RequestOutputKind.CUMULATIVE


def test_params_may_be_given_by_position() -> None:
    params = SamplingParams(2, None, None, 0.5, 0.25, 1.5, 0.75, 0.9, 12, 0.1, 3, ["a"], [4])
    assert (params.n, params.presence_penalty, params.frequency_penalty) == (2, 0.5, 0.25)
    assert (params.repetition_penalty, params.temperature, params.top_p, params.top_k) == (1.5, 0.75, 0.9, 12)
    assert (params.min_p, params.seed, params.stop, params.stop_token_ids) == (0.1, 3, ["a"], [4])


def test_repeated_stop_ids_and_bad_words_count_once(llm: LLM) -> None:
    dog = llm.get_tokenizer().encode(" dog", add_special_tokens=False)[0]
    (completion,) = one(llm, allowed_token_ids=[dog], stop_token_ids=[dog, dog], bad_words=["cat", "cat"]).outputs
    assert completion.stop_reason == dog


MODULES: dict[str, Callable[[], Any]] = {
    "vllm": lambda: (quire.LLM, quire.SamplingParams, quire.RequestOutput, quire.CompletionOutput),
    "vllm.sampling_params": lambda: (
        quire.sampling_params.SamplingParams,
        quire.sampling_params.GuidedDecodingParams,
        quire.sampling_params.StructuredOutputsParams,
        quire.sampling_params.BeamSearchParams,
        quire.sampling_params.RequestOutputKind,
    ),
    "vllm.outputs": lambda: (quire.outputs.RequestOutput, quire.outputs.CompletionOutput, quire.outputs.Logprob),
    "vllm.inputs": lambda: (quire.inputs.TextPrompt, quire.inputs.TokensPrompt),
    "vllm.beam_search": lambda: (quire.beam_search.BeamSearchOutput, quire.beam_search.BeamSearchSequence),
}


@pytest.mark.parametrize("module", MODULES)
def test_names_are_where_vllm_has_them(module: str) -> None:
    assert all(callable(name) for name in MODULES[module]())


# 2.10: methods with an underscore that programs call.


def test_requests_queued_by_the_methods_with_an_underscore(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=4)
    expected = llm.generate(["Once upon", "The dog"], params, use_tqdm=False)
    names = [llm._add_request("Once upon", params), llm._add_request([5, 6, 7], params)]
    first, second = llm._run_engine(use_tqdm=False)
    assert [first.request_id, second.request_id] == names
    assert first.outputs[0].token_ids == expected[0].outputs[0].token_ids and second.prompt_token_ids == [5, 6, 7]
    llm._validate_and_add_requests(["Once upon", "The dog"], params, guided_options=None)
    texts = [output.outputs[0].text for output in llm._run_engine(use_tqdm=False)]
    assert texts == [output.outputs[0].text for output in expected]
    guided = {"guided_choice": ["a cat", "a dog"]}
    with pytest.warns(DeprecationWarning, match="guided_decoding"):
        llm._validate_and_add_requests("She saw", SamplingParams(max_tokens=20), guided_options=guided)
    (output,) = llm._run_engine(use_tqdm=False)
    assert output.outputs[0].text in guided["guided_choice"]
    for call in (llm._add_request, llm._validate_and_add_requests):
        with pytest.raises(ValueError, match="LoRA is not enabled"):
            call("x", params, lora_request="lora")
    with pytest.raises(ValueError, match="empty"):
        llm._validate_and_add_requests([[5], []], params)
    assert llm._run_engine(use_tqdm=False) == []
