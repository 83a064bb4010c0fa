"""Questions, captions and phrases, checked against evaluators that share no code with the
generator."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from mmdiff.training.tiny.questions import (
    CAPTION_PROMPTS,
    FACTS,
    KINDS,
    UNKNOWN,
    Fact,
    Phrase,
    Qa,
    caption_facts,
    caption_spans,
    captions,
    describe,
    facts_of,
    holds,
    phrases,
    questions,
    references,
    score_caption,
    truth_table,
)
from mmdiff.training.tiny.scenes import (
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    Background,
    Scene,
    Thing,
    place,
    random_scene,
    reading_order,
    scene_json,
)

SCENES = [random_scene(seed) for seed in range(800)]
ASKED = [
    (scene, qa)
    for i, scene in enumerate(SCENES)
    for qa in questions(scene, np.random.default_rng(i), 5)
]
GROUND = Background("plain", (240, 240, 240), (240, 240, 240))
CIRCLE = Thing("circle", "red", "small", 4, 4, 14, 14)
STAR = Thing("star", "gray", "large", 60, 60, 30, 30)
PAIR = Scene(100, 100, GROUND, (STAR, CIRCLE))


def fits(words: str, thing: Thing) -> bool:
    """Whether a thing is what the words call it, word by word."""
    nouns = {"object", "objects", "thing", "things", "shape", "shapes", "something"}
    return all(
        word in nouns
        or word in (thing.shape, f"{thing.shape}s", f"{thing.shape}es", thing.colour, thing.size)
        for word in words.replace("grey", "gray").split()
    )


def the(words: str, scene: Scene) -> Thing:
    found = [thing for thing in scene.things if fits(words, thing)]
    assert len(found) == 1, (words, scene)
    return found[0]


def plain(question: str) -> str:
    text = question.lower().rstrip("?").replace("colour", "color").replace("picture", "image")
    return re.sub(r" in the image$", "", text)


def answer(question: str, scene: Scene) -> str:  # noqa: C901 - a case for each wording
    """The slow way, by the wording alone."""
    text = plain(question)
    if found := re.fullmatch(
        r"how many (.+?)( are there| are|does the image contain| does the image contain)", text
    ):
        return str(sum(fits(found[1], thing) for thing in scene.things))
    if found := re.fullmatch(r"(?:where|in which part of the image) is the (.+)", text):
        return place(the(found[1], scene), scene)
    if found := re.fullmatch(
        r"is the (.+) (?:small or large|large or small)|what size is the (.+)", text
    ):
        return the(found[1] or found[2], scene).size
    if found := re.fullmatch(
        r"is the (.+?) (to the left of|left of|to the right of|right of|above|below) the (.+)", text
    ):
        (ax, ay), (bx, by) = the(found[1], scene).centre, the(found[3], scene).centre
        side = {"left": ax < bx, "right": ax > bx, "above": ay < by, "below": ay > by}
        return "yes" if next(true for word, true in side.items() if word in found[2]) else "no"
    if found := re.fullmatch(
        r"(?:is there not an?|does the image not contain an?|is no) (.+?)( present)?", text
    ):
        return "no" if any(fits(found[1], thing) for thing in scene.things) else "yes"
    if found := re.fullmatch(
        r"(?:is there an?|does the image contain an?|is an?) (.+?)( present)?", text
    ):
        return "yes" if any(fits(found[1], thing) for thing in scene.things) else "no"
    if found := re.fullmatch(r"(?:are|do) the two objects (?:have )?the same (\w+)", text):
        one, other = scene.things
        return "yes" if attribute(found[1], one) == attribute(found[1], other) else "no"
    if found := re.fullmatch(r"(?:are|do) the (.+) and the (.+?) (?:have )?the same (\w+)", text):
        one, other = the(found[1], scene), the(found[2], scene)
        return "yes" if attribute(found[3], one) == attribute(found[3], other) else "no"
    asked = "color" if "color" in text else "shape"
    if found := re.fullmatch(r"what.* (to the left of|to the right of|above|below) the (.+)", text):
        (other,) = (thing for thing in scene.things if thing is not the(found[2], scene))
        return attribute(asked, other)
    if found := re.fullmatch(
        r"what.*(?: in| on| at) the (top left|top right|bottom left|bottom right|\w+)", text
    ):
        (here,) = (thing for thing in scene.things if place(thing, scene) == found[1])
        return attribute(asked, here)
    if text in ("what shape is", "what shape does the image contain", "what shape is present"):
        return scene.things[0].shape if len(scene.things) == 1 else "?"
    found = re.fullmatch(r"what (?:(?:color|shape) )?is (?:the (?:color|shape) of )?the (.+)", text)
    assert found, text
    return attribute(asked, the(found[1], scene))


def attribute(word: str, thing: Thing) -> str:
    return {"color": thing.colour, "shape": thing.shape, "size": thing.size}[word]


def test_answers_agree_with_the_slow_way() -> None:
    for scene, qa in ASKED:
        assert answer(qa.question, scene) == qa.answer, (qa, scene)


def test_questions_are_deterministic_and_differ() -> None:
    for seed, scene in enumerate(SCENES[:50]):
        one, other = (questions(scene, np.random.default_rng(seed), 6) for _ in range(2))
        assert one == other and len({qa.question for qa in one}) == len(one) == 6
    assert (
        0 < len(questions(SCENES[0], np.random.default_rng(0), 1000)) < 1000
    )  # ends when there is no more to ask


def test_kinds_are_even() -> None:
    kinds = Counter(qa.kind for _, qa in ASKED)
    assert set(kinds) == set(KINDS)
    always = [kinds[kind] for kind in ("shape", "size", "where", "count", "present", "absent")]
    assert max(always) < 1.25 * min(always)


def test_yes_and_no_are_balanced() -> None:
    given: dict[str, Counter[str]] = defaultdict(Counter)
    for _, qa in ASKED:
        if qa.answer in ("yes", "no"):
            given[qa.kind][qa.answer] += 1
    assert set(given) == {"present", "absent", "relation", "same"}
    for kind, answers in given.items():
        assert 0.4 < answers["yes"] / answers.total() < 0.6, (kind, answers)


def test_negatives_are_hard() -> None:
    """Of the false claims with colour and shape, most have one of the two right."""
    nearly = []
    for scene, qa in ASKED:
        words = set(plain(qa.question).replace("grey", "gray").split())
        shape, colour = words & set(SHAPES), words & set(COLOURS)
        if (qa.kind, qa.answer) in (("present", "no"), ("absent", "yes")) and shape and colour:
            nearly.append(
                any(thing.shape in shape or thing.colour in colour for thing in scene.things)
            )
    assert len(nearly) > 50 and np.mean(nearly) > 0.9


def test_every_wording_of_easy_vqa() -> None:
    red = Scene(64, 64, GROUND, (CIRCLE,))
    asked = {qa.question for i in range(1500) for qa in questions(red, np.random.default_rng(i), 6)}
    assert asked >= {
        "is a red shape present?",
        "is there a red shape?",
        "does the image not contain a red shape?",
        "is there not a red shape?",
        "is there not a red shape in the image?",
        "does the image contain a red shape?",
        "is no red shape present?",
        "is there a red shape in the image?",
        "what color is the shape?",
        "what color is the circle?",
        "what shape is in the image?",
        "what is the color of the circle?",
        "what is the color of the shape?",
        "what shape does the image contain?",
        "what shape is present?",
        "what is the red shape?",
        "is no circle present?",
        "is there not a circle?",
        "does the image not contain a circle?",
        "is there a circle?",
        "is there not a circle in the image?",
        "is a circle present?",
        "does the image contain a circle?",
        "is there a circle in the image?",
    }


def test_style_varies() -> None:
    asked = [qa.question for _, qa in ASKED]
    assert 0.2 < np.mean([question[0].isupper() for question in asked]) < 0.3
    assert 0.06 < np.mean([not question.endswith("?") for question in asked]) < 0.14
    assert all(
        any(word in question for question in asked) for word in ("color", "colour", "gray", "grey")
    )
    assert not any("grey" in qa.answer for _, qa in ASKED)


def test_qa_of_a_known_scene() -> None:
    asked = [qa for i in range(1500) for qa in questions(PAIR, np.random.default_rng(i), 6)]
    assert Qa("is the star left of the circle?", "no", "relation") in asked
    assert Qa("what is below the circle?", "star", "beside") in asked
    assert Qa("are the two objects the same color?", "no", "same") in asked


def test_captions_of_a_known_scene() -> None:
    assert captions(PAIR) == {
        "word": "star",
        "short": "a red circle and a gray star",
        "long": "a small red circle at the top left and a large gray star at the bottom right",
    }
    four = Scene(
        100, 100, GROUND, (STAR, CIRCLE, CIRCLE, Thing("cross", "teal", "small", 50, 0, 15, 15))
    )
    assert captions(four)["short"] == "4 objects: 2 circles, a star and a cross"
    assert all(len(prompts) == 3 for prompts in CAPTION_PROMPTS.values())


def test_captions_read_back() -> None:
    for scene in SCENES:
        made = captions(scene)
        objects = scene_json(scene)["objects"]
        assert made == captions(scene, np.random.default_rng(1))
        assert caption_facts(made["word"]) == {Fact(1, None, None, made["word"], None): 1}
        full = Counter(Fact(1, o["size"], o["colour"], o["shape"], o["place"]) for o in objects)
        assert caption_facts(made["long"]) == full
        shapes = Counter(o["shape"] for o in objects)
        groups = {Fact(number, None, None, shape, None): 1 for shape, number in shapes.items()}
        pairs = Counter(Fact(1, None, o["colour"], o["shape"], None) for o in objects)
        head = Fact(len(objects), None, None, None, None)
        assert caption_facts(made["short"]) == (pairs if len(objects) <= 3 else {head: 1, **groups})
        for length, text in made.items():
            right, total = score_caption(text, scene, length)
            assert right == total > 0
        assert score_caption(made["long"], scene)[1] == 4 * len(objects)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("a small red circle at the top left and a large gray star at the bottom right", (8, 8)),
        (
            "A large grey star at the bottom right, and a small red circle at the top left.",
            (8, 8),
        ),  # any order
        ("a small red circle at the top left", (4, 8)),
        ("a small blue circle at the top and a large gray star at the bottom right", (6, 8)),
        (
            "a small red circle at the top left, a large gray star at the bottom right and a ring",
            (8, 9),
        ),  # invented
        ("a gray circle and a red star", (2, 8)),
        ("I see nothing of the kind", (0, 8)),
        ("", (0, 8)),
        (f"{'9' * 5000} circles and 999 circles", (1, 30)),
    ],
)
def test_score_caption(text: str, score: tuple[int, int]) -> None:
    assert score_caption(text, PAIR) == score


def test_phrase_text() -> None:
    assert describe(CIRCLE, PAIR).text() == "a small red circle at the top left"
    assert Phrase(shape="circle", colour="orange").text() == "an orange circle"
    assert Phrase(colour="red").text() == "something red"
    assert (
        Phrase(colour="red", size="small", place="left").text()
        == "something small and red on the left"
    )
    assert Phrase(place="center").text() == "something in the center"


def test_phrases_hold_every_other_time() -> None:
    for seed, scene in enumerate(SCENES[:100]):
        made = phrases(scene, np.random.default_rng(seed), 8)
        assert made == phrases(scene, np.random.default_rng(seed), 8)
        assert all(holds(phrase, scene) for phrase in made[::2])
        assert all(any(vars(phrase).values()) for phrase in made)
    near = [
        holds(p, s)
        for i, s in enumerate(SCENES)
        for p in phrases(s, np.random.default_rng(i), 2)[1::2]
    ]
    assert np.mean(near) < 0.25


def test_truth_table_agrees_with_objects() -> None:
    scenes = SCENES[:30]
    made = [
        p for i, scene in enumerate(scenes) for p in phrases(scene, np.random.default_rng(i), 6)
    ] + [Phrase()]
    table = truth_table(made, scenes)
    assert table.shape == (30, 181) and table.dtype == np.bool_
    for row, scene in zip(table, scenes, strict=True):
        objects = scene_json(scene)["objects"]
        for true, phrase in zip(row, made, strict=True):
            said = {name: value for name, value in vars(phrase).items() if value}
            assert (
                true == any(said.items() <= one.items() for one in objects) == holds(phrase, scene)
            )


def test_references_tell_the_facts_of_what_they_name() -> None:
    """By the words and the scene's JSON alone; a fact is told where all that is named agrees on
    it."""
    seen: defaultdict[str, set[int]] = defaultdict(set)
    forms: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for seed in range(400):
        scene, rng = random_scene(seed), np.random.default_rng(seed)
        for reference in references(scene, rng, 16):
            told = dict(zip(FACTS, reference.facts, strict=True))
            form, named = read(reference.text, scene)
            forms[form] += 1
            if form == "pair":
                wanted = dict.fromkeys(FACTS, UNKNOWN) | pair_facts(*named, scene)
                if told["holds"] != UNKNOWN:
                    wanted["holds"] = int(answer(reference.text + reference.after, scene) == "yes")
                    asked[reference.after] += 1
            else:
                names = list(FACTS)[:7]
                values = {name: {fact(name, thing, scene) for thing in named} for name in names}
                wanted = dict.fromkeys(FACTS, UNKNOWN) | {"number": len(named)}
                wanted |= {name: min(of) for name, of in values.items() if len(of) == 1}
            assert told == wanted, (reference, scene)
            for name, value in told.items():
                seen[name].add(value)
    others = (*GRID_FACTS, *SHOWN_FACTS)
    assert all(
        {*range(number), UNKNOWN} <= seen[name]
        for name, number in FACTS.items()
        if name not in others
    )
    assert min(forms.values()) > 100 and len(forms) == 5, forms
    assert min(asked.values()) > 20 and len(asked) == 7, asked


def test_captions_say_where_they_speak_of_what() -> None:
    for seed in range(200):
        scene = random_scene(seed)
        made = captions(scene)
        for length in ("short", "long"):
            spans = caption_spans(made[length], scene)
            words = [made[length][first:end] for first, end, _ in spans]
            if length == "short" and len(scene.things) > 3:
                alike = [[t for t in scene.things if t.shape == shape] for shape in SHAPES]
                groups = [list(scene.things), *(things for things in alike if things)]
                assert [facts for *_, facts in spans] == [
                    facts_of(things, scene) for things in groups
                ]
                assert [number for word in words for number, *_ in caption_facts(word)] == [
                    *map(len, groups)
                ]
                continue
            assert [facts for *_, facts in spans] == [
                facts_of([thing], scene) for thing in reading_order(scene)
            ]
            assert [caption_facts(word) for word in words] == [
                Counter(
                    [
                        Fact(1, thing.size, thing.colour, thing.shape, place(thing, scene))
                        if length == "long"
                        else Fact(1, None, thing.colour, thing.shape, None)
                    ]
                )
                for thing in reading_order(scene)
            ]


SHOWN_FACTS = ("centre", "of its shape", "of its colour")  # told at the picture's tokens alone
GRID_FACTS = ("column", "row", "number")  # things are never in some cells, and seldom six of a kind


def read(text: str, scene: Scene) -> tuple[str, list[Thing]]:
    """Which form the words have, and which things they name."""
    ways = r"and|(?:to the )?left of|(?:to the )?right of|above|below"
    if " and the " in text or not text.startswith("the ") and " the " in text:
        names = re.sub("^(?:is |do |are )?the ", "", text)
        return "pair", [the(name, scene) for name in re.split(f" (?:{ways}) the ", names)]
    if found := re.fullmatch(
        r"the (object|shape|thing) (?:to the )?(left of|right of|above|below) the (.+)", text
    ):
        other = the(found[3], scene)
        thing = scene.things[1] if other is scene.things[0] else scene.things[0]
        axis = int(found[2] in ("above", "below"))
        offset = (thing.centre[axis] - other.centre[axis]) * (
            -1 if found[2] in ("left of", "above") else 1
        )
        assert len(scene.things) == 2 and offset > 0
        return "place", [thing]
    if found := re.fullmatch(r"the (?:object|shape|thing) (?:at|in|on) the (.+)", text):
        return "place", [thing for thing in scene.things if place(thing, scene) == found[1]]
    if found := re.fullmatch(r"object (\d)", text):
        return "rank", [
            thing for thing in scene.things if fact("rank", thing, scene) == int(found[1]) - 1
        ]
    if text.startswith("the "):
        return "name", [the(text.removeprefix("the "), scene)]
    return "claim", [thing for thing in scene.things if fits(re.sub(r"^an? ", "", text), thing)]


def pair_facts(one: Thing, other: Thing, scene: Scene) -> dict[str, int]:
    across = (one.centre[0] - other.centre[0]) / scene.width
    down = (one.centre[1] - other.centre[1]) / scene.height
    close = {"right": abs(across) < 0.12, "below": abs(down) < 0.12}
    facts = {
        "right": across > 0,
        "below": down > 0,
        "same shape": one.shape == other.shape,
        "same colour": one.colour == other.colour,
        "same size": one.size == other.size,
    }
    compared = {name: UNKNOWN if close.get(name) else int(value) for name, value in facts.items()}
    first = {f"first {name}": fact(name, one, scene) for name in ("shape", "colour", "size")}
    second = {name: fact(name, other, scene) for name in list(FACTS)[:7]}
    return {**compared, **first, **second, "number": 2}


def order(thing: Thing, scene: Scene) -> tuple[int, int, float]:
    x, y = thing.x + thing.width / 2, thing.y + thing.height / 2
    return int(3 * x / scene.width), int(3 * y / scene.height), x


def fact(name: str, thing: Thing, scene: Scene) -> int:
    values = {"shape": SHAPES, "colour": tuple(COLOURS), "size": SIZES, "place": PLACES}
    if name in values:
        return values[name].index(place(thing, scene) if name == "place" else getattr(thing, name))
    if name == "rank":
        return sum(order(other, scene) < order(thing, scene) for other in scene.things)
    at, side = (
        (thing.x + thing.width / 2, scene.width)
        if name == "column"
        else (thing.y + thing.height / 2, scene.height)
    )
    return int(at / side * 8)
