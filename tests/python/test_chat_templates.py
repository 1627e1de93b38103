"""35 published chat templates: what quire renders is what transformers' apply_chat_template renders, errors included.

The templates lie in tests/data/chat_templates, with their sources and licences.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from quire import LLM, SamplingParams, chat, chat_template
from quire.inputs import ParsedPrompt
from quire.tokenizer import load_tokenizer

FOLDER = Path(__file__).resolve().parents[1] / "data" / "chat_templates"
FILES = sorted(FOLDER.glob("*/*.jinja"))
NAMES = [file.stem for file in FILES]
Conversation = list[dict[str, Any]]


def call(arguments: Any, call_id: str = "a12345678") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "weather", "arguments": arguments}}


ANSWER = {"role": "tool", "content": '{"sky": "blue"}', "tool_call_id": "a12345678", "name": "weather"}
CONVERSATIONS: dict[str, Conversation] = {
    "one turn": [{"role": "user", "content": "Hi there"}],
    "system": [
        {"role": "system", "content": "You are kind."},
        {"role": "user", "content": 'Tell me  a <story> & "more"\n'},
    ],
    "many turns": [
        {"role": "user", "content": "One {{ 1 + 1 }}"},
        {"role": "assistant", "content": " Once upon a time "},
        {"role": "user", "content": "Go on…"},
        {"role": "assistant", "content": "there was a 🐕"},
        {"role": "user", "content": "\n and? "},
    ],
    "system and many turns": [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two"},
        {"role": "user", "content": "Three"},
    ],
    "last is the assistant": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Once upon a"}],
    "two users": [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Hello?"}],
    "system last": [{"role": "user", "content": "Hi"}, {"role": "system", "content": "Be kind."}],
    "unknown role": [{"role": "wizard", "content": "Abracadabra"}],
    "tool call": [
        {"role": "user", "content": "Weather in Köln?"},
        {"role": "assistant", "content": "", "tool_calls": [call({"place": "Köln", "days": 2})]},
        ANSWER,
        {"role": "user", "content": "Thanks"},
    ],
    "two tool calls": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call({"place": "A"}), call({"place": "B"}, "b12345678")]},
        ANSWER,
        {**ANSWER, "tool_call_id": "b12345678"},
    ],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a <place>",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "where"},
                    "days": {"type": "integer", "description": "how many"},
                },
                "required": ["place"],
            },
        },
    }
]


# What a template reads beside messages and tools.
VARIABLES = {"fireworks-ai-llama-3-firefunction-v2": {"functions": '[{"name": "f"}]', "datetime": "today"}}
NEED_TOOLS = {
    "CohereForAI-c4ai-command-r-plus-tool_use",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
}
REFUSE_TOOLS = {"llama-cpp-deepseek-r1"}  # "Object of type generator is not JSON serializable", in transformers too

JOIN_ARGUMENTS = {
    "fireworks-ai-llama-3-firefunction-v2",
    "meetkai-functionary-medium-v3.1",
    "meetkai-functionary-medium-v3.2",
}
SHOW_TOOL_CALLS = """
qwen2.5-instruct CohereForAI-c4ai-command-r-plus-tool_use CohereForAI-c4ai-command-r7b-12-2024-tool_use
NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use NousResearch-Hermes-3-Llama-3.1-8B-tool_use Qwen-Qwen2.5-7B-Instruct
fireworks-ai-llama-3-firefunction-v2 meetkai-functionary-medium-v3.1 meetkai-functionary-medium-v3.2
meta-llama-Llama-3.1-8B-Instruct meta-llama-Llama-3.2-3B-Instruct meta-llama-Llama-3.3-70B-Instruct
mistralai-Mistral-Nemo-Instruct-2407
""".split()


@pytest.fixture(scope="module")
def hf(tokenizer_folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)


def by_transformers(hf: Any, source: str, messages: Conversation, **options: Any) -> str | None:
    """The prompt, or None where the template refuses the conversation."""
    import jinja2

    try:
        rendered = hf.apply_chat_template(copy.deepcopy(messages), chat_template=source, tokenize=False, **options)
    except (jinja2.TemplateError, TypeError, KeyError, ValueError):
        return None
    assert isinstance(rendered, str)
    return rendered


def by_quire(folder: Path, source: str, messages: Conversation, **options: Any) -> str | None:
    rendering = chat.Rendering(source, **options)
    try:
        (prompt,) = chat.render_all(messages, rendering, load_tokenizer(folder), None)
    except ValueError:
        return None
    assert isinstance(prompt, ParsedPrompt) and not prompt.add_special_tokens
    return prompt.text


def with_json_arguments(messages: Conversation) -> Conversation:
    """The same conversation, with the arguments of tool calls as JSON text."""
    messages = copy.deepcopy(messages)
    for message in messages:
        for one in message.get("tool_calls", ()):
            one["function"]["arguments"] = json.dumps(one["function"]["arguments"], ensure_ascii=False)
    return messages


def as_seen(messages: Conversation, source: str) -> Conversation:
    """What a template that walks through content parts is given."""
    if chat_template.content_format(source) == "string":
        return messages
    return [
        {**one, "content": [{"type": "text", "text": one["content"]}] if one["content"] else []} for one in messages
    ]


def test_files_are_as_published() -> None:
    said = (FOLDER / "SOURCE.txt").read_text(encoding="utf-8")
    entries = re.findall(r"^file: ([^\n]+)$.*?^sha256: (\w+)$", said, re.MULTILINE | re.DOTALL)
    assert len(entries) == len(FILES) == 35
    for name, digest in entries:
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
@pytest.mark.parametrize("ending", ["prompt", "no prompt", "continue"])
@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_renders_as_transformers(hf: Any, tokenizer_folder: Path, file: Path, ending: str, tools: Any) -> None:
    source = file.read_text(encoding="utf-8")
    options: dict[str, Any] = {"add_generation_prompt": ending == "prompt", "tools": tools}
    options["continue_final_message"] = ending == "continue"
    variables = VARIABLES.get(file.stem, {})
    rendered = 0
    for name, messages in CONVERSATIONS.items():
        # Arguments are objects, for transformers and here; three templates can only join text.
        given = with_json_arguments(messages) if file.stem in JOIN_ARGUMENTS else messages
        expected = by_transformers(hf, source, as_seen(given, source), **options, **variables)
        ours = by_quire(tokenizer_folder, source, messages, **options, template_kwargs=variables)
        assert ours == expected, name
        rendered += expected is not None
    assert rendered >= 2 or (file.stem in NEED_TOOLS and not tools) or (file.stem in REFUSE_TOOLS and tools)


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_arguments_of_tool_calls_as_json_or_as_a_dict(tokenizer_folder: Path, file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    for name in ("tool call", "two tool calls"):
        as_text = with_json_arguments(CONVERSATIONS[name])
        before = copy.deepcopy(as_text)
        expected = by_quire(tokenizer_folder, source, CONVERSATIONS[name], tools=TOOLS)
        assert by_quire(tokenizer_folder, source, as_text, tools=TOOLS) == expected
        assert as_text == before, "the caller's messages stay as they are"


@pytest.mark.parametrize("stem", SHOW_TOOL_CALLS)
def test_tool_calls_and_their_answers_show(tokenizer_folder: Path, stem: str) -> None:
    source = next(file for file in FILES if file.stem == stem).read_text(encoding="utf-8")
    options: dict[str, Any] = {"tools": TOOLS, "template_kwargs": VARIABLES.get(stem, {})}
    conversation = CONVERSATIONS["tool call"]
    with_call = by_quire(tokenizer_folder, source, conversation[:2], **options)
    with_answer = by_quire(tokenizer_folder, source, conversation[:3], **options)
    without = by_quire(tokenizer_folder, source, conversation[:1], **options)
    assert with_call is not None and with_answer is not None and without is not None
    assert with_call.count("weather") == without.count("weather") + 1
    assert "sky" not in with_call and "sky" in with_answer


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_what_a_template_says_is_passed_on(tokenizer_folder: Path, file: Path) -> None:
    """The messages of raise_exception reach the caller, and the original error is the cause."""
    import jinja2

    source = file.read_text(encoding="utf-8")
    said = set(re.findall(r"raise_exception\(\s*\"([^\"{]+?)\"\s*\)", source))
    said |= set(re.findall(r"raise_exception\(\s*'([^'{]+?)'\s*\)", source))
    seen = set()
    for messages in CONVERSATIONS.values():
        try:
            rendering = chat.Rendering(source, tools=TOOLS, template_kwargs=VARIABLES.get(file.stem))
            chat.render_all(messages, rendering, load_tokenizer(tokenizer_folder), None)
        except ValueError as error:
            assert str(error).startswith("The chat template cannot render this conversation: ")
            assert isinstance(error.__cause__, (jinja2.TemplateError, TypeError, KeyError))
            seen |= {one for one in said if str(error).endswith(one)}
    if said - {"Expected non-empty messages"}:
        assert seen, f"none of {said}"


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_content_parts_read_as_their_text(tokenizer_folder: Path, file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]}]
    if chat_template.content_format(source) == "string":
        assert by_quire(tokenizer_folder, source, parts) == by_quire(
            tokenizer_folder, source, [{"role": "user", "content": "a\nb"}]
        )


def test_templates_go_through_llm_chat(llm: LLM, hf: Any) -> None:
    params = SamplingParams(temperature=0, max_tokens=1)
    for file in FILES:
        messages = CONVERSATIONS["many turns"]
        source, variables = file.read_text(encoding="utf-8"), VARIABLES.get(file.stem, {})
        tools = TOOLS if file.stem in NEED_TOOLS else None
        expected = by_transformers(hf, source, messages, add_generation_prompt=True, tools=tools, **variables)
        assert expected is not None
        options: dict[str, Any] = {"tools": tools, "chat_template_kwargs": variables, "use_tqdm": False}
        for given in (file, str(file), source):
            (output,) = llm.chat(messages, params, chat_template=given, on_error="return", **options)
            assert output.prompt == expected
