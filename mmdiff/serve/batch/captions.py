"""Describe every picture in a folder: one JSON line each, which may be broken off and taken up
again.

Left out: what is not an image by its name, which is said, and images behind links to folders.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdiff.errors import MMDiffError
from mmdiff.serve.batch.input import name_of
from mmdiff.serve.batch.journal import Row, open_journal
from mmdiff.serve.batch.run import Ask, may_pass
from mmdiff.serve.batch.worker_pool import JobOutcome, answered, outcome, write
from mmdiff.vision.image_io import ImageError, open_image

KINDS = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".jpe": "jpeg",
    ".jfif": "jpeg",
    ".gif": "gif",
    ".webp": "webp",
    ".bmp": "bmp",
}  # what the decoder reads
REWRITTEN = (
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".avif",
    ".heic",
    ".heif",
)  # sent as PNG
SUFFIXES = (*KINDS, *REWRITTEN)
SHOWN_ENDINGS = 5
URL = "/v1/caption"


@dataclass(frozen=True)
class FolderImage:
    """A file, its name inside the folder, and the `id` of its row: another file by that name has
    another."""

    path: Path
    name: str
    id: str


async def caption_folder(
    folder: Path,
    out: Path,
    asking: Callable[[], Any],
    *,
    body: dict[str, Any],
    settings: Any,
    most: int,
) -> JobOutcome:
    """Write a caption for every picture in the folder and those in it.

    Args:
        asking: as of `run_batch`.
        body: what is asked beside the picture: `length`, and settings of the denoising.
        settings: what else the captions depend on, such as the model.

    Raises:
        MMDiffError: there is no picture, or the output cannot be written or is another job's.
    """
    files = list(_files(folder))
    pictures = [
        _picture(folder, path, [body, settings])
        for path in files
        if path.suffix.lower() in SUFFIXES
    ]
    if not pictures:
        raise MMDiffError(f"{folder} holds no pictures; their names end in {', '.join(SUFFIXES)}")
    if skipped := _skipped(files):
        print(skipped, file=sys.stderr, flush=True)

    async def one(picture: FolderImage, ask: Ask) -> Row:
        row = {"id": picture.id, "picture": picture.name}
        try:
            url = await asyncio.to_thread(_data_url, picture.path)
        except OSError as error:
            problem = {
                "code": "unreadable",
                "message": f"cannot be read ({error.strerror})",
                "may_pass": True,
            }
            return {**row, "caption": None, "error": problem}
        except ImageError as error:
            problem = {"code": "invalid_image", "message": str(error), "may_pass": False}
            return {**row, "caption": None, "error": problem}
        status, said = await ask(URL, {"image_url": url, **body}, picture.id)
        if status == 200:
            return {**row, "caption": said["caption"], "error": None}
        problem = {
            "code": said["error"]["code"],
            "message": said["error"]["message"],
            "may_pass": may_pass(status),
        }
        return {**row, "caption": None, "error": problem}

    names = {picture.id: picture.name for picture in pictures}
    with open_journal(
        out, names, "picture", lambda row: bool((row["error"] or {}).get("may_pass"))
    ) as journal:
        left = [picture for picture in pictures if picture.id not in journal]
        if left:
            async with asking() as ask:
                await write(
                    answered(left, lambda each: one(each, ask), most),
                    journal,
                    len(pictures),
                    "pictures",
                )
        journal.settle([picture.id for picture in pictures])
        return outcome(journal, lambda row: f"{row['picture']}: {row['error']['message']}")


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders.sort()
        yield from (path for file in sorted(files) if (path := Path(place, file)).is_file())


def _picture(folder: Path, path: Path, settings: Any) -> FolderImage:
    name, state = path.relative_to(folder).as_posix(), path.stat()
    content = json.dumps([name, state.st_size, state.st_mtime_ns, settings], sort_keys=True)
    return FolderImage(path, name, name_of(content.encode(), "caption"))


def _skipped(files: Sequence[Path]) -> str:
    """How many files are not images by their names, and how these end; nothing where there are
    none."""
    others = Counter(
        path.suffix.lower() or "no ending" for path in files if path.suffix.lower() not in SUFFIXES
    )
    endings = ", ".join(f"{count} {ending}" for ending, count in others.most_common(SHOWN_ENDINGS))
    more = ", ..." if len(others) > SHOWN_ENDINGS else ""
    what = "file is" if others.total() == 1 else "files are"
    return (
        f"{others.total()} {what} left out, by the names not images: {endings}{more}"
        if others
        else ""
    )


def _data_url(path: Path) -> str:
    kind = KINDS.get(path.suffix.lower())
    if kind is not None:
        data = path.read_bytes()
    else:
        kind, held = "png", io.BytesIO()
        open_image(path).save(held, "PNG", compress_level=1)
        data = held.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
