"""The workers of an engine as objects, one a rank.

Decides what a worker shows and how user methods get into it. A worker holds the engine weakly: whoever keeps one keeps
no memory of the model. Calls on all of them are in collective.py.
"""

from __future__ import annotations

import importlib
import importlib.util
import weakref
from collections.abc import Callable, Sequence
from os import PathLike, fspath
from types import SimpleNamespace
from typing import Any

from quire import weights as tensors
from quire.meeting import Meeting, Request
from quire.weights import NamedTensors, Origin

NO_TORCH = "needs torch: pip install 'quire[torch]'. Without it, model.load_weights works."


class ModelRunner:
    """`worker.model_runner`: what vLLM's has that programs reach for."""

    def __init__(self, worker: Worker) -> None:
        self._worker = weakref.ref(worker)

    @property
    def model(self) -> Any:
        return self._owner.get_model()

    @property
    def device(self) -> Any:
        return self._owner.device

    def get_model(self) -> Any:
        return self.model

    def reload_weights(self, *args: Any, **kwargs: Any) -> None:
        self._owner.reload_weights(*args, **kwargs)

    @property
    def _owner(self) -> Worker:
        worker = self._worker()
        if worker is None:
            raise RuntimeError("The worker of this model runner is gone, and its LLM with it.")
        return worker


class WithoutTorch:
    """`worker.get_model()` where torch is not installed: weights can be loaded, not looked at."""

    def __init__(self, worker: Worker) -> None:
        self._load = worker.load_weights

    def load_weights(self, weights: NamedTensors) -> set[str]:
        return self._load(weights)

    def __getattr__(self, name: str) -> Any:
        raise ImportError(f"The model's {name} {NO_TORCH}")


class Worker:
    """What runs the model on one rank."""

    def __init__(
        self,
        engine: Any,
        rank: int,
        world_size: int,
        device: str,
        origin: Origin,
        hf_config: SimpleNamespace,
    ) -> None:
        self.rank = rank
        self._world_size = world_size
        self.local_rank = rank
        self.model_runner = ModelRunner(self)
        self.hf_config = hf_config
        self._engine_ref = weakref.ref(engine)
        self._device = device
        self._origin = origin
        self._view: Any = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} rank={self.rank} device={self._device}>"

    @property
    def worker(self) -> Worker:
        """Itself: in vLLM the driver's worker is wrapped in another one."""
        return self

    @property
    def device(self) -> Any:
        """A torch.device where torch is installed, else its name. The emulated GPU is a "cpu"."""
        name = self._device if self._device != "simt" else "cpu"
        if importlib.util.find_spec("torch") is None:
            return name
        import torch

        return torch.device(name)

    @property
    def model(self) -> Any:
        return self.get_model()

    def get_model(self) -> Any:
        """A torch.nn.Module whose parameters are there inside a call (docs/weights.md); load_weights always works."""
        if self._view is None:
            if importlib.util.find_spec("torch") is None:
                return WithoutTorch(self)
            from quire.model_view import model_view

            self._view = model_view(self)
        return self._view

    def load_weights(self, weights: NamedTensors) -> set[str]:
        """As LLM.load_weights: whole tensors, of which every rank takes its part.

        Outside of a call on several ranks one worker changes all. Inside all ranks have to call it, as with vLLM; the
        tensors are taken from the first one's call, all of them or, where a rank fails or does not call it, none.
        """
        return self._change(
            Request("load_weights", weights), lambda settle: tensors.load(self._engine, weights, settle=settle)
        )

    def reload_weights(
        self,
        weights_iterator: NamedTensors | None = None,
        weights_path: str | PathLike[str] | None = None,
        is_checkpoint_format: bool = True,
    ) -> None:
        """Of tensors, of a path, or, with neither, of the checkpoint that the LLM was made of."""
        if not is_checkpoint_format:
            raise NotImplementedError(
                "reload_weights takes tensors as a checkpoint has them; is_checkpoint_format=False is not supported."
            )
        if weights_iterator is not None:
            if weights_path is not None:
                raise ValueError("reload_weights takes weights_iterator or weights_path, not both.")
            self.load_weights(weights_iterator)
            return
        self._change(
            Request(f"reload_weights({'' if weights_path is None else fspath(weights_path)!r})"),
            lambda settle: tensors.reload(self._engine, self._origin, weights_path),
        )

    def weights_version(self) -> int:
        """How often weights have changed since they were loaded."""
        return int(self._engine.weights_version())

    def check_health(self) -> None:
        """Raises when the engine is closed."""
        self._engine.info()

    def execute_method(self, method: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A method by its name, or a function that gets this worker."""
        if callable(method):
            return method(self, *args, **kwargs)
        if not isinstance(method, str):
            raise TypeError(f"a method is a name or a callable, got {type(method).__name__}")
        found = getattr(self, method, None)
        if not callable(found):
            raise NotImplementedError(f"Method {method!r} is not implemented.")
        return found(*args, **kwargs)

    def _change(self, request: Request, do: Callable[[Callable[[set[str]], None] | None], Any]) -> Any:
        """All weights change, behind what was written to parameters before."""
        meeting = Meeting.of(self)
        if meeting is None:
            if self._world_size == 1:
                write_back([self])
            result = do(None)
            forget([self])
            return result
        all_workers = meeting.workers

        def do_for_all(settle: Callable[[set[str]], None]) -> Any:
            result = do(settle)
            forget(all_workers)
            return result

        return meeting.together(self.rank, request, lambda: write_back(all_workers), do_for_all)

    @property
    def _engine(self) -> Any:
        engine = self._engine_ref()
        if engine is None:
            raise RuntimeError("The LLM of this worker is gone.")
        return engine


def views(workers: Sequence[Worker]) -> list[Any]:
    """The models that were looked at, in the order of ranks; none without torch."""
    return [worker._view for worker in workers if worker._view is not None]


def write_back(workers: Sequence[Worker]) -> None:
    """What was written to parameters gets into the engine, of all workers or of none."""
    if seen := views(workers):
        seen[0].write_back(seen)


def forget(workers: Sequence[Worker]) -> None:
    for view in views(workers):
        view.forget()


def make_workers(
    engine: Any, extension: Any, device: str, origin: Origin, hf_config: SimpleNamespace, world_size: int = 1
) -> list[Worker]:
    """`extension`: worker_extension_cls, a class or its qualified name; its methods become the workers'."""
    worker_class = extended(extension)
    return [worker_class(engine, rank, world_size, device, origin, hf_config) for rank in range(world_size)]


def extended(extension: Any) -> type[Worker]:
    if not extension:
        return Worker
    if isinstance(extension, str):
        module, _, name = extension.rpartition(".")
        if not module:
            raise ValueError(f"worker_extension_cls={extension!r} is no qualified name, such as 'package.module.Class'")
        extension = getattr(importlib.import_module(module), name)
    if not isinstance(extension, type):
        raise TypeError(f"worker_extension_cls must be a class or its qualified name, got {type(extension).__name__}")
    taken = {"rank", "local_rank", "model_runner", "hf_config"}
    for name in dir(extension):
        if not name.startswith("__") and (hasattr(Worker, name) or name in taken):
            raise ValueError(
                f"Worker already has an attribute {name!r}, which conflicts with worker_extension_cls "
                f"{extension.__qualname__}"
            )
    return type("Worker", (Worker, extension), {})
