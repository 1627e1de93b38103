"""The weights of a rank as a torch.nn.Module: names and shapes as transformers has them.

Decides when a parameter is read and how changes get back. The engine keeps weights packed and fused, so a parameter is
a copy in host memory: read from the engine when it is first looked at inside a call, compared with the engine bit for
bit when the call has returned, and written back where it differs, all of them or none, whatever the ranks. Where ranks
share the model a parameter is what one of them has of it. Imports torch.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, ItemsView, Iterator, ValuesView
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from quire import weights as tensors
from quire.weights import NamedTensors

if TYPE_CHECKING:
    from quire.workers import Worker

_CLOSED = (
    "The parameters of this model are there inside LLM.apply_model(func) and LLM.collective_rpc(...) alone, where what "
    "is written to them gets into the engine. Its load_weights works everywhere."
)


class _Parameters(dict[str, Any]):
    """A module's parameters by name, each read when somebody asks for it."""

    def __init__(self, names: dict[str, str], state: _State) -> None:
        super().__init__(dict.fromkeys(names))
        self._names = names  # to the full name of the tensor
        self._state = state

    def __getitem__(self, key: str) -> Any:
        return self._state.parameter(self._names[key]) if key in self._names else super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self._names:
            raise TypeError(f"the engine has no weight {key!r} here; parameters cannot be added")
        if not isinstance(value, torch.nn.Parameter):
            raise TypeError(
                f"{self._names[key]} cannot be {type(value).__name__}; a parameter can be replaced by another"
            )
        self._state.replace(self._names[key], value)

    def __delitem__(self, key: str) -> None:
        raise TypeError(f"{self._names.get(key, key)} cannot be removed from the model")

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        return _Items(self)

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        return _Values(self)


class _Items(ItemsView[str, Any]):
    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return ((key, self._mapping[key]) for key in self._mapping)  # type: ignore[attr-defined]


class _Values(ValuesView[Any]):
    def __iter__(self) -> Iterator[Any]:
        return (self._mapping[key] for key in self._mapping)  # type: ignore[attr-defined]


class _State:
    """What was read, and whether anything may be."""

    def __init__(self, worker: Worker) -> None:
        self._worker = weakref.ref(worker)
        self.rank = worker.rank
        self.is_shared = worker._world_size > 1
        listed = worker._engine.weights_of_rank(self.rank) if self.is_shared else worker._engine.weights()
        self.infos = {name: (dtype, shape) for name, dtype, shape, same_as, _ in listed if same_as is None}
        self.aliases = {name: same_as for name, _, _, same_as, _ in listed if same_as is not None}
        self.elsewhere = {name for name, *_, is_elsewhere in listed if is_elsewhere}  # the first rank has them for all
        self.depth = 0
        self.read: dict[str, torch.nn.Parameter] = {}

    @property
    def engine(self) -> Any:
        worker = self._worker()
        if worker is None:
            raise RuntimeError("The LLM of this model is gone.")
        return worker._engine

    def load(self, weights: NamedTensors) -> set[str]:
        worker = self._worker()
        if worker is None:
            raise RuntimeError("The LLM of this model is gone.")
        return worker.load_weights(weights)

    def parameter(self, name: str) -> torch.nn.Parameter:
        if self.depth == 0:
            raise RuntimeError(_CLOSED)
        if name not in self.read:
            self.read[name] = torch.nn.Parameter(self.fetch(name), requires_grad=False)
        return self.read[name]

    def replace(self, name: str, parameter: torch.nn.Parameter) -> None:
        if self.depth == 0:
            raise RuntimeError(_CLOSED)
        self.read[name] = parameter

    def fetch(self, name: str) -> torch.Tensor:
        dtype, shape = self.infos[name]
        engine = self.engine
        data = engine.read_weight_of_rank(self.rank, name) if self.is_shared else engine.read_weight(name)
        return torch.from_numpy(data).view(getattr(torch, dtype)).reshape(shape)

    def changed(self) -> dict[str, torch.Tensor]:
        parameters = {name: parameter.detach() for name, parameter in self.read.items()}
        return {name: now for name, now in parameters.items() if not _is_same(now, self.fetch(name))}


def _is_same(now: torch.Tensor, held: torch.Tensor) -> bool:
    """Bit for bit in the dtype of `held`. Of another shape it is not; the engine says what is wrong with it."""
    if now.shape != held.shape:
        return False
    now = now.to(device="cpu", dtype=held.dtype).contiguous()
    return torch.equal(now.view(torch.uint8), held.contiguous().view(torch.uint8))


def _write_back(states: list[_State]) -> None:
    first = states[0]
    changes = [state.changed() for state in states]
    if not first.is_shared:
        if changes[0]:
            tensors.load(first.engine, list(changes[0].items()))
        return
    for state, changed in zip(states[1:], changes[1:], strict=True):
        for name in state.elsewhere & set(changed):
            dtype = getattr(torch, first.infos[name][0])
            if name not in changes[0] or not _is_same(changed[name], changes[0][name].to(device="cpu", dtype=dtype)):
                raise ValueError(
                    f"{name} was changed on rank {state.rank} and not in the same way on rank 0, which alone uses it: "
                    "change it alike on all ranks. The model is as it was."
                )
            del changed[name]
    if any(changes):
        first.engine.load_weights_of_ranks(
            [[(name, *tensors.as_array(name, one)) for name, one in changed.items()] for changed in changes]
        )


class _Node(torch.nn.Module):
    """A part of the model: it holds weights and has no forward pass."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("This module is a view of the engine's weights; run the model with LLM.generate.")


class _Root(_Node):
    _state: _State
    config: Any

    def load_weights(self, weights: NamedTensors) -> set[str]:
        """As LLM.load_weights; works outside of a call, too."""
        return self._state.load(weights)

    @contextmanager
    def open(self) -> Generator[None, None, None]:
        """Parameters are there inside; those that nobody wrote back are forgotten behind it."""
        self._state.depth += 1
        try:
            yield
        finally:
            self._state.depth -= 1
            if self._state.depth == 0:
                self.forget()

    def write_back(self, roots: list[_Root]) -> None:
        """Of all ranks' models at once: all that was changed, or nothing."""
        _write_back([root._state for root in roots])

    def forget(self) -> None:
        self._state.read.clear()


def model_view(worker: Worker) -> _Root:
    state = _State(worker)
    name = worker._engine.info()["architecture"]
    root: _Root = type(name, (_Root,), {})()
    object.__setattr__(root, "_state", state)
    root.config = worker.hf_config
    tree: dict[str, Any] = {}
    for full_name in [*state.infos, *state.aliases]:
        node = tree
        *path, leaf = full_name.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = state.aliases.get(full_name, full_name)
    _fill(root, tree, state)
    return root


def _fill(module: torch.nn.Module, tree: dict[str, Any], state: _State) -> None:
    names = {key: value for key, value in tree.items() if isinstance(value, str)}
    if names:
        module.__dict__["_parameters"] = _Parameters(names, state)
    for key, children in tree.items():
        if isinstance(children, str):
            continue
        is_list = all(part.isdigit() for part in children)
        make: Callable[[], torch.nn.Module] = torch.nn.ModuleList if is_list else _Node
        child = make()
        _fill(child, children, state)
        module.add_module(key, child)
