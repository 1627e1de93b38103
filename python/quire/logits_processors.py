"""Logits processors of a request: a caller's functions in the form that the core calls.

Decides what a function is called with. Two historic signatures, told apart by the number of positional parameters:
(output token ids, logits) and (prompt token ids, output token ids, logits). Logits come as a float32 numpy array or,
where the function asks for it, as a torch tensor; they are changed in place or returned. An object with vLLM's
`new_req_logits_processor(params)` makes a function for each request, from its parameters. Called by the engine, on the
thread that waits for results.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from quire.errors import ValidationError

if TYPE_CHECKING:
    from quire.sampling_params import SamplingParams

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Processor:
    """One function as the core calls it. A fresh array each time: the function may keep it."""

    def __init__(self, function: Callable[..., Any], position: int) -> None:
        where = f"logits_processors[{position}]"
        if not callable(function):
            raise TypeError(f"{where} must be callable, got {type(function).__name__}")
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError) as error:
            raise ValidationError(f"{where} has no signature to read: {error}. Wrap it in a function.") from error
        needed = [one for one in parameters if one.kind in _POSITIONAL and one.default is one.empty]
        at_most = sum(one.kind in _POSITIONAL for one in parameters)
        if any(one.kind is one.VAR_POSITIONAL for one in parameters):
            at_most = max(at_most, 2)
        if len(needed) > 3 or at_most < 2:
            raise ValidationError(
                f"{where} must take (output_token_ids, logits) or (prompt_token_ids, output_token_ids, logits); "
                f"its signature is {inspect.signature(function)}"
            )
        self.wants_prompt = at_most >= 3 if len(needed) < 2 else len(needed) == 3
        self._function = function
        self._wants_torch = wants_torch(function, parameters)

    def __call__(self, prompt: list[int] | None, output: list[int], logits: Any) -> Any:
        row = logits
        if self._wants_torch:
            import torch

            row = torch.from_numpy(logits)
        result = self._function(prompt, output, row) if self.wants_prompt else self._function(output, row)
        return None if result is None or result is row else _array(result, len(logits))


def _array(result: Any, num_logits: int) -> Any:
    if hasattr(result, "detach"):  # a tensor; of any device and dtype
        result = result.detach().float().cpu().numpy()
    array = np.asarray(result)
    if array.shape != (num_logits,) or array.dtype.kind not in "fiu":
        raise ValueError(
            f"a logits processor must return its {num_logits} logits or None, got {array.dtype} of shape {array.shape}"
        )
    return np.ascontiguousarray(array, dtype=np.float32)


def wants_torch(function: Any, parameters: Iterable[inspect.Parameter]) -> bool:
    """Whether a parameter is annotated with torch.Tensor, or the function has a true attribute `wants_torch`."""
    marked = getattr(function, "wants_torch", None)
    if marked is not None:
        return bool(marked)
    return any(_is_tensor(one.annotation) for one in parameters)


def _is_tensor(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return annotation.split(".")[-1] in ("Tensor", "FloatTensor")
    return getattr(annotation, "__module__", "") == "torch" and "Tensor" in getattr(annotation, "__name__", "")


def compile_processors(params: SamplingParams) -> list[Processor]:
    """The processors of a request, in their order."""
    given = params.logits_processors or ()
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"logits_processors must be a list of callables, got {type(given).__name__}")
    functions = [_of_request(one, params, position) for position, one in enumerate(given)]
    return [Processor(one, position) for position, one in enumerate(functions) if one is not None]


def reads_params(processor: Any) -> bool:
    """Whether it is made for each request, from its parameters; that is where extra_args can be read."""
    return hasattr(processor, "new_req_logits_processor")


def _of_request(processor: Any, params: SamplingParams, position: int) -> Any:
    """The function for a request; None: the request is none of its business."""
    if not reads_params(processor):
        return processor
    if isinstance(processor, type):
        raise TypeError(f"logits_processors[{position}] must be an object, got the class {processor.__name__}")
    own = params.clone()  # what it does to its parameters changes nobody's
    if hasattr(processor, "validate_params"):
        processor.validate_params(own)
    return processor.new_req_logits_processor(own)
