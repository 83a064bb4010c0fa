"""`mmdiff transcribe`, `listen` and `refine`: the verbs on audio."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from mmdiff.cli.flags import Device, Dtype, Json, Model, SpeechModel, decoding_flags, with_flags
from mmdiff.cli.inputs import (
    check_audio,
    check_outputs,
    check_question,
    check_sources,
    load_pipeline,
    read_stdin,
    refuse,
)
from mmdiff.cli.outputs import answer_fields, exit_after, to_json, warn_unsure, write_whole
from mmdiff.errors import MMDiffError

if TYPE_CHECKING:
    from mmdiff.answers import Answer
    from mmdiff.audio.audio_io import Samples
    from mmdiff.pipeline import Pipeline
    from mmdiff.speech import RefineMode
    from mmdiff.transcript import Transcript


def transcribe(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...", help="WAV, FLAC, OGG, MP3, M4A, WebM, ...; - for standard input."
        ),
    ],
    form: Annotated[
        str, typer.Option("--format", help="text, json, verbose_json, srt or vtt.")
    ] = "text",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write to this file; of several, one each to this folder, by their names."
        ),
    ] = None,
    gate: Annotated[bool, typer.Option(help="Leave out what holds no speech.")] = True,
    language: Annotated[
        str | None, typer.Option(help="A code such as en (default: detected).")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Words that may occur, such as names.")] = None,
    channels: Annotated[
        str, typer.Option(help="mix, or separate: a two-channel call, speaker by speaker.")
    ] = "mix",
    beam_size: Annotated[int, typer.Option(help="Hypotheses that are kept; 1 is greedy.")] = 5,
    speech_model: SpeechModel = None,
    model: Model = "tiny",
    device: Device = None,
    dtype: Dtype = "auto",
) -> None:
    """Write down what is said in each audio file; one that cannot be read does not stop the
    others."""
    outputs = _transcript_files(files, out, form, channels)
    options = {
        "language": language,
        "prompt": prompt,
        "channels": channels,
        "beam_size": beam_size,
        "gate": gate,
    }
    pipeline, failed = None, 0
    for name, file in zip(files, outputs, strict=True):
        try:
            samples_NC = _channels(name, channels)
        except MMDiffError as error:
            if len(files) == 1:
                raise
            failed += 1
            _print_failure(name, error, out is None and "json" in form)
            continue
        pipeline = pipeline or load_pipeline(model, device, dtype, speech_model=speech_model)
        transcript = _with_progress(pipeline, name, samples_NC, options)
        warn_unsure(name, transcript)
        _print_transcript(transcript, form, name, file, alone=len(files) == 1)
    if failed:
        typer.echo(f"mmdiff: {failed} of {len(files)} files could not be transcribed", err=True)
    exit_after(failed, len(files))


@with_flags(decoding=decoding_flags("gen_length", "threshold", "steps", any_setting=False))
def listen(
    audio: Annotated[str, typer.Argument(metavar="FILE")],
    question: Annotated[str, typer.Argument()],
    model: Model = "tiny",
    as_json: Json = False,
    device: Device = None,
    dtype: Dtype = "auto",
    *,
    decoding: dict[str, Any],
) -> None:
    """Answer a question about audio."""
    check_question(question)
    check_audio([audio])
    answer = load_pipeline(model, device, dtype).listen(audio, question, **decoding)
    _print_answer(answer, {"sound": audio}, question, as_json)


def refine(
    audio: Annotated[str, typer.Argument(metavar="FILE")],
    draft: Annotated[str, typer.Option(help="The transcript to put right.")],
    share: Annotated[
        float, typer.Option(help="Share of the draft that is opened again (0 to 1).")
    ] = 0.3,
    mode: Annotated[
        str, typer.Option(help="low_confidence, or chunks: one part after the other.")
    ] = "low_confidence",
    model: Model = "tiny",
    as_json: Json = False,
    device: Device = None,
    dtype: Dtype = "auto",
) -> None:
    """Put a draft transcript of audio right."""
    if not draft.strip():
        raise refuse("--draft is empty; give the words to put right, or use mmdiff transcribe")
    check_audio([audio])
    chosen = cast("RefineMode", mode)  # another value is refused by refine
    answer = load_pipeline(model, device, dtype).refine(audio, draft, share=share, mode=chosen)
    _print_answer(answer, {"sound": audio, "draft": draft}, "", as_json)


def _print_answer(answer: Answer, source: dict[str, Any], question: str, as_json: bool) -> None:
    if as_json:
        typer.echo(to_json({**source, **answer_fields(question, answer)}))
    else:
        typer.echo(answer.text)


def _transcript_files(
    names: list[str], out: Path | None, form: str, channels: str
) -> list[Path | None]:
    """Where each transcript goes, None: to standard output; settings that do not fit are reported
    before the work begins."""
    from mmdiff.transcript import FORMATS

    if form not in FORMATS:
        raise refuse(f"--format {form!r} is not known; use one of {', '.join(FORMATS)}")
    if channels not in ("mix", "separate"):
        raise refuse(f"--channels {channels!r} is not known; use mix or separate")
    if out is None:
        if len(names) > 1 and form in ("srt", "vtt"):
            raise refuse(
                f"{len(names)} files in --format {form} would run into one another; add --out "
                "FOLDER"
            )
        return [None] * len(names)
    if len(names) == 1 and not out.is_dir():
        check_outputs(out)
        check_sources(names, [out])
        return [out]
    return list(_in_folder(names, out, form))


def _in_folder(names: list[str], folder: Path, form: str) -> list[Path]:
    if folder.exists() and not folder.is_dir():
        raise refuse(f"--out {folder} is a file; {len(names)} transcripts need a folder")
    suffix = {"text": "txt", "srt": "srt", "vtt": "vtt"}.get(form, "json")
    files = list[Path]()
    for name in names:
        stem = "stdin" if name == "-" else Path(name).stem
        file = folder / f"{stem}.{suffix}"
        if file in files:
            raise refuse(
                f"{name!r} and {names[files.index(file)]!r} would both be written to {file}; "
                "transcribe them one after the other"
            )
        files.append(file)
    check_sources(names, files)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refuse(f"--out {folder} cannot be made ({error.strerror})") from None
    return files


def _channels(name: str, channels: str) -> Samples:
    """The samples of a file at 16 kHz, (samples, channels): one, or with "separate" all of
    them."""
    import numpy as np

    from mmdiff.audio.audio_io import load_audio, load_channels

    source = read_stdin() if name == "-" else name
    if channels == "separate":
        return np.stack(load_channels(source), 1)
    return load_audio(source)[:, None]


def _with_progress(
    pipeline: Pipeline, name: str, samples_NC: Samples, options: dict[str, Any]
) -> Transcript:
    """With a bar in the terminal, unless the output's reader is a program."""
    from mmdiff.audio.audio_io import SAMPLE_RATE

    options = {"sample_rate": SAMPLE_RATE, **options}
    if not sys.stderr.isatty():
        return pipeline.transcribe(samples_NC, **options)
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(Path(name).name, total=1.0)
        return pipeline.transcribe(
            samples_NC, progress=lambda share: bar.update(task, completed=share), **options
        )


def _print_failure(name: str, error: MMDiffError, as_json: bool) -> None:
    typer.echo(f"mmdiff: {error}", err=True)
    if as_json:
        typer.echo(json.dumps({"file": name, "error": str(error)}))


def _print_transcript(
    transcript: Transcript, form: str, name: str, file: Path | None, *, alone: bool
) -> None:
    """To its file, or to standard output, with its name where there are several."""
    from mmdiff.transcript import FORMATS

    body = FORMATS[form](transcript)
    if file is not None:
        write_whole(file, body)
    elif alone:
        typer.echo(body, nl=False)
    elif form == "text":
        typer.echo(f"{name}: {body}", nl=False)
    else:
        typer.echo(json.dumps({"file": name, **json.loads(body)}))
