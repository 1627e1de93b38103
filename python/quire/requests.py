"""From prompts and parameters to requests the core can queue; everything wrong is found here, before any work.

Decides what is refused, with which message, and how vLLM's parameters read in the core's terms (end-of-sequence
ids, bad words, stop strings inside special tokens). It starts nothing. Called from the caller's thread; keeps no state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from numbers import Integral
from typing import Any

from quire.checked_prompts import CheckedPrompt, check_vocabulary, raise_first
from quire.deprecation import warn_deprecated
from quire.detokenizer import TextOptions
from quire.errors import ValidationError
from quire.grammars import Grammars
from quire.inputs import ParsedPrompt, parse_prompt
from quire.logits_processors import compile_processors, reads_params
from quire.sampling_params import RequestOutputKind, SamplingParams
from quire.structured import GuidedDecodingParams, constraint_of, guided_of_request
from quire.tokenizer import Tokenizer, bad_words_token_ids

# Fields of SamplingParams that the engine cannot serve yet, and what to do without them.
_NOT_SERVED = {
    "logprob_token_ids": "Use logprobs.",
    "prompt_logprob_token_ids": "Use prompt_logprobs.",
    "prompt_logprob_start": "Use prompt_logprobs, which starts with the second token.",
    "flat_logprobs": "Log-probabilities are kept flat and become dicts on access already.",
    "skip_reading_prefix_cache": "Use LLM(enable_prefix_caching=False).",
    "thinking_token_budget": "Use max_tokens.",
    "repetition_detection": "Use repetition_penalty.",
    "watermarking": "There is no watermarking.",
    "routed_experts_prompt_start": "There are no mixture-of-experts models.",
    "trace_decode_token_ids": "There is no tracing.",
}


@dataclass(frozen=True)
class Limits:
    """What a model allows."""

    vocab_size: int
    max_model_len: int
    max_logprobs: int
    eos_token_ids: frozenset[int]  # those the core stops at by itself
    by_priority: bool = False  # scheduling_policy="priority"


@dataclass(frozen=True)
class CompiledParams:
    """SamplingParams in the core's terms, and what turns a finished sequence into text."""

    engine: dict[str, Any]
    text: TextOptions
    # Special tokens that end the request because a stop string lies in their name.
    stop_tokens: Mapping[int, str]
    ignore_eos: bool
    needs_vocabulary: bool
    # Sequences to return: with best_of fewer than the core makes, those with the highest cumulative log-probability.
    num_outputs: int
    gives_logprobs: bool
    truncate_to: int | None
    output_kind: RequestOutputKind
    stream_interval: int


@dataclass
class Request(CheckedPrompt):
    """A valid request, or the error that takes its place."""

    text: str | None = None
    token_ids: list[int] = field(default_factory=list)
    params: CompiledParams | None = None
    priority: int = 0


def prepare(
    prompts: Sequence[Any],
    params: SamplingParams | Sequence[SamplingParams],
    tokenizer: Tokenizer | None,
    limits: Limits,
    *,
    on_error: str = "raise",
    first_position: int = 0,
    truncate_to: int | None = None,
    add_special_tokens: bool | None = None,
    priorities: Sequence[int] = (),
    grammars: Grammars | None = None,
) -> list[Request]:
    """One request a prompt. With on_error="raise" all that is wrong is raised, else it stands in its request."""
    check_on_error(on_error)
    each = list(params) if isinstance(params, (list, tuple)) else None
    if each is not None and len(each) != len(prompts):
        raise ValidationError(
            f"The lengths of prompts and params must be the same. Got {len(prompts)} prompts and {len(each)} params."
        )
    shared = compile_params(params, tokenizer, limits, grammars) if each is None else None
    requests = [Request(first_position + i, params=shared) for i in range(len(prompts))]
    for request, priority in zip(requests, priorities, strict=bool(priorities)):
        request.priority = priority
    if each is not None:
        _compile_each(requests, each, tokenizer, limits, grammars)
    parsed = _parse_all(requests, prompts)
    _tokenize_all(requests, parsed, tokenizer, add_special_tokens)
    for request in requests:
        last = request.params.truncate_to if request.params is not None and truncate_to is None else truncate_to
        if last is not None:
            request.token_ids = request.token_ids[-last:]
        if request.error is None:
            try:
                check_token_ids(request.token_ids, limits)
            except ValueError as error:
                request.fail(error)
    if on_error == "raise":
        raise_first(requests, numbered=len(requests) > 1 or first_position > 0)
    return requests


def check_on_error(on_error: str) -> None:
    if on_error not in ("raise", "return"):
        raise ValidationError(f"on_error must be 'raise' or 'return', got {on_error!r}")


def _compile_each(
    requests: list[Request],
    each: Sequence[SamplingParams],
    tokenizer: Tokenizer | None,
    limits: Limits,
    grammars: Grammars | None,
) -> None:
    compiled: dict[int, CompiledParams] = {}  # the same object is often given many times
    for request, params in zip(requests, each, strict=True):
        try:
            if id(params) not in compiled:
                compiled[id(params)] = compile_params(params, tokenizer, limits, grammars)
            request.params = compiled[id(params)]
        except (ValueError, TypeError, NotImplementedError, ImportError) as error:
            request.fail(error)


def _parse_all(requests: list[Request], prompts: Sequence[Any]) -> list[ParsedPrompt | None]:
    parsed: list[ParsedPrompt | None] = []
    for request, prompt in zip(requests, prompts, strict=True):
        try:
            if isinstance(prompt, Exception):  # a conversation that could not be rendered
                raise prompt
            parsed.append(prompt if isinstance(prompt, ParsedPrompt) else parse_prompt(prompt))
            request.text = parsed[-1].text if parsed[-1] else None
        except (ValueError, TypeError, NotImplementedError) as error:
            parsed.append(None)
            request.fail(error)
    return parsed


def _tokenize_all(
    requests: list[Request],
    parsed: list[ParsedPrompt | None],
    tokenizer: Tokenizer | None,
    add_special_tokens: bool | None,
) -> None:
    texts: dict[bool, list[tuple[Request, str]]] = {True: [], False: []}
    for request, prompt in zip(requests, parsed, strict=True):
        if prompt is None or request.error is not None:
            continue
        if prompt.token_ids is not None:
            request.token_ids = list(prompt.token_ids)
        elif tokenizer is None:
            request.error = ValidationError("You cannot pass text prompts when `skip_tokenizer_init` is True")
        else:
            add = prompt.add_special_tokens if add_special_tokens is None else add_special_tokens
            assert prompt.text is not None
            texts[add].append((request, prompt.text))
    for add, group in texts.items():
        if group and tokenizer is not None:
            encoded = tokenizer.encode_batch([text for _, text in group], add_special_tokens=add)
            for (request, _), ids in zip(group, encoded, strict=True):
                request.token_ids = ids


def check_token_ids(token_ids: Sequence[int], limits: Limits) -> None:
    check_vocabulary(token_ids, limits.vocab_size)
    if len(token_ids) >= limits.max_model_len:
        raise ValidationError(
            f"The decoder prompt (length {len(token_ids)}) is longer than the maximum model length of "
            f"{limits.max_model_len}. Make sure that `max_model_len` is no smaller than the number of text tokens. "
            "At least one token must be left to generate."
        )


def compile_params(
    params: SamplingParams | Any, tokenizer: Tokenizer | None, limits: Limits, grammars: Grammars | None = None
) -> CompiledParams:
    """Checks parameters against a model and writes them in the core's terms."""
    if not isinstance(params, SamplingParams):
        raise TypeError(f"sampling_params must be SamplingParams, or a list of them; got {type(params).__name__}")
    params.verify_submitted()
    constraint = constraint_of(params.guided_decoding) or constraint_of(params.structured_outputs)
    refuse_unserved(params)
    stop = [params.stop] if isinstance(params.stop, str) else list(params.stop or ())
    if stop and tokenizer is None:
        raise ValidationError("stop strings need a tokenizer; with `skip_tokenizer_init` use stop_token_ids.")
    logprobs = _num_logprobs("sample", params.logprobs, limits)
    num_outputs = params._real_n if params.best_of is not None and params._real_n else params.n
    stop_tokens = special_stop_tokens(params.skip_special_tokens, params.min_tokens, stop, tokenizer)
    engine: dict[str, Any] = {
        name: float(getattr(params, name))
        for name in ("presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p", "min_p")
    }
    for name in ("n", "top_k", "seed", "max_tokens", "min_tokens"):
        value = getattr(params, name)
        engine[name] = None if value is None else int(value)
    # Choosing the best needs what every sampled token cost.
    engine["logprobs"] = 0 if logprobs is None and num_outputs < params.n else logprobs
    engine["prompt_logprobs"] = _num_logprobs("prompt", params.prompt_logprobs, limits)
    engine["stop"] = stop
    engine["ignore_eos"] = bool(params.ignore_eos)
    engine["stop_token_ids"] = _all_stop_token_ids(params, stop_tokens, tokenizer, limits)
    engine["logit_bias"] = _logit_bias(params, limits)
    engine["allowed_token_ids"] = allowed_token_ids(params.allowed_token_ids, limits)
    engine["bad_words_token_ids"] = _bad_words(params, tokenizer, limits)
    for name in ("return_hidden_states", "return_logits"):
        engine[name] = getattr(params, name)
    if params.logits_processors:
        engine["logits_processors"] = compile_processors(params)
    if constraint is not None:
        grammars = grammars or Grammars(tokenizer, limits.vocab_size, sorted(limits.eos_token_ids), "auto")
        grammar = grammars.compile(constraint)
        engine["constraint"] = (grammar.backend, grammar)
    text = TextOptions(
        detokenize=params.detokenize,
        skip_special_tokens=params.skip_special_tokens,
        spaces_between_special_tokens=params.spaces_between_special_tokens,
        include_stop_str_in_output=params.include_stop_str_in_output,
        stop=tuple(stop),
    )
    return CompiledParams(
        engine,
        text,
        stop_tokens,
        ignore_eos=bool(params.ignore_eos),
        needs_vocabulary=bool(stop),
        num_outputs=int(num_outputs),
        gives_logprobs=logprobs is not None,
        truncate_to=params.truncate_prompt_tokens,
        output_kind=params.output_kind,
        stream_interval=int(params.stream_interval or 1),
    )


def refuse_unserved(params: SamplingParams) -> None:
    """NotImplementedError for a field that is set and would have no effect."""
    for name, instead in _NOT_SERVED.items():
        value = getattr(params, name)
        if value is not None and value is not False and not (isinstance(value, (list, dict)) and not value):
            raise NotImplementedError(f"SamplingParams.{name} is not supported by this version of quire. {instead}")
    if params.extra_args and not any(reads_params(one) for one in params.logits_processors or ()):
        raise NotImplementedError(
            f"SamplingParams.extra_args {sorted(map(str, params.extra_args))} would be read by nobody: they are for "
            "logits processors with a method new_req_logits_processor(params)."
        )


def _num_logprobs(which: str, wanted: int | None, limits: Limits) -> int | None:
    """How many log-probabilities a token; -1 is the whole vocabulary."""
    if wanted is None:
        return None
    number = limits.vocab_size if wanted == -1 else int(wanted)
    allowed = limits.vocab_size if limits.max_logprobs == -1 else min(limits.max_logprobs, limits.vocab_size)
    if number > allowed:
        raise ValidationError(
            f"Requested {which} logprobs of {number}, which is greater than max allowed: {allowed} "
            "(see LLM(max_logprobs=...))"
        )
    return number


def special_stop_tokens(
    skip_special_tokens: bool, min_tokens: int, stop: list[str], tokenizer: Tokenizer | None
) -> dict[int, str]:
    """Special tokens whose name, which shows with skip_special_tokens=False, contains a stop string.

    The core matches stop strings on the bytes of ordinary tokens. A special token that contains one always completes
    it, so it is a stop token; a stop string that reaches across the border of a special token is refused.
    """
    if tokenizer is None or skip_special_tokens or not stop:
        return {}
    found: dict[int, str] = {}
    for token_id, name in tokenizer.special_texts().items():
        for string in stop:
            if string in name:
                found.setdefault(token_id, string)
            elif name in string or _overlap(name, string) or _overlap(string, name):
                raise NotImplementedError(
                    f"The stop string {string!r} overlaps the special token {name!r}; with skip_special_tokens=False "
                    "this version of quire supports only stop strings inside one. Use stop_token_ids."
                )
    if found and min_tokens > 0:
        raise NotImplementedError(
            "A stop string inside a special token together with min_tokens is not supported by this version of quire. "
            "Use stop_token_ids."
        )
    return found


def _overlap(left: str, right: str) -> bool:
    """Whether a proper end of `left` is a proper beginning of `right`."""
    return any(left.endswith(right[:length]) for length in range(1, min(len(left), len(right))))


def _all_stop_token_ids(
    params: SamplingParams, stop_tokens: Mapping[int, str], tokenizer: Tokenizer | None, limits: Limits
) -> list[int]:
    ids = [int(token_id) for token_id in params.stop_token_ids or ()]
    out = [token_id for token_id in ids if not 0 <= token_id < limits.vocab_size]
    if out:
        raise ValidationError(f"stop_token_ids {out} are out of vocabulary. Vocabulary size: {limits.vocab_size}")
    eos = tokenizer.eos_token_id if tokenizer is not None else None
    if eos is not None and not params.ignore_eos and eos not in limits.eos_token_ids and eos < limits.vocab_size:
        ids.append(eos)
    return list(dict.fromkeys([*ids, *stop_tokens]))


def _logit_bias(params: SamplingParams, limits: Limits) -> list[tuple[int, float]]:
    if not params.logit_bias:
        return []
    bias = [(int(token_id), float(value)) for token_id, value in params.logit_bias.items()]
    out = [token_id for token_id, _ in bias if not 0 <= token_id < limits.vocab_size]
    if out:
        raise ValidationError(
            f"token_id(s) {out} in logit_bias contain out-of-vocab token ids. Vocabulary size: {limits.vocab_size}"
        )
    return bias


def allowed_token_ids(given: Sequence[int] | None, limits: Limits) -> list[int]:
    """As the core takes them: an empty list is all."""
    if given is None:
        return []
    ids = [int(token_id) for token_id in given]
    if not ids:
        raise ValidationError("allowed_token_ids is not None and empty!")
    if not all(0 <= token_id < limits.vocab_size for token_id in ids):
        raise ValidationError("allowed_token_ids contains out-of-vocab token id!")
    return ids


def _bad_words(params: SamplingParams, tokenizer: Tokenizer | None, limits: Limits) -> list[list[int]]:
    if not params.bad_words:
        return []
    if tokenizer is None:
        raise ValidationError("bad_words need a tokenizer; with `skip_tokenizer_init` use logit_bias.")
    words = bad_words_token_ids(tokenizer, params.bad_words)
    out = [token_id for word in words for token_id in word if not 0 <= token_id < limits.vocab_size]
    if out:
        raise ValidationError(
            f"The model vocabulary size is {limits.vocab_size}, but the following tokens were specified as bad: {out}. "
            "All token ids must be below it."
        )
    return words


def tokenization_options(options: Mapping[str, Any] | None) -> tuple[bool | None, int | None]:
    """(add_special_tokens, truncate_prompt_tokens) of tokenization_kwargs."""
    options = dict(options or {})
    add, truncate = options.pop("add_special_tokens", None), options.pop("truncate_prompt_tokens", None)
    if options:
        raise NotImplementedError(
            f"tokenization_kwargs {sorted(options)} are not supported; there are add_special_tokens and "
            "truncate_prompt_tokens."
        )
    if truncate is not None and (not isinstance(truncate, Integral) or isinstance(truncate, bool)):
        raise TypeError(f"truncate_prompt_tokens must be an integer, got {type(truncate).__name__}")
    if truncate is not None and truncate < 1:
        raise ValidationError(f"truncate_prompt_tokens must be >= 1, got {truncate}")
    return add, None if truncate is None else int(truncate)


def priorities_of(priority: Any, num_prompts: int, limits: Limits) -> list[int]:
    """One priority a prompt, from what a call was given: nothing, one for all, or one each (an empty list: all 0)."""
    if priority is None or (isinstance(priority, (list, tuple)) and not priority):
        return [0] * num_prompts
    given = list(priority) if isinstance(priority, (list, tuple)) else [priority] * num_prompts
    if len(given) != num_prompts:
        raise ValidationError(
            "The lengths of prompts and priority must be the same. "
            f"Got {num_prompts} prompts and {len(given)} priorities."
        )
    return [checked_priority(value, limits) for value in given]


def iter_priorities(priority: Any, limits: Limits) -> Iterator[int]:
    """The priorities of prompts that are read one by one: one for all, or at least one a prompt."""
    if not isinstance(priority, Iterable):
        return repeat(checked_priority(priority, limits))
    if isinstance(priority, (list, tuple)):  # what is there already is checked at once
        priority = [checked_priority(value, limits) for value in priority]

    def each() -> Iterator[int]:
        for value in priority:
            yield checked_priority(value, limits)
        raise ValidationError("The lengths of prompts and priority must be the same: there are more prompts.")

    return each()


def checked_priority(value: Any, limits: Limits) -> int:
    if value is None:
        return 0
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"priority must be an integer or a list of integers, got {value!r}")
    if value and not limits.by_priority:
        raise ValidationError(f"Got priority {value} but Priority scheduling is not enabled.")
    if not -(2**31) <= int(value) < 2**31:
        raise ValidationError(f"priority must fit in 32 bits, got {value}.")
    return int(value)


def refuse_call_features(
    num_prompts: int | None,
    lora_request: Any,
    mm_processor_kwargs: Any = None,
    prompt_adapter_request: Any = None,
) -> None:
    """Errors for the per-call features that this version lacks. `num_prompts` None: not known."""
    for lora in _one_each("lora_request", lora_request, num_prompts):
        if lora is not None:
            raise ValidationError(f"Got lora_request {lora} but LoRA is not enabled!")
    if mm_processor_kwargs:
        raise ValidationError(
            "mm_processor_kwargs: this model does not support multi-modal inputs (chat_template_kwargs go by keyword)"
        )
    if prompt_adapter_request is not None:
        raise NotImplementedError("prompt_adapter_request is not supported by this version of quire.")


def _one_each(name: str, value: Any, num_prompts: int | None) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        return [value]
    if name == "priority" and not value:
        return []  # all 0, as in vLLM
    if num_prompts is not None and len(value) != num_prompts:
        raise ValidationError(
            f"The lengths of prompts and {name} must be the same. Got {num_prompts} prompts and {len(value)}."
        )
    return value


def with_guided_options(params: Any, guided_options_request: Any, stacklevel: int = 4) -> Any:
    """The parameters of a call with the deprecated guided_options_request; the caller's objects stay as they are."""
    if guided_options_request is None:
        return params
    warn_deprecated("guided_options_request is deprecated, use SamplingParams.guided_decoding instead", stacklevel)
    guided = guided_of_request(guided_options_request)
    if guided is None:
        raise ValidationError(f"guided_options_request asks for nothing: {guided_options_request}")
    if isinstance(params, (list, tuple)):
        return [_guided(one, guided) for one in params]
    return _guided(params, guided)


def _guided(params: Any, guided: GuidedDecodingParams) -> Any:
    if not isinstance(params, SamplingParams):
        return params  # compile_params says what it should be
    if params.guided_decoding is not None or params.structured_outputs is not None:
        raise ValidationError("Cannot set both guided_options_request and params.guided_decoding.")
    params = params.clone() if not params.skip_clone else dataclasses.replace(params)
    params.guided_decoding = guided
    return params
