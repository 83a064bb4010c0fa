"""Regular languages over code points: syntax trees with and, or, not and counted repetition, and what one asks of them.

Trees are hash-consed, so that equal trees are one object, and are read by Brzozowski's derivatives (Owens, Reppy and
Turon, "Regular-expression derivatives re-examined", 2009) over classes of code points that the tree cannot tell apart.
Nothing here runs for long: a `Deadline` bounds time, states and trees, and a deep nesting is a `LanguageError` too.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import itertools
import random
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from mmdiff.errors import MMDiffError

Ranges: TypeAlias = tuple[tuple[int, int], ...]  # sorted, apart, both ends inside

_TREES = 200_000  # about 100 MB
_serials = itertools.count()
_interned: weakref.WeakValueDictionary[tuple[Any, ...], Language] = weakref.WeakValueDictionary()


class LanguageError(MMDiffError):
    """A language that is unsupported, empty where it must not be, or too large."""


class LanguageSizeError(LanguageError):
    """A language that is too large to work out."""


class Deadline:
    """Bounds one piece of work: its seconds of this thread's time, an automaton's states, the trees made on the way."""

    def __init__(self, seconds: float = 2.0, states: int = 4000) -> None:
        self.seconds, self.states = seconds, states
        self._end, self._unseen, self._trees = time.thread_time() + seconds, 0, 0

    def check(self) -> None:
        """A LanguageError when the time is over."""
        if time.thread_time() > self._end:  # others may be using the processor
            raise LanguageSizeError(f"the language is too large: not worked out after {self.seconds:g} seconds")

    def step(self, trees: int = 0, work: int = 1) -> None:
        """Counts work done and the trees that it made; looks at the clock now and then."""
        self._unseen += work
        self._trees += trees
        if self._trees > _TREES:
            raise LanguageSizeError(f"the language is too large: more than {_TREES} trees")
        if self._unseen > 64:
            self._unseen = 0
            self.check()

    def count(self, states: int) -> None:
        """A LanguageError when an automaton has more states than allowed."""
        if states > self.states:
            raise LanguageSizeError(f"the language is too large: more than {self.states} states")


_running: contextvars.ContextVar[Deadline | None] = contextvars.ContextVar("deadline of the work at hand", default=None)


@contextlib.contextmanager
def bounded(deadline: Deadline | None) -> Iterator[Deadline]:
    """Bounds the work within by the deadline, or by one of its own; a deep nesting is a LanguageError as well."""
    deadline = deadline or _running.get() or Deadline()
    token = _running.set(deadline)
    try:
        yield deadline
    except RecursionError:
        raise LanguageSizeError("the language is nested too deeply") from None
    finally:
        _running.reset(token)


def still_time() -> None:
    """A LanguageError when the deadline of the work at hand, if it has one, is over."""
    if (deadline := _running.get()) is not None:
        deadline.check()


class Language:
    """A set of texts. Equal trees are one object: comparing and hashing are by identity. Made by the functions below.

    `letters` is a set of code points (a language of one-letter texts) that no text of the language leaves.
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
    # Keys hold the addresses of parts, not the parts: the value keeps these alive, and a chain of values may then be
    # freed without calls nested in calls.
    key = (kind, *(id(each) if isinstance(each, Language) else each for each in parts))
    known = _interned.get(key)
    running = _running.get()
    if running is not None:
        running.step(known is None)
    if known is None:
        known = Language()
        known.kind, known.parts, known.nullable, known.serial = kind, parts, nullable, next(_serials)
        known.letters = known if letters is None else letters
        _interned[key] = known
    return known


NOTHING = _make("none", (), False, None)
EMPTY = _make("empty", (), True, NOTHING)


def chars(ranges: Iterable[tuple[int, int]]) -> Language:
    """The texts of one code point from the ranges (both ends inside); surrogates are left out."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        for left, right in ((max(low, 0), min(high, 0xD7FF)), (max(low, 0xE000), min(high, 0x10FFFF))):
            if left > right:
                continue
            if merged and left <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(right, merged[-1][1]))
            else:
                merged.append((left, right))
    return _make("chars", (tuple(merged),), False, None) if merged else NOTHING


def ranges_of(one: Language) -> Ranges:
    """The ranges of a language made by `chars`."""
    assert one.kind in ("chars", "none"), one
    return one.parts[0] if one.parts else ()


@functools.lru_cache(maxsize=1 << 14)
def _either(one: Language, other: Language) -> Language:
    return one if one is other else chars(ranges_of(one) + ranges_of(other))


@functools.lru_cache(maxsize=1 << 14)
def _both(one: Language, other: Language) -> Language:
    return chars((max(a, c), min(b, d)) for a, b in ranges_of(one) for c, d in ranges_of(other) if a <= d and c <= b)


def _within(one: Language, other: Language) -> bool:
    return one is other or _both(one, other) is one


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
        elif part.kind == "repeat" and part.parts[1:] == (0, None) and part in (tail, *tail.parts[:1]) \
                and (tail is part or tail.kind == "cat"):
            pass  # x* x* = x*
        else:
            tail = _make("cat", (part, tail), part.nullable and tail.nullable, _either(part.letters, tail.letters))
    return tail


def repeat(part: Language, low: int = 0, high: int | None = None) -> Language:
    """From `low` to `high` texts of the part, one after the other; without an end where `high` is None."""
    if high is not None and high < low:
        return NOTHING
    if part.kind == "or" and EMPTY in part.parts:
        part, low = union(*(each for each in part.parts if each is not EMPTY)), 0
    if part.nullable:
        low = 0
    if part is NOTHING or part is EMPTY or high == 0:
        return EMPTY if low == 0 else NOTHING
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
    parts = tuple(part for part in parts if part is not NOTHING)
    if len(parts) < 2:
        return parts[0] if parts else NOTHING
    flat = {each: None for part in parts for each in (part.parts if part.kind == "or" else (part,))}
    running = _running.get()
    if running is not None:
        running.step(work=len(flat))
    letters = [each for each in flat if each.kind == "chars"]
    if len(letters) > 1:
        flat = {each: None for each in flat if each.kind != "chars"}
        flat[chars(itertools.chain.from_iterable(map(ranges_of, letters)))] = None
    if EVERYTHING in flat or any(each.kind == "not" and each.parts[0] in flat for each in flat):
        return EVERYTHING
    heads: dict[Language, list[Language]] = {}
    for each in flat:
        if each.kind == "cat":
            heads.setdefault(each.parts[0], []).append(each)
    for head, several in heads.items():
        if len(several) > 1:  # x y | x z = x (y | z): a list of words becomes a tree
            for each in several:
                del flat[each]
            with bounded(None):
                flat[cat(head, union(*(each.parts[1] for each in several)))] = None
    for star in [each for each in flat if _star(each)]:
        flat = {each: None for each in flat if each is star or not _within(each.letters, star.parts[0])}
    if EMPTY in flat and any(each.nullable for each in flat if each is not EMPTY):
        del flat[EMPTY]
    if len(flat) < 2:
        return next(iter(flat), NOTHING)
    ordered = tuple(sorted(flat, key=_serial))
    nullable = any(each.nullable for each in ordered)
    return _make("or", ordered, nullable, functools.reduce(_either, (each.letters for each in ordered)))


def intersect(*parts: Language) -> Language:
    """The texts that are in all parts."""
    flat = {each: None for part in parts for each in (part.parts if part.kind == "and" else (part,))}
    flat.pop(EVERYTHING, None)
    if not flat:
        return EVERYTHING
    if NOTHING in flat or any(each.kind == "not" and each.parts[0] in flat for each in flat):
        return NOTHING
    if EMPTY in flat:
        return EMPTY if all(each.nullable for each in flat) else NOTHING
    for star in [each for each in flat if _star(each)]:
        if any(_within(each.letters, star.parts[0]) for each in flat if each is not star):
            del flat[star]
    letters = [each for each in flat if each.kind == "chars"]
    if len(letters) > 1:
        common = functools.reduce(_both, letters)
        return intersect(common, *(each for each in flat if each.kind != "chars"))
    if len(flat) == 1:
        return next(iter(flat))
    ordered = tuple(sorted(flat, key=_serial))
    common = functools.reduce(_both, (each.letters for each in ordered))
    return _make("and", ordered, all(each.nullable for each in ordered), common)


def complement(part: Language) -> Language:
    """The texts that are not in the part."""
    if part.kind == "not":
        return part.parts[0]
    return _make("not", (part,), not part.nullable, EVERY)


def multiples(divisor: int, remainder: int = 0) -> Language:
    """The runs of digits (with none among them) that, behind a number of that remainder, make a multiple.

    Raises:
        LanguageError: the divisor is not positive.
    """
    if divisor < 1:
        raise LanguageError(f"a multiple of {divisor} cannot be spelled")
    return _make("mod", (divisor, remainder % divisor), remainder % divisor == 0, DIGITS)


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
TEXT = chars([(0x09, 0x0A), (0x0D, 0x0D), (0x20, 0x7E), (0xA0, 0x10FFFF)])  # no control characters but three
ANY = repeat(TEXT)

_DIGIT = [chars([(digit, digit)]) for digit in range(0x30, 0x3A)]
_NICE = [*map(ord, "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"), *range(0x20, 0x7F)]


class _Derivatives:
    """The states behind one language, with what their calculation has found out so far."""

    def __init__(self, language: Language, deadline: Deadline) -> None:
        self.deadline = deadline
        self.memo: dict[tuple[Language, int], Language] = {}
        self.masks: dict[Language, int] = {}
        self.language = language

    @functools.cached_property
    def bits(self) -> dict[Language, int]:
        """The sets of code points that the tree mentions, and a bit for each."""
        bits: dict[Language, int] = {}
        seen, stack = {self.language}, [self.language]
        while stack:
            one = stack.pop()
            for each in (one,) if one.kind == "chars" else _DIGIT if one.kind == "mod" else ():
                bits.setdefault(each, 1 << len(bits))
            fresh = [each for each in one.parts if isinstance(each, Language) and each not in seen]
            seen.update(fresh)
            stack += fresh
            self.deadline.step()
        return bits

    @functools.cached_property
    def classes(self) -> list[tuple[int, int, Ranges]]:
        """The classes of code points: which sets hold them (bits), the code point to stand for them, their ranges."""
        flips: dict[int, int] = {0: 0, 0xD800: 0, 0xE000: 0, 0x110000: 0}
        for each, bit in self.bits.items():
            for low, high in ranges_of(each):
                flips[low] = flips.get(low, 0) ^ bit
                flips[high + 1] = flips.get(high + 1, 0) ^ bit
        held, found = 0, dict[int, list[tuple[int, int]]]()
        for low, after in itertools.pairwise(sorted(flips)):
            held ^= flips[low]
            if low != 0xD800:
                found.setdefault(held, []).append((low, after - 1))
        ranked = [(_nicest(tuple(ranges)), held, tuple(ranges)) for held, ranges in found.items()]
        return [(held, letter, ranges) for (_, letter), held, ranges in sorted(ranked)]

    def edges(self, one: Language) -> list[tuple[list[Ranges], int, Language]]:
        """Where a state leads: the code points, the nicest of them, and the state behind; no way into nothing."""
        groups: dict[int, tuple[list[Ranges], int]] = {}
        mask = self._mask(one)
        for held, letter, ranges in self.classes:
            groups.setdefault(held & mask, ([], letter))[0].append(ranges)
        behind = ((ranges, letter, self.derive(one, letter)) for ranges, letter in groups.values())
        return [each for each in behind if each[2] is not NOTHING]

    def _mask(self, one: Language) -> int:
        """The sets that a first code point is looked up in; those that no set tells apart lead to one state."""
        if one not in self.masks:
            parts, mask = one, 0
            while parts.kind == "cat" and parts.parts[0].nullable:
                mask |= self._mask(parts.parts[0])
                parts = parts.parts[1]
            if parts.kind == "chars":
                mask |= self.bits.get(parts) or self._late(parts)
            elif parts.kind == "mod":
                mask |= sum(self.bits[each] for each in _DIGIT)
            elif parts.kind in ("cat", "not", "repeat"):
                mask |= self._mask(parts.parts[0])
            else:
                for each in parts.parts:
                    mask |= self._mask(each)
            self.masks[one] = mask
        return self.masks[one]

    def _late(self, letters: Language) -> int:
        """The sets that a set consists of which came up on the way (as a union or a cut of known ones)."""
        return sum(bit for each, bit in self.bits.items() if _both(each, letters) is not NOTHING)

    def derive(self, one: Language, letter: int) -> Language:
        """What may follow the code point in the texts that start with it."""
        if one.kind in ("none", "empty"):
            return NOTHING
        if one.kind == "chars":
            return EMPTY if any(low <= letter <= high for low, high in one.parts[0]) else NOTHING
        if one.kind == "mod":
            divisor, remainder = one.parts
            return multiples(divisor, remainder * 10 + letter - 0x30) if 0x30 <= letter <= 0x39 else NOTHING
        known = self.memo.get((one, letter))
        if known is None:
            self.deadline.step()
            known = self.memo[one, letter] = self._derive(one, letter)
        return known

    def _derive(self, one: Language, letter: int) -> Language:
        if one.kind == "cat":
            found, nullable = list[Language](), True
            while nullable and one.kind == "cat":
                head, one = one.parts
                found.append(cat(self.derive(head, letter), one))
                nullable = head.nullable
            return union(*found, self.derive(one, letter)) if nullable else union(*found)
        if one.kind == "repeat":
            part, low, high = one.parts
            rest = repeat(part, max(low - 1, 0), None if high is None else high - 1)
            return cat(self.derive(part, letter), rest)
        parts = (self.derive(each, letter) for each in one.parts)
        if one.kind == "not":
            return complement(*parts)
        return union(*parts) if one.kind == "or" else intersect(*parts)


def _nicest(ranges: Ranges) -> tuple[int, int]:
    """The rank of a class's nicest code point, and the code point."""
    for rank, letter in enumerate(_NICE):
        if any(low <= letter <= high for low, high in ranges):
            return rank, letter
    return len(_NICE) + ranges[0][0], ranges[0][0]


@dataclasses.dataclass(frozen=True)
class CharAutomaton:
    """A deterministic automaton over code points. It starts in state 0, and every state can reach acceptance.

    `edges` holds, for each state, (ranges, target) pairs whose ranges are apart. The empty language has no states.
    """

    edges: tuple[tuple[tuple[Ranges, int], ...], ...]
    accepts: frozenset[int]

    @property
    def empty(self) -> bool:
        return not self.edges


def automaton(language: Language, deadline: Deadline | None = None) -> CharAutomaton:
    """The automaton of a language, without states that lead nowhere; it need not be the smallest.

    Raises:
        LanguageError: too many states, or the deadline is over.
    """
    with bounded(deadline) as deadline:
        derivatives = _Derivatives(language, deadline)
        numbers, states = {language: 0}, [language]
        edges: list[dict[int, list[Ranges]]] = []
        sources: list[list[int]] = [[]]
        for number, state in enumerate(states):  # grows on the way
            edges.append({})
            for ranges, _, behind in derivatives.edges(state):
                if behind not in numbers:
                    numbers[behind] = len(states)
                    states.append(behind)
                    sources.append([])
                    deadline.count(len(states))
                edges[number].setdefault(numbers[behind], []).extend(ranges)
                sources[numbers[behind]].append(number)
        stack = [number for number, state in enumerate(states) if state.nullable]
        alive = set(stack)
        while stack:
            fresh = set(sources[stack.pop()]) - alive
            alive |= fresh
            stack += fresh
        if 0 not in alive:
            return CharAutomaton((), frozenset())
        new = {number: position for position, number in enumerate(sorted(alive))}
        return CharAutomaton(
            tuple(tuple((ranges_of(chars(itertools.chain.from_iterable(ranges))), new[target])
                        for target, ranges in edges[number].items() if target in new) for number in new),
            frozenset(new[number] for number in alive if states[number].nullable))


def shortest(language: Language, deadline: Deadline | None = None) -> str | None:
    """A shortest text, of letters and digits where it can be; None when the language is empty.

    Raises:
        LanguageError: not found within the deadline or its states.
    """
    with bounded(deadline) as deadline:
        derivatives = _Derivatives(language, deadline)
        came: dict[Language, tuple[Language, int]] = {}
        queue = deque([language])
        seen = {language}
        while queue:
            state = queue.popleft()
            if state.nullable:
                letters: list[str] = []
                while state in came:
                    state, letter = came[state]
                    letters.append(chr(letter))
                return "".join(reversed(letters))
            for _, letter, behind in derivatives.edges(state):
                if behind not in seen:
                    seen.add(behind)
                    came[behind] = state, letter
                    queue.append(behind)
                    deadline.count(len(seen))
        return None


def matches(language: Language, text: str, deadline: Deadline | None = None) -> bool:
    """Whether the text is in the language.

    Raises:
        LanguageError: the deadline is over.
    """
    with bounded(deadline) as deadline:
        derivatives = _Derivatives(language, deadline)
        for letter in text:
            language = NOTHING if 0xD800 <= ord(letter) <= 0xDFFF else derivatives.derive(language, ord(letter))
        return language.nullable


def sample(language: Language, rng: random.Random, most: int, deadline: Deadline | None = None) -> str:
    """A random text; once it has `most` characters, or is near, it heads for the nearest end.

    Raises:
        LanguageError: the language is empty or too large.
    """
    return walk(automaton(language, deadline), rng, most)


def walk(machine: CharAutomaton, rng: random.Random, most: int) -> str:
    """A random text of an automaton, as `sample` makes it."""
    if machine.empty:
        raise LanguageError("the language is empty: it has no text to draw")
    left = _distances(machine)
    state, letters = 0, list[str]()
    while not (state in machine.accepts and (not machine.edges[state] or rng.random() < 0.1 or len(letters) >= most)):
        ways = [way for way in machine.edges[state] if left[way[1]] < most - len(letters)]
        nearest = min(machine.edges[state], key=lambda way: left[way[1]])
        ranges, state = rng.choice(ways) if ways else nearest
        low, high = rng.choice(ranges)
        letters.append(chr(rng.randint(low, min(high, low + 255))))
    return "".join(letters)


def _distances(machine: CharAutomaton) -> list[int]:
    """How many code points each state is away from acceptance."""
    sources: list[list[int]] = [[] for _ in machine.edges]
    for number, ways in enumerate(machine.edges):
        for _, target in ways:
            sources[target].append(number)
    left = {number: 0 for number in machine.accepts}
    queue = deque(left)
    while queue:
        target = queue.popleft()
        for number in sources[target]:
            if number not in left:
                left[number] = left[target] + 1
                queue.append(number)
    return [left[number] for number in range(len(sources))]
