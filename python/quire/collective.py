"""Calls on all workers of an engine.

Decides in which threads they run, one call at a time, when what they wrote to parameters gets into the model, and what
a timeout means. Everything happens in this process; nothing is pickled.
"""

from __future__ import annotations

import contextvars
import importlib.util
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from quire.meeting import LeftAlone, Meeting
from quire.workers import NO_TORCH, Worker, forget, views, write_back

# The executors whose calls the running code is part of, by id.
_INSIDE: contextvars.ContextVar[tuple[int, ...]] = contextvars.ContextVar("quire_inside", default=())


class Executor:
    """`llm.llm_engine.model_executor`: all workers."""

    def __init__(self, workers: Sequence[Worker], time_limit: float) -> None:
        self.workers = list(workers)
        self.driver_worker = self.workers[0]
        self._time_limit = time_limit
        self._turn = threading.Lock()  # one call at a time; let go by whoever ends last

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
        if importlib.util.find_spec("torch") is None:
            raise ImportError("LLM.apply_model gives a torch.nn.Module and " + NO_TORCH)
        return self.run(lambda worker: func(worker.get_model()), None)

    @property
    def is_inside(self) -> bool:
        """Is the caller run by a call on these workers?"""
        return id(self) in _INSIDE.get()

    def require_outside(self, what: str) -> None:
        if self.is_inside:
            raise RuntimeError(
                f"{what} was called by what collective_rpc or apply_model runs. Call it when that call has returned."
            )

    def run(self, call: Callable[[Worker], Any], timeout: float | None) -> list[Any]:
        if timeout is not None and timeout <= 0:
            raise ValueError(f"timeout must be positive, got {timeout}")
        if timeout is None and len(self.workers) == 1:
            return [self._run_here(call)]
        if self.is_inside:
            raise RuntimeError(
                "collective_rpc and apply_model cannot be called by what they run, with a timeout or with several ranks"
            )
        end = None if timeout is None else time.monotonic() + timeout
        if not self._turn.acquire(timeout=-1 if timeout is None else timeout):
            raise TimeoutError(f"another call on the workers was not done within {timeout} s")
        return _ThreadCalls(self, call).results(timeout, end)

    def change(self, do: Callable[[], Any]) -> Any:
        """do() changes weights and no worker knows; what was written to parameters before comes before it."""
        if not self.is_inside:
            return do()
        if len(self.workers) > 1:
            raise RuntimeError(
                "Within a call on several ranks weights are loaded by the workers or their models, all of them "
                "together: worker.load_weights, worker.reload_weights or model.load_weights."
            )
        write_back(self.workers)
        result = do()
        forget(self.workers)
        return result

    def _run_here(self, call: Callable[[Worker], Any]) -> Any:
        with ExitStack() as stack:
            if not self.is_inside:
                stack.enter_context(self._turn)
            stack.enter_context(self.inside())
            for view in self.open_views():
                stack.enter_context(view.open())
            result = call(self.driver_worker)
            write_back(self.workers)
            return result

    def open_views(self) -> list[Any]:
        for worker in self.workers:
            worker.get_model()  # makes it, where there is torch
        return views(self.workers)

    @contextmanager
    def inside(self) -> Generator[None, None, None]:
        token = _INSIDE.set((*_INSIDE.get(), id(self)))
        try:
            yield
        finally:
            _INSIDE.reset(token)


class _ThreadCalls:
    """A call on a thread a rank, so that ranks run at once and whoever waits can stop waiting.

    Whoever ends last, the caller or a rank that took too long, closes the models and lets the next call come.
    """

    def __init__(self, executor: Executor, call: Callable[[Worker], Any]) -> None:
        self._executor = executor
        self._workers = executor.workers
        self._call = call
        self._meeting = Meeting(self._workers, executor._time_limit)
        self._results: dict[int, Any] = {}
        self._errors: dict[int, BaseException] = {}
        self._changed = threading.Condition()
        self._num_users = 1
        self._open = ExitStack()
        self._open.callback(executor._turn.release)

    def results(self, timeout: float | None, end: float | None) -> list[Any]:
        try:
            for view in self._executor.open_views():
                self._open.enter_context(view.open())
            for worker in self._workers:
                self._start(worker)
            self._wait(timeout, end)
            if self._errors:
                raise self._worst()
            write_back(self._workers)
            return [self._results[worker.rank] for worker in self._workers]
        finally:
            self._let_go()

    def _start(self, worker: Worker) -> None:
        with self._changed:
            self._num_users += 1
        context = contextvars.copy_context()
        name = f"quire-rpc-{worker.rank}"
        try:
            threading.Thread(target=context.run, args=(self._work, worker), name=name, daemon=True).start()
        except BaseException:  # there can be no more threads
            self._meeting.leave(worker.rank)
            self._let_go()
            raise

    def _work(self, worker: Worker) -> None:
        self._meeting.enter()
        try:
            with self._executor.inside():
                result = self._call(worker)
            with self._changed:
                self._results[worker.rank] = result
        except BaseException as error:  # told by whoever waits
            with self._changed:
                self._errors[worker.rank] = error
        finally:
            self._meeting.leave(worker.rank)
            self._let_go()

    def _wait(self, timeout: float | None, end: float | None) -> None:
        left = None if end is None else max(0.0, end - time.monotonic())
        with self._changed:
            if self._changed.wait_for(lambda: len(self._results) + len(self._errors) == len(self._workers), left):
                return
            late = [worker.rank for worker in self._workers if worker.rank not in {*self._results, *self._errors}]
        raise TimeoutError(
            f"rank {', '.join(map(str, late))} did not answer within {timeout} s. What it runs goes on in its thread; "
            "what was written to the model's parameters is dropped."
        )

    def _worst(self) -> BaseException:
        """That of the first rank which did not merely wait for another."""
        errors = [self._errors[rank] for rank in sorted(self._errors)]
        return next((error for error in errors if not isinstance(error, LeftAlone)), errors[0])

    def _let_go(self) -> None:
        with self._changed:
            self._num_users -= 1
            is_last = self._num_users == 0
            self._changed.notify_all()
        if is_last:
            self._open.close()
