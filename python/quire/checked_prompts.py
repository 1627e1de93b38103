"""What is wrong with a prompt: kept beside it, or raised with its place, for generation and pooling alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quire.errors import RequestError, RequestTypeError, ValidationError


@dataclass
class CheckedPrompt:
    """A prompt by its position in the call, or the error that takes its place."""

    position: int
    error: Exception | None = None

    def fail(self, error: Exception) -> None:
        """Keeps the first error, without its frames: they refer to the requests, and to the LLM above them."""
        self.error = self.error or error.with_traceback(None)


def check_vocabulary(token_ids: Sequence[int], vocab_size: int) -> None:
    if not token_ids:
        raise ValidationError("The decoder prompt cannot be empty")
    largest, smallest = max(token_ids), min(token_ids)
    if largest >= vocab_size or smallest < 0:
        bad = largest if largest >= vocab_size else smallest
        raise ValidationError(f"Token id {bad} is out of vocabulary (the model has {vocab_size} tokens)")


def raise_first(prompts: Sequence[CheckedPrompt], *, numbered: bool) -> None:
    """The first error among them. `numbered`: with the positions of all that are bad in its message."""
    bad = [prompt for prompt in prompts if prompt.error is not None]
    if not bad:
        return
    error = bad[0].error
    assert error is not None
    message = str(error)
    if numbered:
        message += f" (prompt {bad[0].position}"
        others = [str(prompt.position) for prompt in bad[1:]]
        if others:
            more = f" and {len(others) - 10} more" if len(others) > 10 else ""
            message += f"; prompts {', '.join(others[:10])}{more} are bad too"
        message += ")"
    indices = tuple(prompt.position for prompt in bad)
    if isinstance(error, (NotImplementedError, ImportError)):
        raise type(error)(message)
    if isinstance(error, TypeError):
        raise RequestTypeError(message, indices)
    raise RequestError(message, indices)
