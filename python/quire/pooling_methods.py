"""encode, embed, classify, score and reward of the LLM class.

Decides their signatures and which task each needs. What is done with a text is decided in the modules they call.
Thread-safe, as the LLM is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quire import inputs, pooling_runner, reranking, scoring, sentence_files
from quire.deprecation import token_ids_keyword_is_deprecated
from quire.errors import ValidationError
from quire.pooling_outputs import (
    ClassificationRequestOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingRequestOutput,
    ScoringRequestOutput,
)
from quire.pooling_params import PoolingParams
from quire.pooling_requests import PoolingLimits, checked_truncation, prepare
from quire.pooling_tokens import TextEncoder
from quire.requests import check_on_error, refuse_call_features, tokenization_options
from quire.sentence_files import NO_PREFIX, Prefix

if TYPE_CHECKING:
    from quire.tokenizer import Tokenizer

Params = PoolingParams | Sequence[PoolingParams] | None


class PoolingMethods:
    """Mixed into LLM."""

    if TYPE_CHECKING:
        _engine: Any
        _task: str
        _tokenizer: Tokenizer | None
        _pooling_limits: PoolingLimits
        _text_encoder: TextEncoder | None
        request_counter: Any

        def _check_open(self) -> None: ...
        @staticmethod
        def _items(prompts: Any, prompt_token_ids: Any) -> list[Any]: ...

    @token_ids_keyword_is_deprecated
    def encode(
        self,
        prompts: Any = None,
        pooling_params: Params = None,
        prompt_token_ids: Any = None,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        *,
        pooling_task: str | None = None,
        truncate_prompt_tokens: int | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        prompt_name: str | None = None,
        on_error: str = "raise",
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """What the model's pooler makes of each prompt, as it is: `.outputs.data` is a tensor.

        pooling_task="token_embed" gives a vector a token. A prompt is a str, a TextPrompt, a TokensPrompt (with
        token_type_ids where the model has them) or a list of token ids. A text that is longer than the model reads is
        cut, as sentence-transformers does.
        """
        self._require_pooling("encode")
        items = self._items(prompts, prompt_token_ids)
        refuse_call_features(len(items), lora_request, None, prompt_adapter_request)
        return self._pool(
            items,
            pooling_params,
            use_tqdm,
            pooling_task,
            truncate_prompt_tokens,
            tokenization_kwargs,
            on_error,
            self._prefix(prompt_name),
        )

    def embed(
        self,
        prompts: Any,
        /,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        pooling_params: Params = None,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        truncate_prompt_tokens: int | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        prompt_name: str | None = None,
        on_error: str = "raise",
    ) -> list[EmbeddingRequestOutput]:
        """One vector a prompt: `.outputs.embedding`.

        `prompt_name` says which of a sentence-transformers model's prompts is put before each text ("query"); without
        it that is the model's default one, if it has one.
        """
        self._require_task("embed", "Embedding API is only enabled for `--task embed`")
        items = inputs.as_list(prompts)
        refuse_call_features(len(items), lora_request, None, prompt_adapter_request)
        outputs = self._pool(
            items,
            pooling_params,
            use_tqdm,
            "embed",
            truncate_prompt_tokens,
            tokenization_kwargs,
            on_error,
            self._prefix(prompt_name),
        )
        return [EmbeddingRequestOutput.from_base(output) for output in outputs]

    def classify(
        self,
        prompts: Any,
        /,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        pooling_params: Params = None,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        truncate_prompt_tokens: int | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        on_error: str = "raise",
    ) -> list[ClassificationRequestOutput]:
        """The probability of each class: `.outputs.probs`."""
        self._require_task("classify", "Classification API is only enabled for `--task classify`")
        items = inputs.as_list(prompts)
        refuse_call_features(len(items), lora_request, None, prompt_adapter_request)
        outputs = self._pool(
            items, pooling_params, use_tqdm, "classify", truncate_prompt_tokens, tokenization_kwargs, on_error
        )
        return [ClassificationRequestOutput.from_base(output) for output in outputs]

    def reward(
        self,
        prompts: Any,
        /,
        *,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        pooling_params: Params = None,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        on_error: str = "raise",
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """The rewards of each prompt, a row a token or a step: `.outputs.data`."""
        self._require_pooling("reward")
        self._require_task("reward", "Reward API is only enabled for `--task reward`")
        items = inputs.as_list(prompts)
        refuse_call_features(len(items), lora_request, None, prompt_adapter_request)
        return self._pool(
            items, pooling_params, use_tqdm, "reward", truncate_prompt_tokens, tokenization_kwargs, on_error
        )

    def score(
        self,
        text_1: Any,
        text_2: Any,
        /,
        *,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        pooling_params: Params = None,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        chat_template: Any = None,
        on_error: str = "raise",
    ) -> list[ScoringRequestOutput]:
        """How well the texts of each pair go together: `.outputs.score`. One text on the left stands against all.

        A cross-encoder reads both texts at once, a decoder with a classifier one after the other, or as `chat_template`
        puts its messages "query" and "document". With an embedding model it is the cosine of their vectors, with one
        that embeds every token the sum of the best of each token on the left (ColBERT's MaxSim).
        """
        self._require_pooling("score")
        ranks = self._task == "score" or (self._task == "classify" and self._num_outputs == 1)
        if self._task != "embed" and not ranks:
            raise ValidationError(
                "Score API is only enabled for `--task embed or --task score` (or `--task classify` with one label)"
            )
        if chat_template is not None and (self._task == "embed" or self._reads_pairs):
            raise ValidationError("score(chat_template=...) is for decoders with a classifier; this model is none.")
        first, second = (scoring.as_texts(given, self._tokenizer) for given in (text_1, text_2))
        scoring.check_lengths(len(first), len(second))
        refuse_call_features(None, lora_request, None, prompt_adapter_request)

        prefix = self._prefix(None)

        def pool(prompts: list[Any], task: str) -> list[PoolingRequestOutput[PoolingOutput]]:
            return self._pool(
                prompts, pooling_params, use_tqdm, task, truncate_prompt_tokens, tokenization_kwargs, on_error, prefix
            )

        if ranks:
            pairs = scoring.pairs_of(first, second)
            prompts = reranking.as_prompts(pairs, not self._reads_pairs, chat_template, self._tokenizer)
            return [ScoringRequestOutput.from_base(output) for output in pool(prompts, self._task)]
        by_token = self._embeds_tokens
        outputs = pool([*first, *second], "token_embed" if by_token else "embed")
        pad = self._tokenizer.special_tokens.get("pad_token") if self._tokenizer is not None else None
        pad_id = self._tokenizer.token_id(pad) if self._tokenizer is not None else None
        likeness = scoring.max_sim if by_token else scoring.cosine
        return scoring.compared(outputs[: len(first)], outputs[len(first) :], pad_id, likeness)

    # Parts of a call.

    def _start_pooling(self, model: str, info: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> None:
        self._pooling_limits = PoolingLimits(model, self._task, info["vocab_size"], info["max_model_len"], config)
        self._num_outputs: int = info["num_outputs"]
        self._embeds_tokens = self._task == "embed" and info["pooling_type"] == "ALL"
        self._reads_pairs = reranking.reads_pairs(config)
        self._has_token_types = info["num_token_types"] > 1
        self._do_lower_case = bool(sentence_files.read_sentence_config(path).get("do_lower_case"))
        self._prompts = sentence_files.read_sentence_prompts(path)
        self._make_text_encoder()

    def _prefix(self, name: str | None) -> Prefix:
        """The prompt of sentence-transformers that texts get; token ids stay as they are."""
        if self._task == "embed":
            return self._prompts.prefix(name)
        if name is not None:
            raise ValidationError(f"prompt_name={name!r} has a meaning for embedding models alone.")
        return NO_PREFIX

    def _make_text_encoder(self) -> None:
        tokenizer = self._tokenizer
        self._text_encoder = (
            None if tokenizer is None else TextEncoder(tokenizer, self._do_lower_case, self._has_token_types)
        )

    def _require_pooling(self, method: str) -> None:
        if self._task == "generate":
            raise ValidationError(
                f"LLM.{method}() is only supported for pooling models. Your model supports the 'pooling' runner, but "
                "is currently initialized for the 'generate' runner. Please initialize vLLM using `--task embed`, "
                "`--task classify`, `--task score` etc. (here: LLM(..., task=...) or runner='pooling')."
            )

    def _require_task(self, task: str, message: str) -> None:
        if self._task != task:
            raise ValidationError(f"{message} (this one runs the task {self._task!r}; build LLM(..., task={task!r}))")

    def _require_generate(self, method: str) -> None:
        if self._task != "generate":
            raise ValidationError(
                f"LLM.{method}() is only supported for (conditional) generation models (XForCausalLM, "
                "XForConditionalGeneration). Your model is currently initialized for the 'pooling' runner. Please "
                "initialize vLLM using `--task generate` (here: LLM(..., task='generate'))."
            )

    def _pool(
        self,
        items: list[Any],
        params: Params,
        use_tqdm: bool | Callable[..., Any],
        pooling_task: str | None,
        truncate_prompt_tokens: int | None,
        tokenization_kwargs: Mapping[str, Any] | None,
        on_error: str,
        prefix: Prefix = NO_PREFIX,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        self._check_open()
        check_on_error(on_error)
        add_special_tokens, truncate = _tokenization(tokenization_kwargs, truncate_prompt_tokens)
        limits = self._pooling_limits
        cut = None if truncate is None else checked_truncation(truncate, limits.max_model_len)
        requests = prepare(items, params, limits, pooling_task, cut, prefix)
        names = [str(next(self.request_counter)) for _ in requests]
        return pooling_runner.run(
            self._engine,
            requests,
            names,
            self._text_encoder,
            limits,
            add_special_tokens=add_special_tokens is not False,
            on_error=on_error,
            use_tqdm=use_tqdm,
        )


def _tokenization(options: Mapping[str, Any] | None, truncate: int | None) -> tuple[bool | None, int | None]:
    """(add_special_tokens, truncate_prompt_tokens); -1 is all that the model reads."""
    options = dict(options or {})
    own = options.pop("truncate_prompt_tokens", None)
    if own is not None and truncate is not None and own != truncate:
        raise ValidationError(f"truncate_prompt_tokens is {truncate}, and {own} in tokenization_kwargs; give one.")
    add_special_tokens, _ = tokenization_options(options)
    return add_special_tokens, truncate if truncate is not None else own
