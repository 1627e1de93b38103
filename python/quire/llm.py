"""The LLM class: vLLM's offline interface, call for call, on quire's engine.

Decides the signatures, their deprecations, and the order of a call: check everything, queue, wait, return in order.
What a prompt is, what is refused and how text is made is decided in the modules it calls. Thread-safe: several threads
may call one LLM, and their requests are batched together.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from quire import chat as chats
from quire import chat_template as templates
from quire import engine_args, inputs, model_source, runner
from quire._logging import forward_core_log
from quire.engine_view import EngineView, engine_view
from quire.errors import ValidationError
from quire.inputs import ParsedPrompt
from quire.outputs import RequestOutput, StreamChunk, error_output
from quire.progress import Progress
from quire.requests import (
    Limits,
    Request,
    iter_priorities,
    prepare,
    priorities_of,
    refuse_call_features,
    tokenization_options,
)
from quire.sampling_params import SamplingParams, warn_deprecated
from quire.tokenizer import Tokenizer, load_tokenizer, wrap_tokenizer
from quire.unavailable import UnavailableMethods

if TYPE_CHECKING:
    from quire._quire import Engine

_NO_TOKENIZER = "Unable to get tokenizer because skip_tokenizer_init is True"


def _positional_are_deprecated(init: Callable[..., None]) -> Callable[..., None]:
    """Warns about positional arguments after `model`."""
    names = init.__code__.co_varnames[1 : init.__code__.co_argcount]

    @functools.wraps(init)
    def checked(self: LLM, *args: Any, **kwargs: Any) -> None:
        positional = list(names[1 : len(args)])
        if positional and self.DEPRECATE_INIT_POSARGS:
            warn_deprecated(
                f"The positional arguments {positional} are deprecated and will be removed in a future update. All "
                "positional arguments other than `model` will be replaced with keyword arguments in an upcoming "
                "version.",
                stacklevel=2,
            )
        init(self, *args, **kwargs)

    return checked


class LLM(UnavailableMethods):
    """A language model and its engine. See docs/python.md for every argument."""

    DEPRECATE_LEGACY: ClassVar[bool] = True
    DEPRECATE_INIT_POSARGS: ClassVar[bool] = True

    @classmethod
    @contextmanager
    def deprecate_legacy_api(cls) -> Generator[None, None, None]:
        cls.DEPRECATE_LEGACY = True
        yield
        cls.DEPRECATE_LEGACY = False

    @_positional_are_deprecated
    def __init__(
        self,
        model: str | PathLike[str],
        tokenizer: str | PathLike[str] | None = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        allowed_local_media_path: str = "",
        tensor_parallel_size: int = 1,
        dtype: Any = "auto",
        quantization: str | None = None,
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        seed: int | None = None,
        gpu_memory_utilization: float = 0.9,
        swap_space: float = 4,
        cpu_offload_gb: float = 0,
        enforce_eager: bool | None = None,
        max_seq_len_to_capture: int = 8192,
        disable_custom_all_reduce: bool = False,
        disable_async_output_proc: bool = False,
        hf_overrides: engine_args.ConfigOverrides = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
        task: str = "auto",
        override_pooler_config: Any = None,
        compilation_config: Any = None,
        **kwargs: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__")}
        values = engine_args.resolve({**given, **kwargs})
        forward_core_log()
        path = _model_path(values)
        self._tokenizer = None if skip_tokenizer_init else _load_tokenizer(values, path)
        config = model_source.read_config(path)
        overrides = model_source.config_overrides(path, values["hf_overrides"], trust_remote_code)
        options = engine_args.engine_options(values, model_source.to_json(overrides))
        weights = model_source.load_bin_weights(path, values["load_format"])
        self._default_values = model_source.default_sampling_values(
            path, values["generation_config"], values["override_generation_config"]
        )
        self._chat_template = chats.load_template(values["chat_template"])

        from quire import _quire

        self._engine: Engine = _quire.Engine(str(path), options, weights)
        info = self._engine.info()
        self._limits = Limits(
            vocab_size=info["vocab_size"],
            max_model_len=info["max_model_len"],
            max_logprobs=values["max_logprobs"],
            eos_token_ids=frozenset(info["eos_token_ids"]),
            by_priority=values["scheduling_policy"] == "priority",
        )
        self._max_num_seqs = info["max_num_seqs"]
        self._has_vocabulary = False
        self._queued: dict[int, tuple[Request, str]] = {}
        self._closed = False
        self.request_counter = itertools.count()
        self.default_sampling_params: SamplingParams | None = None
        self.llm_engine: EngineView = engine_view(
            str(model), values, options, info, {**config, **overrides}, self._tokenizer
        )

    # Generation.

    def generate(
        self,
        prompts: Any = None,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        prompt_token_ids: Any = None,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        guided_options_request: Any = None,
        priority: Any = None,
        *,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        on_error: str = "raise",
    ) -> list[RequestOutput]:
        """Completes prompts; the outputs come in their order.

        A prompt is a str, a TextPrompt, a TokensPrompt or a list of token ids. With on_error="return" a bad prompt
        yields an output with `.error` set and finish_reason "error", instead of raising before any work.
        """
        if prompt_token_ids is not None:
            items = self._legacy_prompts(prompts, prompt_token_ids)
        else:
            items = inputs.as_list(prompts)
        refuse_call_features(
            len(items), lora_request, mm_processor_kwargs, prompt_adapter_request, guided_options_request
        )
        requests = self._prepare(items, sampling_params, tokenization_kwargs, on_error, priority)
        return self._run(requests, use_tqdm)

    def chat(
        self,
        messages: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: Any = None,
        chat_template: str | None = None,
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
        prompts = self._render(
            messages,
            chat_template,
            chat_template_content_format,
            add_generation_prompt,
            continue_final_message,
            tools,
            chat_template_kwargs,
        )
        refuse_call_features(len(prompts), lora_request, mm_processor_kwargs)
        requests = self._prepare(prompts, sampling_params, tokenization_kwargs, on_error, priority)
        return self._run(requests, use_tqdm)

    def stream(
        self,
        prompt: Any,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> Iterator[StreamChunk]:
        """Completes one prompt and yields text as soon as it is certain. Closing the iterator cancels the request."""
        items = [prompt] if isinstance(prompt, ParsedPrompt) else inputs.as_list(prompt)
        if len(items) != 1:
            raise ValidationError(f"LLM.stream takes one prompt, got {len(items)}; use LLM.generate_iter for several.")
        (request,) = self._prepare(items, sampling_params, tokenization_kwargs, "raise", priority)
        self._ensure_vocabulary([request])
        return runner.streamed(runner.Waiting(self._engine), request, str(next(self.request_counter)), self._tokenizer)

    def stream_chat(
        self,
        messages: Any,
        sampling_params: SamplingParams | None = None,
        *,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
    ) -> Iterator[StreamChunk]:
        """Answers one conversation, as stream."""
        prompts = self._render(
            messages,
            chat_template,
            chat_template_content_format,
            add_generation_prompt,
            continue_final_message,
            tools,
            chat_template_kwargs,
        )
        if len(prompts) != 1:
            raise ValidationError(f"LLM.stream_chat takes one conversation, got {len(prompts)}.")
        return self.stream(prompts[0], sampling_params, priority=priority)

    def generate_iter(
        self,
        prompts: Iterable[Any],
        sampling_params: SamplingParams | Iterable[SamplingParams] | None = None,
        *,
        priority: int | Iterable[int] = 0,
        max_in_flight: int | None = None,
        use_tqdm: bool | Callable[..., Any] = False,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        on_error: str = "raise",
    ) -> Iterator[tuple[int, RequestOutput]]:
        """Yields (position, output) as requests finish. Reads `prompts` lazily, at most `max_in_flight` ahead."""
        if isinstance(prompts, (str, Mapping)) or (
            isinstance(prompts, Sequence) and prompts and inputs.is_token_ids(prompts)
        ):
            prompts = [prompts]
        limit = 2 * self._max_num_seqs if max_in_flight is None else max_in_flight
        if limit < 1:
            raise ValidationError(f"max_in_flight must be at least 1, got {max_in_flight}")
        self._check_open()
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            pairs = zip(prompts, itertools.repeat(sampling_params or self.get_default_sampling_params()), strict=False)
        else:
            pairs = zip(prompts, sampling_params, strict=True)
        priorities = iter_priorities(priority, self._limits)
        triples = ((prompt, params, next(priorities)) for prompt, params in pairs)
        return self._iterate(triples, limit, use_tqdm, tokenization_kwargs, on_error)

    def enqueue(
        self,
        prompts: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        lora_request: Any = None,
        priority: Any = None,
        use_tqdm: bool | Callable[..., Any] = True,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Queues prompts without waiting; returns their request ids. Nothing is shown, whatever use_tqdm says."""
        items = inputs.as_list(prompts)
        refuse_call_features(len(items), lora_request, mm_processor_kwargs)
        requests = self._prepare(items, sampling_params, tokenization_kwargs, "raise", priority)
        self._ensure_vocabulary(requests)
        names = [str(next(self.request_counter)) for _ in requests]
        with runner.Waiting(self._engine) as waiting:
            self._queued.update(zip(waiting.submit(requests), zip(requests, names, strict=True), strict=True))
            waiting.release()
        return names

    def wait_for_completion(
        self, output_type: type | None = None, *, use_tqdm: bool | Callable[..., Any] = True
    ) -> list[RequestOutput]:
        """The outputs of all that was enqueued, in that order."""
        if output_type not in (None, RequestOutput):
            raise NotImplementedError(f"wait_for_completion gives RequestOutput only, got {output_type!r}")
        self._check_open()
        queued, self._queued = self._queued, {}
        with runner.Waiting(self._engine) as waiting:
            waiting.adopt(queued)
            return self._collect(waiting, queued, use_tqdm)

    # The model.

    def get_tokenizer(self) -> Any:
        """The tokenizer as transformers has it; transformers is imported here."""
        if self._tokenizer is None:
            raise ValueError(_NO_TOKENIZER)
        return self._tokenizer.hf_tokenizer()

    def set_tokenizer(self, tokenizer: Any) -> None:
        """Replaces the tokenizer, by one of transformers."""
        self._tokenizer = wrap_tokenizer(tokenizer)
        self._has_vocabulary = False

    def get_default_sampling_params(self) -> SamplingParams:
        """What generate uses when it gets no parameters: those of the model's generation_config.json."""
        if self.default_sampling_params is None:
            self.default_sampling_params = SamplingParams.from_optional(**self._default_values)
        return self.default_sampling_params.clone()

    def reset_prefix_cache(self, device: Any = None) -> bool:
        """Forgets cached prefixes. False while requests are running."""
        if device is not None:
            raise NotImplementedError("reset_prefix_cache(device=...) is not supported; there is one cache.")
        self._check_open()
        return self._engine.reset_prefix_cache()

    def stats(self) -> dict[str, float]:
        """Counters of the engine."""
        self._check_open()
        return self._engine.stats()

    def info(self) -> dict[str, Any]:
        """The model, its sizes and how memory is divided."""
        self._check_open()
        return self._engine.info()

    def close(self) -> None:
        """Gives all memory back now. The object cannot be used afterwards; closing twice is fine."""
        if not self._closed:
            self._closed = True
            self._engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Parts of a call.

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("This LLM is closed. Build a new one.")

    def _legacy_prompts(self, prompts: Any, prompt_token_ids: Any) -> list[Any]:
        if self.DEPRECATE_LEGACY:
            warn_deprecated(
                "The keyword arguments {'prompt_token_ids'} are deprecated and will be removed in a future update. "
                "Please use the 'prompts' parameter instead."
            )
        return inputs.legacy_prompts(prompts, prompt_token_ids)

    def _prepare(
        self,
        prompts: Sequence[Any],
        params: Any,
        tokenization_kwargs: Mapping[str, Any] | None,
        on_error: str,
        priority: Any = None,
    ) -> list[Request]:
        self._check_open()
        add_special_tokens, truncate_to = tokenization_options(tokenization_kwargs)
        return prepare(
            prompts,
            self.get_default_sampling_params() if params is None else params,
            self._tokenizer,
            self._limits,
            on_error=on_error,
            add_special_tokens=add_special_tokens,
            truncate_to=truncate_to,
            priorities=priorities_of(priority, len(prompts), self._limits),
        )

    def _ensure_vocabulary(self, requests: Sequence[Request]) -> None:
        if self._has_vocabulary or self._tokenizer is None:
            return
        if any(request.params is not None and request.params.needs_vocabulary for request in requests):
            self._engine.set_vocabulary(self._tokenizer.token_bytes(self._limits.vocab_size))
            self._has_vocabulary = True

    def _run(self, requests: list[Request], use_tqdm: bool | Callable[..., Any]) -> list[RequestOutput]:
        good = [request for request in requests if request.error is None]
        self._ensure_vocabulary(good)
        names = {request.position: str(next(self.request_counter)) for request in requests}
        with runner.Waiting(self._engine) as waiting:
            ids = waiting.submit(good)
            queued = {i: (request, names[request.position]) for i, request in zip(ids, good, strict=True)}
            finished = iter(self._collect(waiting, queued, use_tqdm))
        return [
            next(finished)
            if request.error is None
            else error_output(names[request.position], request.text, request.token_ids or None, str(request.error))
            for request in requests
        ]

    def _collect(
        self,
        waiting: runner.Waiting,
        queued: Mapping[int, tuple[Request, str]],
        use_tqdm: bool | Callable[..., Any],
    ) -> list[RequestOutput]:
        """The outputs of queued requests, in their order."""
        total = sum(request.params.engine["n"] for request, _ in queued.values() if request.params is not None)
        outputs: dict[int, RequestOutput] = {}
        with Progress(use_tqdm, total) as progress:
            while len(waiting):
                for raw in waiting.run():
                    output = runner.finished_output(raw, *queued[raw.request_id], self._tokenizer)
                    outputs[raw.request_id] = output
                    progress.advance(output)
        return [outputs[request_id] for request_id in queued]

    def _iterate(
        self,
        items: Iterator[tuple[Any, SamplingParams, int]],
        limit: int,
        use_tqdm: bool | Callable[..., Any],
        tokenization_kwargs: Mapping[str, Any] | None,
        on_error: str,
    ) -> Iterator[tuple[int, RequestOutput]]:
        add_special_tokens, truncate_to = tokenization_options(tokenization_kwargs)
        queued: dict[int, tuple[Request, str]] = {}
        position, exhausted = 0, False
        with Progress(use_tqdm, None) as progress, runner.Waiting(self._engine) as waiting:
            while not exhausted or len(waiting):
                room = limit - len(waiting)
                batch = list(itertools.islice(items, min(room, 32))) if room and not exhausted else []
                exhausted = exhausted or (room > 0 and not batch)
                requests = prepare(
                    [prompt for prompt, *_ in batch],
                    [params for _, params, _ in batch],
                    self._tokenizer,
                    self._limits,
                    on_error=on_error,
                    first_position=position,
                    add_special_tokens=add_special_tokens,
                    truncate_to=truncate_to,
                    priorities=[priority for *_, priority in batch],
                )
                position += len(batch)
                good = [request for request in requests if request.error is None]
                self._ensure_vocabulary(good)
                for request_id, request in zip(waiting.submit(good), good, strict=True):
                    queued[request_id] = (request, str(next(self.request_counter)))
                for request in requests:
                    if request.error is not None:
                        name, ids = str(next(self.request_counter)), request.token_ids or None
                        yield request.position, error_output(name, request.text, ids, str(request.error))
                for raw in waiting.run() if len(waiting) else ():
                    request, name = queued.pop(raw.request_id)
                    output = runner.finished_output(raw, request, name, self._tokenizer)
                    progress.advance(output)
                    yield request.position, output

    def _render(
        self,
        messages: Any,
        chat_template: str | None,
        content_format: str,
        add_generation_prompt: bool,
        continue_final_message: bool,
        tools: list[Any] | None,
        template_kwargs: Mapping[str, Any] | None,
    ) -> list[ParsedPrompt]:
        """The prompt of each conversation. The template writes its special tokens itself, so none are added."""
        self._check_open()
        conversations = chats.as_conversations(messages)
        if self._tokenizer is None:
            raise ValueError("LLM.chat needs a tokenizer, and skip_tokenizer_init is True")
        given = self._chat_template if chat_template is None else chat_template
        template = chats.choose_template(given, self._tokenizer.chat_template, tools)
        form = chats.resolve_content_format(content_format, template)
        prompts = []
        for position, conversation in enumerate(conversations):
            try:
                text = templates.render(
                    template,
                    chats.parse_messages(conversation, form),
                    special_tokens=self._tokenizer.special_tokens,
                    tools=tools,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    template_kwargs=template_kwargs,
                )
            except (ValueError, TypeError, NotImplementedError) as error:
                if len(conversations) > 1:
                    raise type(error)(f"{error} (conversation {position})") from error
                raise
            prompts.append(ParsedPrompt(text, None, add_special_tokens=False))
        return prompts


def _model_path(values: Mapping[str, Any]) -> Path:
    return model_source.resolve_model(
        values["model"], values["revision"], values["download_dir"], values["hf_token"], values["ignore_patterns"]
    )


def _load_tokenizer(values: Mapping[str, Any], model_path: Path) -> Tokenizer:
    path = model_path
    if values["tokenizer"] is not None:
        revision = values["tokenizer_revision"] or values["revision"]
        path = model_source.resolve_model(
            values["tokenizer"], revision, values["download_dir"], values["hf_token"], with_weights=False
        )
    return load_tokenizer(path, values["tokenizer_mode"], values["trust_remote_code"])
