"""The quire command: every subcommand once on a tiny model, errors in one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest


def quire(*arguments: object, stdin: str = "", fails: bool = False) -> str:
    """Runs the command; returns what it printed (its errors, when it shall fail)."""
    command = [sys.executable, "-c", "from quire.cli import main; main()", *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, input=stdin)
    assert (ran.returncode != 0) == fails, ran.stderr
    return ran.stderr if fails else ran.stdout


def test_help_and_version() -> None:
    listed = quire("--help")
    for name in ("demo", "generate", "chat", "info", "bench", "collect-env"):
        assert name in listed
    assert quire("--version").startswith("quire ")


def test_generate(tiny_model: Path) -> None:
    options = ("--max-tokens", 5, "--temperature", 0)
    one = quire("generate", tiny_model, "Once upon", *options)
    (line,) = quire("generate", tiny_model, "Once upon", *options, "--json").splitlines()
    result = json.loads(line)
    assert result["prompt"] == "Once upon" and len(result["outputs"][0]["token_ids"]) <= 5
    assert one.rstrip("\n") == result["outputs"][0]["text"].rstrip("\n")
    assert quire("generate", tiny_model, *options, stdin="Once upon") == one
    many = quire("generate", tiny_model, "Once", "The", *options, "--n", 1)
    assert "> Once" in many and "> The" in many


def test_seed_repeats(tiny_model: Path) -> None:
    options = ("--max-tokens", 8, "--temperature", 1, "--seed", 3, "--json")
    assert quire("generate", tiny_model, "Once", *options) == quire("generate", tiny_model, "Once", *options)


def test_chat(tiny_model: Path) -> None:
    said = quire("chat", tiny_model, "--max-tokens", 5, "--seed", 1, stdin="Hi\n\n/reset\nHi\n/exit\nnever\n")
    answers = re.fullmatch(r"> (.*)\n> > > (.*)\n> ", said, re.DOTALL)
    assert answers and answers[1] == answers[2] != "", said
    quire("chat", tiny_model, "--max-tokens", 5, stdin="Hi\n")  # ends with its input


def test_info_plans_what_the_engine_takes(tiny_model: Path) -> None:
    from quire import LLM

    plan = json.loads(quire("info", tiny_model, "--json", "--max-model-len", 64))
    with LLM(str(tiny_model), max_model_len=64) as llm:
        real = llm.info()
    names = "architecture dtype max_model_len vocab_size num_layers hidden_size num_parameters block_size".split()
    for name in [*names, "kv_bytes_per_token", "weight_bytes"]:
        assert plan[name] == real[name], name
    table = quire("info", tiny_model)
    assert "LlamaForCausalLM" in table and "KV cache" in table
    with_set = json.loads(quire("info", tiny_model, "--json", "--set", "block_size=32", "--set", "dtype=bfloat16"))
    assert (with_set["block_size"], with_set["dtype"]) == (32, "bfloat16")


@pytest.mark.parametrize(
    ("name", "arguments", "keys"),
    [
        (
            "throughput",
            ("--num-prompts", 5, "--input-len", 7, "--output-len", 3),
            "elapsed_time num_requests total_num_tokens requests_per_second tokens_per_second output_tokens_per_second",
        ),
        (
            "latency",
            ("--batch-size", 2, "--output-len", 3, "--num-iters", 2, "--num-iters-warmup", 1),
            "avg_latency latencies percentiles",
        ),
        ("startup", ("--num-iters", 1), "avg_import_time avg_load_time avg_startup_time startup_times percentiles"),
    ],
)
def test_bench(tiny_model: Path, tmp_path: Path, name: str, arguments: tuple[object, ...], keys: str) -> None:
    file = tmp_path / "result.json"
    table = quire("bench", name, "--model", tiny_model, *arguments, "--output-json", file)
    result = json.loads(file.read_text())
    assert list(result) == keys.split()
    assert list(result)[0] in table
    if name == "throughput":
        assert result["num_requests"] == 5 and result["total_num_tokens"] == 5 * (7 + 3)
    if name == "latency":
        assert len(result["latencies"]) == 2 and result["percentiles"]["50"] > 0


def test_percentiles() -> None:
    from quire.cli.bench import percentiles

    values = percentiles([float(i) for i in range(101)][::-1])
    assert values == {"10": 10.0, "25": 25.0, "50": 50.0, "75": 75.0, "90": 90.0, "99": 99.0}
    assert percentiles([2.0])["99"] == 2.0


def test_collect_env() -> None:
    shown = quire("collect-env")
    for name in ("python", "processor", "memory", "transformers", "LlamaForCausalLM", "cuda plugin"):
        assert name in shown


def test_collect_env_tells_what_a_plugin_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libquire_cuda.so").write_text("not a library")
    monkeypatch.setenv("QUIRE_PLUGIN_PATH", str(tmp_path))
    shown = quire("collect-env")
    assert re.search(r'^cuda plugin +none: the plugin of device="cuda" cannot be loaded: ', shown, re.MULTILINE), shown
    assert "cuda devices" not in shown


def test_errors_are_one_line(tiny_model: Path) -> None:
    for arguments in (
        ("info", "/no/such/model"),
        ("generate", tiny_model, "x", "--set", "temprature=1"),
        ("generate", tiny_model, "x", "--temperature", -1),
        ("bench", "throughput", "--model", tiny_model, "--input-len", 1000),
        ("generate", tiny_model, "x", "--set", "pipeline_parallel_size=2"),
    ):
        message = quire(*arguments, fails=True)
        assert message.startswith("quire: ") and message.count("\n") == 1, message


def test_demo() -> None:
    from quire.model_source import _DEMO_DIRECTORY

    if not (_DEMO_DIRECTORY / "config.json").exists():
        pytest.skip("this build has no demo model")
    shown = quire("demo", "Tell me a story about a dog", "--max-tokens", 20)
    assert "> Tell me a story about a dog" in shown and "20 tokens in" in shown
