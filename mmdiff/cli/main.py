"""The command line: parses, calls, prints. Everything it does is a verb of `pipeline`, `training`
or `eval`.

Heavy imports wait until a command needs them. What a user can cause ends as one sentence and exit
code 2.
"""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from mmdiff.cli.ask import ask, caption
from mmdiff.cli.audio import listen, refine, transcribe
from mmdiff.cli.evaluate import bench, evaluate, info
from mmdiff.cli.serve import run_batch, serve
from mmdiff.cli.structured import choose, extract, fill
from mmdiff.cli.train import train

app = typer.Typer(
    help="Ask a masked-diffusion language model about images and audio.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

COMMANDS: dict[str, Callable[..., Any]] = {
    "ask": ask,
    "transcribe": transcribe,
    "listen": listen,
    "refine": refine,
    "caption": caption,
    "run-batch": run_batch,
    "extract": extract,
    "choose": choose,
    "fill": fill,
    "train": train,
    "eval": evaluate,
    "bench": bench,
    "serve": serve,
    "info": info,
}
for name, command in COMMANDS.items():
    app.command(name)(command)


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import PackageNotFoundError, version

    from mmdiff import __version__

    typer.echo(f"mmdiff {__version__}")
    parts = [f"Python {sys.version.split()[0]}"]
    for package in ("torch", "transformers"):
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            parts.append(f"{package} is not installed")
    typer.echo(", ".join(parts))
    raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print versions and exit."
        ),
    ] = False,
) -> None:
    """What comes before the command."""


def main() -> None:
    """The `mmdiff` command."""
    from mmdiff.errors import MMDiffError

    _write_any_text()
    try:
        app()
    except MMDiffError as error:
        typer.echo(f"mmdiff: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        if error.filename is not None:
            raise
        typer.echo(f"mmdiff: standard output cannot be written ({error.strerror})", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _write_any_text() -> None:
    """Let output hold every text: names of files need not be Unicode, and an encoding may lack
    letters."""
    codecs.register_error("mmdiff.any", _escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            legacy = (
                sys.platform == "win32" and not stream.isatty()
            )  # files and pipes there have a code page
            stream.reconfigure(encoding="utf-8" if legacy else None, errors="mmdiff.any")


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """A name's bytes as they are, and letters that the encoding lacks as backslash escapes."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


if __name__ == "__main__":
    main()
