"""Tokenizers: the light loader agrees with transformers, vocabulary bytes with decoding, pieces with the whole."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from checkpoints import SPECIAL_TOKENS, TEXT, write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from quire import vocabulary
from quire.detokenizer import Detokenizer, StreamedText, TextOptions, cut, decode_all, final_text, possible_beginning
from quire.tokenizer import Tokenizer, bad_words_token_ids, load_tokenizer, wrap_tokenizer


@pytest.fixture(scope="module")
def light(tokenizer_folder: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_folder)


@pytest.fixture(scope="module")
def sentencepiece_like(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Pieces with a lower one eighth block for the space and bytes as <0xNN>, as Llama 2 has them."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz"]
    model = tokenizers.models.BPE(
        {piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True, unk_token="<unk>"
    )
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    backend.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": "<s>"}))
    return load_tokenizer(folder)


def test_light_loader_agrees_with_transformers(light: Tokenizer, tokenizer_folder: Path) -> None:
    from transformers import AutoTokenizer

    hf = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    heavy = wrap_tokenizer(hf)
    assert light._fast is not None and heavy._fast is None
    texts = [*TEXT, "", " ", "a<|end|>b", "\n\n  x"]
    for add in (True, False):
        encoded = light.encode_batch(texts, add_special_tokens=add)
        assert encoded == heavy.encode_batch(texts, add_special_tokens=add)
        assert encoded == [light.encode(text, add_special_tokens=add) for text in texts]
        assert encoded == [hf.encode(text, add_special_tokens=add) for text in texts]
    for ids in encoded:
        for skip in (True, False):
            assert light.decode(ids, skip_special_tokens=skip) == heavy.decode(ids, skip_special_tokens=skip)
    assert light.eos_token_id == heavy.eos_token_id == hf.eos_token_id
    assert light.special_ids == heavy.special_ids
    assert light.token_bytes(600) == heavy.token_bytes(600)
    assert light.chat_template == heavy.chat_template
    assert light.special_tokens == heavy.special_tokens
    assert len(light) == len(heavy) == len(hf)


def test_no_torch_is_imported(tokenizer_folder: Path) -> None:
    code = (
        "import sys; from quire.tokenizer import load_tokenizer; t = load_tokenizer(sys.argv[1]);"
        "t.decode(t.encode('hi')); print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code, tokenizer_folder], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("folder_kind", ["byte_level", "sentencepiece"])
def test_vocabulary_bytes_spell_what_decode_says(
    light: Tokenizer, sentencepiece_like: Tokenizer, folder_kind: str
) -> None:
    tokenizer = light if folder_kind == "byte_level" else sentencepiece_like
    pieces = tokenizer.token_bytes(len(tokenizer) + 7)
    assert len(pieces) == len(tokenizer) + 7 and pieces[-7:] == [b""] * 7
    for text in [*TEXT, "tab\tnewline\n", "ünï"]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        spelled = b"".join(pieces[i] for i in ids).decode()
        assert spelled.removeprefix(" ") == text.removeprefix(" ") == tokenizer.decode(ids).removeprefix(" ")
    for token_id in tokenizer.special_ids:
        assert pieces[token_id] == b""


def test_byte_level_alphabet_is_that_of_the_library() -> None:
    alphabet = vocabulary.byte_level_alphabet()
    assert set(alphabet) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert sorted(alphabet.values()) == list(range(256))
    decoder = tokenizers.decoders.ByteLevel()
    for char, byte in alphabet.items():
        if byte < 128:
            assert decoder.decode([char]) == chr(byte)


@pytest.mark.parametrize(
    ("decoder", "piece", "expected"),
    [
        (tokenizers.decoders.WordPiece(), "##ing", b"ing"),
        (tokenizers.decoders.WordPiece(), "play", b" play"),
        (tokenizers.decoders.Metaspace(), "▁dog", b" dog"),
        (tokenizers.decoders.BPEDecoder(), "dog</w>", b"dog "),
        (tokenizers.decoders.Sequence([tokenizers.decoders.ByteLevel(), tokenizers.decoders.Fuse()]), "Ġdog", b" dog"),
    ],
)
def test_piece_decoders(decoder: Any, piece: str, expected: bytes) -> None:
    to_bytes = vocabulary.piece_decoder(vocabulary.decoder_steps(decoder))
    assert to_bytes is not None and to_bytes(piece) == expected


def test_unknown_decoder_is_asked(tmp_path: Path) -> None:
    vocab = {letter: i for i, letter in enumerate("abcdefg h")}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    backend.decoder = tokenizers.decoders.Fuse()
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert b"".join(tokenizer.token_bytes(len(vocab))) == b"abcdefg h"


def test_token_text(light: Tokenizer) -> None:
    (space_dog,) = [i for i in range(len(light)) if light.token_bytes(600)[i] == b" dog"]
    assert light.token_text(space_dog) == " dog"
    assert light.token_text(light.token_id("<|end|>")) == "<|end|>"  # type: ignore[arg-type]
    assert light.token_text(10_000) == ""


def test_bad_words(light: Tokenizer) -> None:
    (dog, *rest) = bad_words_token_ids(light, ["dog"])
    assert light.decode(dog) == "dog"
    spaced = light.encode(" dog", add_special_tokens=False)
    assert rest == ([spaced] if len(spaced) == len(dog) and spaced[0] != dog[0] else [])


def test_loading_errors(tmp_path: Path, tokenizer_folder: Path) -> None:
    with pytest.raises(ValueError, match="No tokenizer in"):
        load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="skip_tokenizer_init"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="Unknown tokenizer mode: fancy. Must be either 'auto', 'slow', 'mistral' or"):
        load_tokenizer(tokenizer_folder, "fancy")
    with pytest.raises(NotImplementedError, match="mistral"):
        load_tokenizer(tokenizer_folder, "Mistral")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        load_tokenizer(tmp_path)


def test_contradicting_config_goes_to_transformers(tmp_path: Path) -> None:
    """add_bos_token that tokenizer.json does not follow: transformers decides."""
    write_tokenizer(tmp_path, add_bos=False)
    file = tmp_path / "tokenizer_config.json"
    config = json.loads(file.read_text())
    assert load_tokenizer(tmp_path)._fast is not None
    file.write_text(json.dumps({**config, "add_bos_token": True}))
    assert load_tokenizer(tmp_path)._fast is None


def test_named_chat_templates(tmp_path: Path, tokenizer_folder: Path) -> None:
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert load_tokenizer(tmp_path).chat_template == "from the file"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    assert load_tokenizer(tmp_path).chat_template == {"default": "from the file", "tool_use": "with tools"}


# Pieces and the whole.


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_pieces_join_to_the_whole(light: Tokenizer, sentencepiece_like: Tokenizer, data: st.DataObject) -> None:
    """Any ids at all, pushed in any pieces, give the text of one push; whole characters only."""
    tokenizer = data.draw(st.sampled_from([light, sentencepiece_like]))
    ids = st.lists(st.integers(0, len(tokenizer) - 1), max_size=24)
    prompt, tokens = data.draw(ids), data.draw(ids)
    options = TextOptions(skip_special_tokens=data.draw(st.booleans()))
    whole = decode_all(tokenizer, prompt, tokens, options)
    pieces = Detokenizer(tokenizer, prompt, options)
    given_out = ""
    position = 0
    while position < len(tokens):
        step = data.draw(st.integers(1, 4))
        given_out += pieces.push(tokens[position : position + step])
        position += step
    assert given_out == pieces.text == whole


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40), cut_at=st.integers(0, 40))
def test_text_after_a_prompt_is_what_was_written(light: Tokenizer, text: str, cut_at: int) -> None:
    """Prompt and completion of one text join to it, as long as the cut is between characters."""
    ids = light.encode(text, add_special_tokens=False)
    prompt, tokens = ids[:cut_at], ids[cut_at:]
    before = light.decode(prompt)
    if before.endswith("\ufffd") or text.endswith("\ufffd"):
        return
    assert before + decode_all(light, prompt, tokens, TextOptions()) == light.decode(ids)


def test_leading_space_is_kept(sentencepiece_like: Tokenizer) -> None:
    prompt = sentencepiece_like.encode("a dog", add_special_tokens=False)
    tokens = sentencepiece_like.encode("is big", add_special_tokens=False)
    assert decode_all(sentencepiece_like, prompt, tokens, TextOptions()) == " is big"


def test_incomplete_characters_wait(light: Tokenizer) -> None:
    ids = [light.token_id(char) for char in "ðŁĲķ"]  # the four bytes of a dog's face
    assert None not in ids
    detokenizer = Detokenizer(light, light.encode("a dog:"), TextOptions())
    assert [detokenizer.push([token_id]) for token_id in ids] == ["", "", "", "🐕"]  # type: ignore[list-item]
    assert decode_all(light, [], ids[:2], TextOptions()) == ""  # type: ignore[arg-type]


def test_stop_tokens_and_strings(light: Tokenizer) -> None:
    prompt = light.encode("Once")
    tokens = light.encode(" upon a time", add_special_tokens=False) + [light.eos_token_id or 0]

    def text(options: TextOptions, stop: str | None, by_token: bool, ids: list[int] = tokens) -> str:
        return final_text(light, prompt, ids, options, stop, by_token)

    assert text(TextOptions(), None, True) == " upon a time"
    shown = TextOptions(include_stop_str_in_output=True, skip_special_tokens=False)
    assert text(shown, None, True) == " upon a time<|end|>"
    assert text(TextOptions(skip_special_tokens=False), None, True) == " upon a time"
    assert text(TextOptions(detokenize=False), None, True) == ""
    assert text(TextOptions(), "time", False, tokens[:-1]) == " upon a "
    assert text(TextOptions(include_stop_str_in_output=True), "ti", False, tokens[:-1]) == " upon a ti"


def test_stop_string_in_a_token_that_begins_a_character(light: Tokenizer) -> None:
    first_byte = light.token_id("ð")
    ids = [*light.encode(" upon a time", add_special_tokens=False), first_byte]
    assert final_text(light, [], ids, TextOptions(), "time", False) == " upon a "  # type: ignore[arg-type]
    assert final_text(light, [], ids, TextOptions(), None, False) == " upon a time"  # type: ignore[arg-type]


def test_cut_ignores_matches_that_min_tokens_held_back() -> None:
    assert cut("a stop b stop c", len("a stop b st"), "stop", include=False) == "a stop b "
    assert cut("a stop b stop c", len("a stop b st"), "stop", include=True) == "a stop b stop"
    assert cut("a stop", 0, "stop", include=False) == "a "
    assert cut("nothing", 0, "stop", include=False) == "nothing"


def test_possible_beginning() -> None:
    assert possible_beginning("abc st", "stop") == 2
    assert possible_beginning("abc stop", "stop") == 0
    assert possible_beginning("aaaa", "aab") == 2
    assert possible_beginning("", "stop") == 0


def test_streamed_text_never_shows_a_stop_string(light: Tokenizer) -> None:
    prompt = light.encode("Once")
    tokens = light.encode(" upon a time there was a dog", add_special_tokens=False)
    for stop in ("time", " a time the", "dog"):
        options = TextOptions(stop=(stop,))
        stream = StreamedText(light, prompt, options)
        ids: list[int] = []
        pieces = []
        for token in tokens:
            ids.append(token)
            if stop in decode_all(light, prompt, ids, options):
                break
            pieces.append(stream.push([token]))
        whole = final_text(light, prompt, ids, options, stop, False)
        pieces.append(stream.finish(whole))
        assert "".join(pieces) == whole and stop not in whole
        assert all(whole.startswith("".join(pieces[:i])) for i in range(len(pieces)))


def test_special_tokens_are_those_of_the_file(light: Tokenizer) -> None:
    assert set(light.special_texts().values()) == set(SPECIAL_TOKENS)


def test_options_of_decoding_are_those_of_a_slow_tokenizer() -> None:
    from transformers import ByT5Tokenizer

    hf = ByT5Tokenizer()
    wrapped = wrap_tokenizer(hf)
    eos, unknown = hf.eos_token_id, hf.unk_token_id
    ids = [
        eos,
        eos,
        *hf.encode("a é", add_special_tokens=False),
        unknown,
        eos,
        *hf.encode("b", add_special_tokens=False),
    ]
    for skip in (True, False):
        for spaces in (True, False):
            expected = hf.decode(ids, skip_special_tokens=skip, spaces_between_special_tokens=spaces)
            assert wrapped.decode(ids, skip, spaces) == expected
