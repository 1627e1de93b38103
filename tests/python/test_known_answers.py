"""Known answers: greedy continuations that other programs computed for real checkpoints.

The embedded model's come from transformers in float32, those of the public llama2.c checkpoints from a numpy forward
pass. Token ids only, so no tokenizer can hide an error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import convert_llama2c
from quire import LLM, SamplingParams

DEMO_ANSWERS = Path(__file__).resolve().parents[1] / "data" / "demo_known_answers.json"
PUBLIC = {
    "stories260K": "stories260K/stories260K.bin",
    "aidreams260K": "aidreams260K/aidreams260K.bin",
    "babyllama_tok105": "babyllama_tok105/model5000.bin",
}


def greedy(llm: LLM, prompts: list[list[int]], lengths: list[int], **fields: Any) -> list[list[int]]:
    params = [SamplingParams(temperature=0, max_tokens=length, ignore_eos=True, **fields) for length in lengths]
    return [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]


@pytest.fixture(scope="module")
def demo_answers() -> dict[str, Any]:
    answers = json.loads(DEMO_ANSWERS.read_text())
    return {name: case for name, case in answers.items() if isinstance(case, dict)}


@pytest.fixture(scope="module")
def demo() -> LLM:
    try:
        return LLM("quire/demo", dtype="float32", num_gpu_blocks_override=256)
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_embedded_model(demo: LLM, demo_answers: dict[str, Any]) -> None:
    assert len(demo_answers) >= 2
    prompts = [case["prompt_ids"] for case in demo_answers.values()]
    expected = [case["greedy_ids"] for case in demo_answers.values()]
    assert greedy(demo, prompts, [len(ids) for ids in expected]) == expected


def test_embedded_model_in_text(demo: LLM, demo_answers: dict[str, Any]) -> None:
    """The same through text: the chat template, the tokenizer and the detokenizer."""
    case = demo_answers["chat_dog"]
    params = SamplingParams(temperature=0, max_tokens=len(case["greedy_ids"]))
    (output,) = demo.chat([{"role": "user", "content": "Tell me a story about a dog"}], params, use_tqdm=False)
    assert output.prompt_token_ids == case["prompt_ids"]
    assert output.outputs[0].text.startswith(case["text"]) or case["text"].startswith(output.outputs[0].text)
    case = demo_answers["plain_once"]
    params = SamplingParams(temperature=0, max_tokens=len(case["greedy_ids"]))
    (output,) = demo.generate("Once upon a time", params, use_tqdm=False)
    assert output.prompt_token_ids == case["prompt_ids"]
    assert output.outputs[0].text == case["text"]


def test_embedded_model_in_its_own_dtype() -> None:
    """bfloat16 agrees with itself however it is run, and its stories end by themselves."""
    with LLM("quire/demo", num_gpu_blocks_override=256) as llm:
        assert llm.info()["dtype"] == "bfloat16"
        params = SamplingParams(temperature=0, max_tokens=400)
        (output,) = llm.chat([{"role": "user", "content": "Tell me a story about a cat"}], params, use_tqdm=False)
        completion = output.outputs[0]
        assert completion.finish_reason == "stop"
        assert "cat" in completion.text and completion.text.rstrip()[-1] in '.!?"'


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "amx"])
def test_public_checkpoints(data_folder: Path, tmp_path: Path, name: str, isa: str) -> None:
    case = json.loads((data_folder / "checkpoints" / "reference_numpy.json").read_text())[name]
    folder = convert_llama2c(data_folder / "checkpoints" / PUBLIC[name], tmp_path)
    try:
        llm = LLM(str(folder), skip_tokenizer_init=True, cpu_isa=isa, num_gpu_blocks_override=64, max_logprobs=-1)
    except ValueError as error:
        if isa != "portable" and isa in str(error):
            pytest.skip(str(error))
        raise
    with llm:
        prompt, expected = case["prompt_ids"], case["greedy_ids_after_prompt"]
        assert greedy(llm, [prompt], [len(expected)]) == [expected]
        # The logits of the last prompt position, up to their common shift.
        params = SamplingParams(temperature=0, max_tokens=1, logprobs=llm.info()["vocab_size"], ignore_eos=True)
        (output,) = llm.generate([prompt], params, use_tqdm=False)
        assert output.outputs[0].logprobs is not None
        logprobs = output.outputs[0].logprobs[0]
        logits = case["logits_last_prompt_position_first16"]
        for i, logit in enumerate(logits):
            assert logprobs[i].logprob - logprobs[0].logprob == pytest.approx(logit - logits[0], abs=1e-3)


@pytest.mark.parametrize("name", PUBLIC)
def test_likelihood_of_the_continuation(data_folder: Path, tmp_path: Path, name: str) -> None:
    """The summed log-probabilities of the greedy ids agree with the reference's, prompt part aside."""
    case = json.loads((data_folder / "checkpoints" / "reference_numpy.json").read_text())[name]
    folder = convert_llama2c(data_folder / "checkpoints" / PUBLIC[name], tmp_path)
    prompt, continuation = case["prompt_ids"], case["greedy_ids_after_prompt"]
    whole = prompt + continuation
    with LLM(str(folder), skip_tokenizer_init=True, num_gpu_blocks_override=64) as llm:
        # Each position's next token, forced, with its raw log-probability: the sum over all is the reference's figure.
        params = [
            SamplingParams(temperature=0, max_tokens=1, logprobs=0, allowed_token_ids=[token], ignore_eos=True)
            for token in whole[1:]
        ]
        outputs = llm.generate([whole[: i + 1] for i in range(len(params))], params, use_tqdm=False)
    total = -sum(output.outputs[0].cumulative_logprob or 0.0 for output in outputs)
    assert len(params) == case["predicted_positions"]
    assert total == pytest.approx(case["sum_nll_of_prompt_plus_greedy"], abs=2e-2)
