"""The command line: parses, calls, prints. Everything it does is a verb of `pipeline`, `training` or `eval`.

Heavy imports wait until a command needs them. What a user can cause ends as one sentence and exit code 2.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mmdiff.pipeline import Answer, Draft, Pipeline

app = typer.Typer(
    help="Ask a masked-diffusion language model about pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[str, typer.Option("--model", help="A shipped model, a checkpoint folder or a hub name.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per picture.")]
ShowSteps = Annotated[bool, typer.Option("--show-steps", help="Show the answer while it is denoised.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ... (default: a GPU where there is one).")]
GenLength = Annotated[int | None, typer.Option(help="Positions of the answer.")]
BlockLength = Annotated[int | None, typer.Option(help="Positions of a block; blocks are decided from left to right.")]
Steps = Annotated[int | None, typer.Option(help="Steps in all, with a fixed number of commits per step.")]
Threshold = Annotated[float | None, typer.Option(help="Commit every position this confident (0 to 1) at once.")]
Temperature = Annotated[float | None, typer.Option(help="0 takes the likeliest token.")]
CfgScale = Annotated[float | None, typer.Option(help="Classifier-free guidance; 0 is none.")]
Seed = Annotated[int, typer.Option(help="For a temperature above 0.")]


@app.command()
def ask(
    pictures_and_question: Annotated[
        list[str], typer.Argument(metavar="PICTURE... QUESTION", help="One or more pictures, then the question.")
    ],
    model: Model = "tiny",
    as_json: Json = False,
    show_steps: ShowSteps = False,
    device: Device = None,
    gen_length: GenLength = None,
    block_length: BlockLength = None,
    steps: Steps = None,
    threshold: Threshold = None,
    temperature: Temperature = None,
    cfg_scale: CfgScale = None,
    seed: Seed = 0,
) -> None:
    """Answer a question about each picture."""
    if len(pictures_and_question) < 2:
        got = pictures_and_question[0]
        raise _refuse(f"got only {got!r}; give at least one picture and then the question in quotes")
    *pictures, question = pictures_and_question
    decoding = _given(
        gen_length=gen_length, block_length=block_length, steps=steps, threshold=threshold, temperature=temperature,
        cfg_scale=cfg_scale,
    )
    _answer(pictures, question, model, as_json, show_steps, device, seed, decoding)


@app.command()
def caption(
    pictures: Annotated[list[str], typer.Argument(metavar="PICTURE...")],
    length: Annotated[str, typer.Option(help="word, short or long.")] = "short",
    model: Model = "tiny",
    as_json: Json = False,
    show_steps: ShowSteps = False,
    device: Device = None,
    threshold: Threshold = None,
    steps: Steps = None,
    temperature: Temperature = None,
    seed: Seed = 0,
) -> None:
    """Describe each picture."""
    from mmdiff.pipeline import CAPTION_PROMPTS, CAPTION_ROOM

    known = next((name for name in CAPTION_PROMPTS if name == length), None)
    if known is None:
        raise _refuse(f"--length {length!r} is not known; use one of {', '.join(CAPTION_PROMPTS)}")
    decoding = _given(threshold=threshold, steps=steps, temperature=temperature) | {"gen_length": CAPTION_ROOM[known]}
    _answer(pictures, CAPTION_PROMPTS[known], model, as_json, show_steps, device, seed, decoding)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="The model to make: tiny.")] = "tiny",
    out: Annotated[Path, typer.Option(help="Folder of the run; an interrupted one goes on from there.")] = Path("runs"),
    scale: Annotated[float, typer.Option(help="Factor on every stage's number of steps, for a trial run.")] = 1.0,
) -> None:
    """Train a model from data that is generated or installed. Stop with Ctrl-C; the same command goes on."""
    from mmdiff.training.recipes import RECIPES, run

    if recipe not in RECIPES:
        raise _refuse(f"unknown recipe {recipe!r}; known are {', '.join(RECIPES)}")
    if scale <= 0:
        raise _refuse(f"--scale {scale} does not fit; it must be above 0")
    folder = run(recipe, out / recipe, scale=scale)
    typer.echo(f"the model is in {folder}; try: mmdiff ask PICTURE QUESTION --model {folder}")


@app.command("eval")
def evaluate(
    tasks: Annotated[list[str] | None, typer.Argument(help="easy-vqa, scenes-vqa, scenes-captions; or all.")] = None,
    model: Model = "tiny",
    limit: Annotated[int | None, typer.Option(help="Only the first so many pictures of each task.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the report as JSON here.")] = None,
    batch_size: Annotated[int, typer.Option(help="Questions answered at once.")] = 64,
    device: Device = None,
) -> None:
    """Measure a model on pictures it was not trained on."""
    from mmdiff.eval.run import evaluate as run_tasks
    from mmdiff.eval.tasks import TASKS

    names = tasks or list(TASKS)
    if unknown := [name for name in names if name not in TASKS]:
        raise _refuse(f"unknown task {unknown[0]!r}; known are {', '.join(TASKS)}")
    if batch_size < 1 or (limit is not None and limit < 1):
        raise _refuse(f"--batch-size {batch_size} and --limit {limit} must be at least 1")
    report = run_tasks(_load(model, device), names, limit, batch_size)
    if out:
        out.write_text(json.dumps(report, indent=1) + "\n")


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="A preset, a shipped model or a checkpoint folder.")] = "tiny",
) -> None:
    """Say what a model is made of, without loading its weights."""
    from mmdiff.checkpoint import config_of, describe
    from mmdiff.config import PRESETS
    from mmdiff.pipeline import find

    typer.echo(json.dumps(describe(PRESETS[model] if model in PRESETS else config_of(find(model))), indent=1))


def main() -> None:
    """The `mmdiff` command."""
    from mmdiff.errors import MMDiffError

    try:
        app()
    except MMDiffError as error:
        typer.echo(f"mmdiff: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _answer(
    pictures: list[str], question: str, model: str, as_json: bool, show_steps: bool, device: str | None, seed: int,
    decoding: dict[str, Any],
) -> None:
    from mmdiff.vision.image import open_image

    if not question.strip():
        raise _refuse("the question is empty; say what you want to know")
    if show_steps and as_json:
        raise _refuse("--show-steps draws in the terminal and --json prints data; choose one of them")
    opened = [open_image(picture) for picture in pictures]  # a bad one is reported before the model loads
    started = time.perf_counter()
    pipeline = _load(model, device)
    loaded = time.perf_counter()
    if show_steps:
        for image in opened:
            _show(pipeline, image, question, seed, decoding)
        return
    answers = pipeline.ask(opened, [question] * len(opened), seed=seed, **decoding)
    seconds = {"load_seconds": loaded - started, "answer_seconds": time.perf_counter() - loaded}
    for name, answer in zip(pictures, answers, strict=True):
        if as_json:
            typer.echo(json.dumps(_as_dict(name, question, answer, seconds)))
        else:
            typer.echo(answer.text if len(pictures) == 1 else f"{name}: {answer.text}")


def _as_dict(name: str, question: str, answer: Answer, seconds: dict[str, float]) -> dict[str, Any]:
    return {
        "picture": name, "question": question, "answer": answer.text, "confidence": round(answer.confidence, 4),
        "steps": answer.steps,
        **{part: round(value, 3) for part, value in seconds.items()},
        "tokens": [{"text": t.text, "confidence": round(t.confidence, 4), "step": t.step} for t in answer.tokens],
    }


def _show(pipeline: Pipeline, image: Any, question: str, seed: int, decoding: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(), auto_refresh=False) as live:
        for draft in pipeline.stream(image, question, seed=seed, **decoding):
            live.update(_paint(draft), refresh=True)


def _paint(draft: Draft) -> Any:
    """Open positions as ▒, unsure tokens dim."""
    from rich.text import Text

    line = Text(f"step {draft.step + 1:3d}  ", style="bold")
    for token in draft.tokens:
        if token is None:
            line.append("▒")
        else:
            line.append(token.text, style="" if token.confidence >= 0.9 else "dim")
    return line


def _load(model: str, device: str | None) -> Pipeline:
    from mmdiff.pipeline import load

    return load(model, device=device)


def _given(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _refuse(message: str) -> Exception:
    from mmdiff.errors import MMDiffError

    return MMDiffError(message)


if __name__ == "__main__":
    main()
