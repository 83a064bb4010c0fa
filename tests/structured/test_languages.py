"""Languages beside brute force: their algebra, their automata over code points and over bytes,
their bounds."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdiff.structured.regular import language as lang
from mmdiff.structured.regular.byte_dfa import byte_dfa_of
from mmdiff.structured.regular.compile_limits import CompileLimits, LanguageError
from mmdiff.structured.regular.derivatives import (
    CharDfa,
    automaton,
    matches,
    sample,
    shortest,
    walk,
)
from mmdiff.structured.regular.language import ANY, EMPTY, EVERYTHING, NOTHING, Language, literal

LONGEST = 4
WORDS = frozenset(
    "".join(word) for size in range(LONGEST + 1) for word in itertools.product("ab", repeat=size)
)
Both = tuple[
    Language, frozenset[str]
]  # a language, and its words of up to four letters by brute force


def both_cat(one: Both, other: Both) -> Both:
    return lang.cat(one[0], other[0]), frozenset(
        a + b for a in one[1] for b in other[1] if len(a + b) <= LONGEST
    )


def both_repeat(one: Both, low: int, high: int | None) -> Both:
    found, power = set(), frozenset([""])
    for count in range(low + LONGEST + 2 if high is None else high + 1):
        if count >= low:
            found |= power
        power = frozenset(a + b for a in power for b in one[1] if len(a + b) <= LONGEST)
    return lang.repeat(one[0], low, high), frozenset(found)


leaves: st.SearchStrategy[Both] = st.sampled_from(
    [
        (EMPTY, frozenset([""])),
        (literal("a"), frozenset("a")),
        (literal("b"), frozenset("b")),
        (lang.chars([(97, 98)]), frozenset("ab")),
        (NOTHING, frozenset()),
        (EVERYTHING, WORDS),
        (lang.repeat(lang.chars([(97, 98)])), WORDS),
    ]
)


def grown(trees: st.SearchStrategy[Both]) -> st.SearchStrategy[Both]:
    bounds = st.tuples(st.integers(0, 3), st.integers(0, 6) | st.none())
    return st.one_of(
        st.builds(both_cat, trees, trees),
        st.builds(lambda a, b: (a[0] | b[0], a[1] | b[1]), trees, trees),
        st.builds(lambda a, b: (a[0] & b[0], a[1] & b[1]), trees, trees),
        st.builds(lambda a: (~a[0], WORDS - a[1]), trees),
        st.builds(lambda a, bound: both_repeat(a, *bound), trees, bounds),
    )


trees = st.recursive(leaves, grown, max_leaves=10)


def accepted(machine: CharDfa, text: str) -> bool:
    state: int | None = None if machine.empty else 0
    for letter in text:
        if state is not None:
            state = next(
                (
                    target
                    for ranges, target in machine.edges[state]
                    if any(low <= ord(letter) <= high for low, high in ranges)
                ),
                None,
            )
    return state in machine.accepts


@settings(deadline=None, max_examples=150)
@given(trees)
def test_the_algebra_is_that_of_sets_of_texts(both: Both) -> None:
    language, words = both
    machine = automaton(language)
    least = min(map(len, words), default=None)
    found = shortest(language)
    assert {word for word in WORDS if matches(language, word)} == words
    assert {word for word in WORDS if accepted(machine, word)} == words
    assert (found is None) == machine.empty
    if found is not None:
        assert matches(language, found)
        assert least is None or len(found) <= least
        drawn = sample(language, random.Random(0), 6)
        assert matches(language, drawn)
        assert byte_dfa_of(language, "plain").reads(drawn.encode())


def test_every_state_can_reach_acceptance() -> None:
    machine = automaton(lang.words(["abc", "abd"]) - literal("abd") | (literal("x") + NOTHING))
    assert len(machine.edges) == 4 and machine.accepts == {3}
    assert automaton(literal("a") & literal("b")).empty


def test_equal_trees_are_one_object() -> None:
    a, b, c = map(literal, "abc")
    assert a + (b + c) is (a + b) + c and a | b is b | a | a and a | b is lang.chars([(97, 98)])
    assert (a & b) is NOTHING and ~~a is a and a - a is NOTHING
    assert (
        lang.repeat(lang.repeat(a, 1), 1) is lang.repeat(a, 1)
        and ANY + ANY is ANY
        and ANY | a is ANY
    )


def test_shortest_prefers_letters_and_digits() -> None:
    assert shortest(lang.repeat(lang.TEXT, 3)) == "aaa"
    assert shortest(lang.chars([(0x21, 0x3A)])) == "0"
    assert shortest(ANY - lang.words(["", "a", "b"])) == "c"
    assert shortest(NOTHING) is None


def test_multiples_are_counted_digit_by_digit() -> None:
    for divisor in (1, 2, 7, 12, 100):
        language = lang.multiples(divisor)
        assert all(
            matches(language, str(number)) == (number % divisor == 0) for number in range(300)
        )
        assert len(automaton(language).edges) <= divisor
    assert matches(lang.multiples(4, 3), "2") and not matches(lang.multiples(4, 3), "4")
    with pytest.raises(LanguageError, match="multiple of 0"):
        lang.multiples(0)


def test_any_text_has_no_surrogates_and_three_control_characters() -> None:
    assert [code for code in range(0x20) if matches(ANY, chr(code))] == [9, 10, 13]
    assert not any(matches(ANY, chr(code)) for code in (0x7F, 0x85, 0x9F))
    assert not matches(EVERYTHING, "\ud800") and matches(EVERYTHING, "\uffff\U0010ffff\0")
    with pytest.raises(LanguageError, match="surrogate"):
        literal("\udc00")


TEXTS: dict[str, Callable[[], Language]] = {
    "any": lambda: ANY,
    "everything": lambda: EVERYTHING,
    "some": lambda: lang.repeat(
        lang.chars(
            [
                (0x08, 0x5F),
                (0xE0, 0x133),
                (0x7FE, 0x801),
                (0xD7F0, 0xE00F),
                (0xFFFE, 0x10001),
                (0x1F600, 0x1F650),
                (0x10FFFE, 0x10FFFF),
            ]
        ),
        1,
        4,
    ),
    "no quote first": lambda: lang.cat(lang.TEXT - literal('"'), ANY),
    "words": lambda: lang.words(["ä\n", 'a"', "\\", "€", "é", "\x01", "\x7f"]),
}


@pytest.mark.parametrize("name", TEXTS)
def test_bytes_are_read_as_json_and_utf8_read_them(name: str) -> None:
    language = TEXTS[name]()
    as_json, plain = byte_dfa_of(language, "json"), byte_dfa_of(language, "plain")
    rng = random.Random(name)
    machine = automaton(language)
    for _ in range(150):
        data = bytearray(walk(machine, rng, 5).encode())
        spelled = bytearray(json.dumps(data.decode(), ensure_ascii=False)[1:-1].encode())
        for _ in range(4):
            assert plain.reads(data) == _reads_plain(language, bytes(data))
            assert as_json.reads(spelled) == _reads_json(language, bytes(spelled))
            for each in (data, spelled):
                place = rng.randrange(len(each) + 1)
                each[place : place + rng.randrange(2)] = bytes(
                    [rng.choice([rng.randrange(256), *b'"\\nu0'])]
                )


def _reads_plain(language: Language, data: bytes) -> bool:
    try:
        return matches(language, data.decode())
    except UnicodeDecodeError:
        return False


def _reads_json(language: Language, data: bytes) -> bool:
    try:
        text = json.loads(b'"%b"' % data)
    except ValueError:
        return False
    escaped = b"\\u" in data.replace(b"\\\\", b"")
    return (
        not escaped
        and json.dumps(text, ensure_ascii=False) == f'"{data.decode()}"'
        and matches(language, text)
    )


@pytest.mark.parametrize(
    "data",
    [
        b"\xc0\x80",
        b"\xc1\xbf",
        b"\xe0\x80\x80",
        b"\xe0\x9f\xbf",
        b"\xed\xa0\x80",
        b"\x80",
        b"\xed\xbf\xbf",
        b"\xf0\x8f\xbf\xbf",
        b"\xf4\x90\x80\x80",
        b"\xf5\x80\x80\x80",
        b"\xff",
    ],
)
def test_overlong_forms_and_surrogates_are_nowhere(data: bytes) -> None:
    assert not byte_dfa_of(EVERYTHING, "plain").reads(data)


def test_tables_of_bytes() -> None:
    next_SB, accepts_S = byte_dfa_of(ANY, "json")
    assert (
        next_SB.shape == (len(accepts_S), 256)
        and next_SB.dtype == "int32"
        and accepts_S.dtype == bool
    )
    assert not next_SB.flags.writeable and byte_dfa_of(ANY, "json").next_SB is next_SB
    assert (
        len(accepts_S) == 10
    )  # the escape; and E0, ED, F0 and F4 with continuations, of which one to three follow
    with pytest.raises(LanguageError, match="empty"):
        byte_dfa_of(literal("a") & literal("b"), "plain")
    with pytest.raises(LanguageError, match="empty"):
        byte_dfa_of(literal("\x01"), "json")
    assert byte_dfa_of(literal("\b\f"), "json").reads(rb"\b\f")


def test_what_cannot_be_told_apart_is_one_state() -> None:
    some = lang.repeat(lang.chars([(97, 98)]))
    unlike = (some + literal("a") + some) | lang.words(["", "b"])
    assert len(byte_dfa_of(lang.union(unlike, ~unlike), "plain").next_SB) == len(
        byte_dfa_of(EVERYTHING, "plain").next_SB
    )


LARGE: dict[str, Callable[[], Language]] = {
    "exponential": lambda: lang.cat(
        lang.repeat(lang.chars([(97, 98)])),
        literal("a"),
        lang.repeat(lang.chars([(97, 98)]), 30, 30),
    ),
    "counters": lambda: lang.repeat(lang.repeat(literal("a"), 1000, 1000), 1000, 1000),
    "look-aheads": lambda: lang.intersect(
        *(ANY + literal(letter) + ANY for letter in "abcdefghijklmnopqrstuvwxyz")
    ),
    "options": lambda: lang.cat(
        *(lang.repeat(literal("ab"[place % 2]), 0, 1) for place in range(2000))
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_too_large_ends_in_an_error_and_soon(name: str) -> None:
    start = time.monotonic()
    with pytest.raises(LanguageError, match="too large|too deeply"):
        automaton(LARGE[name](), CompileLimits(0.5))
    assert time.monotonic() - start < 5


def test_deep_nestings_are_an_error() -> None:
    tree = literal("a")
    for _ in range(3000):
        tree = lang.repeat((literal("a") | tree) + literal("b"), 1, 2)
    for ask in (automaton, shortest, lambda each: matches(each, "ab" * 2000)):
        with pytest.raises(LanguageError, match="too deeply|too large"):
            ask(tree)


def test_a_long_list_of_words_is_a_tree() -> None:
    listed = [str(number * 7919) for number in range(500)]
    language = lang.words(listed)
    assert all(matches(language, each) for each in listed[::50]) and not matches(language, "7918")
    assert len(automaton(language, CompileLimits(10)).edges) < sum(map(len, listed)) / 3
