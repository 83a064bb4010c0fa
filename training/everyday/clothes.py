"""Photographs of ten kinds of clothes (clothing-dataset-small, Alexey Grigorev and contributors,
CC0 1.0), from a tar file of its folders train/ and validation/.

`train/` is parted: 300 photographs, the same in every run, are held out for choices of settings.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from PIL import Image, ImageOps

from mmdiff.errors import MMDiffError

FILE = Path("clothes.tar")
HELD_OUT = 300
Part = Literal["fit", "choose", "validation"]


@dataclass(frozen=True)
class Photograph:
    id: str
    kind: str  # the folder's name, such as "t-shirt"
    data: bytes

    def open(self) -> Image.Image:
        return ImageOps.exif_transpose(Image.open(io.BytesIO(self.data))).convert("RGB")


def photographs(part: Part, file: Path = FILE) -> Iterator[Photograph]:
    """Those of a part, in the archive's order.

    Raises:
        MMDiffError: the archive is not there.
    """
    if not file.is_file():
        raise MMDiffError(f"{file} does not exist: give the path of the archive of photographs")
    with tarfile.open(file) as archive:
        members = {member.name: member for member in archive.getmembers() if member.isfile()}
        for name in _names(list(members), part):
            stream = archive.extractfile(members[name])
            assert stream is not None
            yield Photograph(name, name.split("/")[-2], stream.read())


def _names(names: list[str], part: Part) -> list[str]:
    folder = "validation" if part == "validation" else "train"
    inside = [name for name in names if f"{folder}/" in f"/{name}"]
    if part == "validation":
        return inside
    # Another hash than that by which tables are parted, or all would be in one part.
    drawn = sorted(inside, key=lambda name: sha256(f"held out {name}".encode()).digest())
    held_out = set(drawn[:HELD_OUT])
    return [name for name in inside if (name in held_out) == (part == "choose")]
