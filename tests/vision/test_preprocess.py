"""Layouts, and embeddings counted without touching a pixel."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torch.testing import assert_close

from mmdiff.config import VisionConfig
from mmdiff.vision.anyres import SINGLE_VIEW, choose_grid, image_rows_and_columns
from mmdiff.vision.connector import pixel_shuffle
from mmdiff.vision.merge import merge_views
from mmdiff.vision.preprocess import count_tokens, make_views

SIZES = st.tuples(st.integers(1, 6000), st.integers(1, 6000))
WIDTH = 2


def features(num_views: int, config: VisionConfig) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_views, config.tokens_per_side**2, WIDTH, generator=generator)


def merged(size: tuple[int, int], config: VisionConfig, layout: Any) -> Tensor:
    grid = choose_grid(size, config) if layout == "anyres" else SINGLE_VIEW
    newline = torch.full((WIDTH,), 7.0) if config.newline else None
    return merge_views(features(1 + grid[0] * grid[1], config), size, grid, config, newline)


def plainly_merged(size: tuple[int, int], config: VisionConfig) -> Tensor:
    """The published any-resolution code, read aloud: one feature at a time, no helper of ours."""
    width, height = size
    best: tuple[int, int] | None = None
    most, least_waste = 0, math.inf
    for columns, rows in config.grids:
        scale = min(columns * config.image_size / width, rows * config.image_size / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        waste = columns * rows * config.image_size**2 - effective
        if effective > most or (effective == most and waste < least_waste):
            best, most, least_waste = (columns, rows), effective, waste
    assert best is not None
    columns, rows = best
    side = config.tokens_per_side
    views = features(1 + columns * rows, config)
    whole = torch.empty(rows * side, columns * side, WIDTH)
    for y in range(rows * side):
        for x in range(columns * side):
            whole[y, x] = views[1 + (y // side) * columns + x // side, (y % side) * side + x % side]
    if width / height > columns / rows:
        padding = (rows * side - int(height * (columns * side / width))) // 2
        whole = whole[padding : rows * side - padding]
    else:
        padding = (columns * side - int(width * (rows * side / height))) // 2
        whole = whole[:, padding : columns * side - padding]
    if config.max_base_areas is not None:
        times = math.sqrt(whole.shape[0] * whole.shape[1] / (config.max_base_areas * side**2))
        if times > 1.1:
            target = [int(whole.shape[0] // times), int(whole.shape[1] // times)]
            whole = interpolate(whole.permute(2, 0, 1)[None], target, mode="bilinear")[0].permute(
                1, 2, 0
            )
    lines = list(views[0])
    for row in whole:
        lines += [*row, torch.full((WIDTH,), 7.0)]
    return torch.stack(lines)


@pytest.mark.parametrize(
    "size", [(384, 384), (640, 480), (1, 5000), (5000, 1), (1, 1), (2000, 900), (333, 1777)]
)
def test_merge_is_the_published_one(size: tuple[int, int], anyres: VisionConfig) -> None:
    assert_close(merged(size, anyres, "anyres"), plainly_merged(size, anyres))


@settings(max_examples=300, deadline=None)
@given(
    SIZES,
    st.sampled_from([1, 2, 3, 4, 8, 14]),
    st.sampled_from([None, 1, 4]),
    st.booleans(),
    st.sampled_from(["anyres", "resize", "pad"]),
    st.sampled_from([1, 2]),
)
@example((1, 5000), 8, 4, True, "anyres", 1)
@example((5000, 1), 14, 1, False, "anyres", 2)
@example((1, 1), 1, None, True, "anyres", 1)
def test_tokens_are_counted_before_they_exist(
    size: tuple[int, int], side: int, areas: int | None, newline: bool, layout: Any, shuffle: int
) -> None:
    config = VisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=side * shuffle * 4,
        patch_size=4,
        pixel_shuffle=shuffle,
        newline=newline,
        max_base_areas=areas,
        layout="anyres",
        grids=tuple((columns, rows) for columns in range(1, 5) for rows in range(1, 4)),
    )
    embeddings = merged(size, config, layout)
    assert embeddings.shape == (count_tokens(size, config, layout), WIDTH)
    assert embeddings.isfinite().all()


@settings(max_examples=300, deadline=None)
@given(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)), st.integers(1, 30))
def test_some_of_every_picture_is_kept(size: tuple[int, int], side: int) -> None:
    for grid in ((1, 1), (2, 1), (1, 2), (3, 2), (6, 6)):
        rows, columns = image_rows_and_columns(size, grid, side)
        assert 0 <= rows.start < rows.stop <= grid[1] * side
        assert 0 <= columns.start < columns.stop <= grid[0] * side


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        ((384, 384), 1485),
        ((640, 480), 2929),
        ((768, 768), 3699),
        ((1000, 1000), 3699),
        ((1024, 768), 3627),
        ((1280, 720), 3649),
        ((1920, 1080), 3649),
    ],
)
def test_published_token_counts(size: tuple[int, int], tokens: int, anyres: VisionConfig) -> None:
    assert count_tokens(size, anyres) == tokens
    assert count_tokens(size, anyres, "pad") == 730


@pytest.mark.parametrize("layout", ["anyres", "resize", "pad"])
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 5000), (5000, 1), (1, 100_000), (2, 3), (383, 385), (1, 2_000_000)]
)
def test_strange_sizes(size: tuple[int, int], layout: Any, anyres: VisionConfig) -> None:
    config = dataclasses.replace(anyres, image_size=56)
    views = make_views(Image.new("RGB", size, (10, 20, 30)), config, layout)
    num_views = 1 + views.grid[0] * views.grid[1]
    assert views.pixels_V3HW.shape == (num_views, 3, 56, 56)
    assert views.size == size and views.layout == layout
    assert views.pixels_V3HW.is_contiguous() and views.pixels_V3HW.dtype == torch.float32
    embeddings = merge_views(
        features(num_views, config), views.size, views.grid, config, torch.zeros(WIDTH)
    )
    assert len(embeddings) == count_tokens(size, config, layout)


def test_resize_squashes_and_normalises(small: VisionConfig) -> None:
    pixels = np.zeros((10, 40, 3), dtype=np.uint8)
    pixels[:, 20:] = 255
    views = make_views(Image.fromarray(pixels), small, "resize")
    assert views.grid == SINGLE_VIEW
    assert_close(views.pixels_V3HW[0, :, :, :20], -torch.ones(3, 56, 20))
    assert_close(views.pixels_V3HW[0, :, :, -20:], torch.ones(3, 56, 20))


def test_pad_centres_on_the_mean_colour(small: VisionConfig) -> None:
    config = dataclasses.replace(small, mean=0.25, std=1.0)
    pixels = make_views(Image.new("RGB", (56, 28), (255, 255, 255)), config, "pad").pixels_V3HW
    mean_colour = int(0.25 * 255) / 255 - 0.25
    assert_close(pixels[0, :, :10], torch.full((3, 10, 56), mean_colour))
    assert_close(pixels[0, :, -10:], torch.full((3, 10, 56), mean_colour))
    assert_close(pixels[0, :, 20:36], torch.full((3, 16, 56), 0.75))


def test_several_colours_stay_in_their_tiles(small: VisionConfig) -> None:
    config = dataclasses.replace(small, layout="anyres", grids=((1, 1), (2, 2)))
    colours = np.arange(4, dtype=np.uint8).reshape(2, 2, 1).repeat(3, axis=2) * 85
    image = Image.fromarray(colours.repeat(56, axis=0).repeat(56, axis=1))
    views = make_views(image, config)
    assert views.grid == (2, 2)
    assert_close(views.pixels_V3HW[1:].mean(dim=(1, 2, 3)), torch.tensor([-1, -1 / 3, 1 / 3, 1]))
    assert_close(views.pixels_V3HW[0, :, :20, :20], -torch.ones(3, 20, 20))


def test_views_take_rgb_only(small: VisionConfig) -> None:
    with pytest.raises(ValueError, match="RGB.*'L'.*open_image"):
        make_views(Image.new("L", (5, 5)), small)


def test_merge_names_what_does_not_fit(anyres: VisionConfig) -> None:
    with pytest.raises(ValueError, match=r"\(3, 729, 2\).*2 x 2 tiles.*\(5, 729"):
        merge_views(features(3, anyres), (640, 480), (2, 2), anyres, torch.zeros(WIDTH))
    with pytest.raises(ValueError, match="newline"):
        merge_views(features(5, anyres), (640, 480), (2, 2), anyres, None)


def test_merge_in_half_precision_and_with_gradients(anyres: VisionConfig) -> None:
    newline = torch.zeros(WIDTH, requires_grad=True)
    views = features(7, anyres).bfloat16().requires_grad_()
    embeddings = merge_views(views, (1000, 700), (3, 2), anyres, newline)
    assert embeddings.dtype == torch.bfloat16
    embeddings.float().sum().backward()
    assert views.grad is not None and newline.grad is not None
    num_rows = count_tokens((1000, 700), anyres) - count_tokens(
        (1000, 700), dataclasses.replace(anyres, newline=False)
    )
    assert newline.grad.tolist() == [num_rows] * WIDTH


def test_pixel_shuffle_joins_neighbours() -> None:
    patches = torch.arange(16.0).view(1, 16, 1)
    assert pixel_shuffle(patches, 1) is patches
    assert pixel_shuffle(patches, 2)[0].tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]


def test_newline_may_be_left_out_where_there_is_none(small: VisionConfig) -> None:
    config = dataclasses.replace(small, newline=False)
    assert torch.equal(
        merge_views(features(1, config), (9, 5), SINGLE_VIEW, config), features(1, config)[0]
    )
