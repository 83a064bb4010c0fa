"""Scenes of one to five named things on a background, whose contents are known exactly.

A `Scene` says what is where, `random_scene` makes one of things that are given, `paint` puts their
drawings onto a background. Boxes are shares of the image's side, from 0 to 1.
"""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

Rng = np.random.Generator
Box = tuple[float, float, float, float]  # left, top, right, bottom
MAX_THINGS = 5
COUNTS = (0.5, 0.17, 0.14, 0.11, 0.08)  # of scenes with one thing, two, ...
LARGEST = (0.85, 0.5, 0.45, 0.42, 0.38)  # side of a thing, by the number of things
SMALLEST = 0.22
TRIES = 60
SIDES = ("left", "right", "top", "bottom")
MARGIN = 0.12  # by which the outermost thing is further out than the next
DOMINANT = 0.55  # share of a drawing's pixels that have its colour


@dataclass(frozen=True)
class Thing:
    """One drawing or photograph of something."""

    name: str
    kind: str
    source: str  # which drawing it is
    colour: str | None = None  # that most of it has
    aliases: tuple[str, ...] = ()
    box: Box = (0.0, 0.0, 1.0, 1.0)

    @property
    def centre(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    def is_called(self, name: str) -> bool:
        return name in (self.name, self.kind, *self.aliases)


@dataclass(frozen=True)
class Scene:
    """The things of an image; the topmost and leftmost need not come first."""

    things: tuple[Thing, ...]
    known: bool = True  # whether its one thing is of a kind that is taught

    def count(self, name: str) -> int:
        return sum(thing.is_called(name) for thing in self.things)

    def outermost(self, side: str) -> Thing | None:
        """The one thing that is clearly furthest out on a side; None where two are about as far."""
        axis, sign = ("left", "right", "top", "bottom").index(side) // 2, 1
        if side in ("right", "bottom"):
            sign = -1
        ranked = sorted(self.things, key=lambda thing: sign * thing.centre[axis])
        if len(ranked) < 2:
            return None
        gap = sign * (ranked[1].centre[axis] - ranked[0].centre[axis])
        return ranked[0] if gap >= MARGIN else None


def is_beside(first: Thing, second: Thing, relation: str) -> bool | None:
    """Whether the first is left of, right of, above or below the second; None where it is close."""
    axis = 0 if relation in ("left of", "right of") else 1
    gap = second.centre[axis] - first.centre[axis]
    if abs(gap) < MARGIN:
        return None
    return (gap > 0) == (relation in ("left of", "above"))


def random_scene(rng: Rng, things: Sequence[Thing], repeat: float = 0.3) -> Scene:
    """One to five of the things, side by side without covering each other.

    Args:
        repeat: how often a further thing is another one of the same name, for counting.
    """
    count = 1 + int(rng.choice(len(COUNTS), p=COUNTS))
    drawn: list[Thing] = []
    for _ in range(count):
        alike: list[Thing] = []
        if drawn and rng.random() < repeat:
            alike = [thing for thing in things if thing.name == drawn[0].name]
        pool = alike or things
        drawn.append(pool[int(rng.integers(len(pool)))])
    return Scene(laid_out(drawn, rng))


def laid_out(things: Sequence[Thing], rng: Rng) -> tuple[Thing, ...]:
    """The things with boxes that do not overlap; those that find no place are left out."""
    placed: list[Thing] = []
    largest = LARGEST[len(things) - 1]
    for thing in things:
        for attempt in range(TRIES):
            # The longer it takes, the smaller it gets.
            most = largest - (largest - SMALLEST) * attempt / TRIES
            side = rng.uniform(SMALLEST, most) if len(things) > 1 else rng.uniform(0.45, most)
            left, top = rng.uniform(0, 1 - side, 2)
            box = (float(left), float(top), float(left + side), float(top + side))
            if not any(_overlap(box, other.box) for other in placed):
                placed.append(replace(thing, box=box))
                break
    return tuple(placed)


def _overlap(one: Box, other: Box) -> bool:
    apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    return not apart


def paint(
    scene: Scene, drawings: Mapping[str, Image.Image], background: Image.Image
) -> Image.Image:
    """The scene's drawings (RGBA) on a copy of the background, each in the middle of its box."""
    canvas = background.convert("RGB")
    side = canvas.width
    for thing in scene.things:
        drawing = drawings[thing.source]
        left, top, right, _ = thing.box
        scale = (right - left) * side / max(drawing.size)
        size = (max(1, round(drawing.width * scale)), max(1, round(drawing.height * scale)))
        fitted = drawing.resize(size, Image.Resampling.BICUBIC)
        room = round((right - left) * side)
        corner = (
            round(left * side) + (room - size[0]) // 2,
            round(top * side) + (room - size[1]) // 2,
        )
        canvas.paste(fitted, corner, fitted)
    return canvas


# Colours

COLOURS = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "gray",
    "white",
)


def colour_name(red: float, green: float, blue: float) -> str:
    """The everyday name of a colour whose channels are from 0 to 1."""
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    degrees = 360 * hue
    if lightness < 0.1 or (saturation < 0.15 and lightness < 0.2):
        return "black"
    if lightness > 0.93 or (saturation < 0.15 and lightness > 0.85):
        return "white"
    if saturation < 0.15:
        return "gray"
    return _hue_name(degrees, lightness)


def _hue_name(degrees: float, lightness: float) -> str:
    """Of a colour that is neither black, white nor gray."""
    if degrees < 12 or degrees >= 345:
        return "pink" if lightness > 0.72 else "red"
    if degrees < 42:
        return "brown" if lightness < 0.42 else "orange"
    if degrees < 68:
        return "brown" if lightness < 0.25 else "yellow"
    if degrees < 165:
        return "green"
    if degrees < 255:
        return "blue"
    if degrees < 292:
        return "purple"
    return "pink" if lightness > 0.45 else "purple"


def main_colour(drawing: Image.Image) -> str | None:
    """The colour that more than half of a drawing (RGBA) has; None where no colour has."""
    small = np.asarray(drawing.convert("RGBA").resize((24, 24)), np.float32) / 255
    solid = small.reshape(-1, 4)
    solid = solid[solid[:, 3] > 0.8]
    if not len(solid):
        return None
    counts = Counter(colour_name(*pixel[:3]) for pixel in solid.tolist())
    (name, number), *_ = counts.most_common(1)
    return name if number >= DOMINANT * len(solid) else None
