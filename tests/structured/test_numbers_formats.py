"""Numbers beside arithmetic, dates beside the calendar, formats before two validators."""

from __future__ import annotations

import datetime
import itertools
import json
import random
from decimal import Decimal

import pytest

from mmdiff.structured.regular.byte_dfa import byte_dfa_of
from mmdiff.structured.regular.compile_limits import LanguageError
from mmdiff.structured.regular.derivatives import automaton, matches, shortest, walk
from mmdiff.structured.regular.formats import FORMATS
from mmdiff.structured.regular.language import Language, literal
from mmdiff.structured.regular.numbers import decimal_multiples, decimals, integers


def listed(language: Language) -> list[str]:
    """All texts of a finite language."""
    machine = automaton(language)
    found, stack = [], [] if machine.empty else [(0, "")]
    while stack:
        state, text = stack.pop()
        if state in machine.accepts:
            found.append(text)
        stack += [
            (target, text + chr(code))
            for ranges, target in machine.edges[state]
            for low, high in ranges
            for code in range(low, high + 1)
        ]
    return sorted(found)


@pytest.mark.parametrize("multiple", [1, 3, 10])
def test_integers_are_those_of_arithmetic(multiple: int) -> None:
    for low, high in itertools.product(range(-25, 26, 5), (-21, -10, -1, 0, 1, 9, 10, 99, 130)):
        expected = sorted(str(number) for number in range(low, high + 1) if number % multiple == 0)
        assert listed(integers(low, high, multiple)) == expected, (low, high)


def test_integers_without_bounds() -> None:
    everywhere, above, below = integers(), integers(-5), integers(high=10**20)
    for text in ("0", "-1", "999999999999999", "-999999999999999"):
        assert matches(everywhere, text)
    for text in ("", "-", "-0", "00", "01", "-01", "1.0", "1e3", "+1", "1000000000000000", "٣"):
        assert not matches(everywhere, text)
    assert matches(above, "-5") and not matches(above, "-6") and matches(above, "999999999999999")
    assert (
        matches(below, str(10**20))
        and not matches(below, str(10**20 + 1))
        and matches(below, str(1 - 10**22))
    )
    assert matches(integers(-(2**63), 2**63 - 1), str(-(2**63))) and not matches(
        integers(-(2**63), 2**63 - 1), str(2**63)
    )
    with pytest.raises(LanguageError, match="400 digits"):
        integers(high=10**400)


def by_arithmetic(low: Decimal, high: Decimal, low_open: bool, high_open: bool) -> list[str]:
    fractions = [
        "",
        *(f".{digit}" for digit in range(10)),
        *(f".{number:02}" for number in range(100)),
    ]
    texts = [
        f"{sign}{whole}{fraction}"
        for sign in ("", "-")
        for whole in range(13)
        for fraction in fractions
    ]
    return sorted(
        text
        for text in texts
        if (low < Decimal(text) or low == Decimal(text) and not low_open)
        and (Decimal(text) < high or high == Decimal(text) and not high_open)
        and not (text[0] == "-" and Decimal(text) == 0)
    )


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ("0", "12"),
        ("-12", "12"),
        ("-1.5", "0"),
        ("-0.25", "11.75"),
        ("0.5", "0.5"),
        ("1.05", "1.1"),
        ("-3", "-2.9"),
        ("9.99", "10.01"),
        ("-0.01", "0.01"),
        ("0", "0"),
        ("-10", "-9.5"),
        ("3", "2"),
        ("-0", "1E+1"),
        ("10", "10.5"),
    ],
)
def test_decimals_are_those_of_arithmetic(low: str, high: str) -> None:
    for opened in itertools.product((False, True), repeat=2):
        bounds = Decimal(low), Decimal(high)
        assert listed(decimals(*bounds, *opened, digits=2)) == by_arithmetic(*bounds, *opened), (
            opened
        )


def test_decimals_keep_to_their_bounds_as_doubles() -> None:
    rng = random.Random(0)
    for low, high in [
        ("0.1", "0.3"),
        ("-1e14", "1e14"),
        ("1e-20", "1"),
        ("99999999999999.5", "1e15"),
        ("-7.25", "1e308"),
        ("0.30000000000000004", "0.4"),
        ("-5e-324", "5e-324"),
        ("0", "123456789012.125"),
    ]:
        machine = automaton(decimals(Decimal(low), Decimal(high), True, True))
        for _ in range(0 if machine.empty else 300):
            text = walk(machine, rng, rng.randrange(1, 40))
            assert float(low) < json.loads(text) < float(high) and str(float(text)) != "-0.0", text


def test_decimals_without_bounds() -> None:
    language = decimals()
    for text in (
        "0",
        "-1.50",
        "0.000000",
        "123456789.123456",
        "999999999999999",
        "12345678901234.5",
    ):
        assert matches(language, text)
    for text in (
        "-0",
        "-0.0",
        "-0.000000",
        ".5",
        "1.",
        "01.5",
        "1e5",
        "0.1234567",
        "12345678901234.56",
        "NaN",
    ):
        assert not matches(language, text)
    assert len(byte_dfa_of(language, "plain").next_SB) < 50
    largest = Decimal("1.7976931348623157e308")
    assert decimals(-largest, largest) is language
    for bound in ("NaN", "Infinity", "1e400"):
        with pytest.raises(LanguageError, match="cannot be bounded"):
            decimals(Decimal(bound))


@pytest.mark.parametrize("year", [1, 4, 100, 1900, 1999, 2000, 2023, 2024, 9999])
def test_dates_are_those_of_the_calendar(year: int) -> None:
    days = FORMATS["date"]() & (literal(f"{year:04}-") + (FORMATS["date"]() | ~literal("")))
    first = datetime.date(year, 1, 1).toordinal()
    last = datetime.date(year, 12, 31).toordinal()
    assert listed(days) == [
        datetime.date.fromordinal(day).isoformat() for day in range(first, last + 1)
    ]


def test_dates_outside_the_calendar() -> None:
    for text in (
        "0000-01-01",
        "0000-02-29",
        "2023-2-1",
        "2024-13-01",
        "2024-00-10",
        "2024-01-00",
        "12024-01-01",
    ):
        assert not matches(FORMATS["date"](), text)
    assert matches(FORMATS["date-time"](), "2024-02-29T23:59:59.5+01:30")
    assert not matches(FORMATS["date-time"](), "2023-02-29T00:00:00Z")
    assert not matches(FORMATS["time"](), "23:59:60Z")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("time", "12:00:00Z"),
        ("duration", "P1Y2M3DT4H5M6S"),
        ("duration", "P2W"),
        ("email", "ann.lee+x@mail.example.com"),
        ("idn-email", "jürgen@müller.de"),
        ("hostname", "www.my-host1.example.com"),
        ("idn-hostname", "münchen.de"),
        ("ipv4", "192.168.0.255"),
        ("ipv6", "2001:db8::1"),
        ("ipv6", "1:2:3:4:5:6:7:8"),
        ("ipv6", "fe80::"),
        ("uuid", "123e4567-e89b-12d3-a456-426614174000"),
        ("uri", "https://example.com:8080/a/b?x=1&y=%20#top"),
        ("uri", "mailto:ann@example.com"),
        ("uri", "urn:isbn:0451450523"),
        ("uri-reference", "../a?b#c"),
        ("uri-reference", "/a//b"),
        ("iri", "https://müller.de/größe"),
        ("iri-reference", "größe"),
        ("uri-template", "/users/{id}{?page,size*}"),
        ("json-pointer", "/a~1b/0"),
        ("relative-json-pointer", "1/a"),
        ("relative-json-pointer", "0#"),
        ("regex", r"^(\d{3}|[a-z]+)-x?$"),
    ],
)
def test_common_texts_are_in_their_formats(name: str, text: str) -> None:
    assert matches(FORMATS[name](), text)


@pytest.mark.parametrize("name", FORMATS)
def test_two_validators_accept_what_is_drawn(name: str) -> None:
    jsonschema, jsonschema_rs = (
        pytest.importorskip("jsonschema"),
        pytest.importorskip("jsonschema_rs"),
    )
    validator = jsonschema.Draft202012Validator
    schema = {"format": name}
    one = validator(schema, format_checker=validator.FORMAT_CHECKER)
    other = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
    rng, machine = random.Random(name), automaton(FORMATS[name]())
    texts = [walk(machine, rng, rng.choice([4, 16, 60, 250])) for _ in range(300)]
    for text in [*texts, shortest(FORMATS[name]())]:
        assert one.is_valid(text), text
        assert other.is_valid(text), text


def test_formats_are_small() -> None:
    sizes = {name: len(byte_dfa_of(make(), "json").next_SB) for name, make in FORMATS.items()}
    assert max(sizes.values()) < 500 and sizes["date"] < 40 and sizes["uri"] < 30, sizes


def test_a_bound_is_read_to_its_last_digit_and_not_beyond() -> None:
    written = decimals(
        Decimal(0), Decimal("1.50000000"), digits=2
    )  # zeros at its end are no digits of a fraction
    assert matches(written, "0.12") and matches(written, "1.50") and not matches(written, "0.123")
    fine = decimals(
        Decimal("1E-45"), Decimal(1)
    )  # rounded inwards, so that nothing below it is left
    assert matches(fine, "1") and not matches(fine, "0") and not matches(fine, "0.0")


def test_decimal_multiples_are_multiples_however_many_digits_are_written() -> None:
    quarters = decimal_multiples(25, 2)
    for text in ("0", "3", "0.5", "-0.25", "1.75", "2.50"):
        assert matches(quarters, text), text
    for text in ("0.01", "0.1", "0.24", "-0.7", "1.005"):
        assert not matches(quarters, text), text
