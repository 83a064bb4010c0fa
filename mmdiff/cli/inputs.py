"""What the commands read, checked before the model loads."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from mmdiff.errors import MMDiffError
from mmdiff.files import shorten

if TYPE_CHECKING:
    from mmdiff.modeling.quantize import Bits
    from mmdiff.pipeline import Pipeline


def refuse(message: str) -> Exception:
    """What a user can put right; `main` prints it."""
    return MMDiffError(message)


def load_pipeline(
    model: str,
    device: str | None,
    dtype: str = "auto",
    quantize: str | None = None,
    speech_model: str | None = None,
) -> Pipeline:
    from mmdiff.pipeline import load

    bits = cast("Bits | None", quantize)  # another value is refused by load
    return load(model, device=device, dtype=dtype, quantize=bits, speech_model=speech_model)


def check_question(question: str) -> None:
    if not question.strip():
        raise refuse("the question is empty; say what you want to know")


def check_audio(names: list[str]) -> None:
    """A bad file is reported before the model loads."""
    from mmdiff.audio.audio_io import load_audio

    for name in names:
        load_audio(name)


def check_sources(names: Iterable[str | Path], outputs: Iterable[Path]) -> None:
    """What is read is never written over."""
    sources = {os.path.realpath(name) for name in names}
    for file in outputs:
        if file.is_file() and os.path.realpath(file) in sources:
            raise refuse(
                f"{shorten(str(file))} is read, and would be written over; give another name for "
                "the output"
            )


def check_outputs(*files: Path | None) -> None:
    """What cannot be written is reported before the work begins."""
    for file in files:
        if file is not None and (file.is_dir() or not file.parent.is_dir()):
            raise refuse(
                f"{file} cannot be written: give the name of a file in a folder that exists"
            )


def read_stdin() -> bytes:
    if sys.stdin is None:  # as where a shell closed it
        raise refuse("standard input is closed, and - reads it; name a file instead")
    return sys.stdin.buffer.read()
