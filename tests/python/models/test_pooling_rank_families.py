"""Pooling models that ranks share: every family on 2 and 4 ranks as transformers has it and as one rank has it.

The models: encoder_checkpoints.py, with four heads, whatever they have there; widths stay odd. float32.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from encoder_checkpoints import (  # noqa: E402
    CLASSIFIERS,
    DECODERS,
    ENCODERS,
    PoolingCase,
    hidden_states,
    logits,
    save,
)
from quire import LLM, PoolingParams  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

TOLERANCE = 1e-4  # to transformers
NEAR = 2e-5  # to one rank, relative to numbers of up to about 5
RAW = PoolingParams(use_activation=False)
HEADS = {"hidden_size": 64, "num_attention_heads": 4}
SIZES: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 64, "n_heads": 4},
    "t5": {"num_heads": 4},
    "mt5": {"num_heads": 4},
    "gpt2": {"n_embd": 64, "n_head": 4},
}


def shared(case: PoolingCase) -> PoolingCase:
    sizes = dict(SIZES.get(case.name.split("-")[0], HEADS))
    if "head-dim-64" in case.name and "hidden_size" in sizes:
        sizes["hidden_size"] = 256
    return dataclasses.replace(case, config={**case.config, **sizes})


MODELS = {case.name: shared(case) for case in (*ENCODERS, *DECODERS)}
CLASSIFYING = {case.name: shared(case) for case in CLASSIFIERS}
# Positions, token types, relative biases, fused and gated layers, layers without a norm, key heads on several ranks.
FEW = [
    "bert-plain",
    "modernbert-biases",
    "nomic-bert-plain",
    "gte-plain",
    "mpnet-plain",
    "t5-gated-gelu",
    "qwen3-model",
]


def prompts(case: PoolingCase) -> list[Any]:
    return [
        {"prompt_token_ids": ids, **({} if types is None else {"token_type_ids": types})}
        for ids, types in zip(case.texts(), case.token_types(), strict=True)
    ]


def open_llm(folder: Path, ranks: int, **options: Any) -> LLM:
    return LLM(str(folder), tensor_parallel_size=ranks, skip_tokenizer_init=True, dtype="float32", **options)


def states(llm: LLM, texts: list[Any]) -> list[np.ndarray]:
    outputs = llm.encode(texts, RAW, pooling_task="token_embed", use_tqdm=False)
    return [output.outputs.data.numpy() for output in outputs]


def labels(llm: LLM, texts: list[Any]) -> list[np.ndarray]:
    return [output.outputs.data.numpy() for output in llm.encode(texts, RAW, use_tqdm=False)]


def difference(got: list[np.ndarray], want: list[np.ndarray]) -> float:
    assert [one.shape for one in got] == [one.shape for one in want]
    return max(float(np.abs(a - b).max()) for a, b in zip(got, want, strict=True))


def check(case: PoolingCase, folder: Path, task: str, answers: Any, want: list[np.ndarray]) -> None:
    folder = save(case, folder)
    texts = prompts(case)
    with open_llm(folder, 1, task=task) as llm:
        one = answers(llm, texts)
    assert difference(one, want) <= TOLERANCE
    for ranks in (2, 4):
        with open_llm(folder, ranks, task=task) as llm:
            several = answers(llm, texts)
            assert difference(several, want) <= TOLERANCE
            assert difference(several, one) <= NEAR * max(1.0, float(np.abs(np.concatenate(one)).max()))
            # The bits of a text are its own, whatever stands beside it.
            alone = [answers(llm, [text])[0] for text in texts]
            assert all(np.array_equal(a, b) for a, b in zip(alone, several, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_states(name: str, tmp_path: Path) -> None:
    check(MODELS[name], tmp_path, "embed", states, hidden_states(MODELS[name]))


@pytest.mark.parametrize("name", CLASSIFYING)
def test_labels(name: str, tmp_path: Path) -> None:
    check(CLASSIFYING[name], tmp_path, "classify", labels, logits(CLASSIFYING[name]))


@pytest.mark.parametrize("name", FEW)
def test_vectors(name: str, tmp_path: Path) -> None:
    folder = save(MODELS[name], tmp_path)
    for pooling_type in ("CLS", "MEAN", "LAST"):
        vectors = []
        for ranks in (1, 4):
            with open_llm(folder, ranks, task="embed", pooler_config={"pooling_type": pooling_type}) as llm:
                outputs = llm.embed(prompts(MODELS[name]), use_tqdm=False)
                vectors.append(np.array([output.outputs.embedding for output in outputs], np.float64))
        cosines = (vectors[0] * vectors[1]).sum(axis=1)
        assert np.abs(1 - cosines).max() < 1e-6
        assert np.abs(vectors[0] - vectors[1]).max() < 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", FEW)
def test_low_precision(name: str, dtype: str, tmp_path: Path) -> None:
    """Sums of ranks are float32: they cost no precision beside what the dtype costs."""
    case = MODELS[name]
    folder, want, errors = save(case, tmp_path), np.concatenate(hidden_states(case)), []
    for ranks in (1, 4):
        with LLM(str(folder), tensor_parallel_size=ranks, skip_tokenizer_init=True, dtype=dtype, task="embed") as llm:
            got = np.concatenate(states(llm, prompts(case)))
        errors.append(float(np.sqrt(np.mean((got - want) ** 2))))
    assert 0 < errors[1] <= 1.25 * errors[0]


@pytest.mark.parametrize("name", FEW)
def test_dummy_weights_are_those_of_one_rank(name: str, tmp_path: Path) -> None:
    folder = save(MODELS[name], tmp_path)
    answers = []
    for ranks in (1, 2, 4):
        with open_llm(folder, ranks, task="embed", load_format="dummy") as llm:
            answers.append(states(llm, prompts(MODELS[name])))
    assert max(difference(answers[0], other) for other in answers[1:]) <= NEAR * max(
        1.0, float(np.abs(np.concatenate(answers[0])).max())
    )


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", [*FEW, "bert-classifier-three", "modernbert-classifier-biases"])
def test_another_checkpoints_tensors(name: str, ranks: int, tmp_path: Path) -> None:
    case = {**MODELS, **CLASSIFYING}[name]
    task, answers = ("classify", labels) if name in CLASSIFYING else ("embed", states)
    before = save(case, tmp_path / "before")
    after = save(dataclasses.replace(case, name=f"{name}, of another seed"), tmp_path / "after")
    texts = prompts(case)

    def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
        return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))

    with open_llm(after, ranks, task=task) as fresh:
        want = answers(fresh, texts)
    tensors = load_file(after / "model.safetensors")
    with open_llm(before, ranks, task=task, enable_sleep_mode=True) as llm:
        old = answers(llm, texts)
        assert not same(old, want)
        llm.load_weights(reversed(list(tensors.items())))
        assert same(answers(llm, texts), want)
        llm.reload_weights()
        assert same(answers(llm, texts), old)
        llm.sleep(level=1)
        llm.wake_up()
        assert same(answers(llm, texts), old)
        llm.sleep(level=2)
        llm.wake_up()
        with pytest.raises(ValueError, match="the weights"):
            answers(llm, texts)
        llm.load_weights(tensors)
        assert same(answers(llm, texts), want)


def joined(parts: list[np.ndarray], whole: np.ndarray) -> bool:
    """Is `whole` what the ranks have together: the same on all, or shared out along an axis, fused parts apart?"""
    if all(part.shape == whole.shape for part in parts):
        return all(np.array_equal(part, whole) for part in parts)
    axes = [axis for axis in range(whole.ndim) if any(part.shape[axis] != whole.shape[axis] for part in parts)]
    if len(axes) != 1:
        return False
    for fused in (1, 2, 3):
        if any(part.shape[axes[0]] % fused for part in parts):
            continue
        pieces = [np.split(part, fused, axes[0]) for part in parts]
        together = np.concatenate([np.concatenate([one[i] for one in pieces], axes[0]) for i in range(fused)], axes[0])
        if np.array_equal(together, whole):
            return True
    return False


@pytest.mark.parametrize("name", [*FEW[:-1], "bert-classifier-three"])
def test_ranks_together_have_the_checkpoint(name: str, tmp_path: Path) -> None:
    case = {**MODELS, **CLASSIFYING}[name]
    folder = save(case, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    with open_llm(folder, 2, task="classify" if name in CLASSIFYING else "embed") as llm:
        ranks = llm.apply_model(lambda model: {key: one.numpy().copy() for key, one in model.state_dict().items()})
    assert len(ranks) == 2 and ranks[0].keys() == ranks[1].keys()
    compared = 0
    for key, parts in ((key, [state[key] for state in ranks]) for key in ranks[0]):
        found = [one for stored, one in tensors.items() if stored == key or stored.endswith(f".{key}")]
        if "relative_attention_bias" in key:  # what no distance is in has no bias, and is not kept
            assert parts[0].shape[1] == 2 and np.abs(np.concatenate(parts, 1) - found[0])[:8].max() == 0
        elif found:
            assert joined(parts, found[0]), key
        compared += len(found)
    assert compared >= 0.9 * len(ranks[0])
    shared_out = [key for key, one in ranks[0].items() if not np.array_equal(one, ranks[1][key])]
    assert len(shared_out) >= 2 * case.config.get("num_hidden_layers", case.config.get("num_layers", 2))


SIMT = [
    ("bert-plain", 2),
    ("bert-plain", 4),
    ("bert-classifier-three", 2),
    ("gte-plain", 2),
    ("mpnet-plain", 4),
    ("t5-gated-gelu", 2),
    ("qwen3-model", 2),
]


@pytest.mark.parametrize(("name", "ranks"), SIMT)
def test_ranks_on_one_emulated_gpu(name: str, ranks: int, tmp_path: Path, simt_plugin: Path) -> None:
    case = dataclasses.replace({**MODELS, **CLASSIFYING}[name], lengths=(1, 9, 30))
    task, answers, expected = ("classify", labels, logits) if name in CLASSIFYING else ("embed", states, hidden_states)
    other = dataclasses.replace(case, name=f"{name}, of another seed")
    texts, options = prompts(case), {"device": "simt:" + ",".join("0" * ranks), "enable_sleep_mode": True}
    with open_llm(save(case, tmp_path / "before"), ranks, task=task, **options) as llm:
        got = answers(llm, texts)
        assert difference(got, expected(case)) <= TOLERANCE
        (alone,) = answers(llm, texts[1:2])
        assert np.array_equal(alone, got[1])
        llm.sleep(level=1)
        llm.wake_up()
        assert all(np.array_equal(a, b) for a, b in zip(answers(llm, texts), got, strict=True))
        llm.load_weights(load_file(save(other, tmp_path / "after") / "model.safetensors"))
        with open_llm(tmp_path / "after", 1, task=task) as fresh:
            assert difference(answers(llm, texts), answers(fresh, texts)) <= TOLERANCE
