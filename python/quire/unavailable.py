"""Methods of vLLM's LLM that this version does not have: each says so by name, never by an AttributeError.

Decides the messages only.
"""

from __future__ import annotations

from typing import Any, NoReturn


def _later(method: str, instead: str) -> NoReturn:
    raise NotImplementedError(
        f"LLM.{method}() is not supported by this version of quire; it comes in a later release. {instead}"
    )


class UnavailableMethods:
    """Mixed into LLM."""

    def collective_rpc(self, method: Any, timeout: float | None = None, *args: Any, **kwargs: Any) -> NoReturn:
        _later("collective_rpc", "There are no workers: the engine runs in this process.")

    def apply_model(self, func: Any) -> NoReturn:
        _later("apply_model", "The model is not a torch module.")

    def start_profile(self, *args: Any, **kwargs: Any) -> NoReturn:
        _later("start_profile", "Use a profiler of your system, such as perf.")

    def stop_profile(self) -> NoReturn:
        _later("stop_profile", "Use a profiler of your system, such as perf.")

    def get_metrics(self) -> NoReturn:
        _later("get_metrics", "LLM.stats() has the counters of the engine.")

    def load_weights(self, weights: Any) -> NoReturn:
        _later("load_weights", "Save a checkpoint and build a new LLM.")
