"""How structured answers are spelled: compact JSON in pieces, each tokenised by itself, and a
prompt that outlines it.

Literals are what the structure fixes (braces, keys, quotes, commas), slots are the values between
them. Training and decoding spell a value alike, so tokens never reach over a border.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple


class Piece(NamedTuple):
    """A stretch of text that is tokenised by itself; `path` is the JSON pointer of the value that
    it belongs to."""

    text: str
    slot: bool
    path: str


def dumps(value: Any) -> str:
    """Compact JSON in UTF-8; a ValueError for numbers that JSON does not have."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def identity(value: Any) -> str:
    """A text that equal values share: 1 and 1.0 are equal, and true is neither."""
    return dumps(int(value) if isinstance(value, float) and value.is_integer() else value)


def pieces(value: Any, mixed: Collection[str] = ()) -> list[Piece]:
    """The literals and slots that spell a JSON value, in turn.

    The quotes of a string belong to the literals, but not at the paths `mixed`, where it might be
    no string.
    """
    joined: list[Piece] = []
    for piece in _pieces(value, "", mixed):
        if joined and not piece.slot and not joined[-1].slot:
            joined[-1] = joined[-1]._replace(text=joined[-1].text + piece.text)
        else:
            joined.append(piece)
    return joined


def _pieces(value: Any, path: str, mixed: Collection[str]) -> Iterator[Piece]:
    if isinstance(value, Mapping):
        yield Piece("{", False, path)
        for number, (key, item) in enumerate(value.items()):
            yield Piece(f"{',' if number else ''}{dumps(key)}:", False, path)
            yield from _pieces(item, pointer(path, key), mixed)
        yield Piece("}", False, path)
    elif isinstance(value, list | tuple):
        yield Piece("[", False, path)
        for number, item in enumerate(value):
            if number:
                yield Piece(",", False, path)
            yield from _pieces(item, pointer(path, number), mixed)
        yield Piece("]", False, path)
    elif isinstance(value, str) and path not in mixed:
        yield Piece('"', False, path)
        yield Piece(dumps(value)[1:-1], True, path)
        yield Piece('"', False, path)
    else:
        yield Piece(dumps(value), True, path)


def slot_ids(encode: Callable[[str], Sequence[int]], text: str) -> list[int]:
    """The tokens of what stands in a slot; quotes, where they are in it, are tokens of their
    own."""
    if not text.startswith('"'):
        return list(encode(text))
    quote = encode('"')
    return [*quote, *encode(text[1:-1]), *quote]


def pointer(path: str, key: str | int) -> str:
    """The JSON pointer of a member (RFC 6901)."""
    return f"{path}/{str(key).replace('~', '~0').replace('/', '~1')}"


def outline(schema: Any, depth: int = 4) -> str:
    """A line that shows what is wanted: names, and an example of each type. References are not
    followed."""
    if not isinstance(schema, Mapping):
        if schema is False:
            return "null"
        return '""'
    for several in ("anyOf", "oneOf"):
        if schema.get(several):
            return "|".join(dict.fromkeys(outline(each, depth) for each in schema[several]))
    if "const" in schema:
        return dumps(schema["const"])
    if "enum" in schema:
        few = len(schema["enum"]) <= 3
        shown = (
            dumps(each) if few else outline({"type": _type_of(each)}, depth)
            for each in schema["enum"]
        )
        return "|".join(dict.fromkeys(shown))
    kinds = schema.get(
        "type", "object" if "properties" in schema else "array" if "items" in schema else "string"
    )
    if isinstance(kinds, list):
        return "|".join(dict.fromkeys(outline({**schema, "type": kind}, depth) for kind in kinds))
    if kinds == "object":
        required = schema.get("required", ())
        members = (
            f"{dumps(key)}{'' if key in required else '?'}:{outline(each, depth - 1)}"
            for key, each in schema.get("properties", {}).items()
        )
        return "{" + (",".join(members) if depth else "") + "}"
    if kinds == "array":
        return "[" + (outline(schema.get("items", True), depth - 1) if depth else "") + "]"
    return {"string": '""', "integer": "0", "number": "0.0", "boolean": "true"}.get(kinds, "null")


def _type_of(value: Any) -> str:
    kinds = {
        str: "string",
        bool: "boolean",
        int: "integer",
        float: "number",
        type(None): "null",
        list: "array",
    }
    return kinds.get(type(value), "object")
