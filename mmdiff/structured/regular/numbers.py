"""The languages of JSON numbers within bounds, in one spelling each: no leading zeros, no
exponents, never -0.

Bounds are compared digit by digit, so nothing is listed and nothing is rounded. Decimals have at
most 15 digits when they have a fraction: up to there, different spellings are different doubles,
and a validator that reads doubles judges as the digits do.
"""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

from mmdiff.structured.regular.compile_limits import LanguageError
from mmdiff.structured.regular.language import (
    DIGITS,
    EMPTY,
    NOTHING,
    Language,
    cat,
    chars,
    intersect,
    literal,
    multiples,
    repeat,
    union,
)

FREE_DIGITS = 15  # of a side without a bound, and of a number with a fraction
MOST_DIGITS = 400  # of a bound
_FINE = 40  # digits of a bound's fraction
_FAR = Decimal(10) ** 40


def integers(low: int | None = None, high: int | None = None, multiple: int = 1) -> Language:
    """The integers from `low` to `high`, both inside, that are multiples.

    A side without a bound reaches to 15 digits, or to one more than the other bound has.

    Raises:
        LanguageError: the multiple is not positive, or a bound has more than 400 digits.
    """
    for bound in (low, high):
        if bound is not None and abs(bound) >= 10**MOST_DIGITS:
            raise LanguageError(f"a bound has more than {MOST_DIGITS} digits")
    far = (
        10
        ** max(
            FREE_DIGITS,
            *(len(str(abs(bound))) + 1 for bound in (low, high) if bound is not None),
            0,
        )
        - 1
    )
    low, high = -far if low is None else low, far if high is None else high
    found = []
    for sign, least, most in (("", max(low, 0), high), ("-", max(-high, 1), -low)):
        digits = NOTHING
        if least <= most:
            digits = _between(str(least), str(most))
        if multiple != 1:
            digits = intersect(digits, multiples(multiple))
        found.append(cat(literal(sign), digits))
    return union(*found)


def decimals(
    low: Decimal | None = None,
    high: Decimal | None = None,
    low_open: bool = False,
    high_open: bool = False,
    digits: int = 6,
) -> Language:
    """The numbers from `low` to `high` (an open bound is not inside), integers among them.

    A fraction has at most `digits` digits or as many as a bound has; zeros may stand at its end.
    With a fraction a number has at most 15 digits from its first that is not 0. Sides without a
    bound are as in `integers`.

    Raises:
        LanguageError: a bound is not finite or has more than 400 digits.
    """
    if low is not None:
        low = _tame(low, ROUND_CEILING)
    if high is not None:
        high = _tame(high, ROUND_FLOOR)
    # Far bounds that are there for their name only, as the largest double, are no bounds.
    if high is not None and high >= _FAR and (low is None or low < _FAR / 10):
        high = None
    if low is not None and low <= -_FAR and (high is None or high > -_FAR / 10):
        low = None
    places, whole_digits = _digits_of_bounds(low, high)
    places = max(digits, places)
    far = Decimal(10 ** max(FREE_DIGITS, whole_digits + 1))
    zero = Decimal(0)
    found = []
    for sign, least, most, above, below in (
        ("", low, high, low_open, high_open),
        ("-", _minus(high), _minus(low), high_open, low_open),
    ):
        if most is None:
            most, below = far, True
        if least is None or least < 0 or (sign and least == 0):
            least, above = zero, bool(sign)
        if most < least or (most == least and (above or below)):
            continue
        magnitudes = intersect(
            _at_least(least, above), _at_most(most, below), _shape(places, len(_split(most)[0]))
        )
        found.append(cat(literal(sign), magnitudes))
    return union(*found)


def _digits_of_bounds(*bounds: Decimal | None) -> tuple[int, int]:
    """The most digits behind the point of any bound, and the most before it."""
    places = whole_digits = 0
    for bound in bounds:
        if bound is not None:
            whole, fraction = _split(bound)
            places = max(places, len(fraction))
            whole_digits = max(whole_digits, len(whole))
    return places, whole_digits


def decimal_multiples(
    unit: int,
    places: int,
    low: Decimal | None = None,
    high: Decimal | None = None,
    low_open: bool = False,
    high_open: bool = False,
) -> Language:
    """The decimals between bounds that are multiples of `unit` / 10 ** `places`, as `decimals`
    spells them.

    Raises:
        LanguageError: a bound is not finite or has more than 400 digits.
    """
    found = []
    for written in range(places + 1):  # digits behind the point; those that are left out are zeros
        if not written:
            point = EMPTY
        else:
            point = cat(literal("."), repeat(DIGITS, written, written))
        divisor = unit // math.gcd(unit, 10 ** (places - written))
        found.append(intersect(cat(repeat(DIGITS, 1), point), multiples(divisor)))
    signed = cat(union(EMPTY, literal("-")), union(*found))
    return intersect(signed, decimals(low, high, low_open, high_open, places))


def _minus(bound: Decimal | None) -> Decimal | None:
    if bound is None:
        return None
    return bound.copy_negate()


def _tame(bound: Decimal, rounding: str) -> Decimal:
    """The bound, rounded inwards where its fraction is very fine."""
    if not bound.is_finite() or bound.adjusted() >= MOST_DIGITS:
        raise LanguageError(
            f"a number cannot be bounded by {bound}: not finite, or more than {MOST_DIGITS} digits"
        )
    context = Context(prec=MOST_DIGITS + _FINE + len(bound.as_tuple().digits), rounding=rounding)
    if int(bound.as_tuple().exponent) < -_FINE:  # it is one already, as the bound is finite
        bound = bound.quantize(Decimal(1).scaleb(-_FINE), context=context)
    if bound == 0:
        return abs(bound)
    return bound


def _split(bound: Decimal) -> tuple[str, str]:
    """The digits before the point (at least one), and behind it (without zeros at the end)."""
    whole, _, fraction = f"{abs(bound):f}".partition(".")
    return str(int(whole)), fraction.rstrip("0")


def _digit(low: int, high: int) -> Language:
    return chars([(0x30 + low, 0x30 + high)])


def _between(least: str, most: str) -> Language:
    """The numbers from least to most, neither negative, without leading zeros."""
    if len(least) == len(most):
        found = [intersect(_above(least), _below(most))]
    else:
        found = [_above(least), _below(most)]
    if len(most) - len(least) > 1:
        found.append(cat(_digit(1, 9), repeat(DIGITS, len(least), len(most) - 2)))
    numbers = union(*found)
    return intersect(numbers, union(literal("0"), cat(_digit(1, 9), repeat(DIGITS))))


def _above(bound: str) -> Language:
    """Runs of as many digits as the bound has, not below it."""
    found = EMPTY
    for number, digit in enumerate(reversed(bound)):
        higher = NOTHING
        if digit != "9":
            higher = _digit(int(digit) + 1, 9)
        found = union(cat(literal(digit), found), cat(higher, repeat(DIGITS, number, number)))
    return found


def _below(bound: str) -> Language:
    """Runs of as many digits as the bound has, not above it."""
    found = EMPTY
    for number, digit in enumerate(reversed(bound)):
        lower = NOTHING
        if digit != "0":
            lower = _digit(0, int(digit) - 1)
        found = union(cat(literal(digit), found), cat(lower, repeat(DIGITS, number, number)))
    return found


def _at_least(bound: Decimal, opened: bool) -> Language:
    """Numbers from the bound on, which is not negative, with fractions of any length."""
    whole, fraction = _split(bound)
    if not opened:
        after = repeat(DIGITS)
    else:
        after = cat(repeat(DIGITS), _digit(1, 9), repeat(DIGITS))
    for digit in reversed(fraction):
        higher = NOTHING
        if digit != "9":
            higher = _digit(int(digit) + 1, 9)
        after = union(cat(literal(digit), after), cat(higher, repeat(DIGITS)))
    more = str(int(whole) + 1)
    wholes = cat(_digit(1, 9), repeat(DIGITS, len(more)))
    return union(cat(literal(whole), _fraction(after)), cat(union(_above(more), wholes), _FRACTION))


def _at_most(bound: Decimal, opened: bool) -> Language:
    """Numbers up to the bound, which is not negative, with fractions of any length."""
    whole, fraction = _split(bound)
    if opened:
        after = NOTHING
    else:
        after = repeat(literal("0"))
    for digit in reversed(fraction):
        lower = NOTHING
        if digit != "0":
            lower = _digit(0, int(digit) - 1)
        after = union(EMPTY, cat(literal(digit), after), cat(lower, repeat(DIGITS)))
    found = cat(literal(whole), _fraction(after))
    if whole == "0":
        return found
    return union(found, cat(_between("0", str(int(whole) - 1)), _FRACTION))


def _fraction(digits: Language) -> Language:
    """The point and the digits; or nothing, which stands for zeros."""
    some = cat(literal("."), intersect(digits, repeat(DIGITS, 1)))
    if digits.nullable:
        return union(EMPTY, some)
    return some


_FRACTION = _fraction(repeat(DIGITS))


def _shape(places: int, size: int) -> Language:
    """Numbers of at most `size` digits before the point, not negative, and `places` behind it."""
    zeros = intersect(
        cat(repeat(literal("0"), 0, places), repeat(DIGITS, 0, FREE_DIGITS)),
        repeat(DIGITS, 0, places),
    )
    found = [cat(literal("0"), _fraction(zeros)), cat(_digit(1, 9), repeat(DIGITS, 0, size - 1))]
    for whole in range(1, min(FREE_DIGITS, size + 1)):
        room = min(places, FREE_DIGITS - whole)
        start = cat(_digit(1, 9), repeat(DIGITS, whole - 1, whole - 1))
        found.append(cat(start, _fraction(repeat(DIGITS, 0, room))))
    return union(*found)
