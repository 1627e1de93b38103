"""How the next tokens of a request are chosen and when it ends: the parameter types, as vLLM spells them.

Decides defaults, order, validation and messages (those of vLLM 0.8.4; the newer spellings are accepted too). It does
not know which fields the engine can serve: that is decided at submission, in requests.py. Plain values, any thread.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from numbers import Integral, Real
from typing import Any

from quire._logging import logger
from quire.structured import GuidedDecodingParams, StructuredOutputsParams

__all__ = [
    "BeamSearchParams",
    "GuidedDecodingParams",
    "LogitsProcessor",
    "RepetitionDetectionParams",
    "RequestOutputKind",
    "SamplingParams",
    "SamplingType",
    "StructuredOutputsParams",
]

GREEDY_BELOW = 1e-5
_MIN_RANDOM_TEMPERATURE = 1e-2

LogitsProcessor = Callable[..., Any]


class SamplingType(IntEnum):
    GREEDY = 0
    RANDOM = 1
    RANDOM_SEED = 2


class RequestOutputKind(Enum):
    """What an iteration over a request's outputs yields: all so far, what is new, or the end alone."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass
class RepetitionDetectionParams:
    """When a text that repeats a pattern of tokens shall end."""

    max_pattern_size: int = 0
    min_pattern_size: int = 0
    min_count: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.min_pattern_size <= self.max_pattern_size:
            raise ValueError(
                "max_pattern_size, min_pattern_size must be >=0, with min_pattern_size <= max_pattern_size. Set both "
                "to 0 to disable repetitive pattern detection."
            )
        if self.max_pattern_size > 0 and self.min_count < 2:
            raise ValueError(
                "min_count must be >= 2 to detect repetitive patterns in engine output. If you do not wish to detect "
                "repetitive patterns, set max_pattern_size to 0."
            )


def _type_name(value: object) -> str:
    return type(value).__name__


@dataclass(repr=False)
class SamplingParams:
    """Parameters of text generation, call for call those of vLLM.

    `output_kind` concerns `LLM.stream` and `LLM.generate_iter`; `generate` and `chat` return final outputs whatever it
    says. Its default, CUMULATIVE, stands for what each of them does by itself. `output_text_buffer_length` is carried
    for compatibility and decides nothing.
    """

    n: int = 1
    best_of: int | None = None
    _real_n: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    logits_processors: list[LogitsProcessor] | None = None
    include_stop_str_in_output: bool = False
    truncate_prompt_tokens: int | None = None
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    output_text_buffer_length: int = 0
    _all_stop_token_ids: set[int] = field(default_factory=set)
    guided_decoding: GuidedDecodingParams | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    extra_args: dict[str, Any] | None = None
    bad_words: list[str] | None = None
    _bad_words_token_ids: list[list[int]] | None = None
    # Newer than 0.8.4, by keyword only.
    structured_outputs: StructuredOutputsParams | None = field(default=None, kw_only=True)
    logprob_token_ids: list[int] | None = field(default=None, kw_only=True)
    prompt_logprob_token_ids: list[int] | None = field(default=None, kw_only=True)
    prompt_logprob_start: int | None = field(default=None, kw_only=True)
    flat_logprobs: bool = field(default=False, kw_only=True)
    stream_interval: int | None = field(default=None, kw_only=True)
    skip_clone: bool = field(default=False, kw_only=True)
    skip_reading_prefix_cache: bool | None = field(default=None, kw_only=True)
    thinking_token_budget: int | None = field(default=None, kw_only=True)
    repetition_detection: Any = field(default=None, kw_only=True)
    watermarking: Any = field(default=None, kw_only=True)
    routed_experts_prompt_start: int | None = field(default=None, kw_only=True)
    trace_decode_token_ids: list[int] | None = field(default=None, kw_only=True)
    # quire's own.
    return_hidden_states: bool = field(default=False, kw_only=True)
    return_logits: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.best_of:
            if self.best_of < self.n:
                raise ValueError(
                    f"best_of must be greater than or equal to n, got n={self.n} and best_of={self.best_of}."
                )
            if not self._real_n:
                self._real_n = self.n
                self.n = self.best_of
        if isinstance(self.temperature, Real) and 0 < self.temperature < _MIN_RANDOM_TEMPERATURE:
            logger.warning(
                "temperature %s is less than %s, which may cause numerical errors; it is set to %s.",
                self.temperature,
                _MIN_RANDOM_TEMPERATURE,
                _MIN_RANDOM_TEMPERATURE,
            )
            self.temperature = _MIN_RANDOM_TEMPERATURE
        if self.seed == -1:
            self.seed = None
        self._normalize_lists()
        self.logprobs = 1 if self.logprobs is True else self.logprobs
        self.prompt_logprobs = 1 if self.prompt_logprobs is True else self.prompt_logprobs
        if self.thinking_token_budget == -1:
            self.thinking_token_budget = None
        if self.routed_experts_prompt_start == 0:  # the default of vLLM: nothing is left out
            self.routed_experts_prompt_start = None
        if self.stop and not self.include_stop_str_in_output:
            self.output_text_buffer_length = max(len(text) for text in self.stop) - 1
        self.verify()
        if self.temperature < GREEDY_BELOW:
            self.top_p, self.top_k, self.min_p = 1.0, -1, 0.0
            self._verify_greedy()
        self._all_stop_token_ids.update(self.stop_token_ids or ())

    def _normalize_lists(self) -> None:
        self.stop = [self.stop] if isinstance(self.stop, str) else list(self.stop or ())
        for text in self.stop:
            if not isinstance(text, str):
                raise TypeError(f"stop must be a string or a list of strings, got an entry of type {_type_name(text)}")
        self.stop_token_ids = int_list("stop_token_ids", self.stop_token_ids or ())
        if isinstance(self.bad_words, str):
            raise TypeError("bad_words must be a list of strings, got a string")
        self.bad_words = list(self.bad_words or ())
        for word in self.bad_words:
            if not isinstance(word, str):
                raise TypeError(f"bad_words must be a list of strings, got an entry of type {_type_name(word)}")
            if not word.strip():
                raise ValueError(f"bad_words cannot contain an empty string. Got bad_words={self.bad_words}")

    def verify(self) -> None:
        """Checks the values; called at construction and, because fields may be assigned later, at submission."""
        if self.best_of is not None and (not isinstance(self.best_of, Integral) or isinstance(self.best_of, bool)):
            raise ValueError(f"best_of must be an integer, got {type(self.best_of)}")
        if self.best_of is not None and self.best_of < 1:
            raise ValueError(f"best_of must be at least 1, got {self.best_of}")
        if not isinstance(self.n, Integral) or isinstance(self.n, bool):
            raise ValueError(f"n must be an int, but is of type {type(self.n)}")
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}.")
        self._verify_distribution()
        self._verify_lengths()
        self._verify_logprobs()
        self._verify_forms()
        if self.stop_token_ids is not None:
            int_list("stop_token_ids", self.stop_token_ids)
        if any(not text for text in self.stop or ()):
            raise ValueError("stop cannot contain an empty string.")
        if self.stop and not self.detokenize:
            raise ValueError(
                "stop strings are only supported when detokenize is True. Set detokenize=True to use stop."
            )
        if self.best_of not in (None, self._real_n) and self.output_kind == RequestOutputKind.DELTA:
            raise ValueError("best_of must equal n to use output_kind=DELTA")

    def _verify_forms(self) -> None:
        if not isinstance(self.output_kind, RequestOutputKind):
            raise TypeError(f"output_kind must be a RequestOutputKind, got {self.output_kind!r}")
        for name in ("return_hidden_states", "return_logits"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, got {_type_name(getattr(self, name))}")
        if self.extra_args is not None and not isinstance(self.extra_args, Mapping):
            raise TypeError(f"extra_args must be a dict, got {_type_name(self.extra_args)}")
        if self.logit_bias is not None and not isinstance(self.logit_bias, Mapping):
            raise TypeError(f"logit_bias must be a dict of token ids to numbers, got {_type_name(self.logit_bias)}")
        if self.guided_decoding is not None and self.structured_outputs is not None:
            raise ValueError("Cannot set both guided_decoding and structured_outputs; they are names of one thing.")
        budget = self.thinking_token_budget
        if budget is not None and (not isinstance(budget, Integral) or isinstance(budget, bool) or budget < 0):
            raise ValueError("`thinking_token_budget` must be a non-negative integer or -1 for unlimited.")

    def _verify_distribution(self) -> None:
        for name in ("presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p", "min_p"):
            value = getattr(self, name)
            if not isinstance(value, Real) or isinstance(value, bool):
                raise TypeError(f"{name} must be a number, got {_type_name(value)}")
        if not -2.0 <= self.presence_penalty <= 2.0:
            raise ValueError(f"presence_penalty must be in [-2, 2], got {self.presence_penalty}.")
        if not -2.0 <= self.frequency_penalty <= 2.0:
            raise ValueError(f"frequency_penalty must be in [-2, 2], got {self.frequency_penalty}.")
        if not 0.0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty must be greater than zero, got {self.repetition_penalty}.")
        if not 0.0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be non-negative, got {self.temperature}.")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}.")
        if not isinstance(self.top_k, Integral) or isinstance(self.top_k, bool):
            raise TypeError(f"top_k must be an integer, got {_type_name(self.top_k)}")
        if self.top_k < -1:  # 0 disables it too, as in newer versions of vLLM
            raise ValueError(f"top_k must be -1 (disable), or at least 1, got {self.top_k}.")
        if not 0.0 <= self.min_p <= 1.0:
            raise ValueError(f"min_p must be in [0, 1], got {self.min_p}.")

    def _verify_lengths(self) -> None:
        for name in ("seed", "max_tokens", "min_tokens", "truncate_prompt_tokens", "stream_interval"):
            value = getattr(self, name)
            if name != "min_tokens" and value is None:
                continue
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise TypeError(f"{name} must be an integer, got {_type_name(value)}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}.")
        if self.min_tokens < 0:
            raise ValueError(f"min_tokens must be greater than or equal to 0, got {self.min_tokens}.")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens must be less than or equal to max_tokens={self.max_tokens}, got {self.min_tokens}."
            )
        if self.truncate_prompt_tokens is not None and self.truncate_prompt_tokens < 1:
            raise ValueError(f"truncate_prompt_tokens must be >= 1, got {self.truncate_prompt_tokens}")
        if self.stream_interval is not None and self.stream_interval < 1:
            raise ValueError(f"stream_interval must be at least 1, got {self.stream_interval}.")

    def _verify_logprobs(self) -> None:
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is None or value is True:
                continue
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise TypeError(f"{name} must be an integer, got {_type_name(value)}")
            if value < -1:  # -1: of the whole vocabulary, as in newer versions of vLLM
                raise ValueError(f"{name} must be non-negative, got {value}.")

    def _verify_greedy(self) -> None:
        if self.n > 1:
            raise ValueError(f"n must be 1 when using greedy sampling, got {self.n}.")

    def verify_submitted(self) -> None:
        """The checks of a finished object, as after construction."""
        self._normalize_lists()
        self.verify()
        if self.temperature < GREEDY_BELOW:
            self._verify_greedy()

    @staticmethod
    def from_optional(
        n: int | None = 1,
        best_of: int | None = None,
        presence_penalty: float | None = 0.0,
        frequency_penalty: float | None = 0.0,
        repetition_penalty: float | None = 1.0,
        temperature: float | None = 1.0,
        top_p: float | None = 1.0,
        top_k: int = -1,
        min_p: float = 0.0,
        seed: int | None = None,
        stop: str | list[str] | None = None,
        stop_token_ids: list[int] | None = None,
        bad_words: list[str] | None = None,
        include_stop_str_in_output: bool = False,
        ignore_eos: bool = False,
        max_tokens: int | None = 16,
        min_tokens: int = 0,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        detokenize: bool = True,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        logits_processors: list[LogitsProcessor] | None = None,
        truncate_prompt_tokens: int | None = None,
        output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE,
        guided_decoding: GuidedDecodingParams | None = None,
        logit_bias: Mapping[int, float] | Mapping[str, float] | None = None,
        allowed_token_ids: list[int] | None = None,
        extra_args: dict[str, Any] | None = None,
        **newer: Any,
    ) -> SamplingParams:
        """Takes None for "the default", string keys in logit_bias, and clamps its values to [-100, 100].

        The order is that of vLLM 0.8.4; `newer` are the keyword-only fields.
        """
        given = {name: value for name, value in locals().items() if name not in ("newer", "logit_bias")}
        defaults = {"n": 1, "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}
        for name, default in {**defaults, "temperature": 1.0, "top_p": 1.0}.items():
            given[name] = default if given[name] is None else given[name]
        return SamplingParams(**given, logit_bias=_clamped(logit_bias), **newer)

    def update_from_generation_config(
        self,
        generation_config: Mapping[str, Any],
        model_eos_token_id: int | None = None,
        *,
        eos_token_id: int | None = None,
    ) -> None:
        """Takes the end-of-sequence ids of a generation config. `generate` does so by itself, on its own copy.

        `model_eos_token_id` (newer: `eos_token_id`) is the tokenizer's, which ends a request anyway.
        """
        primary = model_eos_token_id if eos_token_id is None else eos_token_id
        if primary is not None:
            self._all_stop_token_ids.add(primary)
        ids = generation_config.get("eos_token_id")
        if ids is None:
            return
        others = [one for one in ([ids] if isinstance(ids, int) else ids) if one != primary]
        self._all_stop_token_ids.update(others)
        if not self.ignore_eos:
            self.stop_token_ids = list(dict.fromkeys([*(self.stop_token_ids or ()), *others]))

    def update_from_tokenizer(self, tokenizer: Any) -> None:
        """Spells bad_words in the tokens of a transformers tokenizer. `generate` does so by itself."""
        if not self.bad_words:
            return
        from quire.tokenizer import bad_words_token_ids

        self._bad_words_token_ids = bad_words_token_ids(tokenizer, self.bad_words)

    @property
    def sampling_type(self) -> SamplingType:
        if self.temperature < GREEDY_BELOW:
            return SamplingType.GREEDY
        return SamplingType.RANDOM if self.seed is None else SamplingType.RANDOM_SEED

    @property
    def all_stop_token_ids(self) -> set[int]:
        return self._all_stop_token_ids

    @property
    def bad_words_token_ids(self) -> list[list[int]] | None:
        return self._bad_words_token_ids

    def clone(self) -> SamplingParams:
        """A deep copy, but logits processors are shared unless they have a `clone` of their own."""
        if self.skip_clone:
            return self
        processors = self.logits_processors
        memo: dict[int, Any] = {}
        for processor in processors or ():
            memo[id(processor)] = processor.clone() if hasattr(processor, "clone") else processor
        return copy.deepcopy(self, memo)

    def __repr__(self) -> str:
        return f"SamplingParams({', '.join(f'{name}={getattr(self, name)!r}' for name in _REPR_FIELDS)})"


_REPR_FIELDS = (
    "n presence_penalty frequency_penalty repetition_penalty temperature top_p top_k min_p seed stop stop_token_ids "
    "bad_words include_stop_str_in_output ignore_eos max_tokens min_tokens logprobs prompt_logprobs "
    "skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens guided_decoding extra_args"
).split()


def _clamped(logit_bias: Mapping[Any, float] | None) -> dict[int, float] | None:
    if logit_bias is None:
        return None
    bias, invalid = {}, []
    for token, value in logit_bias.items():
        try:
            bias[int(token)] = min(100.0, max(-100.0, value))
        except (ValueError, TypeError):
            invalid.append(token)
    if invalid:
        raise ValueError(f"logit_bias contains key(s) that cannot be converted to integer token IDs: {invalid!r}")
    return bias


def int_list(name: str, values: Sequence[int] | Any) -> list[int]:
    if isinstance(values, (str, bytes, Mapping)):
        raise TypeError(f"{name} must be a list of integers, got {_type_name(values)}")
    result = list(values)
    for value in result:
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f"{name} must be a list of integers, got an entry of type {_type_name(value)}")
    return result


@dataclass
class BeamSearchParams:
    """Parameters of `LLM.beam_search`; docs/decoding.md tells the search.

    The text of a sequence always has its stop token, as in vLLM; `include_stop_str_in_output` concerns the strings of
    `stop`. Sequences are ranked by log-probabilities before temperature, so `temperature` decides nothing.
    `skip_special_tokens` None: the text has them (vLLM 0.8). The last three are quire's own.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False
    structured_outputs: StructuredOutputsParams | None = field(default=None, kw_only=True)
    skip_special_tokens: bool | None = field(default=None, kw_only=True)
    watermarking: Any = field(default=None, kw_only=True)
    allowed_token_ids: list[int] | None = field(default=None, kw_only=True)
    stop_token_ids: list[int] | None = field(default=None, kw_only=True)
    stop: str | list[str] | None = field(default=None, kw_only=True)
    length_includes_prompt: bool = field(default=True, kw_only=True)
