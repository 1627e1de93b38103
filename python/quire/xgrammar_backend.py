"""Constraints of text on xgrammar, where it is installed: the other backend of grammars.py, with the same interface.

Decides which constraints xgrammar can hold: of a JSON schema only keywords that it is known to enforce, so that none is
ignored. Masks are filled by xgrammar's threads. Called as grammars.py is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from quire.structured import Constraint

_OBJECT = '{"type":"object"}'
# Keywords of a schema that are enforced, or that say nothing about a value.
_KNOWN = frozenset(
    "type properties required additionalProperties items enum const anyOf $ref $defs definitions minLength maxLength "
    "title description default examples $schema $id $comment".split()
)
_OF_SCHEMAS = ("properties", "$defs", "definitions")  # names of the caller's, not keywords


def is_installed() -> bool:
    try:
        import xgrammar  # noqa: F401
    except ImportError:
        return False
    return True


def what_it_lacks(constraint: Constraint) -> str | None:
    """What of a constraint xgrammar would not hold; None where it holds all."""
    if constraint.kind == "structural_tag":
        return "structural tags"
    if constraint.whitespace_pattern is not None:
        return "whitespace_pattern"
    if constraint.kind != "json":
        return None
    unknown = sorted(_unknown_keywords(json.loads(constraint.text)))
    return f"the keywords {unknown} of a schema" if unknown else None


def _unknown_keywords(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*(_unknown_keywords(one) for one in schema))
    if not isinstance(schema, dict):
        return set()
    found = set(schema) - _KNOWN
    for key, value in schema.items():
        if key in ("enum", "const", "default", "examples"):
            continue
        nested = list(value.values()) if key in _OF_SCHEMAS and isinstance(value, dict) else value
        found |= _unknown_keywords(nested)
    return found


class XGrammar:
    """A compiled constraint."""

    def __init__(self, backend: XGrammars, compiled: Any) -> None:
        self.backend, self._compiled = backend, compiled

    def start(self) -> Any:
        """The state of one sequence, at its beginning."""
        import xgrammar

        return xgrammar.GrammarMatcher(self._compiled)

    def fork(self, state: Any) -> Any:
        """A copy of a state: two sequences go on from it."""
        return state.fork()


class XGrammars:
    """The grammars of one model."""

    def __init__(self, token_bytes: Sequence[bytes], eos_token_ids: Sequence[int]) -> None:
        import xgrammar

        num_threads = min(16, len(os.sched_getaffinity(0)))
        # A token without bytes is a special one, which no grammar lets come.
        info = xgrammar.TokenizerInfo(
            list(token_bytes), vocab_size=len(token_bytes), stop_token_ids=list(eos_token_ids)
        )
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=num_threads)
        self._batch = xgrammar.BatchGrammarMatcher(max_threads=num_threads)
        self._mask = np.zeros((1, (len(token_bytes) + 31) // 32), dtype=np.int32)
        self._end = np.zeros_like(self._mask)
        for token_id in eos_token_ids:
            self._end.view(np.uint32)[0, token_id // 32] |= np.uint32(1 << token_id % 32)

    def compile(self, constraint: Constraint, any_whitespace: bool, schema: Any, closed: bool) -> XGrammar:
        """`schema` is that of a json constraint. What xgrammar cannot read raises ValueError or RuntimeError."""
        compiler, text = self._compiler, constraint.text
        if constraint.kind in ("json", "json_object"):
            compiled = compiler.compile_json_schema(
                json.dumps(schema) if constraint.kind == "json" else _OBJECT,
                any_whitespace=any_whitespace,
                separators=None if any_whitespace else (",", ":"),
                strict_mode=closed,
            )
        elif constraint.kind == "regex":
            compiled = compiler.compile_regex(text)
        elif constraint.kind == "choice":
            choices = (json.dumps(one, ensure_ascii=False) for one in constraint.choices)
            compiled = compiler.compile_grammar("root ::= " + " | ".join(choices))
        else:
            compiled = compiler.compile_grammar(text) if "::=" in text else compiler.compile_lark(text)
        return XGrammar(self, compiled)

    # What the core calls.

    def fill(self, rows: list[tuple[Any, int]], words: Any) -> list[str | None]:
        """Writes the mask of each state into its row of `words`; the errors."""
        self._batch.batch_fill_next_token_bitmask([state for state, _ in rows], words, [row for _, row in rows])
        return [None] * len(rows)

    def commit(self, tokens: list[tuple[Any, int]]) -> list[tuple[bool, str | None]]:
        """Whether nothing may follow the token, and the error if it may not come itself."""
        results: list[tuple[bool, str | None]] = []
        for state, token_id in tokens:
            if state.is_terminated() or not state.accept_token(token_id):
                results.append((False, f"the grammar does not let token {token_id} come"))
            else:
                results.append((state.is_terminated() or self._is_complete(state), None))
        return results

    def _is_complete(self, state: Any) -> bool:
        if not state.is_completed():
            return False
        self._mask[:] = -1  # it is left alone where all tokens may come
        state.fill_next_token_bitmask(self._mask)
        return not (self._mask & ~self._end).any()
