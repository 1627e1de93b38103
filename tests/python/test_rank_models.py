"""apply_model and the parameters of workers where ranks share the model: together they are the checkpoint, bit for bit,
and what is written to them is what a changed checkpoint would have brought."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_llama
from quire import LLM
from safetensors.numpy import save_file
from test_weights import results, tensors_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

UP = "model.layers.1.mlp.up_proj.weight"
DOWN_BIAS = "model.layers.0.mlp.down_proj.bias"
NORM = "model.norm.weight"
# Numbers that 4 does not divide where parts may differ by one.
GPT2 = {"vocab_size": 211, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 130}
BIASED = {
    "vocab_size": 211,
    "hidden_size": 64,
    "intermediate_size": 130,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "attention_bias": True,
    "mlp_bias": True,
}


def write_random(folder: Path, kind: str, config: dict[str, Any]) -> Path:
    """A model of transformers with random weights, biases included."""
    model = getattr(transformers, kind)(getattr(transformers, kind).config_class(**config))
    generator = torch.Generator().manual_seed(3)
    for weight in model.parameters():
        weight.data += 0.2 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


MODELS: dict[str, Callable[[Path], Path]] = {
    # Two key heads: grouped on 2 ranks, on 4 ranks each is on two of them.
    "llama": lambda folder: write_llama(
        folder, seed=4, with_tokenizer=False, vocab_size=211, intermediate_size=130, tie_word_embeddings=True
    ),
    "biased": lambda folder: write_random(folder, "LlamaForCausalLM", BIASED),
    "gpt2": lambda folder: write_random(folder, "GPT2LMHeadModel", GPT2),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("shared")
    return {name: make(root / name) for name, make in MODELS.items()}


def open_llm(folder: Path, ranks: int, **options: Any) -> LLM:
    options = {"seed": 0, "num_gpu_blocks_override": 32, "skip_tokenizer_init": True, "dtype": "float32", **options}
    return LLM(str(folder), tensor_parallel_size=ranks, num_threads=ranks, **options)


@pytest.fixture
def shared(folders: dict[str, Path]) -> Iterator[LLM]:
    with open_llm(folders["llama"], 2) as llm:
        yield llm


@pytest.fixture
def biased(folders: dict[str, Path]) -> Iterator[LLM]:
    with open_llm(folders["biased"], 2) as llm:
        yield llm


def state_of(model: Any) -> dict[str, np.ndarray]:
    return {name: one.numpy().copy() for name, one in model.state_dict().items()}


def same(states: list[dict[str, np.ndarray]], others: list[dict[str, np.ndarray]]) -> bool:
    return all((a[name] == b[name]).all() for a, b in zip(states, others, strict=True) for name in a)


def split_axis(name: str) -> int | None:
    """Along which axis of the stored tensor ranks share it; None: all have it whole."""
    leaf = ".".join(name.split(".")[-2:])
    if ".h." in name:  # Conv1D stores [inputs, outputs]
        layer = ".".join(name.split(".")[-3:])
        axes = {"attn.c_attn.weight": 1, "attn.c_attn.bias": 0, "attn.c_proj.weight": 0, "mlp.c_proj.weight": 0}
        return {**axes, "mlp.c_fc.weight": 1, "mlp.c_fc.bias": 0}.get(layer)
    if leaf in ("o_proj.weight", "down_proj.weight"):
        return 1
    columns = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    return 0 if leaf.startswith(columns) or leaf in ("embed_tokens.weight", "lm_head.weight", "wte.weight") else None


def joined(name: str, parts: list[np.ndarray], num_key_heads: int) -> np.ndarray:
    axis = split_axis(name)
    if axis is None:
        assert all((part == parts[0]).all() for part in parts)
        return parts[0]
    if "c_attn" in name:
        thirds = [np.split(part, 3, axis) for part in parts]
        return np.concatenate([np.concatenate([part[i] for part in thirds], axis) for i in range(3)], axis)
    num_copies = len(parts) // num_key_heads if "k_proj" in name or "v_proj" in name else 1
    if num_copies > 1:
        for i, part in enumerate(parts):
            assert (part == parts[i // num_copies * num_copies]).all()
        parts = parts[::num_copies]
    sizes = [part.shape[axis] for part in parts]
    assert max(sizes) - min(sizes) <= 1
    return np.concatenate(parts, axis)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_ranks_together_have_the_checkpoint(folders: dict[str, Path], name: str, ranks: int) -> None:
    tensors = {
        key if key.startswith(("model.", "transformer.", "lm_head.")) else f"transformer.{key}": one
        for key, one in tensors_of(folders[name]).items()
    }
    key_heads = json.loads((folders[name] / "config.json").read_text()).get("num_key_value_heads", 4)
    with open_llm(folders[name], ranks) as llm:
        states = llm.apply_model(state_of)
        named = llm.apply_model(lambda model: {key: tuple(one.shape) for key, one in model.named_parameters()})
        sums = llm.apply_model(lambda model: sum(float(p.double().sum()) for p in model.parameters()))
        assert llm.get_weight_version() == 0
    assert len(states) == ranks
    for state, shapes in zip(states, named, strict=True):
        assert {key for key in state if key != "lm_head.weight"} == {key for key in tensors if key != "lm_head.weight"}
        assert all(shape == state[key].shape for key, shape in shapes.items())
    for key, one in tensors.items():
        whole = joined(key, [state[key] for state in states], key_heads)
        assert whole.dtype == one.dtype and whole.shape == one.shape and (whole == one).all(), key
    for rank, state in enumerate(states):
        listed = [key for key in state if key in named[rank]]
        assert sums[rank] == pytest.approx(sum(state[key].astype(np.float64).sum() for key in listed), abs=1e-6)


def factor(name: str) -> float:
    """Another one for every kind of tensor; exact in every dtype."""
    return {0: 0.5, 1: -0.5, 2: 2.0}[sum(name.encode()) % 3] if "norm" not in name and ".ln_" not in name else 0.5


def scale(model: Any) -> None:
    for name, parameter in model.named_parameters():
        parameter.mul_(factor(name))


def changed_copy(folder: Path, new: Path, change: Callable[[str, np.ndarray], np.ndarray]) -> Path:
    new.mkdir()
    for file in folder.iterdir():
        if file.suffix == ".json":
            (new / file.name).write_bytes(file.read_bytes())
    tensors = {name: np.ascontiguousarray(change(name, one)) for name, one in tensors_of(folder).items()}
    save_file(tensors, new / "model.safetensors", metadata={"format": "pt"})
    return new


def full_name(name: str) -> str:
    return name if name.startswith(("model.", "transformer.", "lm_head.")) else f"transformer.{name}"


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_writing_is_loading_a_changed_checkpoint(
    folders: dict[str, Path], tmp_path: Path, name: str, ranks: int
) -> None:
    changed = changed_copy(
        folders[name], tmp_path / "changed", lambda key, one: one * np.float32(factor(full_name(key)))
    )
    with open_llm(changed, ranks) as fresh:
        want = results(fresh)
    with open_llm(folders[name], ranks) as llm:
        old = results(llm)
        assert results(llm) == old
        hits = llm.stats()["prefix_cache_hits"]
        assert hits > 0
        llm.apply_model(scale)
        assert llm.get_weight_version() == 1
        assert llm.collective_rpc("weights_version") == [1] * ranks
        assert results(llm) == want != old
        assert llm.stats()["prefix_cache_hits"] == hits  # the cache was empty


def test_bfloat16(folders: dict[str, Path], tmp_path: Path) -> None:
    """Matrices alone, whose rounding scales with them; norms and biases are float32 in the engine."""

    def scale_matrix(name: str, one: np.ndarray) -> np.ndarray:
        return one * np.float32(factor(name)) if one.ndim == 2 else one

    changed = changed_copy(folders["biased"], tmp_path / "changed", scale_matrix)
    with open_llm(changed, 2, dtype="bfloat16") as fresh:
        want = results(fresh)
    with open_llm(folders["biased"], 2, dtype="bfloat16") as llm:
        old = results(llm)
        llm.apply_model(lambda model: [p.mul_(factor(n)) for n, p in model.named_parameters() if p.dim() == 2])
        assert results(llm) == want != old


def test_int8(folders: dict[str, Path]) -> None:
    """A rank's rows have scales of their own."""
    name = "model.layers.0.mlp.down_proj.weight"
    halves = np.split(tensors_of(folders["biased"])[name], 2, axis=1)
    with open_llm(folders["biased"], 2, quantization="int8") as llm:
        old = results(llm)
        for want, got in zip(halves, (state[name] for state in llm.apply_model(state_of)), strict=True):
            errors, scales = np.abs(got - want), np.abs(want).max(axis=1, keepdims=True) / 127
            assert (errors <= 0.5001 * scales).all() and errors.any()
        assert results(llm) == old and llm.get_weight_version() == 0
        llm.apply_model(lambda model: model.get_parameter(name).mul_(2))
        assert results(llm) != old and llm.get_weight_version() == 1


def test_one_rank_alone(shared: LLM, folders: dict[str, Path], tmp_path: Path) -> None:
    """Rank 1 has the second half of the rows."""

    def zero_second_half(name: str, one: np.ndarray) -> np.ndarray:
        if name == UP:
            one = one.copy()
            one[one.shape[0] // 2 :] = 0
        return one

    changed = changed_copy(folders["llama"], tmp_path / "changed", zero_second_half)
    with open_llm(changed, 2) as fresh:
        want = results(fresh)
    old = shared.apply_model(state_of)

    def zero(worker: Any) -> None:
        if worker.rank == 1:
            worker.model.get_parameter(UP).data.zero_()

    shared.collective_rpc(zero)
    new = shared.apply_model(state_of)
    assert same(new[:1], old[:1]) and not new[1][UP].any()
    assert results(shared) == want and shared.collective_rpc("weights_version") == [1, 1]

    # What every rank has is written to the rank that changed it.
    def move(worker: Any) -> None:
        worker.model.get_parameter(NORM).add_(worker.rank)

    shared.collective_rpc(move)
    first, second = (state[NORM] for state in shared.apply_model(state_of))
    assert (first == old[0][NORM]).all() and (second == old[1][NORM] + 1).all()


def test_errors_change_nothing(shared: LLM) -> None:
    old, state = results(shared), shared.apply_model(state_of)

    def fail_on_rank_1(worker: Any) -> None:
        worker.model.get_parameter(UP).data.zero_()
        if worker.rank == 1:
            raise KeyError("of rank 1")

    def misshape_on_rank_1(worker: Any) -> None:
        worker.model.get_parameter(UP).data.zero_()
        if worker.rank == 1:
            worker.model.model.norm.weight = torch.nn.Parameter(torch.zeros(3))

    with pytest.raises(KeyError, match="of rank 1"):
        shared.collective_rpc(fail_on_rank_1)
    with pytest.raises(ValueError, match=r"model.norm.weight: \[3\], but the part of rank 1 is \[64\]"):
        shared.collective_rpc(misshape_on_rank_1)
    assert shared.get_weight_version() == 0
    assert same(shared.apply_model(state_of), state) and results(shared) == old
    with pytest.raises(RuntimeError, match="cannot be called by what they run"):
        shared.collective_rpc(lambda worker: shared.apply_model(state_of))
    with pytest.raises(RuntimeError, match="weights are loaded by the workers or their models, all of them together"):
        shared.collective_rpc(lambda worker: shared.load_weights({}))
    for bad in (lambda: shared._engine.weights_of_rank(2), lambda: shared._engine.read_weight_of_rank(-1, UP)):
        with pytest.raises(ValueError, match="there is no rank"):
            bad()
    with pytest.raises(ValueError, match="a list of parts a rank is needed: 2, got 1"):
        shared._engine.load_weights_of_ranks([[]])
    with pytest.raises(ValueError, match="has no weight x"):
        shared._engine.read_weight_of_rank(1, "x")
    shared.enqueue([{"prompt_token_ids": [1, 2]}])
    with pytest.raises(ValueError, match="requests are in flight"):
        shared.apply_model(scale)
    shared.wait_for_completion(use_tqdm=False)
    assert results(shared) == old


def test_a_rank_that_takes_too_long(shared: LLM) -> None:
    state = shared.apply_model(state_of)
    may_go = threading.Event()

    def slow(worker: Any) -> None:
        worker.model.get_parameter(UP).data.zero_()
        if worker.rank == 1:
            may_go.wait()

    with pytest.raises(TimeoutError, match=r"rank 1 did not answer within 0\.2 s"):
        shared.collective_rpc(slow, timeout=0.2)
    with pytest.raises(TimeoutError, match=r"another call on the workers was not done within 0\.1 s"):
        shared.collective_rpc("check_health", timeout=0.1)
    may_go.set()
    assert same(shared.apply_model(state_of), state) and shared.get_weight_version() == 0


def test_biases_that_one_rank_adds(biased: LLM, folders: dict[str, Path], tmp_path: Path) -> None:
    """As with vLLM every rank shows the whole bias behind a sum, and the first rank's is what is added."""
    bias = tensors_of(folders["biased"])[DOWN_BIAS]
    old = results(biased)
    assert all((state[DOWN_BIAS] == bias).all() for state in biased.apply_model(state_of))

    def one_rank(rank: int, amount: float) -> Callable[[Any], None]:
        def change(worker: Any) -> None:
            if worker.rank == rank:
                worker.model.get_parameter(DOWN_BIAS).add_(amount)
                worker.model.get_parameter("model.layers.0.mlp.up_proj.bias").add_(amount)

        return change

    with pytest.raises(ValueError, match=f"{DOWN_BIAS} was changed on rank 1 and not in the same way on rank 0"):
        biased.collective_rpc(one_rank(1, 1.0))
    with pytest.raises(ValueError, match=f"{DOWN_BIAS} was changed on rank 1 and not in the same way on rank 0"):
        biased.collective_rpc(lambda worker: worker.model.get_parameter(DOWN_BIAS).add_(1 + worker.rank))
    assert results(biased) == old and biased.get_weight_version() == 0
    changed = changed_copy(
        folders["biased"], tmp_path / "changed", lambda name, one: one + np.float32(name == DOWN_BIAS)
    )
    with open_llm(changed, 2) as fresh:
        want = results(fresh)
    biased.apply_model(lambda model: model.get_parameter(DOWN_BIAS).add_(1))
    assert results(biased) == want != old
    biased.collective_rpc(lambda worker: worker.model.get_parameter(DOWN_BIAS).sub_(1) if worker.rank == 0 else None)
    assert [state[DOWN_BIAS].tolist() for state in biased.apply_model(state_of)] == [(bias + 1 - 1).tolist()] * 2


def test_on_the_emulated_gpu(simt_plugin: Path, folders: dict[str, Path]) -> None:
    with open_llm(folders["gpt2"], 2) as host:
        want = host.apply_model(state_of)
    with open_llm(folders["gpt2"], 2, device="simt:0,0", max_model_len=64, max_num_seqs=4) as llm:
        assert same(llm.apply_model(state_of), want)
        llm.apply_model(scale)
        for state, old in zip(llm.apply_model(state_of), want, strict=True):
            assert (state["lm_head.weight"] == state["transformer.wte.weight"]).all()  # tied
            for name in set(old) - {"lm_head.weight"}:
                assert (state[name] == old[name] * np.float32(factor(name))).all(), name
