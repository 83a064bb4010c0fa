"""Images of coloured shapes whose contents are known exactly: what mmdiff's small models train
and are tested on.

A `Scene` says what is in an image, `random_scene` makes one from a seed, `draw` paints it. Colours
and shapes keep the names that easy-VQA gives them, and add to them; no file of easy-VQA is read.
All lengths are pixels.

Not covered: rotated, outlined or textured shapes, and text. Questions and captions are in
`questions.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
T = TypeVar("T")

SHAPES = ("circle", "rectangle", "triangle", "star", "cross", "ring")
COLOURS: dict[str, Colour] = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "teal": (0, 128, 128),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "brown": (165, 42, 42),
    "orange": (255, 140, 0),
    "purple": (150, 40, 200),
}
SIZES = ("small", "large")
PLACES = (
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
BUSY = ("gradient", "stripes", "dots", "checks", "noise")

# A scene's seed says what it may be used for; no seed is negative, and the three ranges share none.
TRAIN_SEEDS = range(0, 10**9)
TEST_SEEDS = range(10**9, 2 * 10**9)
VALID_SEEDS = range(2 * 10**9, 3 * 10**9)

MIN_SIDE, MAX_SIDE = 64, 160  # pixels
MAX_THINGS = 6
SMALL = (0.16, 0.21)  # longest side of a thing, as a share of the image's longer side
LARGE = (0.3, 0.42)
BANDS = (
    (0.0, 0.273),
    (0.393, 0.607),
    (0.727, 1.0),
)  # where centres lie: 6 % of a side clear of the thirds' boundaries
MAX_COVERED = 0.25  # share of a thing's bounding box under later things
# between the x centres of any two things, as a share of the width: gives one order in a ninth
MIN_APART = 0.02
JITTER = 14  # of each channel of a thing's colour: a name is a category, not a value
CONTRAST = 120.0  # RGB distance between a background's colours and any thing's


@dataclass(frozen=True)
class Thing:
    """One shape; `x`, `y` is the top left corner of its bounding box, in pixels, and may lie a
    little outside."""

    shape: str
    colour: str
    size: str
    x: int
    y: int
    width: int
    height: int

    @property
    def centre(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height / 2


@dataclass(frozen=True)
class Background:
    """`period` is the pattern's step in pixels, `angle` the direction of stripes and gradients in
    radians."""

    kind: Literal["plain", "gradient", "stripes", "dots", "checks", "noise"]
    first: Colour
    second: Colour
    period: int = 8
    angle: float = 0.0


@dataclass(frozen=True)
class Scene:
    """An image's contents; later things are drawn over earlier ones."""

    width: int
    height: int
    background: Background
    things: tuple[Thing, ...]


def place(thing: Thing, scene: Scene) -> str:
    """The ninth of the image that holds the thing's centre, one of `PLACES`."""
    column, row = _ninth(thing, scene)
    return PLACES[3 * row + column]


def _ninth(thing: Thing, scene: Scene) -> tuple[int, int]:
    x, y = thing.centre
    return _third(x, scene.width), _third(y, scene.height)


def _third(at: float, side: int) -> int:
    """Which third of a side a coordinate lies in: 0, 1 or 2."""
    return min(max(int(3 * at / side), 0), 2)


def reading_order(scene: Scene) -> list[Thing]:
    """The things of the left third from top to bottom, then those of the middle, then those of the
    right.

    Things in the same ninth come from left to right. Thirds are told more surely than which of two
    centres, a pixel or two apart, is further left.
    """
    return sorted(
        scene.things,
        key=lambda thing: (_ninth(thing, scene), thing.centre, thing.shape, thing.colour),
    )


def scene_json(scene: Scene) -> dict[str, Any]:
    """The contents as plain data, things in reading order."""
    objects = []
    for thing in reading_order(scene):
        objects.append(
            {
                "shape": thing.shape,
                "colour": thing.colour,
                "size": thing.size,
                "place": place(thing, scene),
            }
        )
    return {"objects": objects, "count": len(objects)}


def example(seed: int, count: int | None = None) -> tuple[Image.Image, Scene, np.random.Generator]:
    """The image and scene of a seed, and the generator to go on with (for questions); `count`
    fixes the things."""
    rng = np.random.default_rng(seed)
    scene = random_scene(rng, count)
    return draw(scene, rng), scene, rng


# Making a scene


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options; several times as fast as `rng.choice`."""
    return options[int(rng.random() * len(options))]


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def random_scene(
    seed: int | np.random.Generator,
    count: int | None = None,
    sides: tuple[int, int] = (MIN_SIDE, MAX_SIDE),
) -> Scene:
    """A scene of `count` things (fewer where they do not fit), its sides between the two of `sides`
    pixels."""
    if count is not None and not 1 <= count <= MAX_THINGS:
        raise ValueError(f"count must be 1 to {MAX_THINGS}, not {count}")
    rng = np.random.default_rng(seed)
    width, height = _sides(rng, *sides)
    if count is None:
        if rng.random() < 0.25:
            count = 1
        else:
            count = 2 + int(rng.random() * (MAX_THINGS - 1))
    shapes, colours = _palette(rng, SHAPES), _palette(rng, tuple(COLOURS))
    things: list[Thing] = []
    for _ in range(count):
        thing = _fit(rng, width, height, pick(rng, shapes), pick(rng, colours), things)
        if thing is not None:
            things.append(thing)
    return Scene(
        width,
        height,
        _random_background(rng, [COLOURS[thing.colour] for thing in things]),
        tuple(things),
    )


def _sides(rng: np.random.Generator, low: int, high: int) -> tuple[int, int]:
    width = _between_inclusive(rng, low, high)
    height = _between_inclusive(rng, low, high)
    form = rng.random()
    if form < 0.15:
        return low, low
    if form < 0.3:
        return (width, width)
    return (width, height)


def _palette(rng: np.random.Generator, options: tuple[str, ...]) -> tuple[str, ...]:
    """All options, or often only a few: then attributes repeat, and counting and telling apart are
    worth asking."""
    if rng.random() < 0.5:
        return options
    return tuple(options[i] for i in rng.permutation(len(options))[: 2 + int(rng.random() * 2)])


def _fit(
    rng: np.random.Generator,
    width: int,
    height: int,
    shape: str,
    colour: str,
    others: list[Thing],
    tries: int = 24,
) -> Thing | None:
    """A thing that leaves the others visible, or None; it turns small when no large one fits."""
    longer, shorter = max(width, height), min(width, height)
    size = "small"
    if 0.8 * shorter >= 0.3 * longer and rng.random() < (0.5 if len(others) < 3 else 0.35):
        size = "large"
    for attempt in range(tries):
        if attempt == tries // 2:
            size = "small"
        longest = min(_between(rng, *(LARGE if size == "large" else SMALL)) * longer, 0.8 * shorter)
        w, h = _box(rng, shape, longest)
        cx, cy = _centre(rng, w, width), _centre(rng, h, height)
        thing = Thing(shape, colour, size, round(cx - w / 2), round(cy - h / 2), w, h)
        if _welcome(thing, others, width):
            return thing
    return None


def _box(rng: np.random.Generator, shape: str, longest: float) -> tuple[int, int]:
    """Width and height of a shape whose longer side is given."""
    aspect = 1.0  # height over width
    if shape == "rectangle" and rng.random() < 0.8:
        aspect = math.exp(_between(rng, math.log(0.6), math.log(1.7)))
    elif shape == "triangle":
        aspect = _between(rng, 0.8, 1.0)
    return round(longest / max(aspect, 1.0)), round(longest * min(aspect, 1.0))


def _centre(rng: np.random.Generator, length: int, side: int) -> float:
    """A centre along one side, well inside a third; one in ten may have the image's edge cut off
    5 % of the thing."""
    margin = (0.45 if rng.random() < 0.1 else 0.5) * length / side
    bands = []
    for low, high in BANDS:
        bands.append((max(low, margin), min(high, 1 - margin)))
    return side * _between(rng, *pick(rng, [(low, high) for low, high in bands if low <= high]))


def _overlap(one: Thing, other: Thing, gap: int = 0) -> int:
    """Shared area of two bounding boxes in square pixels, the first grown by `gap` on each side."""
    across = min(one.x + one.width + gap, other.x + other.width) - max(one.x - gap, other.x)
    down = min(one.y + one.height + gap, other.y + other.height) - max(one.y - gap, other.y)
    return max(across, 0) * max(down, 0)


def _welcome(thing: Thing, others: list[Thing], width: int) -> bool:
    for i, other in enumerate(others):
        if abs(thing.centre[0] - other.centre[0]) < MIN_APART * width:
            return False
        if thing.colour == other.colour and _overlap(thing, other, gap=2):
            return False  # they would run into one
        covered = _overlap(thing, other) + sum(_overlap(later, other) for later in others[i + 1 :])
        if covered > MAX_COVERED * other.width * other.height:
            return False
    return True


def _tone(rng: np.random.Generator, low: int, high: int) -> Colour:
    r = _between_inclusive(rng, low, high)
    g = _between_inclusive(rng, low, high)
    b = _between_inclusive(rng, low, high)
    return r, g, b


def _between_inclusive(rng: np.random.Generator, low: int, high: int) -> int:
    """A whole number, both bounds among those that can be drawn."""
    return low + int(rng.random() * (high - low + 1))


def _random_background(
    rng: np.random.Generator, colours: list[Colour], tries: int = 30
) -> Background:
    """A background that all the colours stand out from: pale ones, as in easy-VQA, always do."""
    busy = rng.random() < 0.45
    kind: Any = "plain"
    if busy:
        kind = pick(rng, BUSY)
    pale = rng.random() < (0.4 if busy else 0.65)
    period, angle = 4 + int(rng.random() * 17), math.pi * rng.random()
    reach = {"plain": 0, "gradient": 60, "noise": 26}.get(kind, 30)  # low contrast within itself
    for _ in range(tries):
        if pale:
            first = _tone(rng, 225, 255)
        else:
            first = _tone(rng, 15, 200)
        shift = _tone(rng, -reach, reach)
        second = _clip(first, shift)
        middle = _clip(first, (shift[0] // 2, shift[1] // 2, shift[2] // 2))
        if all(
            math.dist(tone, colour) >= CONTRAST
            for tone in (first, middle, second)
            for colour in colours
        ):
            return Background(kind, first, second, period, angle)
    return Background("plain", (240, 240, 240), (240, 240, 240))


def _clip(colour: Colour, shift: Colour) -> Colour:
    r, g, b = np.clip(np.add(colour, shift), 0, 255).tolist()
    return r, g, b


# Painting a scene


def draw(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Paint the scene in RGB; `rng` chooses what the scene leaves open: smooth edges or not, hues,
    noise, thickness."""
    # easy-VQA's edges are not smooth
    scale = 1
    if rng.random() < 0.5:
        scale = 4
    image = Image.fromarray(_paint_background(scene, rng))
    for thing in scene.things:
        mask = _mask(thing, scale, rng.random())
        image.paste(
            _clip(COLOURS[thing.colour], _tone(rng, -JITTER, JITTER)), (thing.x, thing.y), mask
        )
    return image


def _paint_background(
    scene: Scene, rng: np.random.Generator
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Height x width x 3."""
    ground = scene.background
    first, second = np.array(ground.first, np.float32), np.array(ground.second, np.float32)
    y, x = np.ogrid[: scene.height, : scene.width]
    along = x * math.cos(ground.angle) + y * math.sin(ground.angle)
    step = ground.period
    if ground.kind == "noise":
        reach = int(np.abs(first - second).max())
        noise = rng.integers(-reach, reach + 1, (scene.height, scene.width, 3), dtype=np.int16)
        return np.asarray(np.clip(noise + np.array(ground.first, np.int16), 0, 255), np.uint8)
    if ground.kind == "gradient":
        share = (along - along.min()) / max(float(np.ptp(along)), 1.0)
        table = first + (second - first) * np.linspace(0, 1, 64, dtype=np.float32)[:, None]
        return np.asarray(table.astype(np.uint8)[(63 * share).astype(np.intp)])
    odd: np.ndarray[Any, Any]
    if ground.kind == "stripes":
        odd = (2 * along / step).astype(np.intp) & 1
    elif ground.kind == "checks":
        odd = (x // step + y // step) & 1
    elif ground.kind == "dots":
        odd = (x % step - step / 2) ** 2 + (y % step - step / 2) ** 2 < (0.3 * step) ** 2
    else:
        odd = np.zeros((scene.height, scene.width), np.intp)
    return np.asarray(np.stack([first, second]).astype(np.uint8)[odd.astype(np.intp)])


def _mask(thing: Thing, scale: int, thickness: float) -> Image.Image:
    """The thing's coverage in its bounding box, drawn `scale` times as large and reduced;
    `thickness` is 0 to 1."""
    w, h = thing.width * scale - 1, thing.height * scale - 1
    mask = Image.new("L", (w + 1, h + 1))
    pen = ImageDraw.Draw(mask)
    if thing.shape in ("circle", "ring"):
        pen.ellipse((0, 0, w, h), fill=255)
        if thing.shape == "ring":
            rim = max(round((0.17 + 0.08 * thickness) * w), scale)
            pen.ellipse((rim, rim, w - rim, h - rim), fill=0)
    elif thing.shape == "rectangle":
        pen.rectangle((0, 0, w, h), fill=255)
    elif thing.shape == "triangle":
        pen.polygon([(0, h), (w / 2, 0), (w, h)], fill=255)
    elif thing.shape == "cross":
        arm = round((0.36 - 0.06 * thickness) * w)
        pen.rectangle((arm, 0, w - arm, h), fill=255)
        pen.rectangle((0, arm, w, h - arm), fill=255)
    else:
        pen.polygon([(x * w, y * h) for x, y in STAR], fill=255)
    if scale > 1:
        return mask.reduce(scale)
    return mask


def _star(inner: float) -> list[tuple[float, float]]:
    """Corners of a five-pointed star that fills the unit square; `inner` is the dents' share of the
    points' radius."""
    turns = []
    for i in range(10):
        turns.append((math.pi * i / 5, 1.0 if i % 2 == 0 else inner))
    corners = []
    for turn, radius in turns:
        corners.append((radius * math.sin(turn), -radius * math.cos(turn)))
    spans = []
    for axis in zip(*corners, strict=True):
        spans.append((min(axis), max(axis)))
    (left, right), (top, bottom) = spans
    return [((x - left) / (right - left), (y - top) / (bottom - top)) for x, y in corners]


STAR = _star(0.42)
