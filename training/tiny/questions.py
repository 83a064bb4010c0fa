"""Questions, captions and phrases about a `Scene`, each with an answer that the scene leaves no
doubt about.

Three parts. `questions` samples over `KINDS`, and includes every wording of easy-VQA. `captions`
writes one caption a length, `caption_facts` reads such text back, `score_caption` compares it with
the scene. `phrases` describes things for contrastive training, and `truth_table` says which phrases
hold of which scenes.

Not covered: free conversation, and text from anyone but these templates (the parser ignores words
it does not know).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from mmdiff import prompts as shared_prompts
from mmdiff.training.tiny.scenes import (
    COLOURS,
    MAX_THINGS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    pick,
    place,
    reading_order,
)

Length = Literal["word", "short", "long"]
MIN_MARGIN = (
    0.12  # of an image's side, between two centres of which one is "left of" or "above" the other
)
NAMES = tuple(COLOURS)


@dataclass(frozen=True)
class Qa:
    question: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Phrase:
    """What one thing may be said to be; None says nothing of that attribute."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    place: str | None = None

    def text(self) -> str:
        adjectives = [word for word in (self.size, self.colour) if word]
        noun = self.shape or "something"
        if self.shape:
            head = _a(" ".join([*adjectives, noun]))
        else:
            head = " ".join([noun, " and ".join(adjectives)]).strip()
        if self.place:
            return f"{head} {_at(self.place)}"
        return head


def describe(thing: Thing, scene: Scene) -> Phrase:
    """All four attributes of a thing of the scene."""
    return Phrase(thing.shape, thing.colour, thing.size, place(thing, scene))


def holds(phrase: Phrase, scene: Scene) -> bool:
    """Whether some thing of the scene is all that the phrase says."""
    return bool(_matches(phrase, scene))


def _matches(phrase: Phrase, scene: Scene) -> list[Thing]:
    said = []
    for name, value in vars(phrase).items():
        if value is not None:
            said.append((name, value))
    found = []
    for t in scene.things:
        if all(getattr(describe(t, scene), name) == value for name, value in said):
            found.append(t)
    return found


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _at(where: str) -> str:
    """ "at the top left", "on the left", "in the center"."""
    return (
        f"{'in' if where == 'center' else 'on' if where in ('left', 'right') else 'at'} the {where}"
    )


def _plural(noun: str) -> str:
    if noun.endswith("s"):
        return f"{noun}es"
    return f"{noun}s"


# Questions

Rng = np.random.Generator
Found = (
    tuple[str, str] | None
)  # a question and its answer; None where the scene allows no such question
YES_NO = ("yes", "no")

# The wordings of easy-VQA; "image" may become "picture", "shape" after a colour "object" or
# "thing".
PRESENT = (
    "is there {a}?",
    "is there {a} in the image?",
    "does the image contain {a}?",
    "is {a} present?",
)
ABSENT = (
    "is there not {a}?",
    "is there not {a} in the image?",
    "does the image not contain {a}?",
    "is no {bare} present?",
)
ONE_SHAPE = (
    "what shape is in the image?",
    "what shape does the image contain?",
    "what shape is present?",
)
ONE_COLOUR = ("what color is the shape?", "what is the color of the shape?")
HOW_MANY = (
    "how many {} are there?",
    "how many {} are in the image?",
    "how many {} does the image contain?",
)
DIRECTIONS = {  # wording: axis and sign of the first thing's offset from the second
    "left of": (0, -1),
    "to the left of": (0, -1),
    "right of": (0, 1),
    "to the right of": (0, 1),
    "above": (1, -1),
    "below": (1, 1),
}


def questions(scene: Scene, rng: Rng, count: int, kinds: Sequence[str] | None = None) -> list[Qa]:
    """At most `count` different questions, sampled evenly over those of the kinds that the scene
    allows."""
    kinds = list(kinds or KINDS)
    found: dict[str, Qa] = {}
    for turn in range(10 * count):
        if len(found) >= count:
            break
        if turn % len(kinds) == 0:
            rng.shuffle(kinds)
        kind = kinds[turn % len(kinds)]
        made = next((made for _ in range(4) if (made := KINDS[kind](scene, rng)) is not None), None)
        if made is not None and made[0] not in found:
            found[made[0]] = Qa(_style(made[0], rng), made[1], kind)
    return list(found.values())


def _style(question: str, rng: Rng) -> str:
    """The spellings, capitals and question marks that people use."""
    if rng.random() < 0.3:
        question = question.replace("color", "colour")
    if rng.random() < 0.3:
        question = re.sub(r"\bgray\b", "grey", question)
    if rng.random() < 0.25:
        question = question.replace("image", "picture")
    if rng.random() < 0.25:
        question = question[0].upper() + question[1:]
    if rng.random() < 0.1:
        return question[:-1]
    return question


def _noun(rng: Rng) -> str:
    return pick(rng, ("shape", "object", "thing"))


SAYINGS = (
    ("shape",),
    ("colour",),
    ("shape", "colour"),
    ("size",),
    ("size", "colour"),
    ("size", "shape", "colour"),
)


def _name(thing: Thing, scene: Scene, rng: Rng, hide: str = "") -> str | None:
    """Words that fit this thing alone, such as "red circle", but do not tell the attribute `hide`;
    None if none do."""
    options = []
    for say in SAYINGS:
        phrase = Phrase(**{attribute: getattr(thing, attribute) for attribute in say})
        if hide not in say and len(_matches(phrase, scene)) == 1:
            options.append(phrase)
    if options:
        return _words(pick(rng, options[:3]), rng)
    return None


def _words(phrase: Phrase, rng: Rng) -> str:
    return " ".join(
        word for word in (phrase.size, phrase.colour, phrase.shape or _noun(rng)) if word
    )


def _clear_place(thing: Thing, scene: Scene) -> bool:
    """Whether "at the top" and so on can mean this thing only: for "top", nothing else is "top
    left" either."""
    where = place(thing, scene)
    others = []
    for other in scene.things:
        if other is not thing:
            others.append(place(other, scene))
    return all(where != other and (" " in where or where not in other.split()) for other in others)


def _ask_shape(scene: Scene, rng: Rng) -> Found:
    thing = pick(rng, scene.things)
    if len(scene.things) == 1 and rng.random() < 0.6:
        return pick(rng, ONE_SHAPE), thing.shape
    if rng.random() < 0.35 and _clear_place(thing, scene):
        return f"{pick(rng, ('what', 'what shape'))} is {_at(place(thing, scene))}?", thing.shape
    name = _name(thing, scene, rng, hide="shape")
    template = pick(
        rng, ("what is the {}?", "what shape is the {}?", "what is the shape of the {}?")
    )
    if name:
        return (template.format(name), thing.shape)
    return None


def _ask_colour(scene: Scene, rng: Rng) -> Found:
    thing = pick(rng, scene.things)
    if len(scene.things) == 1 and rng.random() < 0.5:
        return pick(rng, ONE_COLOUR), thing.colour
    if rng.random() < 0.25 and _clear_place(thing, scene):
        return f"what color is the {_noun(rng)} {_at(place(thing, scene))}?", thing.colour
    name = _name(thing, scene, rng, hide="colour")
    template = pick(rng, ("what color is the {}?", "what is the color of the {}?"))
    if name:
        return (template.format(name), thing.colour)
    return None


def _ask_size(scene: Scene, rng: Rng) -> Found:
    thing = pick(rng, scene.things)
    name = _name(thing, scene, rng, hide="size")
    template = pick(
        rng, ("is the {} small or large?", "is the {} large or small?", "what size is the {}?")
    )
    if name:
        return (template.format(name), thing.size)
    return None


def _ask_where(scene: Scene, rng: Rng) -> Found:
    thing = pick(rng, scene.things)
    name = _name(thing, scene, rng)
    template = pick(
        rng,
        (
            "where is the {}?",
            "where is the {} in the image?",
            "in which part of the image is the {}?",
        ),
    )
    if name:
        return (template.format(name), place(thing, scene))
    return None


def _ask_count(scene: Scene, rng: Rng) -> Found:
    phrase, noun = (
        Phrase(),
        pick(rng, ("objects", "things")),
    )  # "how many shapes" might mean how many kinds
    form, thing = rng.random(), pick(rng, scene.things)
    absent = rng.random() < 0.2
    if form > 0.65:
        phrase = Phrase(shape=pick(rng, SHAPES) if absent else thing.shape)
        noun = _plural(phrase.shape or "")
    elif form > 0.35:
        phrase = Phrase(colour=pick(rng, NAMES) if absent else thing.colour)
        noun = f"{phrase.colour} {_plural(_noun(rng))}"
    template = pick(rng, HOW_MANY)
    return template.format(noun), str(len(_matches(phrase, scene)))


def _claim(scene: Scene, rng: Rng, true: bool) -> Phrase | None:
    """What easy-VQA asks after, a shape or a colour, or both at once; the false ones are mostly
    nearly true."""
    thing, other = pick(rng, scene.things), pick(rng, scene.things)
    form = rng.random()
    if form < 0.35:
        phrase = Phrase(shape=thing.shape if true else pick(rng, SHAPES))
    elif form < 0.65:
        phrase = Phrase(colour=thing.colour if true else pick(rng, NAMES))
    elif true:
        phrase = Phrase(thing.shape, thing.colour)
    elif form < 0.75:
        phrase = Phrase(thing.shape, other.colour)  # both are in the image, but not together
    elif form < 0.87:
        phrase = Phrase(thing.shape, pick(rng, NAMES))
    else:
        phrase = Phrase(pick(rng, SHAPES), thing.colour)
    if holds(phrase, scene) == true:
        return phrase
    return None


def _exists(scene: Scene, rng: Rng, templates: tuple[str, ...], negated: bool) -> Found:
    answer = pick(rng, YES_NO)
    true = (answer == "yes") != negated
    tries = (_claim(scene, rng, true) for _ in range(8))
    phrase = next((claim for claim in tries if claim is not None), None)
    if phrase is None:
        return None
    noun = phrase.shape or ("shape" if rng.random() < 0.6 else _noun(rng))
    bare = noun
    if phrase.colour:
        bare = f"{phrase.colour} {noun}"
    return pick(rng, templates).format(a=_a(bare), bare=bare), answer


def _ask_present(scene: Scene, rng: Rng) -> Found:
    return _exists(scene, rng, PRESENT, negated=False)


def _ask_absent(scene: Scene, rng: Rng) -> Found:
    return _exists(scene, rng, ABSENT, negated=True)


def _is(direction: str, one: Thing, other: Thing, scene: Scene) -> bool | None:
    """Whether `one` is left of (and so on) `other`; None where that is a close call."""
    axis, sign = DIRECTIONS[direction]
    offset = (one.centre[axis] - other.centre[axis]) / (scene.width, scene.height)[axis]
    if abs(offset) >= MIN_MARGIN:
        return sign * offset > 0
    return None


def _pair(scene: Scene, rng: Rng) -> tuple[Thing, Thing] | None:
    if len(scene.things) < 2:
        return None
    first, second = rng.permutation(len(scene.things))[:2]
    return scene.things[first], scene.things[second]


def _ask_relation(scene: Scene, rng: Rng) -> Found:
    pair = _pair(scene, rng)
    if pair is None:
        return None
    direction = pick(rng, tuple(DIRECTIONS))
    true = _is(direction, *pair, scene)
    one = _name(pair[0], scene, rng)
    other = _name(pair[1], scene, rng)
    if true is None or one is None or other is None:
        return None
    return f"is the {one} {direction} the {other}?", "yes" if true else "no"


def _ask_beside(scene: Scene, rng: Rng) -> Found:
    pair = _pair(scene, rng)
    if pair is None or len(scene.things) != 2:
        return None
    true = []
    for d in ("to the left of", "to the right of", "above", "below"):
        if _is(d, *pair, scene):
            true.append(d)
    name = _name(pair[1], scene, rng)
    if name is None or not true:
        return None
    direction = pick(rng, true)
    if rng.random() < 0.3:
        return f"what color is the {_noun(rng)} {direction} the {name}?", pair[0].colour
    return f"what is {direction} the {name}?", pair[0].shape


def _ask_same(scene: Scene, rng: Rng) -> Found:
    """Whether two things share an attribute."""
    found = _likeness(scene, rng)
    if found is None:
        return None
    (one, other), attribute, answer = found
    word = attribute
    if attribute == "colour":
        word = "color"
    if len(scene.things) == 2 and rng.random() < 0.4:
        return (
            f"{pick(rng, ('are the two objects', 'do the two objects have'))} the same {word}?",
            answer,
        )
    names = []
    for thing in (one, other):
        names.append(_name(thing, scene, rng, hide=attribute))
    template = pick(
        rng, ("do the {} and the {} have the same {}?", "are the {} and the {} the same {}?")
    )
    if None not in names:
        return (template.format(*names, word), answer)
    return None


def _likeness(scene: Scene, rng: Rng) -> tuple[tuple[Thing, Thing], str, str] | None:
    """Two things, an attribute, and whether it is the same. The wanted answer comes first: few
    pairs are the same."""
    answer, attribute = pick(rng, YES_NO), pick(rng, ("shape", "colour", "size"))
    pairs = []
    for i, a in enumerate(scene.things):
        for b in scene.things[i + 1 :]:
            pairs.append((a, b))
    fit = []
    for a, b in pairs:
        if (getattr(a, attribute) == getattr(b, attribute)) == (answer == "yes"):
            fit.append((a, b))
    if fit and rng.random() <= SAME_KEPT[answer]:
        return (pick(rng, fit), attribute, answer)
    return None


SAME_KEPT = {"yes": 1.0, "no": 0.85}  # measured: evens out the answers over random scenes
KINDS: dict[str, Callable[[Scene, Rng], Found]] = {
    "shape": _ask_shape,
    "colour": _ask_colour,
    "size": _ask_size,
    "where": _ask_where,
    "count": _ask_count,
    "present": _ask_present,
    "absent": _ask_absent,
    "relation": _ask_relation,
    "beside": _ask_beside,
    "same": _ask_same,
}


# References

GRID = 8  # columns and rows in which a reference's thing is told to lie
FACTS = {  # fact: number of its values
    "shape": len(SHAPES),
    "colour": len(COLOURS),
    "size": len(SIZES),
    "place": len(PLACES),
    "column": GRID,
    "row": GRID,
    "rank": MAX_THINGS,  # in reading order
    "number": MAX_THINGS + 1,
    # Of two things, of which the facts above tell the second: of what kind is the first; is it
    # right of the second, below it, of the same shape, colour, size?
    "first shape": len(SHAPES),
    "first colour": len(COLOURS),
    "first size": len(SIZES),
    "right": 2,
    "below": 2,
    "same shape": 2,
    "same colour": 2,
    "same size": 2,
    "holds": 2,  # whether the answer to a question that compares two things is yes
    # Of the thing that an image's token shows: is its centre there; how many are of its shape, of
    # its colour?
    "centre": 2,
    "of its shape": MAX_THINGS + 1,
    "of its colour": MAX_THINGS + 1,
}
UNKNOWN = (
    -100
)  # value of a fact that a reference leaves open: its things differ in it, or it is not about them
Facts = tuple[int, ...]  # a value for each of FACTS


def tell(known: dict[str, int]) -> Facts:
    """The values of `FACTS`, unknown where not given."""
    return tuple(known.get(fact, UNKNOWN) for fact in FACTS)


@dataclass(frozen=True)
class GroundingPhrase:
    """Words for some things of a scene, or for none, and the values of `FACTS` that are told at the
    last of them."""

    text: str
    facts: Facts
    after: str = ""  # what the question goes on with


def references(scene: Scene, rng: Rng, count: int) -> list[GroundingPhrase]:
    """At most `count` ways to speak of things: by name, by what is said of them, by rank, by place,
    in pairs."""
    ways = (
        _refer_by_name,
        _refer_to_pair,
        _refer_by_likeness,
        _refer_by_rank,
        _refer_by_claim,
        _refer_to_pair,
        _refer_by_likeness,
        _refer_by_place,
    )
    made = (ways[turn % len(ways)](scene, rng) for turn in range(count))
    return list({(said.text, said.after): said for said in made if said}.values())


def _refer_by_name(scene: Scene, rng: Rng) -> GroundingPhrase | None:
    """The red circle."""
    thing = pick(rng, scene.things)
    name = _name(thing, scene, rng)
    if name:
        return GroundingPhrase(f"the {name}", facts_of([thing], scene))
    return None


def _refer_by_claim(scene: Scene, rng: Rng) -> GroundingPhrase | None:
    """A red circle, stars, objects: some of the scene, or none."""
    if rng.random() < 0.1:
        return GroundingPhrase(pick(rng, ("objects", "things")), facts_of(scene.things, scene))
    phrase = _claim(scene, rng, true=rng.random() < 0.5)
    if phrase is None:
        return None
    words = _words(phrase, rng)
    return GroundingPhrase(
        _a(words) if rng.random() < 0.6 else _plural(words),
        facts_of(_matches(phrase, scene), scene),
    )


def _refer_by_rank(scene: Scene, rng: Rng) -> GroundingPhrase | None:
    """Object 2, counted from the left, as captions do."""
    rank = int(rng.random() * len(scene.things))
    return GroundingPhrase(f"object {rank + 1}", facts_of([reading_order(scene)[rank]], scene))


def _refer_by_place(scene: Scene, rng: Rng) -> GroundingPhrase | None:
    """The object at the top left; of two things, also: the object above the red circle."""
    thing = pick(rng, scene.things)
    if len(scene.things) == 2:
        other = scene.things[scene.things[0] is thing]
        name, near = (
            _name(other, scene, rng),
            [way for way in DIRECTIONS if _is(way, thing, other, scene)],
        )
        if name and near:
            return GroundingPhrase(
                f"the {_noun(rng)} {pick(rng, near)} the {name}", facts_of([thing], scene)
            )
    if not _clear_place(thing, scene):
        return None
    return GroundingPhrase(f"the {_noun(rng)} {_at(place(thing, scene))}", facts_of([thing], scene))


def _refer_to_pair(scene: Scene, rng: Rng) -> GroundingPhrase | None:
    """The red circle and the star; or as questions begin, such as: is the red circle left of the
    star."""
    pair = _pair(scene, rng)
    names = []
    for thing in pair or ():
        names.append(_name(thing, scene, rng))
    if pair is None or None in names:
        return None
    if rng.random() < 0.3:
        wording = pick(rng, ("the {} and the {}", "do the {} and the {}", "are the {} and the {}"))
        return GroundingPhrase(wording.format(*names), facts_of_pair(*pair, scene))
    way = pick(rng, tuple(DIRECTIONS))
    facts = facts_of_pair(*pair, scene, holds=_is(way, *pair, scene))
    return GroundingPhrase(f"is the {names[0]} {way} the {names[1]}", facts)


def _refer_by_likeness(scene: Scene, rng: Rng) -> GroundingPhrase | None:
    """Do the red circle and the star (have the same size)."""
    found = _likeness(scene, rng)
    if found is None:
        return None
    pair, attribute, answer = found
    names = []
    for thing in pair:
        names.append(_name(thing, scene, rng, hide=attribute))
    if None in names:
        return None
    verb, after = pick(rng, (("do", " have the same {}"), ("are", " the same {}")))
    facts = facts_of_pair(*pair, scene, holds=answer == "yes")
    word = attribute
    if attribute == "colour":
        word = "color"
    return GroundingPhrase(f"{verb} the {names[0]} and the {names[1]}", facts, after.format(word))


def facts_of(things: Sequence[Thing], scene: Scene) -> Facts:
    """What is the same of all the things, and their number."""
    ranked, names = reading_order(scene), (*ATTRIBUTES, "column", "row", "rank")
    rows = []
    for thing in things:
        rows.append((*_codes(describe(thing, scene)), *_cell(thing, scene), ranked.index(thing)))
    same = {}
    for fact, *of in zip(names, *rows, strict=True):
        if len(set(of)) == 1:
            same[fact] = of[0]
    return tell({**same, "number": len(things)})


def facts_of_pair(first: Thing, second: Thing, scene: Scene, holds: bool | None = None) -> Facts:
    """What the second is, what the first is, how the two compare, and whether what is asked of them
    holds."""
    known = dict(zip(FACTS, facts_of([second], scene), strict=True))
    known_or_not = {
        "right": _is("right of", first, second, scene),
        "below": _is("below", first, second, scene),
    }
    known |= {
        fact: UNKNOWN if so is None else int(so)
        for fact, so in {**known_or_not, "holds": holds}.items()
    }
    for attribute in ("shape", "colour", "size"):
        known[f"first {attribute}"] = CODES[attribute][getattr(first, attribute)]
        known[f"same {attribute}"] = int(getattr(first, attribute) == getattr(second, attribute))
    return tell({**known, "number": 2})


def _cell(thing: Thing, scene: Scene) -> tuple[int, ...]:
    sides = zip(thing.centre, (scene.width, scene.height), strict=True)
    return tuple(min(max(int(GRID * at / side), 0), GRID - 1) for at, side in sides)


# Captions

CAPTION_PROMPTS: dict[Length, tuple[str, ...]] = {  # the first of each is the one to test with
    "word": (
        shared_prompts.CAPTION_PROMPTS["word"],
        "Name the main object in one word.",
        "What is it? One word.",
    ),
    "short": (
        shared_prompts.CAPTION_PROMPTS["short"],
        "Write a short caption.",
        "What is in the picture?",
    ),
    "long": (
        shared_prompts.CAPTION_PROMPTS["long"],
        "Write a long caption.",
        "Describe every object in the picture.",
    ),
}


SINGULAR = {noun: shape for shape in SHAPES for noun in (shape, _plural(shape))}


class Fact(NamedTuple):
    """What a caption says of `number` things; a head such as "5 objects" has no attribute but its
    number."""

    number: int
    size: str | None
    colour: str | None
    shape: str | None
    place: str | None


def captions(scene: Scene, rng: Rng | None = None) -> dict[Length, str]:
    """One caption a length. `rng` changes nothing: a scene has one right caption, so that it can be
    scored."""
    things = reading_order(scene)
    main = min(things, key=lambda thing: thing.size != "large")  # the first of the large ones
    if len(things) <= 3:
        short = _join([Phrase(thing.shape, thing.colour).text() for thing in things])
    else:
        listed = []
        for shape, alike in _groups(scene):
            if len(alike) == 1:
                listed.append(_a(shape))
            else:
                listed.append(f"{len(alike)} {_plural(shape)}")
        short = f"{len(things)} objects: {_join(listed)}"
    return {
        "word": main.shape,
        "short": short,
        "long": _join([describe(thing, scene).text() for thing in things]),
    }


def _groups(scene: Scene) -> list[tuple[str, list[Thing]]]:
    """The shapes that are there, in the order of `SHAPES`, and the things of each."""
    alike = ((shape, [thing for thing in scene.things if thing.shape == shape]) for shape in SHAPES)
    return [(shape, things) for shape, things in alike if things]


def caption_spans(caption: str, scene: Scene) -> list[tuple[int, int, Facts]]:
    """Where a caption of `scene` speaks of which things: first and last + 1 character, and what is
    so of them."""
    about = []
    for thing in reading_order(scene):
        about.append([thing])
    if ":" in caption:
        about = [list(scene.things), *(things for _, things in _groups(scene))]
    parts = list(re.finditer(r"(?:(?!, | and |: ).)+", caption))
    if len(parts) != len(about):
        return []
    found = []
    for part, things in zip(parts, about, strict=True):
        found.append((*part.span(), facts_of(things, scene)))
    return found


def _join(parts: list[str]) -> str:
    if len(parts) == 1:
        return parts[0]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def caption_facts(text: str) -> Counter[Fact]:
    """Read a caption back, one fact for each "a ..." or "2 ..."; words that no caption has are
    passed over."""
    facts: Counter[Fact] = Counter()
    for part in re.split(r"[,:.;]|\band\b", text.lower()):
        words = re.sub(r"\bgrey\b", "gray", part).split()
        number = next((int(word) for word in words if re.fullmatch("[0-9]{1,3}", word)), 1)
        shape = next((SINGULAR[word] for word in words if word in SINGULAR), None)
        colour = next((word for word in words if word in COLOURS), None)
        size = next((word for word in words if word in SIZES), None)
        where = " ".join(
            word for word in words if word in {"top", "bottom", "left", "right", "center"}
        )
        head = any(word in ("object", "objects") for word in words)
        fact = Fact(number, size, colour, shape, where if where in PLACES else None)
        if head or any(fact[1:]):
            facts[fact] += 1
    return facts


def score_caption(text: str, scene: Scene, length: Length = "long") -> tuple[int, int]:
    """Facts right, and facts in all, of a caption that should be of this length.

    Each attribute of each thing is one fact, and so is the head's count. The things of the text are
    matched with those of the right caption as well as can be; a thing too many adds its facts to
    the total, as wrong ones.
    """
    head, wanted = _unroll(caption_facts(captions(scene)[length]))
    said_head, said = _unroll(caption_facts(text))
    best = _best_match(said, wanted)
    spare = sorted(len(thing) for thing in said)[: max(len(said) - len(wanted), 0)]
    right = best + (head is not None and head == said_head)
    return right, sum(map(len, wanted)) + (head is not None) + sum(spare)


def _unroll(facts: Counter[Fact]) -> tuple[int | None, list[frozenset[str]]]:
    """The head's count, and the attributes of each thing (at most 4 times as many as an image
    has)."""
    head, things = None, []
    for fact, times in facts.items():
        attributes = frozenset(value for value in fact[1:] if value)
        if attributes:
            things += [attributes] * min(times * fact.number, 4 * MAX_THINGS)
        else:
            head = fact.number
    return head, things[: 4 * MAX_THINGS]


def _best_match(said: list[frozenset[str]], wanted: list[frozenset[str]]) -> int:
    """The most attributes that agree over all one-to-one matchings; over sets of the wanted, which
    are 6 at most."""
    best = {0: 0}
    for thing in said:
        step = dict(best)
        for taken, score in best.items():
            for i, other in enumerate(wanted):
                if not taken >> i & 1:
                    step[taken | 1 << i] = max(
                        step.get(taken | 1 << i, 0), score + len(thing & other)
                    )
        best = step
    return max(best.values())


# Phrases

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": NAMES,
    "size": SIZES,
    "place": PLACES,
}
CODES = {name: {value: i for i, value in enumerate(values)} for name, values in ATTRIBUTES.items()}


def phrases(scene: Scene, rng: Rng, count: int) -> list[Phrase]:
    """Phrases of one to four attributes: every other one true of the scene, the rest with one
    attribute changed.

    A changed one may still be true, of another thing; `truth_table` tells.
    """
    made = []
    for i in range(count):
        full = describe(pick(rng, scene.things), scene)
        kept = set(rng.permutation(list(ATTRIBUTES))[: 1 + int(rng.random() * 4)])
        phrase = replace(full, **{name: None for name in ATTRIBUTES if name not in kept})
        if i % 2 == 1:
            changed = pick(rng, sorted(kept))
            others = [value for value in ATTRIBUTES[changed] if value != getattr(full, changed)]
            phrase = replace(phrase, **{changed: pick(rng, others)})
        made.append(phrase)
    return made


def _codes(phrase: Phrase) -> tuple[int, ...]:
    """The index of each attribute's value in `ATTRIBUTES`, -1 for what is not said."""
    return tuple(CODES[name].get(getattr(phrase, name), -1) for name in ATTRIBUTES)


def truth_table(
    phrases: Sequence[Phrase], scenes: Sequence[Scene]
) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Scenes x phrases: `holds` of each pair, by comparing small integers."""
    said = np.array([_codes(phrase) for phrase in phrases], np.int8)
    things = np.full(
        (len(scenes), max(len(scene.things) for scene in scenes), len(ATTRIBUTES)), -2, np.int8
    )
    for row, scene in zip(things, scenes, strict=True):
        for codes, thing in zip(row, scene.things, strict=False):
            codes[:] = _codes(describe(thing, scene))
    agree = things[:, :, 0, None] > -2  # nothing is true of the padding, not even the empty phrase
    for i in range(len(ATTRIBUTES)):
        agree = agree & ((things[:, :, i, None] == said[:, i]) | (said[:, i] < 0))
    return np.asarray(agree.any(1))
