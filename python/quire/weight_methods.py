"""load_weights, reload_weights, collective_rpc and apply_model of the LLM class.

Decides their signatures. How tensors are read is in weights.py, what a worker is in workers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar

from quire.weights import NamedTensors, Origin, load, reload

if TYPE_CHECKING:
    from quire.collective import Executor

Result = TypeVar("Result")


class WeightMethods:
    """Mixed into LLM."""

    if TYPE_CHECKING:
        _engine: Any
        _origin: Origin
        _executor: Executor

        def _check_open(self) -> None: ...

    def load_weights(self, weights: NamedTensors, *, atomic: bool = True) -> set[str]:
        """Replaces weights by tensors under the names and in the shapes of a Hugging Face checkpoint.

        `weights` gives (name, tensor) pairs, or is a mapping: torch tensors on any device, numpy arrays or anything
        with __dlpack__, of float32, float16, bfloat16 or float64, in any order, all of the model's or a few. An
        iterator is asked for one tensor at a time. Each is fused and packed, and rounded with quantization="int8", as
        those of a checkpoint are. Returns the names. Behind it the prefix cache is empty and get_weight_version() is
        one more. A draft model keeps its weights.

        ValueError: names that the model does not have, shapes and dtypes that do not fit, names given twice, all at
        once; requests are in flight. TypeError: an item is no pair, a value no tensor. Whatever is raised, also by the
        iterator, the model is as it was: host memory holds the old values of what was replaced until the call returns,
        at most the size of the weights. atomic=False spares that memory; a failure midway then leaves a model that
        takes no requests until all of its weights were loaded again.
        """
        self._check_open()
        names: set[str] = self._executor.change(lambda: load(self._engine, weights, atomic))
        return names

    def reload_weights(self, path: str | PathLike[str] | None = None) -> None:
        """All weights of another checkpoint of the same architecture, or, without a path, of the one from the start.

        `path` is a directory or the id of a model on the hub. ValueError: the checkpoint does not fit, with all that
        is missing, unexpected and misshaped, and nothing is changed; requests are in flight.
        """
        self._check_open()
        self._executor.change(lambda: reload(self._engine, self._origin, path))

    def get_weight_version(self) -> int:
        """How often weights have changed since they were loaded."""
        self._check_open()
        return int(self._engine.weights_version())

    def collective_rpc(
        self,
        method: str | Callable[..., Result],
        timeout: float | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> list[Result]:
        """Calls a method of the worker of every rank, by name, or a function of (worker, *args, **kwargs).

        The results come in the order of ranks, which run at once, each on a thread. Workers have rank, local_rank,
        device, model_runner, get_model(), load_weights(), reload_weights(), weights_version() and the methods of
        `worker_extension_cls`. Everything runs in this process and nothing is pickled. What is written to parameters of
        get_model() inside is in the engine behind it, on all ranks or, where one fails, on none. Weights are loaded by
        all ranks together.

        NotImplementedError: no such method. TimeoutError: a rank took longer than `timeout` seconds; its function goes
        on in a thread. What the function raises is raised as it is.
        """
        self._check_open()
        return self._executor.collective_rpc(method, timeout, args, kwargs)

    def apply_model(self, func: Callable[[Any], Result]) -> list[Result]:
        """Calls func with the model of every rank, a torch.nn.Module with the names and shapes of transformers.

        With several ranks a parameter is what the rank has of it (docs/parallel.md); whatever several of them hold has
        to be changed alike. Parameters are copies in host memory, in the model's dtype; what differs when func returns
        is written back, all of it or, when func raises, nothing. named_parameters, state_dict, load_state_dict and
        load_weights work; forward does not. ImportError: torch is not installed.
        """
        self._check_open()
        return self._executor.apply_model(func)
