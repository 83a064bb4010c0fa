"""Patterns beside Python's own search, and what is refused."""

from __future__ import annotations

import itertools
import random
import re
import time

import pytest

from mmdiff.structured.regular.byte_dfa import byte_dfa_of
from mmdiff.structured.regular.compile_limits import CompileLimits, LanguageError
from mmdiff.structured.regular.derivatives import automaton, matches, shortest, walk
from mmdiff.structured.regular.language import ANY, literal
from mmdiff.structured.regular.regex import compile_regex

SOURCES = [
    r"a|b",
    r"^a$",
    r"^a",
    r"b$",
    r"^(a|b)*$",
    r"^a*b+$",
    r"(?=a)b",
    r"(?=a).",
    r"^(?!a)",
    r"^(?!.*b)",
    r"a(?!b)",
    r"a{2}b?",
    r"^a{1,2}$",
    r"[^a]",
    r"^[^a]*$",
    r"(^a|b$)",
    r"(^|b)a($|b)",
    r"(?:^a)?",
    r"^^a",
    r"a$$",
    r"a^",
    r"$a",
    r"^$",
    r"^(?!^[ab]*$)..$",
    r"^(?=.*a)(?=.*b).{2,3}$",
    r"^(a+)+$",
    r"(a|b|)b",
    r"x*?",
    r"^(?:a(?=b)){0,2}b",
    r"(^a){2}",
    r"\d",
    r"\w+\-",
    r"[\w.]+@",
    r"^\S+$",
    r"^[^\s]+$",
    r"^a?b?$",
    r"^(?!(?:a|b$))",
    r"((?!a).){1,2}$",
    r"(?:$|^)b*",
    r"^(?:^|a){1,2}b",
    r"^(?:(?!b)a?){2}$",
    r"^(?<first>a)",
    r"[^^]",
    r"[a\]]",
    r"[\d\-]b",
    r"^(?!(?!a).)",
    r"^(?:a|(?=b)b)(?!$)",
    r"a{0}",
    r"(?!)",
    r"a||b",
    r"^(?!^[-+.]*$)[-@.]?0*\d*\.?\d*$",
    r"[^\W1]",
    r"\D\d|\W",
    r"^\x61\u0062",
    r"[\x61-b]",
    r"{a",
    r"a{,",
    r"^[|&~[]$",
]
SOURCES.remove("a{,")


@pytest.mark.parametrize("source", SOURCES)
def test_patterns_are_found_as_python_finds_them(source: str) -> None:
    language, wide = compile_regex(source), compile_regex(source, wide=True)
    searched = re.compile(source.replace("(?<f", "(?P<f").replace("~[]", r"~\[]"))
    # With a control character, which no text has, so that no language is empty.
    sure, maybe = (byte_dfa_of(each | literal("\0"), "plain") for each in (language, wide))
    for letters in ("ab", "a1 ", "@.-"):
        for word in itertools.chain.from_iterable(
            itertools.product(letters, repeat=size) for size in range(5)
        ):
            text = "".join(word)
            found = searched.search(text) is not None
            assert sure.reads(text.encode()) == maybe.reads(text.encode()) == found, text
            assert len(text) == 4 or matches(language, text) == found, text
    for word in itertools.product("aé\n٣\u2028 \u00a0", repeat=3):
        text = "".join(word)
        found = searched.search(text) is not None
        assert not (matches(language, text) and not found), text  # never more than Python finds
        assert matches(wide, text) or not found, text  # and never less


@pytest.mark.parametrize("source", SOURCES)
def test_drawn_texts_are_found_by_python(source: str) -> None:
    machine, rng = automaton(compile_regex(source)), random.Random(source)
    for _ in range(0 if machine.empty else 100):
        assert re.search(
            source.replace("(?<f", "(?P<f").replace("~[]", r"~\[]"), walk(machine, rng, 8)
        )


@pytest.mark.parametrize(
    ("source", "inside", "outside"),
    [
        (r"^\p{L}+$", ["aZ"], ["1", "é"]),
        (r"^[\p{Lu}\p{Nd}_]+$", ["A1_"], ["a"]),
        (r"^[^\p{L}]$", ["1", "-"], ["a", "é"]),
        (r"^\u{1F600}$", ["😀"], ["a"]),
        (r"^\s$", [" ", "\t", "\n"], ["\u00a0", "\ufeff"]),
        (r"^\S$", ["a", "é", "漢"], ["\u00a0", "\ufeff", " "]),
        (r"^.$", ["a", "é", "😀"], ["\n", "\r", "\u2028"]),
        (r"^(?!\d)", ["a"], ["1", "٣"]),  # Python takes ٣ for a digit
        (r"^a$", ["a"], ["a\n"]),  # Python's $ would be content
        (r"\/", ["/"], ["\\"]),
        (r"[\b]", [], ["a", "b"]),  # a control character, which no text has
    ],
)
def test_what_engines_read_differently_is_narrowed(
    source: str, inside: list[str], outside: list[str]
) -> None:
    language = compile_regex(source)
    assert all(matches(language, each) for each in inside)
    assert not any(matches(language, each) for each in outside)


def test_search_is_not_anchored_and_shortest_is_plain() -> None:
    assert (
        shortest(compile_regex("ab+")) == "ab"
        and matches(compile_regex("ab+"), "\nxabx漢")
        and compile_regex("") is ANY
    )
    assert shortest(compile_regex(r"^[^a]{2}\d$")) == "bb0"
    assert len(byte_dfa_of(compile_regex("^.*a.*b.*$"), "json").next_SB) < 40


@pytest.mark.parametrize(
    ("source", "because"),
    [
        ("(?<=a)b", "look-behind"),
        ("(?<!a)b", "look-behind"),
        (r"(a)\1", "refers back"),
        (r"(?<x>a)\k<x>", "refers back"),
        (r"\bab", "word boundary"),
        (r"a\B", "word boundary"),
        ("(?i)a", r"\(\?i"),
        ("(?i:a)", r"\(\?i"),
        ("(?s).", r"\(\?s"),
        ("(?>a)", r"\(\?>"),
        ("a++", "not supported"),
        ("a*+", "not supported"),
        ("(?P=x)", "not supported"),
        ("(?#a)", "not supported"),
        ("[]", "empty set"),
        ("[]a]", "empty set"),
        ("[^]", "empty set"),
        ("a{,2}", "differently"),
        (r"\Aa", "differently"),
        (r"a\Z", "differently"),
        (r"\a", "differently"),
        (r"\01", "differently"),
        (r"\ud83d\ude00", "differently"),
        ("[+--]", "differently"),
        (r"\p{Greek}", "property"),
        (r"\P{L}", "property"),
        ("(", "malformed"),
        ("a{2,1}", "malformed"),
        ("*", "malformed"),
        ("[b-a]", "malformed"),
        ("a\\", "backslash"),
        ("(?:a(?=b)|c)*", "repetition"),
        ("a" * 10_001, "too long"),
        ("a{99999999999}", "malformed"),
        ("(?<1>a)", "not supported|malformed"),
        (r"[\p{L}-z]", "malformed|property"),
        ("\U0010f000", "private"),
    ],
)
def test_refused(source: str, because: str) -> None:
    with pytest.raises(LanguageError, match=because):
        compile_regex(source)


HOSTILE = [
    "(a|b)*a(a|b){30}",
    "(a{1000}){1000}",
    "(" * 200 + "a+" + ")+" * 200 + "$",
    "(" * 3000 + "a" + ")" * 3000,
    "a?" * 3000,
    "(?!" * 200 + "a" + ")" * 200,
    "((((^a){16}){16}){16}){16}",
    "x" * 9000,
    ".*" * 3000,
    "^(.{0,50}a){50}",
    "(a+a+)+b",
    "(x{1,1000}y?){1,1000}",
    "a|" * 4000,
    "(?:(?:a{0,50}b?){0,50}c?){0,50}d",
    "(a{4294967294}){4294967294}",
    "^(a{0,100}){0,100}$",
    "^(?!" + "(a|b)*a" * 40 + ")",
]


@pytest.mark.parametrize("source", HOSTILE, ids=map(str, range(len(HOSTILE))))
def test_hostile_patterns_end_soon(source: str) -> None:
    start = time.monotonic()
    try:
        byte_dfa_of(compile_regex(source, deadline=CompileLimits(0.5)), "json", CompileLimits(0.5))
    except LanguageError as error:
        assert "too large" in str(error) or "too deeply" in str(error)
    assert time.monotonic() - start < 10  # leaves room for busy machines
