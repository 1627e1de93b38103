"""load_weights and reload_weights of the workers of several ranks: together, all or nothing, never waiting for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_llama
from quire import LLM
from safetensors.numpy import load_file
from test_weights import results, tensors_of

torch = pytest.importorskip("torch")

UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.norm.weight"


def write(folder: Path, seed: int) -> Path:
    sizes = {"vocab_size": 211, "intermediate_size": 130}
    return write_llama(folder, seed=seed, with_tokenizer=False, tie_word_embeddings=True, **sizes)


def open_llm(folder: Path, ranks: int, **options: Any) -> LLM:
    options = {"seed": 0, "num_gpu_blocks_override": 32, "skip_tokenizer_init": True, **options}
    return LLM(str(folder), tensor_parallel_size=ranks, num_threads=ranks, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("one") / "a", 4)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("other") / "b", 5)


@pytest.fixture
def shared(folder: Path) -> Iterator[LLM]:
    with open_llm(folder, 2) as llm:
        yield llm


def load_on_all(worker: Any, source: Path, way: str) -> Any:
    tensors = load_file(source / "model.safetensors")
    given: Any = tensors if way == "mapping" else list(tensors.items())
    return worker.model_runner.model.load_weights(iter(given) if way == "iterator" else given)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("way", ["mapping", "list", "iterator"])
def test_every_rank_loads(folder: Path, other: Path, way: str, ranks: int) -> None:
    with open_llm(other, ranks) as fresh:
        want = results(fresh)
    with open_llm(folder, ranks) as llm:
        assert llm.collective_rpc(load_on_all, args=(other, way)) == [set(tensors_of(other))] * ranks
        assert results(llm) == want and llm.get_weight_version() == 1
        llm.collective_rpc("reload_weights")
        assert results(llm) != want and llm.get_weight_version() == 2
        llm.collective_rpc("reload_weights", kwargs={"weights_path": other})
        assert results(llm) == want and llm.collective_rpc("weights_version") == [3] * ranks


def test_ranks_that_wait_for_each_other_while_they_load(shared: LLM, other: Path) -> None:
    """As those do that receive every tensor together."""
    with open_llm(other, 2) as fresh:
        want = results(fresh)
    barrier = threading.Barrier(2)

    def load(worker: Any) -> None:
        def received() -> Iterator[tuple[str, np.ndarray]]:
            for item in tensors_of(other).items():
                barrier.wait(60)
                yield item

        worker.model.get_parameter(NORM).zero_()  # is overwritten
        worker.model.load_weights(received())
        worker.model.get_parameter(UP).mul_(2)
        worker.model.load_weights([(NORM, tensors_of(other)[NORM])])
        worker.model.get_parameter(UP).mul_(0.5)  # of what was written before the norm was loaded

    shared.collective_rpc(load)
    assert results(shared) == want


def test_loading_that_fails_on_a_rank(shared: LLM, other: Path) -> None:
    old = results(shared)
    tensors = tensors_of(other)

    def stopping(rank: int) -> Callable[[Any], Any]:
        def load(worker: Any) -> Any:
            def some() -> Iterator[tuple[str, np.ndarray]]:
                for position, item in enumerate(tensors.items()):
                    if worker.rank == rank and position == 5:
                        raise KeyError(f"of rank {rank}")
                    yield item

            return worker.load_weights(some())

        return load

    for rank in (0, 1):
        with pytest.raises(KeyError, match=f"of rank {rank}"):
            shared.collective_rpc(stopping(rank))

    def only_one(worker: Any) -> Any:
        return worker.load_weights(tensors) if worker.rank == 0 else None

    with pytest.raises(RuntimeError, match="rank 0 asked for load_weights, to which rank 1 never came"):
        shared.collective_rpc(only_one)

    def fewer(worker: Any) -> Any:
        return worker.load_weights([item for item in tensors.items() if worker.rank == 0 or item[0] != NORM])

    with pytest.raises(ValueError, match=f"different weights: {NORM} on rank 0 alone, nothing on rank 1 alone"):
        shared.collective_rpc(fewer)

    def two_things(worker: Any) -> Any:
        return worker.load_weights(tensors) if worker.rank == 0 else worker.reload_weights()

    with pytest.raises(ValueError, match="rank 0 for load_weights, rank 1 for reload_weights"):
        shared.collective_rpc(two_things)

    def raising(worker: Any) -> Any:
        if worker.rank == 1:
            raise OSError("rank 1 is not well")
        worker.load_weights(tensors)

    with pytest.raises(OSError, match="rank 1 is not well"):  # and not what rank 0 says of it
        shared.collective_rpc(raising)
    with pytest.raises(ValueError, match="1 unexpected"):
        shared.collective_rpc("load_weights", args=([("x", np.zeros(1, np.float32))],))
    assert results(shared) == old and shared.get_weight_version() == 0


def test_ranks_that_come_too_late(folder: Path, other: Path) -> None:
    tensors = tensors_of(other)
    with open_llm(folder, 2, collective_timeout=0.5) as llm:
        old = results(llm)
        may_go = threading.Event()

        def load(worker: Any) -> Any:
            if worker.rank == 1:
                may_go.wait()
                return None
            try:
                return worker.load_weights(tensors)
            finally:
                may_go.set()

        with pytest.raises(RuntimeError, match=r"rank 1 did not come within 0.5 s \(collective_timeout\)"):
            llm.collective_rpc(load)

        is_loading = threading.Event()

        def asking(worker: Any) -> Any:
            def some() -> Iterator[tuple[str, np.ndarray]]:
                if worker.rank == 0:
                    is_loading.set()
                yield from tensors.items()
                if worker.rank == 1:
                    is_loading.wait()
                    llm.get_weight_version()

            return worker.load_weights(some())

        with pytest.raises(RuntimeError, match=r"rank 1 did not come to the end of the weights within 0.5 s"):
            llm.collective_rpc(asking)
        assert results(llm) == old and llm.get_weight_version() == 0


def test_outside_of_a_call_one_worker_changes_all(shared: LLM, other: Path) -> None:
    with open_llm(other, 2) as fresh:
        want = results(fresh)
    for worker in shared.llm_engine.model_executor.workers:
        shared.reload_weights()
        assert results(shared) != want
        worker.model_runner.model.load_weights(tensors_of(other))
        assert results(shared) == want
    with pytest.raises(RuntimeError, match=r"inside LLM.apply_model\(func\) and LLM.collective_rpc"):
        list(worker.get_model().named_parameters())
