"""The methods of vLLM's LLM that begin with an underscore and that programs call all the same.

Decides their signatures alone: a request is queued as `enqueue` queues it, and run as `wait_for_completion` runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from quire.requests import refuse_call_features

if TYPE_CHECKING:
    from quire.outputs import RequestOutput
    from quire.sampling_params import SamplingParams


class InternalMethods:
    """Mixed into LLM."""

    if TYPE_CHECKING:

        def enqueue(self, prompts: Any, sampling_params: Any = None, *args: Any, **kwargs: Any) -> list[str]: ...
        def wait_for_completion(self, *, use_tqdm: bool | Callable[..., Any] = True) -> list[RequestOutput]: ...
        def _with_guided_options(self, params: Any, guided_options_request: Any) -> Any: ...

    def _add_request(
        self,
        prompt: Any,
        params: SamplingParams,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        priority: int = 0,
        *,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Queues one prompt; returns its request id."""
        refuse_call_features(1, lora_request, None, prompt_adapter_request)
        (name,) = self.enqueue(
            [prompt], params, priority=[priority] if priority else None, tokenization_kwargs=tokenization_kwargs
        )
        return name

    def _validate_and_add_requests(
        self,
        prompts: Any,
        params: SamplingParams | Sequence[SamplingParams],
        *,
        use_tqdm: bool | Callable[..., Any] = False,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        guided_options: Any = None,
        priority: Any = None,
    ) -> None:
        """Checks all prompts, then queues them. Nothing is shown, whatever use_tqdm says."""
        refuse_call_features(None, lora_request, None, prompt_adapter_request)
        params = self._with_guided_options(params, guided_options)
        self.enqueue(prompts, params, priority=priority, tokenization_kwargs=tokenization_kwargs)

    def _run_engine(self, *, use_tqdm: bool | Callable[..., Any] = True) -> list[RequestOutput]:
        """The outputs of all that was queued, in that order."""
        return self.wait_for_completion(use_tqdm=use_tqdm)
