#!/usr/bin/env python3
"""Times the same batch without log-probabilities, with 20 a token, and with 20 a token that are all read as dicts.

Dummy weights of the shape of SmolLM2-135M (49,152 tokens of vocabulary). The three take turns in one process, so that
what else the machine does meets all of them. Printed: the median rate, and medians of the paired ratios of wall time
and of processor time, which other processes change less.

usage: python bench/logprobs.py [--rounds 9] [--prompts 16] [--new 32] [--logprobs 20] [--device cpu]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from quire import LLM, SamplingParams

SHAPE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
    "max_position_embeddings": 8192, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "hidden_act": "silu",
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
}  # fmt: skip


def seconds(llm: LLM, run: int, arguments: argparse.Namespace, logprobs: int | None, read: bool) -> tuple[float, float]:
    """Wall time and processor time of all threads."""
    prompts = [[300 + (run * 977 + 31 * i + 7 * j) % 40000 for j in range(16)] for i in range(arguments.prompts)]
    params = SamplingParams(temperature=1.0, seed=1, max_tokens=arguments.new, ignore_eos=True, logprobs=logprobs)
    start, cpu_start = time.perf_counter(), time.process_time()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    if read:
        assert all(len(entry) for output in outputs for entry in output.outputs[0].logprobs or ())
    return time.perf_counter() - start, time.process_time() - cpu_start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--logprobs", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    number = arguments.logprobs
    kinds = {"without": (None, False), "with": (number, False), "with, all read": (number, True)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SHAPE))
        with LLM(
            folder,
            skip_tokenizer_init=True,
            load_format="dummy",
            device=arguments.device,
            max_model_len=256,
            max_num_seqs=64,
            num_gpu_blocks_override=512,
            max_logprobs=-1,
        ) as llm:
            for run in range(-1, arguments.rounds):
                for name, (wanted, read) in kinds.items():
                    took = seconds(llm, run, arguments, wanted, read)
                    if run >= 0:  # the first round warms up
                        times[name].append(took)
    tokens = arguments.prompts * arguments.new
    for name, took in times.items():
        pairs = list(zip(times["without"], took, strict=True))
        wall, cpu = (statistics.median(base[clock] / own[clock] for base, own in pairs) for clock in (0, 1))
        rate = tokens / statistics.median(own[0] for own in took)
        print(f"{name:16} {rate:8.1f} tok/s  of the rate without: {wall:.3f} by wall time, {cpu:.3f} by processor time")


if __name__ == "__main__":
    main()
