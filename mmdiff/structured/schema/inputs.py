"""What callers give as a schema: JSON Schema, Python types, choices, patterns and texts with
holes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from mmdiff.config import shown
from mmdiff.errors import MMDiffError
from mmdiff.structured.constraint.compiled import SECONDS, CompiledSchema, as_it_is, compile_schema
from mmdiff.structured.constraint.template import TemplateBuilder
from mmdiff.structured.regular import language as lang
from mmdiff.structured.regular.compile_limits import CompileLimits, LanguageError, bounded
from mmdiff.structured.regular.derivatives import shortest
from mmdiff.structured.regular.language import Language
from mmdiff.structured.regular.regex import compile_regex
from mmdiff.structured.schema.errors import (
    SchemaTooLargeError,
    UnsatisfiableSchemaError,
    UnsupportedSchemaError,
)
from mmdiff.structured.schema.serialize import dumps
from mmdiff.structured.schema.structure import ConcatNode, EnumNode, LiteralNode, RegularNode, Tree

HOLE = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)
BLANK = "___"
INK = lang.intersect(
    lang.TEXT, lang.complement(lang.chars([(9, 13), (32, 32), (0x85, 0xA0)]))
)  # no space
LINE = lang.intersect(lang.TEXT, lang.complement(lang.chars([(9, 13)])))
PHRASE = INK | (INK + lang.repeat(LINE) + INK)  # a line that neither begins nor ends with a space


# How pydantic reads names of members as other types.
KEYS = {
    "integer": "^(?:0|-?[1-9][0-9]{0,14})$",
    "number": r"^(?:0|-?[1-9][0-9]{0,8})(?:\.[0-9]{1,6})?$",
    "boolean": "^(?:true|false)$",
}
HOST = r"(?:[A-Za-z0-9](?:-?[A-Za-z0-9])*\.)*[A-Za-z](?:-?[A-Za-z0-9])*"
NAIVE = (
    r"^[0-9]{3}[1-9]-(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])"
    r"T(?:[01][0-9]|2[0-3])(?::[0-5][0-9]){2}$"
)


def schema_of(source: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The JSON Schema of what was given, and what makes the caller's own type of a value.

    Args:
        source: JSON Schema (a mapping, True or False), or a type that pydantic knows: a model, a
            dataclass, a TypedDict, list[int], Literal["a", "b"], ...
    """
    if isinstance(source, Mapping | bool):
        return source, as_it_is
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(source)
        # From JSON, as strict types too take dates, numbers as keys and the like from its texts.
        return adapter.json_schema(
            schema_generator=TypeSchema
        ), lambda value: adapter.validate_json(dumps(value))
    except (
        PydanticSchemaGenerationError,
        PydanticUserError,
        TypeError,
        ValueError,
        ImportError,
    ) as error:
        told = str(error).splitlines()[0].split(". ")[0][:200]
        raise UnsupportedSchemaError(
            f"{shown(source)} is neither a JSON Schema nor a type that pydantic can describe: "
            f"{told}"
        ) from None


class TypeSchema(GenerateJsonSchema):
    """pydantic's JSON Schema of a type, with what pydantic checks but does not write down."""

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        """Names that are read as numbers."""
        made = super().dict_schema(schema)
        keys = schema.get("keys_schema")
        if keys is None:
            return made
        kind = self.generate_inner(keys).get("type")
        if keys["type"] == "enum" and any(
            not isinstance(member.value, str) for member in keys["members"]
        ):
            made["propertyNames"] = {"enum": [str(member.value) for member in keys["members"]]}
        elif kind in KEYS:
            made["propertyNames"] = {**made.get("propertyNames", {}), "pattern": KEYS[kind]}
        return made

    def url_schema(self, schema: core_schema.UrlSchema) -> JsonSchemaValue:
        """The schemes, and a host that is a name."""
        made = super().url_schema(schema)
        if schemes := schema.get("allowed_schemes"):
            made["pattern"] = f"^(?:{'|'.join(map(re.escape, schemes))})://{HOST}(?:[:/?#]|$)"
        return made

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        """How many digits a number has before and behind the point."""
        made = super().decimal_schema(schema)
        places, digits = schema.get("decimal_places"), schema.get("max_digits")
        for option in made.get("anyOf", [made]):
            if option.get("type") != "number":
                continue
            if places is not None:
                option.setdefault("multipleOf", 10.0**-places if places else 1)
            if digits is not None:
                most = 10 ** max(digits - (places or 0), 0)
                option.setdefault("exclusiveMaximum", most)
                option.setdefault("exclusiveMinimum", -most)
        return made

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> JsonSchemaValue:
        """Times without a zone, which the format date-time does not know."""
        if schema.get("tz_constraint") == "naive":
            return {"type": "string", "pattern": NAIVE}
        return super().datetime_schema(schema)


def compile_source(source: Any, layouts: TemplateBuilder, budget: int) -> CompiledSchema:
    """The scaffold of a schema or a type; the values are of that type.

    Raises:
        ScaffoldError: see `compile_schema`.
    """
    schema, finish = schema_of(source)
    return compile_schema(schema, layouts, budget, finish)


def compile_choices(
    choices: Sequence[str], layouts: TemplateBuilder, budget: int
) -> CompiledSchema:
    """The scaffold of an answer that is one of some texts."""
    if (
        isinstance(choices, str)
        or not choices
        or not all(isinstance(each, str) and each for each in choices)
    ):
        raise MMDiffError(f"choices={shown(choices)} must be a list of texts, none of them empty")
    if len(set(choices)) < len(choices):
        raise MMDiffError(f"choices={shown(list(choices))} has the same text twice")
    for text in choices:
        _check_characters(text)
    return _texts(
        EnumNode(tuple(choices), spelling="plain", ends=True), layouts, budget, lambda text: text
    )


def compile_template(text: str, layouts: TemplateBuilder, budget: int) -> CompiledSchema:
    """The scaffold of a text with holes; its value is the whole text.

    `[[ ]]` is a phrase, `[[red|green]]` one of some texts, `[[/[0-9]+/]]` a pattern. A space before
    a hole is part of what is filled in, for tokens begin with their space.
    """
    _check_characters(text)
    parts = HOLE.split(text)
    if len(parts) < 3:
        raise MMDiffError(
            f"the text {text[:80]!r} has no hole; write [[ ]] where something is to be filled in"
        )
    nodes: list[Any] = []
    for number, part in enumerate(parts):
        if number % 2 == 0:
            spaced = number + 1 < len(parts) and part.endswith(" ")
            nodes.append(LiteralNode(part[:-1] if spaced else part))
            continue
        said, before = part.strip(), " " if spaced else ""
        if said.startswith("/") and said.endswith("/") and len(said) > 1:
            nodes.append(_words(lang.literal(before) + _whole(said[1:-1])))
        elif "|" in said:
            texts = dict.fromkeys(each.strip() for each in said.split("|"))
            nodes.append(EnumNode(tuple(texts), spelling="plain", before=before))
        else:
            nodes.append(_words(lang.literal(before) + PHRASE))
    return _texts(ConcatNode(tuple(nodes)), layouts, budget, lambda text: text)


def _check_characters(text: str) -> None:
    """Refuse what no tokens spell.

    Raises:
        MMDiffError: there is half of a character in it.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise MMDiffError(
            f"the text {shown(text)} holds half of a character (a lone surrogate)"
        ) from None


def blanks(text: str) -> str:
    """A text with blanks for its holes."""
    return HOLE.sub(BLANK, text)


def _whole(source: str) -> Language:
    """The texts that a pattern matches from their beginning to their end."""
    try:
        return compile_regex(f"^(?:{source})$")
    except LanguageError as error:
        raise UnsupportedSchemaError(
            f"the pattern {source[:80]!r} is not supported: {error}"
        ) from None


def _words(words: Language) -> RegularNode:
    with _in_time() as deadline:
        found = shortest(words, deadline)
    if found is None:
        raise UnsatisfiableSchemaError("no text matches the pattern")
    return RegularNode(words, "plain", found)


def _texts(
    root: Any, layouts: TemplateBuilder, budget: int, read: Callable[[str], Any]
) -> CompiledSchema:
    scaffold = CompiledSchema(Tree(root, {}), layouts, budget, read, lambda value: True)
    with _in_time() as deadline:
        scaffold.find_witness(deadline)
    return scaffold


@contextlib.contextmanager
def _in_time() -> Iterator[CompileLimits]:
    try:
        with bounded(CompileLimits(SECONDS)) as deadline:
            yield deadline
    except LanguageError as error:
        raise SchemaTooLargeError(str(error)) from None
