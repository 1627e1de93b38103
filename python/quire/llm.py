"""The LLM class: vLLM's offline interface, call for call, on quire's engine.

Decides the signatures, their deprecations, and the order of a call: check everything, queue, wait, return in order.
What a prompt is, what is refused and how text is made is decided in the modules it calls. Thread-safe: several threads
may call one LLM, and their requests are batched together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from time import perf_counter
from typing import Any, ClassVar

from quire import beam_search as beams
from quire import chat as chats
from quire import (
    engine_args,
    gpu_libraries,
    inputs,
    model_source,
    pooler_config,
    reranking,
    runner,
    speculative,
    streaming,
    tasks,
)
from quire._logging import forward_core_log
from quire.chat_methods import ChatMethods
from quire.collective import Executor
from quire.deprecation import positional_are_deprecated, token_ids_keyword_is_deprecated
from quire.engine_view import EngineView, engine_view
from quire.errors import ValidationError
from quire.grammars import Grammars
from quire.inputs import ParsedPrompt
from quire.metrics import startup_report
from quire.observation import ObservationMethods
from quire.outputs import RequestOutput, StreamChunk, error_output
from quire.pooling_methods import PoolingMethods
from quire.progress import Progress
from quire.requests import (
    Limits,
    Request,
    iter_priorities,
    prepare,
    priorities_of,
    refuse_call_features,
    tokenization_options,
    with_guided_options,
)
from quire.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams
from quire.sleep_methods import SleepMethods
from quire.tokenizer import wrap_tokenizer
from quire.trace import trace_settings
from quire.vllm_internals import InternalMethods
from quire.weight_methods import WeightMethods
from quire.weights import Origin
from quire.workers import make_workers

_NO_TOKENIZER = "Unable to get tokenizer because skip_tokenizer_init is True"


class LLM(ChatMethods, PoolingMethods, SleepMethods, WeightMethods, ObservationMethods, InternalMethods):
    """A language model and its engine. See docs/python.md for every argument."""

    DEPRECATE_LEGACY: ClassVar[bool] = True
    DEPRECATE_INIT_POSARGS: ClassVar[bool] = True

    @classmethod
    @contextmanager
    def deprecate_legacy_api(cls) -> Generator[None, None, None]:
        cls.DEPRECATE_LEGACY = True
        yield
        cls.DEPRECATE_LEGACY = False

    @positional_are_deprecated
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
        begin = perf_counter()
        values = engine_args.resolve({**given, **kwargs})
        forward_core_log()
        self._trace_settings = trace_settings(values["profiler_config"])
        path = model_source.model_path(values)
        tokenizer_begin = perf_counter()
        self._tokenizer = None if skip_tokenizer_init else model_source.tokenizer_of(values, path)
        tokenizer_seconds = perf_counter() - tokenizer_begin
        config = model_source.read_config(path)
        overrides = model_source.config_overrides(path, values["hf_overrides"], trust_remote_code)
        overrides |= reranking.label_ids({**config, **overrides}, self._tokenizer)
        config = {**config, **overrides}
        self._task = tasks.resolve_task(values, config, path)
        pooler = pooler_config.core_options(pooler_config.pooler_config_of(values), self._task, config)
        tasks.check_options(values, self._task)
        if self._tokenizer is not None:
            self._tokenizer.set_truncation_side("left" if self._task == "generate" else "right")
        options = engine_args.engine_options(values, model_source.to_json(overrides))
        options.update(
            speculative.engine_options(values["speculative_config"], values["download_dir"], values["hf_token"])
        )
        weights = model_source.load_bin_weights(path, values["load_format"])
        self._default_values = model_source.default_sampling_values(
            path, values["generation_config"], values["override_generation_config"]
        )
        self._chat_template = chats.load_template(values["chat_template"])

        from quire import _quire

        gpu_libraries.tell_folders(options["device"])
        self._engine: Any
        if self._task == "generate":
            self._engine = _quire.Engine(str(path), options, weights)
        else:
            self._engine = _quire.PoolingEngine(str(path), options, pooler, weights)
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
        self._guided_backend = values["guided_decoding_backend"] or "auto"
        self._grammars = self._make_grammars()
        self._queued: dict[int, tuple[Request, str]] = {}
        self._closed = False
        self._enable_sleep_mode = values["enable_sleep_mode"]
        self.request_counter = itertools.count()
        self.default_sampling_params: SamplingParams | None = None
        self.llm_engine: EngineView = engine_view(
            str(model), values, options, info, config, self._tokenizer, self._task
        )
        self.llm_engine.watch(self._engine)
        self._origin = Origin(path, values["load_format"], values["download_dir"], values["hf_token"])
        workers = make_workers(
            self._engine,
            values["worker_extension_cls"],
            info["device"],
            self._origin,
            self.llm_engine.model_config.hf_config,
            values["tensor_parallel_size"],
        )
        self._executor = self.llm_engine.model_executor = Executor(workers, values["collective_timeout"] or 300.0)
        if self._task != "generate":
            self._start_pooling(str(model), info, config, path)
        # Seconds of each part of what happened above, and the bytes it filled.
        self.startup_report = startup_report(info, tokenizer_seconds, perf_counter() - begin)

    # Generation.

    @token_ids_keyword_is_deprecated
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
        self._require_generate("generate")
        items = self._items(prompts, prompt_token_ids)
        refuse_call_features(len(items), lora_request, mm_processor_kwargs, prompt_adapter_request)
        params = self._with_guided_options(sampling_params, guided_options_request)
        return self._run(self._prepare(items, params, tokenization_kwargs, on_error, priority=priority), use_tqdm)

    @token_ids_keyword_is_deprecated
    def stream(
        self,
        prompt: Any = None,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        prompt_token_ids: Any = None,
        *,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        guided_options_request: Any = None,
        priority: Any = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        on_error: str = "raise",
        output_kind: RequestOutputKind | None = None,
    ) -> Iterator[StreamChunk]:
        """Completes one prompt and yields text as soon as it is certain. Closing the iterator cancels the request.

        A chunk holds what is new; with output_kind=CUMULATIVE all so far, with FINAL_ONLY each sequence at its end.
        """
        rendered = isinstance(prompt, (ParsedPrompt, Exception))  # by stream_chat
        items = [prompt] if rendered else self._items(prompt, prompt_token_ids)
        if len(items) != 1:
            raise ValidationError(f"LLM.stream takes one prompt, got {len(items)}; use LLM.generate_iter for several.")
        refuse_call_features(1, lora_request, mm_processor_kwargs, prompt_adapter_request)
        params = self._with_guided_options(sampling_params, guided_options_request)
        (request,) = self._prepare(items, params, tokenization_kwargs, on_error, priority=priority)
        name = str(next(self.request_counter))
        if request.error is not None:
            ids = request.token_ids or None
            return streaming.failed_stream(error_output(name, request.text, ids, str(request.error)))
        assert request.params is not None
        kind = streaming.kind_of(output_kind, request.params, RequestOutputKind.DELTA)
        self._ensure_vocabulary([request])
        pieces = streaming.Pieces(request, name, self._tokenizer, kind)
        return streaming.streamed(runner.Waiting(self._engine), pieces, self._tokenizer)

    @token_ids_keyword_is_deprecated
    def generate_iter(
        self,
        prompts: Iterable[Any] | None = None,
        sampling_params: SamplingParams | Iterable[SamplingParams] | None = None,
        prompt_token_ids: Any = None,
        *,
        max_in_flight: int | None = None,
        use_tqdm: bool | Callable[..., Any] = False,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        guided_options_request: Any = None,
        priority: Any = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        on_error: str = "raise",
        output_kind: RequestOutputKind | None = None,
    ) -> Iterator[tuple[int, RequestOutput]]:
        """Yields (position, output) as requests finish. Reads `prompts` lazily, at most `max_in_flight` ahead.

        With output_kind=DELTA or CUMULATIVE also unfinished outputs come: what is new in a sequence, or all so far.
        """
        self._require_generate("generate_iter")
        if prompt_token_ids is not None or prompts is None or inputs.is_one_prompt(prompts):
            prompts = self._items(prompts, prompt_token_ids)
        count = len(prompts) if isinstance(prompts, Sequence) else None
        refuse_call_features(count, lora_request, mm_processor_kwargs, prompt_adapter_request)
        limit = 2 * self._max_num_seqs if max_in_flight is None else max_in_flight
        if limit < 1:
            raise ValidationError(f"max_in_flight must be at least 1, got {max_in_flight}")
        self._check_open()
        tokenization_options(tokenization_kwargs)
        params = sampling_params
        if guided_options_request is not None:
            params = params if params is None or isinstance(params, SamplingParams) else list(params)
            params = self._with_guided_options(params, guided_options_request)
        priorities = iter_priorities(0 if priority is None else priority, self._limits)
        pairs = streaming.paired(prompts, self.get_default_sampling_params() if params is None else params)

        def prepared(items: list[Any], each: list[Any], position: int) -> list[Request]:
            own = [next(priorities) for _ in items]
            requests = self._prepare(items, each, tokenization_kwargs, on_error, position, own)
            self._ensure_vocabulary([request for request in requests if request.error is None])
            return requests

        feed = streaming.AsCompleted(
            pairs, prepared, lambda: str(next(self.request_counter)), self._tokenizer, limit, output_kind, on_error
        )
        return feed.run(runner.Waiting(self._engine), use_tqdm)

    def beam_search(
        self,
        prompts: Any,
        params: BeamSearchParams,
        lora_request: Any = None,
        use_tqdm: bool | Callable[..., Any] = False,
        concurrency_limit: int | None = None,
        priority: Any = None,
    ) -> list[beams.BeamSearchOutput]:
        """The most likely continuations that a beam search finds for each prompt (TextPrompt or TokensPrompt)."""
        self._check_open()
        self._require_generate("beam_search")
        items = beams.as_prompts(prompts)
        refuse_call_features(len(items), lora_request)
        beams.refuse_priority(priority)
        if getattr(params, "stop", None):
            self._set_vocabulary()
        return beams.search(
            self._engine, items, params, self._tokenizer, self._limits, self._grammars, use_tqdm, concurrency_limit
        )

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
        requests = self._prepare(items, sampling_params, tokenization_kwargs, "raise", priority=priority)
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
        self._refuse_to_wait_asleep()
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
        self._grammars = self._make_grammars()
        if self._task != "generate":
            self._make_text_encoder()

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
        return True if self._task != "generate" else self._engine.reset_prefix_cache()

    def stats(self) -> dict[str, float]:
        """Counters of the engine."""
        self._check_open()
        return self._engine.stats()

    def info(self) -> dict[str, Any]:
        """The model, its sizes and how memory is divided."""
        self._check_open()
        return self._engine.info()

    def close(self) -> None:
        """Gives all memory back now. The object cannot be used afterwards; closing twice is fine.

        RuntimeError: what a call on this LLM runs, such as the iterator of load_weights, asks for it.
        """
        if self._closed:
            return
        self._executor.require_outside("close()")
        self._closed = True
        try:
            self._engine.close()
        except RuntimeError:  # as said above
            self._closed = False
            raise

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Parts of a call.

    def _make_grammars(self) -> Grammars:
        eos = dict.fromkeys(sorted(self._limits.eos_token_ids))
        own = self._tokenizer.eos_token_id if self._tokenizer is not None else None
        eos |= {} if own is None or own >= self._limits.vocab_size else {own: None}
        return Grammars(self._tokenizer, self._limits.vocab_size, list(eos), self._guided_backend)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("This LLM is closed. Build a new one.")

    @staticmethod
    def _items(prompts: Any, prompt_token_ids: Any) -> list[Any]:
        return inputs.as_list(prompts) if prompt_token_ids is None else inputs.legacy_prompts(prompts, prompt_token_ids)

    def _with_guided_options(self, params: Any, guided_options_request: Any) -> Any:
        if guided_options_request is None:
            return params
        params = self.get_default_sampling_params() if params is None else params
        return with_guided_options(params, guided_options_request, stacklevel=5)

    def _prepare(
        self,
        prompts: Sequence[Any],
        params: Any,
        tokenization_kwargs: Mapping[str, Any] | None,
        on_error: str,
        first_position: int = 0,
        priority: Any = None,
    ) -> list[Request]:
        self._check_open()
        self._require_generate("generate")
        add_special_tokens, truncate_to = tokenization_options(tokenization_kwargs)
        return prepare(
            prompts,
            self.get_default_sampling_params() if params is None else params,
            self._tokenizer,
            self._limits,
            on_error=on_error,
            first_position=first_position,
            add_special_tokens=add_special_tokens,
            truncate_to=truncate_to,
            priorities=priorities_of(priority, len(prompts), self._limits),
            grammars=self._grammars,
        )

    def _ensure_vocabulary(self, requests: Sequence[Request]) -> None:
        if any(request.params is not None and request.params.needs_vocabulary for request in requests):
            self._set_vocabulary()

    def _set_vocabulary(self) -> None:
        if self._has_vocabulary or self._tokenizer is None:
            return
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
        total = sum(request.params.num_outputs for request, _ in queued.values() if request.params is not None)
        outputs: dict[int, RequestOutput] = {}
        with Progress(use_tqdm, total) as progress:
            while len(waiting):
                for raw in waiting.run():
                    output = runner.finished_output(raw, *queued[raw.request_id], self._tokenizer)
                    outputs[raw.request_id] = output
                    progress.advance(output)
        return [outputs[request_id] for request_id in queued]
