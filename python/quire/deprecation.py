"""Warnings for vLLM's old spellings, in vLLM's words.

Decides when a spelling warns; what it means is decided where it is used. Decorators keep the signature of what they
wrap. Called from the caller's thread, so that the warning names the caller's line.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])


def warn_deprecated(message: str, stacklevel: int = 3) -> None:
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel + 1)


def positional_are_deprecated(init: _F) -> _F:
    """Warns about positional arguments after `model`."""
    names = init.__code__.co_varnames[1 : init.__code__.co_argcount]

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        positional = list(names[1 : len(args)])
        if positional and self.DEPRECATE_INIT_POSARGS:
            warn_deprecated(
                f"The positional arguments {positional} are deprecated and will be removed in a future update. All "
                "positional arguments other than `model` will be replaced with keyword arguments in an upcoming "
                "version.",
                stacklevel=2,
            )
        init(self, *args, **kwargs)

    return checked  # type: ignore[return-value]


def token_ids_keyword_is_deprecated(method: _F) -> _F:
    """Warns about `prompt_token_ids=`; given by position it does not warn, as in vLLM."""

    @functools.wraps(method)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "prompt_token_ids" in kwargs and self.DEPRECATE_LEGACY:
            warn_deprecated(
                "The keyword arguments {'prompt_token_ids'} are deprecated and will be removed in a future update. "
                "Please use the 'prompts' parameter instead.",
                stacklevel=2,
            )
        return method(self, *args, **kwargs)

    return checked  # type: ignore[return-value]
