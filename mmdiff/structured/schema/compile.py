"""Compiles JSON Schema to a tree of literals and slots.

The tree's values are meant to fit the schema, and nearly all do; what the tree cannot express
(overlapping `oneOf`, `not`, `if`, `uniqueItems`, `contains` and the like) is left to the validator.
Objects are closed unless they say otherwise: members that are not declared are written where
`additionalProperties`, `patternProperties`, `required`, `minProperties` or the lack of declared
ones call for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache, reduce
from typing import Any

import jsonschema_rs

from mmdiff.structured.regular import language as lang
from mmdiff.structured.regular.compile_limits import CompileLimits, LanguageError, LanguageSizeError
from mmdiff.structured.regular.derivatives import matches, shortest
from mmdiff.structured.regular.formats import FORMATS
from mmdiff.structured.regular.language import Language
from mmdiff.structured.regular.lru_cache import LruCache
from mmdiff.structured.regular.numbers import decimal_multiples, decimals, integers
from mmdiff.structured.regular.regex import compile_regex
from mmdiff.structured.schema.errors import (
    SchemaTooLargeError,
    UnsatisfiableSchemaError,
    UnsupportedSchemaError,
)
from mmdiff.structured.schema.normalize import (
    ABOUT,
    Plain,
    Schemas,
    all_of,
    kind_of,
    may_match,
    same,
)
from mmdiff.structured.schema.serialize import dumps, identity, pointer
from mmdiff.structured.schema.structure import (
    NOWHERE,
    ArrayNode,
    ConcatNode,
    EnumNode,
    LiteralNode,
    Member,
    ObjectNode,
    Ref,
    RegularNode,
    Tree,
    UnionNode,
)

FEW = 100  # numbers in a range that are told one by one
# Decimal places of `multipleOf`, and its digits as a number, up to which it is a language.
PLACES, UNIT = 9, 2000
COUNTED = 24  # characters up to which a string's length is part of its language
NODES = 50_000
ITEMS = 64  # of an array or entries of a map that says no number
ANNOTATIONS = {
    "title",
    "description",
    "default",
    "examples",
    "example",
    "$comment",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$schema",
    "definitions",
    "$defs",
    "id",
    "$id",
}
CONNECTIVES = {"$ref", "allOf", "anyOf", "oneOf", "if", "not", "dependencies", "dependentSchemas"}
ANYTHING = "anything"  # the reference of a value about which nothing is said
NAME = compile_regex(r"^[^\n\r\t]+$")  # what entries are called, if it can be: a line
FLAT = (*ABOUT["string"], *ABOUT["number"])  # keywords that need no other schemas
QUOTE = LiteralNode('"')
_SHORTEST: LruCache[Language, tuple[str | None]] = LruCache(1024)
_Bound = tuple[Fraction | None, bool]  # and whether it is left out itself
_integers, _decimals = lru_cache(256)(integers), lru_cache(256)(decimals)
_decimal_multiples = lru_cache(256)(decimal_multiples)


def compile_tree(root: Any, deadline: CompileLimits) -> Tree:
    """The tree of a schema.

    Raises:
        ScaffoldError: it cannot be honoured, nothing fits it, or it is too large.
    """
    lowering = _Lowering(Schemas(root, deadline), deadline)
    node = lowering.node(root, "")
    while lowering.waiting:
        key, schema, where = lowering.waiting.pop()
        lowering.refs[key] = lowering.fresh(schema, where)
    notes = []
    for where, note in lowering.schemas.notes.items():
        notes.append(f"at {where or 'the root'} of the schema: {note}")
    tree = Tree(node, lowering.refs, tuple(notes))
    if tree.cost(node) == NOWHERE:
        raise UnsatisfiableSchemaError("no value fits", lowering.fault)
    return tree


class _Scalars:
    """Nodes for numbers and strings: regular languages, or their values where those are few."""

    def __init__(self, deadline: CompileLimits) -> None:
        self.deadline = deadline

    def number(self, plain: Plain, kind: str) -> Any | None:
        low, low_open = _bound(plain, "minimum", "exclusiveMinimum", max)
        high, high_open = _bound(plain, "maximum", "exclusiveMaximum", min)
        step = None
        if "multipleOf" in plain:
            step = Fraction(str(plain["multipleOf"]))
        if step is not None and step <= 0:
            raise UnsupportedSchemaError(f"multipleOf must be above 0, not {plain['multipleOf']}")
        if kind == "integer" or (step is not None and step.denominator == 1):
            step = step or Fraction(1)
            # Integers that are multiples of a fraction are multiples of its numerator.
            return self._integer(plain, step.numerator, (low, low_open), (high, high_open))
        if step is not None:
            return self._multiples(plain, step, (low, low_open), (high, high_open))
        return self.words(_decimals(_decimal(low), _decimal(high), low_open, high_open), "plain")

    def _integer(self, plain: Plain, step: int, least: _Bound, most: _Bound) -> Any | None:
        """Multiples of an integer: one by one where they are few, else as a language."""
        first = last = None
        if least[0] is not None:
            first = math.floor(least[0]) + 1 if least[1] else math.ceil(least[0])
        if most[0] is not None:
            last = math.ceil(most[0]) - 1 if most[1] else math.floor(most[0])
        if first is not None and last is not None:
            if first > last:
                return None
            if last - first <= FEW * step:
                return _known(_fitting(range(-(-first // step) * step, last + 1, step), plain))
        return self.words(_integers(first, last, step), "plain")

    def _multiples(self, plain: Plain, step: Fraction, least: _Bound, most: _Bound) -> Any | None:
        """Multiples of a fraction: one by one where they are few, else as a language of
        decimals."""
        low, high = least[0], most[0]
        few = low is not None and high is not None and (high - low) / step <= FEW
        places = _decimal_places(step)
        if not few and places is not None and (unit := int(step * 10**places)) <= UNIT:
            return self.words(
                _decimal_multiples(unit, places, _decimal(low), _decimal(high), least[1], most[1]),
                "plain",
            )
        first = 0
        if low is not None:
            first = math.ceil(low / step)
        elif high is not None:
            first = math.floor(high / step) - FEW
        found: list[float] = []
        for number in range(first, first + FEW + 1):
            value = float(number * step)
            if _fits(value, plain):
                found.append(int(value) if value.is_integer() else value)
        return _known(found)

    def string(self, plain: Plain, where: str) -> RegularNode | None:
        least, most = int(plain.get("minLength", 0)), plain.get("maxLength")
        if most is not None and least > most:
            return None
        parts = []
        for each in plain.get("pattern", ()):
            if isinstance(each, str):
                parts.append(compile_regex(each))
        for each in plain.get("format", ()):
            if each in FORMATS:
                parts.append(FORMATS[each]())
        every = lang.TEXT
        if most is not None and most <= COUNTED:
            parts.append(lang.repeat(every, least, int(most)))
        elif 0 < least <= COUNTED:
            parts.append(lang.repeat(every, least, None))
        words = lang.intersect(lang.ANY, *parts)
        if unequal := [each for each in plain.get("unequal", ()) if isinstance(each, str)]:
            words = lang.intersect(words, lang.complement(lang.words(unequal)))
        return self.words(
            words,
            "json",
            least if least > COUNTED else 0,
            int(most) if most is not None and most > COUNTED else None,
        )

    def words(
        self, words: Language, spelling: Any, least: int = 0, most: int | None = None
    ) -> RegularNode | None:
        bounded = words
        if least or most is not None:
            bounded = lang.intersect(words, lang.repeat(lang.TEXT, least, most))
        if (known := _SHORTEST.get(bounded)) is None:
            known = _SHORTEST.put(
                bounded, ("a" * least if words is lang.ANY else shortest(bounded, self.deadline),)
            )
        found = known[0]
        if found is None:
            return None
        return RegularNode(words, spelling, found, least, most)


class _Lowering:
    def __init__(self, schemas: Schemas, deadline: CompileLimits) -> None:
        self.schemas, self.deadline = schemas, deadline
        self.scalars = _Scalars(deadline)
        self.refs: dict[str, Any] = {}
        self.waiting: list[tuple[str, Any, str]] = []
        self.fault = ""  # where it was first found that nothing fits
        self.nodes = 0
        self.depth = 0

    def node(self, schema: Any, where: str) -> Any:
        """A node for the schema; what refers elsewhere is lowered once, later."""
        if schema is True or (isinstance(schema, Mapping) and set(schema) <= ANNOTATIONS):
            return self._later(ANYTHING, True, where)
        if isinstance(schema, Mapping) and schema.keys() & CONNECTIVES:
            alone = set(schema) - ANNOTATIONS <= {"$ref"} or (self.schemas.old and "$ref" in schema)
            if alone:
                target, path = self.schemas.resolve(schema["$ref"], pointer(where, "$ref"), schema)
                return self._later(f"#{path}", target, path)
            parts = schema.get("allOf")
            if (
                set(schema) - ANNOTATIONS == {"allOf"}
                and isinstance(parts, list)
                and len(parts) == 1
            ):
                return self.node(parts[0], pointer(pointer(where, "allOf"), 0))
            if len(spelled := dumps(schema)) < 5000:
                # Equal words mean the same where all references are read from one base.
                return self._later(
                    f"{where} {spelled}" if self.schemas.embedded else spelled, schema, where
                )
        return self.fresh(schema, where)

    def _later(self, key: str, schema: Any, where: str) -> Ref:
        if key not in self.refs:
            self.refs[key] = UnionNode(())
            self.waiting.append((key, schema, where))
        return Ref(key)

    def fresh(self, schema: Any, where: str) -> Any:
        self.deadline.check()
        self.nodes += 1
        self.depth += 1
        if self.nodes > NODES or self.depth > 100:
            raise SchemaTooLargeError(
                f"it unfolds to more than {NODES} parts, or more than 100 deep", where
            )
        try:
            options = self._options(schema, where)
        finally:
            self.depth -= 1
        if not options and not self.fault:
            self.fault = where
        options = _with_known_joined(options)
        if len(options) == 1:
            return options[0]
        return UnionNode(tuple(options))

    def _options(self, schema: Any, where: str) -> list[Any]:
        """A node for each alternative; those that are alternatives and nothing else keep their
        references."""
        for several in ("anyOf", "oneOf"):
            if (
                isinstance(schema, Mapping)
                and set(schema) - ANNOTATIONS == {several}
                and isinstance(schema[several], list)
            ):
                inside = pointer(where, several)
                nodes = []
                for number, option in enumerate(schema[several]):
                    nodes.append(self.node(option, pointer(inside, number)))
                found = []
                for option in nodes:
                    if not (isinstance(option, UnionNode) and not option.options):
                        found.append(option)
                return found
        result = []
        for plain in self.schemas.alternatives(schema, where):
            if (made := self._plain(plain, where)) is not None:
                result.append(made)
        return result

    def _plain(self, plain: Plain, where: str) -> Any | None:
        """A node for values of one type; None where there are none."""
        kind = plain["type"]
        try:
            if "enum" in plain:
                rest = dict(plain)
                del rest["enum"]
                return _known(_fitting(plain["enum"], rest, kind))
            if kind == "null":
                return _known([None])
            if kind == "boolean":
                return _known(_fitting((True, False), plain))
            if kind in ("integer", "number"):
                return self.scalars.number(plain, kind)
            if kind == "string":
                words = self.scalars.string(plain, where)
                return words and ConcatNode((QUOTE, words, QUOTE))
            if kind == "array":
                return self._array(plain, where)
            return self._object(plain, where)
        except LanguageSizeError as error:
            raise SchemaTooLargeError(str(error), where) from None
        except LanguageError as error:
            raise UnsupportedSchemaError(str(error), where) from None

    def _array(self, plain: Plain, where: str) -> ArrayNode | None:
        schemas = list(plain.get("prefixItems", ()))
        rest = plain.get("items", True)
        least, most = int(plain.get("minItems", 0)), plain.get("maxItems")
        for wanted in plain.get("contains", ()):
            count = int(plain.get("minContains", 1))
            least = max(least, count)
            schemas += [rest] * (count - len(schemas))
            for number, each in enumerate(schemas[:count]):
                schemas[number] = all_of(each, wanted)
        if len(schemas) > 1000 or least > 10_000:
            raise SchemaTooLargeError(
                "more than 1000 items have schemas of their own, or 10,000 are asked for", where
            )
        inside = pointer(where, "items")
        first = []
        for number, each in enumerate(schemas):
            first.append(self.node(each, pointer(pointer(where, "prefixItems"), number)))
        node = None
        if rest is not False:
            node = self.node(rest, inside)
        if most is not None:
            most = int(most)
        else:
            most = max(ITEMS, least)
        if least > most:
            return None
        return ArrayNode(tuple(first), node, least, most, bool(plain.get("uniqueItems")))

    def _object(self, plain: Plain, where: str) -> ObjectNode | None:
        declared, required = dict(plain.get("properties", {})), list(plain.get("required", ()))
        patterns = plain.get("patternProperties", {})
        _check_names(required, where)
        for name in required:
            declared.setdefault(name, None)
        members = []
        for name, schema in declared.items():
            schema = self._member_schema(plain, name, schema)
            if schema is False and name not in required:
                continue
            node: Any = UnionNode(())
            if schema is not False:
                node = self.node(schema, pointer(pointer(where, "properties"), name))
            members.append(Member(name, node, name in required))
        least, most = int(plain.get("minProperties", 0)), plain.get("maxProperties")
        spoken = "additionalProperties" in plain or bool(patterns)
        entries: tuple[tuple[Any, Any], ...] = ()
        if spoken or not members or least > len(members):
            entries = self._entries(plain, declared, where)
        if most is None:
            most = max(ITEMS + len(members), least) if entries else len(members)
        most = int(most)
        if (num_names := _num_names(entries)) is not None:
            most = min(most, len(members) + num_names)
        if most < sum(member.required for member in members):
            return None
        return ObjectNode(tuple(members), entries, least, most, spoken or not members)

    def _member_schema(self, plain: Plain, name: str, schema: Any) -> Any:
        """What is said of a member of this name, at `properties` (None where nothing) and
        elsewhere."""
        alike = []
        for source, each in plain.get("patternProperties", {}).items():
            if may_match(source, name):
                alike.append(each)
        if schema is None and alike:
            schema = True
        elif schema is None:
            schema = plain.get("additionalProperties", True)
        for each in alike:
            schema = all_of(schema, each)
        for each in plain.get("propertyNames", ()):
            if _flat(each) and not _fits(name, each):
                return False
        return schema

    def _entries(self, plain: Plain, declared: Plain, where: str) -> tuple[tuple[Any, Any], ...]:
        """Slots for the names and values of entries that no member declares, of each kind."""
        said = self._said_of_names(plain, where)
        patterns, rest = plain.get("patternProperties", {}), plain.get("additionalProperties", True)
        free = lang.ANY  # names that are not declared
        if declared:
            free = lang.complement(lang.words(declared))
        wide = {}
        for source in patterns:
            wide[source] = lang.complement(compile_regex(source, wide=True))
        found = []
        for source, schema in patterns.items():
            others = dict(wide)
            del others[source]
            words = lang.intersect(compile_regex(source), free)
            key = self._name(lang.intersect(words, *others.values()), said, where)
            if key is None:  # all that it matches others match as well
                key, schema = self._name(words, said, where), reduce(all_of, patterns.values())
            if key is not None and schema is not False:
                found.append(
                    (key, self.node(schema, pointer(pointer(where, "patternProperties"), source)))
                )
        if rest is not False:
            key = self._name(lang.intersect(free, *wide.values()), said, where)
            if key is not None:
                found.append((key, self.node(rest, pointer(where, "additionalProperties"))))
        return tuple(found)

    def _said_of_names(self, plain: Plain, where: str) -> list[Plain]:
        """What `propertyNames` says of strings."""
        said = []
        for each in plain.get("propertyNames", ()):
            for part in self.schemas.alternatives(each, where):
                if part["type"] == "string":
                    said.append(part)
        return said

    def _name(self, words: Language, said: list[Plain], where: str) -> Any | None:
        """A slot for a name: a plain one where that is allowed."""
        if said:
            first = self._plain({**said[0], "type": "string"}, where)
            quoted = None
            if first is not None:
                quoted = _quoted(first)
            if quoted is not None:
                left = [each for each in quoted.values if matches(words, each)]
                return EnumNode(tuple(left), "json") if left else None
            if isinstance(first, ConcatNode) and isinstance(inner := first.parts[1], RegularNode):
                return self.scalars.words(
                    lang.intersect(words, inner.language), "json", inner.least, inner.most
                )
            return None
        return self.scalars.words(lang.intersect(words, NAME), "json") or self.scalars.words(
            lang.intersect(words, lang.ANY), "json"
        )


def _check_names(required: list[Any], where: str) -> None:
    for name in required:
        if not isinstance(name, str):
            raise UnsupportedSchemaError(
                f"required names a member {name!r}", pointer(where, "required")
            )


def _with_known_joined(options: list[Any]) -> list[Any]:
    """The options with one slot, in front, for the values of several types that are all known."""
    values: dict[Any, Any] = {}
    others = []
    for option in options:
        known = _quoted(option)
        if isinstance(option, EnumNode):
            known = option
        if known is None:
            others.append(option)
            continue
        for value in known.values:
            values[identity(value)] = value
    if len(options) - len(others) < 2:
        return options
    return [EnumNode(tuple(values.values())), *others]


def _num_names(entries: tuple[tuple[Any, Any], ...]) -> int | None:
    """How many entries there can be, as no name stands twice; None where their names are not
    listed."""
    count = 0
    for key, _ in entries:
        if not isinstance(key, EnumNode):
            return None
        count += len(key.values)
    return count


def _decimal_places(step: Fraction) -> int | None:
    """Digits behind the point that write all multiples of `step`; None where many do not."""
    for places in range(PLACES + 1):
        if (step * 10**places).denominator == 1:
            return places
    return None


def _fitting(values: Iterable[Any], plain: Plain, kind: str | None = None) -> list[Any]:
    """The values that fit the keywords, and are of the type where one is given."""
    found = []
    for value in values:
        if (kind is None or _of_kind(value, kind)) and _fits(value, plain):
            found.append(value)
    return found


def _known(values: list[Any]) -> Any | None:
    """A slot for one of these values, its quotes outside where all are strings."""
    if not values:
        return None
    if all(isinstance(value, str) for value in values):
        return ConcatNode((QUOTE, EnumNode(tuple(dict.fromkeys(values)), "json"), QUOTE))
    return EnumNode(tuple(values))


def _quoted(node: Any) -> EnumNode | None:
    """The strings of a slot whose quotes are outside."""
    inner = None
    if isinstance(node, ConcatNode) and len(node.parts) == 3:
        inner = node.parts[1]
    if isinstance(inner, EnumNode):
        return inner
    return None


def _of_kind(value: Any, kind: str) -> bool:
    found = kind_of(value)
    if found == "number":
        return kind == "number" or (kind == "integer" and value.is_integer())
    return found == kind or (found, kind) == ("integer", "number")


def _fits(value: Any, plain: Any) -> bool:
    """Whether a value fits the keywords that need no other schemas."""
    if not isinstance(plain, Mapping):
        return plain is not False
    if _is_among(value, plain.get("unequal", ())):
        return False
    told = {}
    for key in FLAT:
        if key in plain:
            told[key] = plain[key]
    for each in _pop_list(told, "format"):
        if not jsonschema_rs.is_valid({"format": each}, value, validate_formats=True):
            return False
    for each in _pop_list(told, "pattern"):
        if isinstance(value, str) and not matches(compile_regex(each), value):
            return False
    if "enum" in plain and not _is_among(value, plain["enum"]):
        return False
    return not told or bool(jsonschema_rs.is_valid(told, value, validate_formats=True))


def _pop_list(plain: Plain, key: str) -> list[Any]:
    """The list at a key, which is taken out; what is not a list stays."""
    if isinstance(plain.get(key), list):
        found: list[Any] = plain.pop(key)
        return found
    return []


def _is_among(value: Any, values: Iterable[Any]) -> bool:
    return any(same(value, each) for each in values)


def _flat(schema: Any) -> bool:
    """Whether the schema speaks of strings by themselves only."""
    return isinstance(schema, Mapping) and set(schema) <= {
        "type",
        "enum",
        "const",
        *ABOUT["string"],
        *ANNOTATIONS,
    }


def _bound(plain: Plain, inside: str, outside: str, tighter: Any) -> _Bound:
    """The tighter of two bounds, and whether it is left out itself."""
    closed = None
    if inside in plain:
        closed = Fraction(str(plain[inside]))
    opened = None
    if outside in plain:
        opened = Fraction(str(plain[outside]))
    if opened is None or closed is None:
        if opened is None:
            return (closed, False)
        return (opened, True)
    if tighter(opened, closed) == opened:
        return (opened, True)
    return (closed, False)


def _decimal(value: Fraction | None) -> Decimal | None:
    if value is None:
        return None
    return Decimal(value.numerator) / Decimal(value.denominator)
