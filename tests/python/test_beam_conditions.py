"""Beam search with stop strings, allowed tokens and structured output, which vLLM's loop of 0.8 lacks: against a plain
loop over whole sequences on transformers' log-probabilities, whose conditions are told on text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import DEMO, load_reference
from quire import LLM, BeamSearchOutput, BeamSearchParams, SamplingParams, StructuredOutputsParams
from quire.structured import constraint_of

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

PROMPT = [7, 301, 22, 95, 180, 44, 9]
GIVEN = [{"prompt_token_ids": PROMPT}]


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> Any:
    return load_reference(tiny_model)


def plain_loop(
    model: Any,
    width: int,
    max_tokens: int,
    ends: Callable[[list[int]], bool] = lambda generated: False,
    may_come: Callable[[list[int]], np.ndarray] | None = None,
    eos: int | None = None,
    prompt: list[int] = PROMPT,
) -> list[tuple[list[int], float]]:
    """The search, scored by the mean over all tokens but `eos`; what is generated of each sequence."""
    beams: list[tuple[list[int], float]] = [([], 0.0)]
    completed: list[tuple[list[int], float]] = []

    def score(beam: tuple[list[int], float]) -> float:
        return beam[1] / (len(prompt) + len(beam[0]) - (beam[0][-1] == eos))

    for _ in range(max_tokens):
        if not beams:
            break
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens for tokens, _ in beams])).logits[:, -1].double()
        longer = []
        for (tokens, total), row in zip(beams, logits, strict=True):
            if may_come is not None:
                row[torch.from_numpy(~may_come(tokens))] = -torch.inf
            best = torch.log_softmax(row, -1).topk(2 * width, sorted=True)
            for logprob, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                if logprob == -np.inf:
                    continue
                beam = ([*tokens, token], total + logprob)
                (completed if ends(beam[0]) else longer).append(beam)
        beams = sorted(longer, key=lambda beam: -beam[1])[:width]
    return sorted([*completed, *beams], key=score, reverse=True)[:width]


def expect_found(output: BeamSearchOutput, expected: list[tuple[list[int], float]], prompt: list[int] = PROMPT) -> None:
    got = [sequence.tokens[len(prompt) :] for sequence in output.sequences]
    assert got == [tokens for tokens, _ in expected]
    for sequence, (_, total) in zip(output.sequences, expected, strict=True):
        assert sequence.cum_logprob == pytest.approx(total, abs=1e-4)


# Stop strings.


def test_stop_strings() -> None:
    model = load_reference(DEMO)
    with LLM(str(DEMO), dtype="float32", max_model_len=128, num_gpu_blocks_override=200) as demo:
        tokenizer = demo.get_tokenizer()
        prompt = tokenizer("Once upon a time")["input_ids"]
        given = [{"prompt_token_ids": prompt}]
        (free,) = demo.beam_search(given, BeamSearchParams(4, 12, ignore_eos=True))
        stops = []
        for sequence in (free.sequences[0], free.sequences[-1]):  # met by the search, across the border of two tokens
            texts = [tokenizer.decode([token]) for token in sequence.tokens[len(prompt) :]]
            stops.append(texts[-4][-2:] + texts[-3][:2])

        def ends(generated: list[int]) -> bool:
            return any(stop in tokenizer.decode(generated) for stop in stops)

        expected = plain_loop(model, 4, 14, ends, prompt=prompt)
        assert any(ends(tokens) for tokens, _ in expected)
        for keep in (False, True):
            params = BeamSearchParams(4, 14, ignore_eos=True, stop=stops, include_stop_str_in_output=keep)
            (output,) = demo.beam_search(given, params)
            expect_found(output, expected, prompt)
            for sequence in output.sequences:
                whole = tokenizer.decode(sequence.tokens)
                if not ends(sequence.tokens[len(prompt) :]):
                    assert (sequence.text, sequence.finish_reason, sequence.stop_reason) == (whole, None, None)
                    continue
                assert sequence.finish_reason == "stop" and sequence.stop_reason in stops
                end = whole.index(str(sequence.stop_reason), len("Once upon a time"))
                assert sequence.text == whole[: end + (len(str(sequence.stop_reason)) if keep else 0)]


def test_a_stop_string_inside_a_special_token_of_the_text(llm: LLM) -> None:
    special = llm.get_tokenizer().convert_tokens_to_ids("<|begin|>")
    params = BeamSearchParams(1, 5, ignore_eos=True, allowed_token_ids=[special], stop="begin")
    (shown,) = llm.beam_search(GIVEN, params)
    (sequence,) = shown.sequences
    assert sequence.tokens[len(PROMPT) :] == [special] and sequence.stop_reason == "begin"
    assert str(sequence.text).endswith("<|")
    params.skip_special_tokens = True  # then it is not in the text
    (hidden,) = llm.beam_search(GIVEN, params)
    assert hidden.sequences[0].tokens[len(PROMPT) :] == [special] * 5


# Allowed tokens.


def test_allowed_tokens(llm: LLM, reference: Any) -> None:
    allowed = [400, 3, 17, 64, 65, 66, 90, 301]
    mask = np.zeros(llm.info()["vocab_size"], dtype=bool)
    mask[allowed] = True
    (output,) = llm.beam_search(GIVEN, BeamSearchParams(3, 7, ignore_eos=True, allowed_token_ids=allowed))
    expect_found(output, plain_loop(reference, 3, 7, may_come=lambda _: mask))
    assert {token for one in output.sequences for token in one.tokens[len(PROMPT) :]} <= set(allowed)


# Structured output.

NAMES = ["Lily", "Tom", "Tim"]
CHOICES = ["cat nap", "cow", "dog days", "do"]


@pytest.mark.parametrize("width", [1, 3, 6])
def test_choices(llm: LLM, reference: Any, width: int) -> None:
    """Log-probabilities are of the tokens that may come; a text to which nothing can be added is completed.

    Masks are llguidance's, which spells a text that is certain in one way only.
    """
    pytest.importorskip("llguidance")
    tokenizer, vocab_size = llm.get_tokenizer(), llm.info()["vocab_size"]
    wish = StructuredOutputsParams(choice=CHOICES)
    constraint = constraint_of(wish)
    assert constraint is not None
    grammar = llm._grammars.compile(constraint)

    def state_after(generated: list[int]) -> Any:
        state = grammar.start()
        assert state.consume_tokens(generated)
        return state

    def may_come(generated: list[int]) -> np.ndarray:
        words = np.zeros((1, (vocab_size + 31) // 32), dtype=np.uint32)
        assert llm._grammars.fill([(state_after(generated), 0)], words) == [None]
        return np.unpackbits(words.view(np.uint8), bitorder="little")[:vocab_size].astype(bool)

    def ends(generated: list[int]) -> bool:
        return generated[-1] == tokenizer.eos_token_id or bool(state_after(generated).is_stopped())

    expected = plain_loop(reference, width, 9, ends, may_come, tokenizer.eos_token_id)
    (output,) = llm.beam_search(GIVEN, BeamSearchParams(width, 9, structured_outputs=wish))
    expect_found(output, expected)
    for sequence in output.sequences:
        assert tokenizer.decode(sequence.tokens[len(PROMPT) :], skip_special_tokens=True) in CHOICES
    assert width < 6 or len({len(sequence.tokens) for sequence in output.sequences}) > 1


@pytest.mark.parametrize("options", [{}, {"max_num_seqs": 3}, {"num_gpu_blocks_override": 5, "max_model_len": 64}])
def test_json_of_a_schema_whatever_memory_there_is(options: dict[str, Any]) -> None:
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"name": {"enum": NAMES}, "age": {"type": "integer", "minimum": 1, "maximum": 40}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    wish = StructuredOutputsParams(json=schema, disable_any_whitespace=True)
    prompt = {"prompt": "Once upon a time"}
    params = BeamSearchParams(5, 40, structured_outputs=wish, skip_special_tokens=True)
    with LLM(str(DEMO), dtype="float32", **{"max_model_len": 256, "num_gpu_blocks_override": 200, **options}) as demo:
        outputs = demo.beam_search([prompt, prompt], params)
    for output in outputs:
        assert len(output.sequences) == 5
        for sequence in output.sequences:
            value = json.loads(str(sequence.text).removeprefix("Once upon a time"))
            assert value["name"] in NAMES and 1 <= value["age"] <= 40
        assert [one.tokens for one in output.sequences] == [one.tokens for one in outputs[0].sequences]


def test_a_regex_beside_other_requests(llm: LLM) -> None:
    pytest.importorskip("llguidance")
    params = BeamSearchParams(
        4, 12, structured_outputs=StructuredOutputsParams(regex="(ab|ba){3}x?"), length_penalty=0.0
    )
    (alone,) = llm.beam_search(GIVEN, params)
    drawn = SamplingParams(temperature=1.0, seed=1, max_tokens=12, ignore_eos=True)
    mates = [{"prompt_token_ids": [i + 3, 9]} for i in range(3)]
    before = [output.outputs[0].token_ids for output in llm.generate(mates, drawn, use_tqdm=False)]
    llm.enqueue(mates, drawn)
    (among,) = llm.beam_search(GIVEN, params)
    assert [output.outputs[0].token_ids for output in llm.wait_for_completion(use_tqdm=False)] == before
    assert [(one.tokens, one.cum_logprob) for one in among.sequences] == [
        (one.tokens, one.cum_logprob) for one in alone.sequences
    ]
    tokenizer = llm.get_tokenizer()
    for sequence in alone.sequences:
        text = tokenizer.decode(sequence.tokens[len(PROMPT) :], skip_special_tokens=True)
        assert re.fullmatch("(ab|ba){3}x?", text)


def test_on_an_asynchronous_device(tiny_model: Path, llm: LLM, simt_plugin: Path) -> None:
    pytest.importorskip("llguidance")
    wishes = [
        BeamSearchParams(3, 7, structured_outputs=StructuredOutputsParams(choice=CHOICES)),
        BeamSearchParams(3, 5, ignore_eos=True, allowed_token_ids=[3, 17, 64, 301]),
    ]
    options: dict[str, Any] = {"device": "simt", "max_model_len": 64, "max_num_seqs": 8, "dtype": "float32"}
    with LLM(str(tiny_model), **options, num_gpu_blocks_override=32) as device:
        for wish in wishes:
            (found,), (expected,) = device.beam_search(GIVEN, wish), llm.beam_search(GIVEN, wish)
            assert [one.tokens for one in found.sequences] == [one.tokens for one in expected.sequences]
            totals = [[one.cum_logprob for one in output.sequences] for output in (found, expected)]
            np.testing.assert_allclose(totals[0], totals[1], atol=1e-3)


# Refusals.


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"stop": [""]}, ValueError, "stop cannot contain an empty string"),
        ({"stop": [3]}, TypeError, "stop must be a string or a list of strings, got an entry of type int"),
        ({"allowed_token_ids": []}, ValueError, "allowed_token_ids is not None and empty!"),
        ({"allowed_token_ids": [10**6]}, ValueError, "allowed_token_ids contains out-of-vocab token id!"),
        ({"structured_outputs": {"regex": "a"}}, TypeError, "structured_outputs StructuredOutputsParams; got dict"),
        (
            {"structured_outputs": StructuredOutputsParams(regex="(")},
            ValueError,
            "Failed to transform regex into a grammar: ",
        ),
    ],
    ids=str,
)
def test_bad_input(llm: LLM, values: dict[str, Any], error: type[Exception], message: str) -> None:
    before = llm.stats()["num_steps"]
    with pytest.raises(error, match=message):
        llm.beam_search(GIVEN, BeamSearchParams(2, 2, **values))
    assert llm.stats()["num_steps"] == before


def test_without_a_tokenizer(tiny_model: Path) -> None:
    with LLM(str(tiny_model), skip_tokenizer_init=True, num_gpu_blocks_override=32) as bare:
        with pytest.raises(ValueError, match="stop strings need a tokenizer"):
            bare.beam_search(GIVEN, BeamSearchParams(2, 2, stop="a"))
        with pytest.raises(ValueError, match="Structured output needs a tokenizer"):
            params = BeamSearchParams(2, 2, structured_outputs=StructuredOutputsParams(choice=["a"]))
            bare.beam_search(GIVEN, params)
