"""encode, embed, classify and reward as vLLM has them: tasks, parameters, outputs, files, truncation.

Models are random BERTs with a tokenizer of words; what they compute is compared in models/test_pooling_parity.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import TEXT
from pooling_models import HIDDEN, MAX_LENGTH, as_sentence_transformer, write_bert
from quire import (
    LLM,
    ClassificationRequestOutput,
    EmbeddingRequestOutput,
    PoolerConfig,
    PoolingOutput,
    PoolingParams,
    PoolingRequestOutput,
    ScoringRequestOutput,
)
from safetensors.numpy import load_file, save_file


def vectors(outputs: list[EmbeddingRequestOutput]) -> np.ndarray:
    return np.array([output.outputs.embedding for output in outputs])


# Which task a model is loaded for (spec 1.3).


def task_of(folder: Path, **options: Any) -> str:
    with LLM(str(folder), **options) as llm:
        assert llm.llm_engine.model_config.runner_type == (
            "generate" if llm.llm_engine.model_config.task == "generate" else "pooling"
        )
        return llm.llm_engine.model_config.task


@pytest.mark.parametrize(
    ("model", "options", "task"),
    [
        ("embed", {}, "embed"),  # modules.json with a Pooling module
        ("plain", {}, "embed"),
        ("score", {}, "score"),  # a cross-encoder
        ("classify", {}, "score"),
        ("classify", {"task": "classify"}, "classify"),
        ("classify", {"task": "embed"}, "embed"),
        ("decoder", {}, "generate"),
        ("decoder", {"task": "embed"}, "embed"),
        ("decoder", {"task": "reward"}, "reward"),
        ("decoder", {"runner": "pooling"}, "embed"),
        ("decoder", {"runner": "pooling", "convert": "embed"}, "embed"),
        ("decoder", {"convert": "embed"}, "embed"),
        ("decoder", {"runner": "generate"}, "generate"),
        ("decoder", {"convert": "none"}, "generate"),
        ("embed", {"runner": "pooling"}, "embed"),
        ("classify", {"runner": "pooling", "convert": "classify"}, "classify"),
    ],
)
def test_task(model: str, options: dict[str, Any], task: str, pooling_folders: dict[str, Path]) -> None:
    assert task_of(pooling_folders[model], **options) == task


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (
            "plain",
            {"task": "generate"},
            ValueError,
            "does not support the 'generate' task. Supported tasks: ",
        ),
        ("plain", {"runner": "generate"}, ValueError, "This model does not support the 'generate' task."),
        ("plain", {"task": "transcription"}, ValueError, "does not support the 'transcription' task"),
        ("plain", {"task": "classify"}, ValueError, "does not support the 'classify' task: BertModel has no head"),
        ("decoder", {"task": "classify"}, ValueError, "score.weight"),
        ("decoder", {"task": "dance"}, ValueError, "does not support the 'dance' task"),
        ("decoder", {"task": "embed", "runner": "pooling"}, ValueError, "say the same thing"),
        ("decoder", {"runner": "generate", "convert": "embed"}, ValueError, "convert='embed' makes a pooling model"),
        ("decoder", {"runner": "draft"}, NotImplementedError, "runner='draft'"),
        ("plain", {"pooler_config": {"pooling_type": "MAX"}}, ValueError, "Unknown pooling_type 'MAX'"),
        ("plain", {"pooler_config": {"pooling": "MEAN"}}, TypeError, "pooling"),
        ("plain", {"pooler_config": 3}, TypeError, "must be a PoolerConfig or a dict"),
        ("plain", {"pooler_config": {}, "override_pooler_config": {}}, ValueError, "say the same thing"),
        ("plain", {"pooler_config": {"returned_token_ids": [HIDDEN]}}, ValueError, f"column {HIDDEN}"),
        ("plain", {"pooler_config": {"logit_mean": 1.0}}, NotImplementedError, "PoolerConfig.logit_mean"),
        (
            "plain",
            {"pooler_config": {"normalize": False}, "hf_overrides": {"is_matryoshka": True}},
            ValueError,
            "`normalize` must be enabled (set to True) for models that are compatible with Matryoshka Representation.",
        ),
        ("plain", {"enable_chunked_prefill": True}, ValueError, "Chunked prefill is not supported for pooling models"),
        (
            "plain",
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
            ValueError,
            "speculative_config is for generation; this model runs the task 'embed'",
        ),
        ("plain", {"max_model_len": 1000}, ValueError, "max_model_len (1000) is greater than"),
        ("plain", {"hf_overrides": {"position_embedding_type": "relative_key"}}, NotImplementedError, "relative_key"),
        ("plain", {"hf_overrides": {"architectures": ["Nothing"]}}, ValueError, "['Nothing'] are not supported"),
    ],
)
def test_construction_errors(
    model: str, options: dict[str, Any], error: type[Exception], message: str, pooling_folders: dict[str, Path]
) -> None:
    with pytest.raises(error) as caught:
        LLM(str(pooling_folders[model]), **options)
    assert message in str(caught.value)


def test_embedding_is_an_alias(pooling_folders: dict[str, Path]) -> None:
    assert task_of(pooling_folders["embed"], task="embedding") == "embed"
    with pytest.warns(DeprecationWarning, match="'embedding' task"):
        assert task_of(pooling_folders["classify"], task="embedding") == "score"


# Wrong tasks (spec 2.2, 2.7).


def test_generation_on_a_pooling_model(embedder: LLM) -> None:
    message = r"LLM\.generate\(\) is only supported for \(conditional\) generation models"
    for call in (lambda: embedder.generate("a"), lambda: list(embedder.generate_iter(["a"]))):
        with pytest.raises(ValueError, match=message.replace("generate", r"generate\w*", 1)):
            call()
    for call in (lambda: list(embedder.stream("a")), lambda: embedder.enqueue("a")):
        with pytest.raises(ValueError, match="is only supported for"):
            call()


def test_pooling_on_a_generative_model(llm: LLM) -> None:
    for method, arguments, message in (
        ("encode", ("a",), "LLM.encode() is only supported for pooling models."),
        ("embed", ("a",), "Embedding API is only enabled for `--task embed`"),
        ("classify", ("a",), "Classification API is only enabled for `--task classify`"),
        ("score", ("a", "b"), "LLM.score() is only supported for pooling models."),
        ("reward", ("a",), "LLM.reward() is only supported for pooling models."),
    ):
        with pytest.raises(ValueError) as caught:
            getattr(llm, method)(*arguments)
        assert message in str(caught.value)


def test_other_pooling_tasks(embedder: LLM, scorer: LLM, pooling_folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="Classification API is only enabled for `--task classify`"):
        embedder.classify("a")
    with pytest.raises(ValueError, match="Embedding API is only enabled for `--task embed`"):
        scorer.embed("a")
    with LLM(str(pooling_folders["classify"]), task="classify") as llm:
        with pytest.raises(ValueError, match="Score API is only enabled for `--task embed or --task score`"):
            llm.score("a", "b")
        with pytest.raises(ValueError, match="Unsupported pooling task: 'embed'"):
            llm.encode("a", pooling_task="embed")


# encode, embed, classify and their outputs (spec 2.7, 3.8).


def test_embed(embedder: LLM) -> None:
    outputs = embedder.embed([TEXT[0], {"prompt": TEXT[1]}], use_tqdm=False)
    assert all(type(output) is EmbeddingRequestOutput and output.finished for output in outputs)
    assert int(outputs[1].request_id) == int(outputs[0].request_id) + 1
    assert np.allclose(np.linalg.norm(vectors(outputs), axis=1), 1, atol=1e-6)
    assert isinstance(outputs[0].outputs.embedding, list) and isinstance(outputs[0].outputs.embedding[0], float)
    assert outputs[0].outputs.hidden_size == HIDDEN
    assert repr(outputs[0].outputs) == f"EmbeddingOutput(hidden_size={HIDDEN})"
    ids = embedder.get_tokenizer().encode(TEXT[0])
    assert outputs[0].prompt_token_ids == ids
    for prompt in ({"prompt_token_ids": ids}, ids, np.array(ids)):
        assert embedder.embed(prompt, use_tqdm=False)[0].outputs == outputs[0].outputs
    assert embedder.embed([], use_tqdm=False) == []


def test_encode_gives_a_tensor(embedder: LLM) -> None:
    torch = pytest.importorskip("torch")
    (output,) = embedder.encode(TEXT[0], use_tqdm=False)
    assert type(output) is PoolingRequestOutput
    assert isinstance(output.outputs.data, torch.Tensor) and output.outputs.data.dtype == torch.float32
    assert output.outputs.data.shape == (HIDDEN,) and output.outputs.data.device.type == "cpu"
    assert output.outputs == embedder.encode(TEXT[0], use_tqdm=False)[0].outputs
    assert output.outputs != embedder.encode(TEXT[1], use_tqdm=False)[0].outputs
    with pytest.warns(DeprecationWarning, match="raw outputs in the `data` attribute"):
        assert output.outputs.embedding is output.outputs.data
    assert EmbeddingRequestOutput.from_base(output).outputs.embedding == output.outputs.data.tolist()


def test_encode_without_torch(embedder: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (output,) = embedder.encode(TEXT[0], use_tqdm=False)
    assert isinstance(output.outputs.data, np.ndarray)
    assert type(output.outputs.data.numpy()) is np.ndarray
    assert output.outputs.data.tolist() == embedder.embed(TEXT[0], use_tqdm=False)[0].outputs.embedding


def test_encode_legacy_token_ids(embedder: LLM) -> None:
    ids = embedder.get_tokenizer().encode(TEXT[0])
    with pytest.warns(DeprecationWarning, match="prompt_token_ids"):
        (output,) = embedder.encode(prompt_token_ids=ids, use_tqdm=False)
    assert output.outputs == embedder.encode(TEXT[0], use_tqdm=False)[0].outputs


def test_token_embed(embedder: LLM) -> None:
    (rows,) = embedder.encode(TEXT[0], pooling_task="token_embed", use_tqdm=False)
    assert rows.outputs.array().shape == (len(rows.prompt_token_ids), HIDDEN)
    raw = PoolingParams(use_activation=False)
    (rows,) = embedder.encode(TEXT[0], raw, pooling_task="token_embed", use_tqdm=False)
    mean = rows.outputs.array().mean(0)
    (vector,) = vectors(embedder.embed(TEXT[0], use_tqdm=False))
    assert np.allclose(mean / np.linalg.norm(mean), vector, atol=1e-6)


def test_classify(pooling_folders: dict[str, Path]) -> None:
    with LLM(str(pooling_folders["classify"]), task="classify") as llm:
        outputs = llm.classify(TEXT, use_tqdm=False)
        assert all(type(output) is ClassificationRequestOutput for output in outputs)
        probs = np.array([output.outputs.probs for output in outputs])
        assert probs.shape == (len(TEXT), 3) and np.allclose(probs.sum(1), 1, atol=1e-6) and probs.std() > 0.01
        assert outputs[0].outputs.num_classes == 3
        assert repr(outputs[0].outputs) == "ClassificationOutput(num_classes=3)"


def test_wrong_rank(embedder: LLM) -> None:
    matrix = PoolingOutput(np.zeros((2, 2), np.float32))
    base = PoolingRequestOutput("0", matrix, [1], True)
    for cls, message in (
        (EmbeddingRequestOutput, "pooled_data should be a 1-D embedding vector"),
        (ClassificationRequestOutput, "pooled_data should be a 1-D probability vector"),
        (ScoringRequestOutput, "pooled_data should be a scalar score"),
    ):
        with pytest.raises(ValueError, match=message):
            cls.from_base(base)


# Parameters (spec 3.4, 3.6).


def test_dimensions(pooling_folders: dict[str, Path], embedder: LLM) -> None:
    with pytest.raises(ValueError, match='Model ".*" does not support matryoshka representation'):
        embedder.embed("a", pooling_params=PoolingParams(dimensions=8))
    with pytest.raises(ValueError, match="Dimensions must be greater than 0"):
        PoolingParams(dimensions=0)
    full = vectors(embedder.embed(TEXT, use_tqdm=False))
    with LLM(str(pooling_folders["embed"]), hf_overrides={"matryoshka_dimensions": [8, 16]}) as llm:
        short = vectors(llm.embed(TEXT, pooling_params=PoolingParams(dimensions=8), use_tqdm=False))
        want = full[:, :8] / np.linalg.norm(full[:, :8], axis=1, keepdims=True)
        assert np.allclose(short, want, atol=1e-6)
        with pytest.raises(ValueError, match=r"only supports \[8, 16\] matryoshka dimensions"):
            llm.embed("a", pooling_params=PoolingParams(dimensions=9))
        each = [PoolingParams(), PoolingParams(dimensions=16)]
        outputs = llm.embed(TEXT[:2], pooling_params=each, use_tqdm=False)
        assert [output.outputs.hidden_size for output in outputs] == [HIDDEN, 16]
        PoolingParams(dimensions=16).verify(llm.llm_engine.model_config)
    with pytest.raises(ValueError, match="does not support matryoshka"):
        PoolingParams(dimensions=16).verify(embedder.llm_engine.model_config)


def test_parameters_that_do_not_fit(embedder: LLM) -> None:
    with pytest.raises(ValueError, match="The lengths of prompts and params must be the same."):
        embedder.embed(["a", "b"], pooling_params=[PoolingParams()])
    with pytest.raises(TypeError, match="pooling_params must be PoolingParams"):
        embedder.embed("a", pooling_params={"dimensions": 3})
    with pytest.raises(NotImplementedError, match="PoolingParams.step_tag_id"):
        embedder.embed("a", pooling_params=PoolingParams(step_tag_id=3))
    with pytest.raises(ValueError, match="Got lora_request"):
        embedder.embed("a", lora_request="x")
    assert repr(PoolingParams(dimensions=3)) == "PoolingParams(dimensions=3, additional_metadata=None)"
    assert PoolingParams(dimensions=3).clone() == PoolingParams(dimensions=3)


def test_pooler_config(pooling_folders: dict[str, Path]) -> None:
    assert PoolerConfig.from_json('{"pooling_type": "CLS", "normalize": false}') == PoolerConfig("CLS", False)
    with LLM(str(pooling_folders["embed"]), override_pooler_config=PoolerConfig("ALL", normalize=False)) as llm:
        (rows,) = llm.encode(TEXT[0], use_tqdm=False)
        rows = rows.outputs.array()
        with pytest.raises(ValueError, match="1-D embedding vector"):
            llm.embed(TEXT[0], use_tqdm=False)
    for pooling_type, want in {"CLS": rows[0], "LAST": rows[-1], "MEAN": rows.mean(0)}.items():
        config = {"seq_pooling_type": pooling_type, "use_activation": False}
        with LLM(str(pooling_folders["embed"]), pooler_config=config) as llm:
            (got,) = llm.encode(TEXT[0], use_tqdm=False)
            assert np.allclose(got.outputs.array(), want, atol=1e-6)


# Sentence-transformers files (spec 1.2, 1.3).


def test_sentence_transformers_modules(pooling_folders: dict[str, Path], tmp_path: Path) -> None:
    raw = {"pooling_type": "ALL", "normalize": False}
    with LLM(str(pooling_folders["plain"]), pooler_config=raw, max_model_len=MAX_LENGTH) as llm:
        (rows,) = llm.encode(TEXT[0], use_tqdm=False)
        rows = rows.outputs.array()
    pooled = {"cls_token": rows[0], "mean_tokens": rows.mean(0), "lasttoken": rows[-1]}
    for mode, want in pooled.items():
        folder = as_sentence_transformer(write_bert(tmp_path / mode), mode, normalizes=False)
        with LLM(str(folder)) as llm:
            assert np.allclose(vectors(llm.embed(TEXT[0], use_tqdm=False))[0], want, atol=1e-6)
    folder = as_sentence_transformer(write_bert(tmp_path / "dense"), dense=12)
    dense = load_file(folder / "2_Dense" / "model.safetensors")
    with LLM(str(folder)) as llm:
        assert llm.info()["num_outputs"] == 12
        want = np.tanh(dense["linear.weight"] @ rows.mean(0) + dense["linear.bias"])
        assert np.allclose(vectors(llm.embed(TEXT[0], use_tqdm=False))[0], want / np.linalg.norm(want), atol=1e-5)


def test_names_of_the_first_conversions(pooling_folders: dict[str, Path], tmp_path: Path) -> None:
    """LayerNorm.gamma and .beta, a pooler and a head for words, as in bert-base-uncased."""
    folder = write_bert(tmp_path / "model", architectures=["BertForMaskedLM"])
    tensors = load_file(folder / "model.safetensors")
    old = {}
    for name, tensor in tensors.items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        old[f"bert.{name}"] = tensor
    old["bert.pooler.dense.weight"] = old["cls.predictions.transform.LayerNorm.gamma"] = np.ones(3, np.float32)
    assert sum("gamma" in name for name in old) == 4
    save_file(old, folder / "model.safetensors")
    with LLM(str(folder)) as llm, LLM(str(pooling_folders["plain"])) as new:
        assert llm.embed(TEXT[0], use_tqdm=False)[0].outputs == new.embed(TEXT[0], use_tqdm=False)[0].outputs


def test_missing_pooling_file(tmp_path: Path) -> None:
    folder = as_sentence_transformer(write_bert(tmp_path / "model"))
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"1_Pooling.*is the download complete"):
        LLM(str(folder))


def test_prompts(tmp_path: Path) -> None:
    folder = as_sentence_transformer(write_bert(tmp_path / "model"))
    file = folder / "config_sentence_transformers.json"
    prompts = {"query": "the cat said: ", "document": ""}
    file.write_text(json.dumps({"prompts": prompts, "default_prompt_name": None}))
    with LLM(str(folder)) as llm:
        plain = llm.embed("the dog ran", use_tqdm=False)[0]
        spelled = llm.embed("the cat said: the dog ran", use_tqdm=False)[0]
        assert llm.embed("the dog ran", prompt_name="query", use_tqdm=False)[0].outputs == spelled.outputs
        assert llm.embed({"prompt": "the dog ran"}, prompt_name="query", use_tqdm=False)[0].outputs == spelled.outputs
        assert llm.embed("the dog ran", prompt_name="document", use_tqdm=False)[0].outputs == plain.outputs
        ids = {"prompt_token_ids": plain.prompt_token_ids}
        assert llm.embed(ids, prompt_name="query", use_tqdm=False)[0].outputs == plain.outputs
        with pytest.raises(ValueError, match="Prompt name 'title' not found"):
            llm.embed("a", prompt_name="title")
    file.write_text(json.dumps({"prompts": prompts, "default_prompt_name": "query"}))
    with LLM(str(folder)) as llm:
        assert llm.embed("the dog ran", use_tqdm=False)[0].outputs == spelled.outputs
        (score,) = llm.score("the dog ran", "the dog ran", use_tqdm=False)
        assert score.prompt_token_ids[: len(spelled.prompt_token_ids)] == spelled.prompt_token_ids
        assert llm.embed("the dog ran", prompt_name="document", use_tqdm=False)[0].outputs == plain.outputs


# Truncation.


def test_long_texts_are_cut_as_the_tokenizer_cuts(embedder: LLM) -> None:
    hf = embedder.get_tokenizer()
    assert len(hf.encode(" ".join(TEXT))) > MAX_LENGTH == embedder.llm_engine.model_config.max_model_len
    (output,) = embedder.embed(" ".join(TEXT), use_tqdm=False)
    assert output.prompt_token_ids == hf.encode(" ".join(TEXT), truncation=True, max_length=MAX_LENGTH)
    assert output.prompt_token_ids[-1] == hf.sep_token_id
    for options in (
        {"truncate_prompt_tokens": 7},
        {"tokenization_kwargs": {"truncate_prompt_tokens": 7}},
        {"pooling_params": PoolingParams(truncate_prompt_tokens=7)},
    ):
        (output,) = embedder.embed(" ".join(TEXT), use_tqdm=False, **options)
        assert output.prompt_token_ids == hf.encode(" ".join(TEXT), truncation=True, max_length=7)
    (output,) = embedder.embed(" ".join(TEXT), use_tqdm=False, truncate_prompt_tokens=-1)
    assert len(output.prompt_token_ids) == MAX_LENGTH
    (output,) = embedder.embed([[5] * 30], use_tqdm=False, truncate_prompt_tokens=9)
    assert output.prompt_token_ids == [5] * 9


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "must be >= 1"),
        (2, ValueError, "leaves no room for text"),
        (MAX_LENGTH + 1, ValueError, rf"\({MAX_LENGTH + 1}\) is greater than max_model_len \({MAX_LENGTH}\)"),
        ("7", TypeError, "must be an integer"),
    ],
)
def test_bad_truncation(embedder: LLM, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        embedder.embed("a", truncate_prompt_tokens=value)


def test_lower_case(tmp_path: Path) -> None:
    folder = as_sentence_transformer(write_bert(tmp_path / "model"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with LLM(str(folder)) as llm:
        assert llm.embed("DOG", use_tqdm=False)[0].outputs != llm.embed("dog", use_tqdm=False)[0].outputs
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9, "do_lower_case": True}))
    with LLM(str(folder)) as llm:
        assert llm.embed("DOG", use_tqdm=False)[0].outputs == llm.embed("dog", use_tqdm=False)[0].outputs
        assert llm.llm_engine.model_config.max_model_len == 9
