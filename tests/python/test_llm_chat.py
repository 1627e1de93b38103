"""LLM.chat on a real engine: one conversation or many, the template's own special tokens, and the options of a call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from quire import LLM, SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
CONVERSATION = [{"role": "user", "content": "Tell me a story"}]


def test_prompt_is_the_rendered_template(llm: LLM) -> None:
    tokenizer = llm.get_tokenizer()
    (output,) = llm.chat(CONVERSATION, GREEDY, use_tqdm=False)
    rendered = tokenizer.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    assert output.prompt == rendered == "<|begin|><|user|>Tell me a story<|end|><|assistant|>"
    assert output.prompt_token_ids == tokenizer.encode(rendered, add_special_tokens=False)
    assert output.prompt_token_ids is not None and output.prompt_token_ids.count(0) == 1  # one BOS, not two


def test_many_conversations(llm: LLM) -> None:
    other = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    one, two = llm.chat([CONVERSATION, other], GREEDY, use_tqdm=False)
    assert one.outputs[0].token_ids == llm.chat(CONVERSATION, GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    assert two.prompt == "<|begin|><|system|>Be kind.<|end|><|user|>Hi<|end|><|assistant|>"
    assert llm.chat([], GREEDY, use_tqdm=False) == []


def test_template_options(llm: LLM) -> None:
    def prompt(**options: object) -> str | None:
        return llm.chat(CONVERSATION, GREEDY, use_tqdm=False, **options)[0].prompt  # type: ignore[arg-type]

    assert prompt(add_generation_prompt=False) == "<|begin|><|user|>Tell me a story<|end|>"
    assert prompt(chat_template="{{ messages[0]['content'] }}!") == "Tell me a story!"
    assert prompt(chat_template="{{ word }}", chat_template_kwargs={"word": "hello"}) == "hello"
    assert prompt(add_generation_prompt=False, continue_final_message=True) == "<|begin|><|user|>Tell me a story"
    with_tools = "{% for tool in tools %}{{ tool.function.name }}{% endfor %}"
    tool = {"type": "function", "function": {"name": "weather", "description": "", "parameters": {}}}
    assert prompt(chat_template=with_tools, tools=[tool]) == "weather"
    with pytest.raises(ValueError, match="continue_final_message and add_generation_prompt are not compatible"):
        prompt(continue_final_message=True)


def test_template_kwargs_go_before_the_arguments(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    def prompt(kwargs: dict[str, Any], **options: Any) -> str | None:
        return llm.chat(CONVERSATION, GREEDY, use_tqdm=False, chat_template_kwargs=kwargs, **options)[0].prompt

    assert prompt({"add_generation_prompt": False}) == "<|begin|><|user|>Tell me a story<|end|>"
    continued = {"add_generation_prompt": False, "continue_final_message": True}
    assert prompt(continued) == "<|begin|><|user|>Tell me a story"
    assert prompt({"tools": [{"type": "x"}]}, chat_template="{{ tools }}") == "[{'type': 'x'}]"
    assert prompt({"documents": ["d"]}, chat_template="{{ documents }}") == "['d']"
    assert not caplog.records
    prompt({"enable_thinking": True})
    assert "chat_template_kwargs ['enable_thinking'] have no effect" in caplog.text
    for name in ("chat_template", "messages", "tokenize"):
        with pytest.raises(ValueError, match=f"chat_template_kwargs must not hold \\['{name}'\\]"):
            prompt({name: "x"})


def test_a_conversation_with_tools(llm: LLM) -> None:
    template = (
        "{% for tool in tools %}{{ tool.function | tojson }}{% endfor %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{% for call in m.tool_calls %}{{ call.function.name }}({{ call.function.arguments | tojson }}){% endfor %}"
        "{{ m.tool_call_id }}{% endfor %}"
    )
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    for arguments in ({"place": "Köln"}, '{"place": "Köln"}'):
        messages = [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "function": {"name": "weather"}}]},
            {"role": "tool", "content": "rain", "tool_call_id": "c1"},
        ]
        messages[1]["tool_calls"][0]["function"]["arguments"] = arguments  # type: ignore[index]
        (output,) = llm.chat(messages, GREEDY, use_tqdm=False, chat_template=template, tools=[tool])
        assert output.prompt == (
            '{"name": "weather", "parameters": {"type": "object"}}<user>Weather?<assistant>'
            'weather({"place": "Köln"})<tool>rainc1'
        )


def test_functions_are_tools(llm: LLM) -> None:
    def weather(place: str) -> str:
        """Tells the weather.

        Args:
            place: where
        """
        return place

    template = "{% for tool in tools %}{{ tool.function.name }}: {{ tool.function.parameters | tojson }}{% endfor %}"
    (output,) = llm.chat(CONVERSATION, GREEDY, use_tqdm=False, chat_template=template, tools=[weather])
    assert output.prompt is not None and output.prompt.startswith('weather: {"type": "object", "properties": {"place"')
    with pytest.raises(ValueError, match="Tools should either be a JSON schema, or a callable"):
        llm.chat(CONVERSATION, GREEDY, chat_template=template, tools=["weather"])


def test_parameters_of_each_conversation(llm: LLM) -> None:
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (2, 5)]
    outputs = llm.chat([CONVERSATION] * 2, params, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [2, 5]
    with pytest.raises(ValueError, match="The lengths of prompts and params must be the same"):
        llm.chat(CONVERSATION, params, use_tqdm=False)


def test_preprocess_chat_gives_the_prompts_of_chat(llm: LLM) -> None:
    conversations = [CONVERSATION, [{"role": "user", "content": "Hi"}]]
    prompts = llm.preprocess_chat(conversations)
    expected = llm.chat(conversations, GREEDY, use_tqdm=False)
    assert [prompt["prompt"] for prompt in prompts] == [output.prompt for output in expected]
    assert [prompt["prompt_token_ids"] for prompt in prompts] == [output.prompt_token_ids for output in expected]
    got = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert [one.outputs for one in got] == [one.outputs for one in expected]
    assert llm.preprocess_chat([]) == []


def test_enqueue_chat(llm: LLM) -> None:
    names = llm.enqueue_chat([CONVERSATION] * 2, GREEDY, chat_template_kwargs={"add_generation_prompt": False})
    outputs = llm.wait_for_completion(use_tqdm=False)
    assert [output.request_id for output in outputs] == names
    (expected,) = llm.chat(CONVERSATION, GREEDY, use_tqdm=False, add_generation_prompt=False)
    assert outputs[0].outputs == outputs[1].outputs == expected.outputs


def test_content_formats(llm: LLM) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    (output,) = llm.chat(parts, GREEDY, use_tqdm=False)
    assert output.prompt == "<|begin|><|user|>a\nb<|end|><|assistant|>"
    walking = "{% for m in messages %}{% for part in m['content'] %}[{{ part['text'] }}]{% endfor %}{% endfor %}"
    (output,) = llm.chat(parts, GREEDY, use_tqdm=False, chat_template=walking)
    assert output.prompt == "[a][b]"
    printed = "{{ messages[0]['content'] is string }}"
    for form, expected in (("string", "True"), ("openai", "False"), ("auto", "True")):
        (output,) = llm.chat(parts, GREEDY, use_tqdm=False, chat_template=printed, chat_template_content_format=form)
        assert output.prompt == expected
    with pytest.raises(ValueError, match="chat_template_content_format must be one of"):
        llm.chat(parts, GREEDY, chat_template_content_format="json")


def test_template_of_the_constructor(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "short.jinja"
    file.write_text("{{ messages[0]['content'] }}.")
    for template in (str(file), "{{ messages[0]['content'] }}."):
        with LLM(str(tiny_model), chat_template=template) as llm:
            assert llm.chat(CONVERSATION, GREEDY, use_tqdm=False)[0].prompt == "Tell me a story."


def test_bad_conversation_of_many_is_named(llm: LLM) -> None:
    with pytest.raises(ValueError, match=r"'role'.*\(conversation 1\)"):
        llm.chat([CONVERSATION, [{"content": "x"}]], GREEDY)
    with pytest.raises(ValueError, match="does not support multi-modal inputs"):
        llm.chat([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], GREEDY)
    with pytest.raises(TypeError, match="messages must be a list"):
        llm.chat("hello", GREEDY)


def test_chat_needs_a_tokenizer(tiny_model: Path) -> None:
    with LLM(str(tiny_model), skip_tokenizer_init=True) as llm, pytest.raises(ValueError, match="skip_tokenizer_init"):
        llm.chat(CONVERSATION, GREEDY)


def test_too_long_a_conversation(llm: LLM) -> None:
    with pytest.raises(ValueError, match="longer than the maximum model length of 256"):
        llm.chat([{"role": "user", "content": "story " * 300}], GREEDY)
    ok, bad = llm.chat(
        [CONVERSATION, [{"role": "user", "content": "story " * 300}]], GREEDY, use_tqdm=False, on_error="return"
    )
    assert ok.error is None and bad.error is not None and bad.outputs[0].finish_reason == "error"


def test_bad_conversations_stand_in_their_places(llm: LLM) -> None:
    template = (
        "{% if messages[0].content == 'no' %}{{ raise_exception('not that') }}{% endif %}{{ messages[0].content }}"
    )
    good, bad = [{"role": "user", "content": "Once"}], [{"role": "user", "content": "no"}]
    wrong = [{"content": "no role"}]
    options: dict[str, Any] = {"chat_template": template, "use_tqdm": False}
    alone = llm.chat([good], GREEDY, **options)[0].outputs
    outputs = llm.chat([good, bad, wrong, good], GREEDY, on_error="return", **options)
    assert [output.error is None for output in outputs] == [True, False, False, True]
    assert outputs[0].outputs == outputs[3].outputs == alone
    assert outputs[1].error == "The chat template cannot render this conversation: not that"
    assert outputs[2].error is not None and "'role'" in outputs[2].error
    assert [output.outputs[0].finish_reason for output in outputs[1:3]] == ["error", "error"]
    (chunk,) = llm.stream_chat(bad, GREEDY, on_error="return", chat_template=template)
    assert chunk.finish_reason == "error" and chunk.output is not None and chunk.output.error == outputs[1].error
    with pytest.raises(ValueError, match=r"not that \(conversation 1\)"):
        llm.chat([good, bad, good], GREEDY, **options)
    with pytest.raises(ValueError, match="on_error must be 'raise' or 'return', got 'ignore'"):
        llm.chat([good], GREEDY, on_error="ignore", **options)
