"""Compiles constraints of text (structured.Constraint) and runs them: one object a tokenizer, on llguidance.

Decides how each kind becomes a grammar, which backend names are served, and what is cached: a constraint is compiled
once, by content. The core calls `fill` and `commit` once a step with all rows that have a constraint; llguidance fills
their masks on its own threads, without the GIL. Everything wrong with a constraint is found by `compile`, in the thread
of the caller.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from quire import xgrammar_backend
from quire._logging import logger
from quire.errors import ValidationError
from quire.structured import Constraint
from quire.tokenizer import Tokenizer
from quire.xgrammar_backend import XGrammar, XGrammars

BACKENDS = ("auto", "guidance", "xgrammar")
_MAX_CACHED = 1024
_OBJECT = '{"type":"object"}'
# What an error of each kind begins with: vLLM's words.
_WRONG = {
    "json": "Invalid JSON grammar specification. The schema cannot be enforced: ",
    "json_object": "Invalid JSON grammar specification. ",
    "regex": "Failed to transform regex into a grammar: ",
    "choice": "Invalid choice: ",
    "grammar": "Invalid grammar specification. ",
    "lark": "Failed to convert the grammar from Lark to EBNF. ",
    "structural_tag": "Invalid structural tag: ",
}


# Most rows take a few microseconds, and waking other threads takes a millisecond on a machine that has work for them.
_SERIAL_SECONDS = 1e-3


def _while_quick(work: Callable[[Any, int], None], rows: Sequence[tuple[Any, int]]) -> int:
    """Calls `work` on the first rows, for _SERIAL_SECONDS; how many."""
    end = time.perf_counter() + _SERIAL_SECONDS
    for done, (state, number) in enumerate(rows, 1):
        work(state, number)
        if time.perf_counter() > end:
            return done
    return len(rows)


class Grammar:
    """A compiled constraint."""

    def __init__(self, backend: Grammars, matcher: Any) -> None:
        self.backend, self._matcher = backend, matcher

    def start(self) -> Any:
        """The state of one sequence, at its beginning."""
        return self._matcher.deep_copy()

    def fork(self, state: Any) -> Any:
        """A copy of a state: two sequences go on from it."""
        return state.deep_copy()


class Grammars:
    """The grammars of one model. `backend` is the engine's, with its options: "name:option,option"."""

    def __init__(
        self, tokenizer: Tokenizer | None, vocab_size: int, eos_token_ids: Sequence[int], backend: str
    ) -> None:
        self._tokenizer, self._vocab_size, self._eos = tokenizer, vocab_size, tuple(eos_token_ids)
        self._backend, _, options = backend.partition(":")
        self._options = frozenset(options.split(",")) if options else frozenset()
        self._lock = threading.Lock()
        self._compiled: OrderedDict[tuple[Any, ...], Grammar | XGrammar] = OrderedDict()
        self._xgrammars: XGrammars | None = None  # made when first asked for
        self._ll_tokenizer: Any = None
        self._executor: Any = None
        self._told_about_backend = False

    def compile(self, constraint: Constraint) -> Grammar | XGrammar:
        """Raises ValidationError, which names the part that is wrong. The grammar's backend fills its masks."""
        is_on_xgrammar = self._backend_of(constraint) == "xgrammar"
        any_whitespace = constraint.any_whitespace and "disable-any-whitespace" not in self._options
        closed = not constraint.additional_properties or "disable-additional-properties" in self._options
        whitespace = constraint.whitespace_pattern
        key = (is_on_xgrammar, constraint.kind, constraint.text, constraint.choices, any_whitespace, closed, whitespace)
        with self._lock:
            found = self._compiled.get(key)
            if found is not None:
                self._compiled.move_to_end(key)
                return found
            if is_on_xgrammar:
                return self._keep(key, self._on_xgrammar(constraint, any_whitespace, closed))
            self._load()
            json_options: dict[str, Any] = {"whitespace_flexible": any_whitespace}
            if whitespace is not None:
                json_options["whitespace_pattern"] = whitespace
            return self._keep(key, Grammar(self, self._matcher(constraint, json_options, closed)))

    def _keep(self, key: tuple[Any, ...], grammar: Grammar | XGrammar) -> Grammar | XGrammar:
        self._compiled[key] = grammar
        if len(self._compiled) > _MAX_CACHED:
            self._compiled.popitem(last=False)
        return grammar

    # What the core calls.

    def fill(self, rows: list[tuple[Any, int]], words: Any) -> list[str | None]:
        """Writes the mask of each state into its row of `words`; the errors."""
        address, row_bytes = words.ctypes.data, words.shape[1] * 4

        def one(state: Any, row: int) -> None:
            state.unsafe_compute_mask_ptr(address + row * row_bytes, row_bytes)

        done = _while_quick(one, rows)
        if done < len(rows):
            self._executor.unsafe_compute_mask_ptr(rows[done:], address, row_bytes, words.shape[0])
        return [_error_of(state) for state, _ in rows]

    def commit(self, tokens: list[tuple[Any, int]]) -> list[tuple[bool, str | None]]:
        """Whether nothing may follow the token, and the error if it may not come itself."""
        taken: list[bool] = []
        done = _while_quick(lambda state, token: taken.append(state.consume_token(token)), tokens)
        if done < len(tokens):
            taken += self._executor.consume_token_par(tokens[done:])
        return [
            (state.is_stopped(), None if good else _error_of(state))
            for (state, _), good in zip(tokens, taken, strict=True)
        ]

    # Parts of compile.

    def _backend_of(self, constraint: Constraint) -> str:
        """The backend that serves: guidance, or xgrammar where that is asked for, is there and can."""
        asked = constraint.backend or self._backend
        if constraint.backend and self._backend != "auto" and constraint.backend != self._backend:
            raise ValidationError(
                "Request-level structured output backend must match engine-level backend. "
                f"{constraint.backend} != {self._backend}"
            )
        if asked in ("outlines", "lm-format-enforcer"):
            raise NotImplementedError(
                f"The structured output backend {asked!r} is not supported by this version of quire; use 'auto' or "
                "'guidance'."
            )
        if asked not in BACKENDS:
            raise ValidationError(f"Invalid structured output backend {asked!r}, must be one of {list(BACKENDS)}.")
        if asked != "xgrammar":
            return "guidance"
        may_fall_back = constraint.fallback and "no-fallback" not in self._options
        is_installed = xgrammar_backend.is_installed()
        lacks = xgrammar_backend.what_it_lacks(constraint)
        if is_installed and lacks is None:
            return "xgrammar"
        if not may_fall_back and not is_installed:
            raise ImportError(
                "The structured output backend 'xgrammar' needs pip install xgrammar (which needs torch), and no other "
                "may take its place; install it, use 'auto' or 'guidance', or allow a fallback."
            )
        if not may_fall_back and constraint.kind == "json":
            raise ValidationError(
                f"The provided JSON schema contains features not supported by xgrammar. It does not enforce {lacks}."
            )
        if not may_fall_back:
            raise ValidationError(f"xgrammar does not support {lacks}; use 'auto' or 'guidance', or allow a fallback.")
        if not is_installed and not self._told_about_backend:
            self._told_about_backend = True
            logger.warning(
                "The structured output backend 'xgrammar' is not there (pip install xgrammar); 'guidance' takes its "
                "place."
            )
        return "guidance"

    def _on_xgrammar(self, constraint: Constraint, any_whitespace: bool, closed: bool) -> XGrammar:
        if self._tokenizer is None:
            raise ValidationError("Structured output needs a tokenizer; skip_tokenizer_init is True.")
        if not self._eos:
            raise ValidationError("Structured output needs an end-of-sequence token, and the model names none.")
        if self._xgrammars is None:
            self._xgrammars = XGrammars(self._tokenizer.token_bytes(self._vocab_size), self._eos)
        schema = json.loads(constraint.text) if constraint.kind == "json" else None
        is_lark = constraint.kind == "grammar" and "::=" not in constraint.text
        try:
            return self._xgrammars.compile(
                constraint, any_whitespace, close_objects(schema) if closed else schema, closed
            )
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValidationError(_WRONG["lark" if is_lark else constraint.kind] + str(error)) from error

    def _load(self) -> None:
        if self._ll_tokenizer is not None:
            return
        try:
            import llguidance
        except ImportError as error:
            raise ImportError(
                "Structured output needs llguidance: pip install llguidance, or quire with the extra [structured]."
            ) from error
        if self._tokenizer is None:
            raise ValidationError("Structured output needs a tokenizer; skip_tokenizer_init is True.")
        if not self._eos:
            raise ValidationError("Structured output needs an end-of-sequence token, and the model names none.")
        # The json may name more tokens than the model has.
        source: Any = self._tokenizer.fast_json() if len(self._tokenizer) <= self._vocab_size else None
        source = source or _ByteTokenizer(self._tokenizer, self._vocab_size, self._eos[0])
        self._ll_tokenizer = llguidance.LLTokenizer(source, n_vocab=self._vocab_size, eos_token=list(self._eos))
        self._executor = llguidance.LLExecutor(min(16, len(os.sched_getaffinity(0))))

    def _matcher(self, constraint: Constraint, json_options: dict[str, Any], closed: bool) -> Any:
        import llguidance

        is_lark = constraint.kind == "grammar" and "::=" not in constraint.text
        what = _WRONG["lark" if is_lark else constraint.kind]
        try:
            text = self._grammar_text(constraint, json_options, closed)
            matcher = llguidance.LLMatcher(self._ll_tokenizer, text, log_level=0)
        except (ValueError, TypeError) as error:
            raise ValidationError(what + str(error)) from error
        if matcher.is_error():
            raise ValidationError(what + str(_error_of(matcher)))
        return matcher

    def _grammar_text(self, constraint: Constraint, json_options: Any, closed: bool) -> str:
        """The constraint as llguidance reads it."""
        from llguidance import LLMatcher

        text = constraint.text
        if constraint.kind in ("json", "json_object"):
            schema = json.loads(text or _OBJECT)
            schema = {"allOf": [schema]} if isinstance(schema, bool) else schema  # options need an object
            schema = close_objects(schema) if closed else schema
            return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=json_options)
        if constraint.kind == "regex":
            return LLMatcher.grammar_from_regex(text)
        if constraint.kind == "choice":
            return LLMatcher.grammar_from_lark(choice_grammar(constraint.choices))
        if constraint.kind == "grammar":
            return LLMatcher.grammar_from_lark(_ebnf_to_lark(text) if "::=" in text else text)
        return self._structural_tag(json.loads(text), json_options, closed)

    def _structural_tag(self, value: Any, json_options: dict[str, Any], closed: bool) -> str:
        from llguidance import LLMatcher, StructTag

        if not isinstance(value, dict) or not isinstance(value.get("structures"), list):
            known = sorted(value) if isinstance(value, dict) else type(value).__name__
            raise ValueError(f"it must have the keys structures and triggers, got {known}")
        triggers = value.get("triggers")
        if not isinstance(triggers, list) or not all(isinstance(one, str) and one for one in triggers):
            raise ValueError("triggers must be a list of strings, none of them empty")
        tags = []
        for position, structure in enumerate(value["structures"]):
            if not isinstance(structure, dict) or not {"begin", "end"} <= set(structure):
                raise ValueError(f"structures[{position}] must have the keys begin, schema and end")
            begin = structure["begin"]
            trigger = next((one for one in triggers if begin.startswith(one)), None)
            if trigger is None:
                raise ValueError(f"structures[{position}].begin {begin!r} starts with none of the triggers {triggers}")
            schema = structure.get("schema", structure.get("structural_tag_schema", {}))
            schema = close_objects(schema) if closed else schema
            if isinstance(schema, dict):
                schema = {**schema, "x-guidance": json_options}
            tags.append(StructTag(trigger=trigger, begin=begin, grammar=json.dumps(schema), end=structure["end"]))
        if not tags:
            raise ValueError("structures must not be empty")
        assert self._tokenizer is not None
        specials = set(self._tokenizer.special_texts().values())
        bracketed = {tag.trigger in specials for tag in tags if tag.trigger[0] == "<" and tag.trigger[-1] == ">"}
        if len(bracketed) > 1:
            raise ValueError(f"of the triggers {triggers} some are special tokens and some are text in <>")
        return LLMatcher.grammar_from_lark(StructTag.to_grammar(tags, assume_special=bracketed == {True}))


class _ByteTokenizer:
    """A tokenizer for llguidance that knows the bytes of the tokens alone."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_id: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = eos_token_id, None
        pieces = tokenizer.token_bytes(vocab_size)
        self.special_token_ids = [i for i, piece in enumerate(pieces) if not piece]
        names = tokenizer.special_texts()
        self.tokens = [piece or names.get(i, f"<|unused {i}|>").encode() for i, piece in enumerate(pieces)]

    def __call__(self, text: bytes | str) -> list[int]:
        text = text.decode(errors="replace") if isinstance(text, bytes) else text
        return self._tokenizer.encode(text, add_special_tokens=False)


def _error_of(matcher: Any) -> str | None:
    """The message without the dump of the parser's state that follows it."""
    text = matcher.get_error()
    return text.split("\n<state>")[0].strip() if text else None


def choice_grammar(choices: Sequence[str]) -> str:
    return "start: " + " | ".join(json.dumps(one, ensure_ascii=False) for one in choices)


def _ebnf_to_lark(text: str) -> str:
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return str(any_to_lark(text))
    except Exception as error:  # the module has errors of its own, and IndexError where a text ends early
        raise ValueError(str(error) or type(error).__name__) from error


def close_objects(schema: Any) -> Any:
    """The schema with additionalProperties false in each object that lists properties and says nothing of others."""
    if isinstance(schema, list):
        return [close_objects(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {
        key: value if key in ("const", "enum", "default") else close_objects(value) for key, value in schema.items()
    }
    is_schema = isinstance(schema.get("properties"), dict) or isinstance(schema.get("patternProperties"), dict)
    if is_schema and "additionalProperties" not in schema:
        closed["additionalProperties"] = False
    return closed
