"""The arithmetic of any-resolution images: which grid of tiles, and how many embeddings come of
it.

Whole numbers only; no pixel is touched, so a prompt's length is known from an image's size. The
formulas, their rounding included, are those of LLaVA-NeXT as LLaDA-V uses them (ML-GSAI/LLaDA-V,
`llava/mm_utils.py` and `llava/model/llava_arch.py`); sizes are (width, height), grids (columns,
rows).
"""

from __future__ import annotations

import math

from mmdiff.config import ViewLayout, VisionConfig

Size = tuple[int, int]
SINGLE_VIEW = (0, 0)  # the grid of an image without tiles behind its one view
SHRINK_ABOVE = 1.1  # a map is left alone while its side is within this factor of the allowed one


def choose_grid(size: Size, config: VisionConfig) -> Size:
    """The allowed grid that keeps most of the image's pixels; among equals the one that wastes
    least."""

    def fit(grid: Size) -> tuple[int, int]:
        width, height = grid[0] * config.image_size, grid[1] * config.image_size
        scale = min(width / size[0], height / size[1])
        effective = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return effective, effective - width * height

    return max(config.grids, key=fit)


def image_rows_and_columns(size: Size, grid: Size, side: int) -> tuple[slice, slice]:
    """Where the image lies in the map of a grid of tiles of `side` x `side` features; the rest is
    padding.

    The published code leaves nothing of an image much thinner than one feature when the map's side
    is even; here at least one row and column stay.
    """
    columns, rows = grid[0] * side, grid[1] * side
    if size[0] / size[1] > columns / rows:
        margin = (rows - max(1, int(size[1] * (columns / size[0])))) // 2
        return slice(margin, rows - margin), slice(0, columns)
    margin = (columns - max(1, int(size[0] * (rows / size[1])))) // 2
    return slice(0, rows), slice(margin, columns - margin)


def shrunk(rows: int, columns: int, side: int, max_base_areas: int | None) -> tuple[int, int]:
    """Rows and columns of the map after bounding its area to `max_base_areas` views of `side` x
    `side` features."""
    if max_base_areas is None:
        return rows, columns
    times = math.sqrt(rows * columns / (max_base_areas * side**2))
    if times <= SHRINK_ABOVE:
        return rows, columns
    return max(1, int(rows // times)), max(1, int(columns // times))


def count_tokens(size: Size, config: VisionConfig, layout: ViewLayout | None = None) -> int:
    """How many embeddings an image of `size` (width, height) takes in the prompt: what
    `merge_views` returns.

    Source: specs of LLaDA-V, e.g. 1,485 for 384 x 384 and 2,929 for 640 x 480 at 27 x 27 features a
    view.
    """
    side = config.tokens_per_side
    if (layout or config.layout) != "anyres":
        return side**2 + config.newline
    kept_rows, kept_columns = image_rows_and_columns(size, choose_grid(size, config), side)
    rows, columns = shrunk(
        kept_rows.stop - kept_rows.start,
        kept_columns.stop - kept_columns.start,
        side,
        config.max_base_areas,
    )
    return side**2 + rows * (columns + config.newline)
