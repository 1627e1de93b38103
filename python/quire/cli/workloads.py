"""The workloads that speed is measured with: how many requests, how long, what they share.

Decides the prompts: random token ids, other ones in each run, so that nothing cached survives from run to run. Knows no
engine; imports the standard library only.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    name: str
    what: str
    prompt_lens: tuple[int, ...]  # of each request, the shared beginning not counted
    output_len: int
    shared_len: int = 0  # tokens that all prompts of a run begin with

    @property
    def longest(self) -> int:
        """Tokens of the longest request at its end."""
        return self.shared_len + max(self.prompt_lens) + self.output_len

    def prompts(self, run: int | str, vocab_size: int) -> list[list[int]]:
        """Those of one run. Ids stay below 16,384, which every tokenizer has, and above the special ones."""
        draw = random.Random(f"{self.name}/{run}")
        low, high = min(300, vocab_size // 4), min(vocab_size, 16384)

        def ids(length: int) -> list[int]:
            return [draw.randrange(low, high) for _ in range(length)]

        shared = ids(self.shared_len)
        return [shared + ids(length) for length in self.prompt_lens]


def _mixed_lens(count: int) -> tuple[int, ...]:
    lengths = random.Random("lengths")  # the same in every run
    return tuple(lengths.randint(64, 256) for _ in range(count))


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("a", "decode of one sequence: 128 prompt tokens, 128 new ones", (128,), 128),
        Workload("b", "prefill of 1,024 tokens, 1 new one", (1024,), 1),
        Workload("c", "64 requests at once, prompts of 64 to 256 tokens, 128 new ones each", _mixed_lens(64), 128),
        Workload("d", "64 requests that share 512 tokens, 32 own and 32 new ones each", (32,) * 64, 32, 512),
    )
}


def chosen(names: str | Sequence[str], known: Sequence[str], what: str) -> list[str]:
    """The names of a list with commas between them; each must be known, and be there once."""
    listed = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    for position, name in enumerate(listed):
        if name not in known:
            raise ValueError(f"there is no {what} {name!r}; there are: {', '.join(known)}")
        if name in listed[:position]:
            raise ValueError(f"the {what} {name!r} is named twice")
    return listed
