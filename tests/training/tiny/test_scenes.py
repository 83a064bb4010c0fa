"""Scenes: the same seed gives the same picture, and everything in a picture can be seen and told
apart."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from mmdiff.training.tiny.scenes import (
    BUSY,
    COLOURS,
    CONTRAST,
    JITTER,
    LARGE,
    MAX_SIDE,
    MIN_SIDE,
    PLACES,
    SHAPES,
    SMALL,
    TEST_SEEDS,
    TRAIN_SEEDS,
    VALID_SEEDS,
    Background,
    Scene,
    Thing,
    draw,
    example,
    place,
    random_scene,
    reading_order,
    scene_json,
)

SCENES = [random_scene(seed) for seed in range(400)]


def test_seed_decides_everything() -> None:
    for seed in (0, 7, TEST_SEEDS[3], VALID_SEEDS[-1]):
        (one, scene, rng), (other, same_scene, same_rng) = example(seed), example(seed)
        assert scene == same_scene == random_scene(seed)
        assert one.mode == "RGB" and one.size == (scene.width, scene.height)
        assert one.tobytes() == other.tobytes()
        assert rng.random() == same_rng.random()
    assert len({random_scene(seed) for seed in range(100)}) == 100


def test_seed_ranges_share_nothing() -> None:
    assert TRAIN_SEEDS.start == 0
    assert TRAIN_SEEDS.stop <= TEST_SEEDS.start and TEST_SEEDS.stop <= VALID_SEEDS.start
    with pytest.raises(ValueError):
        random_scene(-1)


def test_counts_and_sides() -> None:
    counts = np.bincount([len(scene.things) for scene in SCENES], minlength=7) / len(SCENES)
    assert counts[0] == 0 and 0.18 < counts[1] < 0.32 and counts[2:].min() > 0.08
    assert all(
        MIN_SIDE <= side <= MAX_SIDE for scene in SCENES for side in (scene.width, scene.height)
    )
    assert 0.2 < np.mean([scene.width == scene.height for scene in SCENES]) < 0.4
    assert {scene.background.kind for scene in SCENES} == {"plain", *BUSY}
    assert len(random_scene(0, count=3, sides=(100, 100)).things) == 3
    with pytest.raises(ValueError, match="not 7"):
        random_scene(0, count=7)


def test_every_thing_is_one_of_the_named() -> None:
    things = [thing for scene in SCENES for thing in scene.things]
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {thing.colour for thing in things} == set(COLOURS)
    assert {place(thing, scene) for scene in SCENES for thing in scene.things} == set(PLACES)


def test_sizes_leave_a_gap() -> None:
    for scene in SCENES:
        for thing in scene.things:
            longest = max(thing.width, thing.height)
            low, high = SMALL if thing.size == "small" else LARGE
            longer, shorter = max(scene.width, scene.height), min(scene.width, scene.height)
            assert low * longer - 1 <= longest <= min(high * longer, 0.8 * shorter) + 1


def test_centres_keep_off_the_thirds() -> None:
    for scene in SCENES:
        for thing in scene.things:
            for at, side in zip(thing.centre, (scene.width, scene.height), strict=True):
                assert min(abs(at / side - 1 / 3), abs(at / side - 2 / 3)) > 0.045


def test_things_stay_visible() -> None:
    """Counted pixel by pixel: at most 30 % of a bounding box (a quarter, and the edge) is covered
    or cut off."""
    for scene in SCENES:
        top = np.full((scene.height, scene.width), -1)
        for i, thing in enumerate(scene.things):
            top[
                max(thing.y, 0) : thing.y + thing.height, max(thing.x, 0) : thing.x + thing.width
            ] = i
        for i, thing in enumerate(scene.things):
            assert (top == i).sum() >= 0.65 * thing.width * thing.height
        centres = sorted(thing.centre[0] for thing in scene.things)
        assert all(
            right - left >= 0.02 * scene.width
            for left, right in zip(centres, centres[1:], strict=False)
        )


def test_backgrounds_stand_off() -> None:
    for scene in SCENES:
        for ground in (scene.background.first, scene.background.second):
            assert all(
                math.dist(ground, COLOURS[thing.colour]) >= CONTRAST for thing in scene.things
            )


@pytest.mark.parametrize("shape", SHAPES)
def test_draws_the_colour_within_the_box(shape: str) -> None:
    thing = Thing(shape, "red", "large", 20, 24, 18, 18)
    scene = Scene(64, 70, Background("plain", (240, 240, 240), (240, 240, 240)), (thing,))
    for seed in range(6):  # smooth edges and not
        pixels = np.asarray(draw(scene, np.random.default_rng(seed))).astype(int)
        changed = (pixels != 240).any(2)
        rows, columns = np.nonzero(changed)
        assert 24 <= rows.min() <= 25 and 40 <= rows.max() <= 41
        assert 20 <= columns.min() <= 21 and 36 <= columns.max() <= 37
        near = (np.abs(pixels - COLOURS["red"]) <= JITTER).all(2)
        assert near.sum() > 0.25 * 18 * 18
        if shape == "ring":
            assert not changed[33, 29]


def test_place_and_json() -> None:
    ground = Background("plain", (240, 240, 240), (240, 240, 240))
    right = Thing("star", "gray", "small", 80, 40, 10, 10)
    left = Thing("ring", "red", "large", 2, 2, 20, 20)
    scene = Scene(90, 90, ground, (right, left))
    assert scene_json(scene) == {
        "objects": [
            {"shape": "ring", "colour": "red", "size": "large", "place": "top left"},
            {"shape": "star", "colour": "gray", "size": "small", "place": "right"},
        ],
        "count": 2,
    }
    assert json.loads(json.dumps(scene_json(SCENES[0]))) == scene_json(SCENES[0])


def test_reading_order_goes_down_the_thirds_from_left_to_right() -> None:
    for scene in SCENES:
        ninths = [
            (PLACES.index(place(t, scene)) % 3, PLACES.index(place(t, scene)) // 3, t.centre[0])
            for t in reading_order(scene)
        ]
        assert ninths == sorted(ninths) and len(ninths) == len(scene.things)
