"""Chat templates: Jinja source to prompt text, as Hugging Face tokenizers render it, without importing transformers.

Decides the sandbox, the functions a template may call and what it sees. Also reads from a template whether it walks
through content parts ("openai") or prints content as a string. Pure; compiled templates are cached.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2
    from jinja2 import nodes

# Marks the end of the last message while a template is rendered that shall be continued there. The space at its end
# tells whether the template strips what it prints.
_CONTINUE_MARK = "QuireContinuesThisMessageHere "

BOTH_FLAGS = (
    "continue_final_message and add_generation_prompt are not compatible. Use continue_final_message when you want the "
    "model to continue the final message, and add_generation_prompt when you want to add a header that will prompt it "
    "to start a new assistant message instead."
)


@lru_cache(maxsize=32)
def _compile(source: str) -> jinja2.Template:
    return _environment().from_string(source)


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` marks what the model writes, for training; here its body is printed as it is."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, **more: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, **more)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def plain(value: Any) -> Any:
    """A copy made of plain JSON types: a template is code of a stranger and gets no objects with methods."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "model_dump"):
        return plain(value.model_dump())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)})
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return plain(value.item())
    return f"<{type(value).__name__}>"


def render(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    special_tokens: Mapping[str, str],
    tools: Sequence[dict[str, Any] | Callable[..., Any]] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """The prompt of one conversation. ValueError for what the template itself refuses."""
    import jinja2

    if add_generation_prompt and continue_final_message:
        raise ValueError(BOTH_FLAGS)
    conversation = plain(list(messages))
    if continue_final_message:
        final_text = _mark_end(conversation)
    try:
        rendered = _compile(source).render(
            messages=conversation,
            tools=_tool_schemas(tools),
            add_generation_prompt=add_generation_prompt,
            **{"documents": None, **special_tokens, **plain(dict(template_kwargs or {}))},
        )
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"The chat template is not valid Jinja: {error} (line {error.lineno})") from error
    except (jinja2.TemplateError, TypeError, KeyError) as error:
        raise ValueError(f"The chat template cannot render this conversation: {error}") from error
    return _cut_at_mark(rendered, final_text) if continue_final_message else rendered


def _mark_end(conversation: list[dict[str, Any]]) -> str:
    if not conversation:
        raise ValueError("continue_final_message is set but the conversation is empty!")
    message = conversation[-1]
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + _CONTINUE_MARK
        return content
    for part in reversed(content or []):
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            text = part["text"]
            part["text"] = text + _CONTINUE_MARK
            return text
    raise ValueError("continue_final_message is set but we could not find any text to continue in the final message!")


def _cut_at_mark(rendered: str, final_text: str) -> str:
    position = rendered.rfind(_CONTINUE_MARK.strip())
    if position < 0 or final_text.strip() not in rendered:
        raise ValueError(
            "continue_final_message is set but the final message does not appear in the chat after applying the chat "
            f"template! Final message: {final_text.strip()!r}; rendered chat: {rendered!r}"
        )
    before = rendered[:position]
    return before if rendered.startswith(_CONTINUE_MARK, position) else before.rstrip()


def _tool_schemas(tools: Sequence[Any] | None) -> list[Any] | None:
    if tools is None:
        return None
    schemas = []
    for tool in tools:
        if isinstance(tool, Mapping):
            schemas.append(plain(tool))
        elif callable(tool):
            from transformers.utils import get_json_schema  # reads type hints and docstring

            schemas.append(get_json_schema(tool))
        else:
            raise ValueError(
                "Tools should either be a JSON schema, or a callable function with type hints and a docstring suitable "
                f"for auto-conversion to a schema; got {type(tool).__name__}."
            )
    return schemas


@lru_cache(maxsize=32)
def variables(source: str) -> frozenset[str]:
    """The names that a template reads and does not set itself. Of a template that is not Jinja: none."""
    import jinja2.meta

    try:
        return frozenset(jinja2.meta.find_undeclared_variables(_environment().parse(source)))
    except jinja2.TemplateError:
        return frozenset()


@lru_cache(maxsize=32)
def content_format(source: str) -> str:
    """ "openai" when the template loops over a message's content, else "string"."""
    import jinja2

    try:
        tree = _environment().parse(source)
    except jinja2.TemplateError:
        return "string"
    return "openai" if _loops_over_content(tree) else "string"


def _loops_over_content(tree: nodes.Template) -> bool:
    """Follows names: conversations -> messages -> contents, until nothing new is found; then looks for the loop."""
    from jinja2 import nodes

    conversations, messages, contents = {"messages"}, set[str](), set[str]()

    def is_message(node: nodes.Node) -> bool:
        if isinstance(node, nodes.Getitem) and not isinstance(node.arg, nodes.Slice) and _is_integer(node.arg):
            return _root_name(node.node) in conversations
        return _root_name(node) in messages

    def is_content(node: nodes.Node) -> bool:
        node = _through_filters(node)
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "content":
            return is_message(node.node)
        if isinstance(node, nodes.Getattr) and node.attr == "content":
            return is_message(node.node)
        return isinstance(node, nodes.Name) and node.name in contents

    size = -1
    while size != len(conversations) + len(messages) + len(contents):
        size = len(conversations) + len(messages) + len(contents)
        for target, value in _bindings(tree):
            if is_content(value):
                contents.add(target)
            elif is_message(value):
                messages.add(target)
            elif _root_name(value) in conversations:
                conversations.add(target)
        for loop in tree.find_all(nodes.For):
            if isinstance(loop.target, nodes.Name) and _root_name(loop.iter) in conversations:
                messages.add(loop.target.name)
    return any(is_content(loop.iter) for loop in tree.find_all(nodes.For))


def _bindings(tree: nodes.Template) -> Iterator[tuple[str, nodes.Node]]:
    from jinja2 import nodes

    for assign in tree.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name):
            yield assign.target.name, assign.node


def _is_integer(node: nodes.Node) -> bool:
    from jinja2 import nodes

    return (isinstance(node, nodes.Const) and isinstance(node.value, int)) or isinstance(
        node, (nodes.Neg, nodes.Name, nodes.Sub, nodes.Add)
    )


def _through_filters(node: nodes.Node) -> nodes.Node:
    """What a filter, a test or a slice is applied to."""
    from jinja2 import nodes

    while True:
        if isinstance(node, (nodes.Filter, nodes.Test)) and node.node is not None:
            node = node.node
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            node = node.node
        else:
            return node


def _root_name(node: nodes.Node) -> str | None:
    from jinja2 import nodes

    node = _through_filters(node)
    return node.name if isinstance(node, nodes.Name) else None
