"""What the families of encoders have beside their maths: spellings of weights and of config.json, lengths, refusals.

The models are those of encoder_checkpoints.py, saved by transformers; the configurations of the code that some of them
were published with are written here by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from encoder_checkpoints import CLASSIFIERS, ENCODERS, PoolingCase, build, hidden_states, logits, save  # noqa: E402
from quire import LLM, PoolingParams  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

TOLERANCE = 1e-4
CASES = {case.name: case for case in (*ENCODERS, *CLASSIFIERS)}
RAW = PoolingParams(use_activation=False)
# Names that only transformers itself has for these weights.
NATIVE = {
    "nomic-bert-plain": "layers.0.mlp.gate_proj.weight",
    "gte-plain": "layers.0.mlp.gate_proj.weight",
    "jina-v3-plain": "layers.0.self_attn.q_proj.weight",
    "nomic-bert-classifier-three": "nomic_bert.layers.0.mlp.gate_proj.weight",
    "gte-classifier-three": "gte.layers.0.mlp.gate_proj.weight",
    "jina-v3-classifier-three": "roberta.layers.0.self_attn.q_proj.weight",
}
PUBLISHED_NOMIC = {
    "architectures": ["NomicBertModel"],
    "model_type": "nomic_bert",
    "activation_function": "swiglu",
    "causal": False,
    "layer_norm_epsilon": 3e-5,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "n_embd": 60,
    "n_head": 5,
    "n_inner": 83,
    "n_layer": 2,
    "n_positions": 8192,
    "max_trained_positions": 48,
    "parallel_block": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": 2,
    "scale_attn_weights": True,
    "torch_dtype": "float32",
    "type_vocab_size": 2,
    "use_flash_attn": True,
    "use_rms_norm": False,
    "vocab_size": 131,
}
PUBLISHED_GTE = {
    "architectures": ["NewModel"],
    "model_type": "new",
    "hidden_act": "gelu",
    "hidden_size": 60,
    "intermediate_size": 83,
    "layer_norm_eps": 3e-5,
    "layer_norm_type": "layer_norm",
    "logn_attention_clip1": False,
    "logn_attention_scale": False,
    "max_position_embeddings": 48,
    "num_attention_heads": 5,
    "num_hidden_layers": 2,
    "pack_qkv": True,
    "pad_token_id": 0,
    "position_embedding_type": "rope",
    "rope_scaling": {"factor": 8.0, "type": "ntk"},
    "rope_theta": 20000,
    "torch_dtype": "float32",
    "type_vocab_size": 2,
    "unpad_inputs": True,
    "use_memory_efficient_attention": True,
    "vocab_size": 131,
}
PUBLISHED_JINA = {
    "architectures": ["XLMRobertaModel"],
    "model_type": "xlm-roberta",
    "emb_pooler": "mean",
    "hidden_act": "gelu",
    "hidden_size": 60,
    "intermediate_size": 83,
    "layer_norm_eps": 3e-5,
    "load_trained_adapters": True,
    "lora_adaptations": ["retrieval.query", "retrieval.passage"],
    "lora_alpha": 1,
    "lora_rank": 4,
    "max_position_embeddings": 48,
    "num_attention_heads": 5,
    "num_hidden_layers": 2,
    "pad_token_id": 1,
    "position_embedding_type": "rotary",
    "rotary_emb_base": 20000.0,
    "torch_dtype": "float32",
    "type_vocab_size": 1,
    "use_flash_attn": True,
    "vocab_size": 131,
}


def prompts(case: PoolingCase) -> list[dict[str, Any]]:
    return [
        {"prompt_token_ids": ids, **({} if types is None else {"token_type_ids": types})}
        for ids, types in zip(case.texts(), case.token_types(), strict=True)
    ]


def token_vectors(folder: Path, case: PoolingCase, **options: Any) -> list[np.ndarray]:
    with LLM(str(folder), task="embed", skip_tokenizer_init=True, **options) as llm:
        outputs = llm.encode(prompts(case), RAW, pooling_task="token_embed", use_tqdm=False)
        return [output.outputs.data.numpy() for output in outputs]


def difference(got: list[np.ndarray], want: list[np.ndarray]) -> float:
    assert [one.shape for one in got] == [one.shape for one in want]
    return max(float(np.abs(a - b).max()) for a, b in zip(got, want, strict=True))


def with_config(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def changed(folder: Path, **changes: Any) -> Path:
    return with_config(folder, {**json.loads((folder / "config.json").read_text()), **changes})


def with_tensors(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    tensors = change(load_file(folder / "model.safetensors"))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", NATIVE)
def test_names_of_transformers_itself(name: str, tmp_path: Path) -> None:
    """save_pretrained writes the names that a family was published with; its own are other spellings."""
    case = CASES[name]
    build(case).save_pretrained(tmp_path, save_original_format=False)
    assert NATIVE[name] in load_file(tmp_path / "model.safetensors")
    if "classifier" not in name:
        assert difference(token_vectors(tmp_path, case), hidden_states(case)) <= TOLERANCE
        return
    with LLM(str(tmp_path), task="classify", skip_tokenizer_init=True) as llm:
        got = [output.outputs.data.numpy() for output in llm.encode(prompts(case), RAW, use_tqdm=False)]
        assert difference(got, logits(case)) <= TOLERANCE


def test_published_nomic(tmp_path: Path) -> None:
    case = CASES["nomic-bert-plain"]
    folder = with_config(save(case, tmp_path), PUBLISHED_NOMIC)
    assert "encoder.layers.0.mlp.fc12.weight" in load_file(folder / "model.safetensors")
    assert difference(token_vectors(folder, case), hidden_states(case)) <= TOLERANCE
    with LLM(str(folder), skip_tokenizer_init=True) as llm:
        # Beyond the trained length its code rotates by the length of each text.
        assert llm.llm_engine.model_config.max_model_len == 48


def test_published_nomic_pads_its_vocabulary(tmp_path: Path) -> None:
    case = CASES["nomic-bert-plain"]
    name = "embeddings.word_embeddings.weight"
    folder = with_config(save(case, tmp_path), {**PUBLISHED_NOMIC, "pad_vocab_size_multiple": 64})
    with_tensors(folder, lambda old: {**old, name: torch.nn.functional.pad(old[name], (0, 0, 0, 192 - 131))})
    assert difference(token_vectors(folder, case), hidden_states(case)) <= TOLERANCE


def test_published_gte_with_fixed_ntk(tmp_path: Path) -> None:
    """The reference is transformers' model with the frequencies of the published code."""
    case = CASES["gte-plain"]
    folder = with_config(save(case, tmp_path), PUBLISHED_GTE)
    assert "encoder.layer.0.mlp.up_gate_proj.weight" in load_file(folder / "model.safetensors")
    model, dim, factor = build(case), 12, 8.0
    frequencies = 1.0 / ((20000.0 * factor) ** (torch.arange(0, dim, 2).float() / dim)) / factor ** (2 / dim)
    assert (model.rotary_emb.inv_freq - frequencies).abs().max() > 0.1
    model.rotary_emb.inv_freq.copy_(frequencies)
    with torch.no_grad():
        want = [
            model(torch.tensor([ids]), token_type_ids=torch.tensor([types])).last_hidden_state[0].numpy()
            for ids, types in zip(case.texts(), case.token_types(), strict=True)
        ]
    assert difference(token_vectors(folder, case), want) <= TOLERANCE
    with LLM(str(folder), skip_tokenizer_init=True) as llm:
        assert llm.llm_engine.model_config.max_model_len == 48


def test_published_gte_unpacked(tmp_path: Path) -> None:
    case = CASES["gte-theta"]

    def unpack(old: dict[str, Any]) -> dict[str, Any]:
        new = {}
        for name, tensor in old.items():
            parts = zip("qkv", tensor.chunk(3), strict=True) if ".qkv_proj." in name else ()
            new.update({name.replace("qkv_proj", f"{part}_proj"): rows for part, rows in parts})
            if ".qkv_proj." not in name:
                new[name] = tensor
        return new

    config = {**PUBLISHED_GTE, "rope_scaling": None, "rope_theta": 300.0, "pack_qkv": False}
    folder = with_config(with_tensors(save(case, tmp_path), unpack), config)
    assert difference(token_vectors(folder, case), hidden_states(case)) <= TOLERANCE


@pytest.mark.parametrize("has_adapters", [False, True])
def test_published_jina_v3(has_adapters: bool, tmp_path: Path) -> None:
    """Beside adapters the weights have longer names; what they compute is the model without a task."""
    case = CASES["jina-v3-plain"]

    def wrap(old: dict[str, Any]) -> dict[str, Any]:
        new = {}
        for name, tensor in old.items():
            if tensor.dim() != 2:
                new[f"roberta.{name}"] = tensor
                continue
            module = f"roberta.{name.removesuffix('.weight')}.parametrizations.weight"
            new[f"{module}.original"] = tensor
            new[f"{module}.0.lora_A"] = torch.ones(2, 4, tensor.shape[1])
            new[f"{module}.0.lora_B"] = torch.ones(2, tensor.shape[0], 4)
        return new

    config = dict(PUBLISHED_JINA)
    if not has_adapters:
        del config["lora_adaptations"]
    folder = with_config(save(case, tmp_path), config)
    if has_adapters:
        with_tensors(folder, wrap)
    want = hidden_states(case)
    assert difference(token_vectors(folder, case), want) <= TOLERANCE
    with LLM(str(folder), task="embed", skip_tokenizer_init=True) as llm:
        got = [np.array(output.outputs.embedding) for output in llm.embed(prompts(case), use_tqdm=False)]
    means = [rows.mean(0) / np.linalg.norm(rows.mean(0)) for rows in want]
    assert difference(got, means) <= TOLERANCE


def test_adapters_of_jina_v3_are_refused(tmp_path: Path) -> None:
    folder = with_config(save(CASES["jina-v3-plain"], tmp_path), PUBLISHED_JINA)
    with pytest.raises(NotImplementedError, match=r'"default_task" asks for the LoRA adapter "retrieval\.query"'):
        LLM(str(folder), skip_tokenizer_init=True, hf_overrides={"default_task": "retrieval.query"})


def test_flash_names_with_learned_positions(tmp_path: Path) -> None:
    """XLM-RoBERTa as Jina's rerankers have it."""
    case = CASES["xlm-roberta-one-type"]

    def rename(old: dict[str, Any]) -> dict[str, Any]:
        pairs = {
            "embeddings.LayerNorm": "emb_ln",
            "encoder.layer.": "encoder.layers.",
            "attention.output.LayerNorm": "norm1",
            "attention.output.dense": "mixer.out_proj",
            "intermediate.dense": "mlp.fc1",
            "output.LayerNorm": "norm2",
            "output.dense": "mlp.fc2",
        }
        new = {}
        for name, tensor in old.items():
            for before, after in pairs.items():
                name = name.replace(before, after)
            new[name] = tensor
        for i in range(2):
            for kind in ("weight", "bias"):
                parts = [
                    new.pop(f"encoder.layers.{i}.attention.self.{part}.{kind}") for part in ("query", "key", "value")
                ]
                new[f"encoder.layers.{i}.mixer.Wqkv.{kind}"] = torch.cat(parts)
        return new

    folder = with_tensors(save(case, tmp_path), rename)
    assert difference(token_vectors(folder, case), hidden_states(case)) <= TOLERANCE


def test_modernbert_as_transformers_4_wrote_it(tmp_path: Path) -> None:
    case = CASES["modernbert-thetas"]
    folder = save(case, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"], config["layer_types"]
    config |= {"global_attn_every_n_layers": 3, "global_rope_theta": 500.0, "local_rope_theta": 50.0}
    config["position_embedding_type"] = "absolute"  # the published files say so; nothing reads it
    assert difference(token_vectors(with_config(folder, config), case), hidden_states(case)) <= TOLERANCE


def test_masked_language_models_are_embedders(tmp_path: Path) -> None:
    """Their heads are left out, and so is the pooler that no embedding goes through."""
    for name, model_class in {
        "bert-plain": "BertForMaskedLM",
        "roberta-plain": "RobertaForMaskedLM",
        "xlm-roberta-one-type": "XLMRobertaForMaskedLM",
        "distilbert-plain": "DistilBertForMaskedLM",
        "modernbert-plain": "ModernBertForMaskedLM",
        "mpnet-plain": "MPNetForMaskedLM",
        "nomic-bert-plain": "NomicBertForMaskedLM",
        "gte-plain": "GteForMaskedLM",
        "jina-v3-plain": "JinaEmbeddingsV3ForMaskedLM",
    }.items():
        case = PoolingCase(**{**vars(CASES[name]), "model_class": model_class})
        folder = save(case, tmp_path / name)
        assert any("head" in key or "predictions" in key or "vocab" in key for key in load_file(folder / FILE))
        assert difference(token_vectors(folder, case), hidden_states(case)) <= TOLERANCE


FILE = "model.safetensors"


def test_token_classifiers(tmp_path: Path) -> None:
    for name, model_class in {
        "bert-classifier-three": "BertForTokenClassification",
        "roberta-classifier-three": "RobertaForTokenClassification",
        "distilbert-classifier-three": "DistilBertForTokenClassification",
        "modernbert-classifier-cls": "ModernBertForTokenClassification",
        "mpnet-classifier-three": "MPNetForTokenClassification",
    }.items():
        case = PoolingCase(**{**vars(CASES[name]), "model_class": model_class})
        folder = save(case, tmp_path / name)
        with LLM(str(folder), skip_tokenizer_init=True) as llm:
            assert llm.llm_engine.model_config.task == "classify"
            outputs = llm.encode(prompts(case), RAW, pooling_task="token_classify", use_tqdm=False)
            assert difference([output.outputs.data.numpy() for output in outputs], logits(case)) <= TOLERANCE


TABLES = ("shared.weight", "encoder.embed_tokens.weight")


@pytest.mark.parametrize("names", [TABLES[1:], TABLES])
def test_t5_has_its_table_under_either_name_or_both(names: tuple[str, ...], tmp_path: Path) -> None:
    def rename(old: dict[str, Any]) -> dict[str, Any]:
        (table,) = {name: old.pop(name) for name in TABLES if name in old}.values()
        return {**old, **{name: table.clone() for name in names}}

    case = CASES["t5-relu"]
    folder = with_tensors(save(case, tmp_path), rename)
    assert difference(token_vectors(folder, case), hidden_states(case)) <= TOLERANCE


def test_biases_by_distance_are_one_table_for_all_layers(tmp_path: Path) -> None:
    def of_each_layer(old: dict[str, Any]) -> dict[str, Any]:
        name = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
        return {**old, name.format(1): old[name.format(0)].clone()}

    folder = with_tensors(save(CASES["t5-relu"], tmp_path), of_each_layer)
    with pytest.raises(ValueError, match=r"1 unexpected:\n  encoder\.block\.1\.layer\.0\.SelfAttention\.relative"):
        LLM(str(folder), skip_tokenizer_init=True)


def test_roberta_reads_less_than_its_table_has_rows(tmp_path: Path) -> None:
    folder = save(CASES["roberta-pad-5"], tmp_path)
    with LLM(str(folder), skip_tokenizer_init=True) as llm:
        assert llm.llm_engine.model_config.max_model_len == 48 - 6
        llm.encode([[7] * 42], use_tqdm=False)
        with pytest.raises(ValueError, match="length 43"):
            llm.encode([[7] * 43], use_tqdm=False)


@pytest.mark.parametrize("device", ["cpu", "simt"])
@pytest.mark.parametrize("name", ["roberta-pad-5", "xlm-roberta-one-type", "camembert-plain", "mpnet-plain"])
def test_padding_inside_a_text_has_no_position_of_its_own(
    name: str, device: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Ids that equal the padding's are read like any other; positions do not count them, in transformers either."""
    if device == "simt":
        request.getfixturevalue("simt_plugin")
    case = CASES[name]
    pad = case.config["pad_token_id"]
    texts = [[pad], [7, pad, 8], [pad, pad, 9, 10, 11, pad, 12, 13], [8, 9, 10, pad]]
    with torch.no_grad():
        model = build(case)
        want = [model(torch.tensor([ids])).last_hidden_state[0].numpy() for ids in texts]
        counted = model(torch.tensor([texts[1]]), position_ids=torch.arange(3)[None] + pad + 1).last_hidden_state[0]
    assert np.abs(counted.numpy() - want[1]).max() > 0.05
    with LLM(str(save(case, tmp_path)), task="embed", skip_tokenizer_init=True, device=device) as llm:
        outputs = llm.encode(texts, RAW, pooling_task="token_embed", use_tqdm=False)
        assert difference([output.outputs.data.numpy() for output in outputs], want) <= TOLERANCE
        # The longest text that is read.
        full = [pad, *[7] * (llm.llm_engine.model_config.max_model_len - 1)]
        (output,) = llm.encode([full], RAW, pooling_task="token_embed", use_tqdm=False)
        with torch.no_grad():
            want = [model(torch.tensor([full])).last_hidden_state[0].numpy()]
        assert difference([output.outputs.data.numpy()], want) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("roberta-plain", {"position_embedding_type": "relative_key"}, '"position_embedding_type".*"relative_key"'),
        ("roberta-plain", {"hidden_act": "mish"}, '"hidden_act" has the value "mish"'),
        ("roberta-plain", {"is_decoder": True}, '"is_decoder" has the value true'),
        ("distilbert-plain", {"activation": "mish"}, '"hidden_act" has the value "mish"'),
        ("modernbert-plain", {"hidden_activation": "mish"}, '"hidden_act" has the value "mish"'),
        ("modernbert-classifier-cls", {"classifier_pooling": "max"}, '"classifier_pooling" has the value "max"'),
        ("mpnet-plain", {"relative_attention_num_buckets": 64}, '"relative_attention_num_buckets" has the value 64'),
        ("t5-relu", {"feed_forward_proj": "gated-mish"}, '"feed_forward_proj" has the value "mish"'),
        ("t5-relu", {"is_decoder": True}, '"is_decoder" has the value true'),
        ("nomic-bert-plain", {"prenorm": True}, '"prenorm" has the value true'),
        ("nomic-bert-plain", {"num_experts": 8}, '"num_experts" has the value 8'),
        ("nomic-bert-plain", {**PUBLISHED_NOMIC, "activation_function": "glu"}, '"activation_function".*"glu"'),
        ("nomic-bert-plain", {**PUBLISHED_NOMIC, "rotary_emb_interleaved": True}, '"rotary_emb_interleaved"'),
        ("gte-plain", {"position_embedding_type": "absolute"}, '"position_embedding_type".*"absolute"'),
        ("gte-plain", {"layer_norm_type": "rms_norm"}, '"layer_norm_type" has the value "rms_norm"'),
        ("gte-plain", {**PUBLISHED_GTE, "rope_scaling": {"type": "ntk", "factor": 2.0, "mixed_b": 0.6}}, '"mixed_b"'),
    ],
)
def test_variants_that_are_not_there(name: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = changed(save(CASES[name], tmp_path), **changes)
    with pytest.raises(NotImplementedError, match=message):
        LLM(str(folder), runner="pooling", skip_tokenizer_init=True)


def test_missing_names_are_those_of_the_spelling_that_fits(tmp_path: Path) -> None:
    def drop(old: dict[str, Any]) -> dict[str, Any]:
        return {name: tensor for name, tensor in old.items() if name != "encoder.layers.1.norm2.bias"}

    folder = with_tensors(save(CASES["nomic-bert-plain"], tmp_path), drop)
    with pytest.raises(ValueError, match=r"1 missing:\n  encoder\.layers\.1\.norm2\.bias$"):
        LLM(str(folder), skip_tokenizer_init=True)


@pytest.mark.parametrize("name", ["roberta-plain", "modernbert-biases", "gte-plain"])
def test_emulated_gpu(name: str, tmp_path: Path, simt_plugin: None) -> None:
    case = PoolingCase(**{**vars(CASES[name]), "lengths": (1, 9, 30)})
    folder = save(case, tmp_path)
    assert difference(token_vectors(folder, case, device="simt"), hidden_states(case)) <= TOLERANCE


def test_emulated_gpu_norm_in_the_head(tmp_path: Path, simt_plugin: None) -> None:
    case = PoolingCase(**{**vars(CASES["modernbert-classifier-mean"]), "lengths": (3, 30)})
    with LLM(str(save(case, tmp_path)), task="classify", skip_tokenizer_init=True, device="simt") as llm:
        got = [output.outputs.data.numpy() for output in llm.encode(prompts(case), RAW, use_tqdm=False)]
        assert difference(got, logits(case)) <= TOLERANCE
