"""What users of neighbouring projects met with images, tried here on images of our own.

Each case names the public report that it follows; input and right value are ours.
"""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from mmdiff.serve.batch.captions import SUFFIXES
from mmdiff.vision.image_io import ImageError, open_image
from tests.helpers.media import encoded, png_line

RED, WHITE = (255, 0, 0), (255, 255, 255)


def red(mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", (6, 4), RED).convert(mode)


def with_text(how: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    if how == "iTXt":
        info.add_itxt("prompt", "x" * 2_000_000, zip=True)
    else:
        info.add_text("prompt", "x" * 2_000_000, zip=how == "zTXt")
    return encoded(red(), pnginfo=info)


def photo(orientation: int, details: bool = False) -> Image.Image:
    """40 x 20 pixels as stored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    if details:
        exif.get_ifd(0x8769).update({0xA002: 40, 0xA003: 20})
    return Image.open(io.BytesIO(encoded(Image.new("RGB", (40, 20), RED), "JPEG", exif=exif)))


def scan(top: int, kind: str = "PNG") -> bytes:
    return encoded(Image.fromarray(np.array([[top, 0]], np.uint16)), kind)


def data_url(spell: Callable[[str], str]) -> str:
    return spell(base64.b64encode(encoded(red())).decode())


# What is opened -> the report, and the colour of the first pixel.
COLOURS: dict[str, tuple[str, Callable[[], Any], tuple[int, int, int]]] = {
    "PNG with a long zTXt": ("python-pillow/Pillow/issues/8363", lambda: with_text("zTXt"), RED),
    "PNG with a long iTXt": ("python-pillow/Pillow/issues/2445", lambda: with_text("iTXt"), RED),
    "PNG with a long tEXt": ("pnggroup/libpng/issues/442", lambda: with_text("tEXt"), RED),
    "16-bit grey PNG": ("python-pillow/Pillow/issues/5967", lambda: scan(65_535), WHITE),
    "16-bit grey TIFF": ("python-pillow/Pillow/issues/1108", lambda: scan(65_535, "TIFF"), WHITE),
    "12 bits in a 16-bit PNG": ("python-pillow/Pillow/issues/5991", lambda: scan(4_095), WHITE),
    "12 bits in a 16-bit TIFF": (
        "ros-perception/image_pipeline/pull/334",
        lambda: scan(4_095, "TIFF"),
        WHITE,
    ),
    "12 bits in an array": (
        "Emory-HITI/Niffler/pull/226",
        lambda: np.array([[4_095, 0]], np.uint16),
        WHITE,
    ),
    "grey 16-bit PNG, transparent": (
        "python-pillow/Pillow/pull/3744",
        lambda: png_line(b"\x12\x34\0\0", 2, 16, 0, b"\x12\x34"),
        WHITE,
    ),
    "grey 2-bit PNG, transparent": (
        "randy408/libspng/issues/48",
        lambda: png_line(b"\x50", 2, 2, 0, b"\0\1"),
        WHITE,
    ),
    "grey 1-bit PNG, transparent": (
        "python-pillow/Pillow/issues/9281",
        lambda: png_line(b"\x40", 2, 1, 0, b"\0\0"),
        WHITE,
    ),
    "RGB 16-bit PNG, transparent": (
        "python-pillow/Pillow/issues/421",
        lambda: png_line(b"\x12\x34" * 3 + b"\0" * 6, 2, 16, 2, b"\x12\x34" * 3),
        WHITE,
    ),
    "clear RGBA": (
        "QwenLM/Qwen3-VL/pull/661",
        lambda: encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 0))),
        WHITE,
    ),
    "clear LA": (
        "meerk40t/meerk40t/issues/962",
        lambda: encoded(Image.new("LA", (2, 2), (0, 0))),
        WHITE,
    ),
    "clear palette": (
        "MMMU-Benchmark/MMMU/issues/17",
        lambda: encoded(red("P"), transparency=b"\0" * 256),
        WHITE,
    ),
    "CMYK JPEG": (
        "python-pillow/Pillow/issues/6563",
        lambda: encoded(red("CMYK"), "JPEG", quality=100),
        RED,
    ),
    "float TIFF": (
        "python-pillow/Pillow/issues/5114",
        lambda: encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"),
        WHITE,
    ),
    "data URL in lines": (
        "omnimind-ai/OmniBot/pull/360",
        lambda: data_url(
            lambda text: (
                "data:image/png;base64,"
                + "\n".join(text[at : at + 40] for at in range(0, len(text), 40))
            )
        ),
        RED,
    ),
    "data URL without padding": (
        "matatonic/openedai-vision/issues/4",
        lambda: data_url(lambda text: "data:image/png;base64," + text.rstrip("=")),
        RED,
    ),
    "data URL in URL-safe base64": (
        "localstack/localstack/pull/5932",
        lambda: data_url(
            lambda text: "data:image/png;base64," + text.replace("+", "-").replace("/", "_")
        ),
        RED,
    ),
    "data URL with parameters": (
        "matatonic/openedai-vision/issues/4",
        lambda: data_url(lambda text: "Data:image/PNG;name=a.png;Base64," + text),
        RED,
    ),
}


@pytest.mark.parametrize("name", COLOURS)
def test_the_colour_is_right(name: str) -> None:
    _, make, colour = COLOURS[name]
    found = np.asarray(open_image(make()))[0, 0].astype(int)
    assert np.abs(found - colour).max() <= 3


# An image with EXIF -> the report, and its size when it is upright.
SIZES: dict[str, tuple[str, Callable[[], Any], tuple[int, int]]] = {
    "a phone's file": ("sgl-project/sglang/pull/33449", lambda: photo(6), (20, 40)),
    "upside down": ("ollama/ollama/issues/18418", lambda: photo(3), (40, 20)),
    "turned by hand": (
        "python-pillow/Pillow/issues/4124",
        lambda: photo(6).transpose(Image.Transpose.ROTATE_270),
        (20, 40),
    ),
    "rotated by hand": (
        "python-pillow/Pillow/issues/4537",
        lambda: photo(8).rotate(90, expand=True),
        (20, 40),
    ),
    "turned by its EXIF": (
        "python-pillow/Pillow/pull/6476",
        lambda: ImageOps.exif_transpose(photo(6)),
        (20, 40),
    ),
    "only converted": (
        "mistralai/mistral-common/pull/331",
        lambda: photo(6, True).convert("RGBA"),
        (20, 40),
    ),
}


@pytest.mark.parametrize("name", SIZES)
def test_images_are_turned_once(name: str) -> None:
    _, make, size = SIZES[name]
    assert open_image(make()).size == size


def closed() -> Image.Image:
    with io.BytesIO(encoded(red())) as held:
        return Image.open(held)


def left(folder: Path) -> Image.Image:
    red().save(folder / "a.png")
    with Image.open(folder / "a.png") as image:
        return image


def half_floats() -> bytes:
    whole = encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF")
    return whole.replace(struct.pack("<HHII", 258, 3, 1, 32), struct.pack("<HHII", 258, 3, 1, 16))


# What cannot be opened -> the report, and the reason that is told.
REASONS: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "closed file": (
        "mapleneverfade/pytorch-semantic-segmentation/issues/2",
        lambda _: closed(),
        "was closed before",
    ),
    "left context": ("python-pillow/Pillow/issues/4007", left, "was closed before"),
    "HEIC named PNG": (
        "python-pillow/Pillow/issues/4163",
        lambda _: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "is a HEIF file",
    ),
    "TIFF of half floats": (
        "python-pillow/Pillow/issues/4480",
        lambda _: half_floats(),
        "of a kind that is not read",
    ),
    "cut short": (
        "python-pillow/Pillow/issues/4163",
        lambda _: encoded(Image.effect_noise((64, 64), 90), "PNG")[:-900],
        "is cut short",
    ),
    "file URL": (
        "NousResearch/hermes-agent/issues/7571",
        lambda _: "file:///a/b.png",
        "leave out 'file://'",
    ),
    "object store": (
        "NousResearch/hermes-agent/issues/7571",
        lambda _: "s3://a/b.png",
        "is an address, not a file",
    ),
    "scheme in capitals": (
        "NousResearch/hermes-agent/issues/7571",
        lambda _: "HTTPS://a/b.png",
        "is an address",
    ),
    "base64 without its head": (
        "BerriAI/litellm/pull/34783",
        lambda _: base64.b64encode(encoded(red())).decode() * 99,
        "…",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_the_reason_is_the_true_one(name: str, tmp_path: Path) -> None:
    _, make, reason = REASONS[name]
    with pytest.raises(ImageError, match=reason) as caught:
        open_image(make(tmp_path))
    assert (
        "\n" not in str(caught.value)
        and len(str(caught.value)) < 300
        and "damaged" not in str(caught.value)
    )


@pytest.mark.parametrize("ending", [".tif", ".tiff", ".jpe", ".jfif", ".avif", ".heic", ".ppm"])
def test_folders_know_the_endings_of_images(ending: str) -> None:
    assert ending in SUFFIXES  # krupkat/xpano/issues/80, splittingred/Gallery/issues/7


def test_links_are_those_of_reports() -> None:
    rows = [*COLOURS.values(), *SIZES.values(), *REASONS.values()]
    assert all(row[0].split("/")[2] in ("issues", "pull") for row in rows) and len(rows) >= 30
