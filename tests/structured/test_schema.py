"""What schemas are lowered to, what is refused and where, and what it takes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, Field

from mmdiff.config import PRESETS
from mmdiff.errors import MMDiffError
from mmdiff.eval.structured_adversarial import (
    BASE,
    SCHEMAS,
    Fake,
    Judge,
    generate,
    half_the_passes,
    mutations,
)
from mmdiff.structured.constraint.compiled import compile_schema
from mmdiff.structured.constraint.membership import arranged
from mmdiff.structured.constraint.template import TemplateBuilder
from mmdiff.structured.schema.errors import (
    BudgetError,
    ScaffoldError,
    SchemaTooLargeError,
    UnsatisfiableSchemaError,
    UnsupportedSchemaError,
)
from mmdiff.structured.schema.inputs import (
    compile_choices,
    compile_source,
    compile_template,
)
from mmdiff.structured.schema.serialize import dumps, outline

TOKENS = PRESETS["tiny"].tokens


def values(layouts: TemplateBuilder, schema: Any, count: int = 12) -> list[Any]:
    """Values that random weights give a schema."""
    scaffold, judge = compile_schema(schema, layouts, 512), Judge(schema)
    made = [
        generate(
            scaffold,
            Fake(layouts, TOKENS, "random"),
            dataclasses.replace(BASE, temperature=1.0),
            seed,
        )[0]
        for seed in range(count)
    ]
    assert all(judge(each.text) for each in made)
    return [each.value for each in made]


def test_objects_keep_the_order_of_the_schema_and_decide_optional_members(
    layouts: TemplateBuilder,
) -> None:
    schema = {
        "type": "object",
        "required": ["z", "b"],
        "properties": {"z": {"const": 1}, "m": {"const": 2}, "b": {"const": 3}, "a": {"const": 4}},
    }
    seen = {tuple(value) for value in values(layouts, schema, 30)}
    assert seen == {("z", "b"), ("z", "m", "b"), ("z", "b", "a"), ("z", "m", "b", "a")}


def test_all_of_a_small_domain_is_reached(layouts: TemplateBuilder) -> None:
    schema = {"type": "array", "minItems": 1, "maxItems": 2, "items": {"enum": ["a", None]}}
    seen = {json.dumps(value) for value in values(layouts, schema, 60)}
    assert seen == {'["a"]', "[null]", '["a", "a"]', '["a", null]', '[null, "a"]', "[null, null]"}


@pytest.mark.parametrize(
    ("schema", "needed"),
    [
        ({"type": "integer", "minimum": 3, "maximum": 5}, {3, 4, 5}),
        ({"type": "integer", "multipleOf": 4, "minimum": 1, "maximum": 12}, {4, 8, 12}),
        ({"type": ["boolean", "null"]}, {True, False, None}),
        ({"enum": [1, 2, 3], "not": {"const": 2}}, {1, 3}),
        ({"anyOf": [{"const": "x"}, {"type": "null"}]}, {"x", None}),
        ({"allOf": [{"enum": [1, 2, 3]}, {"minimum": 2}]}, {2, 3}),
        ({"oneOf": [{"enum": [1, 2]}, {"enum": [2, 3]}]}, {1, 3}),
        ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"const": "y"}}}, {"y"}),
        ({"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 1}, {0, 0.5, 1}),
        (
            {"type": "number", "multipleOf": 0.01, "exclusiveMinimum": 19.98, "maximum": 20},
            {19.99, 20},
        ),
    ],
)
def test_few_values_are_all_reached_and_no_others(
    layouts: TemplateBuilder, schema: Any, needed: set[Any]
) -> None:
    assert set(values(layouts, schema, 40)) == needed


REFUSED: list[tuple[Any, type[ScaffoldError], str]] = [
    ({"type": "nope"}, UnsupportedSchemaError, "/type"),
    ({"properties": {"a": {"type": 5}}}, UnsupportedSchemaError, "/properties/a/type"),
    (
        {"properties": {"a": {"$ref": "https://example.com/a.json"}}},
        UnsupportedSchemaError,
        "/properties/a/$ref",
    ),
    ({"$ref": "#/$defs/no"}, UnsupportedSchemaError, "/$ref"),
    ({"$dynamicRef": "#x"}, UnsupportedSchemaError, "/$dynamicRef"),
    ({"type": "string", "pattern": "(a"}, UnsupportedSchemaError, ""),
    ({"type": "string", "pattern": "^(?<=a)b$"}, UnsupportedSchemaError, ""),
    (
        {"properties": {"a": False}, "required": ["a"], "type": "object"},
        UnsatisfiableSchemaError,
        "",
    ),
    ({"type": "integer", "minimum": 5, "maximum": 4}, UnsatisfiableSchemaError, ""),
    ({"allOf": [{"type": "string"}, {"type": "integer"}]}, UnsatisfiableSchemaError, ""),
    ({"$ref": "#"}, UnsatisfiableSchemaError, ""),
    (
        {"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}},
        UnsatisfiableSchemaError,
        "",
    ),
    (
        {"type": "array", "items": {"enum": [1, 2]}, "minItems": 3, "uniqueItems": True},
        UnsatisfiableSchemaError,
        "",
    ),
    ({"type": "string", "minLength": 9999}, BudgetError, ""),
    ({"type": "string", "pattern": "^(a|b)*a(a|b){30}$"}, SchemaTooLargeError, ""),
    ({"type": "string", "pattern": "^(a{1000}){1000}$"}, ScaffoldError, ""),
    (3, UnsupportedSchemaError, ""),
    ("string", UnsupportedSchemaError, ""),
    ([], UnsupportedSchemaError, ""),
    ({"enum": 3}, UnsupportedSchemaError, ""),
    ({"const": float("nan")}, UnsupportedSchemaError, ""),
    ({"minimum": "3"}, UnsupportedSchemaError, ""),
    ({"anyOf": {}}, UnsupportedSchemaError, ""),
]


@pytest.mark.parametrize(
    ("schema", "kind", "where"), REFUSED, ids=[str(case[0])[:50] for case in REFUSED]
)
def test_what_cannot_be_honoured_is_refused_with_its_place(
    layouts: TemplateBuilder, schema: Any, kind: type[ScaffoldError], where: str
) -> None:
    with pytest.raises(kind) as caught:
        compile_schema(schema, layouts, 256)
    assert caught.value.pointer.startswith(where)
    assert "\n" not in str(caught.value)


def test_a_budget_that_is_too_small_is_refused_with_what_is_needed(
    layouts: TemplateBuilder,
) -> None:
    with pytest.raises(BudgetError, match="raise max_tokens") as caught:
        compile_schema(SCHEMAS["receipt"], layouts, 20)
    assert compile_schema(SCHEMAS["receipt"], layouts, caught.value.needed)
    with pytest.raises(BudgetError):
        compile_schema(SCHEMAS["receipt"], layouts, caught.value.needed - 1)


def test_the_budget_is_never_exceeded(layouts: TemplateBuilder) -> None:
    for budget in (100, 110, 130):
        scaffold = compile_schema(SCHEMAS["receipt"], layouts, budget)
        for seed in range(5):
            made, _ = generate(scaffold, Fake(layouts, TOKENS, "random"), BASE, seed)
            assert not made.changes and not made.stand_in and Judge(SCHEMAS["receipt"])(made.text)


def _nested(depth: int) -> Any:
    schema: Any = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema, "minItems": 1}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {
            "type": "object",
            "properties": {
                f"name {n}": {"type": "string", "pattern": f"^a{{{n % 50}}}b"}
                for n in range(12_000)
            },
        },
        {"enum": ["x" * 50 + str(n) for n in range(20_000)]},
        _nested(90),
        _nested(3000),
        {
            "$ref": "#/$defs/a0",
            "$defs": {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(60)},
        },
        {"anyOf": [{"allOf": [{"anyOf": [{"minimum": n}, {"maximum": n}]} for n in range(40)]}]},
        {"type": "string", "pattern": "(" * 500 + "a" + ")*" * 500},
        {"type": "array", "minItems": 10**9, "items": {"type": "null"}},
        {"type": "integer", "multipleOf": 10**300},
    ],
    ids=[
        "many members",
        "long enum",
        "deep",
        "very deep",
        "many references",
        "product",
        "nested groups",
        "long array",
        "large step",
    ],
)
def test_large_schemas_are_compiled_or_refused_in_time(
    layouts: TemplateBuilder, schema: Any
) -> None:
    started = time.thread_time()
    with contextlib.suppress(ScaffoldError):
        compile_schema(schema, layouts, 2000)
    assert time.thread_time() - started < 3.0  # the limit of 2 seconds, and what is not interrupted


@pytest.mark.parametrize("first", range(0, 300, 100))
def test_mutated_schemas_are_refused_or_honoured(layouts: TemplateBuilder, first: int) -> None:
    """The longer run of 10,000 is `python -m mmdiff.eval.structured mutated`."""
    outcomes = [covered.outcome for covered in mutations(layouts, TOKENS, first, 100)]
    assert set(outcomes) <= {
        "valid",
        *(
            kind.__name__
            for kind in (
                BudgetError,
                SchemaTooLargeError,
                UnsatisfiableSchemaError,
                UnsupportedSchemaError,
            )
        ),
    }


def test_values_that_are_mostly_structure_take_at_most_half_the_passes_of_free_decoding(
    layouts: TemplateBuilder,
) -> None:
    told = {name: (made, free) for name, made, free in half_the_passes(layouts, TOKENS)}
    assert told["choices"][0] == 1
    mostly_structure = ("one of", "overlapping", "unique", "all of", "not", "if", "dependent")
    assert all(2 * told[name][0] <= told[name][1] for name in mostly_structure), told


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(JSON)
@settings(max_examples=60, deadline=None)
def test_any_constant_comes_out_as_it_is(layouts: TemplateBuilder, value: Any) -> None:
    scaffold = compile_schema({"const": value}, layouts, 2000)
    assert generate(scaffold, Fake(layouts, TOKENS, "random"), BASE, 0)[0].value == value


# What people give beside JSON Schema


class Item(BaseModel):
    name: str = Field(max_length=12)
    price: float = Field(ge=0, le=100)


class Receipt(BaseModel):
    kind: Literal["cash", "card"]
    items: list[Item] = Field(max_length=2)
    note: str | None = None


@dataclasses.dataclass
class Point:
    x: int
    y: int


def test_types_give_their_own_values(layouts: TemplateBuilder) -> None:
    for source, kind in (
        (Receipt, Receipt),
        (Point, Point),
        (list[int], list),
        (Literal["a", "b"], str),
    ):
        scaffold = compile_source(source, layouts, 300)
        for seed in range(3):
            assert isinstance(
                generate(scaffold, Fake(layouts, TOKENS, "random"), BASE, seed)[0].value, kind
            )


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("even")
    return value


def test_a_types_own_checks_hold(layouts: TemplateBuilder) -> None:
    scaffold = compile_source(
        list[Annotated[int, Field(ge=0, le=9), AfterValidator(_odd)]], layouts, 100
    )
    for seed in range(6):
        made, _ = generate(scaffold, Fake(layouts, TOKENS, "random"), BASE, seed)
        assert all(value % 2 for value in made.value)


def test_choices_patterns_and_templates_give_texts(layouts: TemplateBuilder) -> None:
    fake = Fake(layouts, TOKENS, "random")
    choices = compile_choices(["red", "dark blue"], layouts, 64)
    assert {generate(choices, fake, BASE, seed)[0].text for seed in range(8)} == {
        "red",
        "dark blue",
    }
    digits = compile_template("[[/[0-9]{3}-[ab]/]]", layouts, 64)
    text = generate(digits, fake, BASE, 0)[0].text
    assert text[:3].isdigit() and text[3:] in ("-a", "-b")
    template = compile_template("The [[ ]] is [[red|green]], /[[/[0-9]{2}/]]/.", layouts, 64)
    text = generate(template, fake, BASE, 0)[0].text
    assert text.startswith("The ") and text.split("/")[1].isdigit()
    assert " is red," in text or " is green," in text


@pytest.mark.parametrize("choices", [[], ["a", "a"], ["a", ""], "abc", [1]])
def test_bad_choices_are_refused(layouts: TemplateBuilder, choices: Any) -> None:
    with pytest.raises(MMDiffError, match="choices="):
        compile_choices(choices, layouts, 64)


def test_a_text_without_holes_is_refused(layouts: TemplateBuilder) -> None:
    with pytest.raises(MMDiffError, match="no hole"):
        compile_template("nothing to fill", layouts, 64)


@pytest.mark.parametrize("count", [7, 9, 10, 11])
def test_rankings_are_found_and_not_repaired(layouts: TemplateBuilder, count: int) -> None:
    names = [f"choice {number}" for number in range(count)]
    scaffold = compile_schema(
        {"type": "array", "items": {"enum": names}, "minItems": count, "uniqueItems": True},
        layouts,
        512,
    )
    for seed in range(3):
        made, passes = generate(
            scaffold,
            Fake(layouts, TOKENS, "random"),
            dataclasses.replace(BASE, temperature=float(seed)),
            seed,
        )
        assert sorted(made.value) == sorted(names) and not made.changes and passes == 1


def test_a_set_has_at_most_all_values(layouts: TemplateBuilder) -> None:
    listed = {"c": {"enum": ["a", "b"]}}
    schema = {"type": "array", "items": {"$ref": "#/$defs/c"}, "uniqueItems": True, "$defs": listed}
    assert {tuple(sorted(value)) for value in values(layouts, schema, 30)} == {
        (),
        ("a",),
        ("b",),
        ("a", "b"),
    }


def test_names_of_entries_never_meet(layouts: TemplateBuilder) -> None:
    schema = {
        "type": "object",
        "propertyNames": {"enum": list("abcde")},
        "minProperties": 5,
        "additionalProperties": {"type": "boolean"},
    }
    assert all(sorted(value) == list("abcde") for value in values(layouts, schema, 4))


def _kinds(count: int, **more: Any) -> dict[str, Any]:
    """As many conditions as kinds."""
    rules = [
        {
            "if": {"properties": {"kind": {"const": n}}, "required": ["kind"]},
            "then": {"required": [f"m{n}"]},
        }
        for n in range(count)
    ]
    flags = {f"m{n}": {"type": "boolean"} for n in range(count)}
    return {
        "type": "object",
        "required": ["kind"],
        "properties": {"kind": {"enum": list(range(count))}, **flags},
        "allOf": rules,
        **more,
    }


@pytest.mark.parametrize("count", [5, 6, 20])
def test_conditions_lose_no_kind(layouts: TemplateBuilder, count: int) -> None:
    scaffold = compile_schema(_kinds(count), layouts, 1000)
    for kind in range(count):
        arranged(scaffold, {"kind": kind, f"m{kind}": True})
    assert (
        not scaffold.notes
        and not generate(scaffold, Fake(layouts, TOKENS, "random"), BASE, 1)[0].changes
    )


def test_one_of_several_members_is_decided_and_not_repaired(layouts: TemplateBuilder) -> None:
    members = {name: {"type": "string", "maxLength": 5} for name in "abc"}
    schema = {
        "type": "object",
        "properties": members,
        "additionalProperties": False,
        "oneOf": [{"required": [name]} for name in members],
    }
    scaffold = compile_schema(schema, layouts, 200)
    for name in members:
        assert arranged(scaffold, {name: "x"}) == {name: "x"}
    found = [
        generate(
            scaffold,
            Fake(layouts, TOKENS, "random"),
            dataclasses.replace(BASE, temperature=1.0),
            seed,
        )[0]
        for seed in range(8)
    ]
    assert not any(each.stand_in or each.changes for each in found)


def test_else_is_for_all_that_does_not_meet_the_condition(layouts: TemplateBuilder) -> None:
    schema = {
        "type": "object",
        "required": ["a", "b"],
        "additionalProperties": False,
        "properties": {
            "a": {"type": "integer", "minimum": 0, "maximum": 100},
            "b": {"type": "boolean"},
        },
        "if": {"properties": {"a": {"minimum": 50}}, "required": ["a"]},
        "then": {"properties": {"b": {"const": True}}},
        "else": {"properties": {"b": {"const": False}}},
    }
    scaffold = compile_schema(schema, layouts, 100)
    for value in ({"a": 60, "b": True}, {"a": 10, "b": False}):
        assert arranged(scaffold, value) == value


def test_conditions_that_are_too_many_are_checked_and_that_is_said(
    layouts: TemplateBuilder,
) -> None:
    flags = [f"b{n}" for n in range(8)]
    schema = {
        "type": "object",
        "required": flags,
        "properties": {
            name: {"type": "boolean"} for name in [*flags, *(name + "x" for name in flags)]
        },
        "allOf": [
            {"if": {"properties": {name: {"const": True}}}, "then": {"required": [name + "x"]}}
            for name in flags
        ],
    }
    scaffold, judge = compile_schema(schema, layouts, 512), Judge(schema)
    assert [note.split(" of the schema")[0] for note in scaffold.notes] == [
        "at /allOf/6",
        "at /allOf/7",
    ]
    assert judge(generate(scaffold, Fake(layouts, TOKENS, "random"), BASE, 3)[0].text)


def test_the_same_reference_means_another_thing_under_another_id(layouts: TemplateBuilder) -> None:
    same = {"$ref": "#/$defs/x", "minimum": 0}
    inner = {"$id": "https://example.com/inner", **same, "$defs": {"x": {"const": 5}}}
    schema = {
        "$id": "https://example.com/outer",
        "type": "object",
        "required": ["a", "b"],
        "properties": {"a": same, "b": inner},
        "$defs": {"x": {"const": 3}},
    }
    assert values(layouts, schema, 2) == [{"a": 3, "b": 5}] * 2


def test_id_is_no_keyword_of_newer_drafts(layouts: TemplateBuilder) -> None:
    """References beside it are read from the root."""
    schema = {
        "type": "object",
        "required": ["a"],
        "properties": {"a": {"$ref": "#/definitions/a"}},
        "definitions": {
            "a": {
                "id": "schema/a",
                "anyOf": [{"$ref": "#/definitions/a/definitions/b"}],
                "definitions": {"b": {"const": 1}},
            }
        },
    }
    assert values(layouts, schema, 1) == [{"a": 1}]


def test_all_that_is_said_is_found_to_be_said(layouts: TemplateBuilder) -> None:
    """`arranged` is a mirror of what is generated."""
    warm = dataclasses.replace(BASE, temperature=1.0)
    for name in ("receipt", "maps", "anything", "recursive", "unique", "numbers", "if", "contains"):
        scaffold = compile_schema(SCHEMAS[name], layouts, 512)
        value = generate(scaffold, Fake(layouts, TOKENS, "random"), warm, 4)[0].value
        assert arranged(scaffold, value) == value


def test_words_may_be_long(layouts: TemplateBuilder) -> None:
    text = "a word and another, " * 30
    for schema in ({"type": "string"}, {"type": "string", "minLength": 3, "maxLength": 2000}):
        assert arranged(compile_schema(schema, layouts, 1000), text) == text


def test_threads_may_compile_beside_each_other(layouts: TemplateBuilder) -> None:
    fresh = TemplateBuilder(layouts.vocabulary, layouts.mask_id, layouts.end_id)
    with ThreadPoolExecutor(4) as pool:
        made = list(
            pool.map(lambda name: compile_schema(SCHEMAS[name], fresh, 512), [*SCHEMAS, *SCHEMAS])
        )
    assert [dumps(each.read(each._stand_in().text)) for each in made[: len(SCHEMAS)]] == [
        dumps(compile_schema(schema, layouts, 512)._stand_in().value) for schema in SCHEMAS.values()
    ]


def test_refusals_cross_to_other_processes(layouts: TemplateBuilder) -> None:
    for schema, budget in (({"type": "nope"}, 10), ({"type": "string", "minLength": 90}, 10)):
        with pytest.raises(ScaffoldError) as caught:
            compile_schema(schema, layouts, budget)
        copied = pickle.loads(pickle.dumps(caught.value))
        assert type(copied) is type(caught.value) and str(copied) == str(caught.value)
        assert copied.pointer == caught.value.pointer


def test_a_small_part_is_repaired(layouts: TemplateBuilder) -> None:
    scaffold = compile_schema(
        {
            "type": "object",
            "required": ["a", "b"],
            "properties": {
                "a": {
                    "type": "array",
                    "items": {"type": "integer", "minimum": 0, "maximum": 500},
                    "minItems": 4,
                    "maxItems": 4,
                    "uniqueItems": True,
                },
                "b": {"type": "string", "maxLength": 9},
            },
        },
        layouts,
        200,
    )
    made, _ = generate(scaffold, Fake(layouts, TOKENS, "infinite"), BASE, 0)
    before = [int(change.before) for change in made.changes]
    assert not made.stand_in and 0 < len(before) < 4 and len(set(made.value["a"])) == 4
    assert set(before) & set(made.value["a"])


def test_an_outline_shows_names_and_types() -> None:
    assert outline(SCHEMAS["choices"]) == '{"a":true,"b":""|0|null|0.0,"c":0}'
    assert outline(Receipt.model_json_schema()).startswith('{"kind":"cash"|"card"')
