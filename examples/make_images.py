"""Draw the example images beside this file: `python examples/make_images.py [FOLDER]`.

Their contents are fixed here. Edges and exact hues come from seeds that no model is trained on.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from mmdiff.training.tiny.scenes import TEST_SEEDS, Background, Scene, Thing, draw

PALE = Background("plain", (240, 241, 247), (240, 241, 247))
STRIPES = Background("stripes", (236, 240, 250), (250, 238, 228), period=14, angle=0.6)
DARK = Background("plain", (38, 34, 52), (38, 34, 52))

# Boxes are x and y of the top left corner, width and height, in pixels; later things are drawn over
# earlier ones.
SCENES = {
    "shapes.png": Scene(
        160,
        120,
        PALE,
        (
            Thing("circle", "red", "large", 12, 32, 56, 56),
            Thing("star", "blue", "large", 100, 6, 50, 50),
            Thing("triangle", "yellow", "small", 74, 86, 30, 27),
        ),
    ),
    "one.png": Scene(96, 96, PALE, (Thing("ring", "teal", "large", 31, 30, 36, 36),)),
    "busy.png": Scene(
        128,
        128,
        STRIPES,
        (
            Thing("rectangle", "green", "large", 6, 10, 50, 36),
            Thing("circle", "black", "small", 88, 12, 24, 24),
            Thing("cross", "purple", "large", 40, 42, 44, 44),
            Thing("triangle", "orange", "small", 14, 96, 26, 23),
            Thing("star", "red", "small", 94, 94, 26, 26),
        ),
    ),
    "wide.png": Scene(
        160,
        64,
        PALE,
        (
            Thing("cross", "purple", "large", 4, 8, 48, 48),
            Thing("rectangle", "orange", "small", 66, 24, 32, 20),
            Thing("triangle", "black", "small", 118, 4, 30, 26),
        ),
    ),
    "circles.png": Scene(
        120,
        144,
        DARK,
        (
            Thing("circle", "green", "large", 8, 8, 44, 44),
            Thing("circle", "green", "small", 88, 58, 26, 26),
            Thing("circle", "yellow", "large", 14, 98, 44, 44),
            Thing("star", "orange", "small", 78, 10, 28, 28),
        ),
    ),
}


def images() -> dict[str, Image.Image]:
    """Every example image by its file name."""
    seeds = iter(TEST_SEEDS)
    return {name: draw(scene, np.random.default_rng(next(seeds))) for name, scene in SCENES.items()}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, image in images().items():
        image.save(folder / name)


if __name__ == "__main__":
    main()
