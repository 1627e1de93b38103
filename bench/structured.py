"""What structured output costs: 64 rows with distinct JSON schemas against the same rows running free.

Both arms write the same number of tokens a row from the same prompts, in one engine, in turns; a pair is one run of
each, and the figure is the median of the pairs' ratios. Grammars are compiled before (the time is told apart). Between
the arms lie the masks, the sampling of masked rows and the bookkeeping of the grammars. CPU time is that of all threads
of the process; with --threads 1 none of it is spent in waiting, so it can be compared on a busy machine.

    python bench/structured.py [--model DIR] [--rows 64] [--tokens 64] [--pairs 9] [--threads N] [--bounded]
                                [--load-format dummy]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import quire
from quire import LLM, GuidedDecodingParams, SamplingParams

PROMPT = "Once upon a time there was a little girl who wrote a list of what she saw:"


def schema(i: int, bounded: bool) -> str:
    """A record that ends in a long list of strings, so that no row ends early; every row's is another grammar.

    Bounded strings are the hard case: the state of the grammar counts characters, so no two masks are alike.
    """
    item = {"type": "string", "minLength": 3, "maxLength": 12 + i} if bounded else {"type": "string"}
    fields = {
        f"name_{i}": item,
        "age": {"type": "integer", "minimum": 0, "maximum": 100 + i},
        "kind": {"enum": ["bird", "fish", f"number {i}"]},
        "seen": {"type": "array", "items": item, "minItems": 500},
    }
    return json.dumps({"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False})


def run(llm: LLM, wishes: list[SamplingParams]) -> tuple[float, float, float]:
    """Tokens a second, then seconds a step, and of CPU time."""
    steps = llm.stats()["num_steps"]
    start, start_of_cpu = time.perf_counter(), time.process_time()
    outputs = llm.generate([PROMPT] * len(wishes), wishes, use_tqdm=False)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_of_cpu
    steps = llm.stats()["num_steps"] - steps
    num_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    assert all(output.outputs[0].finish_reason == "length" for output in outputs), "a row ended early"
    return num_tokens / seconds, seconds / steps, cpu_seconds / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(quire.__file__).parent / "demo_model"))
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--bounded", action="store_true", help="strings with a largest length, the hard case")
    args = parser.parse_args()
    llm = LLM(
        args.model, max_model_len=512, max_num_seqs=args.rows, load_format=args.load_format, num_threads=args.threads
    )
    common = {"max_tokens": args.tokens, "ignore_eos": True, "temperature": 1.0}
    free = [SamplingParams(seed=i, **common) for i in range(args.rows)]
    bound = [
        SamplingParams(
            seed=i,
            **common,
            guided_decoding=GuidedDecodingParams(json=schema(i, args.bounded), disable_any_whitespace=True),
        )
        for i in range(args.rows)
    ]
    start = time.perf_counter()
    llm._prepare([PROMPT] * args.rows, bound, None, "raise")
    compiling = time.perf_counter() - start
    run(llm, free), run(llm, bound)
    pairs = [(run(llm, free), run(llm, bound)) for _ in range(args.pairs)]
    print(f"{args.rows} rows of {args.tokens} tokens, vocabulary {llm.info()['vocab_size']}, {args.pairs} pairs")
    print(f"  compiling the {args.rows} grammars    {1e3 * compiling:8.1f} ms")
    for arm, name in enumerate(("free", "distinct schemas")):
        rate, step, cpu = (statistics.median(pair[arm][i] for pair in pairs) for i in range(3))
        print(f"  {name:24} {rate:8.0f} tokens/s  {1e3 * step:7.2f} ms a step  {1e3 * cpu:7.2f} ms of CPU time a step")
    ratio = statistics.median(bound[0] / free[0] for free, bound in pairs)
    of_cpu = statistics.median(free[2] / bound[2] for free, bound in pairs)
    print(f"  of free throughput       {100 * ratio:8.1f} %, by CPU time {100 * of_cpu:.1f} %")


if __name__ == "__main__":
    main()
