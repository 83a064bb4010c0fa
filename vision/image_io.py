"""Open any image as RGB: files, bytes, streams, Pillow images, arrays; or say in one sentence
what is wrong.

Orientation from EXIF is applied, transparency is laid on white, greys of 10 to 32 bits are scaled
to 8, and of animated files the first frame is taken. Colour profiles are left out: pixel values are
taken as they are stored.
"""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Iterator
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
from mmdiff.files import decode_data_url, is_data_url, open_file, read_stream, shorten

MAX_PIXELS = 64_000_000
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
PNG_MARK = b"\x89PNG\r\n\x1a\n"
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
DEPTHS = (
    255,
    1023,
    4095,
    65_535,
)  # the highest values of 8, 10, 12 and 16 bits, in which deep greys are stored
# brand behind "ftyp": Pillow's name of the format, the module that reads it, and the package to
# install
PLUGINS = {
    b"avif": ("AVIF", "PIL.AvifImagePlugin", "pillow>=11.3"),
    b"avis": ("AVIF", "PIL.AvifImagePlugin", "pillow>=11.3"),
    **dict.fromkeys(
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
        ("HEIF", "pillow_heif", "pillow-heif"),
    ),
}
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
    """An image cannot be used; the message names it and says what to do."""


def open_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An upright RGB image, independent of its source.

    Args:
        source: a path, a data URL, the bytes of a file, a binary stream (read from its start where
            it can seek, left open), a Pillow image, or an array (H, W), (H, W, 1), (H, W, 2), (H,
            W, 3) or (H, W, 4): grey, grey and alpha, RGB or RGBA; bool, integers from 0 to 255
            (uint16: of 10, 12 or 16 bits too) or floats from 0 to 1.
        max_pixels: width times height at most; checked from the header, before anything is decoded.

    Raises:
        ImageError: the source is missing, empty, damaged, too large or not an image.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, Image.Image):
        return _to_rgb(source, f"the Pillow image of mode {source.mode}", max_pixels)
    if isinstance(source, str) and is_data_url(source):
        return _from_file(io.BytesIO(decode_data_url(source, ImageError)), "the image", max_pixels)
    if isinstance(source, str | os.PathLike):
        with open_file(str(source), "image", ImageError) as file:
            return _from_file(file, shorten(str(source)), max_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_file(io.BytesIO(source), "the image", max_pixels)
    if not callable(getattr(source, "read", None)):
        raise ImageError(
            f"a {type(source).__name__} is not an image: give a path, bytes, a Pillow image or "
            "an array"
        )
    name = str(getattr(source, "name", "the image"))
    return _from_file(read_stream(source, name, ImageError), name, max_pixels)


def _from_file(file: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    try:
        return _to_rgb(_identify(file, name), name, max_pixels)
    except ImageError:
        file.seek(0)
        content = file.read()
        shorter = png_without_text(content)
        if shorter == content:
            raise
    return _to_rgb(_identify(io.BytesIO(shorter), name), name, max_pixels)


def png_without_text(content: bytes) -> bytes:
    """A PNG without its text, of which Pillow takes only so much; anything else as it is."""
    if not content.startswith(PNG_MARK):
        return content
    return PNG_MARK + b"".join(chunk for chunk in _chunks(content) if chunk[4:8] not in TEXT_CHUNKS)


def _chunks(content: bytes) -> Iterator[bytes]:
    """Those of a PNG, with their lengths and checksums."""
    start = len(PNG_MARK)
    while start < len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4])
        yield content[start:end]
        start = end


def _identify(file: BinaryIO, name: str) -> Image.Image:
    """Read the header; the pixels stay undecoded."""
    prefix = file.read(16)
    if not prefix:
        raise ImageError(f"{name} is empty: {USE}")
    for format_name in FORMATS:
        # Image.open would warn about large images through a process-wide limit; ours comes right
        # after the header.
        factory, accept = Image.OPEN[format_name]
        if (
            accept is None or accept(prefix.ljust(16, b"\0")) is True
        ):  # some read on behind a short file's end
            file.seek(0)
            try:
                return factory(file, "")
            except Image.DecompressionBombError as error:
                raise ImageError(f"{name} is far too large ({error}): make it smaller") from error
            except (
                Exception
            ) as error:  # decoders raise whatever their reading of damaged bytes ends in
                if "unknown pixel mode" in str(error) or isinstance(error, KeyError):
                    raise ImageError(
                        f"{name} is a {format_name} file of a kind that is not read here (its "
                        "samples are "
                        "of an unusual type or number): save it as PNG with 8 or 16 bits"
                    ) from error
                raise ImageError(
                    f"{name} is a damaged {format_name} file: save or download it again"
                ) from error
    if prefix[4:8] == b"ftyp" and prefix[8:12] in PLUGINS:
        return _through_plugin(file, name, *PLUGINS[prefix[8:12]])
    raise ImageError(f"{name} is not an image that can be read: {USE}")


def _through_plugin(
    file: BinaryIO, name: str, format_name: str, module: str, package: str
) -> Image.Image:
    """AVIF and HEIC, for which Pillow may or may not be built."""
    try:
        plugin = importlib.import_module(module)
        if format_name not in Image.OPEN:
            plugin.register_heif_opener()
    except (ImportError, AttributeError) as error:
        raise ImageError(
            f"{name} is a {format_name} file, which needs another package: pip install "
            f"'{package}', "
            "or save it as PNG or JPEG"
        ) from error
    file.seek(0)
    try:
        return Image.OPEN[format_name][0](file, "")
    except Exception as error:  # as in _identify
        raise ImageError(
            f"{name} is a damaged {format_name} file: save or download it again"
        ) from error


def _to_rgb(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    width, height = image.size
    _check_size(width, height, name, max_pixels)
    key = _transparent_key(image)
    try:
        image.load()
        _check_size(*image.size, name, max_pixels)
        if key is not None:
            image = image.copy()
            image.info["transparency"] = key
        rgb = _on_white(_to_8_bits(image, name)).convert("RGB")
    except ImageError:
        raise
    except Exception as error:  # as in _identify
        left_open = getattr(image, "fp", image) is not None
        if "closed" in str(error) or (
            isinstance(error, AssertionError | AttributeError) and not left_open
        ):
            raise ImageError(
                f"{name} was closed before its pixels were read: open it again, and call its "
                "load() "
                "before closing it"
            ) from error
        if "truncated" in str(error):
            raise ImageError(
                f"{name} is cut short: its header says {width} x {height} pixels, and it ends "
                "before the "
                "last of them; save or download it again"
            ) from error
        raise ImageError(
            f"{name} is damaged, cut short or of an unknown kind and cannot be decoded ({width} "
            f"x {height} pixels, "
            f"mode {image.mode}): save or download it again"
        ) from error
    method = UPRIGHT.get(_orientation(image))
    upright = rgb if method is None else rgb.transpose(method)
    upright.info = {}
    return upright


def _transparent_key(image: Image.Image) -> int | tuple[int, ...] | None:
    """What a PNG of 2, 4 or 48 bits means by its transparent colour, in the 8 bits that Pillow
    makes of its samples."""
    raw_mode = None
    if isinstance(image, PngImagePlugin.PngImageFile) and image.tile:
        raw_mode = image.tile[0][3]
    key = image.info.get("transparency")
    if isinstance(key, int) and raw_mode in ("L;2", "L;4"):
        return key * {"L;2": 85, "L;4": 17}[raw_mode]
    if isinstance(key, tuple) and raw_mode == "RGB;16B":
        return tuple(sample >> 8 for sample in key)
    return None


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(
            f"{name} has no pixels ({width} x {height}): give an image of at least 1 x 1 pixels"
        )
    if width * height > max_pixels:
        raise ImageError(
            f"{name} has {width} x {height} = {width * height:,} pixels, more than the "
            f"{max_pixels:,} allowed: make it smaller, such as with Pillow's thumbnail"
        )


def _orientation(image: Image.Image) -> int:
    try:
        exif = image.getexif()
        value = exif.get(ExifTags.Base.Orientation, 1)
        if image.format is None and not _lies_as_stored(image, exif):
            return 1
    except Exception:  # damaged EXIF says nothing about the pixels, which are good
        return 1
    if isinstance(value, int):
        return value
    return 1


def _lies_as_stored(image: Image.Image, exif: Image.Exif) -> bool:
    """Whether an image made of another one, with its EXIF, has not been turned upright on the way.

    Pillow leaves the tag as it is when it turns or converts. Cameras write width and height as
    stored; where they are missing, the pixels are taken as they stand.
    """
    details = exif.get_ifd(ExifTags.IFD.Exif)
    width = details.get(ExifTags.Base.ExifImageWidth)
    height = details.get(ExifTags.Base.ExifImageHeight)
    if not width or not height:
        return False
    return bool((width > height) == (image.width > image.height))


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    # Pillow converts premultiplied grey in two steps only
    if image.mode == "La":
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)


def _to_8_bits(image: Image.Image, name: str) -> Image.Image:
    """Scale the deep greys (10 to 32 bits, floats), with what is transparent white; other modes
    stay as they are."""
    if not image.mode.startswith(("I", "F")):
        return image
    values_HW = np.asarray(image).astype(np.float32)
    if not np.isfinite(values_HW).all():
        raise ImageError(f"{name} holds values that are not finite: replace NaN and infinity first")
    low, high = float(values_HW.min()), float(values_HW.max())
    if image.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= DEPTHS[-1]:
        low, high = 0.0, _highest(high)
    grey_HW = np.rint((values_HW - low) * (255 / (high - low or 1))).astype(np.uint8)
    if isinstance(clear := image.info.get("transparency"), int):
        grey_HW[values_HW == clear] = 255
    return Image.fromarray(grey_HW)


def _highest(value: float) -> int:
    """What white is where `value` is the largest: of the fewest bits that hold it."""
    return next(depth for depth in DEPTHS if value <= depth)


def _from_array(array: npt.NDArray[np.generic], max_pixels: int) -> Image.Image:
    name = f"the array of shape {array.shape} and type {array.dtype}"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        raise ImageError(
            f"{name} is not an image: give (height, width) or (height, width, 1 to 4 channels)"
        )
    _check_size(array.shape[1], array.shape[0], name, max_pixels)
    if array.dtype.kind not in "buif":
        raise ImageError(f"{name} holds no numbers: give uint8 from 0 to 255 or floats from 0 to 1")
    low, high = array.min(), array.max()
    top = {"b": 1, "f": 1}.get(array.dtype.kind, 255)
    if array.dtype == np.uint16:
        top = _highest(high)
    if not (low >= 0 and high <= top):  # also true of NaN
        raise ImageError(
            f"{name} holds values from {low} to {high}: bring them to 0 to {top} first"
        )
    if array.dtype != np.uint8:
        array = np.rint(array.astype(np.float32) * (255 / top)).astype(np.uint8)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    return _on_white(Image.fromarray(np.ascontiguousarray(array))).convert("RGB")
