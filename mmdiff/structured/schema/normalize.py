"""JSON Schema without its connectives: a schema as alternatives, each a plain set of keywords about
one type.

`$ref`, `allOf`, `anyOf`, `oneOf`, `if`, `not` and dependencies are worked into the keywords, or
left out where that can only admit more: what comes of them is checked by a validator in the end.
Draft 2020-12, and what older drafts spell otherwise. Remote references, `$dynamicRef` and
`$recursiveRef` are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any
from urllib.parse import unquote, urljoin

from mmdiff.structured.regular.compile_limits import CompileLimits, LanguageError, LanguageSizeError
from mmdiff.structured.regular.derivatives import matches
from mmdiff.structured.regular.regex import compile_regex
from mmdiff.structured.schema.errors import SchemaTooLargeError, UnsupportedSchemaError
from mmdiff.structured.schema.serialize import identity, pointer

Schema = Any  # a mapping, True or False
Plain = dict[str, Any]  # keywords without connectives, about one type
MOST = 64  # alternatives of a schema; those beyond are left out, and `Schemas.notes` says where
LISTED = 40  # schemas within each other that are asked for the values that they list
NOTES = {"title", "description", "$comment"}
DEEP = 100  # connectives and references inside each other

KINDS = ("object", "array", "string", "number", "integer", "boolean", "null")
ABOUT = {  # what a keyword says something about
    "object": (
        "properties",
        "required",
        "additionalProperties",
        "patternProperties",
        "minProperties",
        "maxProperties",
        "propertyNames",
    ),
    "array": (
        "items",
        "prefixItems",
        "additionalItems",
        "minItems",
        "maxItems",
        "uniqueItems",
        "contains",
        "minContains",
    ),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
LEAST = (
    "minimum",
    "exclusiveMinimum",
    "minLength",
    "minItems",
    "minProperties",
    "minContains",
)  # the larger counts
GREATEST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")


class Schemas:
    """A schema document, and where its references lead."""

    def __init__(self, root: Schema, deadline: CompileLimits) -> None:
        self.root, self.deadline = root, deadline
        draft = str(root.get("$schema", "")) if isinstance(root, Mapping) else ""
        self.old = any(name in draft for name in ("draft-03", "draft-04", "draft-06", "draft-07"))
        # Before draft 6 names are called `id`; later that is no keyword, and references are not
        # read from it.
        self.name = "id" if "draft-03" in draft or "draft-04" in draft else "$id"
        self.base = str(root.get(self.name, "")) if isinstance(root, Mapping) else ""
        self.named: dict[str, tuple[Schema, str]] = {}
        self.bases: dict[
            int, tuple[Schema, str]
        ] = {}  # of the schemas with a reference, by their ids
        self.notes: dict[str, str] = {}  # what is not all worked in, by JSON pointer
        self._index(root, "", "", 0)

    @property
    def embedded(self) -> bool:
        """Whether references are read from several bases."""
        return len({base for _, base in self.bases.values()}) > 1

    def resolve(self, ref: Any, where: str, beside: Schema = None) -> tuple[Schema, str]:
        """The schema that a reference names, and its JSON pointer.

        Args:
            beside: the schema with the reference; relative ones are read from its nearest `$id`.
        """
        if not isinstance(ref, str):
            raise UnsupportedSchemaError(f"$ref must be a string, not {ref!r}", where)
        base = self.bases.get(id(beside), (None, self.base))[1]
        whole = urljoin(base, ref)
        for name in (whole, ref, urljoin(self.base, ref)):
            if name in self.named:
                return self.named[name]
        target, _, fragment = whole.partition("#")
        if target not in ("", self.base.partition("#")[0]) and target not in self.named:
            raise UnsupportedSchemaError(
                f"$ref {ref!r} leads out of the schema; put what it names under $defs", where
            )
        schema, path = self.named.get(target, (self.root, ""))
        for part in fragment.split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            try:
                schema = schema[int(key)] if isinstance(schema, list) else schema[key]
            except (LookupError, ValueError, TypeError):
                raise UnsupportedSchemaError(
                    f"$ref {ref!r} names nothing in the schema", where
                ) from None
            path = pointer(path, key)
        if fragment and not fragment.startswith("/"):
            raise UnsupportedSchemaError(f"$ref {ref!r} names nothing in the schema", where)
        return schema, path

    def alternatives(
        self, schema: Schema, where: str, followed: tuple[str, ...] = ()
    ) -> list[Plain]:
        """Plain schemas, each about one type; what fits any of them fits the schema, as far as
        these keywords tell."""
        found = []
        for plain in self._expand(schema, where, followed):
            kinds = plain.pop("type", None) or _kinds_told(plain)
            excluded = plain.pop("excluded", ())
            if "number" in kinds:
                kinds = [kind for kind in kinds if kind != "integer"]
            found += [{**plain, "type": kind} for kind in kinds if kind not in excluded]
        return self._cut(found, where)

    def _expand(self, schema: Schema, where: str, followed: tuple[str, ...]) -> list[Plain]:
        """Plain schemas without connectives; `type` is a list there, or missing."""
        return self._apply([{}], schema, where, followed)

    def _apply(
        self, made: list[Plain], schema: Schema, where: str, followed: tuple[str, ...]
    ) -> list[Plain]:
        """What of the plain schemas `made` fits the schema as well, without connectives."""
        self.deadline.check()
        if schema is True or schema == {}:
            return made
        if schema is False:
            return []
        if not isinstance(schema, Mapping):
            raise UnsupportedSchemaError(
                f"a schema is an object, true or false, not {type(schema).__name__}", where
            )
        if len(followed) > DEEP or where.count("/") > 4 * DEEP:
            raise SchemaTooLargeError(
                f"references or connectives stand more than {DEEP} deep in each other", where
            )
        for unknown in ("$dynamicRef", "$recursiveRef"):
            if unknown in schema:
                raise UnsupportedSchemaError(
                    f"{unknown} is not supported; use $ref", pointer(where, unknown)
                )
        if "$ref" in schema:
            target, path = self.resolve(schema["$ref"], pointer(where, "$ref"), schema)
            if path in followed:
                return []  # it says of itself only that it is itself
            made = self._apply(made, target, path, (*followed, path))
            if self.old:
                return made  # older drafts overlook what stands beside $ref
        made = self._both(made, [_plain(schema, where)], where)
        for number, part in enumerate(_list(schema, "allOf", where)):
            made = self._apply(made, part, pointer(pointer(where, "allOf"), number), followed)
        for several in ("anyOf", "oneOf"):
            if several in schema:
                inside, options = pointer(where, several), _list(schema, several, where)
                made = self._cut(
                    [
                        left
                        for number, option in enumerate(options)
                        for plain in self._apply(made, option, pointer(inside, number), followed)
                        for left in self._alone(
                            plain, number, options if several == "oneOf" else []
                        )
                    ],
                    inside,
                )
        if "if" in schema:
            made = self._conditional(made, schema, where, followed)
        if "not" in schema:
            made = [
                denied
                for plain in made
                for denied in _deny(plain, schema["not"])
                if self._possible(denied)
            ]
        for key, needed in _dependencies(schema, where):
            absent = self._both(made, [{"properties": {key: False}}], where)
            rest = {"required": needed} if isinstance(needed, list) else needed
            present = self._apply(
                self._both(made, [{"required": [key]}], where), rest, where, followed
            )
            made = self._unless_many(made, absent + present, where)
        return self._cut(made, where)

    def _alone(self, plain: Plain, number: int, options: list[Schema]) -> list[Plain]:
        """Of an alternative of a `oneOf` what fits no other, of those that only say which members
        there must be."""
        left = [plain]
        for other, option in enumerate(options):
            if (
                other != number
                and isinstance(option, Mapping)
                and set(option) - NOTES == {"required"}
            ):
                left = [
                    each for one in left for each in _deny(one, option) if self._possible(each)
                ][:MOST]
        return left

    def _conditional(
        self, made: list[Plain], schema: Mapping[str, Any], where: str, followed: tuple[str, ...]
    ) -> list[Plain]:
        met = self._apply(made, schema["if"], pointer(where, "if"), followed)
        met = self._apply(met, schema.get("then", True), pointer(where, "then"), followed)
        denied = [
            other for plain in made for other in _deny(plain, schema["if"]) if self._possible(other)
        ]
        denied = self._apply(denied, schema.get("else", True), pointer(where, "else"), followed)
        return self._unless_many(made, met + denied, where)

    def _unless_many(self, before: list[Plain], after: list[Plain], where: str) -> list[Plain]:
        """The alternatives after a condition; those before it where they become too many, and the
        validator judges."""
        if len(after) <= MOST:
            return after
        self.notes.setdefault(
            where,
            f"it would make more than {MOST} alternatives, so the condition is only checked "
            "in the finished value",
        )
        return before

    def _cut(self, made: list[Plain], where: str) -> list[Plain]:
        if len(made) > MOST:
            self.notes.setdefault(
                where, f"of {len(made)} alternatives only the first {MOST} are considered"
            )
        return made[:MOST]

    def _both(self, some: list[Plain], others: list[Plain], where: str) -> list[Plain]:
        """What fits one of each, without what is impossible."""
        made = []
        for one in some:
            for other in others:
                self.deadline.step()
                if (merged := merge(one, other)) is not None and self._possible(merged):
                    made.append(merged)
        return self._cut(made, where)

    def _possible(self, plain: Plain) -> bool:
        """False where a member that there must be has no value left, as far as lists of values
        tell."""
        return all(
            self._values(_about(plain, name), 0) != []
            for name in plain.get("required", ())
            if isinstance(name, str)
        )

    def _values(self, schema: Schema, depth: int) -> list[Any] | None:
        """All values of a schema that lists them, or a few more; None where it does not."""
        if schema is False:
            return []
        if not isinstance(schema, Mapping) or depth > LISTED:
            return None
        lists: list[list[Any] | None] = [
            schema["enum"] if isinstance(schema.get("enum"), list) else None
        ]
        lists.append([schema["const"]] if "const" in schema else None)
        lists.append([True, False] if schema.get("type") == "boolean" else None)
        for part in schema["allOf"] if isinstance(schema.get("allOf"), list) else ():
            lists.append(self._values(part, depth + 1))
        for several in ("anyOf", "oneOf"):
            if isinstance(schema.get(several), list):
                parts = [self._values(part, depth + 1) for part in schema[several]]
                lists.append(
                    None if None in parts else [value for part in parts for value in part or ()]
                )
        if isinstance(schema.get("$ref"), str):
            try:
                lists.append(self._values(self.resolve(schema["$ref"], "", schema)[0], depth + 1))
            except UnsupportedSchemaError:  # refused where it is lowered
                return None
        told = [each for each in lists if each is not None]
        if not told:
            return None
        left = {identity(value): value for value in told[0]}
        for each in told[1:]:
            left = {key: left[key] for key in map(identity, each) if key in left}
        for denied in _denials(schema):
            left.pop(identity(denied), None)
        return list(left.values())

    def _index(self, schema: Schema, path: str, base: str, depth: int) -> None:
        """Remember what has a name of its own."""
        if depth > DEEP:
            raise SchemaTooLargeError(f"the schema is nested more than {DEEP} deep", path)
        self.deadline.check()
        if isinstance(schema, list):
            for number, item in enumerate(schema):
                self._index(item, pointer(path, number), base, depth + 1)
        if not isinstance(schema, Mapping):
            return
        name = schema.get(self.name)
        other = schema.get("id" if self.name == "$id" else "$id")
        if isinstance(other, str):  # of another draft, and yet what some refer to
            self.named.setdefault(urljoin(base, other).rstrip("#"), (schema, path))
        if isinstance(name, str) and not (self.old and "$ref" in schema):
            base = urljoin(base, name)
            self.named.setdefault(base.rstrip("#"), (schema, path))
        if "$ref" in schema:
            self.bases[id(schema)] = schema, base
        if isinstance(anchor := schema.get("$anchor"), str):
            self.named.setdefault(f"{base}#{anchor}", (schema, path))
        for key, item in schema.items():
            if key not in ("enum", "const", "default", "examples"):
                self._index(item, pointer(path, key), base, depth + 1)


def _list(schema: Mapping[str, Any], key: str, where: str) -> list[Schema]:
    value = schema.get(key, [])
    if not isinstance(value, list):
        kind = type(value).__name__
        raise UnsupportedSchemaError(
            f"{key} must be a list of schemas, not {kind}", pointer(where, key)
        )
    return value


def _plain(schema: Mapping[str, Any], where: str) -> Plain:
    """The keywords about values, in the newest draft's spelling."""
    told = {name for names in ABOUT.values() for name in names}
    plain = {key: value for key, value in schema.items() if key in told}
    for key, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(plain.get(key), bool):  # draft 4
            if plain.pop(key) and limit in plain:
                plain[key] = plain.pop(limit)
    for key in (*LEAST, *GREATEST, "multipleOf"):
        value = plain.get(key)
        number = (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
        if key in plain and not number:
            raise UnsupportedSchemaError(
                f"{key} must be a number, not {value!r}", pointer(where, key)
            )
    if "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        for kind in kinds:
            if kind not in KINDS and kind != "any":
                raise UnsupportedSchemaError(
                    f"type {kind!r} is not known; use one of {', '.join(KINDS)}",
                    pointer(where, "type"),
                )
        if "any" not in kinds:
            plain["type"] = list(kinds)
    if "enum" in schema:
        if not isinstance(schema["enum"], list):
            raise UnsupportedSchemaError("enum must be a list", pointer(where, "enum"))
        plain["enum"] = list(schema["enum"])
    if "const" in schema:
        plain["enum"] = [
            each for each in plain.get("enum", [schema["const"]]) if same(each, schema["const"])
        ]
    if isinstance(plain.get("items"), list):  # before 2020-12
        plain["prefixItems"] = plain.pop("items")
        plain["items"] = plain.pop("additionalItems", True)
    plain.pop("additionalItems", None)
    for key, kind in (
        ("properties", Mapping),
        ("patternProperties", Mapping),
        ("required", list),
        ("prefixItems", list),
        ("pattern", str),
    ):
        if key in plain and not isinstance(plain[key], kind):
            if key == "required" and isinstance(plain[key], bool):  # draft 3
                del plain[key]
                continue
            raise UnsupportedSchemaError(
                f"{key} does not have the form it must have", pointer(where, key)
            )
    for key in ("pattern", "format", "contains", "propertyNames"):
        if key in plain:
            plain[key] = [plain[key]]
    return plain


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal; true is not 1."""
    return identity(one) == identity(other)


def _kinds_told(plain: Plain) -> list[str]:
    """The types that keywords speak of, or all where they speak of none."""
    if "enum" in plain:
        return list(dict.fromkeys(kind_of(value) for value in plain["enum"]))
    told = [kind for kind, names in ABOUT.items() if any(name in plain for name in names)]
    return told or ["string", "number", "boolean", "null", "object", "array"]


def kind_of(value: Any) -> str:
    kinds = {
        str: "string",
        bool: "boolean",
        int: "integer",
        float: "number",
        type(None): "null",
        list: "array",
    }
    return kinds.get(type(value), "object")


def _denials(schema: Mapping[str, Any]) -> Iterator[Any]:
    """The values that `not` lists, in the schema and the parts that all must fit."""
    denied = schema.get("not")
    if isinstance(denied, Mapping) and set(denied) <= {"enum", "const"}:
        yield from denied["enum"] if isinstance(denied.get("enum"), list) else [denied.get("const")]
    for part in schema["allOf"] if isinstance(schema.get("allOf"), list) else ():
        if isinstance(part, Mapping):
            yield from _denials(part)


def merge(one: Plain, other: Plain) -> Plain | None:
    """The keywords of both together; None where no value fits both."""
    if not one or not other:
        return dict(one or other)
    made = {**one, **other}
    for key in one.keys() & other.keys():
        mine, others = one[key], other[key]
        if key == "type":
            made[key] = _common_kinds(mine, others)
            if not made[key]:
                return None
        elif key == "enum":
            common = {identity(each) for each in others}
            made[key] = [each for each in mine if identity(each) in common]
        elif key in LEAST:
            made[key] = max(mine, others)
        elif key in GREATEST:
            made[key] = min(mine, others)
        elif key == "multipleOf":
            made[key] = _common_multiple(mine, others)
        elif key in ("pattern", "format", "contains", "propertyNames") or key in (
            "required",
            "excluded",
            "unequal",
        ):
            made[key] = [*mine, *(each for each in others if each not in mine)]
        elif key == "patternProperties":
            made[key] = _joined(mine, others)
        elif key == "uniqueItems":
            made[key] = bool(mine) or bool(others)
        elif key not in ("properties", "additionalProperties", "prefixItems", "items"):
            made[key] = others
    if "enum" in made and not made["enum"]:
        return None
    _merge_members(made, one, other)
    _merge_items(made, one, other)
    return made


def _merge_members(made: Plain, one: Plain, other: Plain) -> None:
    if "properties" in one or "properties" in other:
        names = [*one.get("properties", {}), *other.get("properties", {})]
        made["properties"] = {
            name: all_of(_about(one, name), _about(other, name)) for name in dict.fromkeys(names)
        }
    if "additionalProperties" in one and "additionalProperties" in other:
        made["additionalProperties"] = all_of(
            one["additionalProperties"], other["additionalProperties"]
        )


def _about(plain: Plain, name: str) -> Schema:
    """What a schema says of a member of this name."""
    properties = plain.get("properties", {})
    if name in properties:
        return properties[name]
    if any(may_match(source, name) for source in plain.get("patternProperties", {})):
        return True
    return plain.get("additionalProperties", True)


def may_match(source: str, name: str) -> bool:
    """Whether some engine may find a pattern in a name; by its language, for engines may search
    without end."""
    try:
        return matches(compile_regex(source, wide=True), name)
    except LanguageSizeError:
        raise
    except LanguageError:  # refused where it is lowered
        return False


def _merge_items(made: Plain, one: Plain, other: Plain) -> None:
    if "prefixItems" in one or "prefixItems" in other:
        length = max(len(each.get("prefixItems", ())) for each in (one, other))
        made["prefixItems"] = [
            all_of(_item(one, number), _item(other, number)) for number in range(length)
        ]
    if "items" in one and "items" in other:
        made["items"] = all_of(one["items"], other["items"])


def _item(plain: Plain, number: int) -> Schema:
    first = plain.get("prefixItems", ())
    return first[number] if number < len(first) else plain.get("items", True)


def all_of(one: Schema, other: Schema) -> Schema:
    """A schema for what fits both."""
    if one is False or other is False:
        return False
    if one is True or one == {} or one == other:
        return other
    if other is True or other == {}:
        return one
    return _narrowed(one, other) if "enum" in one else {"allOf": [one, other]}


def _narrowed(one: Mapping[str, Any], other: Schema) -> Schema:
    """As `all_of`: the list of one's values is made shorter where the other lists values, or values
    that are not."""
    lists = ({"const"}, {"enum"})
    denied = other.get("not") if isinstance(other, Mapping) and set(other) == {"not"} else None
    told = denied if denied is not None else other
    if not (isinstance(one["enum"], list) and isinstance(told, Mapping) and set(told) in lists):
        return {"allOf": [one, other]}
    known = set(map(identity, _listed(told)))
    values = [value for value in one["enum"] if (identity(value) in known) == (denied is None)]
    return {**one, "enum": values} if values else False


def _listed(schema: Mapping[str, Any]) -> list[Any]:
    values = schema.get("enum", [schema.get("const")])
    return values if isinstance(values, list) else []


def _joined(some: Mapping[str, Schema], others: Mapping[str, Schema]) -> dict[str, Schema]:
    names = dict.fromkeys((*some, *others))
    return {name: all_of(some.get(name, True), others.get(name, True)) for name in names}


def _common_kinds(some: list[str], others: list[str]) -> list[str]:
    common = [kind for kind in some if kind in others]
    pairs = {("integer", "number"), ("number", "integer")}
    if "integer" not in common and pairs & {(one, other) for one in some for other in others}:
        common.append("integer")
    return common


def _common_multiple(one: float, other: float) -> float | int:
    a, b = Fraction(str(one)), Fraction(str(other))
    common = Fraction(
        math.lcm(a.numerator * b.denominator, b.numerator * a.denominator),
        a.denominator * b.denominator,
    )
    return int(common) if common.denominator == 1 else float(common)


def _merged(one: Plain, other: Plain) -> list[Plain]:
    made = merge(one, other)
    return [] if made is None else [made]


def _deny(plain: Plain, denied: Schema) -> list[Plain]:
    """What is left without what fits `denied`, where keywords can tell; else as before, and the
    validator will tell."""
    if denied is True or denied == {}:
        return []
    if not isinstance(denied, Mapping):
        return [plain]
    keys = set(denied) - NOTES
    if keys == {"type"}:
        kinds = denied["type"] if isinstance(denied["type"], list) else [denied["type"]]
        return [{**plain, "excluded": [*plain.get("excluded", ()), *kinds]}]
    if keys in ({"enum"}, {"const"}):
        values = denied.get("enum", [denied.get("const")])
        return [{**plain, "unequal": [*plain.get("unequal", ()), *values]}]
    if keys <= {"required", "type", "properties"} and denied.get("required"):
        left = []
        for name in denied["required"]:
            if (without := merge(plain, {"properties": {name: False}})) is not None:
                left.append(without)
        for name, each in denied.get("properties", {}).items():
            if each not in (True, {}):
                left += _merged(plain, {"properties": {name: {"not": each}}})
        return left or [plain]
    if keys <= {"anyOf"} and denied.get("anyOf"):
        left = [plain]
        for each in denied["anyOf"]:
            left = [other for one in left for other in _deny(one, each)]
        return left[:MOST]
    if keys <= {"properties"} and denied.get(
        "properties"
    ):  # it does not fit where any of them is there and differs
        left = []
        for name, each in denied["properties"].items():
            left += _merged(plain, {"required": [name], "properties": {name: {"not": each}}})
        return left or [plain]
    return [plain]


def _dependencies(schema: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    for keyword in ("dependencies", "dependentRequired", "dependentSchemas"):
        given = schema.get(keyword, {})
        if not isinstance(given, Mapping):
            raise UnsupportedSchemaError(f"{keyword} must be an object", pointer(where, keyword))
        for key, needed in given.items():
            yield key, [needed] if isinstance(needed, str) else needed
