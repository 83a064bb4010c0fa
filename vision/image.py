"""Open any picture as RGB: files, bytes, streams, Pillow pictures, arrays; or say in one sentence what is wrong.

Orientation from EXIF is applied, transparency is laid on white, deep greys are scaled to 8 bits, and of animated files
the first frame is taken. Colour profiles are left out: pixel values are taken as they are stored.
"""

from __future__ import annotations

import io
import os
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import (
    BmpImagePlugin,  # noqa: F401  (importing a plugin registers its format)
    ExifTags,
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from mmdiff.errors import MMDiffError
from mmdiff.files import open_file, read_stream

MAX_PIXELS = 64_000_000
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
USE = f"use a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation to what undoes it

ImageSource = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | npt.NDArray[np.generic]


class ImageError(MMDiffError):
    """A picture cannot be used; the message names it and says what to do."""


def open_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An upright RGB picture, independent of its source.

    Args:
        source: a path, the bytes of a file, a binary stream (read from its start where it can seek, left open), a
            Pillow picture, or an array (H, W), (H, W, 1), (H, W, 2), (H, W, 3) or (H, W, 4): grey, grey and alpha, RGB
            or RGBA; bool, integers from 0 to 255 (uint16: to 65,535) or floats from 0 to 1.
        max_pixels: width times height at most; checked from the header, before anything is decoded.

    Raises:
        ImageError: the source is missing, empty, damaged, too large or no picture.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, Image.Image):
        return _to_rgb(source, f"the Pillow picture of mode {source.mode}", max_pixels)
    if isinstance(source, str | os.PathLike):
        with open_file(str(source), "picture", ImageError) as file:
            return _to_rgb(_identify(file, str(source)), str(source), max_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        return _to_rgb(_identify(io.BytesIO(source), "the picture"), "the picture", max_pixels)
    if not callable(getattr(source, "read", None)):
        raise ImageError(f"a {type(source).__name__} is no picture: give a path, bytes, a Pillow picture or an array")
    name = str(getattr(source, "name", "the picture"))
    return _to_rgb(_identify(read_stream(source, name, ImageError), name), name, max_pixels)


def _identify(file: BinaryIO, name: str) -> Image.Image:
    """Read the header; the pixels stay undecoded."""
    prefix = file.read(16)
    if not prefix:
        raise ImageError(f"{name} is empty: {USE}")
    for format_name in FORMATS:
        # Image.open would warn about large pictures through a process-wide limit; ours comes right after the header.
        factory, accept = Image.OPEN[format_name]
        if accept is None or accept(prefix) is True:
            file.seek(0)
            try:
                return factory(file, "")
            except Image.DecompressionBombError as error:
                raise ImageError(f"{name} is far too large ({error}): make it smaller") from error
            except Exception as error:  # decoders raise whatever their reading of damaged bytes ends in
                raise ImageError(f"{name} is a damaged {format_name} file: save or download it again") from error
    raise ImageError(f"{name} is no picture that can be read: {USE}")


def _to_rgb(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    width, height = image.size
    _check_size(width, height, name, max_pixels)
    try:
        image.load()
        _check_size(*image.size, name, max_pixels)
        rgb = _on_white(_to_8_bits(image, name)).convert("RGB")
    except ImageError:
        raise
    except Exception as error:  # as in _identify
        raise ImageError(
            f"{name} is damaged, cut short or of an unknown kind and cannot be decoded ({width} x {height} pixels, "
            f"mode {image.mode}): save or download it again"
        ) from error
    method = UPRIGHT.get(_orientation(image))
    upright = rgb if method is None else rgb.transpose(method)
    upright.info = {}
    return upright


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels ({width} x {height}): give a picture of at least 1 x 1 pixels")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} has {width} x {height} = {width * height:,} pixels, more than the {max_pixels:,} allowed: "
            "make it smaller or raise max_pixels"
        )


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF says nothing about the pixels, which are sound
        return 1
    return value if isinstance(value, int) else 1


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    # Pillow converts premultiplied grey in two steps only
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)


def _to_8_bits(image: Image.Image, name: str) -> Image.Image:
    """Scale the deep greys (16 and 32 bits, floats); other modes stay as they are."""
    if not image.mode.startswith(("I", "F")):
        return image
    values_HW = np.asarray(image).astype(np.float32)
    if not np.isfinite(values_HW).all():
        raise ImageError(f"{name} holds values that are not finite: replace NaN and infinity first")
    low, high = float(values_HW.min()), float(values_HW.max())
    if image.mode == "F" and 0 <= low and high <= 1:
        low, high = 0.0, 1.0
    elif image.mode in ("I", "F") and 0 <= low and high <= 255:  # 8 bits widened, as by convert("I")
        low, high = 0.0, 255.0
    elif 0 <= low and high <= 65_535:
        low, high = 0.0, 65_535.0
    return Image.fromarray(np.rint((values_HW - low) * (255 / (high - low or 1))).astype(np.uint8))


def _from_array(array: npt.NDArray[np.generic], max_pixels: int) -> Image.Image:
    name = f"the array of shape {array.shape} and type {array.dtype}"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        raise ImageError(f"{name} is no picture: give (height, width) or (height, width, 1 to 4 channels)")
    _check_size(array.shape[1], array.shape[0], name, max_pixels)
    if array.dtype.kind not in "buif":
        raise ImageError(f"{name} holds no numbers: give uint8 from 0 to 255 or floats from 0 to 1")
    top = {"b": 1, "f": 1}.get(array.dtype.kind, 65_535 if array.dtype == np.uint16 else 255)
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= top):  # also true of NaN
        raise ImageError(f"{name} holds values from {low} to {high}: bring them to 0 to {top} first")
    if array.dtype != np.uint8:
        array = np.rint(array.astype(np.float32) * (255 / top)).astype(np.uint8)
    pixels = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    return _on_white(Image.fromarray(np.ascontiguousarray(pixels))).convert("RGB")
