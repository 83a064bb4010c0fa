"""Scenes as JSON: schemas, the values that a scene gives them, and turns that teach a model to fill
them in.

A turn shows the model its answer in one of three ways: as a scaffold, whose literals stand and
whose values are open; free, with everything open; or up to where the number of an array's items is
decided, of which it is to tell just that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmdiff.prompts import EXTRACT_PROMPT
from mmdiff.structured.schema.serialize import Piece, dumps, outline, pieces
from mmdiff.training.tiny.questions import Facts, facts_of
from mmdiff.training.tiny.scenes import (
    COLOURS,
    MAX_THINGS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    pick,
    reading_order,
    scene_json,
)

Schema = dict[str, Any]
FIELDS = {"shape": SHAPES, "colour": tuple(COLOURS), "size": SIZES, "place": PLACES}
LENGTHS = (2, 4, 8)  # positions of a string that may be anything


@dataclass(frozen=True)
class AnswerPart:
    """A literal, or a value whose slot has at least `length` positions (of 0, as many as the
    value's tokens)."""

    text: str
    slot: bool = False
    length: int = 0
    alike: Sequence[str] = ()  # all that may stand in the slot, which fits the longest
    facts: Facts | None = None


def scene_schema(fields: Sequence[str] = tuple(FIELDS), count: bool = True) -> Schema:
    """What `scenes.scene_json` gives, or some of it."""
    thing = closed({name: {"type": "string", "enum": list(FIELDS[name])} for name in fields})
    things = {"type": "array", "items": thing, "minItems": 1, "maxItems": MAX_THINGS}
    number = {}
    if count:
        number = {"count": {"type": "integer", "minimum": 1, "maximum": MAX_THINGS}}
    return closed({"objects": things, **number})


def closed(properties: dict[str, Any]) -> Schema:
    """An object that has these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _listed(scene: Scene, rng: np.random.Generator) -> tuple[Schema, Any]:
    """All things in reading order, with all or some of what is so of them."""
    fields = list(FIELDS)
    if rng.random() < 0.5:
        fields = [fields[i] for i in sorted(rng.permutation(4)[: 1 + int(rng.random() * 4)])]
    if rng.random() < 0.2:
        rng.shuffle(fields)
    with_count = rng.random() < 0.4
    contents = scene_json(scene)
    value = {"objects": [{name: thing[name] for name in fields} for thing in contents["objects"]]}
    return scene_schema(fields, with_count), {
        **value,
        **({"count": contents["count"]} if with_count else {}),
    }


def _by_shape(scene: Scene, rng: np.random.Generator) -> tuple[Schema, Any]:
    """The colour of the first thing of each shape, null where there is none."""
    found: dict[str, str] = {}
    for thing in reading_order(scene):
        found.setdefault(thing.shape, thing.colour)
    shapes = []
    for i in rng.permutation(len(SHAPES))[: 2 + int(rng.random() * 3)]:
        shapes.append(SHAPES[i])
    maybe = {"enum": [*COLOURS, None]}
    return closed(dict.fromkeys(shapes, maybe)), {shape: found.get(shape) for shape in shapes}


def _first(scene: Scene, rng: np.random.Generator) -> tuple[Schema, Any]:
    """What the first thing is, and how many there are."""
    schema, contents = scene_schema(), scene_json(scene)
    properties = {
        "count": schema["properties"]["count"],
        "first": schema["properties"]["objects"]["items"],
    }
    return closed(properties), {"count": contents["count"], "first": contents["objects"][0]}


def _present(scene: Scene, rng: np.random.Generator) -> tuple[Schema, Any]:
    """Which of some shapes or colours are there."""
    attribute, options = pick(rng, (("shape", SHAPES), ("colour", tuple(COLOURS))))
    there = set()
    for thing in scene.things:
        there.add(getattr(thing, attribute))
    asked = []
    for i in rng.permutation(len(options))[: 2 + int(rng.random() * 4)]:
        asked.append(options[i])
    return closed({name: {"type": "boolean"} for name in asked}), {
        name: name in there for name in asked
    }


SCAFFOLDS, DECISIONS = 0.5, 0.4  # shares of the turns; the rest is free
FORMS: tuple[tuple[Callable[[Scene, np.random.Generator], tuple[Schema, Any]], float], ...] = (
    (_listed, 0.64),
    (_by_shape, 0.12),
    (_first, 0.12),
    (_present, 0.12),
)


def structured(scene: Scene, rng: np.random.Generator) -> tuple[str, list[AnswerPart], int]:
    """A prompt for the scene as JSON, its answer in parts, and how many of them are laid out as a
    scaffold."""
    way = rng.random()
    form: Callable[[Scene, np.random.Generator], tuple[Schema, Any]] = _listed
    if way < SCAFFOLDS:
        form = FORMS[int(rng.choice(len(FORMS), p=[share for _, share in FORMS]))][0]
    schema, value = form(scene, rng)
    mixed = []
    for name, each in schema["properties"].items():
        if None in each.get("enum", ()):
            mixed.append(f"/{name}")
    parts = []
    for piece in pieces(value, mixed):
        parts.append(_part(piece, schema, scene, rng))
    ends = []
    for number, part in enumerate(parts):
        if not part.slot and ("]" in part.text or "},{" in part.text):
            ends.append(number)
    if way < SCAFFOLDS:
        laid_out = len(parts)
    elif way < SCAFFOLDS + DECISIONS:
        laid_out = pick(rng, ends)
    else:
        laid_out = 0
    return EXTRACT_PROMPT.format(outline(schema)), parts, laid_out


def _part(piece: Piece, schema: Schema, scene: Scene, rng: np.random.Generator) -> AnswerPart:
    keys = piece.path.split("/")[1:]
    facts = None
    if len(keys) >= 2 and keys[0] in ("objects", "first"):
        number = 0
        if keys[0] == "objects":
            number = int(keys[1])
        facts = facts_of([reading_order(scene)[number]], scene)
    if not piece.slot:
        return AnswerPart(piece.text, facts=None)
    for key in keys:
        if key.isdigit():
            schema = schema["items"]
        else:
            schema = schema["properties"][key]
    if rng.random() < 0.2 and schema.get("type") == "string":
        return AnswerPart(piece.text, True, pick(rng, LENGTHS), facts=facts)
    spelled = (dumps(each) for each in schema.get("enum", ()))
    quoted = piece.text.startswith('"') or "type" not in schema
    return AnswerPart(
        piece.text, True, 1, tuple(text if quoted else text.strip('"') for text in spelled), facts
    )
