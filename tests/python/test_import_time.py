"""What importing and using quire pulls in: nothing heavy at import, torch never for generate and chat."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "numpy", "jinja2", "tokenizers", "huggingface_hub", "tqdm", "typer", "cuda")


def loaded(code: str, *arguments: str) -> list[str]:
    code = f"import sys\n{code}\nprint(','.join(m for m in {HEAVY!r} if m in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return [name for name in ran.stdout.rstrip("\n").rpartition("\n")[2].split(",") if name]


def test_import_pulls_in_nothing() -> None:
    assert loaded("import quire; quire.SamplingParams(); quire.GuidedDecodingParams(regex='a')") == []
    assert loaded("import quire") == []


@pytest.mark.parametrize(
    "code",
    [
        "llm.generate(['Once', [5, 6]], SamplingParams(stop='x', logprobs=2, bad_words=['dog']), use_tqdm=False)",
        "llm.chat([{'role': 'user', 'content': 'Hi'}], use_tqdm=False)",
        "list(llm.stream('Once')); list(llm.generate_iter(['Once']))",
    ],
    ids=["generate", "chat", "stream"],
)
def test_generating_needs_neither_torch_nor_transformers(tiny_model: Path, code: str) -> None:
    start = "from quire import LLM, SamplingParams\nllm = LLM(sys.argv[1])\n"
    used = loaded(start + code, str(tiny_model))
    assert "torch" not in used and "transformers" not in used and "huggingface_hub" not in used


def test_gpt2_files_need_no_torch(tmp_path: Path) -> None:
    """vocab.json and merges.txt, as OPT and old GPT-2 checkpoints have them, go through transformers without torch."""
    import json

    from checkpoints import write_llama
    from tokenizers import Tokenizer

    folder = write_llama(tmp_path)
    Tokenizer.from_file(str(folder / "tokenizer.json")).model.save(str(folder))
    (folder / "tokenizer.json").unlink()
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "unk_token": "<|end|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    used = loaded(
        "from quire import LLM\nllm = LLM(sys.argv[1])\n(o,) = llm.generate('Once upon', use_tqdm=False)\n"
        "assert o.prompt_token_ids and llm._tokenizer.decode(o.prompt_token_ids) == 'Once upon'",
        str(folder),
    )
    assert "transformers" in used and "torch" not in used
