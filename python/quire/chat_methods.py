"""The methods of LLM that take conversations.

Decides their signatures, those of vLLM; rendering is decided in chat.py, and the prompts then go the way of generate.
Mixed into LLM; called as its other methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quire import chat as chats
from quire.errors import ValidationError
from quire.inputs import ParsedPrompt, TokensPrompt
from quire.outputs import RequestOutput, StreamChunk
from quire.requests import Request, check_on_error, refuse_call_features
from quire.sampling_params import SamplingParams
from quire.tokenizer import Tokenizer


class ChatMethods:
    """Mixed into LLM."""

    _tokenizer: Tokenizer | None
    _chat_template: str | None

    if TYPE_CHECKING:  # of LLM

        def _check_open(self) -> None: ...

        def _prepare(
            self,
            prompts: Sequence[Any],
            params: Any,
            tokenization_kwargs: Any,
            on_error: str,
            first_position: int = 0,
            priority: Any = None,
        ) -> list[Request]: ...

        def _run(self, requests: list[Request], use_tqdm: bool | Callable[..., Any]) -> list[RequestOutput]: ...

        stream: Callable[..., Iterator[StreamChunk]]
        enqueue: Callable[..., list[str]]

    def chat(
        self,
        messages: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: Any = None,
        chat_template: str | Path | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        priority: Any = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        on_error: str = "raise",
    ) -> list[RequestOutput]:
        """Answers a conversation, or each of a list of them, through the model's chat template."""
        rendering = chats.rendering_of(locals())
        check_on_error(on_error)
        prompts = self._render(messages, rendering, on_error)
        refuse_call_features(len(prompts), lora_request, mm_processor_kwargs)
        requests = self._prepare(prompts, sampling_params, tokenization_kwargs, on_error, priority=priority)
        return self._run(requests, use_tqdm)

    def preprocess_chat(
        self,
        messages: Any,
        chat_template: str | Path | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
    ) -> list[TokensPrompt]:
        """The prompts that `chat` would complete: text and token ids of each conversation."""
        rendering = chats.rendering_of(locals())
        prompts = self._render(messages, rendering)
        refuse_call_features(len(prompts), None, mm_processor_kwargs)
        assert self._tokenizer is not None
        texts = [prompt.text or "" for prompt in prompts if isinstance(prompt, ParsedPrompt)]
        ids = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [{"prompt_token_ids": one, "prompt": text} for one, text in zip(ids, texts, strict=True)]

    def stream_chat(
        self,
        messages: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        chat_template: str | Path | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Iterator[StreamChunk]:
        """Answers one conversation, as stream; `options` are the keywords of stream."""
        rendering = chats.rendering_of(locals())
        prompts = self._render(messages, rendering, options.get("on_error", "raise"))
        if len(prompts) != 1:
            raise ValidationError(f"LLM.stream_chat takes one conversation, got {len(prompts)}.")
        return self.stream(prompts[0], sampling_params, **options)

    def enqueue_chat(
        self,
        messages: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: Any = None,
        priority: Any = None,
        chat_template: str | Path | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """As enqueue, for conversations."""
        rendering = chats.rendering_of(locals())
        return self.enqueue(
            self._render(messages, rendering),
            sampling_params,
            lora_request,
            priority,
            use_tqdm,
            tokenization_kwargs,
            mm_processor_kwargs,
        )

    def _render(
        self, messages: Any, rendering: chats.Rendering, on_error: str = "raise"
    ) -> list[ParsedPrompt | Exception]:
        self._check_open()
        if self._tokenizer is None:
            raise ValueError("LLM.chat needs a tokenizer, and skip_tokenizer_init is True")
        return chats.render_all(messages, rendering, self._tokenizer, self._chat_template, on_error)
