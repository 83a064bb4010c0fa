"""Cut an image into the square views that a tower sees, and normalise them.

Three layouts: "anyres" (LLaVA-NeXT as in LLaDA-V: the whole image squashed, then tiles of the
image fitted into the best grid), "resize" (squashed) and "pad" (centred in a square of the
normaliser's mean colour, as LLaVA-1.5 does). Opening files is in `image_io.py`, the number of
embeddings in `anyres.py`.

Shapes: V views, H height and W width of a view in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmdiff.config import ViewLayout, VisionConfig
from mmdiff.vision.anyres import SINGLE_VIEW, Size, choose_grid, count_tokens

__all__ = ["Views", "count_tokens", "make_views"]

TALLEST = (
    32_768  # pixels; Pillow resizes across before down, with a strip of the full height in between
)
WIDEST_SQUARE = 8_192  # pixels; a 1 x 1,000,000 image padded to a square would need terabytes


@dataclass(frozen=True)
class Views:
    """One image as a tower takes it."""

    pixels_V3HW: Tensor  # float32, normalised; with tiles, the view of the whole image comes first
    size: Size  # width and height of the image in pixels
    # columns and rows of tiles, in row-major order behind the first view; (0, 0): no tiles
    grid: Size
    layout: ViewLayout


def make_views(image: Image.Image, config: VisionConfig, layout: ViewLayout | None = None) -> Views:
    """Cut and normalise an RGB image; `layout` overrides the configured one.

    Raises:
        ValueError: the image is not RGB.
    """
    if image.mode != "RGB":
        raise ValueError(
            f"make_views takes RGB images, not mode {image.mode!r}: open them with open_image"
        )
    layout = layout or config.layout
    views, grid = LAYOUTS[layout](image, config)
    bytes_VHW3 = torch.from_numpy(np.stack([np.asarray(view) for view in views]))
    pixels_V3HW = (
        bytes_VHW3.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        / 255
    )
    return Views((pixels_V3HW - config.mean) / config.std, image.size, grid, layout)


def _anyres(image: Image.Image, config: VisionConfig) -> tuple[list[Image.Image], Size]:
    side = config.image_size
    columns, rows = grid = choose_grid(image.size, config)
    fitted = _fit_on_black(image, columns * side, rows * side)
    corners = [(left * side, top * side) for top in range(rows) for left in range(columns)]
    tiles = [fitted.crop((left, top, left + side, top + side)) for left, top in corners]
    return [_resize(image, side, side), *tiles], grid


def _squash(image: Image.Image, config: VisionConfig) -> tuple[list[Image.Image], Size]:
    return [_resize(image, config.image_size, config.image_size)], SINGLE_VIEW


def _pad(image: Image.Image, config: VisionConfig) -> tuple[list[Image.Image], Size]:
    if max(image.size) > WIDEST_SQUARE:
        shrink = WIDEST_SQUARE / max(image.size)
        image = _resize(
            image, max(1, int(image.width * shrink)), max(1, int(image.height * shrink))
        )
    side, grey = max(image.size), int(config.mean * 255)
    square = Image.new("RGB", (side, side), (grey, grey, grey))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return _squash(square, config)


LAYOUTS: dict[ViewLayout, Callable[[Image.Image, VisionConfig], tuple[list[Image.Image], Size]]] = {
    "anyres": _anyres,
    "resize": _squash,
    "pad": _pad,
}


def _fit_on_black(image: Image.Image, width: int, height: int) -> Image.Image:
    """Keep the aspect ratio; black bars fill the rest, with the image in the middle."""
    across, down = width / image.width, height / image.height
    if across < down:
        size = width, min(math.ceil(image.height * across), height)
    else:
        size = min(math.ceil(image.width * down), width), height
    canvas = Image.new("RGB", (width, height), (0, 0, 0))
    canvas.paste(_resize(image, *size), ((width - size[0]) // 2, (height - size[1]) // 2))
    return canvas


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    if image.height > TALLEST:
        image = image.resize((image.width, TALLEST), Image.Resampling.BICUBIC)
    return image.resize((width, height), Image.Resampling.BICUBIC)
