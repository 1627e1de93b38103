"""encode, embed, classify, score and reward as vLLM has them: tasks, prompts, truncation, outputs, errors.

Models are random BERTs with a tokenizer of words; what they compute is compared in models/test_pooling_parity.py.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import TEXT, write_llama
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
from quire.errors import RequestError
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

HIDDEN, MAX_LENGTH = 32, 24
LONG = " ".join(TEXT)


SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@functools.cache
def word_tokenizer() -> Tokenizer:
    """Trained once: training twice may number the words differently."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        TEXT, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIALS, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def write_word_tokenizer(folder: Path) -> int:
    tokenizer = word_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIALS, strict=True))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))
    return tokenizer.get_vocab_size()


def bert_tensors(vocab_size: int, num_labels: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)

    def matrix(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    tensors: dict[str, np.ndarray] = {}
    for name, rows in (("word", vocab_size), ("position", MAX_LENGTH + 8), ("token_type", 2)):
        tensors[f"embeddings.{name}_embeddings.weight"] = matrix(rows, HIDDEN) * 5
    layer = "encoder.layer.0."
    linears = {f"{layer}attention.self.{part}": (HIDDEN, HIDDEN) for part in ("query", "key", "value")}
    linears[f"{layer}attention.output.dense"] = (HIDDEN, HIDDEN)
    linears[f"{layer}intermediate.dense"], linears[f"{layer}output.dense"] = (48, HIDDEN), (HIDDEN, 48)
    if num_labels:
        linears["pooler.dense"], linears["classifier"] = (HIDDEN, HIDDEN), (num_labels, HIDDEN)
    for name, shape in linears.items():
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = matrix(*shape) * 2, matrix(shape[0])
    for name in ("embeddings.", f"{layer}attention.output.", f"{layer}output."):
        tensors[f"{name}LayerNorm.weight"] = np.ones(HIDDEN, np.float32) + matrix(HIDDEN)
        tensors[f"{name}LayerNorm.bias"] = matrix(HIDDEN)
    if num_labels:
        tensors = {name if name.startswith("classifier") else f"bert.{name}": one for name, one in tensors.items()}
    return tensors


def write_bert(folder: Path, num_labels: int = 0, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = write_word_tokenizer(folder)
    config = {
        "architectures": ["BertForSequenceClassification" if num_labels else "BertModel"],
        "model_type": "bert",
        "vocab_size": vocab_size,
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": MAX_LENGTH + 8,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        **({"num_labels": num_labels} if num_labels else {}),
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(bert_tensors(vocab_size, num_labels), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def as_sentence_transformer(folder: Path, mode: str = "mean_tokens", normalizes: bool = True, dense: int = 0) -> Path:
    modules = ["Transformer", "Pooling", *(["Dense"] if dense else []), *(["Normalize"] if normalizes else [])]
    listed = [
        {"idx": i, "name": str(i), "path": f"{i}_{name}" if i else "", "type": f"sentence_transformers.models.{name}"}
        for i, name in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    flags = {f"pooling_mode_{one}": one == mode for one in ("cls_token", "mean_tokens", "lasttoken")}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": HIDDEN, **flags}))
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": MAX_LENGTH, "do_lower_case": False})
    )
    if dense:
        random = np.random.default_rng(2)
        (folder / "2_Dense").mkdir()
        config = {"in_features": HIDDEN, "out_features": dense, "bias": True}
        config["activation_function"] = "torch.nn.modules.activation.Tanh"
        (folder / "2_Dense" / "config.json").write_text(json.dumps(config))
        weight = random.standard_normal((dense, HIDDEN)).astype(np.float32)
        bias = random.standard_normal(dense).astype(np.float32)
        save_file({"linear.weight": weight, "linear.bias": bias}, folder / "2_Dense" / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pooling")
    return {
        "embed": as_sentence_transformer(write_bert(root / "embed")),
        "plain": write_bert(root / "plain"),
        "score": write_bert(root / "score", 1),
        "classify": write_bert(root / "classify", 3),
        "decoder": write_llama(root / "decoder"),
    }


@pytest.fixture(scope="module")
def embedder(folders: dict[str, Path]) -> Iterator[LLM]:
    with LLM(str(folders["embed"])) as llm:
        yield llm


@pytest.fixture(scope="module")
def scorer(folders: dict[str, Path]) -> Iterator[LLM]:
    with LLM(str(folders["score"])) as llm:
        yield llm


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
def test_task(model: str, options: dict[str, Any], task: str, folders: dict[str, Path]) -> None:
    assert task_of(folders[model], **options) == task


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
        ("plain", {"max_model_len": 1000}, ValueError, "max_model_len (1000) is greater than"),
        ("plain", {"hf_overrides": {"position_embedding_type": "relative_key"}}, NotImplementedError, "relative_key"),
        ("plain", {"hf_overrides": {"architectures": ["Nothing"]}}, ValueError, "['Nothing'] are not supported"),
    ],
)
def test_construction_errors(
    model: str, options: dict[str, Any], error: type[Exception], message: str, folders: dict[str, Path]
) -> None:
    with pytest.raises(error) as caught:
        LLM(str(folders[model]), **options)
    assert message in str(caught.value)


def test_embedding_is_an_alias(folders: dict[str, Path]) -> None:
    assert task_of(folders["embed"], task="embedding") == "embed"
    with pytest.warns(DeprecationWarning, match="'embedding' task"):
        assert task_of(folders["classify"], task="embedding") == "score"


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


def test_other_pooling_tasks(embedder: LLM, scorer: LLM, folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="Classification API is only enabled for `--task classify`"):
        embedder.classify("a")
    with pytest.raises(ValueError, match="Embedding API is only enabled for `--task embed`"):
        scorer.embed("a")
    with LLM(str(folders["classify"]), task="classify") as llm:
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


def test_classify(folders: dict[str, Path]) -> None:
    with LLM(str(folders["classify"]), task="classify") as llm:
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


def test_dimensions(folders: dict[str, Path], embedder: LLM) -> None:
    with pytest.raises(ValueError, match='Model ".*" does not support matryoshka representation'):
        embedder.embed("a", pooling_params=PoolingParams(dimensions=8))
    with pytest.raises(ValueError, match="Dimensions must be greater than 0"):
        PoolingParams(dimensions=0)
    full = vectors(embedder.embed(TEXT, use_tqdm=False))
    with LLM(str(folders["embed"]), hf_overrides={"matryoshka_dimensions": [8, 16]}) as llm:
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


def test_pooler_config(folders: dict[str, Path]) -> None:
    assert PoolerConfig.from_json('{"pooling_type": "CLS", "normalize": false}') == PoolerConfig("CLS", False)
    with LLM(str(folders["embed"]), override_pooler_config=PoolerConfig("ALL", normalize=False)) as llm:
        (rows,) = llm.encode(TEXT[0], use_tqdm=False)
        rows = rows.outputs.array()
        with pytest.raises(ValueError, match="1-D embedding vector"):
            llm.embed(TEXT[0], use_tqdm=False)
    for pooling_type, want in {"CLS": rows[0], "LAST": rows[-1], "MEAN": rows.mean(0)}.items():
        config = {"seq_pooling_type": pooling_type, "use_activation": False}
        with LLM(str(folders["embed"]), pooler_config=config) as llm:
            (got,) = llm.encode(TEXT[0], use_tqdm=False)
            assert np.allclose(got.outputs.array(), want, atol=1e-6)


# Sentence-transformers files (spec 1.2, 1.3).


def test_sentence_transformers_modules(folders: dict[str, Path], tmp_path: Path) -> None:
    raw = {"pooling_type": "ALL", "normalize": False}
    with LLM(str(folders["plain"]), pooler_config=raw, max_model_len=MAX_LENGTH) as llm:
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
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({**pooling, "include_prompt": False}))
    with LLM(str(folder)) as llm:
        with pytest.raises(NotImplementedError, match="include_prompt"):
            llm.embed("a")
        assert llm.embed("the dog ran", prompt_name="document", use_tqdm=False)[0].outputs == plain.outputs


# Truncation.


def test_long_texts_are_cut_as_the_tokenizer_cuts(embedder: LLM) -> None:
    hf = embedder.get_tokenizer()
    assert len(hf.encode(LONG)) > MAX_LENGTH == embedder.llm_engine.model_config.max_model_len
    (output,) = embedder.embed(LONG, use_tqdm=False)
    assert output.prompt_token_ids == hf.encode(LONG, truncation=True, max_length=MAX_LENGTH)
    assert output.prompt_token_ids[-1] == hf.sep_token_id
    for options in (
        {"truncate_prompt_tokens": 7},
        {"tokenization_kwargs": {"truncate_prompt_tokens": 7}},
        {"pooling_params": PoolingParams(truncate_prompt_tokens=7)},
    ):
        (output,) = embedder.embed(LONG, use_tqdm=False, **options)
        assert output.prompt_token_ids == hf.encode(LONG, truncation=True, max_length=7)
    (output,) = embedder.embed(LONG, use_tqdm=False, truncate_prompt_tokens=-1)
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


# score (spec 2.7).


def test_cross_encoder_pairs(scorer: LLM) -> None:
    hf = scorer.get_tokenizer()
    query, documents = TEXT[0], TEXT[1:3]
    outputs = scorer.score(query, documents, use_tqdm=False)
    assert [type(output) for output in outputs] == [ScoringRequestOutput] * 2
    for document, output in zip(documents, outputs, strict=True):
        pair = hf(query, document, truncation=True, max_length=MAX_LENGTH + 8, return_token_type_ids=True)
        assert output.prompt_token_ids == pair["input_ids"] and 1 in pair["token_type_ids"]
        prompt = {"prompt_token_ids": pair["input_ids"], "token_type_ids": pair["token_type_ids"]}
        (same,) = scorer.encode(prompt, use_tqdm=False)
        assert output.outputs.score == float(same.outputs.array()[0])
        (untyped,) = scorer.encode({"prompt_token_ids": pair["input_ids"]}, use_tqdm=False)
        assert output.outputs.score != float(untyped.outputs.array()[0])
        assert 0 < output.outputs.score < 1
    assert outputs[0].outputs.score != outputs[1].outputs.score
    assert repr(outputs[0].outputs) == f"ScoringOutput(score={outputs[0].outputs.score})"
    with pytest.warns(DeprecationWarning, match="`score` attribute"):
        assert outputs[0].outputs.embedding == [outputs[0].outputs.score]
    (cut,) = scorer.score(query, documents[0], truncate_prompt_tokens=9, use_tqdm=False)
    assert cut.prompt_token_ids == hf(query, documents[0], truncation=True, max_length=9)["input_ids"]


def test_score_of_several_labels(folders: dict[str, Path]) -> None:
    with LLM(str(folders["classify"])) as llm:
        with pytest.raises(ValueError, match="pooled_data should be a scalar score"):
            llm.score("a", "b", use_tqdm=False)


def test_score_lengths(scorer: LLM, embedder: LLM) -> None:
    for llm in (scorer, embedder):
        assert len(llm.score("a", "b", use_tqdm=False)) == 1
        assert len(llm.score("a", ["b", "c", "d"], use_tqdm=False)) == 3
        one_to_one = llm.score(["a", "cat"], ["b", "dog"], use_tqdm=False)
        for (first, second), output in zip((("a", "b"), ("cat", "dog")), one_to_one, strict=True):
            assert llm.score(first, second, use_tqdm=False)[0].outputs == output.outputs
        for first, second in ((["a", "b"], "c"), (["a", "b"], ["c", "d", "e"])):
            with pytest.raises(ValueError, match="Input lengths must be either 1:1, 1:N or N:N"):
                llm.score(first, second)
        with pytest.raises(ValueError, match="At least one text element must be given"):
            llm.score([], [])
        with pytest.raises(ValueError, match="At least one text_pair element must be given"):
            llm.score("a", [])
        with pytest.raises(ValueError, match="Multi-modal prompt is not supported for scoring"):
            llm.score({"prompt": "a", "multi_modal_data": {"image": 1}}, "b")


def test_bi_encoder_cosine(embedder: LLM) -> None:
    (output,) = embedder.score(TEXT[0], TEXT[1], use_tqdm=False)
    a, b = vectors(embedder.embed(TEXT[:2], use_tqdm=False))
    assert output.outputs.score == pytest.approx(a @ b, abs=1e-6)
    first, second = output.request_id.split("_")
    assert int(second) == int(first) + 1
    hf = embedder.get_tokenizer()
    ids = [hf.encode(text, truncation=True, max_length=MAX_LENGTH) for text in TEXT[:2]]
    assert output.prompt_token_ids == [*ids[0], hf.pad_token_id, *ids[1]]
    tokens = hf.encode("the little dog", add_special_tokens=False)
    (by_ids,) = embedder.score({"prompt_token_ids": tokens}, {"prompt": TEXT[1]}, use_tqdm=False)
    assert by_ids.outputs == embedder.score("the little dog", TEXT[1], use_tqdm=False)[0].outputs


# Bad prompts.


def test_empty_text_is_its_special_tokens(embedder: LLM) -> None:
    hf = embedder.get_tokenizer()
    assert embedder.embed("", use_tqdm=False)[0].prompt_token_ids == [hf.cls_token_id, hf.sep_token_id]


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ([], ValueError, "prompt cannot be empty"),
        (3, TypeError, "inputs must be a string, TextPrompt, or TokensPrompt"),
        ({"prompt_token_ids": [1, 10**6]}, ValueError, "Token id 1000000 is out of vocabulary"),
        (
            {"prompt_token_ids": [1] * (MAX_LENGTH + 1)},
            ValueError,
            f"maximum model length of {MAX_LENGTH}",
        ),
        ({"prompt_token_ids": [1, 2], "token_type_ids": [0]}, ValueError, "token_type_ids has 1 entries for 2 tokens"),
        ({"prompt": "a", "token_type_ids": [0]}, ValueError, "beside prompt_token_ids"),
        ({"encoder_prompt": "a"}, ValueError, "encoder-decoder"),
    ],
)
def test_one_bad_prompt_of_many(embedder: LLM, prompt: Any, error: type[Exception], message: str) -> None:
    prompts = [TEXT[0], TEXT[1], prompt, TEXT[2]]
    with pytest.raises(error) as caught:
        embedder.embed(prompts, use_tqdm=False)
    assert message in str(caught.value) and "(prompt 2)" in str(caught.value)
    assert caught.value.indices == (2,)
    outputs = embedder.embed(prompts, use_tqdm=False, on_error="return")
    assert outputs[2].outputs is None and message in outputs[2].error and outputs[2].finished
    good = [output for i, output in enumerate(outputs) if i != 2]
    assert [output.error for output in good] == [None] * 3
    want = embedder.embed([TEXT[0], TEXT[1], TEXT[2]], use_tqdm=False)
    assert [output.outputs for output in good] == [output.outputs for output in want]
    assert embedder.stats()["num_waiting"] == 0


def test_token_types_must_exist(embedder: LLM) -> None:
    prompt = {"prompt_token_ids": [1, 2], "token_type_ids": [0, 7]}
    with pytest.raises(ValueError, match="Token type id 7"):
        embedder.embed(prompt, use_tqdm=False)


def test_score_keeps_the_rest(scorer: LLM, embedder: LLM) -> None:
    for llm in (scorer, embedder):
        outputs = llm.score(TEXT[0], [TEXT[1], 5, TEXT[2]], use_tqdm=False, on_error="return")  # type: ignore[list-item]
        assert outputs[1].outputs is None and "inputs must be a string" in outputs[1].error
        want = llm.score(TEXT[0], [TEXT[1], TEXT[2]], use_tqdm=False)
        assert [outputs[0].outputs, outputs[2].outputs] == [output.outputs for output in want]


def test_errors_behind_the_first_slice(embedder: LLM) -> None:
    """Prompts are tokenised while others run; a bad one late in the list ends the call and leaves nothing queued."""
    prompts: list[Any] = [TEXT[i % 4] for i in range(2000)]
    prompts[1700] = {"prompt_token_ids": [10**6]}
    with pytest.raises(RequestError, match=r"out of vocabulary.*\(prompt 1700\)"):
        embedder.embed(prompts, use_tqdm=False)
    assert embedder.stats()["num_waiting"] == 0
    outputs = embedder.embed(prompts, use_tqdm=False, on_error="return")
    assert [i for i, output in enumerate(outputs) if output.error] == [1700]
    want = embedder.embed(TEXT, use_tqdm=False)
    assert all(output.outputs == want[i % 4].outputs for i, output in enumerate(outputs) if i != 1700)


def test_without_a_tokenizer(folders: dict[str, Path], embedder: LLM) -> None:
    ids = embedder.get_tokenizer().encode(TEXT[0])
    with LLM(str(folders["embed"]), skip_tokenizer_init=True) as llm:
        assert llm.embed([ids], use_tqdm=False)[0].outputs == embedder.embed(TEXT[0], use_tqdm=False)[0].outputs
        with pytest.raises(ValueError, match="skip_tokenizer_init"):
            llm.embed("a", use_tqdm=False)


# Calls side by side, and their ends.


def test_threads(embedder: LLM) -> None:
    def run(which: int) -> list[Any]:
        return [output.outputs for output in embedder.embed([TEXT[which % 4], f"cat {which}"] * 5, use_tqdm=False)]

    alone = [run(which) for which in range(16)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(16))) == alone
    assert not any(thread.name == "quire-tokenise" for thread in threading.enumerate())


def test_progress_bar(embedder: LLM) -> None:
    counts: list[int] = []

    class Bar:
        def __init__(self, total: int, desc: str, **_: Any) -> None:
            assert (total, desc) == (3, "Processed prompts")

        def update(self, count: int) -> None:
            counts.append(count)

        def close(self) -> None:
            counts.append(0)

    embedder.embed(["a", "b", "c"], use_tqdm=Bar)
    assert sum(counts) == 3 and counts[-1] == 0


def test_closed(folders: dict[str, Path]) -> None:
    llm = LLM(str(folders["embed"]))
    llm.close()
    with pytest.raises(RuntimeError, match="closed"):
        llm.embed("a")
