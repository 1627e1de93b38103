"""load_weights and reload_weights: an LLM that was given another checkpoint's tensors is an LLM of that checkpoint, bit
for bit; whatever fails leaves the one before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from checkpoints import llama_config, llama_tensors, write_llama
from pooling_models import HIDDEN, as_sentence_transformer, bert_tensors, write_bert, write_qwen3_with_answers
from quire import LLM, SamplingParams
from safetensors.numpy import load_file, save_file

PARAMS = SamplingParams(temperature=0, max_tokens=12, logprobs=3, ignore_eos=True)
PROMPTS: list[Any] = [{"prompt_token_ids": list(range(5, 45))}, {"prompt_token_ids": [7, 8, 9]}]
Tensors = dict[str, np.ndarray]
Result = list[tuple[list[int], list[list[tuple[int, float]]]]]


def results(llm: LLM) -> Result:
    outputs = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    return [
        (
            list(output.outputs[0].token_ids),
            [sorted((token, entry.logprob) for token, entry in step.items()) for step in output.outputs[0].logprobs],
        )
        for output in outputs
    ]


def tensors_of(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


def shuffled(tensors: Tensors, seed: int = 3) -> list[tuple[str, np.ndarray]]:
    items = sorted(tensors.items())
    np.random.default_rng(seed).shuffle(items)  # type: ignore[arg-type]
    return [(str(name), tensors[str(name)]) for name, _ in items]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints of one architecture, without a tied head."""
    root = tmp_path_factory.mktemp("two")
    return (
        write_llama(root / "a", seed=1, tie_word_embeddings=True),
        write_llama(root / "b", seed=2, tie_word_embeddings=True),
    )


OPTIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "int8": {"quantization": "int8"},
    "simt": {"device": "simt", "max_model_len": 64, "max_num_seqs": 4, "dtype": "bfloat16"},
    "simt-offload": {"device": "simt", "max_model_len": 64, "max_num_seqs": 4, "cpu_offload_gb": 0.0001},
}


def small(
    llm_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> dict[str, Any]:
    if llm_options.get("device") == "simt":
        request.getfixturevalue("simt_plugin")
    return {"seed": 0, "num_gpu_blocks_override": 32, **llm_options}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("as_what", ["iterator", "mapping"])
def test_another_checkpoints_tensors(
    folders: tuple[Path, Path],
    name: str,
    as_what: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    options = small(OPTIONS[name], monkeypatch, request)
    before, after = folders
    with LLM(str(after), **options) as fresh:
        want = results(fresh)
    with LLM(str(before), **options) as llm:
        old = results(llm)
        assert old != want and llm.get_weight_version() == 0
        new = tensors_of(after)
        given: Any = dict(shuffled(new)) if as_what == "mapping" else iter(shuffled(new))
        assert llm.load_weights(given) == set(new)
        assert llm.get_weight_version() == 1
        assert results(llm) == want
        llm.reload_weights()
        assert results(llm) == old and llm.get_weight_version() == 2
        llm.reload_weights(after)
        assert results(llm) == want


@pytest.mark.parametrize("name", OPTIONS)
def test_errors_name_everything_and_change_nothing(
    folders: tuple[Path, Path], name: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    before, after = folders
    new = shuffled(tensors_of(after))
    bad: list[tuple[str, np.ndarray]] = [
        ("model.layers.0.self_attn.w.weight", np.zeros((2, 2), np.float32)),
        ("model.layers.1.mlp.up_proj.weight", np.zeros((128, 63), np.float32)),
        ("model.layers.7.mlp.up_proj.weight", np.zeros((128, 64), np.float32)),
        ("model.norm.weight", np.zeros(64, np.int64)),
    ]
    good = [item for item in new if item[0] not in dict(bad)]
    with LLM(str(before), **small(OPTIONS[name], monkeypatch, request)) as llm:
        old = results(llm)
        for given in (good + bad, iter(good + bad), iter(bad + good)):
            with pytest.raises(ValueError) as caught:
                llm.load_weights(given)
            message = str(caught.value)
            assert "2 unexpected:\n" in message and "2 misshaped:\n" in message
            assert "model.layers.0.self_attn.w.weight" in message and "model.layers.7.mlp.up_proj.weight" in message
            assert "model.layers.1.mlp.up_proj.weight: [128, 63], but config.json makes it [128, 64]" in message
            assert "model.norm.weight: int64 is no float dtype" in message
            assert results(llm) == old
        assert llm.get_weight_version() == 0

        def failing() -> Iterator[tuple[str, np.ndarray]]:
            yield from good
            raise KeyError("the trainer is gone")

        with pytest.raises(KeyError, match="the trainer is gone"):
            llm.load_weights(failing())
        assert results(llm) == old and llm.get_weight_version() == 0


def test_a_few_of_them(folders: tuple[Path, Path], tmp_path: Path) -> None:
    before, after = folders
    names = ["model.layers.1.self_attn.k_proj.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"]
    mixed = {**tensors_of(before), **{name: tensors_of(after)[name] for name in names}}
    folder = write_llama(tmp_path / "mixed", tie_word_embeddings=True)
    save_file(mixed, folder / "model.safetensors", metadata={"format": "pt"})
    with LLM(str(folder), seed=0) as fresh:
        want = results(fresh)
    with LLM(str(before), seed=0) as llm:
        assert llm.load_weights((name, mixed[name]) for name in names) == set(names)
        assert results(llm) == want


def test_given_twice(folders: tuple[Path, Path]) -> None:
    with LLM(str(folders[0]), seed=0) as llm:
        old = results(llm)
        norm = np.ones(64, np.float32)
        with pytest.raises(ValueError, match="1 given twice:\n  model.norm.weight"):
            llm.load_weights([("model.norm.weight", norm), ("norm.weight", norm), ("model.norm.weight", norm)][::2])
        assert results(llm) == old


def test_the_prefix_cache_is_emptied(folders: tuple[Path, Path]) -> None:
    before, after = folders
    with LLM(str(before), seed=0, enable_prefix_caching=True) as llm:
        llm.generate(PROMPTS, PARAMS, use_tqdm=False)
        assert llm.generate(PROMPTS, PARAMS, use_tqdm=False)[0].num_cached_tokens > 0
        with pytest.raises(ValueError):
            llm.load_weights(iter([("nonsense", np.zeros(1, np.float32))]))
        assert llm.generate(PROMPTS, PARAMS, use_tqdm=False)[0].num_cached_tokens > 0
        llm.load_weights(tensors_of(after))
        assert llm.stats()["num_cached_blocks"] == 0
        assert llm.generate(PROMPTS, PARAMS, use_tqdm=False)[0].num_cached_tokens == 0


def test_refused_while_requests_are_in_flight(folders: tuple[Path, Path]) -> None:
    with LLM(str(folders[0]), seed=0) as llm:
        old = results(llm)
        llm.enqueue(PROMPTS, PARAMS)
        for change in (lambda: llm.load_weights(tensors_of(folders[1])), lambda: llm.reload_weights(folders[1])):
            with pytest.raises(
                ValueError, match="the weights cannot change while requests are in flight: .* 2 waiting"
            ):
                change()
        outputs = llm.wait_for_completion(use_tqdm=False)
        assert [list(output.outputs[0].token_ids) for output in outputs] == [tokens for tokens, _ in old]
        llm.load_weights(tensors_of(folders[1]))


def test_requests_of_the_iterator_are_refused(folders: tuple[Path, Path]) -> None:
    with LLM(str(folders[0]), seed=0) as llm:
        old = results(llm)

        def asking() -> Iterator[tuple[str, np.ndarray]]:
            yield "model.norm.weight", np.ones(64, np.float32)
            llm.generate(PROMPTS, PARAMS, use_tqdm=False)

        with pytest.raises(ValueError, match="the weights are being updated by the call that asks"):
            llm.load_weights(asking())
        assert results(llm) == old


def test_requests_of_other_threads_wait(folders: tuple[Path, Path]) -> None:
    before, after = folders
    with LLM(str(after), seed=0) as fresh:
        want = results(fresh)
    with LLM(str(before), seed=0) as llm:
        got: list[Result] = []
        other = threading.Thread(target=lambda: got.append(results(llm)))

        def feeding() -> Iterator[tuple[str, np.ndarray]]:
            for position, item in enumerate(tensors_of(after).items()):
                if position == 3:
                    other.start()
                yield item

        llm.load_weights(feeding())
        other.join()
        assert got == [want]


def test_without_a_copy_of_the_old_ones(folders: tuple[Path, Path]) -> None:
    before, after = folders
    new = tensors_of(after)
    with LLM(str(after), seed=0) as fresh:
        want = results(fresh)
    with LLM(str(before), seed=0) as llm:

        def failing() -> Iterator[tuple[str, np.ndarray]]:
            yield "model.norm.weight", new["model.norm.weight"]
            raise KeyError("gone")

        with pytest.raises(KeyError):
            llm.load_weights(failing(), atomic=False)
        with pytest.raises(ValueError, match="the weights are neither old nor new"):
            results(llm)
        llm.load_weights([("model.norm.weight", new["model.norm.weight"])])  # not all of them
        with pytest.raises(ValueError, match="the weights are neither old nor new"):
            results(llm)
        llm.load_weights(iter(new.items()), atomic=False)
        assert results(llm) == want


def test_a_tied_head_under_both_names(folders: tuple[Path, Path]) -> None:
    before, after = folders
    new = tensors_of(after)
    table = new["model.embed_tokens.weight"]
    with LLM(str(after), seed=0) as fresh:
        want = results(fresh)
    rest = [item for item in new.items() if item[0] != "model.embed_tokens.weight"]
    for tables in (
        [("model.embed_tokens.weight", table), ("lm_head.weight", table)],
        [("lm_head.weight", table), ("model.embed_tokens.weight", table)],
        [("lm_head.weight", table)],
    ):
        with LLM(str(before), seed=0) as llm:
            llm.load_weights(iter(rest + tables))
            assert results(llm) == want


KINDS: dict[str, Callable[[Any, np.ndarray], Any]] = {
    "torch": lambda torch, x: torch.from_numpy(x),
    "torch-parameter": lambda torch, x: torch.nn.Parameter(torch.from_numpy(x)),
    "torch-strided": lambda torch, x: torch.from_numpy(np.ascontiguousarray(x.T)).permute(*range(x.ndim)[::-1]),
    "torch-double": lambda torch, x: torch.from_numpy(x).double(),
    "numpy-strided": lambda torch, x: np.repeat(x, 2, axis=0)[::2],
    "numpy-double": lambda torch, x: x.astype(np.float64),
    "dlpack": lambda torch, x: OnlyDlpack(torch.from_numpy(x)),
}


class OnlyDlpack:
    """A tensor of a library that nobody knows."""

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any:
        return self._tensor.__dlpack__(*args, **kwargs)

    def __dlpack_device__(self) -> Any:
        return self._tensor.__dlpack_device__()


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_other_libraries(folders: tuple[Path, Path], kind: str) -> None:
    torch = pytest.importorskip("torch")
    before, after = folders
    with LLM(str(after), seed=0) as fresh:
        want = results(fresh)
    with LLM(str(before), seed=0) as llm:
        llm.load_weights((name, KINDS[kind](torch, one)) for name, one in tensors_of(after).items())
        assert results(llm) == want


def test_bfloat16_of_torch_and_dlpack(folders: tuple[Path, Path]) -> None:
    torch = pytest.importorskip("torch")
    rounded = {name: torch.from_numpy(one).bfloat16() for name, one in tensors_of(folders[1]).items()}
    got = []
    for tensors in (
        {name: one.float().numpy() for name, one in rounded.items()},
        rounded,
        {name: OnlyDlpack(one) for name, one in rounded.items()},
    ):
        with LLM(str(folders[0]), seed=0, dtype="bfloat16") as llm:
            llm.load_weights(tensors)
            got.append(results(llm))
    assert got[0] == got[1] == got[2]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1], r"weights are \(name, tensor\) pairs, got int"),
        ([("model.norm.weight",)], r"pairs, got a tuple of \['str'\]"),
        ([(1, np.zeros(1))], r"pairs, got a tuple of \['int', 'ndarray'\]"),
        ([("model.norm.weight", [1.0])], "model.norm.weight: a weight is a torch tensor, a numpy array or something"),
    ],
    ids=["no pair", "too short", "no name", "no tensor"],
)
def test_what_is_no_tensor(llm: LLM, weights: list[Any], message: str) -> None:
    for given in (weights, iter(weights)):
        with pytest.raises(TypeError, match=message):
            llm.load_weights(given)
    assert llm.get_weight_version() == 0


def test_one_tensor_at_a_time(tmp_path: Path) -> None:
    """300 MB pass through; what is held is one tensor and, while the call lasts, the old values."""
    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4, "num_attention_heads": 16}
    config = llama_config(512, **shape, head_dim=64)
    folder = write_llama(tmp_path / "large", with_tokenizer=False, vocab_size=512, **shape, head_dim=64)
    shapes = {name: one.shape for name, one in llama_tensors(config).items()}
    weight_bytes = sum(4 * int(np.prod(shape)) for shape in shapes.values())
    # Weights in memory of the process from the start: with a file of packed weights the first update copies them there.
    with LLM(str(folder), skip_tokenizer_init=True, num_gpu_blocks_override=16, weight_cache=False) as llm:
        most = 0
        process = psutil.Process()
        start = process.memory_info().rss

        def fresh() -> Iterator[tuple[str, np.ndarray]]:
            nonlocal most
            for name, shape in shapes.items():
                yield name, np.full(shape, 0.01, np.float32)
                most = max(most, process.memory_info().rss - start)

        llm.load_weights(fresh(), atomic=False)
        assert most < weight_bytes / 3
        most = 0
        start = process.memory_info().rss
        llm.load_weights(fresh())
        assert most < weight_bytes * 1.35


def test_reload_tells_all_that_does_not_fit(folders: tuple[Path, Path], tmp_path: Path) -> None:
    other = write_llama(tmp_path / "other", intermediate_size=96)
    with LLM(str(folders[0]), seed=0) as llm:
        old = results(llm)
        with pytest.raises(ValueError, match="6 misshaped:"):
            llm.reload_weights(other)
        with pytest.raises(FileNotFoundError):
            llm.reload_weights(tmp_path / "nothing")
        assert results(llm) == old and llm.get_weight_version() == 0


def test_dummy_weights_come_again(folders: tuple[Path, Path]) -> None:
    with LLM(str(folders[0]), seed=0, load_format="dummy") as llm:
        old = results(llm)
        llm.reload_weights(folders[1])
        with LLM(str(folders[1]), seed=0) as fresh:
            assert results(llm) == results(fresh)
        llm.reload_weights()
        assert results(llm) == old


def test_bin_checkpoints(folders: tuple[Path, Path], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = write_llama(tmp_path / "bin", tie_word_embeddings=True)
    (folder / "model.safetensors").unlink()
    torch.save({k: torch.from_numpy(v) for k, v in tensors_of(folders[1]).items()}, folder / "pytorch_model.bin")
    with LLM(str(folder), seed=0) as llm:
        want = results(llm)
        llm.load_weights(tensors_of(folders[0]))
        assert results(llm) != want
        llm.reload_weights()
        assert results(llm) == want


def test_a_draft_model_keeps_its_weights(folders: tuple[Path, Path], tmp_path: Path) -> None:
    before, after = folders
    speculation = {"method": "draft_model", "model": str(after), "num_speculative_tokens": 2}
    with LLM(str(after), seed=0) as fresh:
        want = results(fresh)
    with LLM(str(before), seed=0, speculative_config=speculation) as llm:
        results(llm)
        few = llm.stats()
        llm.load_weights(tensors_of(after))
        assert results(llm) == want
        many = llm.stats()
        # Of a model that is its own draft every guess is right.
        drafted = many["num_draft_tokens"] - few["num_draft_tokens"]
        assert many["num_accepted_tokens"] - few["num_accepted_tokens"] == drafted > 0
        assert few["num_accepted_tokens"] < few["num_draft_tokens"]


def vectors(llm: LLM) -> list[list[float]]:
    return [output.outputs.embedding for output in llm.embed(["the dog found a ball", "the sun"], use_tqdm=False)]


def scaled(tensors: Tensors) -> Tensors:
    random = np.random.default_rng(9)
    return {name: (one * random.uniform(0.5, 1.5, one.shape)).astype(np.float32) for name, one in tensors.items()}


def test_pooling_models(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("simt_plugin")
    folder = as_sentence_transformer(write_bert(tmp_path / "a"), dense=16)
    other = as_sentence_transformer(write_bert(tmp_path / "b"), dense=16)
    new = scaled(tensors_of(folder))
    save_file(new, other / "model.safetensors", metadata={"format": "pt"})
    dense = {
        f"2_Dense/{name}": one for name, one in scaled(load_file(folder / "2_Dense" / "model.safetensors")).items()
    }
    save_file(
        {name.removeprefix("2_Dense/"): one for name, one in dense.items()}, other / "2_Dense" / "model.safetensors"
    )
    for options in ({}, {"device": "simt"}, {"quantization": "int8"}):
        with LLM(str(other), **options) as fresh:  # type: ignore[arg-type]
            want = vectors(fresh)
        with LLM(str(folder), **options) as llm:  # type: ignore[arg-type]
            old = vectors(llm)
            with pytest.raises(ValueError, match="1 unexpected"):
                llm.load_weights(iter([*new.items(), ("x", np.zeros(1, np.float32))]))
            assert vectors(llm) == old
            llm.load_weights(iter([*dense.items(), *new.items()]))
            assert vectors(llm) == want and want != old
            llm.reload_weights()
            assert vectors(llm) == old
            llm.reload_weights(other)
            assert vectors(llm) == want


def test_classifiers_of_rows_of_the_head(tmp_path: Path) -> None:
    overrides = {
        "architectures": ["Qwen3ForSequenceClassification"],
        "classifier_from_token": ["no", "yes"],
        "is_original_qwen3_reranker": True,
    }
    before, after = write_qwen3_with_answers(tmp_path / "a"), write_qwen3_with_answers(tmp_path / "b")
    new = scaled(tensors_of(after))
    save_file(new, after / "model.safetensors", metadata={"format": "pt"})

    def scores(llm: LLM) -> list[float]:
        return [output.outputs.score for output in llm.score("the dog", ["a ball", "the sun"], use_tqdm=False)]

    with LLM(str(after), task="score", hf_overrides=overrides) as fresh:
        want = scores(fresh)
    with LLM(str(before), task="score", hf_overrides=overrides) as llm:
        assert scores(llm) != want
        llm.load_weights(iter(new.items()))
        assert scores(llm) == want


def test_pooling_requests_in_flight(tmp_path: Path) -> None:
    with LLM(str(write_bert(tmp_path / "a")), task="embed") as llm:
        call = llm._engine.open_call()
        llm._engine.submit_many(call, [[2, 5, 3]], None, [{}])
        with pytest.raises(ValueError, match="requests are in flight: 1 waiting"):
            llm.load_weights(bert_tensors(llm.info()["vocab_size"]))
        llm._engine.close_call(call)
        llm.load_weights([("embeddings.LayerNorm.bias", np.zeros(HIDDEN, np.float32))])
        assert llm.get_weight_version() == 1


def test_a_closed_llm_says_so(tiny_model: Path) -> None:
    llm = LLM(str(tiny_model))
    llm.close()
    for call in (lambda: llm.load_weights([]), llm.reload_weights, llm.get_weight_version):
        with pytest.raises(RuntimeError, match="This LLM is closed"):
            call()
