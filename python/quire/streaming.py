"""Outputs of requests that still run: piece by piece, and as they finish.

Decides what a piece holds under each RequestOutputKind and when one is given out (stream_interval), and how far ahead
of the results prompts are read. How text becomes certain is decided in detokenizer.py. Generators: all work happens in
the thread that asks for the next piece, and closing one cancels what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any

from quire.detokenizer import StreamedText
from quire.errors import ValidationError
from quire.outputs import CompletionOutput, LazyLogprobs, Logprob, RequestOutput, StreamChunk, error_output
from quire.progress import Progress
from quire.requests import CompiledParams, Request
from quire.runner import Waiting, finished_output, namer
from quire.sampling_params import RequestOutputKind, SamplingParams
from quire.tokenizer import Tokenizer

if TYPE_CHECKING:
    from quire._quire import Delta

# Prompts that are read and tokenised at once; the engine works on what it has meanwhile.
_READ_AHEAD = 32


def kind_of(asked: RequestOutputKind | None, params: CompiledParams, default: RequestOutputKind) -> RequestOutputKind:
    """What a request's iteration yields. CUMULATIVE in SamplingParams is the default there and means `default`."""
    if asked is not None and not isinstance(asked, RequestOutputKind):
        raise TypeError(f"output_kind must be a RequestOutputKind, got {asked!r}")
    kind = asked
    if kind is None:
        kind = default if params.output_kind is RequestOutputKind.CUMULATIVE else params.output_kind
    if kind is not RequestOutputKind.FINAL_ONLY and params.num_outputs < params.engine["n"]:
        raise ValidationError(
            f"best_of must equal n to use output_kind={kind.name}: which {params.num_outputs} of the "
            f"{params.engine['n']} sequences are the best shows at the end. Use output_kind=FINAL_ONLY."
        )
    return kind


class Pieces:
    """The pieces of one running request."""

    def __init__(self, request: Request, request_id: str, tokenizer: Tokenizer | None, kind: RequestOutputKind) -> None:
        params = request.params
        assert params is not None
        self.request, self.request_id, self.kind = request, request_id, kind
        self._interval = params.stream_interval
        count = 0 if kind is RequestOutputKind.FINAL_ONLY else int(params.engine["n"])  # nothing is pushed then
        self._streamed = [StreamedText(tokenizer, request.token_ids, params.text) for _ in range(count)]
        # Of each sequence: all its text and tokens so far, and how much of them was given out.
        self._text = [""] * len(self._streamed)
        self._token_ids: list[list[int]] = [[] for _ in self._streamed]
        self._given = [(0, 0)] * len(self._streamed)
        self._gives_logprobs = params.gives_logprobs
        self._namer = namer(params, tokenizer)
        self._logprobs: list[list[dict[int, Logprob]]] = [[] for _ in self._streamed]
        self._prompt_logprobs: Any = None  # of unfinished outputs; with DELTA of the first alone

    def push(self, delta: Delta) -> StreamChunk | None:
        """Takes new tokens of a sequence that goes on; a piece, where it is time for one."""
        index = delta.index
        self._text[index] += self._streamed[index].push(delta.token_ids)
        self._token_ids[index].extend(delta.token_ids)
        if self._gives_logprobs and delta.logprobs is not None:
            self._logprobs[index].extend(LazyLogprobs(delta.logprobs, self._namer))
        if delta.prompt_logprobs is not None:
            self._prompt_logprobs = LazyLogprobs(delta.prompt_logprobs, self._namer, first=1)
        num_given = self._given[index][1]
        if num_given and len(self._token_ids[index]) - num_given < self._interval:
            return None
        text, ids = self._text[index], self._token_ids[index]
        chunk = self._chunk(index, text, ids, self._logprobs[index] if self._gives_logprobs else None)
        chunk.cumulative_logprob = delta.cumulative_logprob if self._gives_logprobs else None
        self._given[index] = (len(text), len(ids))
        return chunk

    def _chunk(self, index: int, text: str, token_ids: list[int], logprobs: Any) -> StreamChunk:
        num_chars, num_tokens = self._given[index] if self.kind is RequestOutputKind.DELTA else (0, 0)
        own = None if logprobs is None else logprobs[num_tokens:]
        return StreamChunk(self.request_id, index, text[num_chars:], token_ids[num_tokens:], logprobs=own)

    def finish(self, output: RequestOutput) -> list[StreamChunk]:
        """The last piece of each sequence; that of the last one carries the output."""
        chunks = []
        for completion in output.outputs:
            chunk = self._chunk(completion.index, completion.text, completion.token_ids, completion.logprobs)
            chunk.cumulative_logprob = completion.cumulative_logprob
            chunk.finish_reason, chunk.stop_reason = completion.finish_reason, completion.stop_reason
            chunks.append(chunk)
        chunks[-1].output = output
        return chunks

    def piece_output(self, chunk: StreamChunk) -> RequestOutput:
        """A piece as an unfinished output of its request."""
        completion = CompletionOutput(
            chunk.index, chunk.text, chunk.token_ids, chunk.cumulative_logprob, chunk.logprobs
        )
        request, prompt_logprobs = self.request, self._prompt_logprobs
        if self.kind is RequestOutputKind.DELTA:
            self._prompt_logprobs = None
        return RequestOutput(
            self.request_id, request.text, request.token_ids, prompt_logprobs, [completion], finished=False
        )

    def last_output(self, output: RequestOutput) -> RequestOutput:
        """The finished output as `kind` wants it."""
        if self.kind is not RequestOutputKind.DELTA:
            return output
        if any(num_tokens for _, num_tokens in self._given):
            output.prompt_logprobs = None  # the first piece had them
        for completion, chunk in zip(output.outputs, self.finish(output), strict=True):
            completion.text, completion.token_ids, completion.logprobs = chunk.text, chunk.token_ids, chunk.logprobs
        return output


def streamed(waiting: Waiting, pieces: Pieces, tokenizer: Tokenizer | None) -> Iterator[StreamChunk]:
    """Queues one request and yields its pieces, until all its sequences have finished."""
    with waiting:
        waiting.submit_streamed(pieces.request)
        while len(waiting):
            outputs, deltas = waiting.run_streamed()
            if outputs:
                final = finished_output(outputs[0], pieces.request, pieces.request_id, tokenizer)
                break
            for delta in deltas:
                # The last tokens may be a stop token or complete a stop string, which only the output tells.
                if delta.finish_reason is None and delta.token_ids and pieces.kind is not RequestOutputKind.FINAL_ONLY:
                    chunk = pieces.push(delta)
                    if chunk is not None:
                        yield chunk
        else:
            return
    yield from pieces.finish(final)


def failed_stream(output: RequestOutput) -> Iterator[StreamChunk]:
    """The stream of a request that could not run."""
    yield StreamChunk(output.request_id, 0, "", [], finish_reason="error", output=output)


def paired(prompts: Iterable[Any], params: SamplingParams | Iterable[SamplingParams]) -> Iterator[tuple[Any, Any]]:
    """Each prompt with its parameters, read as they are needed."""
    if isinstance(params, SamplingParams):
        return zip(prompts, repeat(params), strict=False)
    try:
        counts = len(prompts), len(params)  # type: ignore[arg-type]
    except TypeError:
        counts = 0, 0
    if counts[0] != counts[1]:
        raise ValidationError(
            f"The lengths of prompts and params must be the same. Got {counts[0]} prompts and {counts[1]} params."
        )
    return _zipped(prompts, params)


def _zipped(prompts: Iterable[Any], params: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    each = iter(params)
    nothing = object()
    count = 0
    for prompt in prompts:
        one = next(each, nothing)
        if one is nothing:
            raise ValidationError(
                f"The lengths of prompts and params must be the same. There are {count} params and more prompts."
            )
        count += 1
        yield prompt, one
    if next(each, nothing) is not nothing:
        raise ValidationError(
            f"The lengths of prompts and params must be the same. There are {count} prompts and more params."
        )


class AsCompleted:
    """Feeds pairs of prompts and parameters to the engine, at most `limit` at a time, and yields their outputs."""

    def __init__(
        self,
        pairs: Iterator[tuple[Any, Any]],
        prepare: Callable[[list[Any], list[Any], int], list[Request]],
        name: Callable[[], str],
        tokenizer: Tokenizer | None,
        limit: int,
        kind: RequestOutputKind | None,
        on_error: str,
    ) -> None:
        self._pairs, self._prepare, self._name, self._tokenizer = pairs, prepare, name, tokenizer
        self._limit, self._kind, self._on_error = limit, kind, on_error
        self._position, self._exhausted = 0, False
        self._running: dict[int, Pieces] = {}
        self._num_streamed = 0

    def run(self, waiting: Waiting, use_tqdm: bool | Callable[..., Any]) -> Iterator[tuple[int, RequestOutput]]:
        with Progress(use_tqdm, None) as progress, waiting:
            while not self._exhausted or len(waiting):
                for request in self._feed(waiting):
                    name, ids = self._name(), request.token_ids or None
                    yield request.position, error_output(name, request.text, ids, str(request.error))
                if len(waiting):
                    yield from self._step(waiting, progress)

    def _feed(self, waiting: Waiting) -> list[Request]:
        """Queues more prompts where there is room; returns those that cannot run."""
        room = self._limit - len(waiting)
        batch = list(islice(self._pairs, min(room, _READ_AHEAD))) if room > 0 and not self._exhausted else []
        self._exhausted = self._exhausted or (room > 0 and not batch)
        if not batch:
            return []
        requests = self._prepare([prompt for prompt, _ in batch], [params for _, params in batch], self._position)
        self._position += len(batch)
        pieces = [self._pieces_of(request) for request in requests if request.error is None]
        pieces = [one for one in pieces if one.request.error is None]
        at_once = [one for one in pieces if one.kind is RequestOutputKind.FINAL_ONLY]
        self._running.update(zip(waiting.submit([one.request for one in at_once]), at_once, strict=True))
        for one in pieces:
            if one.kind is not RequestOutputKind.FINAL_ONLY:
                self._running[waiting.submit_streamed(one.request)] = one
                self._num_streamed += 1
        return [request for request in requests if request.error is not None]

    def _pieces_of(self, request: Request) -> Pieces:
        kind = RequestOutputKind.FINAL_ONLY
        try:
            kind = self._kind_of(request)
        except (ValueError, NotImplementedError) as error:
            if self._on_error == "raise":
                raise
            request.fail(error)
        return Pieces(request, self._name() if request.error is None else "", self._tokenizer, kind)

    def _kind_of(self, request: Request) -> RequestOutputKind:
        assert request.params is not None
        return kind_of(self._kind, request.params, RequestOutputKind.FINAL_ONLY)

    def _step(self, waiting: Waiting, progress: Progress) -> Iterator[tuple[int, RequestOutput]]:
        outputs, deltas = waiting.run_streamed() if self._num_streamed else (waiting.run(), [])
        finished = {output.request_id for output in outputs}
        for delta in deltas:
            # What came with the end of a request is in its output.
            if delta.request_id not in finished and delta.finish_reason is None and delta.token_ids:
                pieces = self._running[delta.request_id]
                chunk = pieces.push(delta)
                if chunk is not None:
                    yield pieces.request.position, pieces.piece_output(chunk)
        for raw in outputs:
            pieces = self._running.pop(raw.request_id)
            self._num_streamed -= pieces.kind is not RequestOutputKind.FINAL_ONLY
            output = finished_output(raw, pieces.request, pieces.request_id, self._tokenizer)
            progress.advance(output)
            yield pieces.request.position, pieces.last_output(output)
