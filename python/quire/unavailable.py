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

    def sleep(self, level: int = 1, *args: Any, **kwargs: Any) -> NoReturn:
        _later("sleep", "close() gives all memory back.")

    def wake_up(self, tags: list[str] | None = None) -> NoReturn:
        _later("wake_up", "Build a new LLM after close().")
