"""Describe every picture in a folder: one JSON line each, which may be broken off and taken up again.

Left out: what is no picture by its name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdiff.errors import MMDiffError
from mmdiff.pipeline import CAPTION_PROMPTS, CAPTION_ROOM, Answer, CaptionLength, find, load
from mmdiff.serve.batch_input import name_of
from mmdiff.serve.job import Work, answered, fingerprint, write
from mmdiff.serve.journal import Row, open_journal
from mmdiff.serve.together import Question, Together
from mmdiff.vision.image import open_image

ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm")


@dataclass(frozen=True)
class Picture:
    """A file, its name inside the folder, and the `id` of its row: another file by that name has another."""

    path: Path
    name: str
    id: str


def caption_folder(
    folder: Path, out: Path, model: str = "tiny", length: CaptionLength = "short", *, device: str | None = None,
    most: int = 32, seed: int = 0, **decoding: Any,
) -> tuple[int, int]:
    """Write a caption for every picture in the folder and those in it; gives the numbers of rows and of errors.

    Raises:
        MMDiffError: there is no picture, or the output cannot be written or is another job's.
    """
    settings = [fingerprint(find(model)), length, seed, decoding]
    pictures = list(_pictures(folder, settings))
    if not pictures:
        raise MMDiffError(f"{folder} holds no pictures; their names end in {', '.join(ENDINGS)}")
    names = {picture.id: picture.name for picture in pictures}
    with open_journal(out, names, "picture", lambda row: False) as journal:
        left = [picture for picture in pictures if picture.id not in journal]
        if left:
            pipeline = load(model, device=device)
            pipeline.decoding(**decoding)  # a misfit is the caller's mistake, not that of every picture
            asked = {"gen_length": CAPTION_ROOM[length], **decoding}
            rows = answered(left, lambda picture: _work(picture, length, seed, asked), Together(pipeline), most)
            write(rows, journal, len(pictures), "pictures")
        journal.settle([picture.id for picture in pictures])
        return len(journal), journal.failed


def _pictures(folder: Path, settings: Sequence[Any]) -> Iterator[Picture]:
    for place, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            path = Path(place, file)
            if path.suffix.lower() in ENDINGS and path.is_file():
                name, state = path.relative_to(folder).as_posix(), path.stat()
                content = json.dumps([name, state.st_size, state.st_mtime_ns, settings], sort_keys=True)
                yield Picture(path, name, name_of(content.encode(), "caption"))


def _work(picture: Picture, length: CaptionLength, seed: int, decoding: dict[str, Any]) -> Work | Row:
    def row(answers: Sequence[Answer]) -> Row:
        return {"id": picture.id, "picture": picture.name, "caption": answers[0].text,
                "confidence": round(answers[0].confidence, 3), "error": None}

    def refused(error: MMDiffError) -> Row:
        return {"id": picture.id, "picture": picture.name, "caption": None, "confidence": None, "error": str(error)}

    try:
        image = open_image(picture.path)
    except MMDiffError as error:
        return refused(error)
    content = [{"type": "image", "image": image}, {"type": "text", "text": CAPTION_PROMPTS[length]}]
    return Work((Question([{"role": "user", "content": content}], decoding, seed),), row, refused)
