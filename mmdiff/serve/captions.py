"""Describe every picture in a folder: one JSON line each, which may be broken off and taken up again.

Left out: what is no picture by its name, and pictures behind links to folders.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdiff.errors import MMDiffError
from mmdiff.serve.batch import Ask, may_pass
from mmdiff.serve.batch_input import name_of
from mmdiff.serve.job import Outcome, answered, outcome, write
from mmdiff.serve.journal import Row, open_journal

KINDS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif", ".webp": "webp", ".bmp": "bmp"}
URL = "/v1/caption"


@dataclass(frozen=True)
class Picture:
    """A file, its name inside the folder, and the `id` of its row: another file by that name has another."""

    path: Path
    name: str
    id: str


async def caption_folder(
    folder: Path, out: Path, asking: Callable[[], Any], *, body: dict[str, Any], settings: Any, most: int
) -> Outcome:
    """Write a caption for every picture in the folder and those in it.

    Args:
        asking: as of `run_batch`.
        body: what is asked beside the picture: `length`, and settings of the denoising.
        settings: what else the captions depend on, such as the model.

    Raises:
        MMDiffError: there is no picture, or the output cannot be written or is another job's.
    """
    pictures = list(_pictures(folder, [body, settings]))
    if not pictures:
        raise MMDiffError(f"{folder} holds no pictures; their names end in {', '.join(KINDS)}")

    async def one(picture: Picture, ask: Ask) -> Row:
        row = {"id": picture.id, "picture": picture.name}
        try:
            data = base64.b64encode(picture.path.read_bytes()).decode()
        except OSError as error:
            problem = {"code": "unreadable", "message": f"cannot be read ({error.strerror})", "may_pass": True}
            return {**row, "caption": None, "error": problem}
        url = f"data:image/{KINDS[picture.path.suffix.lower()]};base64,{data}"
        status, said = await ask(URL, {"image_url": url, **body}, picture.id)
        if status == 200:
            return {**row, "caption": said["caption"], "error": None}
        problem = {"code": said["error"]["code"], "message": said["error"]["message"], "may_pass": may_pass(status)}
        return {**row, "caption": None, "error": problem}

    names = {picture.id: picture.name for picture in pictures}
    with open_journal(out, names, "picture", lambda row: bool((row["error"] or {}).get("may_pass"))) as journal:
        left = [picture for picture in pictures if picture.id not in journal]
        if left:
            async with asking() as ask:
                await write(answered(left, lambda each: one(each, ask), most), journal, len(pictures), "pictures")
        journal.settle([picture.id for picture in pictures])
        return outcome(journal, lambda row: f"{row['picture']}: {row['error']['message']}")


def _pictures(folder: Path, settings: Any) -> Iterator[Picture]:
    for place, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            path = Path(place, file)
            if path.suffix.lower() in KINDS and path.is_file():
                name, state = path.relative_to(folder).as_posix(), path.stat()
                content = json.dumps([name, state.st_size, state.st_mtime_ns, settings], sort_keys=True)
                yield Picture(path, name, name_of(content.encode(), "caption"))
