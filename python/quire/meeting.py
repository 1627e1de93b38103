"""What the ranks of one call do together: new weights are taken when all have asked, once, from the first rank's call.

Decides who waits for whom, and what becomes of a rank that does not come. Does not know what is done. Called by the
threads of a call on several ranks; with one rank there is none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from quire.weights import NamedTensors, names_of

_CURRENT: ContextVar[Meeting | None] = ContextVar("quire_meeting", default=None)


class LeftAlone(RuntimeError):
    """A rank waited in vain; what went wrong is another's."""


@dataclass(frozen=True)
class Request:
    """What a rank asks for. Ranks that ask for the same are equal but for their weights."""

    what: str
    weights: NamedTensors | None = field(default=None, compare=False)


@dataclass
class _Round:
    requests: dict[int, Request] = field(default_factory=dict)
    names: dict[int, set[str] | None] = field(default_factory=dict)  # None: the tensors are those of the first rank
    failed: BaseException | None = None  # of weights that are not the first rank's
    is_begun: bool = False
    is_done: bool = False
    result: Any = None
    error: BaseException | None = None


class Meeting:
    def __init__(self, workers: Sequence[Any], time_limit: float) -> None:
        self.workers = workers
        self._time_limit = time_limit
        self._changed = threading.Condition()
        self._round = _Round()
        self._gone: set[int] = set()

    @staticmethod
    def of(worker: Any) -> Meeting | None:
        """That of the call which the calling thread is part of."""
        meeting = _CURRENT.get()
        return meeting if meeting is not None and any(one is worker for one in meeting.workers) else None

    def enter(self) -> None:
        """Says that the calling context is part of it."""
        _CURRENT.set(self)

    def leave(self, rank: int) -> None:
        """The rank has nothing more to do in the call."""
        with self._changed:
            self._gone.add(rank)
            self._changed.notify_all()

    def together(
        self, rank: int, request: Request, prepare: Callable[[], None], do: Callable[[Callable[[set[str]], None]], Any]
    ) -> Any:
        """do(settle) on the first rank once all have asked and prepare() has run there. All get its result or error.

        Weights of other ranks are gone through at the same time; settle(names) waits for them and compares names.
        """
        meant = self._come(rank, request)
        if any(other != request for other in meant.requests.values()):
            asked = ", ".join(f"rank {one} for {meant.requests[one].what}" for one in sorted(meant.requests))
            raise ValueError(f"ranks change weights together, but asked for different things: {asked}")
        if rank == 0:
            self._lead(meant, prepare, do)
        else:
            self._follow(meant, rank, request)
        if meant.error is not None:
            raise meant.error
        return meant.result

    def _come(self, rank: int, request: Request) -> _Round:
        with self._changed:
            meant = self._round
            meant.requests[rank] = request
            if self._is_full(meant):
                self._round = _Round()
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_full(meant) or self._gone, self._time_limit)
            if self._is_full(meant):
                return meant
            missing = [one for one in range(len(self.workers)) if one not in meant.requests]
            del meant.requests[rank]
        how = "never came" if self._gone else f"did not come within {self._time_limit:g} s (collective_timeout)"
        raise LeftAlone(
            f"rank {rank} asked for {request.what}, to which {_ranks(missing)} {how}. Ranks change weights together: "
            "all have to ask. Nothing was changed; outside of collective_rpc one worker changes all."
        )

    def _is_full(self, meant: _Round) -> bool:
        return len(meant.requests) == len(self.workers)

    def _tell(self, meant: _Round, **values: Any) -> None:
        with self._changed:
            for name, value in values.items():
                setattr(meant, name, value)
            self._changed.notify_all()

    def _lead(
        self, meant: _Round, prepare: Callable[[], None], do: Callable[[Callable[[set[str]], None]], Any]
    ) -> None:
        try:
            prepare()
            self._tell(meant, is_begun=True)
            result = do(lambda names: self._settle(meant, names))
        except BaseException as error:  # raised by every rank
            self._tell(meant, error=error, is_done=True)
        else:
            self._tell(meant, result=result, is_done=True)

    def _follow(self, meant: _Round, rank: int, request: Request) -> None:
        with self._changed:
            self._changed.wait_for(lambda: meant.is_begun or meant.is_done)
        if not meant.is_done:
            try:
                is_same = request.weights is None or request.weights is meant.requests[0].weights
                names = None if is_same else names_of(request.weights or ())
                with self._changed:
                    meant.names[rank] = names
                    self._changed.notify_all()
            except BaseException as error:  # raised by the first rank, which undoes what it wrote
                self._tell(meant, failed=error)
        with self._changed:
            self._changed.wait_for(lambda: meant.is_done)

    def _settle(self, meant: _Round, names: set[str]) -> None:
        others = range(1, len(self.workers))
        with self._changed:
            self._changed.wait_for(
                lambda: meant.failed is not None or len(meant.names) == len(others), self._time_limit
            )
        if meant.failed is not None:
            raise meant.failed
        missing = [rank for rank in others if rank not in meant.names]
        if missing:
            raise LeftAlone(
                f"{_ranks(missing)} did not come to the end of the weights within {self._time_limit:g} s "
                "(collective_timeout). An iterator on these ranks must not call the LLM, which is being changed."
            )
        for rank in others:
            own = meant.names[rank]
            if own is not None and own != names:
                raise ValueError(
                    f"ranks 0 and {rank} load different weights: {_short(names - own)} on rank 0 alone, "
                    f"{_short(own - names)} on rank {rank} alone"
                )


def _ranks(ranks: list[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))


def _short(names: set[str]) -> str:
    shown = sorted(names)[:3]
    return (", ".join(shown) or "nothing") + (f" and {len(names) - 3} more" if len(names) > 3 else "")
