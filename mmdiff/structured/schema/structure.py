"""The tree that a schema is compiled to: literals, slots and structural decisions, and walks
through it.

A walk, given what is decided, writes out literals and slots in order, takes the shortest way
wherever nothing is decided yet, and says where that was. Decisions have names that stay the same
from walk to walk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

from mmdiff.structured.regular.compile_limits import still_time
from mmdiff.structured.regular.language import Language
from mmdiff.structured.schema.errors import SchemaTooLargeError
from mmdiff.structured.schema.serialize import dumps, pointer

DEEP = 120  # values inside each other
SHOWN = 6  # values or members of an option that its label names
Name = tuple[str, str, int]  # of a decision: where, of what kind, and which one there
NOWHERE = float("inf")  # cost of what has no finite spelling


@dataclass(frozen=True, eq=False)
class LiteralNode:
    """A literal."""

    text: str


@dataclass(frozen=True, eq=False)
class EnumNode:
    """A slot for one of a few values.

    They are spelled as JSON values, as they stand inside the quotes of a JSON string ("json"), or
    as plain texts, with `before` in front of them. `ends` where the answer's end follows the value
    inside the slot, before PAD, as it does in a free answer.
    """

    values: tuple[Any, ...]
    spelling: Literal["value", "json", "plain"] = "value"
    before: str = ""
    ends: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        found = []
        for value in self.values:
            if self.spelling == "plain":
                found.append(self.before + value)
            elif self.spelling == "json":
                found.append(dumps(value)[1:-1])
            else:
                found.append(dumps(value))
        return tuple(found)


@dataclass(frozen=True, eq=False)
class RegularNode:
    """A slot for a word of a language, in plain spelling or as it stands inside the quotes of a
    JSON string.

    `least` and `most` bound the word's characters, besides what the language says.
    """

    language: Language
    spelling: Literal["json", "plain"]
    shortest: str
    least: int = 0
    most: int | None = None


@dataclass(frozen=True, eq=False)
class ConcatNode:
    """One after another."""

    parts: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class UnionNode:
    """One of several structures."""

    options: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class ArrayNode:
    """Items: those of `first` by their number, then any number of `rest`, in all from `least` to
    `most`.

    Where they are to be `distinct`, no two choices among them may be the same value.
    """

    first: tuple[Any, ...]
    rest: Any | None
    least: int
    most: int
    distinct: bool = False


class Member(NamedTuple):
    name: str
    node: Any
    required: bool


@dataclass(frozen=True, eq=False)
class ObjectNode:
    """Members in order, optional ones left out or not, then entries with names of their own.

    `entries` are kinds of them, each a key and a value. They are written where `least` asks for
    them, and where `open` as many as it is decided.
    """

    members: tuple[Member, ...]
    entries: tuple[tuple[Any, Any], ...]
    least: int
    most: int
    open: bool


@dataclass(frozen=True, eq=False)
class Ref:
    """A node that is looked up by its key, so that it may hold itself."""

    key: str


class SlotRef(NamedTuple):
    """A slot where a walk came by; `path` is the JSON pointer of its value, or of the object whose
    key it is.

    Choices of one `group` must be different values.
    """

    node: EnumNode | RegularNode
    path: str
    group: str = ""


class OpenDecision(NamedTuple):
    """A decision that was not made: after how many pieces, and the options that there are (the
    taken one first)."""

    name: Name
    at: int
    options: tuple[int, ...]


class Made(NamedTuple):
    """A decision on the way of a walk: what was chosen, and a label of each option."""

    name: Name
    chosen: int
    labels: Mapping[int, str]


@dataclass
class Expansion:
    """Literals and slots in turn, the decisions that were not made, and those that were, with what
    they chose."""

    pieces: list[str | SlotRef] = field(default_factory=list)
    pending: list[OpenDecision] = field(default_factory=list)
    made: list[Made] = field(default_factory=list)


class Tree:
    """A root, the nodes that refer to each other, and what the shortest spelling of each costs."""

    def __init__(self, root: Any, refs: Mapping[str, Any], notes: tuple[str, ...] = ()) -> None:
        self.root, self.refs = root, refs
        self.notes = notes  # what of the schema is not all in the tree
        self.costs: dict[str, float] = dict.fromkeys(refs, NOWHERE)
        for _ in range(len(refs) + 1):  # each round lets finite costs reach one reference further
            found = {}
            for key, node in refs.items():
                found[key] = self._cost(node, {})
            if found == self.costs:
                break
            self.costs = found
        self._known: dict[int, float] = {}
        self._orders: dict[int, list[int]] = {}

    def cost(self, node: Any) -> float:
        """Characters of the node's shortest spelling; infinite where it has none."""
        return self._cost(node, self._known)

    def walk(self, decisions: Mapping[Name, int]) -> Expansion:
        """Write the tree out."""
        walk = Expansion()
        self._walk(self.root, "", 0, 0, decisions, walk)
        return walk

    def _cost(self, node: Any, known: dict[int, float]) -> float:
        if isinstance(node, Ref):
            return self.costs[node.key]
        if id(node) not in known:
            known[id(node)] = self._count(node, known)
        return known[id(node)]

    def _count(self, node: Any, known: dict[int, float]) -> float:
        still_time()
        match node:
            case LiteralNode():
                return len(node.text)
            case EnumNode():
                return min(map(len, node.texts), default=NOWHERE)
            case RegularNode():
                return max(len(node.shortest), node.least)
            case ConcatNode():
                return sum(self._cost(part, known) for part in node.parts)
            case UnionNode():
                return min((self._cost(option, known) for option in node.options), default=NOWHERE)
            case ArrayNode():
                return self._count_array(node, known)
            case ObjectNode():
                return self._count_object(node, known)
            case _:
                return NOWHERE

    def _count_array(self, node: ArrayNode, known: dict[int, float]) -> float:
        first = [self._cost(item, known) for item in node.first[: node.least]]
        more = node.least - len(first)
        rest = 0.0
        if more > 0 and node.rest is None:
            rest = NOWHERE
        elif more > 0:
            rest = more * self._cost(node.rest, known)
        return 2 + sum(first) + rest + max(node.least - 1, 0)

    def _count_object(self, node: ObjectNode, known: dict[int, float]) -> float:
        told, spare = [], []
        for member in node.members:
            cost = len(dumps(member.name)) + 2 + self._cost(member.node, known)
            if member.required:
                told.append(cost)
            else:
                spare.append(cost)
        missing = max(node.least - len(told), 0)
        told += sorted(spare)[:missing]
        if missing > len(spare):
            cheapest = NOWHERE
            for key, value in node.entries:
                cheapest = min(cheapest, self._cost(key, known) + self._cost(value, known))
            told += [2 + cheapest] * (missing - len(spare))
        return 2 + sum(told)

    def _walk(
        self,
        node: Any,
        path: str,
        nested: int,
        depth: int,
        decisions: Mapping[Name, int],
        walk: Expansion,
    ) -> None:
        still_time()
        if depth > DEEP:
            raise SchemaTooLargeError(f"values stand more than {DEEP} deep in each other", path)
        match node:
            case Ref():
                self._walk(self.refs[node.key], path, nested, depth + 1, decisions, walk)
            case LiteralNode():
                _write(walk, node.text)
            case EnumNode() | RegularNode():
                _write_slot(walk, node, path)
            case ConcatNode():
                for part in node.parts:
                    self._walk(part, path, nested, depth + 1, decisions, walk)
            case UnionNode():
                order = self._order(node)
                chosen = _decide(
                    walk,
                    decisions,
                    (path, "either", nested),
                    order,
                    lambda option: _label(node.options[option], self.refs),
                )
                self._walk(node.options[chosen], path, nested + 1, depth + 1, decisions, walk)
            case ArrayNode():
                self._walk_array(node, path, depth, decisions, walk)
            case ObjectNode():
                self._walk_object(node, path, depth, decisions, walk)

    def _order(self, node: UnionNode) -> list[int]:
        """The options that have a spelling, the shortest first."""
        if id(node) not in self._orders:
            finite = []
            for number, option in enumerate(node.options):
                if self.cost(option) < NOWHERE:
                    finite.append(number)
            self._orders[id(node)] = sorted(
                finite, key=lambda number: self.cost(node.options[number])
            )
        return self._orders[id(node)]

    def _walk_array(
        self, node: ArrayNode, path: str, depth: int, decisions: Mapping[Name, int], walk: Expansion
    ) -> None:
        _write(walk, "[")
        number, most = 0, node.most
        if node.distinct and (values := _values(node.rest, self.refs)):
            most = min(most, len(node.first) + len(values))
        while True:
            item = node.first[number] if number < len(node.first) else node.rest
            possible = number < most and item is not None and self.cost(item) < NOWHERE
            if number >= node.least and not (
                possible and _decide(walk, decisions, (path, "more", number), [0, 1])
            ):
                break
            _write(walk, "," if number else "")
            start = len(walk.pieces)
            self._walk(item, pointer(path, number), 0, depth + 1, decisions, walk)
            if node.distinct:
                _group(walk, start, pointer(path, number), pointer(path, "*"))
            number += 1
        _write(walk, "]")

    def _walk_object(
        self,
        node: ObjectNode,
        path: str,
        depth: int,
        decisions: Mapping[Name, int],
        walk: Expansion,
    ) -> None:
        _write(walk, "{")
        at = present = 0
        members = []
        for member in node.members:
            if self.cost(member.node) < NOWHERE or member.required:
                members.append(member)
        while at < len(members):
            end = next((n for n in range(at, len(members)) if members[n].required), len(members))
            if at < end:  # optional members, then one that is not; which comes next is one decision
                required = sum(member.required for member in members[end:])
                spare = sum(not member.required for member in members[at:])
                short = node.least - present - required
                options = []
                if present + required < node.most:
                    options = [*range(at, end)]
                # Skipping is not an option where as many members are missing as optional ones are
                # left after it.
                if node.entries or short <= spare - (end - at) or not options:
                    options = [end, *options]
                at = _decide(
                    walk, decisions, (path, "next", at), options, partial(_name, members[:end])
                )
            if at < len(members):
                _write(walk, f"{',' if present else ''}{dumps(members[at].name)}:")
                self._walk(
                    members[at].node, pointer(path, members[at].name), 0, depth + 1, decisions, walk
                )
                at, present = at + 1, present + 1
        self._walk_entries(node, path, present, depth, decisions, walk)
        _write(walk, "}")

    def _walk_entries(
        self,
        node: ObjectNode,
        path: str,
        present: int,
        depth: int,
        decisions: Mapping[Name, int],
        walk: Expansion,
    ) -> None:
        costs = {}
        for kind, (key, value) in enumerate(node.entries):
            cost = self.cost(key) + self.cost(value)
            if cost < NOWHERE:
                costs[kind] = cost
        kinds = sorted(costs, key=lambda kind: costs[kind])
        number = 0
        while present + number < node.most and kinds:
            if present + number >= node.least and not (
                node.open and _decide(walk, decisions, (path, "more", number), [0, 1])
            ):
                break
            inner = pointer(path, f"*{number}")
            key, value = node.entries[
                _decide(walk, decisions, (inner, "kind", 0), kinds, lambda kind: f"entry {kind}")
            ]
            _write(walk, '"' if not present + number else ',"')
            start = len(walk.pieces)
            self._walk(key, inner, 0, depth + 1, decisions, walk)
            _group(walk, start, inner, pointer(path, "*"))
            _write(walk, '":')
            self._walk(value, inner, 1, depth + 1, decisions, walk)
            number += 1


def _values(node: Any, refs: Mapping[str, Any], depth: int = 0) -> tuple[Any, ...]:
    """The values of a slot of choices, with quotes or without; none for what is not such a
    slot."""
    match node:
        case Ref() if depth < SHOWN:
            return _values(refs[node.key], refs, depth + 1)
        case ConcatNode() if len(node.parts) == 3:
            return _values(node.parts[1], refs, SHOWN)
        case EnumNode():
            return node.values
        case _:
            return ()


def _label(node: Any, refs: Mapping[str, Any], depth: int = 0) -> str:
    """What values of a node are, in short."""
    match node:
        case Ref() if depth < SHOWN:
            return _label(refs[node.key], refs, depth + 1)
        case UnionNode() if depth < SHOWN:
            labels: dict[str, None] = {}
            for option in node.options[:SHOWN]:
                labels[_label(option, refs, depth + 1)] = None
            return " or ".join(labels)
        case EnumNode():
            return ", ".join(node.texts[:SHOWN])
        case RegularNode():
            return "number"
        case ConcatNode():
            if isinstance(node.parts[1], RegularNode):
                return "string"
            return _label(node.parts[1], refs)
        case ArrayNode():
            return "array"
        case ObjectNode():
            names = [member.name for member in node.members[:SHOWN]]
            return f"object of {', '.join(names)}".removesuffix(" of ")
        case _:
            return "value"


def _name(members: list[Member], option: int) -> str:
    """The name of a member; none for what stands behind them."""
    if option < len(members):
        return members[option].name
    return ""


def _group(walk: Expansion, start: int, path: str, group: str) -> None:
    """Put the choices of one path, among the pieces from `start` on, into a group."""
    for number in range(start, len(walk.pieces)):
        piece = walk.pieces[number]
        if isinstance(piece, SlotRef) and piece.path == path and isinstance(piece.node, EnumNode):
            walk.pieces[number] = piece._replace(group=group)


def _write(walk: Expansion, text: str) -> None:
    """Literals next to each other are one."""
    if walk.pieces and isinstance(last := walk.pieces[-1], str):
        walk.pieces[-1] = last + text
    elif text:
        walk.pieces.append(text)


def _write_slot(walk: Expansion, node: EnumNode | RegularNode, path: str) -> None:
    """A slot, or the only value it can have."""
    if isinstance(node, EnumNode) and len(node.values) == 1:
        _write(walk, node.texts[0])
    else:
        walk.pieces.append(SlotRef(node, path))


def _decide(
    walk: Expansion,
    decisions: Mapping[Name, int],
    name: Name,
    options: list[int],
    label: Callable[[int], str] = str,
) -> int:
    if name in decisions and decisions[name] in options:
        if len(options) > 1:
            walk.made.append(
                Made(name, decisions[name], {option: label(option) for option in options})
            )
        return decisions[name]
    if len(options) > 1:
        walk.pending.append(OpenDecision(name, len(walk.pieces), tuple(options)))
    return options[0]
