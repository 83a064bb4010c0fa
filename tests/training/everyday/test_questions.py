"""Everyday scenes: nothing covers anything else, and every question has the answer that the scene
gives."""

from __future__ import annotations

from collections import Counter

import jsonschema
import numpy as np
import pytest
from PIL import Image

from mmdiff.training.everyday.questions import (
    ASKERS,
    NOT_SURE,
    WORDINGS,
    captions,
    plural,
    questions,
    scene_schema,
    scene_value,
    side_of,
    with_article,
)
from mmdiff.training.everyday.scenes import (
    MAX_THINGS,
    Scene,
    Thing,
    colour_name,
    is_beside,
    main_colour,
    paint,
    random_scene,
)

THINGS = (
    Thing("dog", "mammal", "dog", "brown", ("puppy",)),
    Thing("apple", "fruit", "apple", "red"),
    Thing("scissors", "tool", "scissors", None),
    Thing("fire engine", "vehicle", "fire engine", "red"),
    Thing("bread", "food", "bread", "brown"),
    Thing("bus", "vehicle", "bus", "yellow"),
    Thing("cherry", "fruit", "cherry", "red"),
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def absent(scene: Scene) -> list[Thing]:
    return [thing for thing in THINGS if not scene.count(thing.name)]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [random_scene(rng(seed), THINGS) for seed in range(600)]


def test_things_lie_side_by_side_inside_the_image(scenes: list[Scene]) -> None:
    assert {len(scene.things) for scene in scenes} == set(range(1, MAX_THINGS + 1))
    for scene in scenes:
        for number, one in enumerate(scene.things):
            assert min(one.box) >= 0 and max(one.box) <= 1
            for other in scene.things[number + 1 :]:
                a, b = one.box, other.box
                assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_yes_is_as_frequent_as_no_and_all_kinds_are_asked(scenes: list[Scene]) -> None:
    asked, answers = Counter[str](), Counter[tuple[str, str]]()
    for seed, scene in enumerate(scenes):
        for question in questions(scene, rng(seed), 6, absent(scene)):
            asked[question.kind] += 1
            answers[question.kind, question.answer] += 1
    assert set(asked) == set(ASKERS)
    for kind in ("is it", "is there", "is beside"):
        assert 0.4 < answers[kind, "yes"] / asked[kind] < 0.6
    assert 0.25 < answers["how many of", "0"] / asked["how many of"] < 0.45


def test_each_kind_has_ten_wordings_or_more() -> None:
    assert all(len(set(texts)) >= 10 for texts in WORDINGS.values())


def scene_of(*boxes: tuple[float, float]) -> Scene:
    """Things of THINGS in turn, a fifth of a side each, by their centres."""
    placed = []
    for thing, (x, y) in zip(THINGS, boxes, strict=False):
        placed.append(
            Thing(
                thing.name,
                thing.kind,
                thing.source,
                thing.colour,
                thing.aliases,
                (x - 0.1, y - 0.1, x + 0.1, y + 0.1),
            )
        )
    return Scene(tuple(placed))


def test_sides_and_relations() -> None:
    scene = scene_of((0.2, 0.5), (0.8, 0.55), (0.5, 0.9))
    dog, apple, scissors = scene.things
    assert side_of(dog, scene) == "on the left"
    assert side_of(apple, scene) == "on the right"
    assert side_of(scissors, scene) == "at the bottom"
    assert is_beside(dog, apple, "left of") is True and is_beside(dog, apple, "right of") is False
    assert is_beside(dog, apple, "above") is None
    assert is_beside(scissors, dog, "below") is True
    corners = scene_of((0.2, 0.2), (0.8, 0.8))
    assert side_of(corners.things[1], corners) == "at the bottom right"


def test_captions_name_everything_once() -> None:
    scene = scene_of((0.2, 0.5), (0.8, 0.55), (0.5, 0.9))
    assert captions(scene)["short"] == "a dog, scissors and an apple"
    assert captions(scene)["long"] == (
        "a brown dog on the left, scissors at the bottom and a red apple on the right"
    )
    twice = Scene((scene.things[1], scene.things[1]))
    assert captions(twice)["short"] == "two apples"
    unknown = Scene((scene.things[0],), known=False)
    assert set(captions(unknown).values()) == {NOT_SURE}
    kinds = {question.kind: question for question in questions(unknown, rng(), 2, THINGS[1:])}
    assert kinds["name"].answer == NOT_SURE


@pytest.mark.parametrize(
    ("name", "article", "many"),
    [
        ("apple", "an apple", "apples"),
        ("unicorn", "a unicorn", "unicorns"),
        ("scissors", "scissors", "scissors"),
        ("bread", "bread", "bread"),
        ("bus", "a bus", "buses"),
        ("glass", "a glass", "glasses"),
        ("cherry", "a cherry", "cherries"),
        ("computer mouse", "a computer mouse", "computer mice"),
        ("toy", "a toy", "toys"),
        ("box", "a box", "boxes"),
    ],
)
def test_articles_and_plurals(name: str, article: str, many: str) -> None:
    assert (with_article(name), plural(name)) == (article, many)


def test_json_fits_its_schema(scenes: list[Scene]) -> None:
    judge = jsonschema.Draft202012Validator(scene_schema())
    assert all(judge.is_valid(scene_value(scene)) for scene in scenes)
    assert judge.is_valid({"count": 0, "objects": []})


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((220, 20, 60), "red"),  # crimson
        ((255, 165, 0), "orange"),
        ((255, 215, 0), "yellow"),  # gold
        ((34, 139, 34), "green"),  # forest green
        ((30, 144, 255), "blue"),  # dodger blue
        ((128, 0, 128), "purple"),
        ((255, 105, 180), "pink"),  # hot pink
        ((139, 69, 19), "brown"),  # saddle brown
        ((10, 10, 10), "black"),
        ((128, 128, 128), "gray"),
        ((250, 250, 250), "white"),
    ],
)
def test_everyday_colours(rgb: tuple[int, int, int], name: str) -> None:
    assert colour_name(*(channel / 255 for channel in rgb)) == name
    assert main_colour(Image.new("RGBA", (40, 30), (*rgb, 255))) == name


def test_drawings_without_a_main_colour() -> None:
    half = Image.new("RGBA", (40, 40), (255, 0, 0, 255))
    half.paste((0, 0, 255, 255), (0, 0, 20, 40))
    assert main_colour(half) is None
    assert main_colour(Image.new("RGBA", (40, 40), (0, 0, 0, 0))) is None


def test_drawings_are_painted_into_their_boxes() -> None:
    scene = scene_of((0.2, 0.2), (0.8, 0.8))
    drawings = {"dog": Image.new("RGBA", (10, 20), (0, 0, 255, 255))}
    drawings["apple"] = Image.new("RGBA", (20, 20), (255, 0, 0, 255))
    image = np.asarray(paint(scene, drawings, Image.new("RGB", (100, 100), (255, 255, 255))))
    assert tuple(image[20, 20]) == (0, 0, 255) and tuple(image[80, 80]) == (255, 0, 0)
    assert tuple(image[20, 12]) == (255, 255, 255), "it keeps its proportions"
    assert tuple(image[50, 50]) == (255, 255, 255)
