"""Byte-level DFA of a language, its texts as a JSON string spells them or as they are.

A code point is a walk over the bytes of its UTF-8, in which overlong forms and surrogates do not
exist; states within a character are shared. The tables are made smaller by merging states that no
text tells apart (Moore, 1956), as long as this is seen within some rounds; long counters would need
many, and have nothing to merge.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, TypeAlias

import cachetools
import numpy as np
import numpy.typing as npt

from mmdiff.structured.regular.compile_limits import (
    CompileLimits,
    LanguageError,
    LanguageSizeError,
    bounded,
)
from mmdiff.structured.regular.derivatives import automaton
from mmdiff.structured.regular.language import Language, Ranges, chars, intersect, repeat

Spelling: TypeAlias = Literal["json", "plain"]
_Steps: TypeAlias = tuple[
    tuple[int, int], ...
]  # the first and last byte at each place of a character
_Tails: TypeAlias = tuple[tuple[_Steps, int], ...]  # what may still come, and the state behind it

STATES = 40_000  # of bytes
_ROUNDS = 64
_MERGED = 8000  # the states up to which merging is worth its time
_ESCAPES = {
    0x22: b'\\"',
    0x5C: b"\\\\",
    0x0A: b"\\n",
    0x09: b"\\t",
    0x0D: b"\\r",
    0x08: b"\\b",
    0x0C: b"\\f",
}
_SPELLABLE = repeat(chars([(0x08, 0x0A), (0x0C, 0x0D), (0x20, 0x10FFFF)]))
# Code points whose UTF-8 has one length and, but for the ends, all continuation bytes (RFC 3629).
_LENGTHS = ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xFFFF), (0x10000, 0x10FFFF))


class ByteDfa(NamedTuple):
    """S states, of which 0 is the start: where each byte leads (-1: nowhere), and where a text may
    end.

    Every state can reach an end.
    """

    next_SB: npt.NDArray[np.int32]
    accepts_S: npt.NDArray[np.bool_]

    def reads(self, data: bytes) -> bool:
        """Whether the automaton accepts the bytes."""
        state = 0
        for byte in data:
            state = int(self.next_SB[state, byte])
            if state < 0:
                return False
        return bool(self.accepts_S[state])


_cache: cachetools.LRUCache[tuple[Language, Spelling], ByteDfa] = cachetools.LRUCache(
    1 << 27, getsizeof=lambda each: each.next_SB.nbytes
)
_lock = threading.Lock()


def byte_dfa_of(
    language: Language, spelling: Spelling, deadline: CompileLimits | None = None
) -> ByteDfa:
    r"""The automaton of a language's texts in bytes. The arrays are shared and cannot be written
    to.

    "json": as within a JSON string without its quotes, where \" \\ \n \t \r \b \f are the only
    escapes, spelled so, and texts with other control characters are dropped. "plain": the UTF-8 of
    the texts.

    Raises:
        LanguageError: the language is empty or too large, or the deadline is over.
    """
    with _lock:
        known = _cache.get((language, spelling))
    if known is None:
        with bounded(deadline) as running:
            known = _build(language, spelling, running)
        with _lock:
            _cache[language, spelling] = known
    return known


def _build(language: Language, spelling: Spelling, deadline: CompileLimits) -> ByteDfa:
    if spelling == "json":
        language = intersect(language, _SPELLABLE)
    machine = automaton(language, deadline)
    if machine.empty:
        raise LanguageError("the language is empty")
    table = _Table(len(machine.edges))
    for number, ways in enumerate(machine.edges):
        deadline.step()
        table.fill(
            number,
            ((steps, target) for ranges, target in ways for steps in _spelled(ranges, spelling)),
        )
    accepts_S = np.zeros(table.size, np.bool_)
    accepts_S[list(machine.accepts)] = True
    found = _smaller(table.next_SB[: table.size], accepts_S, deadline)
    for array in found:
        array.setflags(write=False)
    return found


class _Table:
    """The states of an automaton over code points, and behind them, as they come up, those within a
    character."""

    def __init__(self, states: int) -> None:
        self.size = states
        self.next_SB = np.full((2 * states, 256), -1, np.int32)
        self.within: dict[_Tails, int] = {}  # by what is still to come

    def fill(self, number: int, tails: Iterable[tuple[_Steps, int]]) -> None:
        """Enters where the bytes lead from a state."""
        # Code points are apart, so walks that begin with several bytes share none of these with
        # others.
        waiting: dict[tuple[int, int], list[tuple[_Steps, int]]] = {}
        for steps, target in tails:
            if len(steps) == 1:
                self.next_SB[number, steps[0][0] : steps[0][1] + 1] = target
            else:
                waiting.setdefault(steps[0], []).append((steps[1:], target))
        for (low, high), behind in waiting.items():
            self.next_SB[number, low : high + 1] = self._state(tuple(behind))

    def _state(self, tails: _Tails) -> int:
        if tails not in self.within:
            number = self.within[tails] = self.size
            self.size += 1
            if self.size > STATES:
                raise LanguageSizeError(
                    f"the language is too large: more than {STATES} states of bytes"
                )
            if self.size > len(self.next_SB):
                self.next_SB = np.concatenate([self.next_SB, np.full_like(self.next_SB, -1)])
            self.fill(number, tails)
        return self.within[tails]


@functools.lru_cache(maxsize=1 << 10)
def _spelled(ranges: Ranges, spelling: Spelling) -> tuple[_Steps, ...]:
    """The bytes of the code points in the ranges, as walks whose every choice is free of the
    others."""
    found: list[_Steps] = []
    for low, high in ranges:
        for code in (
            [code for code in sorted(_ESCAPES) if low <= code <= high] if spelling == "json" else ()
        ):
            found += (*_utf8(low, code - 1), tuple((byte, byte) for byte in _ESCAPES[code]))
            low = code + 1
        found += _utf8(low, high)
    return tuple(found)


def _utf8(low: int, high: int) -> Iterator[_Steps]:
    for number, (first, last) in enumerate(_LENGTHS):
        if max(low, first) <= min(high, last):
            yield from _split(max(low, first), min(high, last), number)


def _split(low: int, high: int, continuations: int) -> Iterator[_Steps]:
    """Parts the range until, in each part, bytes differ only where all behind them are free."""
    for place in range(1, continuations + 1):
        rest = (1 << 6 * place) - 1
        if low | rest == high | rest:
            continue
        if low & rest:
            yield from _split(low, low | rest, continuations)
            yield from _split((low | rest) + 1, high, continuations)
            return
        if high & rest != rest:
            yield from _split(low, (high & ~rest) - 1, continuations)
            yield from _split(high & ~rest, high, continuations)
            return
    yield tuple(zip(chr(low).encode(), chr(high).encode(), strict=True))


def _smaller(
    next_SB: npt.NDArray[np.int32], accepts_S: npt.NDArray[np.bool_], deadline: CompileLimits
) -> ByteDfa:
    """The same language with fewer states, where a few rounds show which can be merged."""
    if len(accepts_S) > _MERGED:
        return ByteDfa(next_SB, accepts_S)
    columns_SK = np.unique(next_SB, axis=1)
    labels_S, count = accepts_S.astype(np.int32), 0
    for _ in range(_ROUNDS):
        deadline.check()
        behind_SK = np.append(labels_S, np.int32(-1))[columns_SK]
        kinds = np.unique(
            np.column_stack([labels_S, behind_SK]), axis=0, return_index=True, return_inverse=True
        )
        if len(kinds[1]) == count:
            break
        count, labels_S = len(kinds[1]), kinds[2].reshape(-1).astype(np.int32)
    else:
        return ByteDfa(next_SB, accepts_S)
    # The old order, so that the start stays the first.
    firsts = np.sort(kinds[1])
    renamed = np.append(np.argsort(np.argsort(kinds[1])), -1).astype(np.int32)
    new_S = np.append(renamed[kinds[2].reshape(-1)], np.int32(-1))
    return ByteDfa(new_S[next_SB[firsts]], accepts_S[firsts])
