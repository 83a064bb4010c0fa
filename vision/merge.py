"""Lay the features of an image's views out as one row of embeddings for the prompt.

Tiles become one map without its padding, bounded in area, with a learned newline at the end of
every row ("spatial unpad" of LLaVA-NeXT, as LLaDA-V uses it); the view of the whole image comes
before them. An image of one view is its features and one newline.

Shapes: V views, N features of a view in row-major order, D width, S features per side of a view, H
and W of the map, T embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mmdiff.config import VisionConfig
from mmdiff.vision.anyres import SINGLE_VIEW, image_rows_and_columns, shrunk


def merge_views(
    features_VND: Tensor,
    size: Sequence[int],
    grid: Sequence[int],
    config: VisionConfig,
    newline_D: Tensor | None = None,
) -> Tensor:
    """The embeddings (T, D) of one image; T is `count_tokens(size, config, layout)`.

    Args:
        features_VND: connected features of the image's views, `config.tokens_per_side` squared
            each.
        size: width and height of the image in pixels.
        grid: columns and rows of tiles behind the first view; (0, 0) without tiles.
        newline_D: the learned newline; None where `config.newline` is False.

    Raises:
        ValueError: the number of views or features, or the newline, does not fit.
    """
    side, (columns, rows) = config.tokens_per_side, grid
    if features_VND.shape[:2] != (1 + columns * rows, side**2):
        raise ValueError(
            f"features of shape {tuple(features_VND.shape)} do not fit a grid of {columns} x "
            f"{rows} tiles: ({1 + columns * rows}, {side**2}, width) is needed"
        )
    if (newline_D is not None) != config.newline:
        raise ValueError(
            f"newline={config.newline} in the configuration, but the embedding given is {newline_D}"
        )
    newline_D = features_VND.new_zeros(0) if newline_D is None else newline_D.to(features_VND.dtype)
    if (columns, rows) == SINGLE_VIEW:
        return torch.cat([features_VND[0], newline_D.view(-1, features_VND.shape[2])])
    map_DHW = _unpadded_map(features_VND[1:], (size[0], size[1]), (columns, rows), config)
    rows_HTD = map_DHW.permute(1, 2, 0)
    newlines_HTD = newline_D.view(1, -1, features_VND.shape[2]).expand(rows_HTD.shape[0], -1, -1)
    return torch.cat([features_VND[0], torch.cat([rows_HTD, newlines_HTD], dim=1).flatten(0, 1)])


def _unpadded_map(
    tiles_VND: Tensor, size: tuple[int, int], grid: tuple[int, int], config: VisionConfig
) -> Tensor:
    """The tiles side by side, without padding, at most `max_base_areas` views large (D, H, W)."""
    side, (columns, rows) = config.tokens_per_side, grid
    tiles_VSSD = tiles_VND.unflatten(0, (rows, columns)).unflatten(2, (side, side))
    map_DHW = tiles_VSSD.permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2, 3)
    kept_rows, kept_columns = image_rows_and_columns(size, grid, side)
    map_DHW = map_DHW[:, kept_rows, kept_columns]
    height, width = shrunk(map_DHW.shape[1], map_DHW.shape[2], side, config.max_base_areas)
    if (height, width) == map_DHW.shape[1:]:
        return map_DHW
    return interpolate(map_DHW[None], (height, width), mode="bilinear")[0]
