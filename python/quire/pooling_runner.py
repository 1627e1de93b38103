"""Drives pooling requests through the core: one thread tokenises, the caller's thread steps.

Decides how tokenising overlaps computing, and that nothing of a call stays behind, whatever ends it. Several threads
may have calls on one engine at once.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from quire._logging import logger
from quire.checked_prompts import raise_first
from quire.errors import ValidationError
from quire.pooling_outputs import PoolingOutput, PoolingRequestOutput
from quire.pooling_requests import PoolingLimits, PoolingRequest, check_token_ids
from quire.pooling_tokens import TextEncoder
from quire.progress import Progress

if TYPE_CHECKING:
    from quire._quire import PoolingEngine

# The core returns to Python at least this often; signals are seen then.
RUN_MS = 50
# Texts tokenised at a time: few at first, so that computing starts, then enough that texts of like length meet.
_FIRST_SLICE, _SLICE = 128, 1024


class _Call:
    """The requests of one call. Leaving the context cancels those not finished."""

    def __init__(self, engine: PoolingEngine) -> None:
        self._engine = engine
        self._call = engine.open_call()

    def __enter__(self) -> _Call:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close_call(self._call)

    def submit(self, requests: Sequence[PoolingRequest]) -> list[int]:
        types = [request.token_type_ids for request in requests]
        params = [request.params for request in requests]
        same = all(one is params[0] for one in params)
        return self._engine.submit_many(
            self._call,
            [request.token_ids for request in requests],
            types if any(one is not None for one in types) else None,
            params[0] if same else params,
        )

    def run(self) -> list[Any]:
        return self._engine.run(self._call, RUN_MS)


class _Slices:
    """Requests slice by slice, tokenised and checked, by a thread of their own. Leaving the context stops it."""

    def __init__(self, requests: Sequence[PoolingRequest], tokenise: Callable[[list[PoolingRequest]], None]) -> None:
        self._slices: queue.Queue[list[PoolingRequest] | BaseException | None] = queue.Queue()
        self._requests, self._tokenise = requests, tokenise
        self._is_stopped = False
        self._is_done = False
        # What needs no second slice needs no thread.
        self._thread = threading.Thread(target=self._work, name="quire-tokenise", daemon=True)
        if len(requests) > _FIRST_SLICE:
            self._thread.start()
        else:
            self._work()

    def _work(self) -> None:
        try:
            begin = 0
            while begin < len(self._requests) and not self._is_stopped:
                part = list(self._requests[begin : begin + (_SLICE if begin else _FIRST_SLICE)])
                self._tokenise(part)
                self._slices.put(part)
                begin += len(part)
            self._slices.put(None)
        except BaseException as error:  # noqa: BLE001  (it is raised again by the caller's thread)
            self._slices.put(error)

    def __enter__(self) -> _Slices:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopped = True
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def is_done(self) -> bool:
        return self._is_done

    def ready(self, wait: bool) -> Iterator[list[PoolingRequest]]:
        """What is tokenised by now; with `wait`, at least one slice unless all have been taken."""
        while not self._is_done:
            try:
                part = self._slices.get(block=wait, timeout=RUN_MS / 1000 if wait else None)
            except queue.Empty:
                if wait:
                    continue  # signals are seen between waits
                return
            if isinstance(part, BaseException):
                raise part
            if part is None:
                self._is_done = True
                return
            yield part
            wait = False


def run(
    engine: PoolingEngine,
    requests: Sequence[PoolingRequest],
    names: Sequence[str],
    encoder: TextEncoder | None,
    limits: PoolingLimits,
    *,
    add_special_tokens: bool,
    on_error: str,
    use_tqdm: bool | Callable[..., Any],
) -> list[PoolingRequestOutput[PoolingOutput]]:
    """The outputs of all requests, in their order. With on_error="raise" the first bad one ends the call."""
    raises = on_error == "raise"
    if raises:
        raise_first(requests, numbered=len(requests) > 1)
    truncated: list[int] = []

    def tokenise(part: list[PoolingRequest]) -> None:
        _tokenise(part, encoder, limits, add_special_tokens, truncated)

    raw: dict[int, Any] = {}
    ids: dict[int, int] = {}  # the core's id -> position
    good = [request for request in requests if request.error is None]
    with Progress(use_tqdm, len(requests)) as progress, _Slices(good, tokenise) as slices, _Call(engine) as call:
        while not slices.is_done or len(raw) < len(ids):
            for part in slices.ready(wait=len(raw) == len(ids)):
                if raises:
                    raise_first(part, numbered=len(requests) > 1)
                part = [request for request in part if request.error is None]
                if part:
                    ids.update(zip(call.submit(part), (request.position for request in part), strict=True))
            if len(raw) < len(ids):
                for output in call.run():
                    raw[ids[output.request_id]] = output
                    progress.count(1, output.num_prompt_tokens, 0)
    if truncated:
        logger.info("%d of %d texts were cut to the length that the model reads", len(truncated), len(requests))
    return [_output(request, name, raw.get(request.position)) for request, name in zip(requests, names, strict=True)]


def _output(request: PoolingRequest, name: str, raw: Any) -> PoolingRequestOutput[PoolingOutput]:
    if request.error is not None:
        return PoolingRequestOutput(name, None, request.token_ids, True, error=str(request.error))  # type: ignore[arg-type]
    if raw.is_cancelled:
        raise RuntimeError("A text of this call was aborted: another thread put the engine to sleep.")
    return PoolingRequestOutput(name, PoolingOutput(raw.data), request.token_ids, True)


def _leave_out(group: list[PoolingRequest], encoder: TextEncoder, max_length: int, add_special_tokens: bool) -> None:
    """Says how many tokens the pooler leaves out. Requests that share parameters do so afterwards, too."""
    changed: dict[tuple[int, str], tuple[dict[str, Any], dict[str, Any]]] = {}  # by identity, of what it holds itself
    for request in group:
        if not request.left_out or request.params.get("pooling_type") == "ALL":  # then every token has a vector
            continue
        key = (id(request.params), request.left_out)
        if key not in changed:
            count = encoder.prompt_length(request.left_out, max_length, add_special_tokens)
            changed[key] = request.params, {**request.params, "num_skipped_tokens": count}
        request.params = changed[key][1]


def _tokenise(
    part: list[PoolingRequest],
    encoder: TextEncoder | None,
    limits: PoolingLimits,
    add_special_tokens: bool,
    truncated: list[int],
) -> None:
    by_length: dict[int, list[PoolingRequest]] = {}
    for request in part:
        if request.text is not None:
            by_length.setdefault(request.truncate_to or limits.max_model_len, []).append(request)
        elif request.truncate_to is not None:
            request.token_ids = request.token_ids[: request.truncate_to]
            if request.token_type_ids is not None:
                request.token_type_ids = request.token_type_ids[: request.truncate_to]
    for max_length, group in by_length.items():
        try:
            if encoder is None:
                raise ValidationError("You cannot pass text prompts when `skip_tokenizer_init` is True")
            texts = [request.text for request in group if request.text is not None]
            for request, encoded in zip(group, encoder.encode(texts, max_length, add_special_tokens), strict=True):
                request.token_ids, request.token_type_ids = encoded.token_ids, encoded.token_type_ids
                if encoded.is_truncated:
                    truncated.append(request.position)
            _leave_out(group, encoder, max_length, add_special_tokens)
        except ValueError as error:
            for request in group:
                request.fail(error)
    for request in part:
        if request.error is not None:
            continue
        try:
            check_token_ids(request, limits)
        except ValueError as error:
            request.fail(error)
