"""`mmdiff ask` and `caption`: questions about images, one after the other."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmdiff.cli.flags import (
    FLAGGED_SETTINGS,
    Device,
    Dtype,
    Json,
    MaxNumSeqs,
    Model,
    Quantize,
    Seed,
    ShowSteps,
    SpeechModel,
    decoding_flags,
    with_flags,
)
from mmdiff.cli.inputs import check_audio, check_question, load_pipeline, refuse
from mmdiff.cli.outputs import (
    answer_fields,
    exit_after,
    heard_fields,
    print_outcome,
    to_json,
    warn_unsure,
)
from mmdiff.files import shorten

if TYPE_CHECKING:
    from mmdiff.answers import Answer, Draft
    from mmdiff.pipeline import Pipeline

CHUNK_PIXELS = 48_000_000  # of images opened together: 144 MB as RGB
CHUNK_IMAGES = 64


@with_flags(decoding=decoding_flags(*FLAGGED_SETTINGS))
def ask(
    images_and_question: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE... QUESTION", help="One or more images, then the question."),
    ],
    speech: Annotated[
        str | None, typer.Option(help="An audio file with the question, instead of words.")
    ] = None,
    speech_model: SpeechModel = None,
    model: Model = "tiny",
    as_json: Json = False,
    show_steps: ShowSteps = False,
    device: Device = None,
    dtype: Dtype = "auto",
    *,
    decoding: dict[str, Any],
    seed: Seed = 0,
    quantize: Quantize = None,
) -> None:
    """Answer a question about each image."""
    if speech is None and len(images_and_question) < 2:
        got = shorten(images_and_question[0])
        raise refuse(f"got only {got!r}; give at least one image and then the question in quotes")
    names, question = images_and_question, ""
    if speech is None:
        *names, question = images_and_question
        check_question(question)
    images = _first_opened(names, as_json, show_steps)
    if speech is not None:
        check_audio([speech])
    started = time.perf_counter()
    pipeline = load_pipeline(model, device, dtype, quantize, speech_model)
    load_seconds = time.perf_counter() - started
    printer = AnswerPrinter(question, len(names), as_json, load_seconds)
    if speech is not None:
        transcript = pipeline.heard(speech)
        typer.echo(f"heard: {transcript.text}", err=True)
        warn_unsure(speech, transcript)
        printer.question, printer.heard = transcript.text, heard_fields(transcript)
    _answer_each(pipeline, images, printer, show_steps, seed, decoding)


@with_flags(decoding=decoding_flags("threshold", "steps", "temperature"))
def caption(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Images, or with --out a folder.")
    ],
    length: Annotated[str, typer.Option(help="word, short or long.")] = "short",
    model: Model = "tiny",
    as_json: Json = False,
    show_steps: ShowSteps = False,
    device: Device = None,
    dtype: Dtype = "auto",
    *,
    decoding: dict[str, Any],
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Describe a whole folder, and write a JSON line each here.")
    ] = None,
    max_num_seqs: MaxNumSeqs = 16,
) -> None:
    """Describe each image."""
    from mmdiff.prompts import CAPTION_PROMPTS, CAPTION_ROOM

    known = next((name for name in CAPTION_PROMPTS if name == length), None)
    if known is None:
        raise refuse(f"--length {length!r} is not known; use one of {', '.join(CAPTION_PROMPTS)}")
    if out is not None:
        body = {"length": known, "seed": seed, **decoding}
        _caption_folder(images, out, body, model, device, max_num_seqs)
        return
    decoding = {"gen_length": CAPTION_ROOM[known], **decoding}
    opened = _first_opened(images, as_json, show_steps)
    started = time.perf_counter()
    pipeline = load_pipeline(model, device, dtype)
    load_seconds = time.perf_counter() - started
    printer = AnswerPrinter(CAPTION_PROMPTS[known], len(images), as_json, load_seconds)
    _answer_each(pipeline, opened, printer, show_steps, seed, decoding)


def _caption_folder(
    names: list[str],
    out: Path,
    body: dict[str, Any],
    model: str,
    device: str | None,
    max_num_seqs: int,
) -> None:
    if len(names) != 1 or not Path(names[0]).is_dir():
        raise refuse(
            f"--out is for one folder of images, which {shorten(' '.join(names))!r} is not"
        )
    from mmdiff.serve.batch.in_process import caption_folder

    _check_caption(body)
    outcome = caption_folder(Path(names[0]), out, body, model, device, max_num_seqs)
    print_outcome(outcome, "images", out)


def _check_caption(body: dict[str, Any]) -> None:
    """Settings that no image of a folder could be described with are reported before the first
    one is."""
    from mmdiff.serve.errors import ApiError
    from mmdiff.serve.http.parsing import validated
    from mmdiff.serve.http.schemas import CaptionRequest

    try:
        validated(CaptionRequest, {"image_url": "", **body})
    except ApiError as error:
        raise refuse(error.message) from None


@dataclass
class AnswerPrinter:
    """Prints the answers to one question about images."""

    question: str
    images: int
    as_json: bool
    load_seconds: float
    heard: dict[str, Any] = field(default_factory=dict)
    failed: int = 0

    def failure(self, name: str, error: Exception) -> None:
        self.failed += 1
        typer.echo(f"mmdiff: {error}", err=True)
        if self.as_json:
            typer.echo(to_json({"picture": name, "question": self.question, "error": str(error)}))

    def answer(self, name: str, answer: Answer, seconds: float) -> None:
        if self.as_json:
            measured = {
                "load_seconds": round(self.load_seconds, 3),
                "answer_seconds": round(seconds, 3),
            }
            fields = answer_fields(self.question, answer)
            typer.echo(to_json({"picture": name, **fields, **self.heard, **measured}))
        elif self.images == 1:
            typer.echo(answer.text)
        else:
            typer.echo(f"{name}: {answer.text}")


def _answer_each(
    pipeline: Pipeline,
    chunks: Iterator[list[tuple[str, Any]]],
    printer: AnswerPrinter,
    show_steps: bool,
    seed: int,
    decoding: dict[str, Any],
) -> None:
    answered = 0
    for chunk in chunks:
        names, images = _readable(chunk, printer)
        chunk.clear()
        if show_steps:
            while images:
                _show(pipeline, images.pop(0), printer.question, seed, decoding)
            continue
        begun = time.perf_counter()
        questions = [printer.question] * len(images)
        answers = pipeline.ask(images, questions, seed=seed + answered, **decoding)
        seconds = time.perf_counter() - begun
        answered += len(images)
        for name, answer in zip(names, answers, strict=True):
            printer.answer(name, answer, seconds)
        images.clear()  # before the next ones are opened
    exit_after(printer.failed, printer.images)


def _readable(chunk: list[tuple[str, Any]], printer: AnswerPrinter) -> tuple[list[str], list[Any]]:
    """Names and images of a chunk; those that cannot be read are reported."""
    names, images = list[str](), list[Any]()
    for name, image in chunk:
        if isinstance(image, Exception):
            printer.failure(name, image)
        else:
            names.append(name)
            images.append(image)
    return names, images


def _first_opened(
    names: list[str], as_json: bool, show_steps: bool
) -> Iterator[list[tuple[str, Any]]]:
    """The chunks of `_opened`; a first one that is bad is reported before the model loads."""
    if show_steps and as_json:
        raise refuse(
            "--show-steps draws in the terminal and --json prints data; choose one of them"
        )
    images = _opened(names)
    return itertools.chain([next(images)], images)


def _opened(names: list[str]) -> Iterator[list[tuple[str, Any]]]:
    """Names and images, or what is wrong with them, as many together as memory is meant for.

    Raises:
        MMDiffError: the only one cannot be opened.
    """
    from mmdiff.errors import MMDiffError
    from mmdiff.vision.image_io import open_image

    chunk: list[tuple[str, Any]] = []
    pixels = 0
    for name in names:
        try:
            image = open_image(name)
        except MMDiffError as error:
            if len(names) == 1:
                raise
            chunk.append((name, error))
            continue
        chunk.append((name, image))
        pixels += image.width * image.height
        del image
        if pixels >= CHUNK_PIXELS or len(chunk) >= CHUNK_IMAGES:
            yield chunk
            chunk, pixels = [], 0
    if chunk:
        yield chunk


def _show(
    pipeline: Pipeline, image: Any, question: str, seed: int, decoding: dict[str, Any]
) -> None:
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
