"""Questions, captions and JSON about a `Scene` of named things, in many wordings, each with an
answer that the scene leaves no doubt about.

Yes and no are as frequent as each other, in each kind of question. What a scene shows that was
never taught has the answer `NOT_SURE`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mmdiff.prompts import CAPTION_PROMPTS
from mmdiff.training.everyday.scenes import COLOURS, SIDES, Scene, Thing, is_beside

Rng = np.random.Generator
Length = Literal["word", "short", "long"]
NOT_SURE = "I am not sure."
NUMBERS = ("zero", "one", "two", "three", "four", "five")
RELATIONS = ("left of", "right of", "above", "below")
PLURALS = {
    "mouse": "mice",
    "goose": "geese",
    "ox": "oxen",
    "fish": "fish",
    "sheep": "sheep",
    "deer": "deer",
    "bison": "bison",
    "shrimp": "shrimp",
    "squid": "squid",
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "snowman": "snowmen",
    "foot": "feet",
    "tooth": "teeth",
    "leaf": "leaves",
    "knife": "knives",
    "wolf": "wolves",
    "loaf": "loaves",
    "cactus": "cacti",
}
AS_THEY_ARE = ("s", "clothing", "bread", "rice", "money", "furniture", "fruit", "wine", "milk")


@dataclass(frozen=True)
class Question:
    """What is asked, its answer, and the kind of question."""

    text: str
    answer: str
    kind: str


def with_article(name: str) -> str:
    """ "an apple", "a dog"; "glasses" and "bread" take none."""
    if _has_no_singular(name):
        return name
    if name[0] in "aeiou" and not name.startswith(("uni", "eu", "one")):
        return f"an {name}"
    return f"a {name}"


def _has_no_singular(name: str) -> bool:
    return name.endswith(AS_THEY_ARE) and not name.endswith(("ss", "us"))


def plural(name: str) -> str:
    """ "two dogs", "mice", "fishing poles"; "glasses" and "bread" stay as they are."""
    if _has_no_singular(name):
        return name
    before, _, last = name.rpartition(" ")
    many = PLURALS.get(last)
    if many is None:
        many = _regular_plural(last)
    return f"{before} {many}".strip()


def _regular_plural(word: str) -> str:
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return f"{word}es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}s"


# Wordings: {a} is a thing with its article, {n} its name, {ns} the plural, {other} a second thing
# with "the", {side} a side, {rel} a relation.

WORDINGS: dict[str, tuple[str, ...]] = {
    "name": (
        "what is this?",
        "what is it?",
        "what is that?",
        "what do you see?",
        "what is in the image?",
        "what is in the picture?",
        "what is shown here?",
        "what does the picture show?",
        "what can you see in this photo?",
        "what am i looking at?",
        "what object is this?",
        "name the object.",
        "tell me what this is.",
        "can you tell me what this is?",
        "identify the object in the image.",
        "what thing is in the picture?",
        "what's this?",
        "what is this called?",
    ),
    "is it": (
        "is it {a}?",
        "is this {a}?",
        "is that {a}?",
        "is this a picture of {a}?",
        "does the image show {a}?",
        "does this picture show {a}?",
        "am i looking at {a}?",
        "would you call this {a}?",
        "is the object {a}?",
        "is the thing in the picture {a}?",
        "do you see {a} here?",
    ),
    "what kind": (
        "what kind of thing is this?",
        "what kind of thing is it?",
        "what type of thing is this?",
        "what sort of thing is in the picture?",
        "what kind of object is shown?",
        "which kind of thing is this?",
        "what category does it belong to?",
        "what category is this?",
        "what group of things does this belong to?",
        "what kind of thing is the {n}?",
        "what kind of thing do you see?",
    ),
    "how many": (
        "how many things are there?",
        "how many objects are there?",
        "how many objects are in the image?",
        "how many things are in the picture?",
        "how many things do you see?",
        "how many things can you see?",
        "count the objects.",
        "count the things in the image.",
        "what is the number of objects?",
        "how many different objects does the image show?",
        "how many things are shown?",
    ),
    "how many of": (
        "how many {ns} are there?",
        "how many {ns} are in the image?",
        "how many {ns} are in the picture?",
        "how many {ns} do you see?",
        "how many {ns} can you see?",
        "how many {ns} does the image show?",
        "how many {ns} are shown?",
        "count the {ns}.",
        "what is the number of {ns}?",
        "number of {ns}?",
        "tell me how many {ns} there are.",
    ),
    "is there": (
        "is there {a}?",
        "is there {a} in the image?",
        "is there {a} in the picture?",
        "do you see {a}?",
        "can you see {a}?",
        "can you see {a} anywhere?",
        "does the image contain {a}?",
        "does the picture have {a}?",
        "is {a} shown?",
        "is {a} in the picture?",
        "are there any {ns}?",
        "are there any {ns} in the image?",
        "{a}?",
    ),
    "colour": (
        "what color is it?",
        "what color is this?",
        "what color is the {n}?",
        "what is the color of the {n}?",
        "what is the color of this?",
        "which color is it?",
        "which color does the {n} have?",
        "what color does it have?",
        "tell me the color of the {n}.",
        "the color of the {n}?",
        "what is the main color of the {n}?",
    ),
    "colour of": (
        "what color is the {n}?",
        "what is the color of the {n}?",
        "which color is the {n}?",
        "which color does the {n} have?",
        "tell me the color of the {n}.",
        "the color of the {n}?",
        "what is the main color of the {n}?",
        "what color does the {n} have?",
        "in which color is the {n}?",
        "name the color of the {n}.",
    ),
    "where": (
        "where is the {n}?",
        "where is the {n} in the image?",
        "where in the picture is the {n}?",
        "where can i find the {n}?",
        "where do you see the {n}?",
        "in which part of the image is the {n}?",
        "on which side is the {n}?",
        "what is the position of the {n}?",
        "tell me where the {n} is.",
        "find the {n}.",
        "locate the {n}.",
    ),
    "what is on": (
        "what is {side}?",
        "what is {side} of the image?",
        "what is {side} of the picture?",
        "what is the thing {side}?",
        "what object is {side}?",
        "which thing is {side}?",
        "what do you see {side}?",
        "what can you see {side}?",
        "name the object {side}.",
        "what's {side}?",
        "tell me what is {side}.",
    ),
    "is beside": (
        "is the {n} {rel} the {other}?",
        "is the {n} {rel} the {other} in the image?",
        "is there {a} {rel} the {other}?",
        "is {a} {rel} the {other}?",
        "does the {n} lie {rel} the {other}?",
        "can you see {a} {rel} the {other}?",
        "do you see {a} {rel} the {other}?",
        "would you say the {n} is {rel} the {other}?",
        "is the {n} placed {rel} the {other}?",
        "is it true that the {n} is {rel} the {other}?",
    ),
    "what is beside": (
        "what is {rel} the {other}?",
        "what is the thing {rel} the {other}?",
        "what do you see {rel} the {other}?",
        "which object is {rel} the {other}?",
        "what thing is {rel} the {other}?",
        "what can you see {rel} the {other}?",
        "name the thing {rel} the {other}.",
        "what object can be seen {rel} the {other}?",
        "what's {rel} the {other}?",
        "tell me what is {rel} the {other}.",
    ),
}
AT_SIDE = {
    "left": ("on the left", "on the left side", "at the left", "to the left"),
    "right": ("on the right", "on the right side", "at the right", "to the right"),
    "top": ("at the top", "on top", "in the upper part", "above"),
    "bottom": ("at the bottom", "in the lower part", "at the lower end", "below"),
}
SAID_RELATIONS = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "higher than"),
    "below": ("below", "under", "lower than"),
}
LENGTH_PROMPTS: dict[Length, tuple[str, ...]] = {  # the first of each is the one to test with
    "word": (
        CAPTION_PROMPTS["word"],
        "Name the main object in one word.",
        "What is it? One word.",
        "Describe the image in one word.",
    ),
    "short": (
        CAPTION_PROMPTS["short"],
        "Write a short caption.",
        "Describe the image briefly.",
        "Write an alt text for this image.",
        "Give the image a caption.",
    ),
    "long": (
        CAPTION_PROMPTS["long"],
        "Write a long caption.",
        "Describe the image in detail.",
        "Describe every object in the picture.",
    ),
}


def pick(rng: Rng, options: Sequence[Any]) -> Any:
    return options[int(rng.integers(len(options)))]


def asked(kind: str, rng: Rng, **words: str) -> str:
    """A question of the kind in one of its wordings, sometimes in capitals or without its mark."""
    text: str = pick(rng, WORDINGS[kind]).format(**words)
    if rng.random() < 0.6:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.2:
        text = text.rstrip("?.")
    if rng.random() < 0.05:
        text = text.upper()
    return text


def _words(thing: Thing) -> dict[str, str]:
    """What a wording says of a thing."""
    return {"a": with_article(thing.name), "n": thing.name, "ns": plural(thing.name)}


Asker = Callable[[Scene, Rng, Sequence[Thing]], Question | None]


def name(scene: Scene, rng: Rng, absent: Sequence[Thing]) -> Question | None:
    """Of a scene with one thing."""
    if len(scene.things) != 1:
        return None
    answer = scene.things[0].name if scene.known else NOT_SURE
    return Question(asked("name", rng), answer, "name")


def is_it(scene: Scene, rng: Rng, absent: Sequence[Thing]) -> Question | None:
    """Its name, alias or kind; or those of something else."""
    if len(scene.things) != 1 or not scene.known:
        return None
    thing = scene.things[0]
    if rng.random() < 0.5:
        said = pick(rng, (thing.name, thing.name, thing.kind, *thing.aliases))
        return Question(asked("is it", rng, a=with_article(said)), "yes", "is it")
    other = pick(rng, absent)
    said = pick(rng, (other.name, other.name, other.kind))
    if thing.is_called(said):
        return None
    return Question(asked("is it", rng, a=with_article(said)), "no", "is it")


def what_kind(scene: Scene, rng: Rng, absent: Sequence[Thing]) -> Question | None:
    if len(scene.things) != 1 or not scene.known:
        return None
    thing = scene.things[0]
    return Question(asked("what kind", rng, n=thing.name), thing.kind, "what kind")


def how_many(scene: Scene, rng: Rng, absent: Sequence[Thing]) -> Question | None:
    return Question(asked("how many", rng), str(len(scene.things)), "how many")


def how_many_of(scene: Scene, rng: Rng, absent: Sequence[Thing]) -> Question | None:
    """Of a name or kind; a third of the answers is zero."""
    if not scene.known:
        return None
    thing = pick(rng, absent) if rng.random() < 1 / 3 else pick(rng, scene.things)
    said = pick(rng, (thing.name, thing.name, thing.name, thing.kind))
    text = asked("how many of", rng, ns=plural(said))
    return Question(text, str(scene.count(said)), "how many of")


def is_there(scene: Scene, rng: Rng, absent: Sequence[Thing]) -> Question | None:
    if not scene.known:
        return None
    here = rng.random() < 0.5
    thing = pick(rng, scene.things if here else absent)
    said = pick(rng, (thing.name, thing.name, thing.name, thing.kind))
    if (scene.count(said) > 0) != here:
        return None
    text = asked("is there", rng, a=with_article(said), ns=plural(said))
    return Question(text, "yes" if here else "no", "is there")


def colour(scene: Scene, rng: Rng, absent: Sequence[Thing]) -> Question | None:
    """Of a thing that has one colour and whose name no other thing has."""
    coloured = [
        thing for thing in scene.things if thing.colour is not None and scene.count(thing.name) == 1
    ]
    if not coloured:
        return None
    thing = pick(rng, coloured)
    kind = "colour" if len(scene.things) == 1 else "colour of"
    return Question(asked(kind, rng, n=thing.name), thing.colour, "colour")


def where(scene: Scene, rng: Rng, absent: Sequence[Thing]) -> Question | None:
    """Where a thing is that lies furthest out on a side, or on two."""
    thing = pick(rng, scene.things)
    answer = side_of(thing, scene)
    if answer is None or scene.count(thing.name) != 1:
        return None
    return Question(asked("where", rng, n=thing.name), answer, "where")


def side_of(thing: Thing, scene: Scene) -> str | None:
    """ "on the left", "at the bottom right"; None of a thing in the midst of others."""
    sides = [side for side in SIDES if scene.outermost(side) is thing]
    across = [side for side in sides if side in ("left", "right")]
    along = [side for side in sides if side in ("top", "bottom")]
    if len(across) == 1 and len(along) == 1:
        return f"at the {along[0]} {across[0]}"
    if len(sides) == 1:
        return AT_SIDE[sides[0]][0]
    return None


def what_is_on(scene: Scene, rng: Rng, absent: Sequence[Thing]) -> Question | None:
    side = pick(rng, SIDES)
    thing = scene.outermost(side)
    if thing is None:
        return None
    text = asked("what is on", rng, side=pick(rng, AT_SIDE[side]))
    return Question(text, thing.name, "what is on")


def is_beside_question(scene: Scene, rng: Rng, absent: Sequence[Thing]) -> Question | None:
    """Left of, right of, above, below: two things whose names say which is meant."""
    pair = _pair(scene, rng)
    if pair is None:
        return None
    first, second = pair
    relation = pick(rng, RELATIONS)
    holds = is_beside(first, second, relation)
    if holds is None:
        return None
    words = {**_words(first), "other": second.name, "rel": pick(rng, SAID_RELATIONS[relation])}
    return Question(asked("is beside", rng, **words), "yes" if holds else "no", "is beside")


def what_is_beside(scene: Scene, rng: Rng, absent: Sequence[Thing]) -> Question | None:
    """The only thing on that side of another one."""
    if len(scene.things) < 2:
        return None
    other, relation = pick(rng, scene.things), pick(rng, RELATIONS)
    if scene.count(other.name) != 1:
        return None
    told = {}
    for thing in scene.things:
        if thing is not other:
            told[thing] = is_beside(thing, other, relation)
    found = [thing for thing, so in told.items() if so]
    if len(found) != 1 or None in told.values():
        return None
    words = {"other": other.name, "rel": pick(rng, SAID_RELATIONS[relation])}
    return Question(asked("what is beside", rng, **words), found[0].name, "what is beside")


def _pair(scene: Scene, rng: Rng) -> tuple[Thing, Thing] | None:
    """Two things at random, each the only one of its name."""
    single = [thing for thing in scene.things if scene.count(thing.name) == 1]
    if len(single) < 2:
        return None
    first, second = rng.permutation(len(single))[:2].tolist()
    return single[first], single[second]


ASKERS: dict[str, Asker] = {
    "name": name,
    "is it": is_it,
    "what kind": what_kind,
    "how many": how_many,
    "how many of": how_many_of,
    "is there": is_there,
    "colour": colour,
    "where": where,
    "what is on": what_is_on,
    "is beside": is_beside_question,
    "what is beside": what_is_beside,
}
BINDING = ("is there", "is beside", "how many of")  # they bind words to the image


def questions(
    scene: Scene,
    rng: Rng,
    count: int,
    absent: Sequence[Thing],
    weights: dict[str, float] | None = None,
) -> list[Question]:
    """Questions at random, by kind as `weights` say (all alike by default), those that the scene
    allows.

    Args:
        absent: things whose names the scene does not have, for the answer no.
    """
    kinds = list(weights or ASKERS)
    shares = np.array([(weights or dict.fromkeys(ASKERS, 1.0))[kind] for kind in kinds])
    found: list[Question] = []
    for _ in range(20 * count):
        if len(found) == count:
            break
        kind = kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))]
        made = ASKERS[kind](scene, rng, absent)
        if made is not None and made not in found:
            found.append(made)
    return found


# Captions


def captions(scene: Scene) -> dict[Length, str]:
    """One caption of each length; each thing once, those of one name together."""
    if not scene.known:
        return dict.fromkeys(LENGTH_PROMPTS, NOT_SURE)
    things = sorted(scene.things, key=lambda thing: thing.box[0])
    largest = max(scene.things, key=lambda thing: thing.box[2] - thing.box[0])
    parts = []
    for said, number in Counter(thing.name for thing in things).items():
        parts.append(with_article(said) if number == 1 else f"{NUMBERS[number]} {plural(said)}")
    return {
        "word": largest.name,
        "short": joined(parts),
        "long": joined([_described(thing, scene) for thing in things]),
    }


def joined(parts: Sequence[str]) -> str:
    if len(parts) == 1:
        return parts[0]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _described(thing: Thing, scene: Scene) -> str:
    """With its colour, and on which side it is where it is furthest out."""
    words = thing.name
    if thing.colour is not None:
        words = f"{thing.colour} {words}"
    words = with_article(words)
    side = side_of(thing, scene)
    if side is None:
        return words
    return f"{words} {side}"


def caption_question(scene: Scene, rng: Rng) -> Question:
    length = pick(rng, tuple(LENGTH_PROMPTS))
    return Question(pick(rng, LENGTH_PROMPTS[length]), captions(scene)[length], f"{length} caption")


# JSON


def scene_value(scene: Scene) -> dict[str, Any]:
    """A scene as JSON, from left to right; `color` is left out where a thing has no one colour."""
    objects = []
    for thing in sorted(scene.things, key=lambda each: each.box[0]):
        told: dict[str, Any] = {"name": thing.name, "kind": thing.kind}
        if thing.colour is not None:
            told["color"] = thing.colour
        objects.append(told)
    return {"count": len(objects), "objects": objects}


def scene_schema() -> dict[str, Any]:
    """That `scene_value` fits; optional members, a list that may be empty, any integer."""
    thing = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "kind": {"type": "string"},
            "color": {"enum": list(COLOURS)},
        },
        "required": ["name", "kind"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {
            "count": {"type": "integer"},
            "objects": {"type": "array", "items": thing},
        },
        "required": ["count", "objects"],
        "additionalProperties": False,
    }
