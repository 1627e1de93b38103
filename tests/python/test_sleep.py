"""LLM.sleep and wake_up: memory is given back and comes back, results are the same, and who is asleep says so.

On the CPU, and on the emulated GPU. Resident memory is measured on a model whose packed weights are large enough to be
seen.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from checkpoints import write_llama
from quire import LLM, SamplingParams
from safetensors.numpy import load_file

PARAMS = SamplingParams(temperature=0.8, seed=5, max_tokens=4, logprobs=2, ignore_eos=True, n=2)
PROMPTS = ["Once upon a time", "The dog"]
MIB = 1 << 20
SMALL: dict[str, Any] = {"max_model_len": 128, "max_num_seqs": 4, "num_gpu_blocks_override": 64, "seed": 0}


def completions(llm: LLM, params: SamplingParams = PARAMS) -> list[Any]:
    """Token ids and log-probabilities, exact."""
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    return [
        (c.token_ids, [{t: one.logprob for t, one in entry.items()} for entry in c.logprobs or []])
        for output in outputs
        for c in output.outputs
    ]


@pytest.fixture(params=["cpu", "simt"])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "simt":
        request.getfixturevalue("simt_plugin")
    return str(request.param)


@pytest.fixture
def sleeper(device: str, tiny_model: Path) -> Iterator[LLM]:
    with LLM(str(tiny_model), device=device, enable_sleep_mode=True, **SMALL) as llm:
        yield llm


def test_sleep_and_wake_up_give_the_same_results(sleeper: LLM) -> None:
    before = completions(sleeper)
    for tags in (None, ["weights", "kv_cache"], ["scheduling", "kv_cache", "weights"]):
        sleeper.sleep()
        assert sleeper.is_sleeping() and sleeper.llm_engine.is_sleeping()
        assert sleeper.wake_up(tags=tags) is True
        assert not sleeper.is_sleeping() and not sleeper.llm_engine.is_sleeping()
        assert completions(sleeper) == before


@pytest.fixture(scope="session")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shape of tiny_model with other values."""
    return write_llama(tmp_path_factory.mktemp("other-llama"), seed=99)


def tensors_of(folder: Path) -> list[tuple[str, Any]]:
    return list(load_file(folder / "model.safetensors").items())


@pytest.mark.parametrize("level", [1, 2])
def test_the_pattern_of_reinforcement_learning(
    sleeper: LLM, device: str, level: int, tiny_model: Path, other_weights: Path
) -> None:
    """Weights wake, others are loaded into them in two parts, then the cache wakes."""
    with LLM(str(other_weights), device=device, **SMALL) as other:
        wanted = completions(other)
    before = completions(sleeper)
    assert before != wanted
    for folder, expected in ((other_weights, wanted), (tiny_model, before)):
        sleeper.sleep(level=level)
        with pytest.raises(ValueError, match="the weights are asleep"):
            sleeper.load_weights(tensors_of(folder))
        assert sleeper.wake_up(tags=["weights"]) is False
        tensors = tensors_of(folder)
        sleeper.load_weights(tensors[:5])
        sleeper.load_weights(iter(tensors[5:]))
        with pytest.raises(ValueError, match="asleep: kv_cache"):
            completions(sleeper)
        assert sleeper.wake_up(tags=["kv_cache"]) is True
        assert completions(sleeper) == expected
    # What was loaded is in no file: level 1 brings it back all the same.
    sleeper.load_weights(tensors_of(other_weights))
    sleeper.sleep(level=1)
    sleeper.wake_up()
    assert completions(sleeper) == wanted


def test_level_2_says_that_the_weights_are_gone(sleeper: LLM, tiny_model: Path) -> None:
    before = completions(sleeper)
    sleeper.sleep(level=2)
    assert sleeper.wake_up() is True
    with pytest.raises(ValueError, match=r"dropped by sleep\(level=2\)"):
        completions(sleeper)
    tensors = tensors_of(tiny_model)
    sleeper.load_weights(tensors[:3])
    with pytest.raises(ValueError, match=r"dropped by sleep\(level=2\)"):  # some are still gone
        completions(sleeper)
    sleeper.load_weights(tensors[3:])
    assert completions(sleeper) == before
    sleeper.sleep(level=2)
    sleeper.wake_up(tags=["weights"])
    sleeper.collective_rpc("reload_weights")
    sleeper.wake_up()
    assert completions(sleeper) == before


def test_requests_are_refused_in_sleep(sleeper: LLM) -> None:
    before = completions(sleeper)
    sleeper.sleep(level=1)
    calls: list[Callable[[], Any]] = [
        lambda: sleeper.generate("a", use_tqdm=False),
        lambda: next(iter(sleeper.stream("a"))),
        lambda: list(sleeper.generate_iter(["a"])),
        lambda: sleeper.enqueue(["a", "b"]),
        lambda: sleeper.chat([{"role": "user", "content": "a"}], use_tqdm=False),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"asleep \(level 1.*wake_up\(\)"):
            call()
    sleeper.wake_up()
    assert completions(sleeper) == before
    assert sleeper.stats()["num_waiting"] == 0


def test_modes(sleeper: LLM) -> None:
    before = completions(sleeper)

    def enqueue() -> None:
        sleeper.enqueue(PROMPTS, PARAMS)
        sleeper._engine.run([], 0)  # under way

    def finished() -> list[Any]:
        outputs = sleeper.wait_for_completion(use_tqdm=False)
        return [c.token_ids for output in outputs for c in output.outputs]

    expected = [ids for ids, _ in before]
    for level in (0, 1):
        enqueue()
        sleeper.sleep(level, "keep")
        with pytest.raises(ValueError, match="asleep"):
            sleeper.wait_for_completion(use_tqdm=False)
        sleeper.wake_up()
        assert finished() == expected, "kept requests go on"
    enqueue()
    sleeper.sleep(1, mode="wait")
    assert finished() == expected, "they had finished before"
    sleeper.wake_up()
    enqueue()
    sleeper.sleep(1)
    aborted = sleeper.wait_for_completion(use_tqdm=False)
    assert {c.finish_reason for output in aborted for c in output.outputs} == {"abort"}
    sleeper.wake_up()
    assert completions(sleeper) == before


def test_level_0_and_the_cache_alone(device: str, tiny_model: Path) -> None:
    with LLM(str(tiny_model), device=device, **SMALL) as llm:
        before = completions(llm)
        llm.sleep(level=0)
        with pytest.raises(ValueError, match="asleep: scheduling"):
            completions(llm)
        with pytest.raises(ValueError, match="enable_sleep_mode"):
            llm.release_kv_cache_memory()
        assert llm.wake_up(["scheduling"]) is True
        assert completions(llm) == before
    with LLM(str(tiny_model), device=device, enable_sleep_mode=True, **SMALL) as llm:
        with pytest.raises(ValueError, match=r"sleep\(level=0\) first"):
            llm.release_kv_cache_memory()
        llm.sleep(level=0, mode="keep")
        llm.release_kv_cache_memory()
        llm.release_kv_cache_memory()
        assert llm.wake_up(["kv_cache"]) is True
        assert completions(llm) == before


def test_a_call_of_another_thread_goes_on(tiny_model: Path) -> None:
    long = SamplingParams(temperature=0, max_tokens=120, ignore_eos=True)
    with LLM(str(tiny_model), enable_sleep_mode=True, **SMALL) as llm:
        expected = completions(llm, long)
        got: list[Any] = []
        has_begun = threading.Event()

        def slowly(tokens: list[int], logits: Any) -> Any:
            has_begun.set()
            time.sleep(0.002)
            return logits

        params = SamplingParams(temperature=0, max_tokens=120, ignore_eos=True, logits_processors=[slowly])
        thread = threading.Thread(target=lambda: got.extend(completions(llm, params)))
        thread.start()
        assert has_begun.wait(60)
        llm.sleep(level=1, mode="keep")
        assert llm.stats()["num_waiting"] == len(PROMPTS)
        llm.wake_up()
        thread.join(60)
        assert got == expected


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda llm: llm.sleep(3), ValueError, "level must be 0, 1 or 2"),
        (lambda llm: llm.sleep("1"), TypeError, "level must be"),
        (lambda llm: llm.sleep(True), TypeError, "level must be"),
        (lambda llm: llm.sleep(1, mode="now"), ValueError, "abort, wait, keep"),
        (lambda llm: llm.wake_up("weights"), TypeError, r"did you mean \['weights'\]"),
        (lambda llm: llm.wake_up([1]), TypeError, "list of strings"),
    ],
)
def test_bad_arguments(llm: LLM, call: Callable[[LLM], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(llm)
    assert not llm.is_sleeping()


def test_sleep_mode_must_be_enabled(llm: LLM) -> None:
    for level in (1, 2):
        with pytest.raises(ValueError, match="Sleep mode is not enabled in the model config"):
            llm.sleep(level)
    assert not llm.is_sleeping()


def test_what_does_nothing_is_logged(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with LLM(str(tiny_model), enable_sleep_mode=True, **SMALL) as llm, caplog.at_level(logging.WARNING, "quire"):
        assert llm.wake_up() is True
        assert "the engine is awake" in caplog.text
        llm.sleep()
        llm.sleep()
        assert "sleeps already" in caplog.text
        assert llm.wake_up([]) is False
        assert llm.wake_up(["everything"]) is False
        assert '"everything"' in caplog.text
        assert llm.wake_up() is True


def test_closed_while_asleep(sleeper: LLM) -> None:
    sleeper.sleep()
    sleeper.close()
    for call in (sleeper.sleep, sleeper.wake_up, sleeper.is_sleeping, sleeper.release_kv_cache_memory):
        with pytest.raises(RuntimeError, match="closed"):
            call()


def test_pooling(device: str, pooling_folders: dict[str, Path]) -> None:
    with LLM(str(pooling_folders["embed"]), device=device, enable_sleep_mode=True) as llm:
        before = [output.outputs.embedding for output in llm.embed(PROMPTS, use_tqdm=False)]
        for tags in (None, ["kv_cache", "weights"]):
            llm.sleep(level=1)
            assert llm.is_sleeping() and llm.llm_engine.is_sleeping()
            with pytest.raises(ValueError, match="asleep"):
                llm.embed(PROMPTS, use_tqdm=False)
            assert llm.wake_up(tags) is True
            assert [output.outputs.embedding for output in llm.embed(PROMPTS, use_tqdm=False)] == before
        llm.sleep(level=0, mode="wait")
        with pytest.raises(ValueError, match="no KV cache"):
            llm.release_kv_cache_memory()
        llm.sleep(level=2)
        llm.wake_up()
        with pytest.raises(ValueError, match=r"dropped by sleep\(level=2\)"):
            llm.embed(PROMPTS, use_tqdm=False)
        llm.reload_weights()
        assert [output.outputs.embedding for output in llm.embed(PROMPTS, use_tqdm=False)] == before


# Memory.


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 330 MB of float32 weights."""
    return write_llama(
        tmp_path_factory.mktemp("large"),
        hidden_size=1024,
        intermediate_size=8192,
        num_hidden_layers=3,
        num_attention_heads=16,
        num_key_value_heads=4,
    )


_MEASURE = """
import sys, psutil
from quire import LLM, SamplingParams
resident = lambda: psutil.Process().memory_info().rss
empty = resident()
llm = LLM(sys.argv[1], enable_sleep_mode=True, quantization=sys.argv[2] or None, kv_cache_memory_bytes=64 << 20)
params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
before = llm.generate("Once", params, use_tqdm=False)[0].outputs[0].token_ids
sizes = [llm.info()["weight_bytes"], empty, resident()]
for level in (1, 1, 2):
    llm.sleep(level)
    sizes.append(resident())
    llm.wake_up()
    if level == 1:
        assert llm.generate("Once", params, use_tqdm=False)[0].outputs[0].token_ids == before
print(*sizes)
"""


@pytest.mark.parametrize("quantization", ["", "int8"])
def test_resident_memory_in_sleep(large: Path, quantization: str) -> None:
    """In a process of its own, so that nothing else is counted: what is left is the tokenizer, the libraries' own
    memory, and no weights, cache or scratch."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(large), quantization], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    weights, empty, loaded, *asleep = map(int, done.stdout.split())
    assert weights > (60 if quantization else 250) * MIB, "there is something to free"
    for size in asleep:
        assert size - empty < 100 * MIB
        assert loaded - size > 0.95 * weights
    assert asleep[1] - asleep[0] < 16 * MIB, "sleeping twice leaves nothing more behind"


def test_cycles_of_two_models_do_not_grow(large: Path, tiny_model: Path) -> None:
    """20 times two models are loaded, used, put to sleep and closed; half of the large one would be 170 MiB."""

    def cycle() -> None:
        with LLM(str(tiny_model), **SMALL) as small:
            big = LLM(str(large), enable_sleep_mode=True, kv_cache_memory_bytes=16 << 20)
            for llm in (big, small):
                llm.generate("Once", SamplingParams(max_tokens=2, ignore_eos=True), use_tqdm=False)
            big.sleep(level=1)
            big.close()

    for _ in range(2):  # what is loaded once stays
        cycle()
    before = psutil.Process().memory_info().rss
    num_files = psutil.Process().num_fds()
    for _ in range(18):
        cycle()
    assert psutil.Process().memory_info().rss - before < 24 * MIB
    assert psutil.Process().num_fds() == num_files
