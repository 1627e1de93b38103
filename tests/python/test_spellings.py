"""One call per spelling that a version of vLLM from 0.8.4 to 0.33 takes: served alike, or refused by name.

Every row runs; rows of one kind give the same tokens, and a deprecated one warns in vLLM's words, at the caller's line.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from quire import LLM, SamplingParams

P = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)
TEXT, OTHER = "Once upon a time", "The dog"
MESSAGES = [{"role": "user", "content": "Hi"}]
NO_PROMPT_TOKEN_IDS = (
    "The keyword arguments {'prompt_token_ids'} are deprecated and will be removed in a future update. Please use the "
    "'prompts' parameter instead."
)


def silent(bar: Any = None, **options: Any) -> Any:
    class Bar:
        postfix = ""

        def update(self, count: int) -> None: ...
        def close(self) -> None: ...

    return Bar()


# One prompt, TEXT: each row is a call that completes it. `i` are its token ids.
ONE: dict[str, Callable[[LLM, list[int]], Any]] = {
    "text": lambda llm, i: llm.generate(TEXT, P),
    "text in a list": lambda llm, i: llm.generate([TEXT], P),
    "text in a tuple": lambda llm, i: llm.generate((TEXT,), P),
    "prompts=": lambda llm, i: llm.generate(prompts=TEXT, sampling_params=P),
    "prompts= list": lambda llm, i: llm.generate(prompts=[TEXT], sampling_params=[P]),
    "params in a tuple": lambda llm, i: llm.generate([TEXT], (P,)),
    "TextPrompt": lambda llm, i: llm.generate({"prompt": TEXT}, P),
    "TextPrompt in a list": lambda llm, i: llm.generate([{"prompt": TEXT}], P),
    "TextPrompt, media None": lambda llm, i: llm.generate({"prompt": TEXT, "multi_modal_data": None}, P),
    "TokensPrompt": lambda llm, i: llm.generate({"prompt_token_ids": i}, P),
    "TokensPrompt in a list": lambda llm, i: llm.generate([{"prompt_token_ids": i}], P),
    "TokensPrompt with prompt": lambda llm, i: llm.generate({"prompt_token_ids": i, "prompt": TEXT}, P),
    "TokensPrompt, cache_salt None": lambda llm, i: llm.generate({"prompt_token_ids": i, "cache_salt": None}, P),
    "list[int]": lambda llm, i: llm.generate(i, P),
    "list[list[int]]": lambda llm, i: llm.generate([i], P),
    "tuple of ints": lambda llm, i: llm.generate([tuple(i)], P),
    "array": lambda llm, i: llm.generate(np.array(i), P),
    "array of arrays": lambda llm, i: llm.generate(np.array([i]), P),
    "0.8.4, by position": lambda llm, i: llm.generate(TEXT, P, None, False, None, None, None, None),
    "0.8.4, ids by position": lambda llm, i: llm.generate(None, P, i, False),
    "0.8.4, lists of ids by position": lambda llm, i: llm.generate(None, P, [i], False),
    "0.8.4, text and ids by position": lambda llm, i: llm.generate(TEXT, P, [7, 8], False),
    "0.8.4, every keyword": lambda llm, i: llm.generate(
        TEXT, sampling_params=P, use_tqdm=False, lora_request=None, prompt_adapter_request=None,
        guided_options_request=None, priority=None,
    ),
    "0.10, keywords": lambda llm, i: llm.generate([i], P, use_tqdm=silent, lora_request=[None], priority=[0]),
    "0.33, keywords": lambda llm, i: llm.generate(
        [TEXT], P, use_tqdm=silent, lora_request=None, priority=0, tokenization_kwargs={}, mm_processor_kwargs=None
    ),
    "priority, empty": lambda llm, i: llm.generate([TEXT], P, priority=[]),
    "priority None": lambda llm, i: llm.generate([TEXT], P, priority=[None]),
    "use_tqdm=0": lambda llm, i: llm.generate(TEXT, P, use_tqdm=0),
    "stream": lambda llm, i: [list(llm.stream(TEXT, P))[-1].output],
    "stream, one of each": lambda llm, i: [list(llm.stream([i], [P], priority=[0], lora_request=[None]))[-1].output],
    "stream, ids by position": lambda llm, i: [list(llm.stream(None, P, i))[-1].output],
    "generate_iter": lambda llm, i: [output for _, output in llm.generate_iter([TEXT], P)],
    "generate_iter, one text": lambda llm, i: [output for _, output in llm.generate_iter(TEXT, P)],
    "generate_iter, one TokensPrompt": lambda llm, i: [o for _, o in llm.generate_iter({"prompt_token_ids": i}, P)],
    "generate_iter, ids by position": lambda llm, i: [o for _, o in llm.generate_iter(None, P, [i])],
    "generate_iter, list[int]": lambda llm, i: [o for _, o in llm.generate_iter(i, iter([P]), priority=[0])],
    "enqueue": lambda llm, i: (llm.enqueue(TEXT, P), llm.wait_for_completion(use_tqdm=False))[1],
    "enqueue, 0.33 by position": lambda llm, i: (
        llm.enqueue([i], P, None, None, False, None, None), llm.wait_for_completion(use_tqdm=silent),
    )[1],
}  # fmt: skip

DEPRECATED: dict[str, Callable[[LLM, list[int]], Any]] = {
    "generate, list[int]": lambda llm, i: llm.generate(prompt_token_ids=i, sampling_params=P),
    "generate, list[list[int]]": lambda llm, i: llm.generate(prompt_token_ids=[i], sampling_params=P),
    "generate, array": lambda llm, i: llm.generate(prompt_token_ids=np.array(i), sampling_params=P),
    "generate, prompts=None": lambda llm, i: llm.generate(None, P, prompt_token_ids=[i]),
    "generate, the text wins": lambda llm, i: llm.generate(TEXT, P, prompt_token_ids=[7, 8]),
    "generate, the texts win": lambda llm, i: llm.generate([TEXT], P, prompt_token_ids=[[7, 8]]),
    "generate, no ids": lambda llm, i: llm.generate(TEXT, P, prompt_token_ids=None),
    "stream": lambda llm, i: [list(llm.stream(prompt_token_ids=i, sampling_params=P))[-1].output],
    "generate_iter": lambda llm, i: [o for _, o in llm.generate_iter(prompt_token_ids=i, sampling_params=P)],
}

TWO: dict[str, Callable[[LLM, list[list[int]]], Any]] = {
    "texts": lambda llm, ids: llm.generate([TEXT, OTHER], P),
    "ids": lambda llm, ids: llm.generate(ids, P),
    "of each kind": lambda llm, ids: llm.generate([{"prompt": TEXT}, ids[1]], [P, P]),
    "dicts": lambda llm, ids: llm.generate([{"prompt_token_ids": one} for one in ids], P),
    "legacy, by position": lambda llm, ids: llm.generate(None, P, ids),
    "lists of each": lambda llm, ids: llm.generate([TEXT, OTHER], [P, P], lora_request=[None, None], priority=[0, 0]),
    "generate_iter": lambda llm, ids: [o for _, o in sorted(llm.generate_iter(iter([TEXT, OTHER]), iter([P, P])))],
}

CHAT: dict[str, Callable[[LLM], Any]] = {
    "messages": lambda llm: llm.chat(MESSAGES, P),
    "messages=": lambda llm: llm.chat(messages=MESSAGES, sampling_params=P),
    "a list of conversations": lambda llm: llm.chat([MESSAGES], P),
    "a list of params": lambda llm: llm.chat([MESSAGES], [P]),
    "0.8.4, by position": lambda llm: llm.chat(MESSAGES, P, False, None, None, "auto", True, False, None, None),
    "0.33, keywords": lambda llm: llm.chat(
        MESSAGES, P, use_tqdm=silent, lora_request=None, priority=None, chat_template=None,
        chat_template_content_format="string", add_generation_prompt=True, continue_final_message=False, tools=None,
        chat_template_kwargs=None, tokenization_kwargs=None, mm_processor_kwargs=None,
    ),
    "add_special_tokens=False": lambda llm: llm.chat(MESSAGES, P, tokenization_kwargs={"add_special_tokens": False}),
    "preprocess_chat, then generate": lambda llm: llm.generate(llm.preprocess_chat(MESSAGES), P),
    "preprocess_chat, 0.10 by position": lambda llm: llm.generate(
        llm.preprocess_chat(MESSAGES, None, "auto", True, False, None, None, None), P
    ),
    "stream_chat": lambda llm: [list(llm.stream_chat(MESSAGES, P))[-1].output],
    "enqueue_chat": lambda llm: (llm.enqueue_chat(MESSAGES, P), llm.wait_for_completion(use_tqdm=False))[1],
    "enqueue_chat, 0.33 by position": lambda llm: (
        llm.enqueue_chat(MESSAGES, P, False, None, None, None, "auto", True, False, None, None, None, None),
        llm.wait_for_completion(use_tqdm=False),
    )[1],
}  # fmt: skip

REFUSED: dict[str, tuple[Callable[[LLM], Any], type[Exception], str]] = {
    "encoder-decoder": (
        lambda llm: llm.generate({"encoder_prompt": TEXT, "decoder_prompt": None}, P),
        ValueError,
        "Cannot pass encoder-decoder prompt to decoder-only models",
    ),
    "embeds": (lambda llm: llm.generate({"prompt_embeds": np.zeros((2, 64))}, P), NotImplementedError, "prompt_embeds"),
    "media": (
        lambda llm: llm.generate({"prompt": TEXT, "multi_modal_data": {"image": 1}}, P),
        ValueError,
        "does not support multi-modal inputs",
    ),
    "cache_salt": (lambda llm: llm.generate({"prompt": TEXT, "cache_salt": "s"}, P), NotImplementedError, "cache_salt"),
    "mm_processor_kwargs": (
        lambda llm: llm.generate(TEXT, P, mm_processor_kwargs={"a": 1}),
        ValueError,
        "mm_processor_kwargs",
    ),
    "lora": (
        lambda llm: llm.generate(TEXT, P, lora_request="l"),
        ValueError,
        "Got lora_request l but LoRA is not enabled!",
    ),
    "lora list": (
        lambda llm: llm.generate([TEXT], P, lora_request=["l", "m"]),
        ValueError,
        "The lengths of prompts and lora_request must be the same.",
    ),
    "lora list, empty": (
        lambda llm: llm.generate([TEXT], P, lora_request=[]),
        ValueError,
        "The lengths of prompts and lora_request must be the same.",
    ),
    "prompt adapter": (
        lambda llm: llm.generate(TEXT, P, prompt_adapter_request="a"),
        NotImplementedError,
        "prompt_adapter_request",
    ),
    "priority": (
        lambda llm: llm.generate(TEXT, P, priority=[1]),
        ValueError,
        "Got priority 1 but Priority scheduling is not enabled.",
    ),
    "priority list": (
        lambda llm: llm.generate(TEXT, P, priority=[0, 0]),
        ValueError,
        "The lengths of prompts and priority must be the same.",
    ),
    "priority word": (lambda llm: llm.generate(TEXT, P, priority="high"), TypeError, "priority must be an integer"),
    "params list": (
        lambda llm: llm.generate([TEXT], [P, P]),
        ValueError,
        "The lengths of prompts and params must be the same.",
    ),
    "params of another kind": (
        lambda llm: llm.generate(TEXT, {"temperature": 0}),  # type: ignore[arg-type]
        TypeError,
        "sampling_params must be SamplingParams",
    ),
    "nothing": (lambda llm: llm.generate(sampling_params=P), TypeError, "prompts must be a string"),
    "bytes": (lambda llm: llm.generate(b"a", P), TypeError, "inputs must be a string, TextPrompt, or TokensPrompt"),
    "legacy, no ids": (lambda llm: llm.generate(None, P, []), ValueError, "please provide at least one prompt"),
    "legacy, lengths": (
        lambda llm: llm.generate([TEXT], P, [[1], [2]]),
        ValueError,
        "The lengths of prompts and prompt_token_ids must be the same.",
    ),
    "legacy, text as ids": (
        lambda llm: llm.generate(None, P, "abc"),
        TypeError,
        "prompt must be a string, array of strings, array of tokens, or array of token arrays",
    ),
    "an unknown keyword": (lambda llm: llm.generate(TEXT, P, temprature=1), TypeError, "temprature"),  # type: ignore[call-arg]
    "tokenization_kwargs": (
        lambda llm: llm.generate(TEXT, P, tokenization_kwargs={"padding": True}),
        NotImplementedError,
        "padding",
    ),
    "chat, priority by position (0.33)": (
        lambda llm: llm.chat(MESSAGES, P, False, None, 0),  # type: ignore[arg-type]
        TypeError,
        "pass priority by keyword",
    ),
    "chat, template by position (0.33)": (
        lambda llm: llm.chat(MESSAGES, P, False, None, None, "{{ messages }}"),
        ValueError,
        "chat_template_content_format must be one of",
    ),
    "chat, template kwargs by position (0.10)": (
        lambda llm: llm.chat(MESSAGES, P, False, None, None, "auto", True, False, None, {"a": 1}),
        ValueError,
        "chat_template_kwargs go by keyword",
    ),
    "stream of two": (lambda llm: llm.stream([TEXT, OTHER], P), ValueError, "use LLM.generate_iter for several"),
    "generate_iter, params list": (
        lambda llm: llm.generate_iter([TEXT], [P, P]),
        ValueError,
        "The lengths of prompts and params must be the same.",
    ),
    "generate_iter, too few params": (
        lambda llm: list(llm.generate_iter(iter([TEXT, OTHER]), iter([P]))),
        ValueError,
        "There are 1 params and more prompts.",
    ),
    "generate_iter, too many params": (
        lambda llm: list(llm.generate_iter(iter([TEXT]), iter([P, P]))),
        ValueError,
        "There are 1 prompts and more params.",
    ),
    "generate_iter, lora": (
        lambda llm: llm.generate_iter([TEXT], P, lora_request="l"),
        ValueError,
        "LoRA is not enabled",
    ),
    "generate_iter, priority": (lambda llm: llm.generate_iter([TEXT], P, priority=[3]), ValueError, "Got priority 3"),
}


@pytest.fixture(scope="module")
def ids(llm: LLM) -> list[list[int]]:
    return [list(llm.get_tokenizer().encode(text)) for text in (TEXT, OTHER)]


@pytest.fixture(scope="module")
def expected(llm: LLM, ids: list[list[int]]) -> list[list[int]]:
    """From the plainest spelling; that its tokens are right is for test_known_answers."""
    outputs = llm.generate([{"prompt_token_ids": one} for one in ids], P, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize("spelling", ONE)
def test_one_prompt(llm: LLM, ids: list[list[int]], expected: list[list[int]], spelling: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        (output,) = ONE[spelling](llm, ids[0])
    assert output.outputs[0].token_ids == expected[0] and output.prompt_token_ids == ids[0]


@pytest.mark.parametrize("spelling", DEPRECATED)
def test_deprecated(llm: LLM, ids: list[list[int]], expected: list[list[int]], spelling: str) -> None:
    with pytest.warns(DeprecationWarning) as caught:
        (output,) = DEPRECATED[spelling](llm, ids[0])
    assert [str(one.message) for one in caught] == [NO_PROMPT_TOKEN_IDS] and caught[0].filename == __file__
    assert output.outputs[0].token_ids == expected[0]


def test_deprecation_can_be_switched_off(llm: LLM, ids: list[list[int]]) -> None:
    LLM.DEPRECATE_LEGACY = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)
            llm.generate(prompt_token_ids=ids, sampling_params=P, use_tqdm=False)
    finally:
        LLM.DEPRECATE_LEGACY = True


@pytest.mark.parametrize("spelling", TWO)
def test_two_prompts(llm: LLM, ids: list[list[int]], expected: list[list[int]], spelling: str) -> None:
    outputs = TWO[spelling](llm, ids)
    assert [output.outputs[0].token_ids for output in outputs] == expected


@pytest.mark.parametrize("spelling", CHAT)
def test_chat(llm: LLM, spelling: str) -> None:
    text = "<|begin|><|user|>Hi<|end|><|assistant|>"
    ids = llm.get_tokenizer().encode(text, add_special_tokens=False)
    (expected,) = llm.generate({"prompt_token_ids": ids}, P, use_tqdm=False)
    (output,) = CHAT[spelling](llm)
    assert output.prompt_token_ids == ids and output.outputs == expected.outputs


@pytest.mark.parametrize("spelling", REFUSED)
def test_refused_by_name(llm: LLM, spelling: str) -> None:
    call, error, message = REFUSED[spelling]
    with pytest.raises(error) as caught:
        call(llm)
    assert message in str(caught.value)
    stats = llm.stats()
    assert stats["num_running"] == stats["num_waiting"] == 0


def test_no_prompts(llm: LLM) -> None:
    assert llm.generate([], P) == [] == llm.chat([], P) == llm.enqueue([], P) == list(llm.generate_iter([], P))
