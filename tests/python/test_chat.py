"""Messages and the choice of a template; how a template runs, and which content it expects."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from quire import chat, chat_template

CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi there"}],
    [
        {"role": "system", "content": "You are kind."},
        {"role": "user", "content": 'Tell me  a <story> & "more"\n'},
        {"role": "assistant", "content": " Once upon a time "},
        {"role": "user", "content": "Go on…"},
    ],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Once upon a  "}],
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a <place>",
            "parameters": {"type": "object", "properties": {"place": {"type": "string", "description": "where"}}},
        },
    }
]
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def test_template_refusals_are_value_errors() -> None:
    refusing = "{{ raise_exception('no system role') }}"
    with pytest.raises(ValueError, match="no system role"):
        chat_template.render(refusing, CONVERSATIONS[0], special_tokens={})
    with pytest.raises(ValueError, match="not valid Jinja.*line 1"):
        chat_template.render("{% for %}", CONVERSATIONS[0], special_tokens={})
    with pytest.raises(ValueError, match="continue_final_message and add_generation_prompt are not compatible"):
        chat_template.render("{{ messages }}", CONVERSATIONS[0], special_tokens={}, continue_final_message=True)


def test_template_runs_in_a_sandbox() -> None:
    escape = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(ValueError, match="cannot render"):
        chat_template.render(escape, CONVERSATIONS[0], special_tokens={})


def test_template_kwargs_reach_the_template() -> None:
    source = "{{ bos_token }}{% if enable_thinking %}think{% endif %}{{ messages[0]['content'] }}"
    rendered = chat_template.render(
        source,
        CONVERSATIONS[0],
        special_tokens=SPECIAL_TOKENS,
        template_kwargs={"enable_thinking": True, "bos_token": "<b>"},
    )
    assert rendered == "<b>thinkHi there"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "string"),
        ("{% for m in messages %}{% for part in m['content'] %}{{ part.text }}{% endfor %}{% endfor %}", "openai"),
        ("{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}", "openai"),
        (
            "{% set rest = messages[1:] %}{% for m in rest %}{% set c = m['content'] %}"
            "{% for part in c | selectattr('type', 'equalto', 'text') %}{{ part }}{% endfor %}{% endfor %}",
            "openai",
        ),
        ("{% set first = messages[0] %}{% for part in first['content'] %}{{ part }}{% endfor %}", "openai"),
        ("{% for m in messages %}{% for call in m.tool_calls %}{{ call }}{% endfor %}{% endfor %}", "string"),
        ("{% for m in messages %}{% for x in tools %}{{ m.content }}{% endfor %}{% endfor %}", "string"),
        (
            "{% set loop_messages = messages %}{% for message in loop_messages %}{% if message.content is string %}"
            "{{ message.content }}{% else %}{% for item in message['content'] | selectattr('type') %}"
            "{{ item['text'] }}{% endfor %}{% endif %}{% endfor %}",
            "openai",
        ),
        ("{% set last = messages[-1] %}{% for part in last.content[1:] %}{{ part }}{% endfor %}", "openai"),
        ("{% for m in messages %}{% for word in m.content.split(' ') %}{{ word }}{% endfor %}{% endfor %}", "string"),
        ("{{ messages | map(attribute='content') | join }}", "string"),
        ("{% for %}", "string"),
    ],
)
def test_content_format(source: str, expected: str) -> None:
    assert chat_template.content_format(source) == expected


def test_content_format_of_real_templates() -> None:
    files = sorted((Path(__file__).resolve().parents[1] / "data" / "chat_templates").glob("*/*.jinja"))
    assert len(files) == 35
    for file in files:
        source = file.read_text(encoding="utf-8")
        walks = re.search(r"for \w+ in message(\.content|\['content'\])", source) is not None
        assert chat_template.content_format(source) == ("openai" if walks else "string"), file.name


def test_parts_become_strings_or_stay_parts() -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "a"}, "b", {"type": "refusal", "refusal": "c"}]}
    thinking = {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}]}
    assert chat.parse_messages([thinking], "string") == [{"role": "assistant", "content": "hm"}]
    assert chat.parse_messages([message], "string") == [{"role": "user", "content": "a\nb\nc"}]
    parts = [{"type": "text", "text": text} for text in "abc"]
    assert chat.parse_messages([message], "openai") == [{"role": "user", "content": parts}]
    assert chat.parse_messages([{"role": "user"}], "string") == [{"role": "user", "content": ""}]
    assert chat.parse_messages([{"role": "user", "content": None}], "openai") == [{"role": "user", "content": []}]


def test_keys_of_messages() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    parsed = chat.parse_messages(
        [
            {"role": "assistant", "content": None, "tool_calls": [call], "unknown": 1},
            {"role": "tool", "content": "sunny", "tool_call_id": "1", "name": "f"},
            {"role": "user", "content": "x", "tool_call_id": "1"},
        ],
        "string",
    )
    assert parsed[0]["tool_calls"][0]["function"]["arguments"] == {"x": 1} and "unknown" not in parsed[0]
    assert parsed[1] == {"role": "tool", "content": "sunny", "tool_call_id": "1", "name": "f"}
    assert parsed[2] == {"role": "user", "content": "x"}
    for given, expected in (({"x": 1}, {"x": 1}), ("", {}), ('{"x": [1, null]}', {"x": [1, None]})):
        message = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": given}}]}
        (one,) = chat.parse_messages([message], "string")
        assert one["tool_calls"][0]["function"]["arguments"] == expected and one["content"] == ""
    with pytest.raises(ValueError, match="arguments of a tool call are not valid JSON"):
        bad = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{x"}}]}
        chat.parse_messages([bad], "string")
    assert call["function"]["arguments"] == '{"x": 1}'  # type: ignore[index]


@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        ({"type": "image_url", "image_url": {"url": "x"}}, ValueError, "does not support multi-modal inputs"),
        ({"image_url": "x"}, ValueError, "does not support multi-modal inputs"),
        ({"type": "smell", "smell": "x"}, NotImplementedError, "Unknown part type: smell"),
        ({"text": "x"}, ValueError, "Missing 'type' field in multimodal part."),
        ({"type": 3}, ValueError, "Invalid 'type' field in multimodal part."),
        (3, TypeError, "a content part must be a string or a dict"),
    ],
)
def test_bad_parts(part: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        chat.parse_messages([{"role": "user", "content": [part]}], "string")


def test_conversations() -> None:
    one = CONVERSATIONS[0]
    assert chat.as_conversations(one) == [one]
    assert chat.as_conversations([one, one]) == [one, one]
    assert chat.as_conversations([]) == []
    for wrong in ("text", one[0], None, 3):
        with pytest.raises(TypeError, match="messages must be a list"):
            chat.as_conversations(wrong)


def test_choice_of_template() -> None:
    named = {"default": "D", "tool_use": "T", "rag": "R"}
    assert chat.choose_template(None, "text", None) == "text"
    assert chat.choose_template("{{ given }}", "text", None) == "{{ given }}"
    assert chat.choose_template(None, named, None) == "D"
    assert chat.choose_template(None, named, TOOLS) == "T"
    assert chat.choose_template("rag", named, None) == "R"
    named_too = {"default": "D", "short": "no braces"}
    assert chat.choose_template("short", named_too, None) == "no braces"
    with pytest.raises(TypeError, match=r"chat_template must be the text .* got int \(pass priority by keyword\)"):
        chat.choose_template(3, named, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="As of transformers v4.44, default chat template is no longer allowed"):
        chat.choose_template(None, None, None)
    with pytest.raises(ValueError, match="none is named 'default'"):
        chat.choose_template(None, {"rag": "R", "b": "B"}, None)


def test_template_of_the_constructor(tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages }}")
    assert chat.load_template(str(file)) == chat.load_template(file) == "{{ messages }}"
    assert chat.load_template("{{ bos_token }}") == "{{ bos_token }}"
    with pytest.raises(ValueError, match="neither a template nor a readable file"):
        chat.load_template(str(tmp_path / "missing.jinja"))
