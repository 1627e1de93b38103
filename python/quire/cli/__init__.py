"""The command `quire`: demo, generate, chat, embed, score, info, cache, bench, collect-env.

Decides only which commands there are; each imports what it needs when it runs, so `quire --help` is quick.
"""

from __future__ import annotations

import sys

import typer

from quire.cli import bench, cache, demo, environment, info, pooling, text

app = typer.Typer(
    name="quire",
    help="Offline inference of large language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.command("generate")(text.generate)
app.command("chat")(text.chat)
app.command("embed")(pooling.embed)
app.command("score")(pooling.score)
app.command("info")(info.info)
app.command("cache")(cache.cache)
app.command("collect-env")(environment.collect_env)
app.add_typer(bench.app, name="bench", help="Measure speed.")


def version_wanted(value: bool) -> None:
    if value:
        import quire

        print(f"quire {quire.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=version_wanted, is_eager=True, help="Print the version."),
) -> None:
    """Offline inference of large language models."""


def main() -> None:
    """The entry point: mistakes of the user end as one line, not as a traceback."""
    try:
        app()
    except (ValueError, NotImplementedError, OSError, ImportError) as error:
        if isinstance(error, BrokenPipeError):
            sys.exit(141)
        print(f"quire: {error}", file=sys.stderr)
        sys.exit(1)
