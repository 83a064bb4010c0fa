"""Drawings are fitted, put on backgrounds, and rendered from SVG."""

import numpy as np
import pytest
from PIL import Image

from mmdiff.training.everyday.drawings import (
    SIDE,
    background,
    code_of,
    fit,
    on_background,
    on_white,
    render_icon,
    squeezed,
)


def square(side: int = 40) -> Image.Image:
    """A red square in a larger empty image."""
    image = Image.new("RGBA", (100, 100), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (10, 20, 10 + side, 20 + side))
    return image


def test_empty_borders_are_cut() -> None:
    fitted = fit(square())
    assert fitted is not None and fitted.size == (208, 208)
    assert fit(Image.new("RGBA", (10, 10), (0, 0, 0, 0))) is None


def test_a_drawing_stands_in_the_middle_of_white() -> None:
    fitted = fit(square())
    assert fitted is not None
    pixels = np.asarray(on_white(fitted))
    assert pixels.shape == (SIDE, SIDE, 3)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[SIDE // 2, SIDE // 2].tolist() == [255, 0, 0]


@pytest.mark.parametrize("seed", range(8))
def test_a_drawing_is_seen_before_any_background(seed: int) -> None:
    fitted = fit(square())
    assert fitted is not None
    photograph = Image.new("RGB", (SIDE, SIDE), (0, 80, 0))
    made = np.asarray(on_background(fitted, np.random.default_rng(seed), [photograph]))
    again = np.asarray(on_background(fitted, np.random.default_rng(seed), [photograph]))
    assert (made == again).all() and made.shape == (SIDE, SIDE, 3)
    red = (made == (255, 0, 0)).all(axis=2).sum()
    assert red > 0.1 * SIDE * SIDE


def test_backgrounds_differ() -> None:
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(40):
        colours = len(np.unique(np.asarray(background(rng)).reshape(-1, 3), axis=0))
        kinds.add("one" if colours == 1 else "many")
    assert kinds == {"one", "many"}


def test_an_icon_is_rendered() -> None:
    pytest.importorskip("resvg_py")
    icon = {"body": '<rect x="4" y="4" width="8" height="8" fill="#00f"/>'}
    image = render_icon(icon, {"width": 16, "height": 16})
    assert image.size == (SIDE, SIDE)
    assert image.convert("RGBA").getpixel((SIDE // 2, SIDE // 2)) == (0, 0, 255, 255)
    assert image.convert("RGBA").getchannel("A").getbbox() == (56, 56, 168, 168)


def test_names_in_other_spellings_agree() -> None:
    assert squeezed("Dog-Face") == squeezed("dog face") == "dogface"
    assert squeezed("piñata") == "pinata"
    assert code_of("2764-FE0F-200D-1F525") == "2764-200d-1f525"
