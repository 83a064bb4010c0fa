"""Any picture becomes RGB; anything else becomes one sentence."""

import io
import os
import socket
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from mmdiff.config import VisionConfig
from mmdiff.errors import MMDiffError
from mmdiff.vision.image import ImageError, open_image
from mmdiff.vision.merge import merge_views
from mmdiff.vision.views import count_tokens, make_views

WHITE, RED = (255, 255, 255), (255, 0, 0)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(source: Any) -> Any:
    image = open_image(source)
    assert type(image) is Image.Image and image.mode == "RGB" and not image.info
    return np.asarray(image)


def noise(width: int = 23, height: int = 17) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG"])
def test_formats(kind: str, tmp_path: Path) -> None:
    data = encoded(Image.new("RGB", (7, 5), RED), kind, **({"lossless": True} if kind == "WEBP" else {}))
    path = tmp_path / "name without suffix"
    path.write_bytes(data)
    with path.open("rb") as stream:
        for source in (data, bytearray(data), io.BytesIO(data), path, str(path), stream, Image.open(io.BytesIO(data))):
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
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: np.rot90(upright), 7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, lossless=True, quality=100)
    for source in (data, Image.open(io.BytesIO(data))):
        assert np.abs(pixels(source).astype(int) - upright).max() < 10


def test_damaged_exif_does_not_cost_the_picture() -> None:
    data = encoded(noise(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(pixels(data), noise())


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "LA", "PA", "La",
                                  "RGBa", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"])
def test_every_mode(mode: str) -> None:
    assert pixels(Image.new(mode, (3, 2))).shape == (2, 3, 3)


def test_alpha_is_laid_on_white() -> None:
    clear, half = Image.new("RGBA", (1, 1), (255, 0, 0, 0)), Image.new("RGBA", (1, 1), (255, 0, 0, 128))
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
        assert [tuple(p) for p in pixels(encoded(palette, transparency=transparency))[0]] == [WHITE, RED]
    assert [tuple(p) for p in pixels(encoded(palette, "GIF", transparency=0))[0]] == [WHITE, RED]
    assert tuple(pixels(encoded(Image.new("RGB", (1, 1), RED), transparency=RED))[0, 0]) == WHITE
    assert tuple(pixels(encoded(Image.new("L", (1, 1), 9), transparency=9))[0, 0]) == WHITE


@pytest.mark.parametrize(("kind", "dtype"), [("PNG", np.uint16), ("TIFF", np.uint16), ("PPM", np.uint16),
                                             ("TIFF", np.dtype(">u2"))])
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
    image = Image.open(io.BytesIO(encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])))
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
        (np.array([[0.5, np.nan]]), "nan"), (np.array([[np.inf]]), "inf"), (np.array([[-0.1]]), "from -0.1"),
        (np.array([[200.0]]), "0 to 1 "), (np.array([[256]]), "0 to 255"), (np.array([[-1]]), "from -1"),
        (np.zeros((3, 8, 9)), "shape"), (np.zeros(5), "shape"), (np.zeros((1, 8, 9, 3)), "shape"),
        (np.zeros((0, 5)), "no pixels"), (np.zeros((5, 0, 3), np.uint8), "no pixels"),
        (np.array([["a"]]), "no numbers"), (np.array([[None]]), "no numbers"),
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
    one_sentence("", "path of the picture is empty")
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
    one_sentence(tmp_path / "text.jpg", "text.jpg is no picture", "PNG, JPEG")
    one_sentence(b"", "the picture is empty")
    one_sentence(io.BytesIO(), "is empty")
    one_sentence(b"\x89PNG\r\n\x1a\n", "damaged PNG file")
    for other in (b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"%!PS-Adobe-3.0 EPSF-3.0", b"\0\0\1\0"):
        one_sentence(other, "no picture that can be read")


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
        data += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return data


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("data", "size"),
    [
        (huge_png(10_000, 10_000), "10000 x 10000 = 100,000,000"),  # where Pillow would warn
        (huge_png(40_000, 40_000), "40000 x 40000 = 1,600,000,000"),  # where Pillow would raise
        (huge_png(2**31 - 1, 2**31 - 1), "2147483647 x 2147483647"),
        (b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0)
         + b"\2\1\0\0;", "65535 x 65535"),
        (b"P6 30000 30000 255 ", "30000 x 30000"),
        (b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0), "30000"),
        (b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0" + b"\0" * 9, "too large"),
    ],
)
def test_oversized_pictures_are_not_decoded(data: bytes, size: str) -> None:
    one_sentence(data, size, "smaller")


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
        one_sentence(data[:kept], "the picture")
    lazy = Image.open(io.BytesIO(data))
    assert lazy.size == (64, 64)


def test_pillows_settings_stay_as_they_are() -> None:
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    assert Image.MAX_IMAGE_PIXELS == 1024 * 1024 * 1024 // 4 // 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_end_in_a_picture_or_a_sentence(kind: str) -> None:
    """Cuts, flips, overwritten runs, insertions: whatever comes, it is a picture or an ImageError."""
    rng = np.random.default_rng(len(kind))
    sources = [encoded(noise(31, 27), kind), encoded(noise(9, 9).convert("L"), kind)]
    sources.append(encoded(noise(40, 8).convert("P"), kind if kind in ("GIF", "BMP", "TIFF") else "PNG"))
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
            assert str(error).startswith("the picture ")
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
def test_extreme_shapes_from_file_to_embeddings(size: tuple[int, int], layout: Any, anyres: VisionConfig) -> None:
    views = make_views(open_image(encoded(noise(*size))), anyres, layout)
    features = views.pixels_V3HW.mean(dim=(1, 2, 3)).view(-1, 1, 1).expand(-1, 729, 2)
    embeddings = merge_views(features, views.size, views.grid, anyres, features.new_zeros(2))
    assert len(embeddings) == count_tokens(size, anyres, layout)
