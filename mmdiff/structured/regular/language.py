"""Regular languages over code points: syntax trees with and, or, not and counted repetition.

Trees are hash-consed, so that equal trees are one object. `derivatives.py` reads them.
"""

from __future__ import annotations

import functools
import itertools
import threading
import weakref
from collections.abc import Iterable
from typing import Any, TypeAlias

from mmdiff.structured.regular.compile_limits import LanguageError, bounded, counted

Ranges: TypeAlias = tuple[tuple[int, int], ...]  # sorted, apart, both ends inside

_interning = threading.Lock()
_serials = itertools.count()
_interned: weakref.WeakValueDictionary[tuple[Any, ...], Language] = weakref.WeakValueDictionary()


class Language:
    """A set of texts. Equal trees are one object: comparing and hashing are by identity. Made by
    the functions below.

    `letters` is a set of code points (a language of one-letter texts) that no text of the language
    leaves.
    """

    __slots__ = ("kind", "parts", "nullable", "letters", "serial", "__weakref__")

    kind: str  # none, empty, chars, cat, or, and, not, repeat, mod
    parts: tuple[Any, ...]
    nullable: bool
    letters: Language
    serial: int

    def __or__(self, other: Language) -> Language:
        return union(self, other)

    def __and__(self, other: Language) -> Language:
        return intersect(self, other)

    def __add__(self, other: Language) -> Language:
        return cat(self, other)

    def __sub__(self, other: Language) -> Language:
        return intersect(self, complement(other))

    def __invert__(self) -> Language:
        return complement(self)

    def __repr__(self) -> str:
        return f"<Language {self.kind} #{self.serial}>"


def _make(kind: str, parts: tuple[Any, ...], nullable: bool, letters: Language | None) -> Language:
    # Keys hold the addresses of parts, not the parts: the value keeps these alive, and a chain of
    # values may then be freed without calls nested in calls.
    key = (kind, *(id(each) if isinstance(each, Language) else each for each in parts))
    known = _interned.get(key)
    counted(known is None)
    if known is not None:
        return known
    with _interning:  # lest two threads make the same
        known = _interned.get(key)
        if known is None:
            known = Language()
            known.kind, known.parts = kind, parts
            known.nullable, known.serial = nullable, next(_serials)
            known.letters = known if letters is None else letters
            _interned[key] = known
    return known


NOTHING = _make("none", (), False, None)
EMPTY = _make("empty", (), True, NOTHING)


def chars(ranges: Iterable[tuple[int, int]]) -> Language:
    """The texts of one code point from the ranges (both ends inside); surrogates are left out."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        for left, right in (
            (max(low, 0), min(high, 0xD7FF)),
            (max(low, 0xE000), min(high, 0x10FFFF)),
        ):
            if left > right:
                continue
            if merged and left <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(right, merged[-1][1]))
            else:
                merged.append((left, right))
    if merged:
        return _make("chars", (tuple(merged),), False, None)
    return NOTHING


def ranges_of(one: Language) -> Ranges:
    """The ranges of a language made by `chars`."""
    assert one.kind in ("chars", "none"), one
    if one.parts:
        return one.parts[0]
    return ()


@functools.lru_cache(maxsize=1 << 14)
def _either(one: Language, other: Language) -> Language:
    if one is other:
        return one
    return chars(ranges_of(one) + ranges_of(other))


@functools.lru_cache(maxsize=1 << 14)
def both(one: Language, other: Language) -> Language:
    """The code points that are in both sets."""
    return chars(
        (max(a, c), min(b, d))
        for a, b in ranges_of(one)
        for c, d in ranges_of(other)
        if a <= d and c <= b
    )


def _within(one: Language, other: Language) -> bool:
    return one is other or both(one, other) is one


def cat(*parts: Language) -> Language:
    """The texts of the parts, one after the other."""
    if NOTHING in parts:
        return NOTHING
    *before, tail = parts or (EMPTY,)
    flat: list[Language] = []  # the last one stays as it is: chains lean to the right
    for part in before:
        while part.kind == "cat":
            head, part = part.parts
            flat.append(head)
        flat.append(part)
    for part in reversed(flat):
        if part is EMPTY:
            continue
        if tail is EMPTY:
            tail = part
        elif (
            part.kind == "repeat"
            and part.parts[1:] == (0, None)
            and part in (tail, *tail.parts[:1])
            and (tail is part or tail.kind == "cat")
        ):
            pass  # x* x* = x*
        else:
            tail = _make(
                "cat",
                (part, tail),
                part.nullable and tail.nullable,
                _either(part.letters, tail.letters),
            )
    return tail


def repeat(part: Language, low: int = 0, high: int | None = None) -> Language:
    """From `low` to `high` texts of the part, one after the other; without an end where `high` is
    None."""
    if high is not None and high < low:
        return NOTHING
    if part.kind == "or" and EMPTY in part.parts:
        part, low = union(*(each for each in part.parts if each is not EMPTY)), 0
    if part.nullable:
        low = 0
    if part is NOTHING or part is EMPTY or high == 0:
        if low == 0:
            return EMPTY
        return NOTHING
    if low == high == 1:
        return part
    if part.kind == "repeat":
        inner, least, most = part.parts
        if most is None and least <= 1:
            return repeat(inner, least * low, None)
        if high is None and low == 0 and least <= 1:
            return repeat(inner, 0, None)
    return _make("repeat", (part, low, high), low == 0, part.letters)


def union(*parts: Language) -> Language:
    """The texts of any part."""
    several = [part for part in parts if part is not NOTHING]
    if len(several) < 2:
        return several[0] if several else NOTHING
    flat = _flattened("or", several)
    counted(work=len(flat))
    letters = _of_kind(flat, "chars")
    if len(letters) > 1:
        for each in letters:
            del flat[each]
        flat[chars(itertools.chain.from_iterable(map(ranges_of, letters)))] = None
    if EVERYTHING in flat or any(each.kind == "not" and each.parts[0] in flat for each in flat):
        return EVERYTHING
    _factor_heads(flat)
    _drop_covered(flat)
    if EMPTY in flat and any(each.nullable for each in flat if each is not EMPTY):
        del flat[EMPTY]
    if len(flat) < 2:
        return next(iter(flat), NOTHING)
    ordered = tuple(sorted(flat, key=_serial))
    nullable = any(each.nullable for each in ordered)
    return _make(
        "or", ordered, nullable, functools.reduce(_either, (each.letters for each in ordered))
    )


def _drop_covered(flat: dict[Language, None]) -> None:
    """Drop, in place, what a part such as [a-z]* holds already."""
    for star in filter(_star, list(flat)):
        for each in list(flat):
            if each is not star and _within(each.letters, star.parts[0]):
                del flat[each]


def _flattened(kind: str, parts: Iterable[Language]) -> dict[Language, None]:
    """The parts in order, each once, with the parts of those of the kind instead of themselves."""
    flat: dict[Language, None] = {}
    for part in parts:
        if part.kind == kind:
            flat.update(dict.fromkeys(part.parts))
        else:
            flat[part] = None
    return flat


def _of_kind(parts: Iterable[Language], kind: str) -> list[Language]:
    return [part for part in parts if part.kind == kind]


def _factor_heads(flat: dict[Language, None]) -> None:
    """x y | x z becomes x (y | z), in place, so that a list of words becomes a tree."""
    heads: dict[Language, list[Language]] = {}
    for each in _of_kind(flat, "cat"):
        heads.setdefault(each.parts[0], []).append(each)
    for head, several in heads.items():
        if len(several) > 1:
            for each in several:
                del flat[each]
            with bounded(None):
                flat[cat(head, union(*(each.parts[1] for each in several)))] = None


def intersect(*parts: Language) -> Language:
    """The texts that are in all parts."""
    flat = _flattened("and", parts)
    flat.pop(EVERYTHING, None)
    if not flat:
        return EVERYTHING
    if NOTHING in flat or any(each.kind == "not" and each.parts[0] in flat for each in flat):
        return NOTHING
    if EMPTY in flat:
        if all(each.nullable for each in flat):
            return EMPTY
        return NOTHING
    for star in [each for each in flat if _star(each)]:
        if any(_within(each.letters, star.parts[0]) for each in flat if each is not star):
            del flat[star]
    letters = _of_kind(flat, "chars")
    if len(letters) > 1:
        for each in letters:
            del flat[each]
        return intersect(functools.reduce(both, letters), *flat)
    if len(flat) == 1:
        return next(iter(flat))
    ordered = tuple(sorted(flat, key=_serial))
    common = functools.reduce(both, (each.letters for each in ordered))
    return _make("and", ordered, all(each.nullable for each in ordered), common)


def complement(part: Language) -> Language:
    """The texts that are not in the part."""
    if part.kind == "not":
        return part.parts[0]
    return _make("not", (part,), not part.nullable, EVERY)


def multiples(divisor: int, remainder: int = 0) -> Language:
    """The runs of digits (with none among them) that, behind a number of that remainder, make a
    multiple.

    Points among the digits are read over, so that decimals are multiples of the last digit's unit.

    Raises:
        LanguageError: the divisor is not positive.
    """
    if divisor < 1:
        raise LanguageError(f"a multiple of {divisor} cannot be spelled")
    return _make(
        "mod", (divisor, remainder % divisor), remainder % divisor == 0, _either(DIGITS, POINT)
    )


def literal(text: str) -> Language:
    """The one text; a LanguageError for surrogates."""
    if any(0xD800 <= ord(each) <= 0xDFFF for each in text):
        raise LanguageError(f"{text!r} holds a lone surrogate")
    return cat(*(chars([(ord(each), ord(each))]) for each in text))


def words(texts: Iterable[str]) -> Language:
    """The texts that are listed."""
    return union(*map(literal, texts))


def _star(part: Language) -> bool:
    return part.kind == "repeat" and part.parts[1:] == (0, None) and part.parts[0].kind == "chars"


def _serial(part: Language) -> int:
    return part.serial


EVERY = chars([(0, 0x10FFFF)])
EVERYTHING = complement(NOTHING)
DIGITS = chars([(0x30, 0x39)])
POINT = chars([(0x2E, 0x2E)])
TEXT = chars(
    [(0x09, 0x0A), (0x0D, 0x0D), (0x20, 0x7E), (0xA0, 0x10FFFF)]
)  # no control characters but three
ANY = repeat(TEXT)
