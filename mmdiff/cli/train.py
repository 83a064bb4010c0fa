"""`mmdiff train`: a model from data that is generated or installed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmdiff.cli.inputs import refuse


def train(
    recipe: Annotated[str, typer.Argument(help="The model to make: tiny.")] = "tiny",
    out: Annotated[
        Path, typer.Option(help="Folder of the run; an interrupted one goes on from there.")
    ] = Path("runs"),
    scale: Annotated[
        float, typer.Option(help="Factor on every stage's number of steps, for a trial run.")
    ] = 1.0,
    whisper: Annotated[
        str | None,
        typer.Option(
            help="Folder or hub name of a Whisper checkpoint to hear with (default: tiny.en)."
        ),
    ] = None,
) -> None:
    """Train a model from data that is generated or installed. Stop with Ctrl-C; the same command
    goes on."""
    from mmdiff.modeling.hub import find
    from mmdiff.training.recipes import RECIPES, run

    if recipe not in RECIPES:
        raise refuse(f"unknown recipe {recipe!r}; known are {', '.join(RECIPES)}")
    if not 0 < scale <= 1000:
        raise refuse(f"--scale {scale} does not fit; it must be above 0, and at most 1,000")
    folder = run(recipe, out / recipe, scale=scale, whisper=find(whisper) if whisper else None)
    typer.echo(f"the model is in {folder}; try: mmdiff ask IMAGE QUESTION --model {folder}")
