"""What a constrained request writes: every kind in every spelling, judged by json, re, jsonschema and literal lists."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import quire
from quire import LLM, GuidedDecodingParams, SamplingParams, StructuredOutputsParams
from quire.sampling_params import RequestOutputKind

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

DEMO = str(Path(quire.__file__).parent / "demo_model")
PROMPT = "Once upon a time"
SUITE = Path(__file__).parent / "json_schema_suite" / "schemas.json"
# Files of the suite with schemas that the grammar engine cannot enforce. All other schemas must be served.
REFUSED = {
    "additionalProperties", "allOf", "anyOf", "contains", "enum", "format", "if-then-else", "maxItems", "maxLength",
    "maxProperties", "minItems", "minLength", "minProperties", "multipleOf", "not", "oneOf", "patternProperties", "ref",
    "uniqueItems",
}  # fmt: skip
PERSON = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 1, "maximum": 120}, "ok": {"type": "boolean"}},
    "required": ["age", "ok"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def demo() -> Iterator[LLM]:
    with LLM(DEMO, seed=0, max_model_len=512, max_num_seqs=64) as engine:
        yield engine


def guided(seed: int = 0, values: dict[str, Any] | None = None, **kind: Any) -> SamplingParams:
    return SamplingParams(
        temperature=1.0,
        **{"max_tokens": 100, "seed": seed, **(values or {})},
        guided_decoding=GuidedDecodingParams(**kind),
    )


def texts(llm: LLM, wishes: list[SamplingParams]) -> list[tuple[str, str | None]]:
    outputs = llm.generate([PROMPT] * len(wishes), wishes, use_tqdm=False)
    assert [output.error for output in outputs] == [None] * len(wishes)
    return [(one.text, one.finish_reason) for output in outputs for one in output.outputs]


SEEDS = range(40)


def test_json(demo: LLM) -> None:
    results = texts(demo, [guided(seed, json=PERSON) for seed in SEEDS])
    whole = [text for text, reason in results if reason == "stop"]
    assert whole  # the others write white space to the end, which JSON lets them
    for text in whole:
        jsonschema.validate(json.loads(text), PERSON)
    assert {reason for _, reason in results} <= {"stop", "length"}


def test_json_of_a_pydantic_model(demo: LLM) -> None:
    class Model:  # what a pydantic model has
        @classmethod
        def model_json_schema(cls) -> dict[str, Any]:
            return PERSON

    params = SamplingParams(seed=2, max_tokens=100, guided_decoding=GuidedDecodingParams.from_optional(json=Model))
    assert texts(demo, [params]) == texts(demo, [guided(2, json=json.dumps(PERSON))])


def test_json_object(demo: LLM) -> None:
    results = texts(demo, [guided(seed, {"max_tokens": 200}, json_object=True) for seed in SEEDS])
    whole = [text for text, reason in results if reason == "stop"]
    assert whole
    assert all(isinstance(json.loads(text), dict) for text in whole)


@pytest.mark.parametrize("pattern", [r"[0-9]{3}-[a-z]{2}", r"(ab|cd){1,3}!", r"\w{1,8} é?", r"[^\n]{0,6}\n"])
def test_regex(demo: LLM, pattern: str) -> None:
    results = texts(demo, [guided(seed, regex=pattern) for seed in SEEDS])
    for text, reason in results:
        assert reason == "length" or re.fullmatch(pattern, text)
    assert sum(reason == "stop" for _, reason in results) > len(SEEDS) // 2


def test_choice_gives_exactly_the_choices(demo: LLM) -> None:
    choices = ["cat", "dog", 'a "quoted\\ \n one', "ünï 😀", "catalogue"]
    values = {"logit_bias": dict.fromkeys(range(2048), 0.0), "temperature": 3.0}  # so that all come up
    wishes = [SamplingParams(seed=seed, max_tokens=60, **values) for seed in range(150)]
    for wish in wishes:
        wish.guided_decoding = GuidedDecodingParams(choice=choices)
    counts = Counter(texts(demo, wishes))
    assert {text for text, _ in counts} <= set(choices)
    assert {reason for _, reason in counts} == {"stop"}
    assert len(counts) >= 3
    for choice in choices:
        assert texts(demo, [guided(choice=[choice])]) == [(choice, "stop")]


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= term ("+" term)*\nterm ::= [0-9] | "(" root ")"\n',
        'start: term ("+" term)*\nterm: /[0-9]/ | "(" start ")"\n',
    ],
    ids=["ebnf", "lark"],
)
def test_grammar(demo: LLM, grammar: str) -> None:
    results = texts(demo, [guided(seed, grammar=grammar) for seed in SEEDS])
    whole = [text for text, reason in results if reason == "stop"]
    assert whole
    for text in whole:
        assert re.fullmatch(r"[0-9+()]+", text)
        eval(re.sub(r"\b0+(\d)", r"\1", text))  # a sum in balanced brackets


def test_structural_tag(demo: LLM) -> None:
    tag = {
        "type": "structural_tag",
        "structures": [{"begin": "<call=f>", "schema": PERSON, "end": "</call>"}],
        "triggers": ["<call="],
    }
    begin = demo.get_tokenizer().encode("<call=", add_special_tokens=False)
    params = StructuredOutputsParams(structural_tag=json.dumps(tag), disable_any_whitespace=True)

    def trigger(output: list[int], logits: Any) -> None:
        """Makes the model begin a tag after five tokens, which it would not do by itself."""
        if 5 <= len(output) < 5 + len(begin):
            logits[begin[len(output) - 5]] += 1000

    wishes = [
        SamplingParams(seed=s, max_tokens=100, structured_outputs=params, logits_processors=[trigger]) for s in range(6)
    ]
    outputs = demo.generate([PROMPT] * len(wishes), wishes, use_tqdm=False)
    found = 0
    for output in outputs:
        (inside,) = re.findall(r"<call=(.*)", output.outputs[0].text, re.DOTALL)
        assert inside.startswith("f>{")
        if "</call>" in inside:
            jsonschema.validate(json.loads(inside.removeprefix("f>").split("</call>")[0]), PERSON)
            found += 1
        else:
            assert output.outputs[0].finish_reason == "length"
    assert found > 0


def test_whitespace_and_other_keys(demo: LLM) -> None:
    compact = [guided(seed, json=PERSON, backend="guidance:disable-any-whitespace") for seed in SEEDS]
    for text, reason in texts(demo, compact):
        assert reason == "stop"
        assert not re.search(r"\s", text)
    open_schema = {"type": "object", "properties": {"a": {"type": "null"}}}
    values = {"max_tokens": 150}
    closed = [guided(seed, values, json=open_schema, disable_additional_properties=True) for seed in SEEDS]
    results = [json.loads(text) for text, reason in texts(demo, closed) if reason == "stop"]
    assert results
    assert all(set(result) <= {"a"} for result in results)


def test_every_spelling_is_one_thing(demo: LLM) -> None:
    pattern = "[a-c]{4,9}"
    free = SamplingParams(seed=4, max_tokens=30)
    wanted = texts(demo, [guided(4, {"max_tokens": 30}, regex=pattern)])
    newer = SamplingParams(seed=4, max_tokens=30, structured_outputs=StructuredOutputsParams(regex=pattern))
    assert texts(demo, [newer]) == wanted
    with pytest.warns(DeprecationWarning, match="guided_options_request is deprecated"):
        (output,) = demo.generate(PROMPT, free, use_tqdm=False, guided_options_request={"guided_regex": pattern})
    assert [(output.outputs[0].text, output.outputs[0].finish_reason)] == wanted
    assert free.guided_decoding is None


def test_64_distinct_schemas_and_free_rows_in_one_batch(demo: LLM) -> None:
    free = [SamplingParams(seed=i, max_tokens=20, logprobs=1, ignore_eos=True) for i in range(16)]
    alone = [demo.generate(PROMPT, wish, use_tqdm=False)[0].outputs[0] for wish in free]
    schemas = [
        {"type": "object", "properties": {f"key{i}": {"enum": [i, f"v{i}"]}}, "required": [f"key{i}"],
         "additionalProperties": False}
        for i in range(64)
    ]  # fmt: skip
    wishes = [guided(i, json=schema) for i, schema in enumerate(schemas)]
    mixed: list[SamplingParams] = []
    for i, wish in enumerate(wishes):
        mixed += [wish, free[i // 4]] if i % 4 == 0 else [wish]
    outputs = demo.generate([PROMPT] * len(mixed), mixed, use_tqdm=False)
    written = {id(wish): output.outputs[0] for wish, output in zip(mixed, outputs, strict=True)}
    for schema, wish in zip(schemas, wishes, strict=True):
        one = written[id(wish)]
        assert one.finish_reason in ("stop", "length")
        if one.finish_reason == "stop":
            jsonschema.validate(json.loads(one.text), schema)
    for wish, before in zip(free, alone, strict=True):
        one = written[id(wish)]
        assert list(one.token_ids) == list(before.token_ids)
        assert one.cumulative_logprob == before.cumulative_logprob  # bits


def test_a_complete_grammar_ends_the_sequence(demo: LLM) -> None:
    values: dict[str, Any] = {"ignore_eos": True, "min_tokens": 30, "max_tokens": 60}
    (output,) = demo.generate(PROMPT, guided(1, values, choice=["over"]), use_tqdm=False)
    completion = output.outputs[0]
    assert (completion.text, completion.finish_reason, completion.stop_reason) == ("over", "stop", None)
    assert demo.get_tokenizer().decode(completion.token_ids) == "over"
    exact = {"max_tokens": len(completion.token_ids)}
    assert texts(demo, [guided(1, exact, choice=["over"])]) == [("over", "stop")]
    short = {"max_tokens": 1}
    assert texts(demo, [guided(1, short, choice=["0123456789" * 9])])[0][1] == "length"


def test_holds_against_other_parameters(demo: LLM) -> None:
    banned = demo.get_tokenizer().encode("y", add_special_tokens=False)
    for values in (
        {"logit_bias": {banned[0]: -100.0}},
        {"allowed_token_ids": [5]},
        {"bad_words": ["y"]},
        {"temperature": 0.0},
        {"repetition_penalty": 2.0, "top_p": 0.1},
    ):
        params = SamplingParams(max_tokens=20, **values, guided_decoding=GuidedDecodingParams(choice=["yyyy"]))  # type: ignore[arg-type]
        assert texts(demo, [params]) == [("yyyy", "stop")], values


def test_stop_strings_several_sequences_streams_and_chat(demo: LLM) -> None:
    ((text, reason),) = texts(demo, [guided(3, {"stop": ["5"]}, regex="12345678")])
    assert (text, reason) == ("1234", "stop")
    results = texts(demo, [guided(3, {"n": 8}, regex="[a-z]{3}[0-9]{3}")])
    assert len(results) == 8
    assert all(re.fullmatch("[a-z]{3}[0-9]{3}", text) for text, _ in results)
    assert len({text for text, _ in results}) > 1
    chunks = list(demo.stream(PROMPT, guided(3, regex="[a-z]{3}[0-9]{3}"), output_kind=RequestOutputKind.DELTA))
    assert re.fullmatch("[a-z]{3}[0-9]{3}", "".join(chunk.text for chunk in chunks))
    assert chunks[-1].finish_reason == "stop"
    message = [{"role": "user", "content": "Say yes or no."}]
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (answer,) = demo.chat(message, guided(3, choice=["yes", "no"]), use_tqdm=False, chat_template=template)
    assert answer.outputs[0].text in ("yes", "no")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ({"json": {"type": "strin"}}, "Invalid JSON grammar specification. The schema cannot be enforced: .*strin"),
        ({"json": {"type": "object", "not": {}}}, 'The schema cannot be enforced: Unimplemented keys: ."not".'),
        ({"json": False.__repr__().lower()}, "The schema cannot be enforced: Unsatisfiable schema"),
        ({"regex": "[a"}, "Failed to transform regex into a grammar: .*unclosed character class"),
        ({"grammar": 'start: "a" b'}, 'Failed to convert the grammar from Lark to EBNF. .*unknown name: "b"'),
        ({"grammar": 'root ::= "a" ('}, "Invalid grammar specification. "),
        ({"structural_tag": "{}"}, "Invalid structural tag: it must have the keys structures and triggers"),
        (
            {"structural_tag": '{"structures": [{"begin": "x", "schema": {}, "end": ""}], "triggers": ["<"]}'},
            "structures.0..begin 'x' starts with none of the triggers",
        ),
    ],
)
def test_what_is_wrong_is_told_before_any_work(demo: LLM, kind: dict[str, Any], says: str) -> None:
    before = demo.stats()["num_steps"]
    with pytest.raises(ValueError, match=re.compile(says, re.DOTALL)):
        demo.generate(PROMPT, guided(**kind), use_tqdm=False)
    with pytest.raises(ValueError, match=r"\(prompt 1\)") as raised:
        demo.generate([PROMPT] * 2, [guided(regex="a"), guided(**kind)], use_tqdm=False)
    assert raised.value.indices == (1,)  # type: ignore[attr-defined]
    assert demo.stats()["num_steps"] == before


def test_backends(tmp_path: Path, demo: LLM, caplog: pytest.LogCaptureFixture) -> None:
    for backend in ("auto", "guidance", "xgrammar", None):
        assert texts(demo, [guided(choice=["x"], backend=backend)]) == [("x", "stop")]
    for backend in ("outlines", "lm-format-enforcer"):
        with pytest.raises(NotImplementedError, match=backend.split(":")[0]):
            demo.generate(PROMPT, guided(choice=["x"], backend=backend), use_tqdm=False)
    with pytest.raises(ValueError, match="Invalid structured output backend 'none'"):
        demo.generate(PROMPT, guided(choice=["x"], backend="none"), use_tqdm=False)
    with LLM(DEMO, max_model_len=64, guided_decoding_backend="guidance:disable-any-whitespace") as engine:
        with pytest.raises(ValueError, match="must match engine-level backend. xgrammar != guidance"):
            engine.generate(PROMPT, guided(choice=["x"], backend="xgrammar"), use_tqdm=False)
        ((text, _),) = texts(engine, [guided(1, {"max_tokens": 40}, json=PERSON)])
        assert not re.search(r"\s", text)
    config = {"backend": "guidance", "disable_any_whitespace": True}
    with LLM(DEMO, max_model_len=64, structured_outputs_config=config) as engine:
        assert texts(engine, [guided(1, {"max_tokens": 40}, json=PERSON)])[0][0] == text
        with pytest.raises(ValueError, match="must match engine-level backend. xgrammar != guidance"):
            engine.generate(PROMPT, guided(choice=["x"], backend="xgrammar"), use_tqdm=False)
    with LLM(DEMO, max_model_len=64, skip_tokenizer_init=True) as engine, pytest.raises(ValueError, match="tokenizer"):
        engine.generate([[5]], guided(choice=["x"]), use_tqdm=False)


def test_grammars_are_compiled_once(demo: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    compile_one = demo._grammars._matcher
    monkeypatch.setattr(demo._grammars, "_matcher", lambda *args: compiled.append(args) or compile_one(*args))
    for _ in range(2):
        texts(demo, [guided(seed, json={"enum": ["once"]}) for seed in range(3)])
        texts(demo, [guided(0, json='{"enum" : ["once"]}')])
    assert len(compiled) == 1


def test_with_a_tokenizer_of_transformers_alone(demo: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no tokenizers.Tokenizer the bytes of the tokens serve."""
    monkeypatch.setattr(type(demo._tokenizer), "fast_json", lambda self: None)
    monkeypatch.setattr(demo, "_grammars", demo._make_grammars())
    for text, reason in texts(demo, [guided(seed, json=PERSON) for seed in range(8)]):
        if reason == "stop":
            jsonschema.validate(json.loads(text), PERSON)
    assert texts(demo, [guided(choice=["ünï 😀"])]) == [("ünï 😀", "stop")]


def test_json_schema_test_suite(demo: LLM) -> None:
    groups = json.loads(SUITE.read_text(encoding="utf-8"))
    served, wishes = [], []
    for file, description, schema in groups:
        wish = guided(len(served), {"max_tokens": 80}, json=json.dumps(schema), disable_any_whitespace=True)
        try:
            demo._prepare([PROMPT], wish, None, "raise")
        except ValueError as error:
            assert file in REFUSED, (file, description, error)
            assert "The schema cannot be enforced" in str(error)
            continue
        served.append((file, description, schema))
        wishes.append(wish)
    assert len(served) > 0.6 * len(groups)
    num_whole = 0
    for (file, description, schema), (text, reason) in zip(served, texts(demo, wishes), strict=True):
        assert reason in ("stop", "length"), (file, description)
        if reason == "stop":
            num_whole += 1
            jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    assert num_whole > 0.5 * len(served)


def test_on_an_asynchronous_device(simt_plugin: Path) -> None:
    free = SamplingParams(seed=5, max_tokens=6, ignore_eos=True, logprobs=0)
    with LLM(DEMO, dtype="float32", device="simt", max_model_len=64, max_num_seqs=4) as engine:
        (alone,) = engine.generate(PROMPT, free, use_tqdm=False)
        wishes = [guided(regex="[a-c]{3}!"), free, guided(choice=["left", "right"])]
        mixed = engine.generate([PROMPT] * 3, wishes, use_tqdm=False)
    assert re.fullmatch("[a-c]{3}!", mixed[0].outputs[0].text)
    assert mixed[2].outputs[0].text in ("left", "right")
    assert mixed[1].outputs[0].token_ids == alone.outputs[0].token_ids
    assert mixed[1].outputs[0].cumulative_logprob == alone.outputs[0].cumulative_logprob
