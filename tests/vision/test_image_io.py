"""Any picture becomes RGB; anything else becomes one sentence."""

import base64
import io
import os
import socket
import struct
import sys
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, features

from mmdiff.config import VisionConfig
from mmdiff.errors import MMDiffError
from mmdiff.vision.image_io import ImageError, open_image
from mmdiff.vision.merge import merge_views
from mmdiff.vision.preprocess import count_tokens, make_views
from tests.helpers.media import encoded, png_line

WHITE, RED = (255, 255, 255), (255, 0, 0)


def pixels(source: Any) -> Any:
    image = open_image(source)
    assert type(image) is Image.Image and image.mode == "RGB" and not image.info
    return np.asarray(image)


def noise(width: int = 23, height: int = 17) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG"])
def test_formats(kind: str, tmp_path: Path) -> None:
    data = encoded(
        Image.new("RGB", (7, 5), RED), kind, **({"lossless": True} if kind == "WEBP" else {})
    )
    path = tmp_path / "name without suffix"
    path.write_bytes(data)
    with path.open("rb") as stream:
        for source in (
            data,
            bytearray(data),
            io.BytesIO(data),
            path,
            str(path),
            stream,
            Image.open(io.BytesIO(data)),
        ):
            assert np.abs(pixels(source).astype(int) - RED).max() <= 2
            assert pixels(source).shape == (5, 7, 3)
        assert not stream.closed


def test_a_stream_at_its_end_is_read_from_its_start() -> None:
    buffer = io.BytesIO()
    noise().save(buffer, "PNG")
    assert np.array_equal(pixels(buffer), noise())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_orientation(orientation: int, kind: str) -> None:
    """Stored pixels and the tag together always show the same: black above, white below right."""
    upright = np.zeros((32, 48, 3), dtype=np.uint8)
    upright[16:, 16:] = 255
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(
        Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, lossless=True, quality=100
    )
    for source in (data, Image.open(io.BytesIO(data))):
        assert np.abs(pixels(source).astype(int) - upright).max() < 10


def test_damaged_exif_does_not_cost_the_picture() -> None:
    data = encoded(noise(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(pixels(data), noise())


@pytest.mark.parametrize(
    "mode",
    [
        "1",
        "L",
        "P",
        "RGB",
        "RGBX",
        "RGBA",
        "CMYK",
        "YCbCr",
        "HSV",
        "LAB",
        "LA",
        "PA",
        "La",
        "RGBa",
        "I",
        "F",
        "I;16",
        "I;16B",
        "I;16L",
        "I;16N",
    ],
)
def test_every_mode(mode: str) -> None:
    assert pixels(Image.new(mode, (3, 2))).shape == (2, 3, 3)


def test_alpha_is_laid_on_white() -> None:
    clear, half = (
        Image.new("RGBA", (1, 1), (255, 0, 0, 0)),
        Image.new("RGBA", (1, 1), (255, 0, 0, 128)),
    )
    assert tuple(pixels(encoded(clear))[0, 0]) == WHITE
    assert tuple(pixels(encoded(half))[0, 0]) == (255, 127, 127)
    assert tuple(pixels(Image.new("LA", (1, 1), (0, 0)))[0, 0]) == WHITE
    assert tuple(pixels(Image.new("La", (1, 1), (0, 0)))[0, 0]) == WHITE


def test_transparency_outside_the_alpha_channel() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 255, 255, 0, 0])
    palette.putpixel((1, 0), 1)
    assert [tuple(p) for p in pixels(encoded(palette))[0]] == [(0, 0, 255), RED]
    for transparency in (0, b"\x00\xff"):
        assert [tuple(p) for p in pixels(encoded(palette, transparency=transparency))[0]] == [
            WHITE,
            RED,
        ]
    assert [tuple(p) for p in pixels(encoded(palette, "GIF", transparency=0))[0]] == [WHITE, RED]
    assert tuple(pixels(encoded(Image.new("RGB", (1, 1), RED), transparency=RED))[0, 0]) == WHITE
    assert tuple(pixels(encoded(Image.new("L", (1, 1), 9), transparency=9))[0, 0]) == WHITE


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("PNG", np.uint16), ("TIFF", np.uint16), ("PPM", np.uint16), ("TIFF", np.dtype(">u2"))],
)
def test_16_bits(kind: str, dtype: Any) -> None:
    values = np.array([[0, 257, 32_768, 65_535]], dtype=dtype)
    assert pixels(encoded(Image.fromarray(values), kind))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 100, 254]], np.float32), [0, 100, 254]),
        (np.array([[0, 32_768, 65_535]], np.float32), [0, 128, 255]),
        (np.array([[-5, 0, 5]], np.float32), [0, 128, 255]),
        (np.array([[7e9, 7e9]], np.float32), [0, 0]),
        (np.array([[0, 32_768, 65_535]], np.int32), [0, 128, 255]),
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[-2_000_000, 1_000_000, 2_000_000]], np.int32), [0, 191, 255]),
    ],
)
def test_deep_greys(values: Any, expected: list[int]) -> None:
    assert pixels(encoded(Image.fromarray(values), "TIFF"))[0, :, 1].tolist() == expected


def test_floats_that_are_no_numbers() -> None:
    data = encoded(Image.fromarray(np.array([[0, np.nan]], np.float32)), "TIFF")
    with pytest.raises(ImageError, match="not finite"):
        open_image(data)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, (0, 255, 0), (0, 0, 255))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(pixels(data).astype(int) - RED).max() <= 3


def test_a_frame_chosen_by_the_caller() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, (0, 0, 255))]
    image = Image.open(
        io.BytesIO(encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]))
    )
    image.seek(1)
    assert tuple(pixels(image)[0, 0]) == (0, 0, 255)


def test_the_source_is_not_touched() -> None:
    image = noise()
    opened = open_image(image)
    opened.putpixel((0, 0), (1, 2, 3))
    assert image.getpixel((0, 0)) != (1, 2, 3)
    array = np.zeros((2, 2, 3), np.uint8)
    open_image(array).putpixel((0, 0), (1, 2, 3))
    assert not array.any()


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[[1, 2, 3]]], np.uint8), (1, 2, 3)),
        (np.array([[[1, 2, 3]]], np.int64), (1, 2, 3)),
        (np.array([[[0, 0.5, 1]]]), (0, 128, 255)),
        (np.array([[[0, 0.5, 1]]], np.float16), (0, 128, 255)),
        (np.array([[[0, 32_768, 65_535]]], np.uint16), (0, 128, 255)),
        (np.array([[True]]), WHITE),
        (np.array([[77]], np.uint8), (77, 77, 77)),
        (np.array([[[77]]], np.uint8), (77, 77, 77)),
        (np.array([[[77, 0]]], np.uint8), WHITE),
        (np.array([[[255, 0, 0, 0]]], np.uint8), WHITE),
    ],
)
def test_arrays(array: Any, expected: tuple[int, ...]) -> None:
    assert tuple(pixels(array)[0, 0]) == expected


def test_views_of_arrays() -> None:
    array = np.asarray(noise())
    assert np.array_equal(pixels(array[::-1, ::2]), array[::-1, ::2])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[0.5, np.nan]]), "nan"),
        (np.array([[np.inf]]), "inf"),
        (np.array([[-0.1]]), "from -0.1"),
        (np.array([[200.0]]), "0 to 1 "),
        (np.array([[256]]), "0 to 255"),
        (np.array([[-1]]), "from -1"),
        (np.zeros((3, 8, 9)), "shape"),
        (np.zeros(5), "shape"),
        (np.zeros((1, 8, 9, 3)), "shape"),
        (np.zeros((0, 5)), "no pixels"),
        (np.zeros((5, 0, 3), np.uint8), "no pixels"),
        (np.array([["a"]]), "no numbers"),
        (np.array([[None]]), "no numbers"),
        (np.zeros((2, 2), complex), "no numbers"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_arrays_that_are_no_pictures(array: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        open_image(array)


def one_sentence(source: Any, *parts: str, max_pixels: int = 64_000_000) -> None:
    with pytest.raises(ImageError) as caught:
        open_image(source, max_pixels)
    message = str(caught.value)
    assert isinstance(caught.value, MMDiffError) and isinstance(caught.value, ValueError)
    assert "\n" not in message and ": " in message and len(message) < 300
    assert all(part in message for part in parts), message


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    one_sentence(tmp_path / "none.png", "none.png does not exist", "give the path")
    one_sentence(tmp_path / "a" / "b.png", "b.png does not exist")
    one_sentence(tmp_path, str(tmp_path), "is a directory")
    one_sentence("", "path of the image is empty")
    one_sentence("nul\0byte", "cannot be read")
    one_sentence("x" * 5000 if os.name != "posix" else "x/" * 100, "x/x/", "does not exist")
    one_sentence("https://example.com/cat.png", "is an address", "download")
    (tmp_path / "file").write_text("x")
    one_sentence(tmp_path / "file" / "below.png", "cannot be read")


@pytest.mark.skipif(os.name != "posix", reason="pipes and sockets of POSIX")
def test_pipes_and_sockets_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    one_sentence(tmp_path / "pipe", "not a regular file")
    one_sentence("/dev/zero", "not a regular file")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket"))
        one_sentence(tmp_path / "socket", "not a regular file")


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    one_sentence(tmp_path / "empty.png", "empty.png is empty", "PNG")
    (tmp_path / "text.jpg").write_text("hello, I am a text")
    one_sentence(tmp_path / "text.jpg", "text.jpg is not an image", "PNG, JPEG")
    one_sentence(b"", "the image is empty")
    one_sentence(io.BytesIO(), "is empty")
    one_sentence(b"\x89PNG\r\n\x1a\n", "damaged PNG file")
    for other in (
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"%!PS-Adobe-3.0 EPSF-3.0",
        b"\0\0\1\0",
    ):
        one_sentence(other, "not an image that can be read")


def test_sources_of_another_kind(tmp_path: Path) -> None:
    for source in (None, 5, ["a.png"], object()):
        one_sentence(source, type(source).__name__)
    (tmp_path / "a.png").write_bytes(encoded(noise()))
    with (tmp_path / "a.png").open(encoding="latin-1") as text:
        one_sentence(text, "opened as text", "'rb'")
    closed = io.BytesIO()
    closed.close()
    one_sentence(closed, "cannot be read", "open binary stream")


def huge_png(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in chunks:
        data += (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )
    return data


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("data", "size"),
    [
        (huge_png(10_000, 10_000), "10000 x 10000 = 100,000,000"),  # where Pillow would warn
        (huge_png(40_000, 40_000), "40000 x 40000 = 1,600,000,000"),  # where Pillow would raise
        (huge_png(2**31 - 1, 2**31 - 1), "2147483647 x 2147483647"),
        (
            b"GIF89a"
            + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0)
            + b","
            + struct.pack("<HHHHB", 0, 0, 1, 1, 0)
            + b"\2\1\0\0;",
            "65535 x 65535",
        ),
        (b"P6 30000 30000 255 ", "30000 x 30000"),
        (
            b"BM"
            + struct.pack(
                "<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0
            ),
            "30000",
        ),
        (
            b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0" + b"\0" * 9,
            "",
        ),  # Pillow's word
    ],
)
def test_oversized_pictures_are_not_decoded(data: bytes, size: str) -> None:
    one_sentence(
        data, size, "smaller" if size else "WEBP" if PIL.__version__ < "13" else "too large"
    )


def test_the_limit_is_the_callers() -> None:
    one_sentence(encoded(noise(10, 10)), "10 x 10 = 100 pixels", "99", max_pixels=99)
    one_sentence(noise(10, 10), "100 pixels", max_pixels=99)
    one_sentence(np.zeros((10, 10)), "100 pixels", max_pixels=99)
    assert open_image(encoded(noise(10, 10)), max_pixels=100).size == (10, 10)


@pytest.mark.filterwarnings("error")
def test_large_pictures_within_the_limit_bring_no_warning() -> None:
    data = encoded(Image.new("1", (9500, 9500)))
    assert open_image(data, max_pixels=100_000_000).size == (9500, 9500)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_truncated_files(kind: str, tmp_path: Path) -> None:
    data = encoded(noise(64, 64), kind)
    for kept in (len(data) // 2, len(data) // 4, len(data) * 3 // 4):
        path = tmp_path / f"cut.{kind.lower()}"
        path.write_bytes(data[:kept])
        one_sentence(path, str(path))
        one_sentence(data[:kept], "the image")
    lazy = Image.open(io.BytesIO(data))
    assert lazy.size == (64, 64)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            png_line(struct.pack(">3H", 30_000, 0, 65_535), 3, 16, 0, struct.pack(">H", 30_000)),
            [255, 0, 255],
        ),
        (png_line(bytes([0b01_00_01_11]), 4, 2, 0, struct.pack(">H", 1)), [255, 0, 255, 255]),
        (png_line(bytes([0x5A]), 2, 4, 0, struct.pack(">H", 5)), [255, 170]),
        (png_line(bytes([0b01000000]), 2, 1, 0, struct.pack(">H", 0)), [255, 255]),
        (
            png_line(
                struct.pack(">6H", 0x1234, 0x2345, 0x3456, 0, 0, 0),
                2,
                16,
                2,
                struct.pack(">3H", 0x1234, 0x2345, 0x3456),
            ),
            [255, 0],
        ),
    ],
)
def test_a_transparent_colour_of_any_depth(data: bytes, expected: list[int]) -> None:
    """Where the key is in the samples' own depth, and Pillow's pixels are not."""
    for source in (data, Image.open(io.BytesIO(data))):
        assert pixels(source)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("top", [255, 1023, 4095, 65_535])
def test_scans_of_fewer_bits_in_16_are_not_black(top: int) -> None:
    values = np.array([[0, top // 2, top]], np.uint16)
    for source in (
        values,
        encoded(Image.fromarray(values)),
        encoded(Image.fromarray(values), "TIFF"),
    ):
        assert np.abs(pixels(source)[0, :, 0].astype(int) - [0, 127, 255]).max() <= 1


@pytest.mark.parametrize("how", ["tEXt", "zTXt", "iTXt"])
def test_much_text_does_not_cost_the_image(how: str) -> None:
    info = PngImagePlugin.PngInfo()
    add = info.add_itxt if how == "iTXt" else info.add_text
    add("workflow", "x" * 3_000_000, zip=how != "tEXt")
    assert np.array_equal(pixels(encoded(noise(), pnginfo=info)), noise())


def test_a_closed_image_is_not_called_damaged(tmp_path: Path) -> None:
    noise().save(tmp_path / "a.png")
    closed = Image.open(tmp_path / "a.png")
    closed.close()
    with Image.open(tmp_path / "a.png") as left:
        pass
    with (tmp_path / "a.png").open("rb") as file:
        without_file = Image.open(file)
    for image in (closed, left, without_file):
        one_sentence(image, "was closed before its pixels were read", "load()")


def test_what_is_cut_short_is_called_so() -> None:
    one_sentence(encoded(noise(64, 64))[:-2000], "is cut short", "64 x 64 pixels")


def test_kinds_that_are_not_read_are_not_called_damaged() -> None:
    whole = encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF")
    half = whole.replace(struct.pack("<HHII", 258, 3, 1, 32), struct.pack("<HHII", 258, 3, 1, 16))
    assert half != whole
    one_sentence(half, "of a kind that is not read here", "PNG with 8 or 16 bits")


def test_heic_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    one_sentence(
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is a HEIF file", "pip install 'pillow-heif'"
    )


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow is built without AVIF")
def test_avif_is_opened_where_pillow_can() -> None:
    assert (
        np.abs(pixels(encoded(Image.new("RGB", (16, 8), RED), "AVIF")).astype(int) - RED).max() <= 3
    )


def turned(
    orientation: int, size: tuple[int, int] = (40, 20), details: bool = False
) -> Image.Image:
    """A photo as a camera stores it, with or without the size that cameras write."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    if details:
        exif.get_ifd(0x8769).update({0xA002: size[0], 0xA003: size[1]})
    return Image.open(io.BytesIO(encoded(Image.new("RGB", size, RED), "JPEG", exif=exif)))


@pytest.mark.parametrize("details", [False, True])
def test_an_image_turned_by_hand_is_not_turned_again(details: bool) -> None:
    for by_hand in (
        turned(6, details=details).transpose(Image.Transpose.ROTATE_270),
        turned(6, details=details).rotate(-90, expand=True),
    ):
        assert by_hand.getexif()[0x0112] == 6 and open_image(by_hand).size == (20, 40)
    assert open_image(ImageOps.exif_transpose(turned(6, details=details))).size == (20, 40)
    assert open_image(turned(6, details=details)).size == (20, 40)


def test_a_photo_that_was_only_converted_is_turned() -> None:
    assert open_image(turned(6, details=True).convert("L")).size == (20, 40)
    assert open_image(turned(6, details=True).resize((20, 10))).size == (10, 20)


SPELLINGS = {
    "plain": lambda text: f"data:image/png;base64,{text}",
    "line breaks": lambda text: (
        "data:image/png;base64,\n"
        + "\r\n".join(text[at : at + 76] for at in range(0, len(text), 76))
        + "\n"
    ),
    "URL-safe": lambda text: "data:image/png;base64," + text.replace("+", "-").replace("/", "_"),
    "without padding": lambda text: "data:image/png;base64," + text.rstrip("="),
    "other case": lambda text: f"DATA:IMAGE/PNG;BASE64,{text}",
    "parameters": lambda text: f"data:image/png;charset=utf-8;name=a%20b.png;base64,{text}",
    "no type": lambda text: f"data:;base64,{text}",
    "spaces": lambda text: f" data:image/png; base64, {text} ",
    "percent": lambda text: (
        "data:image/png;base64," + text.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_data_urls_in_any_spelling(name: str) -> None:
    for size in ((23, 17), (23, 18), (22, 17)):  # so that the padding differs
        text = base64.b64encode(encoded(noise(*size))).decode()
        assert np.array_equal(pixels(SPELLINGS[name](text)), noise(*size))


def test_data_urls_that_are_none() -> None:
    one_sentence("data:image/png,abc", "is not a data URL")
    one_sentence("data:image/png;base64," + "?" * 5000, "is not base64")
    one_sentence("data:image/png;base64,", "is empty")


def test_long_values_are_cut_in_messages() -> None:
    one_sentence(base64.b64encode(encoded(noise())).decode() * 50, "…", "cannot be read")


def test_advice_can_be_followed() -> None:
    one_sentence(noise(10, 10), "make it smaller, such as with Pillow's thumbnail", max_pixels=99)
    smaller = noise(10, 10)
    smaller.thumbnail((9, 9))
    assert open_image(smaller, max_pixels=99).size == (9, 9)


def test_pillows_settings_stay_as_they_are() -> None:
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    assert Image.MAX_IMAGE_PIXELS == 1024 * 1024 * 1024 // 4 // 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_end_in_a_picture_or_a_sentence(kind: str) -> None:
    """Cuts, flips, overwritten runs, insertions: whatever comes, it is a picture or an
    ImageError."""
    rng = np.random.default_rng(len(kind))
    sources = [encoded(noise(31, 27), kind), encoded(noise(9, 9).convert("L"), kind)]
    sources.append(
        encoded(noise(40, 8).convert("P"), kind if kind in ("GIF", "BMP", "TIFF") else "PNG")
    )
    for number in range(240):
        data = bytearray(sources[number % len(sources)])
        for _ in range(int(rng.integers(1, 6))):
            start = int(rng.integers(0, len(data) if rng.random() < 0.5 else min(64, len(data))))
            run = int(rng.integers(1, 9))
            how = rng.integers(0, 4)
            if how == 0:
                data = data[: max(1, start)]
            elif how == 1:
                data[start] ^= 1 << int(rng.integers(0, 8))
            elif how == 2:
                data[start : start + run] = rng.bytes(run)
            else:
                data[start:start] = rng.bytes(run)
        try:
            image = open_image(bytes(data), max_pixels=1_000_000)
        except ImageError as error:
            assert str(error).startswith("the image ")
        else:
            assert image.mode == "RGB" and 0 < image.width * image.height <= 1_000_000


def test_many_threads() -> None:
    data, failures = encoded(noise(), "JPEG"), []

    def work() -> None:
        try:
            for _ in range(20):
                open_image(data)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not failures


@pytest.mark.parametrize("layout", ["anyres", "resize", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_shapes_from_file_to_embeddings(
    size: tuple[int, int], layout: Any, anyres: VisionConfig
) -> None:
    views = make_views(open_image(encoded(noise(*size))), anyres, layout)
    features = views.pixels_V3HW.mean(dim=(1, 2, 3)).view(-1, 1, 1).expand(-1, 729, 2)
    embeddings = merge_views(features, views.size, views.grid, anyres, features.new_zeros(2))
    assert len(embeddings) == count_tokens(size, anyres, layout)
