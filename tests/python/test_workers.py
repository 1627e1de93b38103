"""collective_rpc and apply_model: what a worker and its model show, and that what is written to them gets there."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_llama
from pooling_models import write_bert
from quire import LLM
from quire.workers import Worker
from safetensors.numpy import load_file
from test_weights import results, tensors_of

torch = pytest.importorskip("torch")

UP = "model.layers.1.mlp.up_proj.weight"


class Extension:
    """What a trainer adds to workers."""

    seen: tuple[Any, ...] = ()

    def add(self, a: int, b: int = 0) -> int:
        self.seen = (a, b)
        return a + b + self.rank  # type: ignore[attr-defined]

    def zero(self, name: str) -> None:
        dict(self.model_runner.model.named_parameters())[name].data.zero_()  # type: ignore[attr-defined]

    def fail(self) -> None:
        raise KeyError("of the extension")


class Conflicting:
    def load_weights(self) -> None: ...


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "model", seed=4)


@pytest.fixture
def own(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), seed=0, worker_extension_cls=Extension) as llm:
        yield llm


def test_workers(own: LLM) -> None:
    def look(worker: Any) -> tuple[Any, ...]:
        assert isinstance(worker, Worker) and isinstance(worker, Extension)
        assert worker.get_model() is worker.model_runner.model is worker.model
        return worker.rank, worker.local_rank, worker.device, worker.model_runner.device, worker.weights_version()

    cpu = torch.device("cpu")
    assert own.collective_rpc(look) == [(0, 0, cpu, cpu, 0)]
    assert own.llm_engine.collective_rpc(lambda worker: worker.rank) == [0]
    assert own.collective_rpc("check_health") == [None]


def test_methods_of_an_extension(own: LLM, folder: Path) -> None:
    assert own.collective_rpc("add", args=(2,), kwargs={"b": 3}) == [5]
    assert own.collective_rpc("add", 5.0, (1, 1)) == [2]
    assert own.collective_rpc(lambda worker: worker.seen) == [(1, 1)]
    with pytest.raises(KeyError, match="of the extension"):
        own.collective_rpc("fail")
    name = f"{Extension.__module__}.Extension"
    with LLM(str(folder), worker_extension_cls=name) as llm:
        assert llm.collective_rpc("add", args=(2,)) == [2]
    for bad, error, message in (
        (Conflicting, ValueError, "already has an attribute 'load_weights', which conflicts"),
        ("Extension", ValueError, "no qualified name"),
        ("test_workers.Nobody", AttributeError, "Nobody"),
        (3, TypeError, "must be a class or its qualified name, got int"),
    ):
        with pytest.raises(error, match=message):
            LLM(str(folder), worker_extension_cls=bad)


def test_calls_that_cannot_be_made(own: LLM) -> None:
    with pytest.raises(NotImplementedError, match="Method 'nonsense' is not implemented."):
        own.collective_rpc("nonsense")
    with pytest.raises(NotImplementedError, match="Method 'rank' is not implemented."):
        own.collective_rpc("rank")
    with pytest.raises(TypeError, match="a method's name or a callable, got int"):
        own.collective_rpc(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="takes a callable, got NoneType"):
        own.apply_model(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeout must be positive, got 0"):
        own.collective_rpc("add", 0, (1,))
    with pytest.raises(ZeroDivisionError):
        own.collective_rpc(lambda worker: 1 // 0, timeout=60)


def test_timeout(own: LLM) -> None:
    old = results(own)
    may_go, has_gone = threading.Event(), threading.Event()

    def slow(worker: Any) -> None:
        may_go.wait()
        worker.model.get_parameter(UP).data.zero_()
        has_gone.set()

    with pytest.raises(TimeoutError, match=r"rank 0 did not answer within 0\.05 s"):
        own.collective_rpc(slow, timeout=0.05)
    may_go.set()
    has_gone.wait()
    assert own.collective_rpc(lambda worker: worker.rank) == [0]  # behind it
    assert results(own) == old and own.get_weight_version() == 0


def test_nothing_is_pickled(own: LLM) -> None:
    lock = threading.Lock()
    assert own.collective_rpc(lambda worker, given: given, args=(lock,))[0] is lock
    assert own.apply_model(lambda model: lock)[0] is lock


def test_the_model_has_names_and_values_of_transformers(own: LLM, folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def look(model: Any) -> str:
        assert isinstance(model, torch.nn.Module)
        state, want = model.state_dict(), reference.state_dict()
        assert set(state) == set(want)
        for name, tensor in want.items():
            assert torch.equal(state[name], tensor), name
        assert {n: p.shape for n, p in model.named_parameters()} == {
            n: p.shape for n, p in reference.named_parameters()
        }
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert model.model.layers[1].mlp.up_proj.weight is model.get_parameter(UP)
        assert len(model.model.layers) == 2 and model.config.hidden_size == 64
        assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in reference.parameters())
        with pytest.raises(NotImplementedError, match="LLM.generate"):
            model(torch.zeros(1, 1))
        return type(model).__name__

    assert own.apply_model(look) == ["LlamaForCausalLM"]
    assert own.get_weight_version() == 0


WAYS: dict[str, Any] = {
    "in place": lambda p: p.mul_(0.5),
    "data": lambda p: p.data.copy_(p.data * 0.5),
    "numpy": lambda p: p.detach().numpy().__imul__(0.5),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "options",
    [{}, {"dtype": "bfloat16"}, {"device": "simt", "max_model_len": 64, "max_num_seqs": 4, "dtype": "float32"}],
    ids=["float32", "bfloat16", "simt"],
)
def test_writing_to_parameters_changes_the_model(
    folder: Path, tmp_path: Path, way: str, options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    if options.get("device") == "simt":
        request.getfixturevalue("simt_plugin")
    if way == "numpy" and options.get("dtype") == "bfloat16":
        pytest.skip("numpy has no bfloat16")
    options = {"seed": 0, "num_gpu_blocks_override": 32, **options}
    names = [
        UP,
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.0.self_attn.v_proj.weight",
        "model.norm.weight",
    ]
    tensors = tensors_of(folder)
    with LLM(str(folder), **options) as llm:
        # A parameter is of the model's dtype, also where the engine keeps more (norms); halving is exact.
        dtype = getattr(torch, llm.info()["dtype"])
        llm.load_weights((name, torch.from_numpy(tensors[name]).to(dtype) * 0.5) for name in names)
        want = results(llm)
    with LLM(str(folder), **options) as llm:
        old = results(llm)

        def halve(model: Any) -> None:
            for name in names:
                WAYS[way](model.get_parameter(name))
            model.get_parameter("model.layers.1.mlp.down_proj.weight")  # looked at alone

        llm.apply_model(halve)
        assert results(llm) == want != old and llm.get_weight_version() == 1


def test_a_function_that_raises_changes_nothing(own: LLM) -> None:
    old = results(own)

    def failing(model: Any) -> None:
        model.get_parameter(UP).data.zero_()
        raise KeyError("midway")

    with pytest.raises(KeyError, match="midway"):
        own.apply_model(failing)
    assert results(own) == old and own.get_weight_version() == 0
    assert own.apply_model(lambda model: bool(model.get_parameter(UP).any())) == [True]


def test_parameters_can_be_replaced_and_loaded(own: LLM, tmp_path: Path) -> None:
    other = write_llama(tmp_path / "other", seed=5)
    with LLM(str(other), seed=0) as fresh:
        want = results(fresh)
    state = {name: torch.from_numpy(one) for name, one in load_file(other / "model.safetensors").items()}

    def replace(model: Any) -> None:
        for name, tensor in state.items():
            *path, leaf = name.split(".")
            setattr(model.get_submodule(".".join(path)), leaf, torch.nn.Parameter(tensor))

    for change in (
        replace,
        lambda model: model.load_state_dict({**state, "lm_head.weight": state["model.embed_tokens.weight"]}),
        lambda model: model.load_weights(state.items()),
    ):
        own.reload_weights()
        assert results(own) != want
        own.apply_model(change)
        assert results(own) == want


def test_loading_through_the_llm_within_a_call(own: LLM, tmp_path: Path) -> None:
    """What was looked at before does not come back over it."""
    other = write_llama(tmp_path / "other", seed=5)
    with LLM(str(other), seed=0) as fresh:
        want = results(fresh)

    def load(model: Any) -> bool:
        model.get_parameter(UP).mul_(2)
        old = model.get_parameter("model.norm.weight").clone()
        own.load_weights(load_file(other / "model.safetensors"))
        return torch.equal(model.get_parameter("model.norm.weight"), old)

    assert own.apply_model(load) == [False]
    assert results(own) == want
    own.apply_model(lambda model: (list(model.parameters()), own.reload_weights()))
    assert results(own) != want
    own.apply_model(lambda model: (list(model.parameters()), own.reload_weights(other)))
    assert results(own) == want


def test_what_cannot_be_done_to_the_model(own: LLM) -> None:
    old = results(own)

    def misshape(model: Any) -> None:
        model.model.norm.weight = torch.nn.Parameter(torch.zeros(3))

    with pytest.raises(ValueError, match=r"model.norm.weight: \[3\], but config.json makes it \[64\]"):
        own.apply_model(misshape)

    def add(model: Any) -> None:
        model.model.norm.bias = torch.nn.Parameter(torch.zeros(3))

    with pytest.raises(TypeError, match="parameters cannot be added"):
        own.apply_model(add)

    def remove(model: Any) -> None:
        del model.model.norm.weight

    with pytest.raises(TypeError, match="model.norm.weight cannot be removed"):
        own.apply_model(remove)
    assert results(own) == old


def test_rpc_writes_too(own: LLM) -> None:
    old = results(own)
    own.collective_rpc("zero", args=(UP,))
    assert results(own) != old and own.get_weight_version() == 1
    assert own.collective_rpc(lambda worker: bool(worker.get_model().get_parameter(UP).any())) == [False]


def test_the_chain_of_trainers(own: LLM, tmp_path: Path) -> None:
    other = write_llama(tmp_path / "other", seed=5)
    with LLM(str(other), seed=0) as fresh:
        want = results(fresh)
    driver = own.llm_engine.model_executor.driver_worker
    model = driver.model_runner.model
    assert model is driver.worker.model_runner.model
    tensors = load_file(other / "model.safetensors")
    assert model.load_weights([(name, torch.from_numpy(one)) for name, one in tensors.items()]) == set(tensors)
    assert results(own) == want
    with pytest.raises(RuntimeError, match=r"inside LLM.apply_model\(func\) and LLM.collective_rpc"):
        list(model.named_parameters())
    own.collective_rpc("reload_weights")
    assert results(own) != want
    own.collective_rpc("reload_weights", kwargs={"weights_path": str(other)})
    assert results(own) == want
    with pytest.raises(NotImplementedError, match="is_checkpoint_format"):
        own.collective_rpc("reload_weights", kwargs={"is_checkpoint_format": False})


def test_int8_and_pooling(folder: Path, tmp_path: Path) -> None:
    tensors = tensors_of(folder)
    with LLM(str(folder), seed=0, quantization="int8") as llm:
        old = results(llm)

        def look(model: Any) -> float:
            got, want = model.get_parameter(UP), torch.from_numpy(tensors[UP])
            scale = want.abs().amax(dim=1, keepdim=True) / 127
            assert ((got - want).abs() <= 0.5001 * scale).all()
            assert torch.equal(model.model.embed_tokens.weight, torch.from_numpy(tensors["model.embed_tokens.weight"]))
            return float((got - want).abs().max())

        assert llm.apply_model(look)[0] > 0
        assert results(llm) == old
        llm.apply_model(lambda model: model.get_parameter(UP).mul_(2))
        assert results(llm) != old
    bert = write_bert(tmp_path / "bert", 3)
    with LLM(str(bert), task="classify") as llm:
        want = {name.removeprefix("bert."): one for name, one in load_file(bert / "model.safetensors").items()}
        state = llm.apply_model(lambda model: {name: p.numpy().copy() for name, p in model.state_dict().items()})[0]
        assert {name.removeprefix("bert.") for name in state} == set(want)
        for name, one in state.items():
            assert (one == want[name.removeprefix("bert.")]).all(), name


def test_a_worker_keeps_no_memory(folder: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        llm = LLM(str(folder), seed=0)
        llm.apply_model(lambda model: list(model.parameters()))
        llm.collective_rpc("check_health")
        dead, worker = weakref.ref(llm), llm.llm_engine.model_executor.driver_worker
        model = worker.get_model()
        del llm
        assert dead() is None
        with pytest.raises(RuntimeError, match="The LLM of this worker is gone"):
            model.load_weights([])
    finally:
        gc.enable()


def test_without_torch(folder: Path) -> None:
    code = f"""
import sys, importlib.util
sys.modules["torch"] = None
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find_spec(name, *rest)
import numpy as np
from quire import LLM
from safetensors.numpy import load_file
with LLM({str(folder)!r}) as llm:
    try:
        llm.apply_model(lambda model: None)
    except ImportError as error:
        print(error)
    model = llm.llm_engine.model_executor.driver_worker.model_runner.model
    model.load_weights(load_file({str(folder / "model.safetensors")!r}))
    try:
        model.named_parameters()
    except ImportError as error:
        print(error)
    print(llm.collective_rpc(lambda worker: (worker.device, worker.weights_version())))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    first, second, third = ran.stdout.splitlines()
    assert "pip install 'quire[torch]'" in first and "LLM.apply_model" in first
    assert "The model's named_parameters needs torch: pip install 'quire[torch]'" in second
    assert third == "[('cpu', 1)]"
