"""Hidden states, vectors and scores of pooling models against transformers; the models: encoder_checkpoints.py.

float32: within 1e-4 of transformers, for every way of pooling.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from encoder_checkpoints import (  # noqa: E402
    CLASSIFIERS,
    DECODERS,
    ENCODERS,
    PoolingCase,
    build,
    hidden_states,
    logits,
    save,
)
from quire import LLM, PoolingParams  # noqa: E402

TOLERANCE = 1e-4
MODELS = {case.name: case for case in (*ENCODERS, *DECODERS)}
HEADS = {case.name: case for case in CLASSIFIERS}
POOLED = {"LAST": lambda rows: rows[-1], "CLS": lambda rows: rows[0], "MEAN": lambda rows: rows.mean(0)}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory):
    folders: dict[str, Path] = {}

    def get(case: PoolingCase) -> str:
        if case.name not in folders:
            folders[case.name] = save(case, tmp_path_factory.mktemp(case.name))
        return str(folders[case.name])

    return get


def prompts(case: PoolingCase) -> list[dict]:
    return [
        {"prompt_token_ids": ids, **({} if types is None else {"token_type_ids": types})}
        for ids, types in zip(case.texts(), case.token_types(), strict=True)
    ]


def difference(got: list[np.ndarray], want: list[np.ndarray]) -> float:
    assert [one.shape for one in got] == [one.shape for one in want]
    return max(float(np.abs(a - b).max()) for a, b in zip(got, want, strict=True))


def pooled(llm: LLM, case: PoolingCase, **options) -> list[np.ndarray]:
    return [output.outputs.data.numpy() for output in llm.encode(prompts(case), use_tqdm=False, **options)]


def normalized(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


@pytest.mark.parametrize("name", MODELS)
def test_hidden_states(name: str, checkpoints) -> None:
    case = MODELS[name]
    want = hidden_states(case)
    # A comparison says something only if the vectors differ from each other.
    assert np.concatenate(want).std() > 0.3
    assert min(np.abs(np.diff(rows, axis=0)).max(axis=1).min() for rows in want if len(rows) > 1) > 0.1
    with LLM(checkpoints(case), task="embed", skip_tokenizer_init=True) as llm:
        raw = PoolingParams(use_activation=False)
        assert difference(pooled(llm, case, pooling_task="token_embed", pooling_params=raw), want) <= TOLERANCE
        unit = [np.stack([normalized(row) for row in rows]) for rows in want]
        assert difference(pooled(llm, case, pooling_task="token_embed"), unit) <= TOLERANCE


@pytest.mark.parametrize("pooling_type", POOLED)
@pytest.mark.parametrize("name", ["bert-plain", "qwen3-model", "mistral-window"])
def test_pooling_types(name: str, pooling_type: str, checkpoints) -> None:
    case = MODELS[name]
    want = [POOLED[pooling_type](rows) for rows in hidden_states(case)]
    config = {"pooling_type": pooling_type}
    with LLM(checkpoints(case), task="embed", skip_tokenizer_init=True, override_pooler_config=config) as llm:
        got = [np.array(output.outputs.embedding) for output in llm.embed(prompts(case), use_tqdm=False)]
        assert difference(got, [normalized(vector) for vector in want]) <= TOLERANCE
    config["normalize"] = False
    with LLM(checkpoints(case), task="embed", skip_tokenizer_init=True, pooler_config=config) as llm:
        assert difference(pooled(llm, case), want) <= TOLERANCE


def test_default_pooling(checkpoints) -> None:
    """BERT takes the first token, decoders the last."""
    for name, pooling_type in {"bert-plain": "CLS", "qwen3-for-causal-lm": "LAST", "llama-model": "LAST"}.items():
        case = MODELS[name]
        want = [normalized(POOLED[pooling_type](rows)) for rows in hidden_states(case)]
        with LLM(checkpoints(case), task="embed", skip_tokenizer_init=True) as llm:
            assert difference(pooled(llm, case), want) <= TOLERANCE


@pytest.mark.parametrize("name", HEADS)
def test_classify(name: str, checkpoints) -> None:
    case = HEADS[name]
    raw = logits(case)
    assert np.std(raw) > 0.1
    want = [softmax(x) if len(x) > 1 else 1 / (1 + np.exp(-x)) for x in raw]
    with LLM(checkpoints(case), task="classify", skip_tokenizer_init=True) as llm:
        got = [np.array(output.outputs.probs) for output in llm.classify(prompts(case), use_tqdm=False)]
        assert difference(got, want) <= TOLERANCE
        assert difference(pooled(llm, case, pooling_params=PoolingParams(use_activation=False)), raw) <= TOLERANCE
        if name.startswith(("qwen", "llama", "mistral")):  # the classifiers of encoders read the first token
            rows = pooled(llm, case, pooling_task="token_classify", pooling_params=PoolingParams(use_activation=False))
            assert difference([one[-1] for one in rows], raw) <= TOLERANCE


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "name",
    ["bert-plain", "roberta-plain", "mpnet-plain", "t5-gated-gelu", "modernbert-biases", "gte-plain", "qwen3-model"],
)
def test_low_precision(name: str, dtype: str, checkpoints) -> None:
    """quire's error must not exceed what transformers' own run in that dtype shows."""
    case = MODELS[name]
    want = hidden_states(case)
    model = build(case).to(getattr(torch, dtype))
    with torch.no_grad():
        own = [
            model(torch.tensor([ids]), **({} if types is None else {"token_type_ids": torch.tensor([types])}))
            .last_hidden_state[0]
            .float()
            .numpy()
            for ids, types in zip(case.texts(), case.token_types(), strict=True)
        ]
    with LLM(checkpoints(case), task="embed", skip_tokenizer_init=True, dtype=dtype) as llm:
        raw = PoolingParams(use_activation=False)
        got = pooled(llm, case, pooling_task="token_embed", pooling_params=raw)

    def error(rows: list[np.ndarray]) -> float:
        return float(np.sqrt(np.mean((np.concatenate(rows) - np.concatenate(want)) ** 2)))

    assert 0 < error(got) <= error(own)


def reward_model(tmp_path: Path, process: bool) -> tuple[Path, PoolingCase, list[np.ndarray]]:
    """A Qwen2 reward model, which is not of transformers, and what its two layers make of each token."""
    case = PoolingCase("qwen2-reward", "Qwen2Model", MODELS["qwen2-model"].config)
    from safetensors.torch import load_file, save_file

    save(case, tmp_path)
    generator = torch.Generator().manual_seed(5)
    hidden, outputs = case.config["hidden_size"], 2 if process else 1
    head = {
        "score.0.weight": torch.randn(hidden, hidden, generator=generator) / 8,
        "score.0.bias": torch.randn(hidden, generator=generator) / 8,
        "score.2.weight": torch.randn(outputs, hidden, generator=generator) / 8,
        "score.2.bias": torch.randn(outputs, generator=generator) / 8,
    }
    tensors = {f"model.{name}": tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file({**tensors, **head}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["Qwen2ForProcessRewardModel" if process else "Qwen2ForRewardModel"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    scores = []
    for rows in hidden_states(case):
        inner = torch.relu(torch.tensor(rows) @ head["score.0.weight"].T + head["score.0.bias"])
        scores.append((inner @ head["score.2.weight"].T + head["score.2.bias"]).numpy())
    return tmp_path, case, scores


def test_reward(tmp_path: Path) -> None:
    folder, case, want = reward_model(tmp_path, process=False)
    with LLM(str(folder), skip_tokenizer_init=True) as llm:
        assert llm.llm_engine.model_config.task == "reward"
        got = [output.outputs.data.numpy() for output in llm.reward(prompts(case), use_tqdm=False)]
        assert difference(got, want) <= TOLERANCE


def test_process_reward_returns_its_steps(tmp_path: Path) -> None:
    folder, case, want = reward_model(tmp_path, process=True)
    texts = case.texts()
    tag = texts[2][5]
    rows = [[i for i, token in enumerate(ids) if token == tag] for ids in texts]
    assert 0 < sum(map(len, rows)) < sum(map(len, texts)) and [] in rows
    config = {"pooling_type": "STEP", "step_tag_id": tag, "returned_token_ids": [1]}
    with LLM(str(folder), skip_tokenizer_init=True, override_pooler_config={**config, "softmax": False}) as llm:
        got = [output.outputs.data.numpy() for output in llm.reward(prompts(case), use_tqdm=False)]
        assert difference([one for one in got if len(one)], [w[r][:, 1:] for w, r in zip(want, rows) if r]) <= TOLERANCE
        assert [one.shape for one in got] == [(len(r), 1) for r in rows]
    del config["returned_token_ids"]
    with LLM(str(folder), skip_tokenizer_init=True, override_pooler_config=config) as llm:
        got = [output.outputs.data.numpy() for output in llm.reward(prompts(case), use_tqdm=False)]
        probabilities = [np.array([softmax(row) for row in w[r]]) for w, r in zip(want, rows) if r]
        assert difference([one for one in got if len(one)], probabilities) <= TOLERANCE


def test_reward_of_a_plain_decoder_is_its_hidden_states(checkpoints) -> None:
    case = MODELS["qwen3-for-causal-lm"]
    with LLM(checkpoints(case), task="reward", skip_tokenizer_init=True) as llm:
        got = [output.outputs.data.numpy() for output in llm.reward(prompts(case), use_tqdm=False)]
        assert difference(got, hidden_states(case)) <= TOLERANCE


@pytest.mark.parametrize("name", ["bert-head-dim-64", "modernbert-plain", "mpnet-head-dim-64", "t5-gated-gelu"])
def test_batches_change_no_bit(name: str, checkpoints) -> None:
    case = MODELS[name]
    with LLM(checkpoints(case), task="embed", skip_tokenizer_init=True) as llm:
        together = pooled(llm, case)
        for prompt, one in zip(prompts(case), together, strict=True):
            (alone,) = llm.encode(prompt, use_tqdm=False)
            assert np.array_equal(alone.outputs.data.numpy(), one)


@pytest.mark.parametrize("name", ["bert-plain", "bert-head-dim-64", "qwen3-model", "mpnet-plain", "t5-gated-gelu"])
@pytest.mark.parametrize("pooling_type", ["CLS", "MEAN", "ALL"])
def test_emulated_gpu(name: str, pooling_type: str, checkpoints, simt_plugin) -> None:
    case = PoolingCase(**{**vars(MODELS[name]), "lengths": (1, 9, 30)})
    folder = checkpoints(MODELS[name])
    config = {"pooling_type": pooling_type}
    options = {"task": "embed", "skip_tokenizer_init": True, "pooler_config": config}
    with LLM(folder, device="simt", **options) as gpu, LLM(folder, **options) as cpu:
        together = pooled(gpu, case)
        assert difference(together, pooled(cpu, case)) <= TOLERANCE
        (alone,) = gpu.encode(prompts(case)[1], use_tqdm=False)
        assert np.array_equal(alone.outputs.data.numpy(), together[1])
