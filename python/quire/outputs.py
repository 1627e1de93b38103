"""What comes back: RequestOutput, CompletionOutput and their parts, as vLLM has them.

Decides how the core's flat log-probabilities become dicts: on access, one position at a time. Knows nothing of how the
text was made (detokenizer.py). Plain values; a finished output belongs to its receiver.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, MutableSequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex

from quire._logging import logger

if TYPE_CHECKING:
    from quire._quire import LogprobBuffer


@dataclass
class Logprob:
    """Log-probability of one token; `rank` 1 is the most likely."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


PromptLogprobs = list["dict[int, Logprob] | None"]
SampleLogprobs = list["dict[int, Logprob]"]


class LazyLogprobs(list["dict[int, Logprob]"]):
    """A list of {token id: Logprob}, one a token, made from the core's buffer when it is looked at.

    The list holds None where a position has not been looked at; every way to read it goes through `_at` or `_all`.
    Position `first` is the buffer's first row; what is before it is and stays None.
    """

    def __init__(self, buffer: LogprobBuffer, token_text: Callable[[int], str] | None, first: int = 0) -> None:
        super().__init__([None] * (first + len(buffer.token_ids)))  # type: ignore[list-item]
        self._buffer: LogprobBuffer | None = buffer
        self._first = first
        self._token_text = token_text

    def _at(self, position: int) -> dict[int, Logprob]:
        entry = super().__getitem__(position)
        if entry is None and self._buffer is not None and position >= self._first:
            entry = self._make(position - self._first)
            super().__setitem__(position, entry)
        return entry

    def _make(self, row: int) -> dict[int, Logprob]:
        assert self._buffer is not None
        token_ids = self._buffer.token_ids[row].tolist()
        logprobs = self._buffer.logprobs[row].tolist()
        sampled_rank = int(self._buffer.sampled_ranks[row])
        entry: dict[int, Logprob] = {}
        for column, (token_id, logprob) in enumerate(zip(token_ids, logprobs, strict=True)):
            if token_id < 0 or token_id in entry:  # the sampled token again, among the most likely ones
                continue
            rank = sampled_rank if column == 0 else column
            entry[token_id] = Logprob(logprob, rank, self._token_text(token_id) if self._token_text else None)
        return entry

    def _all(self) -> LazyLogprobs:
        if self._buffer is not None:
            for position in range(len(self)):
                self._at(position)
            self._buffer = self._token_text = None
        return self

    def __getitem__(self, key: SupportsIndex | slice) -> Any:
        if isinstance(key, slice):
            return [self._at(position) for position in range(*key.indices(len(self)))]
        return self._at(range(len(self))[key])

    def __iter__(self) -> Iterator[dict[int, Logprob]]:
        position = 0
        while position < len(self):
            yield self._at(position)
            position += 1

    def __reversed__(self) -> Iterator[dict[int, Logprob]]:
        return reversed(self[:])

    def __contains__(self, entry: object) -> bool:
        return any(entry == own for own in self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, list):
            return NotImplemented
        return self[:] == other[:]

    __hash__ = None

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __repr__(self) -> str:
        return repr(self[:])

    def __add__(self, other: list[Any]) -> list[Any]:
        return self[:] + other[:]

    def __radd__(self, other: list[Any]) -> list[Any]:
        return other[:] + self[:]

    def __mul__(self, count: SupportsIndex) -> list[Any]:
        return self[:] * count

    __rmul__ = __mul__

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return (list, (self[:],))

    def copy(self) -> list[Any]:
        return self[:]

    def index(self, entry: Any, *bounds: Any) -> int:
        return self[:].index(entry, *bounds)

    def count(self, entry: Any) -> int:
        return self[:].count(entry)


def _materialized(name: str) -> Any:
    """The list method `name`, after every position has been made: positions may move afterwards."""
    method = getattr(list, name)

    def call(self: LazyLogprobs, *args: Any, **kwargs: Any) -> Any:
        self._all()
        return method(self, *args, **kwargs)

    call.__name__ = name
    return call


for _name in (
    "append extend insert pop remove reverse sort clear "
    "__setitem__ __delitem__ __iadd__ __imul__ __lt__ __le__ __gt__ __ge__"
).split():
    setattr(LazyLogprobs, _name, _materialized(_name))


@dataclass(repr=False)
class CompletionOutput:
    """One of the n sequences of a request. The keyword-only fields are newer than vLLM 0.8.4; None: not measured."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: SampleLogprobs | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    lora_request: Any = None
    routed_experts: Any = dataclasses.field(default=None, kw_only=True)
    sampling_mask: Any = dataclasses.field(default=None, kw_only=True)
    spec_decode_metrics: Any = dataclasses.field(default=None, kw_only=True)
    weight_versions: Any = dataclasses.field(default=None, kw_only=True)
    kv_transfer_params: dict[str, Any] | None = dataclasses.field(default=None, kw_only=True)
    # quire's own: float32 arrays, with return_hidden_states [tokens, hidden] and return_logits [tokens, vocabulary].
    hidden_states: Any = dataclasses.field(default=None, kw_only=True, compare=False)
    logits: Any = dataclasses.field(default=None, kw_only=True, compare=False)

    def finished(self) -> bool:
        return self.finish_reason is not None

    def __repr__(self) -> str:
        return (
            f"CompletionOutput(index={self.index}, text={self.text!r}, token_ids={self.token_ids}, "
            f"cumulative_logprob={self.cumulative_logprob}, logprobs={self.logprobs}, "
            f"finish_reason={self.finish_reason}, stop_reason={self.stop_reason})"
        )


@dataclass
class RequestMetrics:
    """Times in seconds since the Unix epoch; what the engine does not measure is None.

    With speculative decoding entry 0 of `spec_token_acceptance_counts` counts the steps that gave a token, entry i
    those that gave i more.
    """

    arrival_time: float
    last_token_time: float
    first_scheduled_time: float | None
    first_token_time: float | None
    time_in_queue: float | None
    finished_time: float | None = None
    scheduler_time: float | None = None
    model_forward_time: float | None = None
    model_execute_time: float | None = None
    spec_token_acceptance_counts: list[int] | None = None
    num_preemptions: int = 0

    # The names of newer versions of vLLM.
    @property
    def queued_ts(self) -> float:
        return self.arrival_time

    @property
    def scheduled_ts(self) -> float | None:
        return self.first_scheduled_time

    @property
    def first_token_ts(self) -> float | None:
        return self.first_token_time

    @property
    def last_token_ts(self) -> float:
        return self.last_token_time

    @property
    def first_token_latency(self) -> float | None:
        return None if self.first_token_time is None else self.first_token_time - self.arrival_time


class RequestOutput:
    """All that a request produced. `error` is set, and finish_reason is "error", where a request failed."""

    def __init__(
        self,
        request_id: str,
        prompt: str | None,
        prompt_token_ids: list[int] | None,
        prompt_logprobs: PromptLogprobs | None,
        outputs: list[CompletionOutput],
        finished: bool,
        metrics: RequestMetrics | None = None,
        lora_request: Any = None,
        encoder_prompt: str | None = None,
        encoder_prompt_token_ids: list[int] | None = None,
        num_cached_tokens: int | None = None,
        *,
        multi_modal_placeholders: dict[str, Any] | None = None,
        error: str | None = None,
        num_cache_creation_tokens: int | None = None,
        kv_transfer_params: dict[str, Any] | None = None,
        ec_transfer_params: dict[str, Any] | None = None,
        prompt_token_id_logprobs: Any = None,
        prompt_hidden_states: Any = None,
        **unknown: Any,
    ) -> None:
        if unknown:  # of a version of vLLM that is newer than this one
            logger.warning("RequestOutput: ignoring extra arguments: %s", unknown)
        self.request_id = request_id
        self.prompt = prompt
        self.prompt_token_ids = prompt_token_ids
        self.multi_modal_placeholders = multi_modal_placeholders or {}
        self.prompt_logprobs = prompt_logprobs
        self.outputs = outputs
        self.finished = finished
        self.metrics = metrics
        self.lora_request = lora_request
        self.encoder_prompt = encoder_prompt
        self.encoder_prompt_token_ids = encoder_prompt_token_ids
        self.num_cached_tokens = num_cached_tokens
        self.error = error
        self.num_cache_creation_tokens = num_cache_creation_tokens
        self.kv_transfer_params = kv_transfer_params
        self.ec_transfer_params = ec_transfer_params
        self.prompt_token_id_logprobs = prompt_token_id_logprobs
        self.prompt_hidden_states = prompt_hidden_states

    def add(self, next_output: RequestOutput, aggregate: bool = True) -> None:
        """Merges a later output of the same request; with `aggregate`, its texts and tokens are new pieces."""
        self.finished |= next_output.finished
        if next_output.prompt_hidden_states is not None:  # they come once, with the last output
            self.prompt_hidden_states = next_output.prompt_hidden_states
        for new in next_output.outputs:
            position = next((i for i, own in enumerate(self.outputs) if own.index == new.index), None)
            if position is None:
                self.outputs.append(new)
            elif not aggregate:
                self.outputs[position] = new
            else:
                _extend(self.outputs[position], new)

    def __repr__(self) -> str:
        error = "" if self.error is None else f", error={self.error!r}"
        return (
            f"RequestOutput(request_id={self.request_id}, prompt={self.prompt!r}, "
            f"prompt_token_ids={self.prompt_token_ids}, encoder_prompt={self.encoder_prompt!r}, "
            f"encoder_prompt_token_ids={self.encoder_prompt_token_ids}, prompt_logprobs={self.prompt_logprobs}, "
            f"outputs={self.outputs}, finished={self.finished}, metrics={self.metrics}, "
            f"lora_request={self.lora_request}, num_cached_tokens={self.num_cached_tokens}, "
            f"multi_modal_placeholders={self.multi_modal_placeholders}{error})"
        )


def _extend(own: CompletionOutput, new: CompletionOutput) -> None:
    own.text += new.text
    if not isinstance(own.token_ids, MutableSequence):
        own.token_ids = list(own.token_ids)
    own.token_ids.extend(new.token_ids)
    if new.logprobs is not None:
        own.logprobs = list(own.logprobs or ()) + list(new.logprobs)
    own.cumulative_logprob = new.cumulative_logprob
    if new.finished():
        own.hidden_states, own.logits = new.hidden_states, new.logits
    own.finish_reason, own.stop_reason = new.finish_reason, new.stop_reason


@dataclass
class StreamChunk:
    """A piece of one of the sequences of a streamed request: what is new, or what output_kind says.

    The last chunk carries the whole output.
    """

    request_id: str
    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: SampleLogprobs | None = None
    cumulative_logprob: float | None = None
    output: RequestOutput | None = dataclasses.field(default=None, repr=False)


def error_output(request_id: str, prompt: str | None, token_ids: Iterable[int] | None, error: str) -> RequestOutput:
    """The output in the place of a request that could not run."""
    completion = CompletionOutput(0, "", [], None, None, finish_reason="error")
    ids = None if token_ids is None else list(token_ids)
    return RequestOutput(request_id, prompt, ids, None, [completion], True, error=error)
