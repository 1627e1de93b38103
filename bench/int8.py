#!/usr/bin/env python3
"""Times a model with quantization="int8" and without, in turns, and says what rounding costs in perplexity.

Both engines live in one process. Decode rates are of the tokens behind the first one; a prefill is one prompt and one
token. With --text, stories separated by lines "<|endoftext|>", perplexity is that of every token of each story and of
the closing token 0, which also begins it (how the model card of quire/demo counts).

usage: python bench/int8.py [--model quire/demo] [--rounds 9] [--new 128] [--batches 1,8] [--prompts 64,512,1000]
       [--isa avx512] [--text FILE [--stories 299]]
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from quire import LLM, SamplingParams

NAMES = {"unrounded": None, "int8": "int8"}


def prompt(source: random.Random, length: int, vocab_size: int) -> dict[str, Any]:
    return {"prompt_token_ids": [source.randrange(4, vocab_size) for _ in range(length)]}


def decode(llm: LLM, batch: int, new: int, source: random.Random) -> float:
    """Tokens a second."""
    prompts = [prompt(source, 32, llm.info()["vocab_size"]) for _ in range(batch)]
    params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
    times = [output.metrics for output in llm.generate(prompts, params, use_tqdm=False)]
    seconds = max(one.last_token_time for one in times) - min(one.first_token_time for one in times)
    return batch * (new - 1) / seconds


def prefill(llm: LLM, length: int, source: random.Random) -> float:
    """Tokens a second."""
    one = prompt(source, length, llm.info()["vocab_size"])
    begin = time.perf_counter()
    llm.generate([one], SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
    return length / (time.perf_counter() - begin)


def compare(what: str, rounds: int, engines: dict[str, LLM], measure: Callable[[LLM], float]) -> None:
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(rounds + 1):
        for name in list(engines) if turn % 2 == 0 else list(engines)[::-1]:
            rate = measure(engines[name])
            if turn > 0:
                rates[name].append(rate)
    ratio = statistics.median(b / a for a, b in zip(rates["unrounded"], rates["int8"], strict=True))
    medians = ", ".join(f"{name} {statistics.median(values):,.1f}" for name, values in rates.items())
    print(f"{what}: {medians} tok/s, median of the paired ratios {ratio:.2f}", flush=True)


def perplexity(llm: LLM, prompts: list[list[int]]) -> float:
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    total, count = 0.0, 0
    for output in llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False):
        for token, entry in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True):
            total += entry[token].logprob
            count += 1
    return math.exp(-total / count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="quire/demo")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--prompts", default="64,512,1000")
    parser.add_argument("--isa", default="")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--stories", type=int, default=299)
    arguments = parser.parse_args()
    longest = max([1024, *(int(length) + 1 for length in arguments.prompts.split(","))])
    options: dict[str, Any] = {"dtype": "bfloat16", "max_num_seqs": 16, "seed": 0, "enable_prefix_caching": False}
    options |= {"cpu_isa": arguments.isa} if arguments.isa else {}
    engines = {}
    for name, quantization in NAMES.items():
        begin = time.perf_counter()
        engines[name] = LLM(arguments.model, quantization=quantization, max_model_len=longest, **options)
        info = engines[name].info()
        seconds = time.perf_counter() - begin
        print(f"{name}: loaded in {seconds:.2f} s, weights {info['weight_bytes'] / 1e6:.1f} MB, {info['kernels']}")
    source = random.Random(1)
    for batch in map(int, arguments.batches.split(",")):
        compare(
            f"decode of {batch}",
            arguments.rounds,
            engines,
            partial(decode, batch=batch, new=arguments.new, source=source),
        )
    for length in map(int, arguments.prompts.split(",")):
        compare(f"prefill of {length}", arguments.rounds, engines, partial(prefill, length=length, source=source))
    if arguments.text:
        tokenizer = engines["int8"].get_tokenizer()
        stories = [story.strip() for story in arguments.text.read_text().split("<|endoftext|>") if story.strip()]
        prompts = []
        for story in stories[: arguments.stories]:
            prompts.append([0, *tokenizer.encode(story, add_special_tokens=False), 0][: longest - 1])
        values = {name: perplexity(llm, prompts) for name, llm in engines.items()}
        change = 100 * (values["int8"] / values["unrounded"] - 1)
        print(f"perplexity: {', '.join(f'{n} {v:.4f}' for n, v in values.items())}, {change:+.3f} %")


if __name__ == "__main__":
    main()
