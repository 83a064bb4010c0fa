"""Captions of every image in a folder, one JSON line each; a job can be interrupted and resumed.

Left out: what is not an image by its name, which is printed, and images behind links to folders.
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
from functools import partial
from pathlib import Path
from typing import Any

from mmdiff.errors import MMDiffError
from mmdiff.serve.batch.input import name_of
from mmdiff.serve.batch.journal import Row, open_journal
from mmdiff.serve.batch.run import Post, is_transient
from mmdiff.serve.batch.worker_pool import JobOutcome, concurrently, outcome, write_rows
from mmdiff.vision.image_io import ImageError, open_image

KINDS = {  # what the media workers read
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".jpe": "jpeg",
    ".jfif": "jpeg",
    ".gif": "gif",
    ".webp": "webp",
    ".bmp": "bmp",
}
# sent as PNG
REWRITTEN = (".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif")
SUFFIXES = (*KINDS, *REWRITTEN)
SHOWN_ENDINGS = 5
URL = "/v1/caption"


@dataclass(frozen=True)
class FolderImage:
    """An image file, its name inside the folder, and the `id` of its row: another file by that name
    has another."""

    path: Path
    name: str
    id: str


async def caption_folder(
    folder: Path,
    out: Path,
    connect: Callable[[], Any],
    *,
    body: dict[str, Any],
    settings: Any,
    max_concurrent: int,
) -> JobOutcome:
    """Write a caption for every image in the folder and those in it.

    Args:
        connect: as of `rows_by`.
        body: what is sent beside the image: `length`, and settings of the denoising.
        settings: what else the captions depend on, such as the model.

    Raises:
        MMDiffError: there is no image, or the output cannot be written or is another job's.
    """
    files = list(_files(folder))
    images = [
        _folder_image(folder, path, [body, settings])
        for path in files
        if path.suffix.lower() in SUFFIXES
    ]
    if not images:
        raise MMDiffError(f"{folder} holds no images; their names end in {', '.join(SUFFIXES)}")
    if skipped := _skipped(files):
        print(skipped, file=sys.stderr, flush=True)
    names = {image.id: image.name for image in images}
    with open_journal(out, names, "picture", _is_transient) as journal:
        left = [image for image in images if image.id not in journal]
        if left:
            async with connect() as post:
                rows = concurrently(left, partial(_caption, post, body), max_concurrent)
                await write_rows(rows, journal, len(images), "images")
        journal.settle([image.id for image in images])
        return outcome(journal, lambda row: f"{row['picture']}: {row['error']['message']}")


async def _caption(post: Post, body: dict[str, Any], image: FolderImage) -> Row:
    """The row of an image."""
    try:
        url = await asyncio.to_thread(_data_url, image.path)
    except OSError as error:
        message = f"cannot be read ({error.strerror})"
        return _row(image, None, _error("unreadable", message, may_pass=True))
    except ImageError as error:
        return _row(image, None, _error("invalid_image", str(error), may_pass=False))
    status, answer = await post(URL, {"image_url": url, **body}, image.id)
    if status == 200:
        return _row(image, answer["caption"], None)
    refused = answer["error"]
    return _row(image, None, _error(refused["code"], refused["message"], is_transient(status)))


def _row(image: FolderImage, caption: str | None, error: dict[str, Any] | None) -> Row:
    return {"id": image.id, "picture": image.name, "caption": caption, "error": error}


def _error(code: str, message: str, may_pass: bool) -> dict[str, Any]:
    return {"code": code, "message": message, "may_pass": may_pass}


def _is_transient(row: Row) -> bool:
    return bool((row["error"] or {}).get("may_pass"))


def _files(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            path = Path(root, file)
            if path.is_file():
                yield path


def _folder_image(folder: Path, path: Path, settings: Any) -> FolderImage:
    name, state = path.relative_to(folder).as_posix(), path.stat()
    content = json.dumps([name, state.st_size, state.st_mtime_ns, settings], sort_keys=True)
    return FolderImage(path, name, name_of(content.encode(), "caption"))


def _skipped(files: Sequence[Path]) -> str:
    """How many files are not images by their names, and how these end; nothing where there are
    none."""
    suffixes = [path.suffix.lower() for path in files]
    others = Counter(suffix or "no ending" for suffix in suffixes if suffix not in SUFFIXES)
    if not others:
        return ""
    endings = ", ".join(f"{count} {ending}" for ending, count in others.most_common(SHOWN_ENDINGS))
    more = ", ..." if len(others) > SHOWN_ENDINGS else ""
    what = "file is" if others.total() == 1 else "files are"
    return f"{others.total()} {what} left out, by the names not images: {endings}{more}"


def _data_url(path: Path) -> str:
    kind = KINDS.get(path.suffix.lower())
    if kind is not None:
        data = path.read_bytes()
    else:
        kind, held = "png", io.BytesIO()
        open_image(path).save(held, "PNG", compress_level=1)
        data = held.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
