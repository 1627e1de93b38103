"""tensor_parallel_size of pooling models on the CPU: whatever they do, as one rank does it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pooling_models import (
    HIDDEN,
    as_sentence_transformer,
    write_bert,
    write_process_reward_model,
    write_qwen3_with_answers,
)
from quire import LLM, PoolingParams
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

TEXTS = ["the dog found a ball", "the sun", "one day the cat said: do not take my ball, and it was warm", "a"]
CLASSIFIER = "classifier.weight"


def open_llm(folder: Path, ranks: int, **options: Any) -> LLM:
    return LLM(str(folder), tensor_parallel_size=ranks, dtype="float32", **options)


def vectors(llm: LLM) -> np.ndarray:
    return np.array([output.outputs.embedding for output in llm.embed(TEXTS, use_tqdm=False)], np.float32)


def probabilities(llm: LLM) -> np.ndarray:
    return np.array([output.outputs.probs for output in llm.classify(TEXTS, use_tqdm=False)], np.float32)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_sentence_transformer(write_bert(tmp_path_factory.mktemp("encoder") / "a", num_attention_heads=4))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("classifier") / "a", num_labels=3, num_attention_heads=4)


@pytest.fixture
def classifying(classifier: Path) -> Iterator[LLM]:
    with open_llm(classifier, 2, task="classify") as llm:
        yield llm


@pytest.mark.parametrize("ranks", [2, 4])
def test_embed_and_score(encoder: Path, ranks: int) -> None:
    with open_llm(encoder, 1) as llm:
        want, scores = vectors(llm), [one.outputs.score for one in llm.score(TEXTS[0], TEXTS, use_tqdm=False)]
    with open_llm(encoder, ranks) as llm:
        assert np.abs(vectors(llm) - want).max() < 1e-5
        got = [one.outputs.score for one in llm.score(TEXTS[0], TEXTS, use_tqdm=False)]
        np.testing.assert_allclose(got, scores, atol=1e-5)
        assert llm.llm_engine.parallel_config.world_size == ranks


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_same_bits_whatever_the_threads_and_batch(encoder: Path, num_threads: int) -> None:
    with open_llm(encoder, 4, num_threads=4) as llm:
        want = vectors(llm)
    with open_llm(encoder, 4, num_threads=num_threads, max_num_batched_tokens=24, max_num_seqs=2) as llm:
        assert np.array_equal(vectors(llm), want)
        alone = [llm.embed(text, use_tqdm=False)[0].outputs.embedding for text in TEXTS]
        assert np.array_equal(np.array(alone, np.float32), want)


def test_layers_and_modes_of_sentence_transformers(tmp_path: Path) -> None:
    """What is pooled on the host, and a dense layer behind it: of the first rank."""
    pooling = {f"pooling_mode_{one}": True for one in ("cls_token", "mean_tokens", "max_tokens")}
    folder = as_sentence_transformer(write_bert(tmp_path / "a"), dense=8, pooling=pooling, num_modes=3)
    with open_llm(folder, 1) as one, open_llm(folder, 2) as two:
        assert vectors(one).shape == (len(TEXTS), 8)
        assert np.abs(vectors(one) - vectors(two)).max() < 1e-5


def test_classify(classifier: Path, classifying: LLM) -> None:
    with open_llm(classifier, 1, task="classify") as one:
        want = probabilities(one)
    assert want.std() > 0.01
    assert np.abs(probabilities(classifying) - want).max() < 1e-5


def test_colbert(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "a", architectures=["HF_ColBERT"], colbert_dim=12)
    file = folder / "model.safetensors"
    projection = np.random.default_rng(3).standard_normal((12, HIDDEN)).astype(np.float32)
    tensors = {f"bert.{name}": one for name, one in load_file(file).items()}
    save_file({**tensors, "linear.weight": projection}, file, metadata={"format": "pt"})
    answers = []
    for ranks in (1, 2):
        with open_llm(folder, ranks) as llm:
            outputs = llm.encode(TEXTS, pooling_task="token_embed", use_tqdm=False)
            score = llm.score(TEXTS[0], TEXTS[1], use_tqdm=False)[0].outputs.score
            answers.append([*(output.outputs.data.numpy() for output in outputs), np.array([score])])
    for one, two in zip(*answers, strict=True):
        np.testing.assert_allclose(two, one, atol=1e-5)


def test_reward_of_steps(tmp_path: Path) -> None:
    folder = write_process_reward_model(tmp_path / "a")
    text = "the dog found a ball<extra_0> the cat was warm<extra_0>"
    answers = []
    for ranks in (1, 2, 4):
        with open_llm(folder, ranks) as llm:
            answers.append(llm.reward(text, use_tqdm=False)[0].outputs.data.numpy())
    assert answers[0].shape == (2, 2)
    for other in answers[1:]:
        np.testing.assert_allclose(other, answers[0], atol=1e-5)


def test_a_reranker_of_rows_of_the_head(tmp_path: Path) -> None:
    """Its classifier is made of rows that no rank but the first has; new weights make it anew."""
    folder, other = write_qwen3_with_answers(tmp_path / "a"), write_qwen3_with_answers(tmp_path / "b")
    tensors = {name: one * np.float32(0.5) for name, one in load_file(other / "model.safetensors").items()}
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    overrides = {
        "architectures": ["Qwen3ForSequenceClassification"],
        "classifier_from_token": ["no", "yes"],
        "is_original_qwen3_reranker": True,
    }

    def scores(llm: LLM) -> list[float]:
        return [one.outputs.score for one in llm.score(TEXTS[0], TEXTS, use_tqdm=False)]

    with open_llm(folder, 1, task="score", hf_overrides=overrides) as one:
        want = scores(one)
    with open_llm(other, 2, task="score", hf_overrides=overrides) as fresh:
        changed = scores(fresh)
    with open_llm(folder, 2, task="score", hf_overrides=overrides) as llm:
        before = scores(llm)
        np.testing.assert_allclose(before, want, atol=1e-5)
        llm.load_weights(tensors)
        assert scores(llm) == changed != before


def test_int8(encoder: Path) -> None:
    answers = []
    for ranks in (1, 2):
        with open_llm(encoder, ranks, quantization="int8") as llm:
            answers.append(vectors(llm))
    assert np.abs(answers[0] - answers[1]).max() < 0.1
    assert not np.array_equal(*answers)  # each rank has scales of its own


def test_no_thread_is_left(encoder: Path) -> None:
    def num_threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    open_llm(encoder, 1).close()
    before = num_threads()
    with open_llm(encoder, 4, num_threads=4) as llm:
        assert num_threads() >= before + 3
        vectors(llm)
    assert num_threads() == before
    assert threading.active_count() >= 1


def test_memory_of_ranks(encoder: Path) -> None:
    from quire.cli import app

    def info(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["info", str(encoder), *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    assert "rank 0" not in info()
    shown = info("--set", "tensor_parallel_size=2")
    assert "rank 1" in shown and "rank 2" not in shown
    alone, plan = json.loads(info("--json")), json.loads(info("--json", "--set", "tensor_parallel_size=2"))
    assert plan["tensor_parallel_size"] == 2 and alone["ranks"] == []
    for name in ("weight_bytes", "workspace_bytes"):
        assert sum(rank[name] for rank in plan["ranks"]) == plan[name]
    assert all(rank["weight_bytes"] < 0.8 * alone["weight_bytes"] for rank in plan["ranks"])
    assert plan["num_parameters"] == alone["num_parameters"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"tensor_parallel_size": 3},
            ValueError,
            r"attention heads \(4\) must be divisible by tensor parallel size \(3\)",
        ),
        (
            {"tensor_parallel_size": 8},
            ValueError,
            r"attention heads \(4\) must be divisible by tensor parallel size \(8\)",
        ),
        ({"tensor_parallel_size": 9}, ValueError, "must be from 1 to 8, got 9"),
        ({"tensor_parallel_size": 2, "collective_timeout": 0}, ValueError, "collective_timeout must be positive"),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, NotImplementedError, "pipeline_parallel_size=2"),
    ],
)
def test_refusals_come_before_loading(
    classifier: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """The checkpoint is not there: whoever opened it would say so."""
    for file in classifier.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(error, match=message):
        LLM(str(tmp_path), task="classify", **options)


def test_workers_of_all_ranks(classifying: LLM, classifier: Path) -> None:
    llm, stored = classifying, load_file(classifier / "model.safetensors")
    assert llm.collective_rpc(lambda worker: (worker.rank, worker.local_rank)) == [(0, 0), (1, 1)]
    zeros = np.zeros_like(stored[CLASSIFIER])
    assert llm.collective_rpc("load_weights", args=([(CLASSIFIER, zeros)],)) == [{CLASSIFIER}, {CLASSIFIER}]
    assert llm.collective_rpc("weights_version") == [1, 1]
    bias = stored["classifier.bias"].astype(np.float64)
    want = np.exp(bias) / np.exp(bias).sum()
    assert np.abs(probabilities(llm) - want).max() < 1e-5


def test_a_rank_that_fails_in_a_call_changes_nothing(classifying: LLM) -> None:
    def fail(worker: Any) -> None:
        if worker.rank == 1:
            raise RuntimeError("rank 1 had enough")
        worker.load_weights([(CLASSIFIER, np.zeros((3, HIDDEN), np.float32))])

    before = probabilities(classifying)
    with pytest.raises(RuntimeError, match="rank 1 had enough"):
        classifying.collective_rpc(fail)
    assert np.array_equal(probabilities(classifying), before)
    assert classifying.get_weight_version() == 0


def test_parameters_of_ranks(classifying: LLM, classifier: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    stored = load_file(classifier / "model.safetensors")
    shapes = classifying.apply_model(lambda model: {name: tuple(p.shape) for name, p in model.named_parameters()})
    layer = "encoder.layer.0."
    for of_rank in shapes:
        assert of_rank.keys() == {name.removeprefix("bert.") for name in stored}
        assert of_rank[f"{layer}attention.self.query.weight"] == (HIDDEN // 2, HIDDEN)
        assert of_rank[f"{layer}attention.output.dense.weight"] == (HIDDEN, HIDDEN // 2)
        assert of_rank[f"{layer}intermediate.dense.bias"] == (24,)
        assert of_rank[CLASSIFIER] == (3, HIDDEN)  # the first rank's, shown by all

    def halve(model: Any) -> None:
        for parameter in model.parameters():
            parameter.mul_(0.5)

    write_bert(tmp_path, num_labels=3, num_attention_heads=4)
    halves = {name: one * np.float32(0.5) for name, one in stored.items()}
    save_file(halves, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with open_llm(tmp_path, 2, task="classify") as fresh:
        want = probabilities(fresh)
    classifying.apply_model(halve)
    assert np.array_equal(probabilities(classifying), want)
    assert classifying.get_weight_version() == 1

    def change_one(worker: Any) -> None:
        if worker.rank == 1:
            dict(worker.get_model().named_parameters())[CLASSIFIER].zero_()

    with pytest.raises(ValueError, match="classifier.weight was changed on rank 1 and not in the same way on rank 0"):
        classifying.collective_rpc(change_one)
    assert np.array_equal(probabilities(classifying), want)


def test_sleep_and_wake(encoder: Path) -> None:
    with open_llm(encoder, 2, enable_sleep_mode=True) as llm:
        before = vectors(llm)
        for level, tags in (
            (0, [None]),
            (1, [None]),
            (1, [["weights"], ["kv_cache"]]),
            (1, [["kv_cache"], ["weights"]]),
        ):
            llm.sleep(level=level)
            with pytest.raises(ValueError, match="asleep|sleep"):
                vectors(llm)
            for one in tags:
                llm.wake_up(one)
            assert np.array_equal(vectors(llm), before)
        llm.sleep(level=2)
        llm.wake_up()
        llm.reload_weights()
        assert np.array_equal(vectors(llm), before)
        with pytest.raises(ValueError, match="no_such"):
            llm.load_weights([("no_such", np.zeros(2, np.float32))])
        assert np.array_equal(vectors(llm), before)


def test_a_recording_and_figures(encoder: Path) -> None:
    with open_llm(encoder, 2) as llm:
        vectors(llm)
        assert llm.stats()["num_finished"] == len(TEXTS)
        raw = llm.encode(TEXTS[:1], PoolingParams(use_activation=False), use_tqdm=False)
        assert raw[0].outputs.data.shape == (HIDDEN,)
