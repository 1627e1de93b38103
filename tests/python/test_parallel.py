"""tensor_parallel_size on the CPU: everything an LLM does, on ranks that share the model, as one rank does it."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_llama
from quire import LLM, BeamSearchParams, SamplingParams
from safetensors.numpy import load_file
from typer.testing import CliRunner

PROMPTS = ["Once upon a time", "The dog", "One day the cat said: do not take my ball, and"]


@pytest.fixture(scope="module", params=[2, 4])
def parallel(request: pytest.FixtureRequest, tiny_model: Path) -> Any:
    with LLM(str(tiny_model), seed=0, num_gpu_blocks_override=512, tensor_parallel_size=request.param) as engine:
        yield engine


def tokens(llm: LLM, params: SamplingParams, prompts: list[Any] = PROMPTS) -> list[list[list[int]]]:
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return [[completion.token_ids for completion in output.outputs] for output in outputs]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0, max_tokens=24, ignore_eos=True),
        SamplingParams(temperature=0.8, top_p=0.9, seed=3, max_tokens=24, n=3, ignore_eos=True),
        SamplingParams(temperature=0, max_tokens=24, repetition_penalty=1.3, min_tokens=5, stop=["qu"]),
        SamplingParams(temperature=0, max_tokens=12, logit_bias={7: 4.0}, bad_words=["a"]),
        SamplingParams(temperature=0, max_tokens=12, logits_processors=[lambda ids, row: row * -1.0]),
    ],
    ids=["greedy", "drawn", "penalties", "bias", "processor"],
)
def test_tokens_of_one_rank(llm: LLM, parallel: LLM, params: SamplingParams) -> None:
    assert tokens(parallel, params) == tokens(llm, params)


def test_same_bits_every_time(parallel: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=16, logprobs=4, prompt_logprobs=2, ignore_eos=True)

    def logprobs(prompts: list[str]) -> list[Any]:
        outputs = parallel.generate(prompts, params, use_tqdm=False)
        return [(output.outputs[0].logprobs, output.outputs[0].token_ids, output.prompt_logprobs) for output in outputs]

    together = logprobs(PROMPTS)
    assert logprobs(PROMPTS) == together
    assert [logprobs([prompt])[0] for prompt in PROMPTS] == together


def test_logprobs_are_close_to_those_of_one_rank(llm: LLM, parallel: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=8, prompt_logprobs=0, logprobs=0, ignore_eos=True)
    for one, several in zip(llm.generate(PROMPTS, params), parallel.generate(PROMPTS, params), strict=True):
        for name in ("cumulative_logprob",):
            assert getattr(one.outputs[0], name) == pytest.approx(getattr(several.outputs[0], name), abs=1e-3)
        for a, b in zip(one.prompt_logprobs[1:], several.prompt_logprobs[1:], strict=True):
            assert next(iter(a.values())).logprob == pytest.approx(next(iter(b.values())).logprob, abs=1e-3)


def test_beam_search(llm: LLM, parallel: LLM) -> None:
    params = BeamSearchParams(beam_width=3, max_tokens=8)
    prompts = [{"prompt": prompt} for prompt in PROMPTS]
    expected = [[beam.tokens for beam in output.sequences] for output in llm.beam_search(prompts, params)]
    assert [[beam.tokens for beam in output.sequences] for output in parallel.beam_search(prompts, params)] == expected


def test_speculation_with_ngrams(llm: LLM, tiny_model: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    ngram = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    with LLM(str(tiny_model), seed=0, tensor_parallel_size=2, speculative_config=ngram) as guessing:
        assert tokens(guessing, params) == tokens(llm, params)


@pytest.mark.parametrize("ranks", [2, 4])
def test_drafts_change_no_bit(tiny_model: Path, tmp_path: Path, ranks: int) -> None:
    """The first rank guesses, with all of the draft model; it sleeps and wakes with the rest."""
    options: dict[str, Any] = {"seed": 0, "num_gpu_blocks_override": 256, "tensor_parallel_size": ranks}
    greedy = SamplingParams(temperature=0, max_tokens=24, logprobs=2, ignore_eos=True)
    drawn = SamplingParams(temperature=0.8, top_p=0.9, seed=3, max_tokens=24, n=3, logprobs=1, ignore_eos=True)

    def told(llm: LLM) -> list[Any]:
        outputs = [*llm.generate(PROMPTS, greedy, use_tqdm=False), *llm.generate(PROMPTS, drawn, use_tqdm=False)]
        return [[(one.token_ids, one.logprobs) for one in output.outputs] for output in outputs]

    with LLM(str(tiny_model), **options) as llm:
        plain = told(llm)
    for draft in (tiny_model, write_llama(tmp_path / "draft", seed=7, num_attention_heads=2, num_key_value_heads=1)):
        drafts = {"model": str(draft), "num_speculative_tokens": 3}
        with LLM(str(tiny_model), speculative_config=drafts, enable_sleep_mode=True, **options) as llm:
            assert told(llm) == plain
            counted = llm.stats()
            assert counted["num_draft_tokens"] > 0
            if draft == tiny_model:
                assert counted["num_accepted_tokens"] > 0.5 * counted["num_draft_tokens"]
            llm.sleep(level=1)
            llm.wake_up()
            assert told(llm) == plain
            llm.sleep(level=2)
            llm.wake_up()
            llm.reload_weights()
            assert told(llm) == plain


def test_returned_states(llm: LLM, parallel: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, return_hidden_states=True, return_logits=True)
    one, several = (engine.generate(PROMPTS[:1], params, use_tqdm=False)[0] for engine in (llm, parallel))
    np.testing.assert_allclose(several.prompt_hidden_states, one.prompt_hidden_states, atol=1e-3)
    np.testing.assert_allclose(several.outputs[0].logits, one.outputs[0].logits, atol=1e-3)


def test_quantized(tiny_model: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=4, prompt_logprobs=0)
    values = []
    for ranks in (1, 2):
        with LLM(str(tiny_model), quantization="int8", tensor_parallel_size=ranks, num_gpu_blocks_override=64) as llm:
            output = llm.generate(PROMPTS[:1], params, use_tqdm=False)[0]
            values.append([next(iter(entry.values())).logprob for entry in output.prompt_logprobs[1:]])
    assert np.abs(np.subtract(*values)).max() < 0.3
    assert values[0] != values[1]  # each rank has scales of its own


def test_no_thread_is_left(tiny_model: Path) -> None:
    def num_threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    LLM(str(tiny_model), num_gpu_blocks_override=64).close()
    before = num_threads()
    with LLM(str(tiny_model), num_gpu_blocks_override=64, tensor_parallel_size=4, num_threads=4) as llm:
        assert num_threads() >= before + 3
        llm.generate(PROMPTS, use_tqdm=False)
    assert num_threads() == before
    assert threading.active_count() >= 1


def test_memory_and_configuration(llm: LLM, tiny_model: Path) -> None:
    with LLM(str(tiny_model), num_gpu_blocks_override=64, tensor_parallel_size=2) as engine:
        assert engine.llm_engine.parallel_config.tensor_parallel_size == 2
        assert engine.llm_engine.parallel_config.world_size == 2
        assert engine.llm_engine.vllm_config.parallel_config.pipeline_parallel_size == 1
    assert llm.llm_engine.parallel_config.world_size == 1


def test_info(tiny_model: Path) -> None:
    from quire.cli import app

    def info(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["info", str(tiny_model), *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    assert "rank 0" not in info()
    shown = info("--set", "tensor_parallel_size=2")
    assert "rank 0" in shown and "rank 1" in shown and "rank 2" not in shown
    plan = json.loads(info("--json", "--set", "tensor_parallel_size=2"))
    assert plan["tensor_parallel_size"] == 2
    for name in ("weight_bytes", "workspace_bytes", "kv_cache_bytes"):
        assert sum(rank[name] for rank in plan["ranks"]) == plan[name]
    alone = json.loads(info("--json"))
    assert alone["ranks"] == []
    assert all(rank["weight_bytes"] < 0.7 * alone["weight_bytes"] for rank in plan["ranks"])


@pytest.mark.parametrize("backend", [None, "uni", "mp"])
def test_executor_backends(llm: LLM, tiny_model: Path, backend: str | None) -> None:
    params = SamplingParams(temperature=0, max_tokens=8)
    with LLM(str(tiny_model), tensor_parallel_size=2, distributed_executor_backend=backend) as engine:
        assert tokens(engine, params) == tokens(llm, params)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pipeline_parallel_size": 2}, "layers dealt out among devices"),
        ({"distributed_executor_backend": "ray"}, "threads of the calling process"),
    ],
)
def test_refusals(tiny_model: Path, arguments: dict[str, Any], message: str) -> None:
    text = json.dumps(arguments).replace("{model}", str(tiny_model))
    with pytest.raises(NotImplementedError) as caught:
        LLM(str(tiny_model), tensor_parallel_size=2, **json.loads(text))
    assert message in str(caught.value)


def test_ranks_sleep_and_take_new_weights(tiny_model: Path, tmp_path: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    other = write_llama(tmp_path / "other", seed=99)
    with LLM(str(other), tensor_parallel_size=2, num_gpu_blocks_override=64) as llm:
        wanted = tokens(llm, params)
    with LLM(str(tiny_model), tensor_parallel_size=2, num_gpu_blocks_override=64, enable_sleep_mode=True) as llm:
        before = tokens(llm, params)
        assert before != wanted
        llm.sleep(level=1)
        llm.wake_up()
        assert tokens(llm, params) == before
        llm.sleep(level=2)
        llm.wake_up(tags=["weights"])
        llm.load_weights(load_file(other / "model.safetensors").items())
        llm.wake_up(tags=["kv_cache"])
        assert tokens(llm, params) == wanted
        with pytest.raises(ValueError, match="no such weight"):
            llm.load_weights(
                [("model.norm.weight", np.ones(64, np.float32)), ("no such weight", np.ones(2, np.float32))]
            )
        assert tokens(llm, params) == wanted
        llm.reload_weights()
        assert tokens(llm, params) == before


def test_workers_of_all_ranks(tiny_model: Path) -> None:
    with LLM(str(tiny_model), tensor_parallel_size=2, num_gpu_blocks_override=64) as llm:
        assert llm.collective_rpc(lambda worker: (worker.rank, worker.local_rank)) == [(0, 0), (1, 1)]
        assert llm.collective_rpc("weights_version") == [0, 0]
        names = llm.collective_rpc("load_weights", args=([("model.norm.weight", np.ones(64, np.float32))],))
        assert names == [{"model.norm.weight"}, {"model.norm.weight"}]


def test_two_ranks_on_one_emulated_gpu(simt_plugin: Path, llm: LLM, tiny_model: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    small: dict[str, Any] = {"max_model_len": 64, "max_num_batched_tokens": 64, "max_num_seqs": 4}
    with LLM(str(tiny_model), device="simt:0,0", tensor_parallel_size=2, **small) as engine:
        assert tokens(engine, params, PROMPTS[:2]) == tokens(llm, params, PROMPTS[:2])
    with pytest.raises(ValueError, match="lists 3 devices for tensor_parallel_size=2"):
        LLM(str(tiny_model), device="simt:0,0,0", tensor_parallel_size=2, **small)
    with pytest.raises(ValueError, match='disable_custom_all_reduce=true.*one rank a device.*"simt:0,0"'):
        LLM(str(tiny_model), device="simt:0,0", tensor_parallel_size=2, disable_custom_all_reduce=True, **small)
