"""The progress bar of a call, as vLLM shows it.

Decides what is counted (sequences) and what the postfix says (tokens a second). Called from the caller's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Progress:
    """A tqdm bar, one made by the caller's function, or nothing."""

    def __init__(self, use_tqdm: bool | Callable[..., Any], total: int, description: str = "Processed prompts") -> None:
        self._bar: Any = None
        self._input_tokens = self._output_tokens = 0
        if not use_tqdm or total == 0:
            return
        make = use_tqdm if callable(use_tqdm) else _tqdm()
        postfix = f"est. speed input: {0:.2f} toks/s, output: {0:.2f} toks/s"
        self._bar = make(total=total, desc=description, dynamic_ncols=True, postfix=postfix)
        self._begin = time.monotonic()

    def advance(self, sequences: int, input_tokens: int, output_tokens: int) -> None:
        if self._bar is None:
            return
        self._input_tokens += input_tokens
        self._output_tokens += output_tokens
        seconds = max(time.monotonic() - self._begin, 1e-9)
        self._bar.postfix = (
            f"est. speed input: {self._input_tokens / seconds:.2f} toks/s, "
            f"output: {self._output_tokens / seconds:.2f} toks/s"
        )
        self._bar.update(sequences)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _tqdm() -> Callable[..., Any]:
    from tqdm.auto import tqdm

    return tqdm
