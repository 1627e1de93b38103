"""Options that several commands share, and what they become: arguments of LLM and SamplingParams.

Decides spelling and help. An option that is not given is not passed on, so defaults live in one place.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from quire.engine_args import ARGS

Model = Annotated[str, typer.Argument(help="A directory, the id of a model on the hub, or quire/demo.")]
OptionalModel = Annotated[
    str, typer.Option("--model", help="A directory, the id of a model on the hub, or quire/demo.")
]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, float16 or bfloat16.")]
MaxModelLen = Annotated[int | None, typer.Option(help="Longest prompt and output together, in tokens.")]
NumThreads = Annotated[int | None, typer.Option(help="CPU threads.")]
EngineSet = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other argument of LLM, its value as JSON. May be repeated."),
]
Temperature = Annotated[float | None, typer.Option(help="0: the most likely token.")]
TopP = Annotated[float | None, typer.Option(help="Keep the likeliest tokens of this mass.")]
TopK = Annotated[int | None, typer.Option(help="Keep this many of the likeliest tokens.")]
Seed = Annotated[int | None, typer.Option(help="Makes random choices repeat.")]
MaxTokens = Annotated[int | None, typer.Option(help="Tokens to generate at most.")]
Stop = Annotated[list[str] | None, typer.Option(help="Text that ends the output. May be repeated.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def llm_arguments(
    dtype: str | None = None,
    max_model_len: int | None = None,
    num_threads: int | None = None,
    assignments: list[str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Keyword arguments of LLM."""
    named = {"dtype": dtype, "max_model_len": max_model_len, "num_threads": num_threads, **more}
    arguments = {name: value for name, value in named.items() if value is not None}
    for assignment in assignments or ():
        name, equals, value = assignment.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set wants NAME=VALUE, got {assignment!r}")
        name = name.replace("-", "_")
        if name not in ARGS:
            raise ValueError(f"--set {assignment}: LLM has no argument {name!r}")
        try:
            arguments[name] = json.loads(value)
        except ValueError:  # a bare word is a string
            arguments[name] = value
    return arguments


def changed(params: Any, **values: Any) -> Any:
    """A copy of SamplingParams with the values that were given."""
    kept = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens")
    fields = {name: getattr(params, name) for name in kept}
    fields.update({name: value for name, value in values.items() if value is not None})
    return type(params).from_optional(**fields)
