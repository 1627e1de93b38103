"""From prompts and parameters to pooling requests; what can be seen without a tokenizer is refused here.

Decides what a prompt of a pooling model may be (a pair of texts and token types too), and how PoolingParams read in the
core's terms. Starts nothing; keeps no state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, NamedTuple

from quire import tasks
from quire.checked_prompts import CheckedPrompt, check_vocabulary
from quire.errors import ValidationError
from quire.inputs import is_token_ids, parse_prompt
from quire.pooling_params import PoolingParams, verify_dimensions
from quire.sentence_files import NO_PREFIX, Prefix

_NOT_SERVED = {
    "additional_data": "No plug-in reads it.",
    "step_tag_id": "Set it in PoolerConfig.",
    "returned_token_ids": "Set them in PoolerConfig.",
}


class Pair(NamedTuple):
    """Two texts that a cross-encoder reads at once."""

    first: str
    second: str


@dataclass
class PoolingRequest(CheckedPrompt):
    """One prompt: text or a pair of texts to tokenise, or token ids; or the error that takes its place."""

    text: str | Pair | None = None
    token_ids: list[int] = field(default_factory=list)
    token_type_ids: list[int] | None = None
    params: dict[str, Any] = field(default_factory=dict)
    truncate_to: int | None = None
    left_out: str = ""  # what `text` begins with and the pooler leaves out


@dataclass(frozen=True)
class PoolingLimits:
    """What a pooling model allows."""

    model: str
    task: str
    vocab_size: int
    max_model_len: int
    config: Mapping[str, Any]


def prepare(
    prompts: Sequence[Any],
    params: PoolingParams | Sequence[PoolingParams] | None,
    limits: PoolingLimits,
    pooling_task: str | None,
    truncate_to: int | None,
    prefix: Prefix = NO_PREFIX,
) -> list[PoolingRequest]:
    """One request a prompt, with what is wrong with it. Texts get `prefix`."""
    each: list[Any] | None = list(params) if isinstance(params, (list, tuple)) else None
    if each is not None and len(each) != len(prompts):
        raise ValidationError(
            f"The lengths of prompts and params must be the same. Got {len(prompts)} prompts and {len(each)} params."
        )
    given: Any = PoolingParams() if params is None else params
    shared = None if each is not None else compile_params(given, limits, pooling_task)
    requests = []
    for position, prompt in enumerate(prompts):
        request = PoolingRequest(position, truncate_to=truncate_to)
        try:
            own = shared if each is None else compile_params(each[position], limits, pooling_task)
            assert own is not None
            request.params = own[0]
            request.truncate_to = truncate_to if own[1] is None else own[1]
            _parse(prompt, request, prefix)
        except (ValueError, TypeError, NotImplementedError) as error:
            request.fail(error)
        requests.append(request)
    return requests


def compile_params(
    params: PoolingParams, limits: PoolingLimits, pooling_task: str | None
) -> tuple[dict[str, Any], int | None]:
    """(PoolingParams of the core, truncate_prompt_tokens)."""
    if not isinstance(params, PoolingParams):
        raise TypeError(f"pooling_params must be PoolingParams, or a list of them; got {type(params).__name__}")
    for name, instead in _NOT_SERVED.items():
        if getattr(params, name) is not None:
            raise NotImplementedError(f"PoolingParams.{name} is not supported by this version of quire. {instead}")
    if params.task is not None and pooling_task not in (None, params.task):
        raise ValidationError(f"pooling_task={pooling_task!r} and PoolingParams.task={params.task!r} contradict.")
    verify_dimensions(params.dimensions, limits.model, limits.config)
    engine: dict[str, Any] = dict(_of_task(pooling_task or params.task, limits.task))
    if params.dimensions is not None:
        engine["dimensions"] = int(params.dimensions)
    if params.use_activation is not None:
        engine["use_activation"] = bool(params.use_activation)
    if params.use_activation is False and tasks.is_matryoshka(limits.config):
        raise ValidationError(
            "`normalize` must be enabled (set to True) for models that are compatible with Matryoshka Representation."
        )
    truncate = params.truncate_prompt_tokens
    return engine, None if truncate is None else checked_truncation(truncate, limits.max_model_len)


def _of_task(pooling_task: str | None, task: str) -> dict[str, Any]:
    """What a model that was loaded for `task` has to do differently for `pooling_task`."""
    ways: dict[str, dict[str, Any]] = {task: {}}
    ways["token_embed"] = {"pooling_type": "ALL", "without_head": task != "embed"}
    ways["encode"] = ways["token_embed"]
    if task == "score":
        ways["classify"] = {}
    if task != "embed":
        ways["token_classify"] = {"pooling_type": "ALL"} if task != "reward" else {}
    if pooling_task is None:
        return {}
    if pooling_task not in ways:
        raise ValidationError(
            f"Unsupported pooling task: {pooling_task!r}. Supported tasks of this model: {sorted(ways)}",
            parameter="pooling_task",
            value=pooling_task,
        )
    return ways[pooling_task]


def checked_truncation(value: Any, max_model_len: int) -> int:
    """truncate_prompt_tokens as a number of tokens; -1 is all that the model reads."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"truncate_prompt_tokens must be an integer, got {type(value).__name__}")
    value = int(value)
    if value == -1:
        return max_model_len
    if value < 1:
        raise ValidationError(f"truncate_prompt_tokens must be >= 1 (or -1 for max_model_len), got {value}")
    if value > max_model_len:
        raise ValidationError(
            f"truncate_prompt_tokens value ({value}) is greater than max_model_len ({max_model_len}). Please, select a "
            "smaller truncation size."
        )
    return value


def _parse(prompt: Any, request: PoolingRequest, prefix: Prefix) -> None:
    if isinstance(prompt, Exception):
        raise prompt
    types = None
    if isinstance(prompt, Pair):
        request.text = prompt
        return
    if isinstance(prompt, Mapping) and prompt.get("token_type_ids") is not None:
        types = prompt["token_type_ids"]
        prompt = {key: value for key, value in prompt.items() if key != "token_type_ids"}
        if prompt.get("prompt_token_ids") is None or not is_token_ids(types):
            raise ValidationError("token_type_ids must be a list of integers beside prompt_token_ids")
    parsed = parse_prompt(prompt)
    if parsed.token_ids is not None:
        request.token_ids = list(parsed.token_ids)
    elif parsed.text is not None:
        request.text = prefix.text + parsed.text
        request.left_out = "" if prefix.is_pooled else prefix.text
    if types is not None:
        request.token_type_ids = [int(one) for one in types]
        if len(request.token_type_ids) != len(request.token_ids):
            raise ValidationError(
                f"token_type_ids has {len(request.token_type_ids)} entries for {len(request.token_ids)} tokens"
            )


def check_token_ids(request: PoolingRequest, limits: PoolingLimits) -> None:
    """After tokenisation: what the model cannot read or pool."""
    ids = request.token_ids
    check_vocabulary(ids, limits.vocab_size)
    if len(ids) > limits.max_model_len:
        raise ValidationError(
            f"The decoder prompt (length {len(ids)}) is longer than the maximum model length of "
            f"{limits.max_model_len}. Make sure that `max_model_len` is no smaller than the number of text tokens, or "
            "cut it with truncate_prompt_tokens."
        )
    if ids and request.params.get("num_skipped_tokens", 0) >= len(ids):
        raise ValidationError(
            f"Nothing is left to pool: all {len(ids)} tokens are of the instruction {request.left_out!r}, which this "
            "model leaves out (include_prompt is false)"
        )
