"""The workers of an engine as objects, one a rank, and calls on all of them.

Decides what a worker shows, how user methods get into it, and what a timeout means. A worker holds the engine weakly:
whoever keeps one keeps no memory of the model. Everything happens in this process; nothing is pickled.
"""

from __future__ import annotations

import contextvars
import importlib
import importlib.util
import threading
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from types import SimpleNamespace
from typing import Any

from quire import weights as tensors
from quire.weights import NamedTensors, Origin

_NO_TORCH = "needs torch: pip install 'quire[torch]'. Without it, model.load_weights works."


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
        raise ImportError(f"The model's {name} {_NO_TORCH}")


class OfSeveralRanks:
    """`worker.get_model()` where ranks share the model: what one of them has is a part of its tensors."""

    def __init__(self, worker: Worker) -> None:
        self._load = worker.load_weights

    def load_weights(self, weights: NamedTensors) -> set[str]:
        return self._load(weights)

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(
            f"The model's {name} is not supported with tensor_parallel_size > 1, where each rank has a part of the "
            "tensors. model.load_weights takes whole ones and changes all ranks."
        )


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
        self._lock = threading.RLock()  # one call at a time
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
        if self._world_size > 1:
            return OfSeveralRanks(self)
        if self._view is None:
            if importlib.util.find_spec("torch") is None:
                return WithoutTorch(self)
            from quire.model_view import model_view

            self._view = model_view(self)
        return self._view

    def load_weights(self, weights: NamedTensors) -> set[str]:
        """As LLM.load_weights: whole tensors, of which every rank takes its part, whichever rank is asked."""
        if self._view is not None:
            self._view.write_back()
        names = tensors.load(self._engine, weights)
        if self._view is not None:
            self._view.forget()
        return names

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
        tensors.reload(self._engine, self._origin, weights_path)
        if self._view is not None:
            self._view.forget()

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

    @contextmanager
    def _call(self, is_wanted: Callable[[], bool] = lambda: True) -> Generator[None, None, None]:
        """Inside, the model's parameters are there; what was written to them is in the model behind it."""
        with self._lock:
            view = self.get_model()
            if isinstance(view, (WithoutTorch, OfSeveralRanks)):
                yield
                return
            with view.open():
                yield
                if is_wanted():
                    view.write_back()

    @property
    def _engine(self) -> Any:
        engine = self._engine_ref()
        if engine is None:
            raise RuntimeError("The LLM of this worker is gone.")
        return engine


class Executor:
    """`llm.llm_engine.model_executor`: all workers."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = list(workers)
        self.driver_worker = self.workers[0]

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """The results of all ranks, in order. See LLM.collective_rpc."""
        if not callable(method) and not isinstance(method, str):
            raise TypeError(f"collective_rpc takes a method's name or a callable, got {type(method).__name__}")
        return self.run(lambda worker: worker.execute_method(method, *args, **(kwargs or {})), timeout)

    def apply_model(self, func: Callable[[Any], Any]) -> list[Any]:
        """What func makes of each rank's model. See LLM.apply_model."""
        if not callable(func):
            raise TypeError(f"apply_model takes a callable, got {type(func).__name__}")
        if len(self.workers) > 1:
            raise NotImplementedError(
                "LLM.apply_model is not supported with tensor_parallel_size > 1, where each rank has a part of the "
                "tensors. load_weights and collective_rpc are."
            )
        if importlib.util.find_spec("torch") is None:
            raise ImportError("LLM.apply_model gives a torch.nn.Module and " + _NO_TORCH)
        return self.run(lambda worker: func(worker.get_model()), None)

    def run(self, call: Callable[[Worker], Any], timeout: float | None) -> list[Any]:
        if timeout is not None and timeout <= 0:
            raise ValueError(f"timeout must be positive, got {timeout}")
        if timeout is None and len(self.workers) == 1:
            with self.driver_worker._call():
                return [call(self.driver_worker)]
        calls = [_ThreadCall(call, worker) for worker in self.workers]
        try:
            return [one.result(timeout) for one in calls]
        finally:
            for one in calls:
                one.is_abandoned = True


class _ThreadCall:
    """A call on a thread of its own, so that ranks run at once and whoever waits can stop waiting."""

    def __init__(self, call: Callable[[Worker], Any], worker: Worker) -> None:
        self.is_abandoned = False
        self._rank = worker.rank
        self._result: Any = None
        self._error: BaseException | None = None
        self._done = threading.Event()
        context = contextvars.copy_context()

        def work() -> None:
            try:
                with worker._call(lambda: not self.is_abandoned):
                    self._result = context.run(call, worker)
            except BaseException as error:  # told by whoever waits
                self._error = error
            finally:
                self._done.set()

        threading.Thread(target=work, name=f"quire-rpc-{self._rank}", daemon=True).start()

    def result(self, timeout: float | None) -> Any:
        if not self._done.wait(timeout):
            raise TimeoutError(
                f"rank {self._rank} did not answer within {timeout} s. What it runs goes on in its thread; what it "
                "writes to the model's parameters from now on is dropped."
            )
        if self._error is not None:
            raise self._error
        return self._result


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
