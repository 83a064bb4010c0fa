"""Named drawings of several artists, rendered to one size; and drawings before backgrounds.

Drawings of emoji are known by their code point ("1f436"), whatever a set calls them, so that the
same thing drawn by several artists has one key. Those with a skin tone are left out.

Shapes: S pixels per side.
"""

from __future__ import annotations

import functools
import io
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from mmdiff.errors import require_extra
from mmdiff.training.everyday.sources import BY_NAME, FOLDER

SIDE = 224  # pixels
MARGIN = 8  # pixels around a drawing on plain white
ICON_SETS = ("noto", "twemoji", "noto-v1", "fxemoji", "emojione", "streamline-emojis")
PNG_SETS = ("google", "twitter")
UNSEEN = "fluent-emoji-flat"
# Several packages may hold drawings by the same people.
ARTISTS = {
    "google": "noto",
    "noto": "noto",
    "twitter": "twemoji",
    "twemoji": "twemoji",
    "noto-v1": "noto-v1",
    "fxemoji": "fxemoji",
    "emojione": "emojione",
    "streamline-emojis": "streamline",
    UNSEEN: "fluent",
}
Rng = np.random.Generator


@dataclass(frozen=True)
class Emoji:
    """What Unicode says of one: its code point, title and kind."""

    code: str
    title: str
    short_names: tuple[str, ...]
    category: str
    subcategory: str


@functools.cache
def emoji_table(folder: Path = FOLDER) -> dict[str, Emoji]:
    """All emoji by code point, without skin tones."""
    file = BY_NAME["google"].fetch(folder) / "package" / "emoji.json"
    found = {}
    for entry in json.loads(file.read_text(encoding="utf-8")):
        code = code_of(entry["unified"])
        found[code] = Emoji(
            code,
            entry["name"] or entry["short_name"],
            tuple(entry["short_names"]),
            entry["category"],
            entry["subcategory"],
        )
    return found


def code_of(unified: str) -> str:
    """A code point sequence without the selectors that only ask for colour."""
    return unified.lower().replace("-fe0f", "")


def squeezed(name: str) -> str:
    """A name's letters and digits, by which sets with other spellings agree."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]", "", plain)


@functools.cache
def _codes_by_name(folder: Path) -> dict[str, str]:
    """Code points by what any set calls them; Unicode's present short names win."""
    found: dict[str, str] = {}
    for emoji in emoji_table(folder).values():
        for name in (emoji.title, *emoji.short_names):
            found.setdefault(squeezed(name), emoji.code)
    for name, code in emoji_slugs(folder).items():
        found[squeezed(name)] = code
    return found


@functools.cache
def emoji_slugs(folder: Path = FOLDER) -> dict[str, str]:
    """Code points by Unicode's short names in lower case with hyphens ("dog-face")."""
    characters = json.loads((_icons("noto", folder) / "chars.json").read_text(encoding="utf-8"))
    return {name: code_of(code) for code, name in characters.items()}


def _icons(name: str, folder: Path) -> Path:
    return BY_NAME[name].fetch(folder) / "package"


def emoji_drawings(name: str, folder: Path = FOLDER) -> Iterator[tuple[str, Image.Image]]:
    """Code point and drawing (RGBA, S x S, cropped to what is drawn) of a set, each once or more
    often where an artist drew it several times."""
    read = _png_drawings if name in PNG_SETS else _svg_drawings
    for code, image in read(name, folder):
        if (fitted := fit(image)) is not None:
            yield code, fitted


def _png_drawings(name: str, folder: Path) -> Iterator[tuple[str, Image.Image]]:
    root = BY_NAME[name].fetch(folder) / "package"
    for entry in json.loads((root / "emoji.json").read_text(encoding="utf-8")):
        file = root / "img" / name / "64" / entry["image"]
        if file.is_file():
            yield code_of(entry["unified"]), Image.open(file)


def _svg_drawings(name: str, folder: Path) -> Iterator[tuple[str, Image.Image]]:
    icons = json.loads((_icons(name, folder) / "icons.json").read_text(encoding="utf-8"))
    codes, table = dict(_codes_by_name(folder)), emoji_table(folder)
    if (own := _icons(name, folder) / "chars.json").is_file():
        for code, icon_name in json.loads(own.read_text(encoding="utf-8")).items():
            codes[squeezed(icon_name)] = code_of(code)
    for icon_name, icon in icons["icons"].items():
        code = codes.get(squeezed(icon_name)) or codes.get(
            squeezed(re.sub(r"-\d$", "", icon_name)), ""
        )
        if code in table:
            yield code, render_icon(icon, icons)


def render_icon(icon: dict[str, Any], icons: dict[str, Any]) -> Image.Image:
    """One drawing of a set in Iconify's JSON format."""
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    return render_svg(
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">'
        f"{icon['body']}</svg>"
    )


def render_svg(text: str) -> Image.Image:
    """An SVG at S x S.

    Raises:
        ValueError: it is not one that can be drawn.
    """
    resvg = require_extra("resvg_py", "train", "rendering drawings")
    png = resvg.svg_to_bytes(svg_string=text, width=SIDE, height=SIDE, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png)))


def fit(image: Image.Image, side: int = SIDE - 2 * MARGIN) -> Image.Image | None:
    """What is drawn, without empty borders, its longer side `side`; None of an empty drawing."""
    image = image.convert("RGBA")
    box = image.getchannel("A").getbbox()
    if box is None:
        return None
    image = image.crop(box)
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)


def on_white(drawing: Image.Image) -> Image.Image:
    """In the middle of a white S x S image."""
    canvas = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    corner = ((SIDE - drawing.width) // 2, (SIDE - drawing.height) // 2)
    canvas.paste(drawing, corner, drawing)
    return canvas


def on_background(
    drawing: Image.Image, rng: Rng, photographs: Sequence[Image.Image] = ()
) -> Image.Image:
    """Somewhere in an S x S image with a background at random, its size 45 to 100 %, a little
    turned."""
    canvas = background(rng, photographs)
    turned = drawing.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC, expand=True)
    scale = rng.uniform(0.45, 1.0) * SIDE / max(turned.size)
    size = (max(1, round(turned.width * scale)), max(1, round(turned.height * scale)))
    placed = turned.resize(size, Image.Resampling.BICUBIC)
    corner = (
        int(rng.integers(0, SIDE - size[0] + 1)),
        int(rng.integers(0, SIDE - size[1] + 1)),
    )
    canvas.paste(placed, corner, placed)
    return canvas


def background(rng: Rng, photographs: Sequence[Image.Image] = ()) -> Image.Image:
    """White (30 %), one colour (20 %), a gradient, noise, or a blurred photograph."""
    kind = rng.random()
    if kind < 0.3:
        return Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    if kind < 0.5:
        return Image.new("RGB", (SIDE, SIDE), _colour(rng))
    if kind < 0.65:
        return _gradient(rng)
    if kind < 0.8 or not photographs:
        return _noise(rng)
    photograph = photographs[int(rng.integers(len(photographs)))]
    return photograph.filter(ImageFilter.GaussianBlur(rng.uniform(1.0, 6.0)))


def _colour(rng: Rng) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3).tolist()
    return red, green, blue


def _gradient(rng: Rng) -> Image.Image:
    start, end = np.array(_colour(rng)), np.array(_colour(rng))
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-0.5, 0.5, SIDE)
    along_SS = np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None]
    share_SS1 = (along_SS / np.ptp(along_SS) + 0.5)[..., None]
    return Image.fromarray((start * (1 - share_SS1) + end * share_SS1).clip(0, 255).astype("uint8"))


def _noise(rng: Rng) -> Image.Image:
    """Coloured noise of grains between 1 and 56 pixels."""
    grain = int(rng.choice((1, 4, 14, 28, 56)))
    cells = rng.normal(_colour(rng), rng.uniform(10, 70), (SIDE // grain, SIDE // grain, 3))
    image = Image.fromarray(cells.clip(0, 255).astype("uint8"))
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
