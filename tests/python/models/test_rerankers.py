"""Decoders that rank, and ColBERT: scores of pairs against what transformers' hidden states and logits make of them.

Models are random two-layer checkpoints of transformers with the byte-level tokenizer of checkpoints.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from checkpoints import write_tokenizer  # noqa: E402
from encoder_checkpoints import BERT, DECODER, MODERNBERT, QWEN3, ROBERTA, PoolingCase, build, save  # noqa: E402
from quire import LLM, PoolingParams  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

TOLERANCE = 1e-4
QUERIES = ["The dog liked to play", "red ball"]
DOCUMENTS = ["in the garden with the children.", "Do not take my ball! But the dog smiled."]
RERANKER = {
    "architectures": ["Qwen3ForSequenceClassification"],
    "classifier_from_token": ["Ġdog", "Ġball"],
    "is_original_qwen3_reranker": True,
}
TEMPLATE = (
    "<|system|>{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}<|assistant|>"
)


def tokenizer_of(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def saved(folder: Path, model_class: str, base: dict[str, Any], **changes: Any) -> tuple[Path, PoolingCase]:
    """A model for the tokenizer beside it. One name, one set of weights, whatever heads are added."""
    vocab_size = write_tokenizer(folder, add_bos=False)
    case = PoolingCase("ranks", model_class, {**base, "vocab_size": vocab_size, **changes})
    return save(case, folder), case


def changed(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def last_logits(case: PoolingCase, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return build(case)(torch.tensor([ids])).logits[0, -1].double().numpy()


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def scores(llm: LLM, first: Any, second: Any, **options: Any) -> list[float]:
    return [output.outputs.score for output in llm.score(first, second, use_tqdm=False, **options)]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("options", [{"task": "score"}, {"runner": "pooling"}, {"task": "classify"}])
def test_qwen3_reranker(tied: bool, options: dict[str, str], tmp_path: Path) -> None:
    """The probability of "yes" against "no" as the next token; the texts of a pair follow each other."""
    folder, case = saved(tmp_path, "Qwen3ForCausalLM", QWEN3, tie_word_embeddings=tied)
    tokenizer = tokenizer_of(folder)
    no, yes = (tokenizer.token_to_id(token) for token in RERANKER["classifier_from_token"])
    logits = [last_logits(case, tokenizer.encode(a + b).ids) for a, b in zip(QUERIES, DOCUMENTS, strict=True)]
    want = [np.exp(one[yes]) / (np.exp(one[yes]) + np.exp(one[no])) for one in logits]
    assert abs(want[0] - want[1]) > 0.01
    with LLM(str(folder), hf_overrides=RERANKER, **options) as llm:
        np.testing.assert_allclose(scores(llm, QUERIES, DOCUMENTS), want, atol=TOLERANCE)
        # One query stands against all documents.
        alone = scores(llm, QUERIES[0], DOCUMENTS)
        assert len(alone) == 2 and abs(alone[0] - want[0]) <= TOLERANCE


def test_template_of_a_reranker(tmp_path: Path) -> None:
    folder, case = saved(tmp_path, "Qwen3ForCausalLM", QWEN3)
    tokenizer = tokenizer_of(folder)
    text = f"<|system|><query>{QUERIES[0]}<document>{DOCUMENTS[0]}<|assistant|>"
    ids = tokenizer.encode(text).ids
    logits = last_logits(case, ids)
    no, yes = (tokenizer.token_to_id(token) for token in RERANKER["classifier_from_token"])
    template = tmp_path / "score.jinja"
    template.write_text(TEMPLATE)
    with LLM(str(folder), hf_overrides=RERANKER, task="score") as llm:
        for given in (TEMPLATE, template):
            (output,) = llm.score(QUERIES[0], DOCUMENTS[0], chat_template=given, use_tqdm=False)
            assert output.prompt_token_ids == ids
            assert abs(output.outputs.score - sigmoid(logits[yes] - logits[no])) <= TOLERANCE


def test_rows_of_the_head_as_labels(tmp_path: Path) -> None:
    """no_post_processing: the logit of each token is a label's."""
    folder, case = saved(tmp_path, "LlamaForCausalLM", DECODER)
    tokenizer = tokenizer_of(folder)
    tokens = ["Ġdog", "Ġball", "Ġgarden"]
    overrides = {
        "architectures": ["LlamaForSequenceClassification"],
        "classifier_from_token": tokens,
        "method": "no_post_processing",
    }
    logits = last_logits(case, tokenizer.encode(QUERIES[0]).ids)[[tokenizer.token_to_id(token) for token in tokens]]
    with LLM(str(folder), hf_overrides=overrides) as llm:
        (output,) = llm.encode(QUERIES[0], PoolingParams(use_activation=False), use_tqdm=False)
        np.testing.assert_allclose(output.outputs.data.numpy(), logits, atol=TOLERANCE)
        (output,) = llm.classify(QUERIES[0], use_tqdm=False)
        np.testing.assert_allclose(output.outputs.probs, np.exp(logits) / np.exp(logits).sum(), atol=TOLERANCE)
        with pytest.raises(ValueError, match="with one label"):
            llm.score("a", "b")
    # One token is one label, whose probability is a sigmoid.
    one = {**overrides, "classifier_from_token": tokens[:1]}
    with LLM(str(folder), hf_overrides=one, task="score") as llm:
        assert abs(scores(llm, QUERIES[0], "")[0] - sigmoid(logits[0])) <= TOLERANCE


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"classifier_from_token": ["Ġdog"]}, ValueError, "needs the two tokens"),
        ({"classifier_from_token": None}, ValueError, "needs the two tokens"),
        ({"classifier_from_token": ["Ġdog", "neverseen"]}, ValueError, "'neverseen', which is no token"),
        ({"is_original_qwen3_reranker": False}, ValueError, 'needs a "method"'),
        ({"method": "sum"}, ValueError, 'got "sum"'),
        ({"classifier_from_token": "Ġdog", "is_original_qwen3_reranker": False}, TypeError, "must be a list of tokens"),
        ({"classifier_token_ids": [1, 10**6]}, ValueError, "classifier_token_ids has 1000000"),
        ({"classifier_token_ids": [1, 2, 3]}, ValueError, "takes two tokens"),
    ],
)
def test_labels_that_are_none(changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path) -> None:
    folder, _ = saved(tmp_path, "Qwen3ForCausalLM", QWEN3)
    with pytest.raises(error, match=message):
        LLM(str(folder), hf_overrides={**RERANKER, **changes}, task="score")


def test_labels_without_a_tokenizer(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path, "Qwen3ForCausalLM", QWEN3)
    with pytest.raises(ValueError, match="needs the tokenizer"):
        LLM(str(folder), hf_overrides=RERANKER, task="score", skip_tokenizer_init=True)
    ids = {**RERANKER, "classifier_token_ids": [9, 8]}
    with LLM(str(folder), hf_overrides=ids, task="classify", skip_tokenizer_init=True) as llm:
        assert len(llm.classify([[5, 6, 7]], use_tqdm=False)[0].outputs.probs) == 1


def test_template_where_there_is_none_to_fill(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path, "BertForSequenceClassification", BERT, num_labels=1)
    with LLM(str(folder)) as llm, pytest.raises(ValueError, match="for decoders with a classifier"):
        llm.score("a", "b", chat_template=TEMPLATE)


def test_pairs_of_encoders_without_token_types(tmp_path: Path) -> None:
    """A tokenizer that numbers the texts of a pair is not heard where the model has one type, or none."""
    for model_class, base in (
        ("RobertaForSequenceClassification", {**ROBERTA, "type_vocab_size": 1}),
        ("ModernBertForSequenceClassification", MODERNBERT),
    ):
        folder, case = saved(tmp_path / model_class, model_class, base, num_labels=1)
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        tokenizer["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {},
        }
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        encoded = tokenizer_of(folder).encode(QUERIES[0], DOCUMENTS[0])
        assert 1 in encoded.type_ids
        with torch.no_grad():
            want = sigmoid(build(case)(torch.tensor([encoded.ids])).logits.item())
        with LLM(str(folder)) as llm:
            assert abs(scores(llm, QUERIES[0], DOCUMENTS[0])[0] - want) <= TOLERANCE


def token_vectors(case: PoolingCase, ids: list[int], projection: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        rows = build(case).base_model(torch.tensor([ids])).last_hidden_state[0] @ projection.T
        return torch.nn.functional.normalize(rows, dim=-1).numpy()


def max_sim(queries: np.ndarray, documents: np.ndarray) -> float:
    return sum(max(float(q @ d) for d in documents) for q in queries)


def check_late_interaction(folder: Path, case: PoolingCase, projection: torch.Tensor, **options: Any) -> None:
    tokenizer = tokenizer_of(folder)
    first, second = (
        [token_vectors(case, tokenizer.encode(text).ids, projection) for text in texts]
        for texts in (QUERIES, DOCUMENTS)
    )
    with LLM(str(folder), **options) as llm:
        assert llm.llm_engine.model_config.task == "embed"
        outputs = llm.encode([*QUERIES, *DOCUMENTS], pooling_task="token_embed", use_tqdm=False)
        for output, want in zip(outputs, [*first, *second], strict=True):
            np.testing.assert_allclose(output.outputs.data.numpy(), want, atol=TOLERANCE)
        want = [max_sim(a, b) for a, b in zip(first, second, strict=True)]
        np.testing.assert_allclose(scores(llm, QUERIES, DOCUMENTS), want, atol=TOLERANCE)
        want = [max_sim(first[1], b) for b in second]
        np.testing.assert_allclose(scores(llm, QUERIES[1], DOCUMENTS), want, atol=TOLERANCE)
        with pytest.raises(ValueError, match="1-D embedding"):
            llm.embed(QUERIES, use_tqdm=False)


def test_colbert(tmp_path: Path) -> None:
    folder, case = saved(tmp_path, "BertModel", BERT)
    projection = torch.randn(24, case.config["hidden_size"], generator=torch.Generator().manual_seed(3))
    path = folder / "model.safetensors"
    save_file({**{f"bert.{n}": t for n, t in load_file(path).items()}, "linear.weight": projection}, path)
    changed(folder, architectures=["HF_ColBERT"], colbert_dim=24)
    check_late_interaction(folder, case, projection)
    with pytest.raises(ValueError, match="does not support the 'classify' task"):
        LLM(str(folder), task="classify")


def test_colbert_says_which_width_it_expects(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path, "BertModel", BERT)
    path = folder / "model.safetensors"
    save_file({**load_file(path), "linear.weight": torch.zeros(24, 60)}, path)
    with pytest.raises(ValueError, match=r"linear\.weight: \[24, 60\], but config\.json makes it \[128, 60\]"):
        LLM(str(changed(folder, architectures=["HF_ColBERT"])))


def test_colbert_on_modernbert(tmp_path: Path) -> None:
    folder, case = saved(tmp_path, "ModernBertModel", MODERNBERT)
    projection = torch.randn(128, case.config["hidden_size"], generator=torch.Generator().manual_seed(3))
    path = folder / "model.safetensors"
    save_file({**load_file(path), "linear.weight": projection}, path)
    check_late_interaction(folder, case, projection, hf_overrides={"architectures": ["ColBERTModernBertModel"]})


def test_colbert_of_pylate(tmp_path: Path) -> None:
    """Its projection is a module beside the encoder, and there is none that pools."""
    folder, case = saved(tmp_path, "ModernBertModel", MODERNBERT)
    projection = torch.randn(16, case.config["hidden_size"], generator=torch.Generator().manual_seed(3))
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Dense").mkdir()
    save_file({"linear.weight": projection}, folder / "1_Dense" / "model.safetensors")
    identity = "torch.nn.modules.linear.Identity"
    dense = {"in_features": 60, "out_features": 16, "bias": False, "activation_function": identity}
    (folder / "1_Dense" / "config.json").write_text(json.dumps(dense))
    check_late_interaction(folder, case, projection)
    (folder / "1_Dense" / "config.json").write_text(json.dumps({**dense, "use_residual": True}))
    with pytest.raises(NotImplementedError, match="use_residual"):
        LLM(str(folder))


def test_step_tag_of_qwen(tmp_path: Path) -> None:
    """Qwen's process reward models mark steps with token 151651; a vocabulary without it has no mark."""
    config = {**DECODER, "vocab_size": 151652, "hidden_size": 12, "num_hidden_layers": 1}
    case = PoolingCase("steps", "Qwen2Model", config)
    folder = save(case, tmp_path)
    head = {"score.0.weight": torch.eye(12), "score.0.bias": torch.ones(12)}
    head |= {"score.2.weight": torch.ones(2, 12) / 12, "score.2.bias": torch.tensor([0.0, 1.0])}
    path = folder / "model.safetensors"
    save_file({**{f"model.{n}": t for n, t in load_file(path).items()}, **head}, path)
    changed(folder, architectures=["Qwen2ForProcessRewardModel"])
    with LLM(str(folder), skip_tokenizer_init=True) as llm:
        (output,) = llm.reward([[5, 151651, 6, 7, 151651, 8]], use_tqdm=False)
    assert output.outputs.data.shape == (2, 2)
    np.testing.assert_allclose(output.outputs.data.numpy()[:, 1], sigmoid(1.0), atol=TOLERANCE)
