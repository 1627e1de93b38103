#!/usr/bin/env python3
"""Times quire against Hugging Face transformers on the same random checkpoint, in alternating runs.

Decides the workloads and how they are counted; needs torch and transformers. Each engine runs in a process of its own,
one after the other, `--rounds` times; medians are printed, and every run goes into a JSON record with --json.
bench/plot_compare.py draws the records of bench/results/.

  decode    one prompt of 128 tokens, 128 new tokens: 127 / (t(128 new) - t(1 new))
  prefill   one prompt of 1,024 tokens, 1 new token: 1024 / t
  batch     64 prompts of 64 to 256 tokens, 128 new tokens each: (prompt + new tokens) / t
  start     seconds from the start of the process to the first token

usage: python bench/compare.py [--shape S|M] [--rounds 3] [--workloads decode,prefill,batch,start] [--json FILE]
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Shapes of SmolLM2-135M and Qwen2.5-0.5B; weights are random, so speed is comparable and text is not.
SHAPES: dict[str, dict[str, Any]] = {
    "S": {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "M": {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
WORKLOADS = ("decode", "prefill", "batch", "start")
Generate = Callable[[list[list[int]], int], None]


def make_checkpoint(shape: str, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(SHAPES[shape])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
    model.to(torch.bfloat16).save_pretrained(folder)


def prompts_of(workload: str, run: int) -> list[list[int]]:
    """Other token ids in each run, so that no prefix cache helps."""
    draw = random.Random(f"{workload}/{run}")
    lengths = {"decode": [128], "prefill": [1024], "start": [8]}.get(workload)
    if lengths is None:
        sizes = random.Random("lengths")
        lengths = [sizes.randint(64, 256) for _ in range(64)]
    return [[draw.randrange(300, 16384) for _ in range(length)] for length in lengths]


def load_quire(model: str) -> Generate:
    from quire import LLM, SamplingParams

    llm = LLM(model, skip_tokenizer_init=True, max_model_len=1056, dtype="bfloat16")

    def generate(prompts: list[list[int]], new: int) -> None:
        params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)

    return generate


def load_transformers(model: str) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(2)
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)

    def generate(prompts: list[list[int]], new: int) -> None:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        with torch.no_grad():
            lm.generate(
                ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
            )

    return generate


def seconds(generate: Generate, prompts: list[list[int]], new: int) -> float:
    start = time.perf_counter()
    generate(prompts, new)
    return time.perf_counter() - start


def measure(engine: str, model: str, workload: str, run: int) -> float:
    generate = {"quire": load_quire, "transformers": load_transformers}[engine](model)
    prompts = prompts_of(workload, run)
    if workload == "start":
        generate(prompts, 1)
        return 0.0  # the parent times the process
    generate(prompts_of("decode", -1), 4)
    if workload == "decode":
        once = seconds(generate, prompts_of("decode", run + 1000), 1)
        return 127 / (seconds(generate, prompts, 128) - once)
    new = 128 if workload == "batch" else 1
    counted = sum(map(len, prompts)) + (new * len(prompts) if workload == "batch" else 0)
    return counted / seconds(generate, prompts, new)


def run_once(engine: str, model: str, workload: str, run: int) -> float:
    command = [
        sys.executable,
        __file__,
        "--child",
        engine,
        "--model",
        model,
        "--workloads",
        workload,
        "--run",
        str(run),
    ]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    wall = time.perf_counter() - start
    return wall if workload == "start" else float(done.stdout.split()[-1])


def machine() -> dict[str, Any]:
    """What the figures were taken on, for the record."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    return {
        "cpu": cpu[1] if cpu else "unknown",
        "num_cpus": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "date": datetime.date.today().isoformat(),
        **versions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="S")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", help="a checkpoint to use instead of a random one")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--run", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(measure(arguments.child, arguments.model, arguments.workloads, arguments.run))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or folder
        if not arguments.model:
            make_checkpoint(arguments.shape, Path(folder))
        record = {"shape": arguments.shape, "dtype": "bfloat16", "threads": 2, "machine": machine()}
        results: dict[str, dict[str, list[float]]] = {}
        for workload in arguments.workloads.split(","):
            figures = results.setdefault(workload, {"quire": [], "transformers": []})
            for run in range(arguments.rounds):
                for engine in figures:
                    figures[engine].append(run_once(engine, model, workload, run))
            ours, theirs = (statistics.median(figures[engine]) for engine in ("quire", "transformers"))
            unit, ratio = ("s", theirs / ours) if workload == "start" else ("tok/s", ours / theirs)
            figures_text = f"quire {ours:9.2f}  transformers {theirs:9.2f} {unit:5}"
            print(f"{arguments.shape} {workload:8} {figures_text}  {ratio:.2f} times", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({**record, "runs": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
