"""Public reports about structured output, tried on ours: which values a schema lets be said, and
what is refused.

Each case has the report's link, a schema made up for it, values that must be within reach and
others that must not.
"""

from __future__ import annotations

import contextlib
import enum
import json
import random
import time
from collections.abc import Callable, Sequence
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, model_validator
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from mmdiff.config import PRESETS
from mmdiff.errors import MMDiffError
from mmdiff.eval.structured_adversarial import BASE, Fake, Judge, generate, settings
from mmdiff.structured.constraint.compiled import compile_schema
from mmdiff.structured.constraint.membership import Unsaid, arranged
from mmdiff.structured.constraint.structure_search import ProbeRow, search_structure
from mmdiff.structured.constraint.template import TemplateBuilder
from mmdiff.structured.constraint.token_dfa import Vocabulary
from mmdiff.structured.schema.errors import (
    ScaffoldError,
    SchemaTooLargeError,
    UnsatisfiableSchemaError,
    UnsupportedSchemaError,
)
from mmdiff.structured.schema.inputs import compile_choices, compile_source, compile_template

TOKENS = PRESETS["tiny"].tokens
HUB = "https://github.com/"


def obj(required: str = "", **properties: Any) -> dict[str, Any]:
    """An object with these members and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def tagged(count: int) -> dict[str, Any]:
    """An object whose `kind` says which other member there must be."""
    kinds = [f"kind {number}" for number in range(count)]
    members = {f"m{number}": {"type": "boolean"} for number in range(count)}
    rules = [
        {
            "if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]},
            "then": {"required": [member]},
        }
        for kind, member in zip(kinds, members, strict=True)
    ]
    return {**obj("kind", kind={"enum": kinds}, **members), "allOf": rules}


ANY_OBJECT: dict[str, Any] = {"type": "object"}
COLOURS = [
    "red",
    "green",
    "blue",
    "yellow",
    "teal",
    "black",
    "gray",
    "brown",
    "orange",
    "purple",
    "white",
]
INNER = {
    "$id": "inner",
    "type": "array",
    "items": {"$ref": "#/$defs/x"},
    "$defs": {"x": {"const": 7}},
}

# The report, a schema, values that can be said, values that cannot.
CASES: list[tuple[str, Any, list[Any], list[Any]]] = [
    (
        "python-jsonschema/jsonschema/issues/930",
        {"type": "number", "multipleOf": 0.01},
        [300.52, 19.99, 7, -0.5],
        [0.001],
    ),
    (
        "python-jsonschema/jsonschema/issues/687",
        {"multipleOf": 0.001, "minimum": 0},
        [0.95, 0.01, 12],
        [-0.001, 0.0005],
    ),
    (
        "bugventure/jsen/issues/1",
        obj("a", a={"type": "number", "multipleOf": 0.01, "maximum": 20}),
        [{"a": 18.15}, {"a": 20}],
        [{"a": 20.01}],
    ),
    (
        "ajv-validator/ajv/issues/2104",
        {"type": "number", "multipleOf": 1.01},
        [5001.52, 1.01],
        [5001.77],
    ),
    (
        "everit-org/json-schema/issues/335",
        {"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 1000},
        [2.5, 3, 999.5, 1000],
        [2.25, 1000.5],
    ),
    (
        "RicoSuter/NJsonSchema/issues/221",
        {"type": "number", "multipleOf": 0.1, "exclusiveMaximum": 10},
        [0.3, 0.7, 9.9],
        [10, 0.35],
    ),
    (
        "mlc-ai/xgrammar/issues/895",
        {"type": "string", "pattern": "^[a-z]+$", "maxLength": 3},
        ["abc"],
        ["abcd", "A"],
    ),
    (
        "mlc-ai/xgrammar/issues/749",
        {"type": "string", "format": "email", "maxLength": 12},
        ["ab@cd.ef"],
        ["somebody@somewhere.example"],
    ),
    (
        "sgl-project/sglang/issues/37707",
        {"type": "string", "pattern": "^x*$", "minLength": 4},
        ["xxxx"],
        ["xxx"],
    ),
    (
        "vllm-project/vllm/issues/45592",
        {"type": "array", "items": {"type": "string", "pattern": "^[A-Z]", "maxLength": 5}},
        [["Abcde", "X"]],
        [["Abcdef"], ["abc"]],
    ),
    (
        "mlc-ai/xgrammar/issues/800",
        {"type": "string", "maxLength": 60},
        ['a "word"\nand a \\ line', "é\t€"],
        ["x" * 61],
    ),
    (
        "guidance-ai/llguidance/issues/265",
        {
            **obj("score", score={"type": "integer", "multipleOf": 5}),
            "patternProperties": {"^score$": {"type": "integer", "maximum": 20}},
        },
        [{"score": 15}],
        [{"score": 25}, {"score": 3}],
    ),
    (
        "dottxt-ai/outlines-core/issues/151",
        {"properties": {"a": {}}, "required": ["a"], "type": "object"},
        [{"a": "value"}, {"a": [1, {"b": None}]}, {"a": {}}],
        [{}],
    ),
    ("dottxt-ai/outlines/pull/914", {}, [[], [["a"], {"b": {"c": 1.5}}], "x", 3, None, True], []),
    ("dottxt-ai/outlines/pull/907", ANY_OBJECT, [{}, {"a": {"b": [1, 2]}, "c d": True}], [[]]),
    (
        "guidance-ai/guidance/pull/892",
        {**obj("id", id={"type": "integer"}), "additionalProperties": True},
        [{"id": 1, "any": {"thing": []}}],
        [{"any": 1}],
    ),
    (
        "Dan-wanna-M/formatron/issues/31",
        {"type": "array", "minItems": 5, "maxItems": 5, "items": obj("id", id={"type": "string"})},
        [[{"id": str(number)} for number in range(5)]],
        [[{"id": "1"}] * 4],
    ),
    (
        "mlc-ai/xgrammar/issues/160",
        {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2},
        [["a", "b"]],
        [["a"], ["a", "b", "c"]],
    ),
    (
        "rjsf-team/react-jsonschema-form/issues/1185",
        {"type": "array", "uniqueItems": True, "minItems": 11, "items": {"enum": COLOURS}},
        [COLOURS, COLOURS[::-1]],
        [["red"] * 11],
    ),
    (
        "datamodel-code-generator/datamodel-code-generator/issues/2943",
        tagged(6),
        [{"kind": f"kind {number}", f"m{number}": True} for number in range(6)],
        [{"kind": "kind 0", "m1": True}],
    ),
    (
        "YousefED/typescript-json-schema/issues/498",
        tagged(15),
        [{"kind": "kind 14", "m14": False}],
        [{"kind": "kind 14"}],
    ),
    (
        "json-schema-org/json-schema-spec/issues/180",
        {
            "oneOf": [
                {
                    "properties": {"foo": {"const": "x"}, "a": {"type": "string"}},
                    "required": ["foo", "a"],
                    "type": "object",
                },
                {
                    "properties": {"foo": {"enum": ["y", "z"]}, "b": {"type": "string"}},
                    "required": ["foo", "b"],
                    "type": "object",
                },
            ]
        },
        [{"foo": "x", "a": "1"}, {"foo": "z", "b": "2"}],
        [{"foo": "x", "b": "2"}],
    ),
    (
        "python-jsonschema/jsonschema/issues/66",
        {
            "type": "array",
            "prefixItems": [{"$ref": "#/$defs/x"}, {"$ref": "inner"}],
            "minItems": 2,
            "items": False,
            "$defs": {"x": {"const": "outer"}, "i": INNER},
        },
        [["outer", [7, 7]]],
        [["outer", ["outer"]], [7, []]],
    ),
    (
        "bugventure/jsen/issues/14",
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "$ref": "#child",
            "definitions": {"child": {"$id": "#child", "type": "boolean"}},
        },
        [True, False],
        [1],
    ),
    (
        "ggml-org/llama.cpp/issues/15216",
        obj("b", a={"type": "integer"}, b={"type": "integer"}, c={"type": "integer"}),
        [{"b": 1, "a": 2}, {"c": 3, "b": 1}],
        [{"a": 1}],
    ),
    (
        "noamgat/lm-format-enforcer/issues/31",
        obj("", a={"type": "string"}, b={"type": "string"}),
        [{}, {"a": "x"}, {"b": "y"}, {"a": "x", "b": "y"}],
        [{"c": "z"}],
    ),
    (
        "dottxt-ai/outlines/issues/658",
        {
            "type": "array",
            "maxItems": 20,
            "items": {
                "type": "array",
                "maxItems": 20,
                "items": {"type": "string", "maxLength": 100},
            },
        },
        [[["a" * 90]], []],
        [[["a" * 101]]],
    ),
    (
        "anthropics/claude-code/issues/55539",
        obj("", **{f"field {number}": {"type": ["string", "null"]} for number in range(60)}),
        [{}, {"field 3": None, "field 59": "x"}],
        [{"field 60": None}],
    ),
    (
        "msgspec/msgspec/pull/604",
        {
            "type": "object",
            "additionalProperties": {"type": "integer"},
            "propertyNames": {"pattern": "^[a-c ]+$"},
        },
        [{"a b": 1, "c": 2}],
        [{"d": 1}],
    ),
    (
        "pydantic/pydantic/pull/10478",
        {"type": "object", "additionalProperties": {"type": "boolean"}},
        [{"2 x": True, "größe": False, "a/b": True, 'say "hi"': True}],
        [{"a": 1}],
    ),
]


@pytest.fixture(scope="module")
def layouts(root: Path) -> TemplateBuilder:
    file = root / "mmdiff" / "models" / "tiny" / "tokenizer.json"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(str(file)))
    return TemplateBuilder(Vocabulary.of(tokenizer, TOKENS), TOKENS.mask, TOKENS.eot)


@pytest.mark.parametrize(
    ("report", "schema", "said", "unsaid"), CASES, ids=[case[0] for case in CASES]
)
def test_valid_values_are_within_reach(
    layouts: TemplateBuilder, report: str, schema: Any, said: list[Any], unsaid: list[Any]
) -> None:
    scaffold, judge = compile_schema(schema, layouts, 600), Judge(schema)
    for value in said:
        assert judge(json.dumps(value)) and arranged(scaffold, value) == value, HUB + report
    for value in unsaid:
        with pytest.raises(Unsaid):
            arranged(scaffold, value)
    made, _ = generate(
        scaffold, Fake(layouts, TOKENS, "random"), settings(random.Random(report)), 1
    )
    assert judge(made.text) and not made.stand_in, HUB + report


def made(layouts: TemplateBuilder, kind: Any) -> Any:
    return generate(compile_source(kind, layouts, 400), Fake(layouts, TOKENS, "random"), BASE, 0)[0]


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Strictly(BaseModel):
    model_config = ConfigDict(strict=True)

    day: date
    at: datetime
    link: HttpUrl
    names: Annotated[dict[int, str], Field(min_length=1)]
    levels: dict[Level, bool]


def test_strict_types_are_filled_from_json(layouts: TemplateBuilder) -> None:
    # https://github.com/Pipelex/pipelex/pull/1089,
    # https://github.com/langchain-ai/langchain/issues/29604
    # https://github.com/pydantic/pydantic-ai/issues/1509,
    # https://github.com/pydantic/pydantic/issues/11967
    value = made(layouts, Strictly).value
    assert (
        type(value.day) is date
        and type(value.at) is datetime
        and value.link.scheme in ("http", "https")
    )
    assert all(type(key) is int for key in value.names) and all(
        type(key) is Level for key in value.levels
    )


def test_digits_of_decimals_are_kept_to(layouts: TemplateBuilder) -> None:
    # https://github.com/networknt/json-schema-validator/issues/893
    price = made(layouts, Annotated[Decimal, Field(max_digits=5, decimal_places=2)])
    assert not price.stand_in and abs(price.value) < 1000 and price.value == round(price.value, 2)


class Dated(BaseModel):
    model_config = ConfigDict(strict=True)

    day: date

    @model_validator(mode="after")
    def check(self) -> Dated:
        if self.day.year < 20_000:
            raise ValueError("the day is too early")
        return self


def test_a_check_that_nothing_passes_is_named(layouts: TemplateBuilder) -> None:
    # https://github.com/pydantic/pydantic/issues/7468
    with pytest.raises(UnsatisfiableSchemaError, match="the day is too early"):
        compile_source(Dated, layouts, 100)


def test_what_takes_too_long_is_refused_and_remembered(layouts: TemplateBuilder) -> None:
    # https://github.com/vllm-project/vllm/issues/43920,
    # https://github.com/dottxt-ai/outlines-core/issues/193
    source, seconds = {"type": "string", "pattern": "^(a|b)*a(a|b){40}$"}, []
    for _ in range(2):
        started = time.thread_time()
        with pytest.raises(SchemaTooLargeError):
            compile_schema(source, layouts, 100, seconds=0.3)
        seconds.append(time.thread_time() - started)
    assert seconds[0] < 1.5 and seconds[1] < 0.05


def test_a_name_does_not_send_a_pattern_searching_without_end(layouts: TemplateBuilder) -> None:
    # https://github.com/vllm-project/vllm/issues/17313
    schema = {
        "type": "object",
        "properties": {"a" * 60 + "!": {"type": "null"}},
        "patternProperties": {"^(a|a)*$": {}},
    }
    started = time.thread_time()
    with contextlib.suppress(ScaffoldError):
        compile_schema(schema, layouts, 400)
    assert time.thread_time() - started < 3


def test_members_come_in_the_schemas_order(layouts: TemplateBuilder) -> None:
    # https://github.com/vllm-project/vllm/issues/3283
    schema = obj("z a m", z={"const": 1}, a={"const": 2}, m={"const": 3})
    assert list(
        generate(compile_schema(schema, layouts, 60), Fake(layouts, TOKENS, "random"), BASE, 0)[
            0
        ].value
    ) == ["z", "a", "m"]


def test_what_is_no_type_is_refused_in_a_sentence(layouts: TemplateBuilder) -> None:
    # https://github.com/pydantic/pydantic-ai/issues/1509
    with pytest.raises(ScaffoldError, match="neither a JSON Schema nor a type"):
        compile_source(Callable[[int], int], layouts, 100)


def test_literals_of_numbers_are_names_too(layouts: TemplateBuilder) -> None:
    # https://github.com/pydantic/pydantic/pull/13763
    found = made(layouts, dict[Literal["a", "b"], int])
    assert set(found.value) <= {"a", "b"}


def test_no_length_of_a_word_is_tried_again(layouts: TemplateBuilder) -> None:
    # https://github.com/vllm-project/vllm/issues/43920
    text = {"type": "string"}
    scaffold = compile_schema(obj("a b c", a=text, b=text, c=text), layouts, 900)
    rng = np.random.default_rng(0)
    for _ in range(20):
        passes = 0

        def probe(rows: Sequence[ProbeRow]) -> list[np.ndarray[Any, Any]]:
            nonlocal passes
            passes += 1
            assert passes <= 5  # the usual lengths, 64, 128 and 256
            return [rng.normal(size=(len(row.positions), layouts.vocabulary.size)) for row in rows]

        search_structure(scaffold, probe, 0.0, torch.Generator())


@pytest.mark.parametrize(
    ("schema", "said", "unsaid"),
    [
        (
            obj("x", x={"type": "integer", "minimum": 0, "exclusiveMinimum": True, "maximum": 3}),
            {"x": 1},
            {"x": 0},
        ),
        (
            {"type": "array", "items": [{"const": "a"}, {"type": "integer"}], "minItems": 2},
            ["a", 1],
            [1, "a"],
        ),
    ],
)
def test_older_drafts_are_asked_to_be_named(
    layouts: TemplateBuilder, schema: Any, said: Any, unsaid: Any
) -> None:
    # https://github.com/PayU/api-schema-builder/issues/86,
    # https://github.com/ajv-validator/ajv/issues/835
    # https://github.com/python-openapi/openapi-schema-validator/issues/45
    with pytest.raises(UnsupportedSchemaError, match='say so with "\\$schema": "') as refused:
        compile_schema(schema, layouts, 100)
    name = str(refused.value).rpartition('": "')[2].rstrip('"')
    scaffold = compile_schema({"$schema": name, **schema}, layouts, 100)
    assert arranged(scaffold, said) == said and scaffold.judge(json.dumps(said))
    assert not scaffold.judge(json.dumps(unsaid))


@pytest.mark.parametrize("number", [1, 3, 4, 5, 7])
def test_versions_of_uuids_are_kept_to(layouts: TemplateBuilder, number: int) -> None:
    # https://github.com/pydantic/pydantic/issues/11967
    version = getattr(pydantic, f"UUID{number}", None)
    if version is None:
        pytest.skip(f"this pydantic has no UUID{number}")
    found = made(layouts, version)
    assert not found.stand_in and found.value.version == number


def test_half_a_character_is_refused_in_a_sentence(layouts: TemplateBuilder) -> None:
    # https://github.com/Aider-AI/aider/issues/3693
    for compiled in (
        lambda: compile_choices(["a", "\ud83d"], layouts, 100),
        lambda: compile_template("\ud83d [[ ]]", layouts, 100),
        lambda: compile_template("it is [[\ud83d|red]]", layouts, 100),
    ):
        with pytest.raises(MMDiffError, match="half of a character"):
            compiled()
    with pytest.raises(MMDiffError, match="the same text twice") as refused:
        compile_choices(["word"] * 1000, layouts, 100)
    assert len(str(refused.value)) < 150
