"""Drives requests through the core and makes RequestOutputs of what comes back.

Decides how a call waits (short runs, so that Ctrl-C gets through) and that nothing of a call stays behind, whatever
ends it. Several threads may run their own requests on one engine at once. Knows no prompts and no parameters but those
of finished requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from quire._logging import logger
from quire.detokenizer import final_text
from quire.outputs import CompletionOutput, LazyLogprobs, PromptLogprobs, RequestMetrics, RequestOutput
from quire.requests import CompiledParams, Request
from quire.tokenizer import Tokenizer

if TYPE_CHECKING:
    from quire._quire import Completion, Delta, Engine, Output

# The core returns to Python at least this often; signals are seen then.
RUN_MS = 50
# Requests a run is asked about: they finish roughly in order, and each run costs time for every id.
_WINDOW = 512


class Waiting:
    """The requests of one call that are in the core. Used as a context: leaving it abandons those not finished."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pending: dict[int, None] = {}
        # What the core returned for a submission that has not reached _pending. A signal may raise between any two
        # bytecodes, so results are put here by C code alone: extend() of a map() that calls the core.
        self._returned: list[Any] = []

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pending or self._returned:
            self._abandon()

    def __len__(self) -> int:
        return len(self._pending)

    def submit(self, requests: Sequence[Request]) -> list[int]:
        """Queues all of them or none; returns the core's ids."""
        if not requests:
            return []
        params = [request.params.engine for request in requests if request.params is not None]
        same = all(one is params[0] for one in params)
        prompts = [request.token_ids for request in requests]
        priorities = [request.priority for request in requests]
        self._returned.extend(
            map(self._engine.submit_many, (prompts,), (params[0] if same else params,), (priorities,))
        )
        ids: list[int] = self._returned[0]
        self._take_returned()
        return ids

    def submit_streamed(self, request: Request) -> int:
        assert request.params is not None
        submitted = ((request.token_ids,), (request.params.engine,), (True,), (request.priority,))
        self._returned.extend(map(self._engine.submit, *submitted))
        request_id: int = self._returned[0]
        self._take_returned()
        return request_id

    def submit_beam_search(self, requests: Sequence[Request], params: dict[str, Any]) -> list[int]:
        """Queues beam searches of all prompts or none; returns the core's ids."""
        self._returned.extend(
            map(self._engine.submit_beam_search, ([request.token_ids for request in requests],), (params,))
        )
        ids: list[int] = self._returned[0]
        self._take_returned()
        return ids

    def _take_returned(self) -> None:
        for returned in self._returned:
            self._pending.update(dict.fromkeys([returned] if isinstance(returned, int) else returned))
        self._returned.clear()

    def release(self) -> None:
        """Lets go of requests that shall stay queued after the context."""
        self._pending.clear()

    def adopt(self, request_ids: Iterable[int]) -> None:
        """Takes over requests that were queued before."""
        self._pending.update(dict.fromkeys(request_ids))

    def run(self) -> list[Output]:
        """Those that finished meanwhile; returns within RUN_MS."""
        outputs, _ = self._engine.run(list(islice(self._pending, _WINDOW)), RUN_MS)
        for output in outputs:
            self._pending.pop(output.request_id, None)
        return outputs

    def run_streamed(self) -> tuple[list[Output], list[Delta]]:
        """As run, with the new tokens of streamed requests."""
        outputs, deltas = self._engine.run(list(self._pending), RUN_MS)
        for output in outputs:
            self._pending.pop(output.request_id, None)
        return outputs, deltas

    def _abandon(self) -> None:
        """Cancels what is left and takes its outputs away, so that the next call finds an empty engine."""
        self._take_returned()
        try:
            for request_id in self._pending:
                self._engine.cancel(request_id)
            num_before = -1
            while self._pending and len(self._pending) != num_before:  # cancelled requests finish at once
                num_before = len(self._pending)
                left = list(self._pending)
                for begin in range(0, len(left), _WINDOW):
                    outputs, _ = self._engine.run(left[begin : begin + _WINDOW], 0)
                    for output in outputs:
                        self._pending.pop(output.request_id, None)
        except RuntimeError as error:  # the device failed, or the engine was closed: what led here matters more
            logger.debug("abandoning requests failed: %s", error)
        self._pending.clear()


def finished_output(output: Output, request: Request, request_id: str, tokenizer: Tokenizer | None) -> RequestOutput:
    """The RequestOutput of a finished request."""
    params = request.params
    assert params is not None
    completions = [
        _completion(index, completion, request, params, tokenizer)
        for index, completion in enumerate(_chosen(output.completions, params))
    ]
    metrics = RequestMetrics(
        arrival_time=output.arrival,
        last_token_time=output.last_token,
        first_scheduled_time=output.first_scheduled or None,
        first_token_time=output.first_token or None,
        time_in_queue=output.first_scheduled - output.arrival if output.first_scheduled else None,
        finished_time=output.finished or None,
        spec_token_acceptance_counts=output.spec_token_acceptance_counts or None,
        num_preemptions=output.num_preemptions,
    )
    return RequestOutput(
        request_id=request_id,
        prompt=request.text,
        prompt_token_ids=request.token_ids,
        prompt_logprobs=_prompt_logprobs(output, request, params, tokenizer),
        outputs=completions,
        finished=True,
        metrics=metrics,
        num_cached_tokens=output.num_cached_tokens,
        prompt_hidden_states=output.prompt_hidden_states,
        error=output.error or None,
    )


def _chosen(completions: list[Completion], params: CompiledParams) -> list[Completion]:
    """The sequences to return: all in order or, with best_of, the likeliest, best first."""
    in_order = sorted(completions, key=lambda completion: completion.index)
    if len(in_order) <= params.num_outputs:
        return in_order
    return sorted(in_order, key=lambda completion: -completion.cumulative_logprob)[: params.num_outputs]


def _prompt_logprobs(
    output: Output, request: Request, params: CompiledParams, tokenizer: Tokenizer | None
) -> PromptLogprobs | None:
    """One entry a prompt token, the first None; None for a request that ended before its prompt was computed."""
    buffer = output.prompt_logprobs
    if params.engine["prompt_logprobs"] is None or buffer is None:
        return None
    if len(buffer.token_ids) + 1 != len(request.token_ids):
        return None
    return LazyLogprobs(buffer, namer(params, tokenizer), first=1)  # type: ignore[return-value]


def namer(params: CompiledParams, tokenizer: Tokenizer | None) -> Callable[[int], str] | None:
    """What gives a Logprob its decoded_token."""
    return tokenizer.token_text if tokenizer is not None and params.text.detokenize else None


def _completion(
    index: int, completion: Completion, request: Request, params: CompiledParams, tokenizer: Tokenizer | None
) -> CompletionOutput:
    token_ids = list(completion.token_ids)
    stop_string, stop_token = _stop_of(completion, token_ids, params)
    text = final_text(
        tokenizer, request.token_ids, token_ids, params.text, stop_string, stopped_by_token=stop_token is not None
    )
    stop_reason: int | str | None = stop_string
    if stop_token is not None and stop_string is None:
        is_eos = tokenizer is not None and stop_token == tokenizer.eos_token_id and not params.ignore_eos
        stop_reason = None if is_eos else stop_token
    logprobs = cumulative = None
    if params.gives_logprobs and completion.logprobs is not None:
        logprobs = LazyLogprobs(completion.logprobs, namer(params, tokenizer))
        cumulative = completion.cumulative_logprob
    return CompletionOutput(
        index=index,
        text=text,
        token_ids=token_ids,
        cumulative_logprob=cumulative,
        logprobs=logprobs,
        finish_reason=completion.finish_reason,
        stop_reason=stop_reason,
        hidden_states=completion.hidden_states,
        logits=completion.logits,
    )


def _stop_of(completion: Completion, token_ids: list[int], params: CompiledParams) -> tuple[str | None, int | None]:
    """The stop string or the stop token that ended a sequence."""
    if completion.finish_reason != "stop" or completion.is_complete:
        return None, None
    if completion.stop_string_index >= 0:
        return params.text.stop[completion.stop_string_index], None
    if token_ids[-1] in params.stop_tokens:
        return params.stop_tokens[token_ids[-1]], None
    return None, token_ids[-1]
