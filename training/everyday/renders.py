"""Rendered drawings of a set, kept as one array on disk that is read in pieces.

Scenes paste the same drawings many times, and rendering one costs as much as naming it. A set that
was broken off is rendered anew.

Shapes: N drawings, S pixels per side, 4 channels (RGBA, not premultiplied).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.progress import track

from mmdiff.training.everyday.drawings import SIDE, emoji_drawings, emoji_table
from mmdiff.training.everyday.names import is_everyday
from mmdiff.training.everyday.sources import FOLDER


@dataclass(frozen=True)
class Renders:
    """The everyday drawings of a set: their code points and pixels."""

    codes: list[str]
    pixels_NSS4: npt.NDArray[np.uint8]

    def drawing(self, number: int) -> Image.Image:
        """One of them, without empty borders."""
        image = Image.fromarray(np.asarray(self.pixels_NSS4[number]))
        return image.crop(image.getchannel("A").getbbox())


def rendered(name: str, folder: Path = FOLDER) -> Renders:
    """Of a set of emoji drawings; rendered where they are not there yet."""
    place = folder / "renders" / name
    if not (place / "codes.json").is_file():
        _render(name, folder, place)
    codes = json.loads((place / "codes.json").read_text(encoding="utf-8"))
    return Renders(codes, np.load(place / "pixels.npy", mmap_mode="r"))


def _render(name: str, folder: Path, place: Path) -> None:
    table = emoji_table(folder)
    codes = []
    pixels = []
    for code, drawing in track(emoji_drawings(name, folder), f"rendering {name}"):
        if code in table and is_everyday(table[code]):
            codes.append(code)
            pixels.append(np.asarray(centred(drawing)))
    save(place, codes, np.stack(pixels))


def save(place: Path, codes: list[str], pixels_NSS4: npt.NDArray[np.uint8]) -> None:
    """The list of codes is written last: where it is, the pixels are whole."""
    place.mkdir(parents=True, exist_ok=True)
    np.save(place / "pixels.npy", pixels_NSS4)
    (place / "codes.json").write_text(json.dumps(codes), encoding="utf-8")


def centred(drawing: Image.Image) -> Image.Image:
    """In the middle of an empty S x S image."""
    canvas = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    canvas.paste(drawing, ((SIDE - drawing.width) // 2, (SIDE - drawing.height) // 2))
    return canvas
