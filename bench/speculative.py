#!/usr/bin/env python3
"""Times decoding one prompt with and without n-gram speculation, in turns, on a text that repeats itself.

Both engines live in one process and write the same tokens, which is checked. Rates are of decoding alone: tokens behind
the first one over the time since it came. Printed: medians, the median of the paired ratios, and how many drafts were
right. `--shape` takes random weights of a larger model (bench/peers/checkpoints.py): their greedy
text soon runs in circles, so that nearly every draft is right, which is the most that speculation can give.

usage: python bench/speculative.py [--model quire/demo | --shape S|M|L|T] [--rounds 5] [--new 256] [--tokens 5]
       [--lookup-min 2] [--lookup-max 4] [--batch 1] [--device cpu] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from peers.checkpoints import SHAPES, make_checkpoint
from quire import LLM, SamplingParams
from quire.cli.machine import describe

STORY = (
    "Once upon a time there was a little dog. The dog liked to play in the garden. One day the dog found a red ball. "
    "He was very happy and ran home to show the red ball to his mother. "
)


def run(llm: LLM, prompts: list[Any], new: int) -> tuple[float, list[list[int]]]:
    """Tokens a second, and the tokens."""
    params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    times = [output.metrics for output in outputs]
    seconds = max(one.last_token_time for one in times) - min(one.first_token_time for one in times)
    return len(prompts) * (new - 1) / seconds, [list(output.outputs[0].token_ids) for output in outputs]


def measure(model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    options: dict[str, Any] = {"dtype": "bfloat16", "device": arguments.device, "max_model_len": 1024, "seed": 0}
    options |= {"max_num_seqs": max(8, arguments.batch), "enable_prefix_caching": False}
    config = {"method": "ngram", "num_speculative_tokens": arguments.tokens}
    config |= {"prompt_lookup_min": arguments.lookup_min, "prompt_lookup_max": arguments.lookup_max}
    prompts: list[Any] = [STORY * 3 + STORY[: 20 + 7 * i] for i in range(arguments.batch)]
    if arguments.shape:
        options["skip_tokenizer_init"] = True
        prompts = [[300 + (i % 31) * 7 + 13 * k for i in range(124)] for k in range(arguments.batch)]
    rates: dict[str, list[float]] = {"without": [], "with": []}
    with LLM(model, **options) as plain, LLM(model, speculative_config=config, **options) as guessing:
        engines = {"without": plain, "with": guessing}
        for engine in engines.values():
            run(engine, prompts, 8)
        before = guessing.stats()
        for turn in range(arguments.rounds):
            written = {}
            for name in list(engines) if turn % 2 == 0 else list(engines)[::-1]:
                rate, written[name] = run(engines[name], prompts, arguments.new)
                rates[name].append(rate)
            assert written["with"] == written["without"], "the outputs differ"
        after = guessing.stats()
    drafted, accepted = (after[name] - before[name] for name in ("num_draft_tokens", "num_accepted_tokens"))
    steps = after["num_steps"] - before["num_steps"]
    return {
        "runs": rates,
        "ratio": statistics.median(b / a for a, b in zip(rates["without"], rates["with"], strict=True)),
        "accepted_share": accepted / drafted if drafted else 0.0,
        "tokens_per_step": arguments.rounds * arguments.new / steps,  # of each sequence
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="quire/demo")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=5)
    parser.add_argument("--lookup-min", type=int, default=2)
    parser.add_argument("--lookup-max", type=int, default=4)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    told = {name: value for name, value in vars(arguments).items() if name != "json"}
    record: dict[str, Any] = {**told, "dtype": "bfloat16", "machine": describe()}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.shape:
            make_checkpoint(SHAPES[arguments.shape], Path(folder))
        record |= measure(folder if arguments.shape else arguments.model, arguments)
    without, with_ = (statistics.median(record["runs"][name]) for name in ("without", "with"))
    print(
        f"{arguments.shape or arguments.model}, batch {arguments.batch}: without {without:.1f} tok/s, with {with_:.1f} "
        f"tok/s, {record['ratio']:.2f} times; {record['accepted_share']:.0%} of the drafts were right, "
        f"{record['tokens_per_step']:.2f} tokens a step"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
