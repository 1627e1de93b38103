"""quantization="int8": what it may cost in quality, what it saves, that results still depend on nothing else, and what
is refused. Kernels are tested in tests/cpp/kernels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quire import LLM, SamplingParams
from tokenizers import Tokenizer

MOST_MORE_PERPLEXITY = 0.01
END_OF_TEXT = 0


def log_likelihood(llm: LLM, prompts: list[list[int]]) -> tuple[float, int]:
    """The sum of the log-probabilities of all tokens but the first of each prompt, and their number."""
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    total, count = 0.0, 0
    for output in llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False):
        for token, entry in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True):
            total += entry[token].logprob
            count += 1
    return total, count


def perplexity(llm: LLM, prompts: list[list[int]]) -> float:
    total, count = log_likelihood(llm, prompts)
    return math.exp(-total / count)


@pytest.fixture(scope="module")
def demo() -> Iterator[dict[str, LLM]]:
    try:
        engines = {
            name: LLM("quire/demo", dtype="bfloat16", seed=0, quantization=name or None, num_gpu_blocks_override=256)
            for name in ("", "int8")
        }
    except FileNotFoundError as error:
        pytest.skip(str(error))
    yield engines
    for engine in engines.values():
        engine.close()


def test_perplexity_of_text_that_was_held_out(demo: dict[str, LLM], data_folder: Path) -> None:
    text = (data_folder / "tinystories" / "tinystories_heldout.txt").read_text()
    stories = [story.strip() for story in text.split("<|endoftext|>") if story.strip()][:60]
    import quire

    tokenizer = Tokenizer.from_file(str(Path(quire.__file__).parent / "demo_model" / "tokenizer.json"))
    prompts = []
    for story in stories:
        ids = tokenizer.encode(story, add_special_tokens=False).ids
        prompts.append([END_OF_TEXT, *ids, END_OF_TEXT][:1023])
    plain, rounded = perplexity(demo[""], prompts), perplexity(demo["int8"], prompts)
    assert rounded != plain, "the argument does nothing"
    assert abs(rounded / plain - 1) < MOST_MORE_PERPLEXITY, f"{rounded} instead of {plain}"


def test_perplexity_of_its_own_stories(demo: dict[str, LLM]) -> None:
    """The same without data: text that the model wrote unrounded."""
    params = [SamplingParams(max_tokens=200, temperature=0.8, seed=seed) for seed in range(8)]
    outputs = demo[""].generate(["Once upon a time"] * len(params), params, use_tqdm=False)
    prompts = [[*output.prompt_token_ids, *output.outputs[0].token_ids] for output in outputs]
    plain, rounded = perplexity(demo[""], prompts), perplexity(demo["int8"], prompts)
    assert rounded != plain
    assert abs(rounded / plain - 1) < MOST_MORE_PERPLEXITY


def rounded_reference(folder: Path, prompts: list[list[int]]) -> Any:
    """Logits behind each prompt by transformers in float32, with the linear layers rounded as docs/python.md says."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def rounded(values: Any) -> Any:
        scale = values.abs().amax(-1, keepdim=True) / 127
        return torch.round(values / scale.clamp(min=1e-30)) * scale

    def replace(linear: Any) -> None:
        weight = rounded(linear.weight.data)
        linear.forward = lambda x: torch.nn.functional.linear(
            torch.cat([rounded(run) for run in x.split(128, dim=-1)], dim=-1), weight, linear.bias
        )

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            replace(module)
    with torch.no_grad():
        return np.stack([model(torch.tensor([ids])).logits[0, -1].numpy() for ids in prompts])


def test_logits_are_those_of_rounded_layers(tiny_model: Path) -> None:
    """What differs is which way a value between two steps goes. Rounding changes these logits by 0.072."""
    prompts = [[2 + (7 * i + 31 * p) % 390 for i in range(20 + p)] for p in range(8)]
    params = SamplingParams(max_tokens=1, temperature=0, return_logits=True)
    with LLM(str(tiny_model), dtype="float32", quantization="int8", seed=0, num_gpu_blocks_override=64) as llm:
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    logits = np.stack([output.outputs[0].logits[0] for output in outputs])
    reference = rounded_reference(tiny_model, prompts)
    assert np.sqrt(np.mean((logits - reference) ** 2)) / np.std(reference) < 0.01


def test_it_takes_less_memory_and_says_so(demo: dict[str, LLM]) -> None:
    plain, rounded = demo[""].info(), demo["int8"].info()
    assert (plain["quantization"], rounded["quantization"]) == (None, "int8")
    assert plain["dtype"] == rounded["dtype"] == "bfloat16"
    assert plain["num_parameters"] == rounded["num_parameters"]
    # 3.6 of the 4.15 million parameters are in the layers; the head is a second copy of the tied embedding.
    assert rounded["weight_bytes"] < 0.65 * plain["weight_bytes"]
    assert demo["int8"].llm_engine.model_config.quantization == "int8"
    assert demo[""].llm_engine.model_config.quantization is None


def test_info_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    from quire.cli.info import info

    try:
        info("quire/demo", assignments=["quantization=int8"])
    except FileNotFoundError as error:
        pytest.skip(str(error))
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["quantization"].strip() == "int8"


def everything(llm: LLM, prompts: list[list[int]], params: SamplingParams) -> list[Any]:
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    return [(o.outputs[0].token_ids, o.outputs[0].cumulative_logprob) for o in outputs]


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "amx"])
def test_results_do_not_depend_on_the_batch_nor_on_the_steps(isa: str) -> None:
    """Rows that are alone, few or many take different ways through the kernels."""
    prompts = [[2 + (5 * i + 17 * p) % 2000 for i in range(3 + 9 * p)] for p in range(12)]
    params = SamplingParams(max_tokens=12, temperature=0, logprobs=0, ignore_eos=True)
    results = []
    for more in ({}, {"max_num_seqs": 1}, {"max_num_batched_tokens": 7, "max_num_seqs": 5}, {"num_threads": 1}):
        try:
            llm = LLM("quire/demo", quantization="int8", seed=0, cpu_isa=isa, num_gpu_blocks_override=256, **more)
        except (FileNotFoundError, ValueError) as error:
            if isinstance(error, ValueError) and "cannot run it" not in str(error):
                raise
            pytest.skip(str(error))
        with llm:
            results.append(everything(llm, prompts, params))
    assert all(result == results[0] for result in results[1:])


def test_speculation_gives_the_same(demo: dict[str, LLM]) -> None:
    prompts = [[2 + (5 * i + 17 * p) % 2000 for i in range(3 + 9 * p)] for p in range(4)]
    params = SamplingParams(max_tokens=60, temperature=0, logprobs=0, ignore_eos=True)
    guess = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3}
    with LLM(
        "quire/demo",
        dtype="bfloat16",
        quantization="int8",
        seed=0,
        speculative_config=guess,
        num_gpu_blocks_override=256,
    ) as llm:
        assert everything(llm, prompts, params) == everything(demo["int8"], prompts, params)


def test_vectors_of_a_pooling_model_are_close() -> None:
    texts = ["A dog ran home.", "The sun is warm and the children play.", "Lily likes apples."]
    vectors = []
    for quantization in (None, "int8"):
        try:
            llm = LLM("quire/demo", task="embed", quantization=quantization)
        except FileNotFoundError as error:
            pytest.skip(str(error))
        with llm:
            vectors.append(np.array([output.outputs.embedding for output in llm.embed(texts, use_tqdm=False)]))
    cosines = np.sum(vectors[0] * vectors[1], axis=1)
    assert (cosines > 0.999).all() and not np.array_equal(*vectors)


def test_a_device_without_it_refuses_by_name(tiny_model: Path, simt_plugin: Path) -> None:
    with pytest.raises(NotImplementedError, match='quantization="int8" is not supported on the device "simt'):
        LLM(str(tiny_model), device="simt", quantization="int8")


def test_a_checkpoint_that_is_quantized_in_another_way(tiny_model: Path) -> None:
    overrides = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    with pytest.raises(ValueError, match=r"specified in the model config \(gptq\) does not match .* argument \(int8\)"):
        LLM(str(tiny_model), quantization="int8", hf_overrides=overrides)


def test_other_methods_stay_refused(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match=r"Unknown quantization method: int7\. Must be one of"):
        LLM(str(tiny_model), quantization="int7")
    with pytest.raises(NotImplementedError, match="quantization='awq' is not supported"):
        LLM(str(tiny_model), quantization="awq")
    with pytest.raises(NotImplementedError, match="quantization='int8'"):
        LLM(
            "quire/demo",
            speculative_config={"model": "quire/demo", "num_speculative_tokens": 2, "quantization": "int8"},
        )
