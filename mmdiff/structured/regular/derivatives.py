"""Queries on a regular language by Brzozowski derivatives: DFA, shortest member, emptiness,
sampling.

Derivatives (Owens, Reppy and Turon, "Regular-expression derivatives re-examined", 2009) are taken
over classes of code points that the tree cannot tell apart. Nothing here runs for long: a
`CompileLimits` bounds time, states and trees, and a deep nesting is a `LanguageError` too.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
from collections import deque

from mmdiff.structured.regular.compile_limits import CompileLimits, LanguageError, bounded
from mmdiff.structured.regular.language import (
    EMPTY,
    NOTHING,
    POINT,
    Language,
    Ranges,
    both,
    cat,
    chars,
    complement,
    intersect,
    multiples,
    ranges_of,
    repeat,
    union,
)

_COUNTED = [
    *(chars([(digit, digit)]) for digit in range(0x30, 0x3A)),
    POINT,
]  # what a multiple tells apart
_NICE = [
    *map(ord, "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    *range(0x20, 0x7F),
]


class _Derivatives:
    """The states behind one language, with what their calculation has found out so far."""

    def __init__(self, language: Language, deadline: CompileLimits) -> None:
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
            for each in (one,) if one.kind == "chars" else _COUNTED if one.kind == "mod" else ():
                bits.setdefault(each, 1 << len(bits))
            fresh = []
            for each in one.parts:
                if isinstance(each, Language) and each not in seen:
                    fresh.append(each)
            seen.update(fresh)
            stack += fresh
            self.deadline.step()
        return bits

    @functools.cached_property
    def classes(self) -> list[tuple[int, int, Ranges]]:
        """The classes of code points: which sets hold them (bits), the code point to stand for
        them, their ranges."""
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
        """Where a state leads: the code points, the nicest of them, and the state behind; no way
        into nothing."""
        groups: dict[int, tuple[list[Ranges], int]] = {}
        mask = self._mask(one)
        for held, letter, ranges in self.classes:
            groups.setdefault(held & mask, ([], letter))[0].append(ranges)
        behind = ((ranges, letter, self.derive(one, letter)) for ranges, letter in groups.values())
        return [each for each in behind if each[2] is not NOTHING]

    def _mask(self, one: Language) -> int:
        """The sets that a first code point is looked up in; those that no set tells apart lead to
        one state."""
        if one not in self.masks:
            parts, mask = one, 0
            while parts.kind == "cat" and parts.parts[0].nullable:
                mask |= self._mask(parts.parts[0])
                parts = parts.parts[1]
            if parts.kind == "chars":
                mask |= self.bits.get(parts) or self._late(parts)
            elif parts.kind == "mod":
                mask |= sum(self.bits[each] for each in _COUNTED)
            elif parts.kind in ("cat", "not", "repeat"):
                mask |= self._mask(parts.parts[0])
            else:
                for each in parts.parts:
                    mask |= self._mask(each)
            self.masks[one] = mask
        return self.masks[one]

    def _late(self, letters: Language) -> int:
        """The sets that a set consists of which came up on the way (as a union or a cut of known
        ones)."""
        return sum(bit for each, bit in self.bits.items() if both(each, letters) is not NOTHING)

    def derive(self, one: Language, letter: int) -> Language:
        """What may follow the code point in the texts that start with it."""
        if one.kind in ("none", "empty"):
            return NOTHING
        if one.kind == "chars":
            if any(low <= letter <= high for low, high in one.parts[0]):
                return EMPTY
            return NOTHING
        if one.kind == "mod":
            divisor, remainder = one.parts
            if letter == 0x2E:
                return one
            if 0x30 <= letter <= 0x39:
                return multiples(divisor, remainder * 10 + letter - 0x30)
            return NOTHING
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
            if nullable:
                return union(*found, self.derive(one, letter))
            return union(*found)
        if one.kind == "repeat":
            part, low, high = one.parts
            rest = repeat(part, max(low - 1, 0), None if high is None else high - 1)
            return cat(self.derive(part, letter), rest)
        parts = (self.derive(each, letter) for each in one.parts)
        if one.kind == "not":
            return complement(*parts)
        if one.kind == "or":
            return union(*parts)
        return intersect(*parts)


def _nicest(ranges: Ranges) -> tuple[int, int]:
    """The rank of a class's nicest code point, and the code point."""
    for rank, letter in enumerate(_NICE):
        if any(low <= letter <= high for low, high in ranges):
            return rank, letter
    return len(_NICE) + ranges[0][0], ranges[0][0]


@dataclasses.dataclass(frozen=True)
class CharDfa:
    """A deterministic automaton over code points. It starts in state 0, and every state can reach
    acceptance.

    `edges` holds, for each state, (ranges, target) pairs whose ranges are apart. The empty language
    has no states.
    """

    edges: tuple[tuple[tuple[Ranges, int], ...], ...]
    accepts: frozenset[int]

    @property
    def empty(self) -> bool:
        return not self.edges


def automaton(language: Language, deadline: CompileLimits | None = None) -> CharDfa:
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
        stack = []
        for number, state in enumerate(states):
            if state.nullable:
                stack.append(number)
        alive = set(stack)
        while stack:
            fresh = set(sources[stack.pop()]) - alive
            alive |= fresh
            stack += fresh
        if 0 not in alive:
            return CharDfa((), frozenset())
        new = {}
        for position, number in enumerate(sorted(alive)):
            new[number] = position
        return CharDfa(
            tuple(
                tuple(
                    (ranges_of(chars(itertools.chain.from_iterable(ranges))), new[target])
                    for target, ranges in edges[number].items()
                    if target in new
                )
                for number in new
            ),
            frozenset(new[number] for number in alive if states[number].nullable),
        )


def shortest(language: Language, deadline: CompileLimits | None = None) -> str | None:
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


def matches(language: Language, text: str, deadline: CompileLimits | None = None) -> bool:
    """Whether the text is in the language.

    Raises:
        LanguageError: the deadline is over.
    """
    with bounded(deadline) as deadline:
        derivatives = _Derivatives(language, deadline)
        for letter in text:
            if 0xD800 <= ord(letter) <= 0xDFFF:
                language = NOTHING
            else:
                language = derivatives.derive(language, ord(letter))
        return language.nullable


def sample(
    language: Language, rng: random.Random, most: int, deadline: CompileLimits | None = None
) -> str:
    """A random text; once it has `most` characters, or is near, it heads for the nearest end.

    Raises:
        LanguageError: the language is empty or too large.
    """
    return walk(automaton(language, deadline), rng, most)


def walk(machine: CharDfa, rng: random.Random, most: int) -> str:
    """A random text of an automaton, as `sample` makes it."""
    if machine.empty:
        raise LanguageError("the language is empty: it has no text to draw")
    left = _distances(machine)
    state, letters = 0, list[str]()
    while not (
        state in machine.accepts
        and (not machine.edges[state] or rng.random() < 0.1 or len(letters) >= most)
    ):
        ways = [way for way in machine.edges[state] if left[way[1]] < most - len(letters)]
        nearest = min(machine.edges[state], key=lambda way: left[way[1]])
        if ways:
            ranges, state = rng.choice(ways)
        else:
            ranges, state = nearest
        low, high = rng.choice(ranges)
        letters.append(chr(rng.randint(low, min(high, low + 255))))
    return "".join(letters)


def _distances(machine: CharDfa) -> list[int]:
    """How many code points each state is away from acceptance."""
    sources: list[list[int]] = []
    for _ in machine.edges:
        sources.append([])
    for number, ways in enumerate(machine.edges):
        for _, target in ways:
            sources[target].append(number)
    left = dict.fromkeys(machine.accepts, 0)
    queue = deque(left)
    while queue:
        target = queue.popleft()
        for number in sources[target]:
            if number not in left:
                left[number] = left[target] + 1
                queue.append(number)
    found = []
    for number in range(len(sources)):
        found.append(left[number])
    return found
