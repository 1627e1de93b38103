"""The errors of the Python layer. Each is also the built-in type that vLLM raises at that place.

Decides only types and wording of positions; the messages themselves are written where the check is.
The C++ core raises ValueError (caller's mistake), NotImplementedError (not there) and RuntimeError (all else).
"""

from __future__ import annotations


class QuireError(Exception):
    """Base of all errors that quire's Python layer defines."""


class ValidationError(QuireError, ValueError):
    """An argument, prompt or parameter that cannot be served; found before any work was done."""

    def __init__(self, message: str, *, parameter: str | None = None, value: object = None) -> None:
        super().__init__(message)
        self.parameter = parameter
        self.value = value


class RequestError(ValidationError):
    """One or more bad requests of a call. `indices` are their positions in the call."""

    def __init__(self, message: str, indices: tuple[int, ...]) -> None:
        super().__init__(message)
        self.indices = indices


class RequestTypeError(QuireError, TypeError):
    """As RequestError, for a request of the wrong type."""

    def __init__(self, message: str, indices: tuple[int, ...]) -> None:
        super().__init__(message)
        self.indices = indices


class ModelNotFoundError(ValidationError, FileNotFoundError):
    """A model directory, or a file that must lie in it, is not there."""

    def __str__(self) -> str:
        return str(self.args[0])


def not_supported(what: str, instead: str) -> NotImplementedError:
    """The error for a feature that is not there: names it and says what to do."""
    return NotImplementedError(f"{what} is not supported by this version of quire. {instead}")
