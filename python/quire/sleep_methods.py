"""sleep and wake_up of vLLM's LLM: an engine gives its memory back and takes it again, the object stays.

Decides the signatures, what is refused, and how a call waits for requests so that Ctrl-C gets through. What is kept and
how it comes back is the core's affair (docs/memory.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

from quire.errors import ValidationError

MODES = ("abort", "wait", "keep")
# The core returns to Python at least this often; signals are seen then.
_RUN_MS = 50


class SleepMethods:
    """Mixed into LLM."""

    if TYPE_CHECKING:
        _engine: Any
        _task: str
        _enable_sleep_mode: bool

        def _check_open(self) -> None: ...

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        """Gives memory back until wake_up(); it is free when this returns. Needs LLM(..., enable_sleep_mode=True).

        Level 1 brings the weights back by itself, level 2 drops them (load others after wake_up), level 0 keeps all
        memory and only stops the steps. Requests under way are aborted, or finished first (mode="wait"), or stay queued
        and go on after wake_up (mode="keep"), computing again what they had. Until then new requests are refused.
        """
        self._check_open()
        if isinstance(level, bool) or not isinstance(level, Integral):
            raise TypeError(f"level must be 0, 1 or 2, got {level!r}")
        if level not in (0, 1, 2):
            raise ValidationError(f"level must be 0, 1 or 2, got {level}", parameter="level", value=level)
        if mode not in MODES:
            raise ValidationError(f"mode must be one of {', '.join(MODES)}, got {mode!r}", parameter="mode", value=mode)
        if level > 0 and not self._enable_sleep_mode:
            raise ValidationError(
                f"Sleep mode is not enabled in the model config: sleep(level={level}) needs "
                "LLM(..., enable_sleep_mode=True). sleep(level=0) only stops the steps."
            )
        if mode == "wait":
            self._finish_requests()
        self._engine.sleep(int(level), mode)

    def wake_up(self, tags: Sequence[str] | None = None) -> bool:
        """Wakes what the tags name ("weights", "kv_cache", "scheduling"), or all; True when nothing sleeps any more.

        Steps resume when weights and KV cache are both back. An unknown tag, or one that is awake, logs a warning.
        """
        self._check_open()
        if isinstance(tags, str):
            raise TypeError(f"tags must be a list of strings, got {tags!r}; did you mean [{tags!r}]?")
        given = [] if tags is None else list(tags)
        for tag in given:
            if not isinstance(tag, str):
                raise TypeError(f"tags must be a list of strings, got {tag!r} in it")
        if tags is not None and not given:
            return not self._engine.is_sleeping()
        awake: bool = self._engine.wake_up(given)
        return awake

    def is_sleeping(self) -> bool:
        """Whether anything sleeps: weights, KV cache or scheduling."""
        self._check_open()
        sleeping: bool = self._engine.is_sleeping()
        return sleeping

    def release_kv_cache_memory(self) -> None:
        """After sleep(level=0): drops the KV cache too. Requests that were kept compute theirs again after wake_up."""
        self._check_open()
        if not self._enable_sleep_mode:
            raise ValidationError("release_kv_cache_memory() needs LLM(..., enable_sleep_mode=True).")
        if self._task != "generate":
            raise ValidationError("A pooling model has no KV cache; sleep(level=1) gives its memory back.")
        self._engine.release_kv_cache_memory()

    def _refuse_to_wait_asleep(self) -> None:
        """What has finished can be fetched; what was kept waits for wake_up(), which this thread would not reach."""
        if not self._engine.is_sleeping():
            return
        stats = self._engine.stats()
        if stats["num_running"] + stats["num_waiting"] > 0:
            raise ValidationError("The engine is asleep and its requests wait; call wake_up() first.")

    def _finish_requests(self) -> None:
        """In short runs; the rest, if other threads go on submitting, is the core's."""
        if self._task != "generate":
            return
        while not self._engine.is_sleeping():
            stats = self._engine.stats()
            if stats["num_running"] + stats["num_waiting"] == 0:
                return
            self._engine.run([], _RUN_MS)
