"""Rows of vLLM's pooling behaviour that have no larger test: one test a row, named after it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import TEXT, llama_config, write_llama, write_tokenizer
from pooling_models import HIDDEN, MAX_LENGTH, as_sentence_transformer, write_bert
from quire import (
    LLM,
    ClassificationOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    PoolerConfig,
    PoolingOutput,
    PoolingParams,
    PoolingRequestOutput,
    ScoringOutput,
    tasks,
)
from quire.errors import RequestError

METHODS = ("encode", "embed", "classify", "score", "reward")


@pytest.fixture(scope="module")
def models(pooling_folders: dict[str, Path]) -> Any:
    """One LLM for each method."""
    labels = {"classifier_from_token": ["a", "b"], "method": "no_post_processing"}
    overrides = {"architectures": ["LlamaForSequenceClassification"], **labels}
    made = {
        "embed": LLM(str(pooling_folders["embed"])),
        "classify": LLM(str(pooling_folders["classify"]), task="classify"),
        "score": LLM(str(pooling_folders["score"])),
        "reward": LLM(str(pooling_folders["decoder"]), task="reward", hf_overrides=overrides),
    }
    made["encode"] = made["embed"]
    yield made
    for llm in made.values():
        llm.close()


def call(llm: LLM, method: str, prompts: Any, **options: Any) -> list[Any]:
    arguments = (TEXT[0], prompts) if method == "score" else (prompts,)
    return getattr(llm, method)(*arguments, use_tqdm=False, **options)


# 1.3: which task a model is loaded for.


@pytest.mark.parametrize(
    ("architecture", "modules", "task"),
    [
        ("GPT2LMHeadModel", None, "generate"),  # distilgpt2
        ("BertModel", ["Transformer", "Pooling", "Normalize"], "embed"),  # multilingual-e5-small
        ("Qwen2ForSequenceClassification", None, "classify"),  # Qwen2.5-1.5B-apeach
        ("BertForSequenceClassification", None, "score"),  # ms-marco-MiniLM
        ("RobertaForSequenceClassification", None, "score"),
        ("XLMRobertaForSequenceClassification", None, "score"),
        ("Qwen2ForRewardModel", None, "reward"),  # Qwen2.5-Math-RM
        ("Qwen2ForProcessRewardModel", None, "reward"),
        ("LlamaForCausalLM", None, "generate"),
        ("LlamaForCausalLM", ["Transformer", "Pooling"], "embed"),  # modules come before the name
        ("BertForSequenceClassification", ["Transformer", "Pooling"], "embed"),
        ("LlamaForCausalLM", ["Transformer"], "generate"),  # no Pooling among them
        ("LlamaModel", None, "embed"),
    ],
)
def test_auto_is_what_the_checkpoint_is(
    architecture: str, modules: list[str] | None, task: str, tmp_path: Path
) -> None:
    if modules is not None:
        listed = [{"path": "", "type": f"sentence_transformers.models.{name}"} for name in modules]
        (tmp_path / "modules.json").write_text(json.dumps(listed))
    values = {"task": "auto", "runner": "auto", "convert": "auto"}
    assert tasks.resolve_task(values, {"architectures": [architecture]}, tmp_path) == task


def test_a_suffix_decides_for_models_as_they_are_loaded(tmp_path: Path) -> None:
    for architecture, task in (("Qwen2ForSequenceClassification", "classify"), ("Qwen2ForRewardModel", "reward")):
        folder = tmp_path / architecture
        folder.mkdir()
        config = llama_config(50, architectures=[architecture], model_type="qwen2", num_labels=2)
        (folder / "config.json").write_text(json.dumps(config))
        with LLM(str(folder), load_format="dummy", skip_tokenizer_init=True) as llm:
            assert llm.llm_engine.model_config.task == task
            assert len(getattr(llm, task)([[5, 6]], use_tqdm=False)) == 1


def test_an_unsupported_task_names_the_supported_ones(pooling_folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError) as caught:
        LLM(str(pooling_folders["decoder"]), task="transcription")
    message = str(caught.value)
    assert message.startswith("This model does not support the 'transcription' task. Supported tasks: {")
    assert all(f"'{task}'" in message for task in ("generate", "embed", "classify", "score", "reward"))


def test_every_generating_model_pools_too(pooling_folders: dict[str, Path]) -> None:
    for task in ("embed", "reward"):
        with LLM(str(pooling_folders["decoder"]), task=task) as llm:
            assert len(getattr(llm, task)("The dog", use_tqdm=False)) == 1


def test_truncation_side_is_left_for_generate_and_right_otherwise(pooling_folders: dict[str, Path]) -> None:
    for task, side in (("generate", "left"), ("embed", "right"), ("reward", "right")):
        for mode in ("auto", "slow"):
            with LLM(str(pooling_folders["decoder"]), task=task, tokenizer_mode=mode) as llm:
                assert llm.get_tokenizer().truncation_side == side
                if task == "embed":
                    ids = llm.get_tokenizer().encode("The dog ran home")
                    (output,) = llm.embed("The dog ran home", truncate_prompt_tokens=2, use_tqdm=False)
                    assert output.prompt_token_ids == ids[:2]


def test_bert_embeds_its_first_token_and_files_say_otherwise(tmp_path: Path, pooling_folders: dict[str, Path]) -> None:
    for folder, pooling, activation in (
        (pooling_folders["plain"], "CLS", "normalize"),
        (as_sentence_transformer(write_bert(tmp_path / "mean"), normalizes=False), "MEAN", "none"),
        (as_sentence_transformer(write_bert(tmp_path / "last"), "lasttoken"), "LAST", "normalize"),
    ):
        with LLM(str(folder)) as llm:
            info = llm.info()
            assert (info["pooling_type"], info["pooling_activation"]) == (pooling, activation)


# 2.7: the methods.


def test_signatures() -> None:
    def names(method: str, kind: Any) -> list[str]:
        parameters = inspect.signature(getattr(LLM, method)).parameters.values()
        return [one.name for one in parameters if one.kind is kind and one.name != "self"]

    positional = inspect.Parameter.POSITIONAL_ONLY
    assert names("encode", inspect.Parameter.POSITIONAL_OR_KEYWORD) == (
        "prompts pooling_params prompt_token_ids use_tqdm lora_request prompt_adapter_request".split()
    )
    for method in ("embed", "classify", "reward"):
        assert [one for one in names(method, positional)] == ["prompts"]
        with pytest.raises(TypeError, match="positional"):
            getattr(LLM, method)(None, prompts="a")
    assert names("score", positional) == ["text_1", "text_2"]
    common = {"use_tqdm", "lora_request", "prompt_adapter_request", "pooling_params", "tokenization_kwargs"}
    for method in ("embed", "classify", "score", "reward"):
        assert common <= set(names(method, inspect.Parameter.KEYWORD_ONLY))
        assert inspect.signature(getattr(LLM, method)).parameters["use_tqdm"].default is True


def test_encode_on_a_generating_model_says_how_to_load_it(llm: LLM) -> None:
    for method in ("encode", "score", "reward"):
        with pytest.raises(ValueError) as caught:
            call(llm, method, "a")
        assert str(caught.value).startswith(
            f"LLM.{method}() is only supported for pooling models. Your model supports the 'pooling' runner, but is "
            "currently initialized for the 'generate' runner. Please initialize vLLM using `--task embed`, "
            "`--task classify`, `--task score` etc."
        )


@pytest.mark.parametrize("method", METHODS)
def test_no_prompts_are_no_outputs_and_none_is_an_error(method: str, models: dict[str, LLM]) -> None:
    if method == "score":  # whose empty sides are errors, see test_score_lengths
        with pytest.raises(TypeError):
            call(models[method], method, None)
        return
    assert call(models[method], method, []) == []
    with pytest.raises(TypeError):
        call(models[method], method, None)


@pytest.mark.parametrize("method", METHODS)
def test_adapters_are_refused(method: str, models: dict[str, LLM]) -> None:
    with pytest.raises(ValueError, match="Got lora_request x but LoRA is not enabled!"):
        call(models[method], method, "a", lora_request="x")
    with pytest.raises(NotImplementedError, match="prompt_adapter_request"):
        call(models[method], method, "a", prompt_adapter_request="x")


def test_request_ids_count_over_the_methods(pooling_folders: dict[str, Path]) -> None:
    with LLM(str(pooling_folders["embed"])) as llm:
        outputs = [*llm.encode(["a", "b"], use_tqdm=False), *llm.embed("c", use_tqdm=False)]
        outputs += llm.score("d", ["e", "f"], use_tqdm=False)
        assert [output.request_id for output in outputs] == ["0", "1", "2", "3_4", "3_5"]


def test_shapes_of_encode(pooling_folders: dict[str, Path]) -> None:
    """[hidden] pooled, [tokens, hidden] for ALL, [rows of the tag, hidden] for STEP."""
    ids = [7, 9, 7, 8, 9]
    for config, shape in (
        ({"pooling_type": "MEAN"}, (HIDDEN,)),
        ({"pooling_type": "ALL"}, (5, HIDDEN)),
        ({"pooling_type": "STEP", "step_tag_id": 9}, (2, HIDDEN)),
        ({"pooling_type": "STEP", "step_tag_id": 9, "returned_token_ids": [3, 1, 30]}, (2, 3)),
        ({"pooling_type": "STEP"}, (5, HIDDEN)),
    ):
        with LLM(str(pooling_folders["plain"]), pooler_config=config) as llm:
            (output,) = llm.encode([ids], use_tqdm=False)
            assert tuple(output.outputs.data.shape) == shape and str(output.outputs.data.dtype).endswith("float32")


def test_score_takes_every_kind_of_text_and_list(embedder: LLM, scorer: LLM) -> None:
    for llm in (embedder, scorer):
        tokens = llm.get_tokenizer().encode("the little dog", add_special_tokens=False)
        (want,) = llm.score("the little dog", "the cat", use_tqdm=False)
        spellings: list[Any] = [
            "the little dog",
            {"prompt": "the little dog"},
            {"prompt_token_ids": tokens},
            ["the little dog"],
            ({"prompt": "the little dog"},),
        ]
        for first in spellings:
            (got,) = llm.score(first, ["the cat"], use_tqdm=False)
            assert got.outputs == want.outputs
        assert len(llm.score(["the dog"], ["a", "b"], use_tqdm=False)) == 2


def test_cross_encoders_have_the_activation_that_their_files_name(
    scorer: LLM, pooling_folders: dict[str, Path]
) -> None:
    identity = {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}
    (squashed,) = scorer.score(TEXT[0], TEXT[1], use_tqdm=False)
    with LLM(str(pooling_folders["score"]), hf_overrides=identity) as llm:
        (raw,) = llm.score(TEXT[0], TEXT[1], use_tqdm=False)
    assert squashed.outputs.score == pytest.approx(1 / (1 + np.exp(-raw.outputs.score)), abs=1e-6)
    assert abs(squashed.outputs.score - raw.outputs.score) > 1e-3
    with pytest.raises(ValueError, match="restricted to torch.nn.modules"):
        LLM(str(pooling_folders["score"]), hf_overrides={"sbert_ce_default_activation_function": "os.system"})


def test_texts_of_a_bi_encoder_without_a_padding_token_follow_each_other(pooling_folders: dict[str, Path]) -> None:
    with LLM(str(pooling_folders["decoder"]), task="embed") as llm:
        assert llm.get_tokenizer().pad_token is None
        (output,) = llm.score("The dog", "A ball", use_tqdm=False)
        ids = [llm.get_tokenizer().encode(text) for text in ("The dog", "A ball")]
        assert output.prompt_token_ids == [*ids[0], *ids[1]]


# 3.4, 3.6, 3.8: the types.


def test_fields_of_pooling_params() -> None:
    assert (PoolingParams().dimensions, PoolingParams().additional_data) == (None, None)
    params = PoolingParams(8, {"a": [1]})
    copy = params.clone()
    copy.additional_data["a"].append(2)
    assert (params.dimensions, params.additional_data) == (8, {"a": [1]})
    assert repr(params) == "PoolingParams(dimensions=8, additional_metadata={'a': [1]})"


def test_dimensions_are_cut_before_the_length_is_made_one(pooling_folders: dict[str, Path]) -> None:
    with LLM(str(pooling_folders["embed"]), hf_overrides={"is_matryoshka": True}) as llm:
        (whole,), (short,) = (
            llm.embed(TEXT[0], pooling_params=PoolingParams(dimensions=one), use_tqdm=False) for one in (None, 5)
        )
        cut = np.array(whole.outputs.embedding[:5])
        assert np.linalg.norm(cut) < 0.99
        np.testing.assert_allclose(short.outputs.embedding, cut / np.linalg.norm(cut), atol=1e-6)
        with pytest.raises(ValueError, match=f"Dimensions must be at most {HIDDEN}"):
            llm.embed("a", pooling_params=PoolingParams(dimensions=HIDDEN + 1), use_tqdm=False)
        with pytest.raises(ValueError, match="`normalize` must be enabled"):
            llm.embed("a", pooling_params=PoolingParams(use_activation=False), use_tqdm=False)


def test_fields_of_pooler_config() -> None:
    assert vars(PoolerConfig()) == dict.fromkeys(vars(PoolerConfig()))
    assert PoolerConfig("STEP", False, True, 7, [1, 2]) == PoolerConfig.from_json(
        '{"pooling_type": "STEP", "normalize": false, "softmax": true, "step_tag_id": 7, "returned_token_ids": [1, 2]}'
    )


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"pooling_type": 3}, ValueError, "Unknown pooling_type 3. Known values: LAST, ALL, CLS, STEP, MEAN"),
        ({"pooling_type": "MEAN", "seq_pooling_type": "CLS"}, ValueError, "say the same thing"),
        ({"returned_token_ids": ["a"]}, TypeError, "returned_token_ids must be a list of integers"),
        ({"returned_token_ids": [-1]}, ValueError, "column -1"),
        ({"task": "classify"}, ValueError, "PoolerConfig.task='classify', but the model is loaded for 'embed'"),
        ({"dimensions": 4}, NotImplementedError, "PoolerConfig.dimensions .* Use PoolingParams.dimensions"),
        ({"max_embed_len": 4}, NotImplementedError, "PoolerConfig.max_embed_len"),
        ({"enable_chunked_processing": True}, NotImplementedError, "PoolerConfig.enable_chunked_processing"),
    ],
)
def test_pooler_configs_that_are_refused(
    config: dict[str, Any], error: type[Exception], message: str, pooling_folders: dict[str, Path]
) -> None:
    with pytest.raises(error, match=message):
        LLM(str(pooling_folders["plain"]), pooler_config=config)


def test_pooling_types_in_small_letters_and_softmax(pooling_folders: dict[str, Path]) -> None:
    with LLM(str(pooling_folders["plain"]), pooler_config={"pooling_type": "mean"}) as llm:
        assert llm.info()["pooling_type"] == "MEAN"
    folder, raw = str(pooling_folders["classify"]), PoolingParams(use_activation=False)
    with LLM(folder, task="classify") as llm:
        (logits,) = llm.encode(TEXT[0], raw, use_tqdm=False)
        (probs,) = llm.classify(TEXT[0], use_tqdm=False)
    exponentials = np.exp(logits.outputs.array())
    np.testing.assert_allclose(probs.outputs.probs, exponentials / exponentials.sum(), atol=1e-6)
    for off in ({"softmax": False}, {"use_activation": False}):
        with LLM(folder, task="classify", override_pooler_config=PoolerConfig(**off)) as llm:
            (output,) = llm.classify(TEXT[0], use_tqdm=False)
            np.testing.assert_array_equal(np.float32(output.outputs.probs), logits.outputs.array())


def test_outputs_are_plain_values() -> None:
    vector = PoolingOutput(np.array([0.5, -2.0], np.float32))
    output = PoolingRequestOutput[PoolingOutput]("7", vector, [1, 2], True)
    assert (output.request_id, output.prompt_token_ids, output.finished) == ("7", [1, 2], True)
    assert (output.num_cached_tokens, output.error) == (0, None)
    assert repr(output).startswith("PoolingRequestOutput(request_id='7', outputs=PoolingOutput(data=")
    assert vector == PoolingOutput(np.array([0.5, -2.0], np.float32))
    assert vector != PoolingOutput(np.array([0.5, -2.5], np.float32))
    assert vector != PoolingOutput(np.array([[0.5, -2.0]], np.float32)) and vector != [0.5, -2.0]
    assert EmbeddingOutput.from_base(vector) == EmbeddingOutput([0.5, -2.0])
    assert ClassificationOutput.from_base(vector) == ClassificationOutput([0.5, -2.0])
    assert ScoringOutput.from_base(PoolingOutput(np.array([0.5], np.float32))) == ScoringOutput(0.5)
    assert EmbeddingRequestOutput.from_base(output).prompt_token_ids == [1, 2]
    for part in (EmbeddingOutput, ClassificationOutput, ScoringOutput):
        with pytest.raises(ValueError, match="pooled_data should be"):
            part.from_base(PoolingOutput(np.zeros((2, 3), np.float32)))


# 4: what is newer than 0.8.4.


@pytest.mark.parametrize("pooling_task", ["plugin", "embed&token_classify", "classify", "token_classify", "dance"])
def test_pooling_tasks_that_the_model_has_not(pooling_task: str, embedder: LLM) -> None:
    message = f"Unsupported pooling task: '{pooling_task}'. Supported tasks of this model: ['embed', "
    for options in ({"pooling_task": pooling_task}, {"pooling_params": PoolingParams(task=pooling_task)}):
        with pytest.raises(ValueError) as caught:
            embedder.encode("a", use_tqdm=False, **options)
        assert message in str(caught.value)
    with pytest.raises(ValueError, match="contradict"):
        embedder.encode("a", PoolingParams(task="embed"), pooling_task="token_embed", use_tqdm=False)


def test_pooling_tasks_of_each_model(models: dict[str, LLM]) -> None:
    for method, pooling_task, shape in (
        ("embed", "embed", (HIDDEN,)),
        ("embed", "token_embed", (4, HIDDEN)),
        ("classify", "classify", (3,)),
        ("classify", "token_classify", (4, 3)),
        ("classify", "token_embed", (4, HIDDEN)),
        ("score", "score", (1,)),
        ("score", "classify", (1,)),
    ):
        (output,) = models[method].encode([[7, 8, 9, 10]], pooling_task=pooling_task, use_tqdm=False)
        assert output.outputs.array().shape == shape, (method, pooling_task)


def test_a_prompt_as_long_as_the_model_reads_is_allowed(embedder: LLM) -> None:
    (output,) = embedder.embed([[7] * MAX_LENGTH], use_tqdm=False)
    assert len(output.prompt_token_ids) == MAX_LENGTH


def test_lengths_that_contradict(embedder: LLM) -> None:
    with pytest.raises(ValueError, match="truncate_prompt_tokens is 5, and 6 in tokenization_kwargs"):
        embedder.embed("a", truncate_prompt_tokens=5, tokenization_kwargs={"truncate_prompt_tokens": 6})
    with pytest.raises(NotImplementedError, match=r"tokenization_kwargs \['padding'\]"):
        embedder.embed("a", tokenization_kwargs={"padding": True})


def test_texts_without_special_tokens(embedder: LLM) -> None:
    (output,) = embedder.embed("the dog", tokenization_kwargs={"add_special_tokens": False}, use_tqdm=False)
    assert output.prompt_token_ids == embedder.get_tokenizer().encode("the dog", add_special_tokens=False)


# Bad input.


@pytest.mark.parametrize("method", METHODS)
def test_one_bad_text_of_many_is_named_and_the_rest_is_kept(method: str, models: dict[str, LLM]) -> None:
    llm = models[method]
    bad: Any = {"prompt_token_ids": [10**6]}
    message = "out of vocabulary"
    if method == "score":
        bad, message = 7, "inputs must be a string"
    prompts = [TEXT[1], TEXT[2], bad, TEXT[3]]
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        call(llm, method, prompts)
    assert caught.value.indices == (2,) and "(prompt 2)" in str(caught.value)
    outputs = call(llm, method, prompts, on_error="return")
    assert outputs[2].outputs is None and message in outputs[2].error and outputs[2].finished
    want = call(llm, method, [TEXT[1], TEXT[2], TEXT[3]])
    assert [outputs[i].outputs for i in (0, 1, 3)] == [output.outputs for output in want]
    assert [outputs[i].error for i in (0, 1, 3)] == [None] * 3
    with pytest.raises(ValueError, match="on_error must be 'raise' or 'return', got 'ignore'"):
        call(llm, method, TEXT[1], on_error="ignore")


def test_a_bad_second_side_of_score_is_named_by_its_pair(embedder: LLM, scorer: LLM) -> None:
    first, second = [TEXT[0], TEXT[1]], [TEXT[2], {"prompt_token_ids": ["x"]}]
    for llm in (embedder, scorer):
        with pytest.raises(TypeError, match="prompt_token_ids must be a list of integers"):
            llm.score(first, second, use_tqdm=False)
        good, bad = llm.score(first, second, use_tqdm=False, on_error="return")
        assert good.error is None and bad.outputs is None and "list of integers" in bad.error


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_text_is_its_special_tokens(method: str, models: dict[str, LLM]) -> None:
    (output,) = call(models[method], method, "")
    tokenizer = models[method].get_tokenizer()
    if method == "score":  # a pair all the same, as for the cross-encoders of sentence-transformers
        assert [output.prompt_token_ids] == tokenizer([TEXT[0]], [""])["input_ids"]
    else:
        assert output.prompt_token_ids == tokenizer.encode("") != []


def test_an_empty_text_without_special_tokens_is_an_error(tmp_path: Path) -> None:
    folder = write_llama(tmp_path)
    write_tokenizer(folder, add_bos=False)
    with LLM(str(folder), task="embed") as llm:
        with pytest.raises(RequestError, match=r"prompt cannot be empty.*\(prompt 1\)"):
            llm.embed(["The dog", ""], use_tqdm=False)
        good, bad = llm.embed(["The dog", ""], use_tqdm=False, on_error="return")
        assert good.error is None and "cannot be empty" in bad.error


@pytest.mark.parametrize("method", METHODS)
def test_token_ids_that_are_too_many(method: str, models: dict[str, LLM]) -> None:
    llm = models[method]
    longest = llm.llm_engine.model_config.max_model_len
    if method == "score":  # which reads texts, and cuts them
        (output,) = llm.score(" ".join(TEXT), " ".join(TEXT), use_tqdm=False)
        assert len(output.prompt_token_ids) == longest
        return
    with pytest.raises(ValueError, match=f"length {longest + 1}.* maximum model length of {longest}"):
        call(llm, method, [[7] * (longest + 1)])
    assert len(call(llm, method, [[7] * longest])[0].prompt_token_ids) == longest


def broken(change: Callable[[Path], Any], **options: Any) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        folder = as_sentence_transformer(write_bert(root / "model"), **options)
        change(folder)
        return folder

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            broken(lambda folder: (folder / "1_Pooling" / "config.json").unlink()),
            'modules.json names a Pooling module in "1_Pooling", but there is no .*1_Pooling/config.json',
        ),
        (
            broken(lambda folder: (folder / "2_Dense" / "config.json").unlink(), dense=4),
            'names a Dense module in "2_Dense", but there is no',
        ),
        (broken(lambda folder: (folder / "2_Dense" / "model.safetensors").unlink(), dense=4), "2_Dense"),
        (broken(lambda folder: (folder / "modules.json").write_text("{oops")), "modules.json is not valid JSON"),
        (broken(lambda folder: (folder / "1_Pooling" / "config.json").write_text("[]")), "config.json"),
        (broken(lambda folder: (folder / "1_Pooling" / "config.json").write_text("{")), "config.json"),
        (broken(lambda folder: (folder / "sentence_bert_config.json").write_text("{")), "sentence_bert_config.json"),
    ],
)
def test_pooling_files_that_are_missing_or_broken(write: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        LLM(str(write(tmp_path)))
