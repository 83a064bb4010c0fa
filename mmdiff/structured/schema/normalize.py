"""JSON Schema without its connectives: a schema as alternatives, each a plain set of keywords about
one type.

`$ref`, `allOf`, `anyOf`, `oneOf`, `if`, `not` and dependencies are worked into the keywords, or
left out where that can only admit more: what comes of them is checked by a validator in the end.
Draft 2020-12, and what older drafts spell otherwise. Remote references, `$dynamicRef` and
`$recursiveRef` are refused.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
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
NUMBERS = (*LEAST, *GREATEST, "multipleOf")
TOLD = frozenset(itertools.chain.from_iterable(ABOUT.values()))
FORMS = {
    "properties": Mapping,
    "patternProperties": Mapping,
    "required": list,
    "prefixItems": list,
    "pattern": str,
}


class References:
    """A schema document, and where its references lead."""

    def __init__(self, root: Schema, deadline: CompileLimits) -> None:
        self.root, self.deadline = root, deadline
        draft = ""
        if isinstance(root, Mapping):
            draft = str(root.get("$schema", ""))
        self.old = any(name in draft for name in ("draft-03", "draft-04", "draft-06", "draft-07"))
        # Before draft 6 names are called `id`; later that is not a keyword, and references are not
        # read from it.
        self.name, self.other_name = "$id", "id"
        if "draft-03" in draft or "draft-04" in draft:
            self.name, self.other_name = "id", "$id"
        self.base = ""
        if isinstance(root, Mapping):
            self.base = str(root.get(self.name, ""))
        self.named: dict[str, tuple[Schema, str]] = {}
        # Of the schemas with a reference, by their ids.
        self.bases: dict[int, tuple[Schema, str]] = {}
        self._index(root, "", "", 0)

    @property
    def embedded(self) -> bool:
        """Whether references are read from several bases."""
        distinct = set()
        for _, base in self.bases.values():
            distinct.add(base)
        return len(distinct) > 1

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
                if isinstance(schema, list):
                    schema = schema[int(key)]
                else:
                    schema = schema[key]
            except (LookupError, ValueError, TypeError):
                raise UnsupportedSchemaError(
                    f"$ref {ref!r} names nothing in the schema", where
                ) from None
            path = pointer(path, key)
        if fragment and not fragment.startswith("/"):
            raise UnsupportedSchemaError(f"$ref {ref!r} names nothing in the schema", where)
        return schema, path

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
        base = self._remember(schema, path, base)
        for key, item in schema.items():
            if key not in ("enum", "const", "default", "examples"):
                self._index(item, pointer(path, key), base, depth + 1)

    def _remember(self, schema: Mapping[str, Any], path: str, base: str) -> str:
        """Note the names of one schema, and the base from which its references are read."""
        name, other = schema.get(self.name), schema.get(self.other_name)
        if isinstance(other, str):  # of another draft, and yet what some refer to
            self.named.setdefault(urljoin(base, other).rstrip("#"), (schema, path))
        if isinstance(name, str) and not (self.old and "$ref" in schema):
            base = urljoin(base, name)
            self.named.setdefault(base.rstrip("#"), (schema, path))
        if "$ref" in schema:
            self.bases[id(schema)] = schema, base
        if isinstance(anchor := schema.get("$anchor"), str):
            self.named.setdefault(f"{base}#{anchor}", (schema, path))
        return base


class Schemas(References):
    """Schemas of a document as alternatives without connectives."""

    def __init__(self, root: Schema, deadline: CompileLimits) -> None:
        super().__init__(root, deadline)
        self.notes: dict[str, str] = {}  # what is not all worked in, by JSON pointer

    def alternatives(
        self, schema: Schema, where: str, followed: tuple[str, ...] = ()
    ) -> list[Plain]:
        """Plain schemas, each about one type; what fits any of them fits the schema, as far as
        these keywords tell."""
        found = []
        for plain in self._expand(schema, where, followed):
            kinds = plain.pop("type", None) or _kinds_told(plain)
            excluded = plain.pop("excluded", ())
            for kind in kinds:
                if kind == "integer" and "number" in kinds:
                    continue
                if kind not in excluded:
                    found.append({**plain, "type": kind})
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
        _check_form(schema, where, followed)
        if "$ref" in schema:
            target, path = self.resolve(schema["$ref"], pointer(where, "$ref"), schema)
            if path in followed:
                return []  # it says of itself only that it is itself
            made = self._apply(made, target, path, (*followed, path))
            if self.old:
                return made  # older drafts overlook what stands beside $ref
        made = self._both(made, [_plain(schema, where)], where)
        return self._cut(self._connect(made, schema, where, followed), where)

    def _connect(
        self, made: list[Plain], schema: Mapping[str, Any], where: str, followed: tuple[str, ...]
    ) -> list[Plain]:
        """What fits the connectives of a schema as well."""
        for number, part in enumerate(_list(schema, "allOf", where)):
            made = self._apply(made, part, pointer(pointer(where, "allOf"), number), followed)
        for several in ("anyOf", "oneOf"):
            if several in schema:
                made = self._any_of(made, schema, several, where, followed)
        if "if" in schema:
            made = self._conditional(made, schema, where, followed)
        if "not" in schema:
            made = self._denied(made, schema["not"])
        for key, needed in _dependencies(schema, where):
            made = self._dependent(made, key, needed, where, followed)
        return made

    def _any_of(
        self,
        made: list[Plain],
        schema: Mapping[str, Any],
        several: str,
        where: str,
        followed: tuple[str, ...],
    ) -> list[Plain]:
        """What fits one of the options of an `anyOf` or `oneOf` as well."""
        inside, options = pointer(where, several), _list(schema, several, where)
        rivals = options if several == "oneOf" else []
        found: list[Plain] = []
        for number, option in enumerate(options):
            for plain in self._apply(made, option, pointer(inside, number), followed):
                found += self._alone(plain, number, rivals)
        return self._cut(found, inside)

    def _denied(self, made: list[Plain], denied: Schema) -> list[Plain]:
        """What does not fit `denied`, as far as keywords tell, without what is impossible."""
        found: list[Plain] = []
        for plain in made:
            found += filter(self._possible, _deny(plain, denied))
        return found

    def _dependent(
        self, made: list[Plain], key: str, needed: Any, where: str, followed: tuple[str, ...]
    ) -> list[Plain]:
        """What lacks the member, or has it and what it needs."""
        absent = self._both(made, [{"properties": {key: False}}], where)
        rest = needed
        if isinstance(needed, list):
            rest = {"required": needed}
        having = self._both(made, [{"required": [key]}], where)
        present = self._apply(having, rest, where, followed)
        return self._unless_many(made, absent + present, where)

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
                left = self._denied(left, option)[:MOST]
        return left

    def _conditional(
        self, made: list[Plain], schema: Mapping[str, Any], where: str, followed: tuple[str, ...]
    ) -> list[Plain]:
        met = self._apply(made, schema["if"], pointer(where, "if"), followed)
        met = self._apply(met, schema.get("then", True), pointer(where, "then"), followed)
        denied = self._denied(made, schema["if"])
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
        for name in plain.get("required", ()):
            if isinstance(name, str) and self._values(_about(plain, name), 0) == []:
                return False
        return True

    def _values(self, schema: Schema, depth: int) -> list[Any] | None:
        """All values of a schema that lists them, or a few more; None where it does not."""
        if schema is False:
            return []
        if not isinstance(schema, Mapping) or depth > LISTED:
            return None
        try:
            told = self._told_values(schema, depth)
        except UnsupportedSchemaError:  # refused where it is lowered
            return None
        if not told:
            return None
        left = {}
        for value in told[0]:
            left[identity(value)] = value
        for each in told[1:]:
            for key in left.keys() - set(map(identity, each)):
                del left[key]
        for denied in _denials(schema):
            left.pop(identity(denied), None)
        return list(left.values())

    def _told_values(self, schema: Mapping[str, Any], depth: int) -> list[list[Any]]:
        """Lists of values by keywords and subschemas; a value of the schema is in each of them."""
        lists: list[list[Any] | None] = []
        if isinstance(schema.get("enum"), list):
            lists.append(schema["enum"])
        if "const" in schema:
            lists.append([schema["const"]])
        if schema.get("type") == "boolean":
            lists.append([True, False])
        for part in _listed_schemas(schema, "allOf"):
            lists.append(self._values(part, depth + 1))
        for several in ("anyOf", "oneOf"):
            if isinstance(schema.get(several), list):
                lists.append(self._values_of_any(schema[several], depth))
        if isinstance(schema.get("$ref"), str):
            lists.append(self._values(self.resolve(schema["$ref"], "", schema)[0], depth + 1))
        return [each for each in lists if each is not None]

    def _values_of_any(self, options: list[Schema], depth: int) -> list[Any] | None:
        """The values of all options; None where one of them does not list its own."""
        found: list[Any] = []
        listed = True
        for option in options:
            values = self._values(option, depth + 1)
            if values is None:
                listed = False
            else:
                found += values
        return found if listed else None


def _check_form(schema: Schema, where: str, followed: tuple[str, ...]) -> None:
    """Refuse what is not a schema, stands too deep, or refers to what is not known beforehand."""
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


def _list(schema: Mapping[str, Any], key: str, where: str) -> list[Schema]:
    value = schema.get(key, [])
    if not isinstance(value, list):
        kind = type(value).__name__
        raise UnsupportedSchemaError(
            f"{key} must be a list of schemas, not {kind}", pointer(where, key)
        )
    return value


def _listed_schemas(schema: Mapping[str, Any], key: str) -> list[Schema]:
    value = schema.get(key)
    return value if isinstance(value, list) else []


def _plain(schema: Mapping[str, Any], where: str) -> Plain:
    """The keywords about values, in the newest draft's spelling."""
    plain = {}
    for key, value in schema.items():
        if key in TOLD:
            plain[key] = value
    _modernize_bounds(plain)
    for key in NUMBERS:
        if key in plain and not _is_finite(plain[key]):
            raise UnsupportedSchemaError(
                f"{key} must be a number, not {plain[key]!r}", pointer(where, key)
            )
    _take_values(plain, schema, where)
    _modernize_items(plain)
    for key, form in FORMS.items():
        if key in plain and not isinstance(plain[key], form):
            raise UnsupportedSchemaError(
                f"{key} does not have the form it must have", pointer(where, key)
            )
    for key in ("pattern", "format", "contains", "propertyNames"):
        if key in plain:
            plain[key] = [plain[key]]
    return plain


def _modernize_bounds(plain: Plain) -> None:
    """Draft 4: an exclusive bound is True beside the bound itself."""
    for key, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(plain.get(key), bool) and plain.pop(key) and limit in plain:
            plain[key] = plain.pop(limit)


def _modernize_items(plain: Plain) -> None:
    """Before 2020-12, `items` may be a list; in draft 3, `required` may be True or False."""
    if isinstance(plain.get("items"), list):
        plain["prefixItems"] = plain.pop("items")
        plain["items"] = plain.pop("additionalItems", True)
    plain.pop("additionalItems", None)
    if isinstance(plain.get("required"), bool):
        del plain["required"]


def _take_values(plain: Plain, schema: Mapping[str, Any], where: str) -> None:
    """The types and the values that a schema lists, of `type`, `enum` and `const`."""
    if "type" in schema:
        kinds = _kinds(schema["type"], where)
        if "any" not in kinds:
            plain["type"] = kinds
    if "enum" in schema:
        if not isinstance(schema["enum"], list):
            raise UnsupportedSchemaError("enum must be a list", pointer(where, "enum"))
        plain["enum"] = list(schema["enum"])
    if "const" in schema:
        const = schema["const"]
        plain["enum"] = [each for each in plain.get("enum", [const]) if same(each, const)]


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _as_list(value: Any) -> list[Any]:
    """A list as it is, anything else as the only item of one."""
    if isinstance(value, list):
        return value
    return [value]


def _kinds(value: Any, where: str) -> list[str]:
    """The types that `type` names."""
    kinds = list(_as_list(value))
    for kind in kinds:
        if kind not in KINDS and kind != "any":
            raise UnsupportedSchemaError(
                f"type {kind!r} is not known; use one of {', '.join(KINDS)}",
                pointer(where, "type"),
            )
    return kinds


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal; true is not 1."""
    return identity(one) == identity(other)


def _kinds_told(plain: Plain) -> list[str]:
    """The types that keywords speak of, or all where they speak of none."""
    if "enum" in plain:
        return list(dict.fromkeys(map(kind_of, plain["enum"])))
    told = []
    for kind, names in ABOUT.items():
        if not plain.keys().isdisjoint(names):
            told.append(kind)
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
        if isinstance(denied.get("enum"), list):
            yield from denied["enum"]
        else:
            yield denied.get("const")
    for part in _listed_schemas(schema, "allOf"):
        if isinstance(part, Mapping):
            yield from _denials(part)


def merge(one: Plain, other: Plain) -> Plain | None:
    """The keywords of both together; None where no value fits both."""
    if not one or not other:
        return dict(one or other)
    made = {**one, **other}
    for key in one.keys() & other.keys() & JOINS.keys():
        made[key] = JOINS[key](one[key], other[key])
    for key in ("type", "enum"):
        if key in one and key in other and not made[key]:
            return None
    if "enum" in made and not made["enum"]:
        return None
    _merge_members(made, one, other)
    _merge_items(made, one, other)
    return made


def _merge_members(made: Plain, one: Plain, other: Plain) -> None:
    if "properties" in one or "properties" in other:
        names = [*one.get("properties", {}), *other.get("properties", {})]
        made["properties"] = {}
        for name in dict.fromkeys(names):
            made["properties"][name] = all_of(_about(one, name), _about(other, name))
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
        length = max(len(one.get("prefixItems", ())), len(other.get("prefixItems", ())))
        made["prefixItems"] = []
        for number in range(length):
            made["prefixItems"].append(all_of(_item(one, number), _item(other, number)))
    if "items" in one and "items" in other:
        made["items"] = all_of(one["items"], other["items"])


def _item(plain: Plain, number: int) -> Schema:
    first = plain.get("prefixItems", ())
    if number < len(first):
        return first[number]
    return plain.get("items", True)


def all_of(one: Schema, other: Schema) -> Schema:
    """A schema for what fits both."""
    if one is False or other is False:
        return False
    if one is True or one == {} or one == other:
        return other
    if other is True or other == {}:
        return one
    if "enum" in one:
        return _narrowed(one, other)
    return {"allOf": [one, other]}


def _narrowed(one: Mapping[str, Any], other: Schema) -> Schema:
    """As `all_of`: the list of one's values is made shorter where the other lists values, or values
    that are not."""
    lists = ({"const"}, {"enum"})
    denied = None
    if isinstance(other, Mapping) and set(other) == {"not"}:
        denied = other.get("not")
    told = other
    if denied is not None:
        told = denied
    if not (isinstance(one["enum"], list) and isinstance(told, Mapping) and set(told) in lists):
        return {"allOf": [one, other]}
    known = set(map(identity, _listed(told)))
    values = [value for value in one["enum"] if (identity(value) in known) == (denied is None)]
    if values:
        return {**one, "enum": values}
    return False


def _listed(schema: Mapping[str, Any]) -> list[Any]:
    values = schema.get("enum", [schema.get("const")])
    if isinstance(values, list):
        return values
    return []


def _joined(some: Mapping[str, Schema], others: Mapping[str, Schema]) -> dict[str, Schema]:
    names = dict.fromkeys((*some, *others))
    found = {}
    for name in names:
        found[name] = all_of(some.get(name, True), others.get(name, True))
    return found


def _common_kinds(some: list[str], others: list[str]) -> list[str]:
    common = [kind for kind in some if kind in others]
    # Integers are numbers: they are common to a list of the one and a list of the other.
    mixed = ("integer" in some and "number" in others) or ("number" in some and "integer" in others)
    if "integer" not in common and mixed:
        common.append("integer")
    return common


def _common_multiple(one: float, other: float) -> float | int:
    a, b = Fraction(str(one)), Fraction(str(other))
    common = Fraction(
        math.lcm(a.numerator * b.denominator, b.numerator * a.denominator),
        a.denominator * b.denominator,
    )
    if common.denominator == 1:
        return int(common)
    return float(common)


def _common_values(some: list[Any], others: list[Any]) -> list[Any]:
    known = set(map(identity, others))
    return [value for value in some if identity(value) in known]


def _all_items(some: list[Any], others: list[Any]) -> list[Any]:
    """The items of both lists, those of both once."""
    found = list(some)
    for each in others:
        if each not in some:
            found.append(each)
    return found


def _either(one: Any, other: Any) -> bool:
    return bool(one) or bool(other)


# How the values of a keyword that stands in both schemas are joined. The later one counts for
# those that are not here; members and items are merged apart, as they depend on each other.
JOINS: dict[str, Callable[[Any, Any], Any]] = {
    "type": _common_kinds,
    "enum": _common_values,
    "multipleOf": _common_multiple,
    "patternProperties": _joined,
    "uniqueItems": _either,
    **dict.fromkeys(LEAST, max),
    **dict.fromkeys(GREATEST, min),
    **dict.fromkeys(("pattern", "format", "contains", "propertyNames"), _all_items),
    **dict.fromkeys(("required", "excluded", "unequal"), _all_items),
}


def _merged(one: Plain, other: Plain) -> list[Plain]:
    made = merge(one, other)
    if made is None:
        return []
    return [made]


def _deny(plain: Plain, denied: Schema) -> list[Plain]:
    """What is left without what fits `denied`, where keywords can tell; else as before, and the
    validator will tell."""
    if denied is True or denied == {}:
        return []
    if not isinstance(denied, Mapping):
        return [plain]
    keys = set(denied) - NOTES
    if keys == {"type"}:
        excluded = [*plain.get("excluded", ()), *_as_list(denied["type"])]
        return [{**plain, "excluded": excluded}]
    if keys in ({"enum"}, {"const"}):
        values = denied.get("enum", [denied.get("const")])
        return [{**plain, "unequal": [*plain.get("unequal", ()), *values]}]
    if keys <= {"required", "type", "properties"} and denied.get("required"):
        return _deny_members(plain, denied) or [plain]
    if keys <= {"anyOf"} and denied.get("anyOf"):
        left = [plain]
        for each in denied["anyOf"]:
            left = list(itertools.chain.from_iterable(_deny(one, each) for one in left))
        return left[:MOST]
    # It does not fit where any of the members is there and differs.
    if keys <= {"properties"} and denied.get("properties"):
        left = []
        for name, each in denied["properties"].items():
            left += _merged(plain, {"required": [name], "properties": {name: {"not": each}}})
        return left or [plain]
    return [plain]


def _deny_members(plain: Plain, denied: Mapping[str, Any]) -> list[Plain]:
    """What lacks one of the members that `denied` requires, or has another value for one."""
    left = []
    for name in denied["required"]:
        left += _merged(plain, {"properties": {name: False}})
    for name, each in denied.get("properties", {}).items():
        if each not in (True, {}):
            left += _merged(plain, {"properties": {name: {"not": each}}})
    return left


def _dependencies(schema: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    for keyword in ("dependencies", "dependentRequired", "dependentSchemas"):
        given = schema.get(keyword, {})
        if not isinstance(given, Mapping):
            raise UnsupportedSchemaError(f"{keyword} must be an object", pointer(where, keyword))
        for key, needed in given.items():
            yield key, [needed] if isinstance(needed, str) else needed
