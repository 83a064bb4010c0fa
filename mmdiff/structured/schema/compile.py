"""From JSON Schema to a tree of literals and slots: `lower`.

The tree's values are meant to fit the schema, and nearly all do; what the tree cannot express
(overlapping `oneOf`, `not`, `if`, `uniqueItems`, `contains` and the like) is left to the validator.
Objects are closed unless they say
otherwise: members that are not declared are written where `additionalProperties`,
`patternProperties`, `required`, `minProperties` or the lack of declared ones call for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
PLACES, UNIT = (
    9,
    2000,
)  # decimal places of `multipleOf`, and its digits as a number, up to which it is a language
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
    notes = tuple(
        f"at {where or 'the root'} of the schema: {note}"
        for where, note in lowering.schemas.notes.items()
    )
    tree = Tree(node, lowering.refs, notes)
    if tree.cost(node) == NOWHERE:
        raise UnsatisfiableSchemaError("no value fits", lowering.fault)
    return tree


class _Lowering:
    def __init__(self, schemas: Schemas, deadline: CompileLimits) -> None:
        self.schemas, self.deadline = schemas, deadline
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
        scalars = [
            option
            for option in options
            if isinstance(option, EnumNode) or _quoted(option) is not None
        ]
        if len(scalars) > 1:  # values of several types that are all known: one slot for them
            values = {
                identity(value): value
                for option in scalars
                for value in (_quoted(option) or option).values
            }
            options = [
                EnumNode(tuple(values.values())),
                *(option for option in options if option not in scalars),
            ]
        return options[0] if len(options) == 1 else UnionNode(tuple(options))

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
                nodes = [
                    self.node(option, pointer(inside, number))
                    for number, option in enumerate(schema[several])
                ]
                return [
                    option
                    for option in nodes
                    if not (isinstance(option, UnionNode) and not option.options)
                ]
        return [
            made
            for plain in self.schemas.alternatives(schema, where)
            if (made := self._plain(plain, where)) is not None
        ]

    def _plain(self, plain: Plain, where: str) -> Any | None:
        """A node for values of one type; None where there are none."""
        kind = plain["type"]
        try:
            if "enum" in plain:
                rest = {key: value for key, value in plain.items() if key != "enum"}
                return _known(
                    [each for each in plain["enum"] if _of_kind(each, kind) and _fits(each, rest)]
                )
            if kind == "null":
                return _known([None])
            if kind == "boolean":
                return _known([each for each in (True, False) if _fits(each, plain)])
            if kind in ("integer", "number"):
                return self._number(plain, kind)
            if kind == "string":
                words = self._string(plain, where)
                return words and ConcatNode((QUOTE, words, QUOTE))
            return self._array(plain, where) if kind == "array" else self._object(plain, where)
        except LanguageError as error:
            kind = (
                SchemaTooLargeError
                if isinstance(error, LanguageSizeError)
                else UnsupportedSchemaError
            )
            raise kind(str(error), where) from None

    def _number(self, plain: Plain, kind: str) -> Any | None:
        low, low_open = _bound(plain, "minimum", "exclusiveMinimum", max)
        high, high_open = _bound(plain, "maximum", "exclusiveMaximum", min)
        step = Fraction(str(plain["multipleOf"])) if "multipleOf" in plain else None
        if step is not None and step <= 0:
            raise UnsupportedSchemaError(f"multipleOf must be above 0, not {plain['multipleOf']}")
        if kind == "integer" or (step is not None and step.denominator == 1):
            step = step or Fraction(1)
            whole = (
                step.numerator
            )  # integers that are multiples of a fraction are multiples of its numerator
            first = None if low is None else math.floor(low) + 1 if low_open else math.ceil(low)
            last = None if high is None else math.ceil(high) - 1 if high_open else math.floor(high)
            if first is not None and last is not None:
                if first > last:
                    return None
                if last - first <= FEW * whole:
                    found = range(-(-first // whole) * whole, last + 1, whole)
                    return _known([each for each in found if _fits(each, plain)])
            return self._words(_integers(first, last, whole), "plain")
        if step is not None:
            return self._multiples(plain, step, (low, low_open), (high, high_open))
        return self._words(_decimals(_decimal(low), _decimal(high), low_open, high_open), "plain")

    def _multiples(self, plain: Plain, step: Fraction, least: _Bound, most: _Bound) -> Any | None:
        """Multiples of a fraction: one by one where they are few, else as a language of
        decimals."""
        low, high = least[0], most[0]
        few = low is not None and high is not None and (high - low) / step <= FEW
        places = next(
            (places for places in range(PLACES + 1) if (step * 10**places).denominator == 1), None
        )
        if not few and places is not None and (unit := int(step * 10**places)) <= UNIT:
            return self._words(
                _decimal_multiples(unit, places, _decimal(low), _decimal(high), least[1], most[1]),
                "plain",
            )
        first = (
            0
            if low is None and high is None
            else math.ceil(low / step)
            if low is not None
            else (math.floor(high / step) - FEW if high is not None else 0)
        )
        values = (float(number * step) for number in range(first, first + FEW + 1))
        return _known(
            [int(each) if each.is_integer() else each for each in values if _fits(each, plain)]
        )

    def _string(self, plain: Plain, where: str) -> RegularNode | None:
        least, most = int(plain.get("minLength", 0)), plain.get("maxLength")
        if most is not None and least > most:
            return None
        parts = [compile_regex(each) for each in plain.get("pattern", ()) if isinstance(each, str)]
        parts += [FORMATS[each]() for each in plain.get("format", ()) if each in FORMATS]
        every = lang.TEXT
        if most is not None and most <= COUNTED:
            parts.append(lang.repeat(every, least, int(most)))
        elif 0 < least <= COUNTED:
            parts.append(lang.repeat(every, least, None))
        words = lang.intersect(lang.ANY, *parts)
        if unequal := [each for each in plain.get("unequal", ()) if isinstance(each, str)]:
            words = lang.intersect(words, lang.complement(lang.words(unequal)))
        return self._words(
            words,
            "json",
            least if least > COUNTED else 0,
            int(most) if most is not None and most > COUNTED else None,
        )

    def _words(
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
        return None if found is None else RegularNode(words, spelling, found, least, most)

    def _array(self, plain: Plain, where: str) -> ArrayNode | None:
        schemas = list(plain.get("prefixItems", ()))
        rest = plain.get("items", True)
        least, most = int(plain.get("minItems", 0)), plain.get("maxItems")
        for wanted in plain.get("contains", ()):
            count = int(plain.get("minContains", 1))
            least = max(least, count)
            schemas += [rest] * (count - len(schemas))
            schemas[:count] = [all_of(each, wanted) for each in schemas[:count]]
        if len(schemas) > 1000 or least > 10_000:
            raise SchemaTooLargeError(
                "more than 1000 items have schemas of their own, or 10,000 are asked for", where
            )
        inside = pointer(where, "items")
        first = tuple(
            self.node(each, pointer(pointer(where, "prefixItems"), n))
            for n, each in enumerate(schemas)
        )
        node = None if rest is False else self.node(rest, inside)
        most = int(most) if most is not None else max(ITEMS, least)
        return (
            None
            if least > most
            else ArrayNode(first, node, least, most, bool(plain.get("uniqueItems")))
        )

    def _object(self, plain: Plain, where: str) -> ObjectNode | None:
        declared, required = dict(plain.get("properties", {})), list(plain.get("required", ()))
        patterns, rest = plain.get("patternProperties", {}), plain.get("additionalProperties", True)
        for name in required:
            if not isinstance(name, str):
                raise UnsupportedSchemaError(
                    f"required names a member {name!r}", pointer(where, "required")
                )
            declared.setdefault(name, None)
        members = []
        for name, schema in declared.items():
            inside = pointer(pointer(where, "properties"), name)
            alike = [each for source, each in patterns.items() if may_match(source, name)]
            if schema is None:
                schema = True if alike else rest
            for each in alike:
                schema = all_of(schema, each)
            if any(not _fits(name, each) for each in plain.get("propertyNames", ()) if _flat(each)):
                schema = False
            if schema is False and name not in required:
                continue
            node = UnionNode(()) if schema is False else self.node(schema, inside)
            members.append(Member(name, node, name in required))
        least, most = int(plain.get("minProperties", 0)), plain.get("maxProperties")
        spoken = "additionalProperties" in plain or bool(patterns)
        entries = (
            self._entries(plain, declared, where)
            if spoken or not members or least > len(members)
            else ()
        )
        most = (
            int(most)
            if most is not None
            else max(ITEMS + len(members), least)
            if entries
            else len(members)
        )
        if all(isinstance(key, EnumNode) for key, _ in entries):  # no name stands twice
            most = min(most, len(members) + sum(len(key.values) for key, _ in entries))
        if most < sum(member.required for member in members):
            return None
        return ObjectNode(tuple(members), entries, least, most, spoken or not members)

    def _entries(self, plain: Plain, declared: Plain, where: str) -> tuple[tuple[Any, Any], ...]:
        """Slots for the names and values of entries that no member declares, of each kind."""
        names = [self.schemas.alternatives(each, where) for each in plain.get("propertyNames", ())]
        said = [part for each in names for part in each if part["type"] == "string"]
        patterns, rest = plain.get("patternProperties", {}), plain.get("additionalProperties", True)
        taken = lang.complement(lang.words(declared)) if declared else lang.ANY
        wide = {source: lang.complement(compile_regex(source, wide=True)) for source in patterns}
        found = []
        for source, schema in patterns.items():
            others = [each for other, each in wide.items() if other != source]
            words = lang.intersect(compile_regex(source), taken)
            key = self._name(lang.intersect(words, *others), said, where)
            if key is None:  # all that it matches others match as well
                key, schema = self._name(words, said, where), reduce(all_of, patterns.values())
            if key is not None and schema is not False:
                found.append(
                    (key, self.node(schema, pointer(pointer(where, "patternProperties"), source)))
                )
        if (
            rest is not False
            and (key := self._name(lang.intersect(taken, *wide.values()), said, where)) is not None
        ):
            found.append((key, self.node(rest, pointer(where, "additionalProperties"))))
        return tuple(found)

    def _name(self, words: Language, said: list[Plain], where: str) -> Any | None:
        """A slot for a name: a plain one where that is allowed."""
        if said:
            first = self._plain({**said[0], "type": "string"}, where)
            quoted = _quoted(first) if first is not None else None
            if quoted is not None:
                left = tuple(each for each in quoted.values if matches(words, each))
                return EnumNode(left, "json") if left else None
            if isinstance(first, ConcatNode) and isinstance(inner := first.parts[1], RegularNode):
                return self._words(
                    lang.intersect(words, inner.language), "json", inner.least, inner.most
                )
            return None
        return self._words(lang.intersect(words, NAME), "json") or self._words(
            lang.intersect(words, lang.ANY), "json"
        )


def _known(values: list[Any]) -> Any | None:
    """A slot for one of these values, its quotes outside where all are strings."""
    if not values:
        return None
    if all(isinstance(value, str) for value in values):
        return ConcatNode((QUOTE, EnumNode(tuple(dict.fromkeys(values)), "json"), QUOTE))
    return EnumNode(tuple(values))


def _quoted(node: Any) -> EnumNode | None:
    """The strings of a slot whose quotes are outside."""
    inner = node.parts[1] if isinstance(node, ConcatNode) and len(node.parts) == 3 else None
    return inner if isinstance(inner, EnumNode) else None


def _of_kind(value: Any, kind: str) -> bool:
    found = kind_of(value)
    if found == "number":
        return kind == "number" or (kind == "integer" and value.is_integer())
    return found == kind or (found, kind) == ("integer", "number")


def _fits(value: Any, plain: Any) -> bool:
    """Whether a value fits the keywords that need no other schemas."""
    if not isinstance(plain, Mapping):
        return plain is not False
    if any(same(value, other) for other in plain.get("unequal", ())):
        return False
    told = {key: plain[key] for kind in ("string", "number") for key in ABOUT[kind] if key in plain}
    for each in told.pop("format", ()) if isinstance(told.get("format"), list) else ():
        if not jsonschema_rs.is_valid({"format": each}, value, validate_formats=True):
            return False
    for each in told.pop("pattern", ()) if isinstance(told.get("pattern"), list) else ():
        if isinstance(value, str) and not matches(compile_regex(each), value):
            return False
    if "enum" in plain and not any(same(value, each) for each in plain["enum"]):
        return False
    return not told or bool(jsonschema_rs.is_valid(told, value, validate_formats=True))


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
    closed = Fraction(str(plain[inside])) if inside in plain else None
    opened = Fraction(str(plain[outside])) if outside in plain else None
    if opened is None or closed is None:
        return (closed, False) if opened is None else (opened, True)
    return (opened, True) if tighter(opened, closed) == opened else (closed, False)


def _decimal(value: Fraction | None) -> Decimal | None:
    return None if value is None else Decimal(value.numerator) / Decimal(value.denominator)
