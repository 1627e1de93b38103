"""LLM.beam_search: its outputs (as in vllm.beam_search), what it refuses, and the call. The search is the core's.

Decides how BeamSearchParams read in the core's terms and what the text of a sequence is. Called from the thread of the
caller; keeps no state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from quire import inputs, runner
from quire._logging import logger
from quire.detokenizer import cut
from quire.errors import ValidationError, not_supported
from quire.grammars import Grammars
from quire.outputs import LazyLogprobs, Logprob
from quire.progress import Progress
from quire.requests import Limits, Request, allowed_token_ids, prepare, special_stop_tokens
from quire.sampling_params import BeamSearchParams, SamplingParams, int_list
from quire.structured import constraint_of
from quire.tokenizer import Tokenizer

if TYPE_CHECKING:
    from quire._quire import Engine, Output


@dataclass(frozen=True)
class CompiledSearch:
    """BeamSearchParams in the core's terms, and what turns a sequence into text."""

    engine: dict[str, Any]
    stop: list[str]
    stop_tokens: Mapping[int, str]  # special tokens that end it because a stop string lies in their name
    keeps_stop: bool
    skip_special_tokens: bool


@dataclass
class BeamSearchSequence:
    """A sequence that was found. `tokens` and `text` begin with the prompt; `logprobs` are of the generated tokens.

    As in vLLM the reasons stay None, except where a string of `stop` ended it.
    """

    tokens: list[int]
    logprobs: list[dict[int, Logprob]]
    cum_logprob: float = 0.0
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    multi_modal_data: Any = None
    mm_processor_kwargs: dict[str, Any] | None = None


@dataclass
class BeamSearchOutput:
    """The sequences found for a prompt, best first."""

    sequences: list[BeamSearchSequence]


def as_prompts(prompts: Any) -> list[Any]:
    """The prompts of a call; as in vLLM each is a dict."""
    items = [prompts] if isinstance(prompts, str) else inputs.as_list(prompts)
    for position, prompt in enumerate(items):
        if not isinstance(prompt, Mapping):
            raise TypeError(
                'beam_search takes TextPrompts and TokensPrompts, {"prompt": text} and {"prompt_token_ids": ids}; got '
                f"{type(prompt).__name__} (prompt {position})"
            )
    return items


def refuse_priority(priority: Any) -> None:
    for value in priority if isinstance(priority, (list, tuple)) else [priority]:
        if value:
            raise not_supported(f"beam_search(priority={value!r})", "Searches go in the order in which they come.")


def search(
    engine: Engine,
    prompts: Sequence[Any],
    params: BeamSearchParams | Any,
    tokenizer: Tokenizer | None,
    limits: Limits,
    grammars: Grammars | None = None,
    use_tqdm: bool | Callable[..., Any] = False,
    concurrency_limit: int | None = None,
) -> list[BeamSearchOutput]:
    """Searches for all prompts, at most concurrency_limit of them at a time; the outputs come in their order."""
    compiled = compile_params(params, tokenizer, limits, grammars)
    if concurrency_limit is not None and (not isinstance(concurrency_limit, Integral) or concurrency_limit < 1):
        raise ValidationError(f"concurrency_limit must be a positive integer or None, got {concurrency_limit!r}")
    requests = prepare(prompts, SamplingParams(max_tokens=1), tokenizer, limits)
    outputs: dict[int, BeamSearchOutput] = {}
    size = len(requests) if concurrency_limit is None else int(concurrency_limit)
    with Progress(use_tqdm, len(requests), "Beam search") as progress:
        for begin in range(0, len(requests), max(size, 1)):
            batch = requests[begin : begin + size]
            with runner.Waiting(engine) as waiting:
                queued = dict(zip(waiting.submit_beam_search(batch, compiled.engine), batch, strict=True))
                while len(waiting):
                    for raw in waiting.run():
                        request = queued[raw.request_id]
                        outputs[request.position] = _output(raw, request, compiled, tokenizer)
                        num_tokens = sum(len(completion.token_ids) for completion in raw.completions)
                        progress.count(1, len(request.token_ids), num_tokens)
    return [outputs[request.position] for request in requests]


def compile_params(
    params: BeamSearchParams | Any, tokenizer: Tokenizer | None, limits: Limits, grammars: Grammars | None = None
) -> CompiledSearch:
    """The parameters in the core's terms. The core checks ranges."""
    if not isinstance(params, BeamSearchParams):
        raise TypeError(f"params must be BeamSearchParams, got {type(params).__name__}")
    if params.watermarking is not None:
        raise not_supported("BeamSearchParams.watermarking", "There is no watermarking.")
    constraint = constraint_of(params.structured_outputs)
    for name in ("beam_width", "max_tokens"):
        value = getattr(params, name)
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise ValidationError(f"{name} must be an int, but is of type {type(value)}")
    for name in ("temperature", "length_penalty"):
        value = getattr(params, name)
        if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
            raise ValidationError(f"{name} must be a finite number, got {value!r}")
    if params.temperature < 0:
        raise ValidationError(f"temperature must be non-negative, got {params.temperature}.")
    if params.temperature > 0:
        logger.warning(
            "BeamSearchParams.temperature=%s changes nothing: sequences are ranked by log-probabilities before "
            "temperature, as in vLLM's V1 engine.",
            params.temperature,
        )
    strings = _stop_strings(params.stop, tokenizer)
    stop_tokens = special_stop_tokens(bool(params.skip_special_tokens), 0, strings, tokenizer)
    stop = [int(token_id) for token_id in int_list("stop_token_ids", params.stop_token_ids or ())]
    eos = tokenizer.eos_token_id if tokenizer is not None else None
    if eos is not None and not params.ignore_eos and eos not in limits.eos_token_ids and eos < limits.vocab_size:
        stop.append(eos)
    engine: dict[str, Any] = {
        "beam_width": _in_32_bits(params.beam_width),
        "max_tokens": _in_32_bits(params.max_tokens),
        "ignore_eos": bool(params.ignore_eos),
        "stop_token_ids": list(dict.fromkeys([*stop, *stop_tokens])),
        "stop": strings,
        "allowed_token_ids": allowed_token_ids(params.allowed_token_ids, limits),
        "length_penalty": float(params.length_penalty),
        "length_includes_prompt": bool(params.length_includes_prompt),
    }
    if constraint is not None:
        grammars = grammars or Grammars(tokenizer, limits.vocab_size, sorted(limits.eos_token_ids), "auto")
        grammar = grammars.compile(constraint)
        engine["constraint"] = (grammar.backend, grammar)
    return CompiledSearch(
        engine,
        strings,
        stop_tokens,
        keeps_stop=bool(params.include_stop_str_in_output),
        skip_special_tokens=bool(params.skip_special_tokens),
    )


def _stop_strings(given: Any, tokenizer: Tokenizer | None) -> list[str]:
    strings = [given] if isinstance(given, str) else list(given or ())
    for text in strings:
        if not isinstance(text, str):
            raise TypeError(f"stop must be a string or a list of strings, got an entry of type {type(text).__name__}")
        if not text:
            raise ValidationError("stop cannot contain an empty string.")
    if strings and tokenizer is None:
        raise ValidationError("stop strings need a tokenizer; with `skip_tokenizer_init` use stop_token_ids.")
    return strings


def _in_32_bits(value: int) -> int:
    """As large as the core's integers allow; what is beyond means the same there."""
    return max(-(2**31), min(int(value), 2**31 - 1))


def _output(output: Output, request: Request, params: CompiledSearch, tokenizer: Tokenizer | None) -> BeamSearchOutput:
    if output.error or any(completion.finish_reason in ("error", "abort") for completion in output.completions):
        raise RuntimeError(f"The beam search of prompt {request.position} ended: {output.error or 'it was cancelled'}")
    sequences = []
    for completion in output.completions:
        tokens = [*request.token_ids, *completion.token_ids]
        text = stop = None
        if completion.stop_string_index >= 0:
            stop = params.stop[completion.stop_string_index]
        elif completion.finish_reason == "stop" and not completion.is_complete:
            stop = params.stop_tokens.get(completion.token_ids[-1])
        if tokenizer is not None:
            text = tokenizer.decode(tokens, skip_special_tokens=params.skip_special_tokens)
        if tokenizer is not None and text is not None and stop is not None:
            before = tokenizer.decode(tokens[:-1], skip_special_tokens=params.skip_special_tokens)
            text = cut(text, len(before), stop, params.keeps_stop)
        assert completion.logprobs is not None
        logprobs = LazyLogprobs(completion.logprobs, tokenizer.token_text if tokenizer is not None else None)
        reason = None if stop is None else "stop"
        sequences.append(BeamSearchSequence(tokens, logprobs, completion.cumulative_logprob, text, reason, stop))
    return BeamSearchOutput(sequences)
