"""`quire bench throughput|latency|beam-search|startup|profile|compare`: speed as a table and as JSON.

Decides the workloads (random token ids, every request runs to its full length) and what is timed. Nothing is asserted.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quire.cli import compare, options, profiling

if TYPE_CHECKING:
    from quire import LLM, SamplingParams

app = typer.Typer(no_args_is_help=True)
app.command()(profiling.profile)
app.command()(compare.compare)

InputLen = Annotated[int, typer.Option(help="Tokens of each prompt.")]
OutputLen = Annotated[int, typer.Option(help="Tokens to generate for each.")]
OutputJson = Annotated[Path | None, typer.Option(help="Write the result to this file.")]
PERCENTILES = (10, 25, 50, 75, 90, 99)


def random_prompts(count: int, length: int, vocab_size: int, seed: int) -> list[list[int]]:
    """Prompts that share no prefix."""
    source = random.Random(seed)
    return [[source.randrange(vocab_size) for _ in range(length)] for _ in range(count)]


def fixed_length(length: int, n: int = 1) -> SamplingParams:
    from quire import SamplingParams

    return SamplingParams(n=n, temperature=1.0, seed=0, max_tokens=length, ignore_eos=True, detokenize=False)


def open_llm(model: str, arguments: dict[str, Any], longest: int) -> LLM:
    from quire import LLM

    arguments.setdefault("skip_tokenizer_init", True)
    llm = LLM(model, **arguments)
    limit = llm.info()["max_model_len"]
    if longest > limit:
        raise ValueError(f"input and output together are {longest} tokens, and the model takes {limit}")
    return llm


@app.command()
def throughput(
    model: options.OptionalModel = "quire/demo",
    num_prompts: Annotated[int, typer.Option(help="Requests, all there at once.")] = 64,
    input_len: InputLen = 128,
    output_len: OutputLen = 128,
    n: Annotated[int, typer.Option(help="Sequences a prompt.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 0,
    output_json: OutputJson = None,
    dtype: options.Dtype = None,
    max_model_len: options.MaxModelLen = None,
    num_threads: options.NumThreads = None,
    assignments: options.EngineSet = None,
) -> None:
    """Tokens a second of many requests at once."""
    with open_llm(
        model, options.llm_arguments(dtype, max_model_len, num_threads, assignments), input_len + output_len
    ) as llm:
        prompts: list[Any] = random_prompts(num_prompts, input_len, llm.info()["vocab_size"], seed)
        llm.generate(random_prompts(2, 8, llm.info()["vocab_size"], seed + 1), fixed_length(2), use_tqdm=False)
        begin = time.perf_counter()
        outputs = llm.generate(prompts, fixed_length(output_len, n), use_tqdm=sys.stderr.isatty())
        elapsed = time.perf_counter() - begin
    num_output = sum(len(completion.token_ids) for output in outputs for completion in output.outputs)
    total = num_output + num_prompts * input_len
    result = {
        "elapsed_time": elapsed,
        "num_requests": num_prompts,
        "total_num_tokens": total,
        "requests_per_second": num_prompts / elapsed,
        "tokens_per_second": total / elapsed,
        "output_tokens_per_second": num_output / elapsed,
    }
    _report(result, output_json)


@app.command()
def latency(
    model: options.OptionalModel = "quire/demo",
    batch_size: Annotated[int, typer.Option(help="Requests at once.")] = 8,
    input_len: InputLen = 32,
    output_len: OutputLen = 128,
    num_iters: Annotated[int, typer.Option(help="Timed runs.")] = 10,
    num_iters_warmup: Annotated[int, typer.Option(help="Runs before, not timed.")] = 2,
    output_json: OutputJson = None,
    dtype: options.Dtype = None,
    max_model_len: options.MaxModelLen = None,
    num_threads: options.NumThreads = None,
    assignments: options.EngineSet = None,
) -> None:
    """Seconds of one batch of requests, over several runs."""
    latencies = []
    with open_llm(
        model, options.llm_arguments(dtype, max_model_len, num_threads, assignments), input_len + output_len
    ) as llm:
        vocab_size = llm.info()["vocab_size"]
        for run in range(num_iters_warmup + num_iters):
            prompts = random_prompts(batch_size, input_len, vocab_size, run)  # new ones: no prefix is cached
            begin = time.perf_counter()
            llm.generate(prompts, fixed_length(output_len), use_tqdm=False)
            if run >= num_iters_warmup:
                latencies.append(time.perf_counter() - begin)
    _report(
        {
            "avg_latency": statistics.fmean(latencies),
            "latencies": latencies,
            "percentiles": percentiles(latencies),
        },
        output_json,
    )


@app.command()
def beam_search(
    model: options.OptionalModel = "quire/demo",
    num_prompts: Annotated[int, typer.Option(help="Searches at once.")] = 1,
    beam_width: Annotated[int, typer.Option(help="Beams of each.")] = 4,
    input_len: InputLen = 256,
    output_len: OutputLen = 64,
    num_iters: Annotated[int, typer.Option(help="Timed runs of each.")] = 3,
    output_json: OutputJson = None,
    dtype: options.Dtype = None,
    max_model_len: options.MaxModelLen = None,
    num_threads: options.NumThreads = None,
    assignments: options.EngineSet = None,
) -> None:
    """Seconds of beam searches, and of the same searches as a loop of one-token generate calls."""
    from quire import BeamSearchParams

    arguments = options.llm_arguments(dtype, max_model_len, num_threads, assignments)
    arguments.setdefault("max_logprobs", 2 * beam_width)
    seconds: dict[str, list[float]] = {"search": [], "loop": []}
    with open_llm(model, arguments, input_len + output_len) as llm:
        params = BeamSearchParams(beam_width, output_len, ignore_eos=True)
        for run in range(num_iters + 1):  # the first is not counted
            for name, times in seconds.items():
                prompts = random_prompts(num_prompts, input_len, llm.info()["vocab_size"], run)
                llm.reset_prefix_cache()
                begin = time.perf_counter()
                if name == "search":
                    outputs = llm.beam_search([{"prompt_token_ids": prompt} for prompt in prompts], params)
                    found = [[sequence.tokens for sequence in output.sequences] for output in outputs]
                else:
                    looped = _beam_search_by_generate(llm, prompts, beam_width, output_len)
                times.append(time.perf_counter() - begin)
            if found != looped:
                raise ValueError("the loop found other sequences")
    search, loop = (statistics.median(times[1:]) for times in seconds.values())
    num_tokens = num_prompts * beam_width * output_len
    result = {
        "search_seconds": search,
        "loop_seconds": loop,
        "loop_per_search": loop / search,
        "search_tokens_per_second": num_tokens / search,
    }
    _report(result, output_json)


def _beam_search_by_generate(
    llm: LLM, prompts: list[list[int]], beam_width: int, output_len: int
) -> list[list[list[int]]]:
    """As vLLM searches: every beam is a new prompt for every token."""
    from quire import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=2 * beam_width, detokenize=False, ignore_eos=True)
    beams: list[list[tuple[list[int], float]]] = [[(prompt, 0.0)] for prompt in prompts]
    for _ in range(output_len):
        flat: list[Any] = [tokens for search in beams for tokens, _ in search]
        outputs = iter(llm.generate(flat, params, use_tqdm=False))
        for position, search in enumerate(beams):
            longer = []
            for tokens, total in search:
                logprobs = next(outputs).outputs[0].logprobs
                assert logprobs is not None
                longer += [([*tokens, token], total + entry.logprob) for token, entry in logprobs[0].items()]
            beams[position] = sorted(longer, key=lambda beam: beam[1], reverse=True)[:beam_width]
    return [[tokens for tokens, _ in search] for search in beams]


_STARTUP = """
import sys, time
begin = time.perf_counter()
import json
from quire import LLM, SamplingParams
imported = time.perf_counter() - begin
llm = LLM(sys.argv[1], **json.loads(sys.argv[2]))
loaded = time.perf_counter() - begin
llm.generate([[1, 2, 3]], SamplingParams(max_tokens=1, ignore_eos=True), use_tqdm=False)
print(json.dumps([imported, loaded, time.perf_counter() - begin]))
"""


@app.command()
def startup(
    model: options.OptionalModel = "quire/demo",
    num_iters: Annotated[int, typer.Option(help="Processes to start.")] = 3,
    output_json: OutputJson = None,
    dtype: options.Dtype = None,
    max_model_len: options.MaxModelLen = None,
    num_threads: options.NumThreads = None,
    assignments: options.EngineSet = None,
) -> None:
    """Seconds from `import quire` to the first token, each in a process of its own."""
    arguments = json.dumps(options.llm_arguments(dtype, max_model_len, num_threads, assignments))
    runs = []
    for _ in range(num_iters):
        process = subprocess.run([sys.executable, "-c", _STARTUP, model, arguments], capture_output=True, text=True)
        if process.returncode:
            raise ValueError(process.stderr.strip().splitlines()[-1])
        runs.append(json.loads(process.stdout))
    times = [first_token for _, _, first_token in runs]
    _report(
        {
            "avg_import_time": statistics.fmean(run[0] for run in runs),
            "avg_load_time": statistics.fmean(run[1] - run[0] for run in runs),
            "avg_startup_time": statistics.fmean(times),
            "startup_times": times,
            "percentiles": percentiles(times),
        },
        output_json,
    )


def percentiles(values: list[float]) -> dict[str, float]:
    """By linear interpolation between the sorted values."""
    ordered = sorted(values)
    result = {}
    for percent in PERCENTILES:
        place = (len(ordered) - 1) * percent / 100
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        result[str(percent)] = ordered[below] + (ordered[above] - ordered[below]) * (place - below)
    return result


def _report(result: dict[str, Any], output_json: Path | None) -> None:
    rows: list[tuple[str, Any]] = []
    for name, value in result.items():
        if name == "percentiles":
            rows += [(f"p{percent}", seconds) for percent, seconds in value.items()]
        elif not isinstance(value, list):
            rows.append((name, value))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {f'{value:.4f}' if isinstance(value, float) else value}")
    if output_json is not None:
        output_json.write_text(json.dumps(result, indent=2) + "\n")
