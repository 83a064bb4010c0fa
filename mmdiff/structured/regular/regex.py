r"""The language of a regular expression as JSON Schema reads it: searched for in the decoded text,
not anchored.

JSON Schema means ECMA-262 expressions, validators in Python use `re`. A text of `pattern(source)`
satisfies both: what they read differently is either narrowed to what they share (`\d` is 0-9, `$`
is the very end, `.` leaves out all line ends) or refused. Below a negative look-ahead the same is
widened instead. Texts with control characters other than \n, \r and \t are left out. Refused:
look-behind, back-references, word boundaries, flags, atomic groups and possessive repetition, and
anchors or look-aheads in a repetition without a small bound.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from re import _constants as ops  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any, NamedTuple, TypeAlias

from mmdiff.structured.regular.compile_limits import CompileLimits, LanguageError, bounded
from mmdiff.structured.regular.language import (
    ANY,
    EMPTY,
    NOTHING,
    TEXT,
    Language,
    cat,
    chars,
    complement,
    intersect,
    literal,
    ranges_of,
    repeat,
    union,
)

LENGTH = 10_000  # of a source
UNROLL = 16  # repetitions of what holds an anchor or a look-ahead

_Node: TypeAlias = tuple[Any, Any]
_DIGIT = ((0x30, 0x39),)
_WORD = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE = ((0x09, 0x0D), (0x20, 0x20))
_UPPER, _LOWER = ((0x41, 0x5A),), ((0x61, 0x7A),)
_LETTER = (*_UPPER, *_LOWER)
_WIDE = ((0x80, 0x10FFFF),)  # where engines differ, for all but spaces
# Python's spaces and ECMA's.
_SPACES = (
    *_SPACE,
    (0x1C, 0x1F),
    (0x85, 0x85),
    (0xA0, 0xA0),
    (0x1680, 0x1680),
    (0x2000, 0x200A),
    (0x2028, 0x2029),
    (0x202F, 0x202F),
    (0x205F, 0x205F),
    (0x3000, 0x3000),
    (0xFEFF, 0xFEFF),
)
# What is surely in the class, what may be.
_CLASSES = {
    ops.CATEGORY_DIGIT: (_DIGIT, (*_DIGIT, *_WIDE)),
    ops.CATEGORY_WORD: (_WORD, (*_WORD, *_WIDE)),
    ops.CATEGORY_SPACE: (_SPACE, _SPACES),
}
_NEGATED = {
    ops.CATEGORY_NOT_DIGIT: ops.CATEGORY_DIGIT,
    ops.CATEGORY_NOT_WORD: ops.CATEGORY_WORD,
    ops.CATEGORY_NOT_SPACE: ops.CATEGORY_SPACE,
}
# Python does not parse \p{..}: a code point from a private plane stands for it.
_PROPERTY = 0x10F000
_PRIVATE = range(_PROPERTY, _PROPERTY + 16)
_PROPERTIES = {
    "L": _LETTER,
    "Letter": _LETTER,
    "Alphabetic": _LETTER,
    "Lu": _UPPER,
    "Uppercase_Letter": _UPPER,
    "Ll": _LOWER,
    "Lowercase_Letter": _LOWER,
    "N": _DIGIT,
    "Number": _DIGIT,
    "Nd": _DIGIT,
    "Decimal_Number": _DIGIT,
}
_LINE_ENDS = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))

_TOKEN = re.compile(
    r"""
    \\(?:u\{[0-9a-fA-F]{1,6}\} | [pP]\{[^{}]*\} | u[0-9a-fA-F]{4} | x[0-9a-fA-F]{2} | .)
    | \(\?(?:<[=!] | <[A-Za-z_]\w*> | P<[A-Za-z_]\w*> | .?)
    | \{,
    | .
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_ESCAPES = set(
    "dDwWsSnrtfvbux0"
)  # of the letters and digits; ECMA reads any other as itself, Python does not


class _Rest(NamedTuple):
    """What follows in the text, when nothing stands before it, and when something does."""

    start: Language
    later: Language


def compile_regex(
    source: str, wide: bool = False, deadline: CompileLimits | None = None
) -> Language:
    """The texts (of letters that `ANY` has) in which the expression is surely found.

    With `wide`, the texts in which some engine might find it: take the complement of this, not of
    the other.

    Raises:
        LanguageError: the expression is malformed, or asks for what is refused.
    """
    if len(source) > LENGTH:
        raise LanguageError(
            f"a pattern of {len(source)} characters is too long, at most {LENGTH} are read"
        )
    with bounded(deadline) as deadline:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = parser.parse(_guard(source))
        except (re.error, OverflowError) as error:
            raise LanguageError(f"the pattern {source!r} is malformed: {error}") from None
        found = _Reader(deadline).sequence(tree, _Rest(ANY, ANY), wide)
        if found.start is found.later:
            return cat(ANY, found.start)
        return union(found.start, cat(TEXT, ANY, found.later))


def _guard(source: str) -> str:
    """The source in Python's spelling; a LanguageError for what Python would read, but otherwise
    than ECMA."""
    found: list[str] = []
    opened: int | None = None  # where the set around begins
    for match in _TOKEN.finditer(source):
        token = match[0]
        behind = source[match.end() : match.end() + 1]
        if token[0] == "\\":
            token = _escape(token, opened is not None, behind, source)
        elif ord(token[0]) in _PRIVATE:
            raise LanguageError(f"the pattern {source!r} holds a private character")
        elif opened is not None:
            token = _in_set(token, source[opened : match.start()], behind, source)
            if token == "]":
                opened = None
        elif token == "[":
            opened = match.start()
        elif token.startswith("(?"):
            token = _group(token, source)
        elif token == "{,":
            raise LanguageError(f"the pattern {source!r} holds {{, which engines read differently")
        found.append(token)
    return "".join(found)


def _in_set(token: str, before: str, behind: str, source: str) -> str:
    """A token of a set, which holds `before` so far."""
    if token == "]" and before in ("[", "[^"):
        raise LanguageError(
            f"the pattern {source!r} holds an empty set, which engines read differently"
        )
    if token == behind == "-":
        raise LanguageError(
            f"the pattern {source!r} holds -- in a set, which engines read differently"
        )
    if token[0] in "[&~|":  # some engines take them for sets in sets
        return "\\" + token
    return token


def _group(token: str, source: str) -> str:
    """The beginning of a group that has an extension."""
    if token.startswith("(?<") and token[3:] not in ("=", "!", ""):
        return "(?P" + token[2:]
    if token not in ("(?:", "(?=", "(?!") and not token.startswith("(?P<"):
        what = token
        if token in ("(?<=", "(?<!"):
            what = "a look-behind"
        raise LanguageError(f"the pattern {source!r} holds {what}, which is not supported")
    return token


def _escape(token: str, inside: bool, behind: str, source: str) -> str:
    kind = token[1:2]
    if not kind:
        raise LanguageError(f"the pattern {source!r} ends in a backslash")
    if kind in "pP":
        name = token[3:-1].removeprefix("gc=").removeprefix("General_Category=")
        if kind == "p" and name in _PROPERTIES:
            return chr(_PROPERTY + list(_PROPERTIES).index(name))
        raise LanguageError(
            f"the pattern {source!r} holds {token}, a property that is not supported"
        )
    if token.startswith("\\u{"):
        code = int(token[3:-1], 16)
        if code > 0x10FFFF or code in _PRIVATE:
            raise LanguageError(f"the pattern {source!r} holds {token}, which is not supported")
        return f"\\U{code:08x}"
    if kind in "123456789" or kind == "k":
        raise LanguageError(
            f"the pattern {source!r} refers back to a group ({token}), "
            "which no regular language can"
        )
    if kind in "bB" and not inside:
        raise LanguageError(
            f"the pattern {source!r} holds the word boundary {token}, which is not supported"
        )
    surrogate = not inside and re.match(
        r"\\u[dD][89a-fA-F]", token
    )  # a half of what ECMA may read as one
    if kind.isalnum() and kind not in _ESCAPES or surrogate or token == "\\0" and behind.isdigit():
        raise LanguageError(f"the pattern {source!r} holds {token}, which engines read differently")
    if token == "\\0":
        return "\\x00"
    return token


class _Reader:
    """Turns a parsed expression into languages, from right to left. `wide`: all texts that any
    engine would match, at least; otherwise only those that all engines would match.
    """

    def __init__(self, deadline: CompileLimits) -> None:
        self.deadline = deadline

    def sequence(self, nodes: Sequence[_Node], rest: _Rest, wide: bool) -> _Rest:
        """What the nodes and then the rest match."""
        for node in reversed(nodes):
            rest = self.node(node, rest, wide)
        return rest

    def node(self, node: _Node, rest: _Rest, wide: bool) -> _Rest:
        """What the node and then the rest match."""
        self.deadline.check()
        op, value = node
        plain = self.plain(node, wide)
        if plain is not None:
            later = cat(plain, rest.later)
            if not plain.nullable or rest.start is rest.later:
                return _Rest(later, later)
            return _Rest(
                union(rest.start, cat(intersect(plain, complement(EMPTY)), rest.later)), later
            )
        if op is ops.AT:
            if value is ops.AT_BEGINNING:
                return _Rest(rest.start, NOTHING)
            # Python's $ also stands before a last line end
            end = EMPTY
            if wide:
                end = union(EMPTY, literal("\n"))
            return _Rest(intersect(rest.start, end), intersect(rest.later, end))
        if op is ops.SUBPATTERN:
            return self.sequence(value[3], rest, wide)
        if op is ops.BRANCH:
            return self.branches(value[1], rest, wide)
        if op is ops.ASSERT:
            return _Rest(*map(intersect, rest, self.sequence(value[1], _Rest(ANY, ANY), wide)))
        if op is ops.ASSERT_NOT:
            ahead = self.sequence(value[1], _Rest(ANY, ANY), not wide)
            return _Rest(*map(intersect, rest, map(complement, ahead)))
        return self.repeated(value, rest, wide)

    def branches(self, branches: Sequence[Sequence[_Node]], rest: _Rest, wide: bool) -> _Rest:
        """What any of the branches and then the rest match."""
        starts, laters = [], []
        for each in branches:
            way = self.sequence(each, rest, wide)
            starts.append(way.start)
            laters.append(way.later)
        return _Rest(union(*starts), union(*laters))

    def repeated(self, value: tuple[int, Any, Sequence[_Node]], rest: _Rest, wide: bool) -> _Rest:
        """What a repetition of what is not plain, and then the rest, match."""
        low, high, part = value
        if high is ops.MAXREPEAT or high > UNROLL:
            raise LanguageError(
                "an anchor or a look-ahead stands inside a repetition, which is not supported"
            )
        if not low:
            found = rest
        else:
            found = _Rest(NOTHING, NOTHING)
        for number in range(1, high + 1):
            rest = self.sequence(part, rest, wide)  # now behind exactly that many
            if number >= low:
                found = _Rest(*map(union, found, rest))
        return found

    def plain(self, node: _Node, wide: bool) -> Language | None:
        """The language of a node without anchors and look-aheads; None where there are some."""
        op, value = node
        if op in (ops.LITERAL, ops.NOT_LITERAL, ops.ANY, ops.IN):
            return _set(node, wide)
        if op is ops.SUBPATTERN:
            return self.plains(value[3], wide)
        if op is ops.BRANCH:
            return self.plain_branches(value[1], wide)
        if op in (ops.MAX_REPEAT, ops.MIN_REPEAT):
            low, high, part = value
            inner = self.plains(part, wide)
            if inner is None:
                return None
            return repeat(inner, low, None if high is ops.MAXREPEAT else high)
        if op is ops.FAILURE:
            return NOTHING
        if op is ops.AT and value in (ops.AT_BEGINNING, ops.AT_END):
            return None
        if op in (ops.ASSERT, ops.ASSERT_NOT) and value[0] > 0:
            return None
        raise LanguageError(f"a pattern holds what is not supported: {str(op).lower()}")

    def plain_branches(self, branches: Sequence[Sequence[_Node]], wide: bool) -> Language | None:
        """The language of any of some branches; None where one of them is not plain."""
        ways, plain = [], True
        for each in branches:
            way = self.plains(each, wide)
            if way is None:
                plain = False
            else:
                ways.append(way)
        return union(*ways) if plain else None

    def plains(self, nodes: Sequence[_Node], wide: bool) -> Language | None:
        """The language of nodes in turn; None where one of them is not plain."""
        self.deadline.check()
        parts, plain = [], True
        for node in nodes:
            part = self.plain(node, wide)
            if part is None:
                plain = False
            else:
                parts.append(part)
        return cat(*parts) if plain else None


def _set(node: _Node, wide: bool) -> Language:
    op, value = node
    if op is ops.ANY:
        return _without(((0x0A, 0x0A),) if wide else _LINE_ENDS)
    if op in (ops.LITERAL, ops.NOT_LITERAL):
        items = [(ops.LITERAL, value)]
    else:
        items = list(value)
    negated = op is ops.NOT_LITERAL or items[0][0] is ops.NEGATE
    letters = []
    for item in items:
        for each in _item(item, wide != negated):
            letters.append(each)
    if negated:
        return _without(letters)
    return intersect(TEXT, chars(letters))


def _item(item: _Node, wide: bool) -> Sequence[tuple[int, int]]:
    op, value = item
    if op is ops.NEGATE:
        return ()
    if op is ops.RANGE:
        if value[0] in _PRIVATE or value[1] in _PRIVATE:
            raise LanguageError("a pattern holds a range that ends in a property")
        return (value,)
    if op is ops.LITERAL:
        if value not in _PRIVATE:
            return ((value, value),)
        sure = list(_PROPERTIES.values())[value - _PROPERTY]
        if wide:
            return (*sure, *_WIDE)
        return sure
    if value in _NEGATED:
        return ranges_of(_without(_CLASSES[_NEGATED[value]][not wide]))
    return _CLASSES[value][wide]


def _without(letters: Sequence[tuple[int, int]]) -> Language:
    """The letters of texts but these."""
    gaps, low = [], 0
    for left, right in ranges_of(chars([*letters, (0xD800, 0xDFFF)])):
        gaps.append((low, left - 1))
        low = right + 1
    return intersect(TEXT, chars([*gaps, (low, 0x10FFFF)]))
