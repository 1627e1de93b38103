"""close() where a call on the LLM is under way: an error in what that call runs, a wait in another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_llama
from pooling_models import HIDDEN, write_bert
from quire import LLM, SamplingParams
from test_weights import PROMPTS, results, vectors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("closing") / "a", seed=1)


def in_time(work: Callable[[], None], seconds: float = 60) -> None:
    """Runs it, and fails where it never ends."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"not done within {seconds} s"
    if errors:
        raise errors[0]


@pytest.mark.parametrize("ranks", [1, 2])
def test_closing_within_a_call_is_an_error(folder: Path, ranks: int) -> None:
    with LLM(str(folder), seed=0, tensor_parallel_size=ranks, num_gpu_blocks_override=32) as llm:
        old = results(llm)

        def closing() -> Iterator[tuple[str, np.ndarray]]:
            yield "model.norm.weight", np.ones(64, np.float32)
            llm.close()

        def close_and_go_on(token_ids: list[int], logits: Any) -> Any:
            llm.close()
            return logits

        def generate() -> None:  # what a processor raises ends its request alone
            params = SamplingParams(max_tokens=2, logits_processors=[close_and_go_on])
            (output,) = llm.generate(PROMPTS[:1], params, use_tqdm=False)
            raise RuntimeError(output.error)

        for work, message in (
            (lambda: llm.load_weights(closing()), r"close\(\) was called by what a call on this LLM runs"),
            (generate, r"close\(\) was called by what a call on this LLM runs"),
            (lambda: llm.collective_rpc(lambda worker: llm.close()), r"close\(\) was called by what collective_rpc"),
            (lambda: llm.apply_model(lambda model: llm.close()), r"close\(\) was called by what collective_rpc"),
        ):
            with pytest.raises(RuntimeError, match=message):
                in_time(work)
            assert results(llm) == old and llm.get_weight_version() == 0
    with pytest.raises(RuntimeError, match="This LLM is closed"):
        llm.get_weight_version()


def test_closing_a_pooling_model_within_a_call(tmp_path: Path) -> None:
    with LLM(str(write_bert(tmp_path / "a")), task="embed") as llm:

        def closing() -> Iterator[tuple[str, np.ndarray]]:
            yield "embeddings.LayerNorm.bias", np.zeros(HIDDEN, np.float32)
            llm.close()

        old = vectors(llm)
        with pytest.raises(RuntimeError, match=r"close\(\) was called by what a call on this LLM runs"):
            in_time(lambda: llm.load_weights(closing()))
        assert vectors(llm) == old


def test_closing_from_another_thread_waits(folder: Path) -> None:
    llm = LLM(str(folder), seed=0)
    closing = threading.Thread(target=llm.close, daemon=True)

    def feeding() -> Iterator[tuple[str, np.ndarray]]:
        closing.start()
        yield "model.norm.weight", np.ones(64, np.float32)

    in_time(lambda: llm.load_weights(feeding()))
    closing.join(60)
    assert not closing.is_alive()
    with pytest.raises(RuntimeError, match="This LLM is closed"):
        llm.get_weight_version()
