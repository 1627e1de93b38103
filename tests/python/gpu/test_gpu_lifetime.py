"""Engines on the device come and go: memory is given back, two live at once, a failure leaves the device usable."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from checkpoints import write_llama
from quire import LLM, SamplingParams

pytestmark = pytest.mark.gpu

MB = 1 << 20
PARAMS = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
PROMPTS = [[5, 6, 7, 8], [9, 10], [11] * 33]


def memory_used(device: str) -> int:
    """Of the GPU by everybody; the emulation and the CPU live in this process."""
    gc.collect()
    if device != "cuda":
        return psutil.Process().memory_info().rss
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
    return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]) * MB


def tokens(llm: LLM) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in llm.generate(PROMPTS, PARAMS, use_tqdm=False)]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 45 MB of weights, so that a leak shows."""
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 32}
    return write_llama(tmp_path_factory.mktemp("large"), **shape)


@pytest.mark.parametrize("way", ["close", "with", "del"])
def test_memory_is_given_back(way: str, device: str, large: Path) -> None:
    arguments = {"device": device, "kv_cache_memory_bytes": 256 * MB}
    LLM(str(large), **arguments).close()  # what a process keeps for good: the context, loaded kernels
    before = memory_used(device)
    for _ in range(3):
        llm = LLM(str(large), **arguments)
        assert len(tokens(llm)) == len(PROMPTS)
        info = llm.info()
        # Pages of the KV cache are touched when they are used, except on a GPU.
        held = info["weight_bytes"] + (info["kv_cache_bytes"] if device == "cuda" else 0)
        assert memory_used(device) - before >= 0.8 * held
        if way == "close":
            llm.close()
        elif way == "with":
            with llm:
                pass
        del llm
    assert memory_used(device) - before <= 24 * MB


def test_a_closed_engine_says_so(make_llm, tmp_path: Path) -> None:
    llm = make_llm(write_llama(tmp_path / "model"))
    llm.close()
    llm.close()
    for call in (lambda: llm.generate([[1]], PARAMS, use_tqdm=False), llm.stats, llm.info):
        with pytest.raises(RuntimeError, match="closed"):
            call()


def test_two_engines_at_once(make_llm, tmp_path: Path) -> None:
    """Each gives what it gives alone, though both work at the same time, from two threads."""
    folders = [write_llama(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    alone = []
    for folder in folders:
        llm = make_llm(folder)
        alone.append(tokens(llm))
        llm.close()
    assert alone[0] != alone[1]
    both = [make_llm(folder) for folder in folders]
    assert [tokens(llm) for llm in both] == alone
    found: list[list[list[list[int]]]] = [[], []]

    def work(i: int) -> None:
        for _ in range(4):
            found[i].append(tokens(both[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[alone[0]] * 4, [alone[1]] * 4]
    both[0].close()
    assert tokens(both[1]) == alone[1]


def test_too_much_memory_is_refused_and_the_device_goes_on(make_llm, device: str, tmp_path: Path) -> None:
    if device != "cuda":
        pytest.skip("memory of the host is reserved, not taken: an exact size is never refused there")
    folder = write_llama(tmp_path / "model")
    expected = tokens(make_llm(folder))
    with pytest.raises((RuntimeError, ValueError, MemoryError), match=r"(?i)memory|bytes|GiB"):
        make_llm(folder, num_gpu_blocks_override=None, kv_cache_memory_bytes=1 << 50)
    assert tokens(make_llm(folder)) == expected


def test_bad_requests_leave_the_engine_usable(make_llm, tmp_path: Path) -> None:
    llm = make_llm(write_llama(tmp_path / "model"))
    expected = tokens(llm)
    for prompt in ([10**6], [-1], [5] * 1000, []):
        with pytest.raises(ValueError):
            llm.generate([prompt], PARAMS, use_tqdm=False)
    iterator = llm.generate_iter(PROMPTS * 4, PARAMS)
    next(iterator)
    iterator.close()  # abandons what is in flight
    assert tokens(llm) == expected
    stats = llm.stats()
    assert stats["num_running"] == stats["num_waiting"] == 0


def test_the_device_is_what_was_asked_for(make_llm, device: str, tmp_path: Path) -> None:
    assert make_llm(write_llama(tmp_path / "model")).info()["device"] == device


def test_without_a_gpu_cuda_is_refused_by_name(device: str, tmp_path: Path) -> None:
    """In a process that sees no GPU, whatever the build can do."""
    folder = write_llama(tmp_path / "model")
    code = f"from quire import LLM; LLM({str(folder)!r}, device='cuda', num_gpu_blocks_override=16)"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert "Error" in last and "cuda" in last.lower(), last
