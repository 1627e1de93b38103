"""speculative_config, row by row: what it takes and refuses, and that outputs are those of decoding without it.

Whether the right drafts are taken shows in the bits of tokens and log-probabilities; that these are draws from the
model's distribution is tested against probabilities computed by transformers.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_llama
from quire import LLM, SamplingParams, StructuredOutputsParams
from safetensors.numpy import load_file, save_file

BLOCKS = {"num_gpu_blocks_override": 256, "seed": 3}
NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
PROMPTS = [
    "The dog found a red ball. The dog found a red ball. The dog found",
    "Once upon a time, once upon a time, once upon",
    "do not take my ball! do not take",
]


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same vocabulary, other weights."""
    return write_llama(tmp_path_factory.mktemp("other-llama"), seed=1)


@pytest.fixture(scope="module")
def contrary_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with its last norm negated: what it thinks likeliest is what the other thinks least likely."""
    folder = tmp_path_factory.mktemp("contrary") / "model"
    shutil.copytree(tiny_model, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] *= np.float32(-1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> Iterator[LLM]:
    with LLM(str(tiny_model), **BLOCKS) as llm:
        yield llm


@pytest.fixture(scope="module", params=["ngram", "itself", "other", "contrary"])
def guessing(
    request: pytest.FixtureRequest, tiny_model: Path, other_model: Path, contrary_model: Path
) -> Iterator[LLM]:
    draft = {"itself": tiny_model, "other": other_model, "contrary": contrary_model}.get(request.param)
    config = NGRAM if draft is None else {"model": str(draft), "num_speculative_tokens": 3}
    with LLM(str(tiny_model), speculative_config=config, **BLOCKS) as llm:
        yield llm


def told(outputs: list[Any]) -> list[Any]:
    """All of an output but its times, exactly."""
    return [
        [(one.text, list(one.token_ids), one.finish_reason, one.stop_reason, one.cumulative_logprob, one.logprobs)]
        for output in outputs
        for one in output.outputs
    ]


CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "seeded": {"temperature": 0.9, "seed": 5},
    "top_p and top_k": {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "seed": 6},
    "min_p": {"temperature": 1.2, "min_p": 0.05, "seed": 7},
    "n": {"temperature": 0.8, "n": 3, "seed": 8},
    "min_tokens": {
        "temperature": 0.8,
        "seed": 9,
        "ignore_eos": False,
        "min_tokens": 12,
        "stop_token_ids": [40, 60, 80],
    },
    "logit_bias": {"temperature": 0.8, "seed": 10, "logit_bias": {100: 2.0, 101: -5.0}},
    "allowed_token_ids": {"temperature": 0.8, "seed": 11, "allowed_token_ids": list(range(60, 90))},
    "prompt_logprobs": {"temperature": 0, "prompt_logprobs": 2},
    "penalties": {"temperature": 0.8, "seed": 12, "repetition_penalty": 1.2, "frequency_penalty": 0.3},
    "bad_words": {"temperature": 0, "bad_words": ["dog", "red ball"]},
    "stop": {"temperature": 0.8, "seed": 13, "stop": ["a", "e "]},
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_plain_decoding(case: str, plain: LLM, guessing: LLM) -> None:
    params = SamplingParams(**{"max_tokens": 40, "ignore_eos": True, "logprobs": 2, **CASES[case]})
    expected = told(plain.generate(PROMPTS, params, use_tqdm=False))
    assert told(guessing.generate(PROMPTS, params, use_tqdm=False)) == expected


def test_all_kinds_side_by_side(plain: LLM, guessing: LLM) -> None:
    params = [SamplingParams(**{"max_tokens": 30, "logprobs": 1, **case}) for case in CASES.values()]
    schema = StructuredOutputsParams(json={"type": "array", "items": {"type": "integer"}, "maxItems": 4})
    params.append(SamplingParams(temperature=0, max_tokens=24, structured_outputs=schema))
    params.append(SamplingParams(temperature=0, max_tokens=9, logits_processors=[_prefer]))
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(len(params))]
    expected = told(plain.generate(prompts, params, use_tqdm=False))
    before = guessing.stats()["num_draft_tokens"]
    assert told(guessing.generate(prompts, params, use_tqdm=False)) == expected
    assert guessing.stats()["num_draft_tokens"] > before


def _prefer(token_ids: list[int], logits: Any) -> Any:
    logits[70 + len(token_ids)] += 5
    return logits


def test_requests_that_read_their_text_are_not_guessed_for(guessing: LLM) -> None:
    before = guessing.stats()["num_draft_tokens"]
    for more in (CASES["penalties"], CASES["bad_words"], {"logits_processors": [_prefer]}):
        (output,) = guessing.generate(PROMPTS[:1], SamplingParams(max_tokens=12, **more), use_tqdm=False)
        assert output.metrics.spec_token_acceptance_counts[1:] == [0] * (
            len(output.metrics.spec_token_acceptance_counts) - 1
        )
    assert guessing.stats()["num_draft_tokens"] == before


def test_streams_give_the_same_text(plain: LLM, guessing: LLM) -> None:
    params = SamplingParams(temperature=0.6, seed=3, max_tokens=60, ignore_eos=True)
    chunks = list(guessing.stream(PROMPTS[0], params))
    (expected,) = plain.generate(PROMPTS[0], params, use_tqdm=False)
    assert "".join(chunk.text for chunk in chunks) == expected.outputs[0].text
    assert [i for chunk in chunks for i in chunk.token_ids] == list(expected.outputs[0].token_ids)
    params.stop = [expected.outputs[0].text[30:34]]
    (expected,) = plain.generate(PROMPTS[0], params, use_tqdm=False)
    chunks = list(guessing.stream(PROMPTS[0], params))
    assert "".join(chunk.text for chunk in chunks) == expected.outputs[0].text
    assert chunks[-1].finish_reason == "stop" and chunks[-1].stop_reason == params.stop[0]


def test_pieces_carry_the_log_probabilities_of_all_their_tokens(plain: LLM, guessing: LLM) -> None:
    params = SamplingParams(temperature=0.6, seed=3, max_tokens=40, ignore_eos=True, logprobs=2, prompt_logprobs=1)
    (expected,) = plain.generate(PROMPTS[0], params, use_tqdm=False)
    chunks = list(guessing.stream(PROMPTS[0], params))
    assert [entry for chunk in chunks for entry in chunk.logprobs] == list(expected.outputs[0].logprobs)
    (output,) = guessing.generate(PROMPTS[0], params, use_tqdm=False)
    assert output.prompt_logprobs == expected.prompt_logprobs


def test_states_and_logits_are_those_of_plain_decoding(plain: LLM, guessing: LLM) -> None:
    params = SamplingParams(
        temperature=0.6, seed=3, max_tokens=20, ignore_eos=True, return_hidden_states=True, return_logits=True
    )
    (expected,) = plain.generate(PROMPTS[0], params, use_tqdm=False)
    (got,) = guessing.generate(PROMPTS[0], params, use_tqdm=False)
    np.testing.assert_array_equal(got.prompt_hidden_states, expected.prompt_hidden_states)
    np.testing.assert_array_equal(got.outputs[0].hidden_states, expected.outputs[0].hidden_states)
    np.testing.assert_array_equal(got.outputs[0].logits, expected.outputs[0].logits)
    assert got.outputs[0].logits.shape[0] == 20


def test_max_model_len_is_kept(tiny_model: Path) -> None:
    for config in (None, NGRAM, {"model": str(tiny_model), "num_speculative_tokens": 7}):
        with LLM(str(tiny_model), max_model_len=40, speculative_config=config, **BLOCKS) as llm:
            ids = [[70 + i % 3 for i in range(30)]]
            (output,) = llm.generate(ids, SamplingParams(temperature=0, max_tokens=None, ignore_eos=True))
            assert len(output.outputs[0].token_ids) == 10 and output.outputs[0].finish_reason == "length"


# What was guessed.


def counts_of(tiny_model: Path, draft: Path) -> tuple[dict[str, float], list[int]]:
    config = {"model": str(draft), "method": "draft_model", "num_speculative_tokens": 3}
    with LLM(str(tiny_model), speculative_config=config, **BLOCKS) as llm:
        params = SamplingParams(temperature=0, max_tokens=41, ignore_eos=True)
        (output,) = llm.generate(PROMPTS[:1], params, use_tqdm=False)
        return llm.stats(), output.metrics.spec_token_acceptance_counts


def test_a_draft_that_is_always_right(tiny_model: Path) -> None:
    stats, counts = counts_of(tiny_model, tiny_model)
    assert stats["num_draft_tokens"] == stats["num_accepted_tokens"] == 30
    assert counts == [11, 10, 10, 10] and stats["num_steps"] == 11


def test_a_draft_that_is_never_right(tiny_model: Path, contrary_model: Path) -> None:
    stats, counts = counts_of(tiny_model, contrary_model)
    assert stats["num_accepted_tokens"] == 0 and stats["num_draft_tokens"] > 100
    assert counts == [41, 0, 0, 0] and stats["num_steps"] == 41


def test_nothing_is_counted_without(plain: LLM) -> None:
    (output,) = plain.generate(PROMPTS[:1], SamplingParams(max_tokens=4), use_tqdm=False)
    assert output.metrics.spec_token_acceptance_counts is None
    assert plain.stats()["num_draft_tokens"] == plain.stats()["num_accepted_tokens"] == 0


# The distribution.

ALLOWED = [66, 77, 88, 99, 110]


def exact_probabilities(model: Path, prompt: list[int], length: int) -> dict[tuple[int, ...], float]:
    """Of every output of that length, by transformers in float64."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    exact: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        longer = {}
        for output, mass in exact.items():
            with torch.no_grad():
                logits = reference(torch.tensor([prompt + list(output)])).logits[0, -1, ALLOWED]
            for token, share in zip(ALLOWED, torch.softmax(logits, 0).tolist(), strict=True):
                longer[(*output, token)] = mass * share
        exact = longer
    return exact


@pytest.mark.parametrize("method", ["ngram", "other"])
def test_draws_have_the_models_distribution(method: str, tiny_model: Path, other_model: Path) -> None:
    """Pearson's statistic of whole outputs; the first token is drawn without drafts, the others behind them."""
    prompt = [5, *itertools.chain.from_iterable([token, other] for token in ALLOWED for other in ALLOWED), 66]
    exact = exact_probabilities(tiny_model, prompt, 3)
    config = {
        "ngram": {**NGRAM, "prompt_lookup_max": 2},
        "other": {"model": str(other_model), "num_speculative_tokens": 2},
    }
    draws = 40_000
    with LLM(str(tiny_model), dtype="float32", speculative_config=config[method], seed=1, max_model_len=128) as llm:
        params = SamplingParams(
            temperature=1, max_tokens=3, allowed_token_ids=ALLOWED, ignore_eos=True, n=200, detokenize=False
        )
        outputs = llm.generate([prompt] * (draws // 200), params, use_tqdm=False)
        accepted, drafted = llm.stats()["num_accepted_tokens"], llm.stats()["num_draft_tokens"]
    assert 0.05 * drafted < accepted < 0.95 * drafted and drafted > draws / 2
    seen = dict.fromkeys(exact, 0)
    for output in outputs:
        for one in output.outputs:
            seen[tuple(one.token_ids)] += 1
    assert sum(seen.values()) == draws
    common = [output for output, mass in exact.items() if mass * draws >= 5]
    rare = 1 - sum(exact[output] for output in common)
    expected = [exact[output] * draws for output in common] + ([rare * draws] if rare * draws >= 5 else [])
    got = [seen[output] for output in common]
    if len(expected) > len(got):
        got.append(draws - sum(got))
    statistic = sum((have - want) ** 2 / want for have, want in zip(got, expected, strict=True))
    degrees = len(expected) - 1
    assert degrees > 40
    # Wilson and Hilferty: its cube root is about normal. Four standard deviations.
    limit = degrees * (1 - 2 / (9 * degrees) + 4 * (2 / (9 * degrees)) ** 0.5) ** 3
    assert statistic < limit, f"{statistic:.1f} with {degrees} degrees of freedom, accepted {accepted} of {drafted}"


# What is taken and refused.


def test_ngram_by_name_of_the_model(tiny_model: Path) -> None:
    for config in ({"model": "ngram", "num_speculative_tokens": 2}, {"model": "[ngram]", "num_speculative_tokens": 2}):
        kept = dict(config)
        with LLM(str(tiny_model), speculative_config=config, **BLOCKS) as llm:
            ids = [[70 + i % 7 for i in range(40)]]
            llm.generate(ids, SamplingParams(temperature=0, max_tokens=30, ignore_eos=True), use_tqdm=False)
        assert config == kept


def test_the_three_short_arguments(tiny_model: Path) -> None:
    with LLM(str(tiny_model), spec_model=str(tiny_model), spec_tokens=2, **BLOCKS) as llm:
        llm.generate(PROMPTS, SamplingParams(max_tokens=10), use_tqdm=False)
        assert llm.stats()["num_accepted_tokens"] > 0


def test_keys_without_effect_are_taken(tiny_model: Path) -> None:
    config = {
        **NGRAM,
        "acceptance_method": "rejection_sampler",
        "posterior_threshold": 0.09,
        "posterior_alpha": 0.3,
        "draft_tensor_parallel_size": 1,
        "disable_logprobs": False,
        "disable_mqa_scorer": False,
        "disable_by_batch_size": 8,
        "quantization": None,
        "max_model_len": None,
    }
    with LLM(str(tiny_model), speculative_config=config, **BLOCKS) as llm:
        assert llm.generate(PROMPTS, SamplingParams(max_tokens=2), use_tqdm=False)


REFUSED = [
    ({"num_speculative_tokens": 3}, ValueError, "num_speculative_tokens was provided without speculative model."),
    (
        {"method": "ngram"},
        ValueError,
        "num_speculative_tokens must be provided with speculative model unless the draft",
    ),
    ({"model": "DRAFT"}, ValueError, "num_speculative_tokens must be provided"),
    (
        {**NGRAM, "num_speculative_tokens": 0},
        ValueError,
        "Expected num_speculative_tokens to be greater than zero (0).",
    ),
    ({**NGRAM, "num_speculative_tokens": "3"}, TypeError, "num_speculative_tokens must be an integer, got '3'"),
    ({**NGRAM, "num_speculative_tokens": 5000}, ValueError, "num_speculative_tokens must be in [1, 1024], got 5000"),
    ({**NGRAM, "prompt_lookup_min": 0}, ValueError, "prompt_lookup_min=0 must be > 0"),
    ({**NGRAM, "prompt_lookup_max": 0}, ValueError, "prompt_lookup_max=0 must be > 0"),
    ({**NGRAM, "prompt_lookup_min": 4}, ValueError, "prompt_lookup_min=4 must be <= prompt_lookup_max=3"),
    ({**NGRAM, "model": "DRAFT"}, ValueError, "the method 'ngram' takes no model"),
    ({**NGRAM, "max_model_len": 9}, ValueError, "max_model_len has no meaning with the method 'ngram'"),
    ({"model": "DRAFT", "num_speculative_tokens": 2, "prompt_lookup_max": 3}, ValueError, "prompt_lookup_max has no"),
    ({"model": "DRAFT", "num_speculative_tokens": 2, "max_model_len": 0}, ValueError, "max_model_len must be positive"),
    ({"method": "draft_model", "num_speculative_tokens": 2}, ValueError, "'draft_model' needs `model`"),
    ({"method": "guess", "num_speculative_tokens": 2}, ValueError, "unknown method 'guess'. Known: ngram, draft_model"),
    ({**NGRAM, "lookahead": 3, "depth": 1}, ValueError, "unknown keys depth, lookahead. Known:"),
    ({**NGRAM, "acceptance_method": "hope"}, ValueError, "Instead it is hope."),
    ({**NGRAM, "acceptance_method": "typical_acceptance_sampler"}, NotImplementedError, "typical_acceptance_sampler"),
    ({**NGRAM, "draft_tensor_parallel_size": 2}, NotImplementedError, "draft_tensor_parallel_size=2"),
    ({**NGRAM, "quantization": "fp8"}, NotImplementedError, "quantization='fp8'"),
    ({**NGRAM, "code_revision": "main"}, NotImplementedError, "code_revision='main'"),
    ({**NGRAM, "disable_by_batch_size": 1}, ValueError, "Expect the batch size threshold of disabling"),
    ({"model": "yuhuili/EAGLE-LLaMA3", "num_speculative_tokens": 2}, NotImplementedError, "the method 'eagle'"),
    ({"model": "/no/such/draft", "num_speculative_tokens": 2}, Exception, "/no/such/draft does not exist"),
    ("ngram", TypeError, "speculative_config must be a dict, got 'ngram'"),
    *(
        (
            {"method": method, "num_speculative_tokens": 2},
            NotImplementedError,
            f"the method '{method}' is not supported",
        )
        for method in "eagle eagle3 medusa mlp_speculator mtp deepseek_mtp suffix ngram_gpu".split()
    ),
]


@pytest.mark.parametrize(("config", "kind", "message"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_refusals(config: Any, kind: type[Exception], message: str, tiny_model: Path) -> None:
    if isinstance(config, dict) and config.get("model") == "DRAFT":
        config = {**config, "model": str(tiny_model)}
    with pytest.raises(kind) as caught:
        LLM(str(tiny_model), speculative_config=config, **BLOCKS)
    assert message in str(caught.value)


def test_both_spellings_at_once_are_refused(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="not both"):
        LLM(str(tiny_model), speculative_config=NGRAM, spec_tokens=3, **BLOCKS)


def test_vocabularies_must_be_the_same(tiny_model: Path, tmp_path: Path) -> None:
    draft = write_llama(tmp_path / "small", with_tokenizer=False, vocab_size=256)
    with pytest.raises(ValueError, match=r"has a vocabulary of 256 tokens and the model one of \d+"):
        LLM(str(tiny_model), speculative_config={"model": str(draft), "num_speculative_tokens": 2}, **BLOCKS)


def test_heads_are_no_models(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "medusa"}))
    with pytest.raises(NotImplementedError, match="of the type 'medusa'"):
        LLM(str(tiny_model), speculative_config={"model": str(tmp_path), "num_speculative_tokens": 2}, **BLOCKS)


def test_an_emulated_gpu_gives_the_same(tiny_model: Path, other_model: Path, simt_plugin: Path) -> None:
    options = {"device": "simt", "max_num_seqs": 4, "max_num_batched_tokens": 64, **BLOCKS}
    params = SamplingParams(temperature=0.5, seed=2, max_tokens=10, ignore_eos=True, logprobs=1)
    prompts = [[70 + i % 4 for i in range(20)], [90 + i % 3 for i in range(9)]]
    with LLM(str(tiny_model), **options) as llm:
        expected = told(llm.generate(prompts, params, use_tqdm=False))
    for config in (NGRAM, {"model": str(other_model), "num_speculative_tokens": 2}):
        with LLM(str(tiny_model), speculative_config=config, **options) as llm:
            assert told(llm.generate(prompts, params, use_tqdm=False)) == expected
            assert llm.stats()["num_draft_tokens"] > 0
