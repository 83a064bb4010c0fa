"""Structured output without a model: random and adversarial logits, real and mutated schemas.

Both validators, jsonschema and jsonschema-rs, judge with formats. `structured.py` has the commands.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import lzma
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import jsonschema
import jsonschema_rs
import numpy as np
import torch
from torch import Tensor

from mmdiff.config import DecodingConfig, TokenIds
from mmdiff.decoding.canvas import Array, Canvas
from mmdiff.decoding.commit_rules import RULES
from mmdiff.decoding.sampler import Sampler
from mmdiff.errors import require_posix
from mmdiff.structured.constraint.compiled import CompiledSchema, Filled, compile_schema
from mmdiff.structured.constraint.structure_search import ProbeRow, search_structure
from mmdiff.structured.constraint.template import TemplateBuilder
from mmdiff.structured.constraint.token_dfa import Vocabulary
from mmdiff.structured.schema.errors import ScaffoldError
from mmdiff.structured.schema.serialize import pieces

BASE = DecodingConfig(gen_length=256, block_length=256, steps=8)
TEMPERATURES = (0.0, 1.0, 5.0)
AT_ONCE = (1, 2, 4, 8, 10_000)  # positions committed per step
SECONDS = 5.0  # that jsonschema may take to judge one value
LogitsSource = Callable[
    [int, int, random.Random, TokenIds, Sequence[int]], Tensor
]  # logits (N, V); quotes are the last


def _normal(
    count: int, size: int, rng: random.Random, tokens: TokenIds, quotes: Sequence[int]
) -> Tensor:
    return torch.from_numpy(
        np.random.default_rng(rng.getrandbits(32)).normal(0, 3, (count, size)).astype(np.float32)
    )


def _one(token: Callable[[TokenIds, Sequence[int]], int]) -> LogitsSource:
    def weights(
        count: int, size: int, rng: random.Random, tokens: TokenIds, quotes: Sequence[int]
    ) -> Tensor:
        logits_NV = _normal(count, size, rng, tokens, quotes)
        logits_NV[:, token(tokens, quotes)] = 1e4
        return logits_NV

    return weights


def _filled(value: float) -> LogitsSource:
    return lambda count, size, rng, tokens, quotes: torch.full((count, size), value)


def _torn(
    count: int, size: int, rng: random.Random, tokens: TokenIds, quotes: Sequence[int]
) -> Tensor:
    """Some numbers missing, some infinite."""
    logits_NV = _normal(count, size, rng, tokens, quotes)
    for value in (float("nan"), float("inf"), -float("inf")):
        logits_NV[
            torch.rand(count, size, generator=torch.Generator().manual_seed(rng.getrandbits(32)))
            < 0.2
        ] = value
    return logits_NV


WEIGHTS: dict[str, LogitsSource] = {
    "random": _normal,
    "nan": _filled(float("nan")),
    "infinite": _filled(float("inf")),
    "minus infinite": _filled(-float("inf")),
    "torn": _torn,
    "quote": _one(lambda tokens, quotes: quotes[0]),
    "end of text": _one(lambda tokens, quotes: tokens.eos),
    "end of turn": _one(lambda tokens, quotes: tokens.eot),
    "mask": _one(lambda tokens, quotes: tokens.mask),
}

THING = {
    "type": "object",
    "properties": {"shape": {"enum": ["circle", "star"]}, "n": {"type": "integer"}},
    "required": ["shape"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {
    "receipt": {
        "type": "object",
        "required": ["shop", "date", "items", "total", "paid"],
        "properties": {
            "shop": {"type": "string", "minLength": 1, "maxLength": 40},
            "date": {"type": "string", "format": "date"},
            "items": {
                "type": "array",
                "minItems": 1,
                "maxItems": 3,
                "items": {
                    "type": "object",
                    "required": ["name", "price"],
                    "properties": {
                        "name": {"type": "string", "pattern": "^[A-Z][a-z]+( [a-z]+)*$"},
                        "price": {"type": "number", "minimum": 0, "exclusiveMaximum": 1000},
                    },
                },
            },
            "total": {"type": "number", "minimum": 0},
            "paid": {"type": "boolean"},
            "currency": {"enum": ["EUR", "USD", None]},
        },
    },
    "choices": {
        "type": "object",
        "required": ["a", "b", "c"],
        "properties": {
            "a": {"type": "boolean"},
            "b": {"enum": ["red", "green", 3, None, 1.5]},
            "c": {"type": "integer", "minimum": 1, "maximum": 5},
        },
    },
    "numbers": {
        "type": "array",
        "minItems": 5,
        "maxItems": 5,
        "prefixItems": [
            {"type": "integer", "minimum": -5000, "maximum": 123456},
            {"type": "number", "minimum": -1.5, "maximum": 2.25},
            {"type": "integer", "multipleOf": 7, "minimum": 1000},
            {"type": "number", "multipleOf": 0.25},
            {"type": "number"},
        ],
    },
    "formats": {
        "type": "object",
        "required": list("abcdefg"),
        "properties": {
            "a": {"format": "date-time", "type": "string"},
            "b": {"format": "uuid", "type": "string"},
            "c": {"format": "email", "type": "string"},
            "d": {"format": "ipv4", "type": "string"},
            "e": {"format": "uri", "type": "string"},
            "f": {"format": "time", "type": "string"},
            "g": {"format": "duration", "type": "string"},
        },
    },
    "lengths": {
        "type": "object",
        "required": ["a", "b", "c"],
        "properties": {
            "a": {"type": "string", "minLength": 3, "maxLength": 5},
            "b": {"type": "string", "minLength": 30},
            "c": {"type": "string", "maxLength": 60},
        },
    },
    "recursive": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "required": ["v"],
                "properties": {
                    "v": {"type": "integer"},
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                },
            }
        },
    },
    "maps": {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 3,
        "patternProperties": {"^k[0-9]{1,2}$": {"type": "integer"}},
        "additionalProperties": False,
    },
    "one of": {
        "oneOf": [
            THING,
            {"type": "object", "required": ["kind"], "properties": {"kind": {"const": "none"}}},
            {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        ]
    },
    "overlapping": {
        "oneOf": [
            {"type": "integer", "minimum": 0, "maximum": 9},
            {"type": "integer", "minimum": 5, "maximum": 14},
        ]
    },
    "unique": {
        "type": "array",
        "uniqueItems": True,
        "minItems": 3,
        "maxItems": 4,
        "items": {"enum": ["a", "b", "c", "d", "e"]},
    },
    "all of": {
        "allOf": [
            {
                "type": "object",
                "properties": {"a": {"type": "integer", "minimum": 3}},
                "required": ["a"],
            },
            {"properties": {"a": {"maximum": 50}, "b": {"type": "string", "pattern": "x"}}},
        ]
    },
    "not": {
        "type": "object",
        "required": ["a"],
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 3, "not": {"const": 2}}},
    },
    "if": {
        "type": "object",
        "required": ["kind"],
        "properties": {"kind": {"enum": ["x", "y"]}, "n": {"type": "integer"}},
        "if": {"properties": {"kind": {"const": "x"}}},
        "then": {"required": ["n"]},
    },
    "dependent": {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"type": "boolean"}},
        "dependentRequired": {"a": ["b"]},
    },
    "text": {"type": "string"},
    "anything": True,
    "free object": {"type": "object"},
    "contains": {
        "type": "array",
        "maxItems": 3,
        "contains": {"const": 7},
        "items": {"type": "integer"},
    },
    "tuple": {
        "type": "array",
        "prefixItems": [{"type": "string", "maxLength": 3}, {"type": "boolean"}],
        "items": False,
        "minItems": 2,
    },
}


@dataclass(frozen=True)
class Fake:
    """What stands in for a model: a tokenizer's layouts, and weights that know nothing or mean
    ill."""

    layouts: TemplateBuilder
    tokens: TokenIds
    weights: str

    def __call__(self, count: int, rng: random.Random) -> Tensor:
        size, quotes = self.layouts.vocabulary.size, self.layouts.literal('"')
        return WEIGHTS[self.weights](count, size, rng, self.tokens, quotes)


def generate(
    scaffold: CompiledSchema, fake: Fake, decoding: DecodingConfig, seed: int
) -> tuple[Filled, int]:
    """One value of a scaffold, and how many passes it took, those about the structure among
    them."""
    rng = random.Random(seed)
    draws = torch.Generator().manual_seed(seed)
    passes = 0

    def probe(rows: Sequence[ProbeRow]) -> list[np.ndarray[Any, Any]]:
        nonlocal passes
        passes += 1
        return _probe(fake, rng, rows)

    def predict(
        ids_AG: Array, rows: Sequence[int], select_AG: Array, hidden_AG: Array | None = None
    ) -> Tensor:
        count = int(select_AG.sum())
        if hidden_AG is not None:
            count += int(hidden_AG.sum())
        return fake(count, rng)

    canvas = search_structure(scaffold, probe, decoding.temperature, draws).canvas
    length = len(canvas.ids)
    settings = replace(decoding, gen_length=length, block_length=length)
    if scaffold.bounded:
        settings = replace(settings, rule="threshold", threshold=0.0)
    batch = Sampler(
        predict,
        Canvas.of(canvas.begun(), fake.tokens.mask),
        settings,
        fake.tokens,
        [seed],
        constraints=[canvas.constraint],
    )
    while batch.working:
        batch.step()
        passes += 1
    return scaffold.fill(canvas, batch.canvas.ids_BG[0].tolist()), passes


def settings(rng: random.Random) -> DecodingConfig:
    """Any commit or revising rule, temperature and number of commits per step."""
    rule = rng.choice(sorted(RULES))
    chosen: dict[str, Any] = {
        "rule": rule,
        "steps": max(1, 64 // rng.choice(AT_ONCE)),
        "temperature": rng.choice(TEMPERATURES),
        "top_k": rng.choice((None, None, 1, 5)),
    }
    return replace(BASE, **chosen)


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """A TimeoutError after so long, also from inside Python's regular expressions; for the main
    thread."""

    def stop(*_: Any) -> None:
        raise TimeoutError

    require_posix("measuring with a limit on time")
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Judge:
    """Both validators, with formats."""

    def __init__(self, schema: Any) -> None:
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        kind = jsonschema.validators.extend(kind, {"multipleOf": _multiple})
        self._slow = kind(schema, format_checker=kind.FORMAT_CHECKER)
        self._fast = jsonschema_rs.validator_for(schema, validate_formats=True)

    def __call__(self, text: str) -> bool:
        value = json.loads(text)
        try:
            with limited(SECONDS):
                slow = bool(self._slow.is_valid(value))
        except (
            re.error,
            TimeoutError,
        ):  # a pattern of ECMA's that Python does not read, or reads without end
            slow = True
        return slow and bool(self._fast.is_valid(value))


def _multiple(
    validator: Any, step: float, value: Any, schema: Any
) -> Iterator[jsonschema.ValidationError]:
    """`multipleOf` by decimals: jsonschema divides floats, and 19.99 is not a multiple of 0.01 to
    it."""
    if validator.is_type(value, "number") and Fraction(str(value)) % Fraction(str(step)):
        yield jsonschema.ValidationError(f"{value} is not a multiple of {step}")


def validity(
    layouts: TemplateBuilder, tokens: TokenIds, generations: int, seed: int = 0
) -> Counter[str]:
    """Generate with every kind of weights, and count what was valid, changed to fit, and not valid
    (which is a bug)."""
    rng, counts = random.Random(seed), Counter[str]()
    compiled = {}
    for name, schema in SCHEMAS.items():
        compiled[name] = (compile_schema(schema, layouts, 512), Judge(schema))
    for number in range(generations):
        name = rng.choice(list(compiled))
        scaffold, judge = compiled[name]
        weights, decoding = rng.choice(list(WEIGHTS)), settings(rng)
        made, _ = generate(scaffold, Fake(layouts, tokens, weights), decoding, seed + number)
        valid = judge(made.text)
        counts["valid" if valid else "not valid"] += 1
        counts[f"changed to fit: {name}"] += bool(made.changes)
        counts[f"witness: {name}"] += made.stand_in
        if not valid:
            counts[
                f"not valid: {name}, {weights}, {decoding}, seed {seed + number}: {made.text}"
            ] += 1
    return counts


@dataclass(frozen=True)
class Covered:
    """What became of one schema: "valid", "invalid", or the name of the error that refused it."""

    name: str
    outcome: str
    seconds: float  # that compiling took
    told: str = ""


def coverage(
    schemas: Iterator[tuple[str, Any]],
    layouts: TemplateBuilder,
    tokens: TokenIds,
    draws: int = 4,
    budget: int = 4096,
) -> Iterator[Covered]:
    """Compile each schema, generate a few values with random weights, and judge them."""
    for name, schema in schemas:
        started = time.perf_counter()
        try:
            scaffold = compile_schema(schema, layouts, budget)
        except ScaffoldError as error:
            yield Covered(name, type(error).__name__, time.perf_counter() - started, str(error))
            continue
        seconds = time.perf_counter() - started
        try:
            judge = Judge(schema)
            texts = []
            for turn in range(draws):
                texts.append(
                    generate(
                        scaffold,
                        Fake(layouts, tokens, "random"),
                        replace(BASE, temperature=float(turn > 0)),
                        turn,
                    )[0].text
                )
            wrong = [text for text in texts if not judge(text)]
            if wrong:
                yield Covered(name, "invalid", seconds, wrong[0])
            else:
                yield Covered(name, "valid", seconds)
        except (jsonschema.exceptions.SchemaError, jsonschema_rs.ValidationError) as error:
            yield Covered(name, "malformed", seconds, str(error).splitlines()[0])


def open_text(path: Path) -> TextIO:
    """A text in UTF-8, packed with xz or not."""
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def read_schemas(path: Path) -> Iterator[tuple[str, Any]]:
    """Lines of {"id", "schema"}, packed with xz or not."""
    with open_text(path) as file:
        for line in file:
            row = json.loads(line)
            schema = row["schema"]
            if isinstance(schema, str):
                schema = json.loads(schema)
            yield row["id"], schema


KEYWORDS = (
    "type",
    "properties",
    "required",
    "items",
    "minItems",
    "maxItems",
    "enum",
    "const",
    "anyOf",
    "oneOf",
    "allOf",
    "not",
    "if",
    "then",
    "pattern",
    "format",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "multipleOf",
    "$ref",
    "additionalProperties",
    "patternProperties",
    "propertyNames",
    "uniqueItems",
    "contains",
    "prefixItems",
    "dependentRequired",
    "minProperties",
    "exclusiveMinimum",
    "$id",
    "$defs",
)
ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    2,
    1e308,
    "",
    "a",
    "#",
    "#/$defs/x",
    "date",
    "^a$",
    "[",
    [],
    {},
    ["a"],
    [{}],
    {"a": {}},
    {"type": "string"},
    {"type": "integer"},
    {"$ref": "#"},
    {"enum": ["b"]},
    ["string", "null"],
    [1, 1],
)


def _mappings(schema: Any) -> list[dict[str, Any]]:
    """The schema and all mappings in it, the outer ones first."""
    found = [schema] if isinstance(schema, dict) else []
    for place in found:
        found += [each for each in place.values() if isinstance(each, dict)]
        for each in place.values():
            if isinstance(each, list):
                found += [item for item in each if isinstance(item, dict)]
    return found


def mutated(rng: random.Random) -> Any:
    """A schema with something put in, taken out or replaced in one to three places."""
    schema = json.loads(json.dumps(rng.choice(list(SCHEMAS.values()))))
    places = _mappings(schema)
    chosen = []
    if places:
        chosen = rng.choices(places, k=rng.randint(1, 3))
    for place in chosen:
        key = rng.choice(KEYWORDS if rng.random() < 0.5 or not place else sorted(place))
        if rng.random() < 0.3:
            place.pop(key, None)
        else:
            place[key] = rng.choice([*ODD, *SCHEMAS.values()])
    return schema


def _mutation(seed: int) -> tuple[str, Any]:
    return str(seed), mutated(random.Random(seed))


def mutations(
    layouts: TemplateBuilder, tokens: TokenIds, first: int, count: int
) -> Iterator[Covered]:
    """What becomes of mutated schemas, each of its own seed."""
    rows = map(_mutation, range(first, first + count))
    yield from coverage(rows, layouts, tokens, draws=1, budget=256)


def half_the_passes(layouts: TemplateBuilder, tokens: TokenIds) -> Iterator[tuple[str, int, int]]:
    """Of each schema: its name, the passes of one value, and those of the same text set free, both
    one at a time."""
    for name, schema in SCHEMAS.items():
        scaffold = compile_schema(schema, layouts, 512)
        made, passes = generate(
            scaffold, Fake(layouts, tokens, "random"), replace(BASE, steps=256), 0
        )
        free = 1
        for piece in pieces(json.loads(made.text)):
            free += len(layouts.vocabulary.encode(piece.text))
        yield name, passes, free


def large_vocabulary(size: int, tokens: TokenIds) -> Vocabulary:
    """Bytes, numbers, signs with quotes, and words with and without a space in front: made up, not
    learned."""
    rng = random.Random(0)
    words = {bytes([byte]) for byte in range(256)}
    words.update(str(number).encode() for number in range(1000))
    for sign, other in itertools.product('",:{}[]', '",:{}[] '):
        words.add(f"{sign}{other}".encode())
    while len(words) < size - 8:
        length = rng.choice((2, 3, 4, 5, 6, 7, 8, 10, 12))
        words.add(
            (
                rng.choice(("", " ", " ")) + "".join(rng.choices("etaoinshrdlucmfwygpb", k=length))
            ).encode()
        )
    spelled: list[bytes | None] = [None] * 8 + sorted(words)
    lookup = {}
    for number, word in enumerate(spelled):
        if word is not None:
            lookup[word] = number

    def encode(text: str) -> list[int]:
        return [lookup[bytes([byte])] for byte in text.encode()]

    return Vocabulary(spelled, tokens.eos, False, encode)


def added_time(
    tokens: TokenIds, size: int = 130_000, schema: str = "receipt", repeats: int = 5
) -> dict[str, float]:
    """Milliseconds of the first step, with all slots open, with and without constraints, and what
    they add: medians."""
    layouts = TemplateBuilder(large_vocabulary(size, tokens), tokens.mask, tokens.eot)
    scaffold = compile_schema(SCHEMAS[schema], layouts, 512)
    fake = Fake(layouts, tokens, "random")
    times: dict[str, list[float]] = {"with": [], "without": []}
    positions = 0
    for turn in range(repeats + 1):
        rng, draws = random.Random(turn), torch.Generator().manual_seed(turn)
        probe = partial(_probe, fake, rng)
        canvas = search_structure(scaffold, probe, 0.0, draws).canvas
        ids_BG = canvas.begun()
        settings = replace(
            BASE, gen_length=len(canvas.ids), block_length=len(canvas.ids), steps=8, stop=False
        )
        positions = int((ids_BG == tokens.mask).sum())
        logits_GV = fake(len(canvas.ids), rng)
        for way, constraint in (("with", canvas.constraint), ("without", None)):
            batch = Sampler(
                lambda ids, rows, select, hidden=None, known=logits_GV: known[select[0]],
                Canvas.of(ids_BG, tokens.mask),
                settings,
                tokens,
                [0],
                constraints=[constraint],
            )
            started = time.perf_counter()
            batch.step()
            if turn:  # the first warms up
                times[way].append(1e3 * (time.perf_counter() - started))
    medians = {}
    for way, each in times.items():
        medians[way] = float(np.median(each))
    return {
        **medians,
        "added": medians["with"] - medians["without"],
        "open positions": float(positions),
    }


def _probe(fake: Fake, rng: random.Random, rows: Sequence[ProbeRow]) -> list[np.ndarray[Any, Any]]:
    return [fake(len(row.positions), rng).log_softmax(-1).numpy() for row in rows]
