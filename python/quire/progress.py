"""The progress bar of a call, as vLLM shows it.

Decides what is counted (sequences) and what the postfix says (tokens a second). Called from the caller's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quire.outputs import RequestOutput


class Progress:
    """A tqdm bar, one made by the caller's function, or nothing. `total` None: not known."""

    def __init__(
        self, use_tqdm: bool | Callable[..., Any], total: int | None, description: str = "Processed prompts"
    ) -> None:
        self._bar: Any = None
        self._input_tokens = self._output_tokens = 0
        self._begin = time.monotonic()
        if use_tqdm and total != 0:
            make = use_tqdm if callable(use_tqdm) else _tqdm()
            self._bar = make(total=total, desc=description, dynamic_ncols=True, postfix=self._postfix())

    def _postfix(self) -> str:
        seconds = max(time.monotonic() - self._begin, 1e-9)
        return (
            f"est. speed input: {self._input_tokens / seconds:.2f} toks/s, "
            f"output: {self._output_tokens / seconds:.2f} toks/s"
        )

    def advance(self, output: RequestOutput) -> None:
        """Counts a finished request: its sequences, its prompt once, its generated tokens."""
        num_output = sum(len(completion.token_ids) for completion in output.outputs)
        self.count(len(output.outputs), len(output.prompt_token_ids or ()), num_output)

    def count(self, done: int, input_tokens: int, output_tokens: int) -> None:
        if self._bar is None:
            return
        self._input_tokens += input_tokens
        self._output_tokens += output_tokens
        self._bar.postfix = self._postfix()
        self._bar.update(done)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _tqdm() -> Callable[..., Any]:
    from tqdm.auto import tqdm

    return tqdm
