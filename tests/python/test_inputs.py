"""Prompts in every shape a caller may give them, and the errors for anything else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from quire.inputs import as_list, legacy_prompts, parse_prompt


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("text", ["text"]),
        ({"prompt": "text"}, [{"prompt": "text"}]),
        (["a", "b"], ["a", "b"]),
        (("a", "b"), ["a", "b"]),
        ([], []),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        (["a", {"prompt_token_ids": [1]}, [2, 3]], ["a", {"prompt_token_ids": [1]}, [2, 3]]),
    ],
)
def test_one_or_many(prompts: Any, expected: list[Any]) -> None:
    assert as_list(prompts) == expected


def test_arrays() -> None:
    assert len(as_list(np.array([1, 2, 3]))) == 1
    assert len(as_list(np.array([[1, 2], [3, 4]]))) == 2
    assert parse_prompt(np.array([1, 2], dtype=np.int32)).token_ids == [1, 2]
    with pytest.raises(TypeError):
        parse_prompt(np.array([1.5]))


@pytest.mark.parametrize("prompts", [None, 3, b"bytes", object(), iter(["a"])])
def test_not_prompts(prompts: Any) -> None:
    with pytest.raises(TypeError):
        as_list(prompts)


def test_token_ids_win_over_text_in_a_dict() -> None:
    parsed = parse_prompt({"prompt_token_ids": [1, 2], "prompt": "text"})
    assert parsed.token_ids == [1, 2] and parsed.text is None
    assert parse_prompt({"prompt": "text"}).text == "text"


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        (3, TypeError, "inputs must be a string, TextPrompt, or TokensPrompt"),
        (None, TypeError, "inputs must be a string, TextPrompt, or TokensPrompt"),
        ({}, TypeError, "inputs must be a string, TextPrompt, or TokensPrompt"),
        ({"prompt": 3}, TypeError, "'prompt' must be a string"),
        ({"prompt_token_ids": "ids"}, TypeError, "prompt_token_ids must be a list of integers"),
        ([1, "a"], TypeError, "entry of type str"),
        ([True], TypeError, "entry of type bool"),
        ({"encoder_prompt": "a", "decoder_prompt": "b"}, ValueError, "Cannot pass encoder-decoder prompt"),
        ({"prompt": "a", "multi_modal_data": {"image": 1}}, ValueError, "does not support multi-modal inputs"),
        ({"prompt": "a", "cache_salt": "x"}, NotImplementedError, "cache_salt"),
        ({"prompt_embeds": [1.0]}, NotImplementedError, "prompt_embeds"),
    ],
)
def test_bad_prompts(prompt: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_prompt(prompt)


@pytest.mark.parametrize(
    ("prompts", "ids", "expected"),
    [
        (None, [1, 2], [{"prompt_token_ids": [1, 2]}]),
        (None, [[1], [2, 3]], [{"prompt_token_ids": [1]}, {"prompt_token_ids": [2, 3]}]),
        ("text", [1, 2], ["text"]),
        (["a", "b"], [[1], [2]], ["a", "b"]),
    ],
)
def test_legacy(prompts: Any, ids: Any, expected: list[Any]) -> None:
    assert legacy_prompts(prompts, ids) == expected


@pytest.mark.parametrize(
    ("prompts", "ids", "error", "message"),
    [
        (["a"], [[1], [2]], ValueError, "The lengths of prompts and prompt_token_ids must be the same."),
        (None, [], ValueError, "please provide at least one prompt"),
        (None, "text", TypeError, "prompt must be a string, array of strings, array of tokens, or array of token"),
        (None, None, ValueError, "Either prompts or prompt_token_ids must be provided."),
    ],
)
def test_legacy_errors(prompts: Any, ids: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        legacy_prompts(prompts, ids)
