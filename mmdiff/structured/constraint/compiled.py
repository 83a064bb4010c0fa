"""A compiled schema: `compile_schema`, and the `CompiledSchema` that canvases and values come from.

The tree's words are a sound part of what the schema allows, as far as its keywords tell; a
validator has the last word. Before any pass it must accept one value of the tree, the witness, or
the schema is refused; afterwards it must accept what was decoded, or that is repaired: a few slots
are changed, and at last the witness takes its place.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any, NamedTuple

import jsonschema_rs
import numpy as np
from pydantic import ValidationError

from mmdiff.structured.constraint.slots import ChoiceSlot, assignment
from mmdiff.structured.constraint.template import Template, TemplateBuilder
from mmdiff.structured.regular.compile_limits import CompileLimits, LanguageError, bounded
from mmdiff.structured.regular.derivatives import sample
from mmdiff.structured.schema.compile import compile_tree
from mmdiff.structured.schema.errors import (
    ScaffoldError,
    SchemaTooLargeError,
    UnsatisfiableSchemaError,
    UnsupportedSchemaError,
)
from mmdiff.structured.schema.serialize import dumps, identity, pointer
from mmdiff.structured.schema.structure import EnumNode, Expansion, Name, RegularNode, SlotRef, Tree

SECONDS = 2.0  # that compiling may take
TRIES = 60  # values that are tried for a witness
REPAIRS = 240  # values that are tried for a part of one that does not fit,
DRAWN = 20  # of which this many are drawn anew,
PARTS = 8  # and parts that are repaired one after the other
OLDER = ("draft-07", "draft-04")  # drafts that schemas that name none may be of
LARGEST = 4_000_000  # characters of a schema


def as_it_is(value: Any) -> Any:
    return value


class Change(NamedTuple):
    """A piece of a canvas that was changed, by its number, with its text before and after."""

    number: int
    before: str
    now: str


@dataclass(frozen=True)
class Filled:
    """A finished value: its text, what it says, and what had to be changed for it to fit."""

    text: str
    value: Any
    changes: tuple[Change, ...] = ()
    stand_in: bool = (
        False  # nothing like it fits: it is the value that was known from the beginning
    )


@dataclass(eq=False)
class CompiledSchema:
    """What may be said, as a tree, and who judges it; canvases of it are laid out in one
    vocabulary."""

    tree: Tree
    layouts: TemplateBuilder
    budget: int  # tokens
    read: Callable[[str], Any]  # the value of a finished text; a ValueError where it is none
    fits: Callable[[Any], bool]
    finish: Callable[[Any], Any] = as_it_is  # a value to the user's own type
    witness: Expansion = field(default_factory=Expansion)
    words: tuple[str, ...] = ()  # that the witness has in its slots
    where: Callable[[Any], list[str]] = lambda value: [
        ""
    ]  # JSON pointers of what does not fit in a value
    notes: tuple[str, ...] = ()  # what of the schema is not all worked in

    @property
    def bounded(self) -> bool:
        """Whether there is nothing to decide but one of a few values in each slot."""
        walk = self.tree.walk({})
        return not walk.pending and all(
            isinstance(piece, str) or isinstance(piece.node, EnumNode) for piece in walk.pieces
        )

    def judge(self, text: str) -> bool:
        """Whether a text is a value that fits."""
        try:
            return self.fits(self.read(text))
        except ValueError:
            return False

    def fill(self, canvas: Template, ids: Sequence[int]) -> Filled:
        """The value of a finished canvas, repaired where it does not fit."""
        if self.layouts.mask_id in ids:  # it was not denoised to its end
            return self._stand_in()
        texts = canvas.texts(ids, self.layouts.vocabulary)
        if not self.judge("".join(texts)):
            return self._repaired(canvas, texts)
        return Filled("".join(texts), self.finish(self.read("".join(texts))))

    def find_witness(self, deadline: CompileLimits) -> None:
        """Find a value of the tree that fits, the shortest one first.

        Raises:
            UnsatisfiableSchemaError: none was found.
        """
        rng = random.Random(0)
        for turn in range(TRIES):
            walk = self.tree.walk({}) if turn < 1 else self._stroll(rng)
            if walk is None or self.layouts.count(walk) > self.budget:
                if turn < 1 and walk is not None:
                    self.layouts.fit(walk, self.budget)
                continue
            for words in _words(walk, rng, 1 if turn == 0 else 4, deadline):
                if self.judge(_spell(walk, words)):
                    self.witness, self.words = walk, tuple(words)
                    return
            deadline.check()
        raise UnsatisfiableSchemaError(
            f"none of {TRIES} values that were tried fits; make it less strict"
        )

    def _stroll(self, rng: random.Random) -> Expansion | None:
        """A walk with some decisions made at random."""
        decisions: dict[Name, int] = {}
        for _ in range(rng.randint(1, 12)):
            walk = self.tree.walk(decisions)
            if not walk.pending:
                break
            chosen = rng.choice(walk.pending)
            decisions[chosen.name] = rng.choice(chosen.options)
        walk = self.tree.walk(decisions)
        if len(walk.pieces) < 2000:
            return walk
        return None

    def _repaired(self, canvas: Template, texts: list[str]) -> Filled:
        """The same with as few slots changed as may be, in the smallest part that is at fault; else
        the witness."""
        now, faults = list(texts), self._faults(texts)
        rng = random.Random(0)
        for _ in range(PARTS):
            better = next(self._better(canvas, now, faults, rng), None)
            if better is None:
                break
            now, faults = better
            if not faults and self.judge("".join(now)):
                changes = (
                    Change(number, before, after)
                    for number, (before, after) in enumerate(zip(texts, now, strict=True))
                    if before != after
                )
                return Filled("".join(now), self.finish(self.read("".join(now))), tuple(changes))
        return self._stand_in()

    def _better(
        self, canvas: Template, texts: list[str], faults: list[str], rng: random.Random
    ) -> Iterator[tuple[list[str], list[str]]]:
        """Texts with fewer faults, those first that change little of little."""
        for scope in _scopes(faults):
            inside = []
            for number, piece in enumerate(canvas.pieces):
                if not isinstance(piece, str) and _within(piece.path, scope):
                    inside.append(number)
            for other in itertools.islice(_others(canvas, texts, inside, rng), REPAIRS):
                if len(left := self._faults(other)) < len(faults):
                    yield other, left

    def _faults(self, texts: Sequence[str]) -> list[str]:
        try:
            value = self.read("".join(texts))
        except ValueError:
            return [""]
        if self.fits(value):
            return []
        return self.where(value)

    def _stand_in(self) -> Filled:
        text = _spell(self.witness, self.words)
        return Filled(text, self.finish(self.read(text)), (), True)


def compile_schema(
    schema: Any,
    layouts: TemplateBuilder,
    budget: int,
    finish: Callable[[Any], Any] = as_it_is,
    seconds: float = SECONDS,
) -> CompiledSchema:
    """The scaffold of a JSON Schema.

    It may be called in any thread; its time is that of the thread. What took too long is remembered
    by the layouts and refused at once when it comes again.

    Args:
        budget: tokens that a value may have.
        seconds: of the processor, that compiling may take.
        finish: makes the user's own type from a value; what it refuses with a ValueError or
            TypeError does not fit.

    Raises:
        ScaffoldError: the schema is malformed, asks for what no scaffold expresses, admits nothing,
            needs more tokens than there are, or takes too long to compile.
    """
    layouts.vocabulary.prepare()  # once for a tokenizer, so it does not count as the schema's
    try:
        key = _key(schema, budget, seconds)
    except (RecursionError, ValueError, TypeError):
        return _compiled(
            schema, layouts, budget, finish, CompileLimits(seconds)
        )  # refused there, with the reason
    if (refusal := layouts.refusals.get(key)) is not None:
        raise SchemaTooLargeError(*refusal)
    try:
        return _compiled(schema, layouts, budget, finish, CompileLimits(seconds))
    except SchemaTooLargeError as error:
        layouts.refusals.put(key, (error.reason, error.pointer))
        raise


def _key(schema: Any, budget: int, seconds: float) -> bytes:
    return hashlib.sha256(
        f"{budget} {seconds} {dumps(schema)}".encode(errors="surrogatepass")
    ).digest()


def _compiled(
    schema: Any,
    layouts: TemplateBuilder,
    budget: int,
    finish: Callable[[Any], Any],
    deadline: CompileLimits,
) -> CompiledSchema:
    try:
        if len(dumps(schema)) > LARGEST:
            raise SchemaTooLargeError(f"it has more than {LARGEST:,} characters")
        with bounded(deadline):
            tree = compile_tree(schema, deadline)
            validator = jsonschema_rs.validator_for(
                schema, validate_formats=True, retriever=_nothing
            )
            check = _Check(validator.is_valid, finish)
            made = CompiledSchema(
                tree,
                layouts,
                budget,
                read_json,
                check,
                finish,
                where=partial(_where, validator),
                notes=tree.notes,
            )
            try:
                made.find_witness(deadline)
            except UnsatisfiableSchemaError as error:
                if not check.refusal:
                    raise
                raise UnsatisfiableSchemaError(
                    f"{error.reason}; the type's own check refuses what fits its schema: "
                    f"{check.refusal}",
                    error.pointer,
                ) from None
    except LanguageError as error:
        raise SchemaTooLargeError(str(error)) from None
    except jsonschema_rs.ValidationError as error:
        where = reduce(pointer, error.instance_path, "")
        raise UnsupportedSchemaError(
            f"it is not a valid JSON Schema: {error.message[:200]}{_older(schema)}", where
        ) from None
    except jsonschema_rs.ReferencingError as error:
        raise UnsupportedSchemaError(
            f"it is not a valid JSON Schema: {str(error).splitlines()[0][:200]}"
        ) from None
    except (RecursionError, OverflowError, MemoryError):
        raise SchemaTooLargeError("it is nested too deeply, or its numbers are too large") from None
    except ScaffoldError:
        raise
    except (ValueError, TypeError) as error:
        raise UnsupportedSchemaError(
            f"it is not a JSON Schema: {str(error).splitlines()[0][:200]}"
        ) from None
    return made


def _older(schema: Any) -> str:
    """What to do about a schema that names no draft, and is valid in an older one only, as those of
    OpenAPI 3.0 are."""
    if isinstance(schema, Mapping) and "$schema" not in schema:
        for name in (f"http://json-schema.org/{draft}/schema#" for draft in OLDER):
            if jsonschema_rs.meta.is_valid({"$schema": name, **schema}):
                return f'; it would be valid in an older draft: say so with "$schema": "{name}"'
    return ""


class _Check:
    """Whether a value fits: the validator's word, then that of the user's own type."""

    def __init__(self, valid: Callable[[Any], bool], finish: Callable[[Any], Any]) -> None:
        self.valid, self.finish = valid, finish
        self.refusal = ""  # what the type said last

    def __call__(self, value: Any) -> bool:
        if not self.valid(value):
            return False
        try:
            self.finish(value)  # pydantic's errors are ValueErrors
        except (ValueError, TypeError) as error:
            self.refusal = _first(error)
            return False
        return True


def _where(validator: Any, value: Any) -> list[str]:
    """Where the validator finds faults in a value; the whole of it, where the type's own check
    does."""
    found = []
    for error in itertools.islice(validator.iter_errors(value), 20):
        found.append(reduce(pointer, error.instance_path, ""))
    return found or [""]


def _first(error: Exception) -> str:
    """What an error says, in a line: of pydantic's the first, and where it is."""
    if isinstance(error, ValidationError):
        told = error.errors(include_url=False, include_context=False)[0]
        where = reduce(pointer, told["loc"], "")
        given = str(told["input"])[:80]
        return f"at {where or 'the root'} of the value: {told['msg']} (given {given!r})"
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _nothing(uri: str) -> Any:
    """Nothing is ever fetched for a schema."""
    raise UnsupportedSchemaError(
        f"$ref {uri!r} leads out of the schema; put what it names under $defs"
    )


def read_json(text: str) -> Any:
    """A JSON value; a ValueError where a name stands twice in an object."""
    return json.loads(text, object_pairs_hook=_members)


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(members := dict(pairs)) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return members


def _spell(walk: Expansion, words: Sequence[str]) -> str:
    left = iter(words)
    return "".join(piece if isinstance(piece, str) else next(left) for piece in walk.pieces)


def _words(
    walk: Expansion, rng: random.Random, times: int, deadline: CompileLimits
) -> Iterator[list[str]]:
    """What the slots of a walk might say: the shortest, then drawn."""
    refs = [piece for piece in walk.pieces if isinstance(piece, SlotRef)]
    groups: dict[str, list[int]] = {}
    for number, ref in enumerate(refs):
        if ref.group:
            groups.setdefault(ref.group, []).append(number)
    for turn in range(times):
        words = []
        for ref in refs:
            words.append(_word(ref.node, rng, turn > 0, deadline))
        for numbers in groups.values():
            for number, text in _apart(
                [refs[number].node for number in numbers], numbers, rng, turn > 0
            ):
                words[number] = text
        yield words


def _apart(
    nodes: Sequence[Any], numbers: Sequence[int], rng: random.Random, drawn: bool
) -> Iterator[tuple[int, str]]:
    """Values of some slots, no two the same, where there are such."""
    columns: dict[str, int] = {}
    for node in nodes:
        for value in node.values:
            columns.setdefault(identity(value), len(columns))
    gain_NM = np.full((len(nodes), len(columns)), -np.inf)
    for row_M, node in zip(gain_NM, nodes, strict=True):
        for choice, value in enumerate(node.values):
            if drawn:
                row_M[columns[identity(value)]] = rng.random()
            else:
                row_M[columns[identity(value)]] = -choice
    found = assignment(gain_NM)
    for number, node, column in zip(
        numbers, nodes, found if found is not None else (), strict=found is not None
    ):
        yield (
            number,
            next(
                text
                for text, value in zip(node.texts, node.values, strict=True)
                if columns[identity(value)] == column
            ),
        )


def _word(
    node: EnumNode | RegularNode, rng: random.Random, drawn: bool, deadline: CompileLimits
) -> str:
    if isinstance(node, EnumNode):
        if drawn:
            return rng.choice(node.texts)
        return node.texts[0]
    word = node.shortest
    if drawn and not node.least and node.most is None:
        word = sample(node.language, rng, 8 + len(word), deadline)
    if node.spelling == "json":
        return dumps(word)[1:-1]
    return word


def _scopes(faults: Sequence[str]) -> list[str]:
    """JSON pointers of the parts that are at fault, the smallest first, and of all that they are
    in."""
    found = dict.fromkeys(faults)
    for fault in faults:
        while fault:
            fault = fault.rpartition("/")[0]
            found[fault] = None
    return sorted(found, key=lambda scope: -scope.count("/"))


def _within(path: str, scope: str) -> bool:
    """Whether a slot lies in a part; the names of entries are not known in a slot's path."""
    parts, wanted = path.split("/"), scope.split("/")
    return len(parts) >= len(wanted) and all(
        one == other or one.startswith("*") for one, other in zip(parts, wanted, strict=False)
    )


def _others(
    canvas: Template, texts: Sequence[str], inside: Sequence[int], rng: random.Random
) -> Iterator[list[str]]:
    """The texts with one slot of a part changed, or two, the likeliest choices first; then with all
    of it drawn."""
    ways = list(itertools.islice(_changes(canvas, texts, inside, rng), REPAIRS // 3))
    for count in (1, 2):
        for changed in itertools.islice(itertools.combinations(ways, count), REPAIRS // 3):
            other = list(texts)
            for number, text in changed:
                other[number] = text
            yield other
    twice = []
    for position, number in enumerate(inside):
        if texts[number] in [texts[before] for before in inside[:position]]:
            twice.append(number)
    for some in (twice, inside):  # what was said before, then all
        for _ in range(DRAWN if some else 0):
            other = list(texts)
            for number in some:
                other[number] = _drawn(canvas, number, rng)
            yield other


def _changes(
    canvas: Template, texts: Sequence[str], inside: Sequence[int], rng: random.Random
) -> Iterator[tuple[int, str]]:
    """Pieces, and what might stand there instead: choices by their likelihood, words with something
    behind them."""
    for number in inside:
        piece = canvas.pieces[number]
        if isinstance(piece, ChoiceSlot):
            chances = piece.probabilities or (1.0,) * len(piece.values)
            order = sorted(range(len(piece.values)), key=lambda choice: -chances[choice])
            for choice in order[:8]:
                if piece.texts[choice] != texts[number]:
                    yield (number, piece.texts[choice])
        else:
            for more in ("1", "2", "a", "b"):
                yield (number, texts[number] + more)
            for _ in range(4):
                yield (number, _drawn(canvas, number, rng))


def _drawn(canvas: Template, number: int, rng: random.Random) -> str:
    ref = canvas.expansion[number]
    assert isinstance(ref, SlotRef)
    try:
        return _word(ref.node, rng, True, CompileLimits(SECONDS))
    except LanguageError:
        return _word(ref.node, rng, False, CompileLimits(SECONDS))
