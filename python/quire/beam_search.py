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
from quire.errors import ValidationError, not_supported
from quire.outputs import LazyLogprobs, Logprob
from quire.progress import Progress
from quire.requests import Limits, Request, prepare
from quire.sampling_params import BeamSearchParams, SamplingParams, int_list
from quire.tokenizer import Tokenizer

if TYPE_CHECKING:
    from quire._quire import Engine, Output

_NOT_SERVED = {
    "structured_outputs": "Check the sequences and search with a larger beam_width.",
    "watermarking": "There is no watermarking.",
    "allowed_token_ids": "SamplingParams has it, for generate.",
}


@dataclass
class BeamSearchSequence:
    """A sequence that was found. `tokens` and `text` begin with the prompt; `logprobs` are of the generated tokens."""

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
    use_tqdm: bool | Callable[..., Any] = False,
    concurrency_limit: int | None = None,
) -> list[BeamSearchOutput]:
    """Searches for all prompts, at most concurrency_limit of them at a time; the outputs come in their order."""
    values = compile_params(params, tokenizer, limits)
    if concurrency_limit is not None and (not isinstance(concurrency_limit, Integral) or concurrency_limit < 1):
        raise ValidationError(f"concurrency_limit must be a positive integer or None, got {concurrency_limit!r}")
    requests = prepare(prompts, SamplingParams(max_tokens=1), tokenizer, limits)
    outputs: dict[int, BeamSearchOutput] = {}
    size = len(requests) if concurrency_limit is None else int(concurrency_limit)
    with Progress(use_tqdm, len(requests), "Beam search") as progress:
        for begin in range(0, len(requests), max(size, 1)):
            batch = requests[begin : begin + size]
            with runner.Waiting(engine) as waiting:
                queued = dict(zip(waiting.submit_beam_search(batch, values), batch, strict=True))
                while len(waiting):
                    for raw in waiting.run():
                        request = queued[raw.request_id]
                        outputs[request.position] = _output(raw, request, params, tokenizer)
                        num_tokens = sum(len(completion.token_ids) for completion in raw.completions)
                        progress.count(1, len(request.token_ids), num_tokens)
    return [outputs[request.position] for request in requests]


def compile_params(params: BeamSearchParams | Any, tokenizer: Tokenizer | None, limits: Limits) -> dict[str, Any]:
    """The parameters in the core's terms. The core checks ranges."""
    if not isinstance(params, BeamSearchParams):
        raise TypeError(f"params must be BeamSearchParams, got {type(params).__name__}")
    for name, instead in _NOT_SERVED.items():
        if getattr(params, name) is not None:
            raise not_supported(f"BeamSearchParams.{name}", instead)
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
    stop = [int(token_id) for token_id in int_list("stop_token_ids", params.stop_token_ids or ())]
    eos = tokenizer.eos_token_id if tokenizer is not None else None
    if eos is not None and not params.ignore_eos and eos not in limits.eos_token_ids and eos < limits.vocab_size:
        stop.append(eos)
    return {
        "beam_width": _in_32_bits(params.beam_width),
        "max_tokens": _in_32_bits(params.max_tokens),
        "ignore_eos": bool(params.ignore_eos),
        "stop_token_ids": list(dict.fromkeys(stop)),
        "length_penalty": float(params.length_penalty),
        "length_includes_prompt": bool(params.length_includes_prompt),
    }


def _in_32_bits(value: int) -> int:
    """As large as the core's integers allow; what is beyond means the same there."""
    return max(-(2**31), min(int(value), 2**31 - 1))


def _output(
    output: Output, request: Request, params: BeamSearchParams, tokenizer: Tokenizer | None
) -> BeamSearchOutput:
    if output.error or any(completion.finish_reason in ("error", "abort") for completion in output.completions):
        raise RuntimeError(f"The beam search of prompt {request.position} ended: {output.error or 'it was cancelled'}")
    sequences = []
    for completion in output.completions:
        tokens = [*request.token_ids, *completion.token_ids]
        text = None
        if tokenizer is not None:
            text = tokenizer.decode(tokens, skip_special_tokens=bool(params.skip_special_tokens))
        assert completion.logprobs is not None
        logprobs = LazyLogprobs(completion.logprobs, tokenizer.token_text if tokenizer is not None else None)
        sequences.append(BeamSearchSequence(tokens, logprobs, completion.cumulative_logprob, text))
    return BeamSearchOutput(sequences)
