"""What the commands print and write."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mmdiff.cli.inputs import refuse

if TYPE_CHECKING:
    from mmdiff.answers import Answer
    from mmdiff.serve.batch.worker_pool import JobOutcome
    from mmdiff.transcript import Transcript

SHOWN_UNSURE = 5  # segments of a transcript


def to_json(value: Any, **options: Any) -> str:
    """JSON, which knows no numbers that are none: null stands for them."""
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def answer_fields(question: str, answer: Answer) -> dict[str, Any]:
    return {
        "question": question,
        "answer": answer.text,
        "confidence": round(answer.confidence, 4),
        "steps": answer.steps,
        "passes": answer.passes,
        "tokens": [
            {"text": t.text, "confidence": round(t.confidence, 4), "step": t.step}
            for t in answer.tokens
        ],
    }


def heard_fields(question: Transcript | None) -> dict[str, Any]:
    if question is None:
        return {}
    return {"heard": question.text, "heard_confidence": round(question.confidence, 4)}


def warn_unsure(name: str, transcript: Transcript) -> None:
    """What a reader of the words alone would not know."""
    if not transcript.segments:
        typer.echo(f"mmdiff: {name}: no speech was found", err=True)
    unsure = transcript.unsure
    for segment in unsure[:SHOWN_UNSURE]:
        typer.echo(
            f"mmdiff: {name}: not sure of {segment.text!r} at {segment.start:.1f} s "
            f"(confidence {segment.confidence:.2f})",
            err=True,
        )
    if len(unsure) > SHOWN_UNSURE:
        typer.echo(f"mmdiff: {name}: nor of {len(unsure) - SHOWN_UNSURE} more segments", err=True)


def print_outcome(outcome: JobOutcome, what: str, out: Path) -> None:
    typer.echo(f"{outcome.rows} {what}, {outcome.failed} failed: {out}", err=True)
    for sentence in outcome.failures:
        typer.echo(f"  {sentence}", err=True)


def write_whole(file: Path, text: str) -> None:
    """All of it or nothing, where a link leads to; a device or a pipe is written to, never
    replaced."""
    file = Path(os.path.realpath(file))
    new = file.with_name(f".{file.name}.new")
    try:
        if file.exists() and not file.is_file():
            file.write_text(text, encoding="utf-8")
            return
        new.write_text(text, encoding="utf-8")
        new.replace(file)
    except OSError as error:
        raise refuse(f"{file} cannot be written ({error.strerror})") from None


def exit_after(failed: int, of: int) -> None:
    """Exit code 2 where all failed, 1 where some did."""
    if failed:
        raise typer.Exit(2 if failed == of else 1)
