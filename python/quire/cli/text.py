"""`quire generate` and `quire chat`: text from the command line.

Decides what is printed and how a conversation is held; parameters that are not given are the model's own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quire.cli import options

if TYPE_CHECKING:
    from quire import LLM, RequestOutput, SamplingParams, StreamChunk

_CHAT_HELP = "/exit leaves, /reset forgets the conversation, Ctrl-C stops an answer."


def generate(
    model: options.Model,
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts; without any, one from standard input.")] = None,
    n: Annotated[int, typer.Option(help="Sequences a prompt.")] = 1,
    max_tokens: options.MaxTokens = 128,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    as_json: options.AsJson = False,
    dtype: options.Dtype = None,
    max_model_len: options.MaxModelLen = None,
    num_threads: options.NumThreads = None,
    assignments: options.EngineSet = None,
) -> None:
    """Complete prompts. A single one is printed while it is written."""
    from quire import LLM

    texts = prompts or [sys.stdin.read()]
    with LLM(model, **options.llm_arguments(dtype, max_model_len, num_threads, assignments)) as llm:
        params = options.changed(
            llm.get_default_sampling_params(),
            n=n,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop=stop or None,
        )
        if len(texts) == 1 and n == 1 and not as_json:
            _print_chunks(llm.stream(texts[0], params))
            return
        outputs = llm.generate(texts, params, use_tqdm=sys.stderr.isatty())
    for output in outputs:
        if as_json:
            print(json.dumps(_as_dict(output), ensure_ascii=False))
            continue
        for completion in output.outputs:
            typer.secho(f"> {output.prompt}", bold=True)
            print(completion.text)


def _print_chunks(chunks: Iterator[StreamChunk]) -> str:
    """Prints the text as it comes and returns all of it. Ctrl-C ends it there."""
    written = []
    try:
        for chunk in chunks:
            written.append(chunk.text)
            print(chunk.text, end="", flush=True)
    except KeyboardInterrupt:
        pass
    print()
    return "".join(written)


def _as_dict(output: RequestOutput) -> dict[str, Any]:
    return {
        "prompt": output.prompt,
        "outputs": [
            {
                "text": completion.text,
                "token_ids": completion.token_ids,
                "finish_reason": completion.finish_reason,
                "stop_reason": completion.stop_reason,
            }
            for completion in output.outputs
        ],
    }


def chat(
    model: Annotated[
        str, typer.Argument(help="A directory, the id of a model on the hub, or quire/demo.")
    ] = "quire/demo",
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    seed: options.Seed = None,
    dtype: options.Dtype = None,
    max_model_len: options.MaxModelLen = None,
    num_threads: options.NumThreads = None,
    assignments: options.EngineSet = None,
) -> None:
    """Talk to a model."""
    from quire import LLM

    with LLM(model, **options.llm_arguments(dtype, max_model_len, num_threads, assignments)) as llm:
        params = options.changed(
            llm.get_default_sampling_params(),
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
        )
        typer.secho(_CHAT_HELP, dim=True, err=True)
        _talk(llm, params, [{"role": "system", "content": system}] if system else [])


def _talk(llm: LLM, params: SamplingParams, beginning: list[dict[str, str]]) -> None:
    messages = list(beginning)
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line in ("/exit", "/quit"):
            return
        if line == "/reset":
            messages = list(beginning)
            continue
        if not line:
            continue
        messages.append({"role": "user", "content": line})
        try:
            answer = _print_chunks(llm.stream_chat(messages, params))
        except ValueError as error:  # the conversation has grown too long, or the template refuses it
            typer.secho(f"{error}\nThat was not sent; /reset begins anew.", fg="red", err=True)
            messages.pop()
            continue
        messages.append({"role": "assistant", "content": answer})
