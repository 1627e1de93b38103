"""Packed weights on disk: the next start maps them, changes nothing, and notices another checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_llama
from quire import LLM, SamplingParams, weight_cache
from quire.cli import app
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

SIZES = {"hidden_size": 512, "intermediate_size": 3072, "num_hidden_layers": 4, "head_dim": 64, "vocab_size": 2048}
PROMPT = {"prompt_token_ids": [3, 1, 4, 1, 5, 9, 2, 6]}
METHOD = "no_post_processing"
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of more than the 16 MiB below which nothing is kept."""
    return write_llama(tmp_path_factory.mktemp("llama") / "model", with_tokenizer=False, **SIZES)


def load(model: Path, folder: Any, **options: Any) -> LLM:
    return LLM(str(model), skip_tokenizer_init=True, dtype="bfloat16", weight_cache=folder, seed=0, **options)


def answer(llm: LLM) -> list[tuple[int, float]]:
    """Tokens and their log-probabilities, which tell other weights apart where the tokens do not."""
    output = llm.generate([PROMPT], GREEDY, use_tqdm=False)[0].outputs[0]
    assert output.logprobs is not None
    return [(token, of[token].logprob) for token, of in zip(output.token_ids, output.logprobs, strict=True)]


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*"))


def is_mapped(file: Path) -> bool:
    return str(file) in Path("/proc/self/maps").read_text()


def test_the_next_start_maps_what_the_first_one_wrote(model: Path, tmp_path: Path) -> None:
    with load(model, False) as llm:
        expected = answer(llm)
    assert files_of(tmp_path) == []
    with load(model, tmp_path) as llm:
        assert answer(llm) == expected
    (file,) = files_of(tmp_path)
    written = file.stat()
    assert not is_mapped(file)
    with load(model, str(tmp_path)) as llm:
        assert is_mapped(file)
        assert answer(llm) == expected
    again = file.stat()
    assert (again.st_ino, again.st_size) == (written.st_ino, written.st_size), "it was written again"


def test_another_checkpoint_of_the_same_size_and_time_is_noticed(tmp_path: Path) -> None:
    model, folder = write_llama(tmp_path / "model", with_tokenizer=False, **SIZES), tmp_path / "weights"
    with load(model, folder) as llm:
        first = answer(llm)
    file = model / "model.safetensors"
    status = file.stat()
    tensors = load_file(file)
    tensors["model.layers.1.mlp.down_proj.weight"] = -tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    with load(model, False) as llm:
        expected = answer(llm)
    assert expected != first
    with load(model, folder) as llm:
        assert answer(llm) == expected


def test_int8_and_ranks_have_files_of_their_own(model: Path, tmp_path: Path) -> None:
    for options, count in (({}, 1), ({"quantization": "int8"}, 2), ({"tensor_parallel_size": 2}, 4)):
        with load(model, False, **options) as llm:
            expected = answer(llm)
        for _ in range(2):
            with load(model, tmp_path, **options) as llm:
                assert answer(llm) == expected
            assert len(files_of(tmp_path)) == count


def test_sleep_and_updates_leave_the_file_as_it_is(model: Path, tmp_path: Path) -> None:
    load(model, tmp_path).close()
    (file,) = files_of(tmp_path)
    content = file.read_bytes()
    with load(model, tmp_path, enable_sleep_mode=True) as llm:
        expected = answer(llm)
        llm.sleep(level=1)
        assert not is_mapped(file)
        llm.wake_up()
        assert is_mapped(file)
        assert answer(llm) == expected

        name = "model.layers.0.self_attn.q_proj.weight"
        old = load_file(model / "model.safetensors")[name]
        llm.load_weights([(name, np.zeros_like(old))])
        assert not is_mapped(file)
        changed = answer(llm)
        assert changed != expected
        llm.sleep(level=1)
        llm.wake_up()
        assert answer(llm) == changed, "woke up with the weights of the file"
        llm.load_weights([(name, old)])
        assert answer(llm) == expected

        llm.sleep(level=2)
        llm.wake_up()
        llm.reload_weights()
        assert answer(llm) == expected
    assert file.read_bytes() == content


def test_two_processes_share_the_weights_in_memory(model: Path, tmp_path: Path) -> None:
    load(model, tmp_path).close()
    (file,) = files_of(tmp_path)
    script = (
        "import sys, quire\n"
        "llm = quire.LLM(sys.argv[1], skip_tokenizer_init=True, dtype='bfloat16', weight_cache=sys.argv[2],\n"
        "                kv_cache_memory_bytes=1 << 20)\n"
        "llm.generate([{'prompt_token_ids': [5]}], quire.SamplingParams(max_tokens=2), use_tqdm=False)\n"
        "lines = open('/proc/self/smaps').read().split(sys.argv[3])[1].split('VmFlags')[0].splitlines()\n"
        "print({line.split(':')[0]: int(line.split()[1]) for line in lines if line.endswith(' kB')})\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, str(model), str(tmp_path), str(file)], check=True, capture_output=True, text=True
    ).stdout
    sizes = eval(out)  # our own print
    assert sizes["Rss"] > 16 * 1024
    assert sizes["Anonymous"] == 0, "pages of its own, where those of the file would do"


@pytest.mark.parametrize("value", ["0", "off", "False"])
def test_the_environment_turns_it_off(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("QUIRE_WEIGHT_CACHE", value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weight_cache.resolve(None) == ""
    LLM(str(model), skip_tokenizer_init=True, dtype="bfloat16").close()
    assert files_of(tmp_path) == []


def test_where_the_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_WEIGHT_CACHE", str(tmp_path / "own"))
    assert weight_cache.resolve(None) == weight_cache.resolve(True) == str(tmp_path / "own")
    assert weight_cache.resolve(False) == ""
    assert weight_cache.resolve(tmp_path) == str(tmp_path)
    monkeypatch.delenv("QUIRE_WEIGHT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weight_cache.resolve(None) == str(tmp_path / "quire" / "weights")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weight_cache.resolve(True) == str(tmp_path / ".cache" / "quire" / "weights")
    for wrong in (3, "", 1.5):
        with pytest.raises(TypeError, match="weight_cache must be True, False or a folder"):
            weight_cache.resolve(wrong)  # type: ignore[arg-type]


def test_a_folder_that_cannot_be_written_costs_nothing_else(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with load(model, False) as llm:
        expected = answer(llm)
    with load(model, tmp_path / "file" / "below") as llm:
        assert answer(llm) == expected


def test_the_command_lists_checks_and_deletes(model: Path, tmp_path: Path) -> None:
    load(model, tmp_path).close()
    (file,) = files_of(tmp_path)
    run = CliRunner().invoke
    listed = run(app, ["cache", "--folder", str(tmp_path)])
    assert listed.exit_code == 0
    assert str(model) in listed.stdout
    assert f"1 files, {file.stat().st_size / 2**20:.1f} MiB in {tmp_path}" in listed.stdout
    checked = run(app, ["cache", "--folder", str(tmp_path), "--check"])
    assert checked.exit_code == 0
    assert "as written" in checked.stdout
    with file.open("r+b") as stream:
        stream.seek(-100, os.SEEK_END)
        stream.write(b"x")
    checked = run(app, ["cache", "--folder", str(tmp_path), "--check"])
    assert checked.exit_code == 1
    assert "its bytes are not those that were written" in checked.stdout
    cleared = run(app, ["cache", "--folder", str(tmp_path), "--clear"])
    assert cleared.exit_code == 0
    assert files_of(tmp_path) == []


def test_pooling_models_have_files_of_their_own(model: Path, tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForSequenceClassification"]}

    def scores(folder: Any, tokens: list[str], ids: list[int]) -> Any:
        overrides = {**config, "classifier_from_token": tokens, "classifier_token_ids": ids, "method": METHOD}
        with load(model, folder, task="classify", hf_overrides=overrides) as llm:
            return llm.classify([PROMPT], use_tqdm=False)[0].outputs.probs

    # The labels differ in the middle, where a look at the beginning and the end of a tensor does not see it.
    for labels in ((["a", "b", "c"], [5, 6, 7]), (["a", "d", "c"], [5, 8, 7])):
        expected = scores(False, *labels)
        assert [scores(tmp_path, *labels) for _ in range(2)] == [expected, expected]
    assert len(files_of(tmp_path)) == 2
