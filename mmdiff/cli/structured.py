"""`mmdiff extract`, `choose` and `fill`: answers with a given structure."""

from __future__ import annotations

import importlib
import json
import mimetypes
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmdiff.cli.flags import (
    AudioAs,
    Device,
    Dtype,
    Model,
    Quantize,
    Seed,
    SpeechModel,
    decoding_flags,
    with_flags,
)
from mmdiff.cli.inputs import check_audio, check_question, load_pipeline, read_stdin, refuse
from mmdiff.cli.outputs import to_json
from mmdiff.files import shorten

if TYPE_CHECKING:
    from mmdiff.answers import Extraction


@with_flags(decoding=decoding_flags())
def extract(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="An image or audio, such as speech; - for text on standard input."
        ),
    ],
    schema: Annotated[
        str, typer.Option(help="A JSON Schema file, or module:Type of a type that pydantic knows.")
    ],
    question: Annotated[str | None, typer.Option(help="What is wanted, in words.")] = None,
    audio_as: AudioAs = "transcript",
    max_tokens: Annotated[int, typer.Option(help="Tokens that the value may take.")] = 256,
    speech_model: SpeechModel = None,
    model: Model = "tiny",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print confidences and chances as well.")
    ] = False,
    device: Device = None,
    dtype: Dtype = "auto",
    *,
    decoding: dict[str, Any],
    seed: Seed = 0,
    quantize: Quantize = None,
) -> None:
    """Fill in a JSON Schema from an image, from speech or other audio, or from a text; the value
    always fits."""
    wanted = _read_schema(schema)
    given = _source(source, audio_as)
    made = load_pipeline(model, device, dtype, quantize, speech_model).extract(
        given.pop("image"),
        wanted,
        question=question,
        max_tokens=max_tokens,
        seed=seed,
        **given,
        **decoding,
    )
    _print_extraction(source, made, as_json)


def choose(
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="An image or audio, such as speech.")
    ],
    question: Annotated[str, typer.Argument()],
    choices: Annotated[
        list[str], typer.Argument(metavar="CHOICE...", help="The answers to choose from.")
    ],
    audio_as: AudioAs = "transcript",
    speech_model: SpeechModel = None,
    model: Model = "tiny",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the chance of each choice.")
    ] = False,
    device: Device = None,
    dtype: Dtype = "auto",
    seed: Seed = 0,
    quantize: Quantize = None,
) -> None:
    """Answer a question about an image, or about speech or other audio, with one of the choices."""
    check_question(question)
    given = {"image": source} if source == "-" else _source(source, audio_as)
    made = load_pipeline(model, device, dtype, quantize, speech_model).choose(
        given.pop("image"), question, choices, seed=seed, **given
    )
    _print_extraction(source, made, as_json)


@with_flags(decoding=decoding_flags())
def fill(
    image: Annotated[str, typer.Argument(metavar="IMAGE")],
    text: Annotated[str, typer.Argument(help='With holes: "The [[ ]] is [[red|green]]."')],
    question: Annotated[str | None, typer.Option(help="What the text answers.")] = None,
    model: Model = "tiny",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was filled in and how sure it is.")
    ] = False,
    device: Device = None,
    dtype: Dtype = "auto",
    *,
    decoding: dict[str, Any],
    seed: Seed = 0,
    quantize: Quantize = None,
) -> None:
    """Fill the holes of a text about an image, in any order."""
    made = load_pipeline(model, device, dtype, quantize).fill(
        text, image=image, question=question, seed=seed, **decoding
    )
    _print_extraction(image, made, as_json)


def _read_schema(name: str) -> Any:
    """A JSON Schema read from a file, or a type named module:Type."""
    module, found, attribute = name.partition(":")
    if found and not Path(name).exists():
        sys.path.insert(0, str(Path.cwd()))
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise refuse(
                f"--schema {name!r}: {error}; give module:Type with a module that Python finds"
            ) from None
    try:
        return json.loads(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise refuse(f"--schema {name!r} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # also where it is not text
        raise refuse(f"--schema {name!r} is not JSON: {error}") from None


def _source(name: str, audio_as: str) -> dict[str, Any]:
    """What is to be looked at: a file's audio where its name says so, else its image."""
    from mmdiff.structured_verbs import AUDIO_AS

    if audio_as not in AUDIO_AS:
        raise refuse(f"--audio-as {shorten(audio_as)!r} is not known; use {' or '.join(AUDIO_AS)}")
    if name == "-":
        try:
            return {"image": None, "text": read_stdin().decode()}
        except UnicodeDecodeError:
            raise refuse(
                "standard input is not text in UTF-8; name the file where it is an image or audio"
            ) from None
    kind = mimetypes.guess_type(name)[0] or ""
    if not kind.startswith(("audio/", "video/")):
        return {"image": name}
    check_audio([name])
    return {"image": None, "audio": name, "audio_as": audio_as}


def _print_extraction(source: str, made: Extraction, as_json: bool) -> None:
    _print_heard(source, made)
    for warning in made.warnings:
        typer.echo(f"note: {warning}", err=True)
    if as_json:
        typer.echo(to_json(_extraction_fields(made), ensure_ascii=False))
    else:
        typer.echo(made.text)


def _print_heard(source: str, made: Extraction) -> None:
    from mmdiff.transcript import UNSURE

    if not made.heard:
        return
    typer.echo(f"heard: {made.heard}", err=True)
    if made.heard_confidence < UNSURE:
        typer.echo(
            f"mmdiff: {source}: not sure of these words (confidence {made.heard_confidence:.2f})",
            err=True,
        )


def _extraction_fields(made: Extraction) -> dict[str, Any]:
    try:
        value = json.loads(made.text)
    except ValueError:  # a choice or a text that was filled in
        value = made.text
    fields = {
        path: {"confidence": each.confidence, "chances": list(map(list, each.probabilities))}
        for path, each in made.fields.items()
    }
    decisions = [
        {
            "pointer": each.pointer,
            "kind": each.kind,
            "chances": list(map(list, each.probabilities)),
        }
        for each in made.decisions
    ]
    found = {
        "value": value,
        "confidence": made.confidence,
        "fields": fields,
        "decisions": decisions,
        "steps": made.steps,
        "passes": made.passes,
        "repairs": [{"pointer": each.pointer, "what": each.what} for each in made.repairs],
        "notes": list(made.notes),
    }
    if made.heard:
        found |= {"heard": made.heard, "heard_confidence": round(made.heard_confidence, 4)}
    return found
