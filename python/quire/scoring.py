"""score: pairs of texts, by a cross-encoder, by the angle between two embeddings or token by token.

Decides which pairs there are, and how embeddings are compared. Knows no engine: embedding and classifying come in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from quire.errors import ValidationError
from quire.inputs import is_token_ids
from quire.pooling_outputs import PoolingOutput, PoolingRequestOutput, ScoringOutput, ScoringRequestOutput
from quire.pooling_requests import Pair

if TYPE_CHECKING:
    from quire.tokenizer import Tokenizer


def as_texts(given: Any, tokenizer: Tokenizer | None) -> list[str | Exception]:
    """The texts on one side; token ids are turned back into text. What is wrong with one stands in its place."""
    items = [given] if isinstance(given, (str, Mapping)) else list(given)
    return [_checked_text(item, tokenizer) for item in items]


def _checked_text(item: Any, tokenizer: Tokenizer | None) -> str | Exception:
    try:
        return _text(item, tokenizer)
    except (ValueError, TypeError) as error:
        return error.with_traceback(None)


def _text(item: Any, tokenizer: Tokenizer | None) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, Mapping):
        if item.get("multi_modal_data"):
            raise ValidationError("Multi-modal prompt is not supported for scoring")
        if item.get("prompt_token_ids") is not None:
            ids = item["prompt_token_ids"]
            if not is_token_ids(ids):
                raise TypeError("prompt_token_ids must be a list of integers")
            if tokenizer is None:
                raise ValidationError("scoring token ids needs a tokenizer: they are turned into text")
            return tokenizer.decode(list(ids))
        if isinstance(item.get("prompt"), str):
            return str(item["prompt"])
    raise TypeError(f"inputs must be a string, TextPrompt, or TokensPrompt; got {type(item).__name__}")


def check_lengths(num_first: int, num_second: int) -> None:
    if num_first > 1 and num_first != num_second:
        raise ValidationError("Input lengths must be either 1:1, 1:N or N:N")
    if num_first == 0:
        raise ValidationError("At least one text element must be given")
    if num_second == 0:
        raise ValidationError("At least one text_pair element must be given")


def pairs_of(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    """Pairs for a cross-encoder; an error on either side takes the place of its pair."""
    if len(first) == 1:
        first = list(first) * len(second)
    return [
        a if isinstance(a, Exception) else b if isinstance(b, Exception) else Pair(a, b)
        for a, b in zip(first, second, strict=True)
    ]


def cosine(u: Any, v: Any) -> float:
    import numpy as np

    # torch.nn.CosineSimilarity's bound, against division by zero.
    norm = max(float(np.sqrt((u @ u) * (v @ v))), 1e-8)
    return float((u @ v) / norm)


def max_sim(u: Any, v: Any) -> float:
    """ColBERT's: of each token on the left the likeness to its nearest on the right, summed."""
    return float((u @ v.T).max(axis=1).sum())


def compared(
    first: Sequence[PoolingRequestOutput[PoolingOutput]],
    second: Sequence[PoolingRequestOutput[PoolingOutput]],
    pad_token_id: int | None,
    likeness: Callable[[Any, Any], float],
) -> list[ScoringRequestOutput]:
    """The likeness of each pair of embeddings; one on the left stands against all on the right."""
    import numpy as np

    if len(first) == 1:
        first = list(first) * len(second)
    padding = [] if pad_token_id is None else [pad_token_id]
    scores = []
    for a, b in zip(first, second, strict=True):
        error = a.error or b.error
        outputs = None
        if error is None:
            u, v = (one.outputs.array().astype(np.float64) for one in (a, b))
            outputs = ScoringOutput(float(np.float32(likeness(u, v))))
        ids = [*a.prompt_token_ids, *padding, *b.prompt_token_ids]
        scores.append(ScoringRequestOutput(f"{a.request_id}_{b.request_id}", outputs, ids, True, error=error))  # type: ignore[arg-type]
    return scores
