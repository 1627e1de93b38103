"""`quire demo`: the embedded storyteller writes a few stories, and one line says how fast.

Decides the prompts and the layout; everything shown is generated on the spot.
"""

from __future__ import annotations

import time
from typing import Annotated

import typer

from quire.cli import options

PROMPTS = ("Tell me a story about a dog", "Tell me a story about a little boat", "Tell me a story about the moon")


def demo(
    prompts: Annotated[list[str] | None, typer.Argument(help="What to ask for; default: three stories.")] = None,
    model: options.OptionalModel = "quire/demo",
    max_tokens: options.MaxTokens = 200,
    temperature: options.Temperature = 0.7,
    seed: options.Seed = 1,
    num_threads: options.NumThreads = None,
) -> None:
    """Write a few stories with the embedded model."""
    from quire import LLM, SamplingParams

    begin = time.perf_counter()
    with LLM(model, **options.llm_arguments(num_threads=num_threads)) as llm:
        loaded = time.perf_counter() - begin
        params = SamplingParams(temperature=temperature or 0.0, seed=seed, max_tokens=max_tokens, top_p=0.95)
        num_tokens, seconds = 0, 0.0
        for prompt in prompts or PROMPTS:
            typer.secho(f"> {prompt}", bold=True)
            begin = time.perf_counter()
            for chunk in llm.stream_chat([{"role": "user", "content": prompt}], params):
                num_tokens += len(chunk.token_ids)
                print(chunk.text, end="", flush=True)
            seconds += time.perf_counter() - begin
            print("\n")
        info = llm.info()
    typer.secho(
        f"{num_tokens} tokens in {seconds:.2f} s: {num_tokens / max(seconds, 1e-9):.0f} tokens/s, one story after the "
        f"other. A {info['num_parameters'] / 1e6:.1f}M-parameter {info['architecture']} ({info['dtype']}), started in "
        f"{loaded:.2f} s, ran in quire's C++ engine on {info['num_threads']} threads ({info['kernels']} kernels).",
        dim=True,
    )
