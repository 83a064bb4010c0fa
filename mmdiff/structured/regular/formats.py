r"""The languages of JSON Schema's formats, as far as two validators agree on them.

Every text is accepted by `jsonschema` (with its format extras and a draft's own checker) and by
`jsonschema-rs`; not every text that they accept is here. Dates are those of the calendar, from year
1 to 9999. Names of hosts have at most four labels of 32 characters (three of 16 beyond ASCII),
which keeps them below all limits and the automata small.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from mmdiff.structured.regular.language import Language, cat, literal, repeat, union
from mmdiff.structured.regular.regex import compile_regex

# RFC 3339. Fractions of seconds as fine as Python's; no leap seconds, which validators judge
# differently.
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
# RFC 3339, appendix A: units follow each other without gaps, weeks stand alone.
_COUNT = r"(?:0|[1-9]\d{0,3})"
_CLOCK = f"T(?:{_COUNT}H(?:{_COUNT}M(?:{_COUNT}S)?)?|{_COUNT}M(?:{_COUNT}S)?|{_COUNT}S)"
_DAYS = f"(?:{_COUNT}Y(?:{_COUNT}M(?:{_COUNT}D)?)?|{_COUNT}M(?:{_COUNT}D)?|{_COUNT}D)"
_DURATION = f"P(?:{_DAYS}(?:{_CLOCK})?|{_CLOCK}|{_COUNT}W)"

_LETTERS = "a-zà-öø-ÿа-яぁ-ゖ一-鿿가-힣"  # small ones, which names beyond ASCII are written in
_HOST = r"(?:[A-Za-z0-9](?:-?[A-Za-z0-9]){0,15}\.){0,3}[A-Za-z](?:-?[A-Za-z0-9]){0,15}"
_IDN_LABEL = rf"[{_LETTERS}](?:-?[{_LETTERS}0-9]){{0,7}}"
_IDN_HOST = rf"(?:{_IDN_LABEL}\.){{0,2}}{_IDN_LABEL}"
_LOCAL = r"[A-Za-z0-9](?:[._+-]?[A-Za-z0-9]){0,31}"
_IDN_LOCAL = rf"[A-Z0-9{_LETTERS}](?:[._+-]?[A-Z0-9{_LETTERS}]){{0,9}}"  # at most 64 bytes

_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_UUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
# RFC 9562
_VERSION = "[0-9a-f]{{8}}-[0-9a-f]{{4}}-{version}[0-9a-f]{{3}}-[89ab][0-9a-f]{{3}}-[0-9a-f]{{12}}"

_VARIABLE = r"[A-Za-z][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*(?::[1-9]\d{0,2}|\*)?"
_EXPRESSION = rf"\{{[+#./;?&]?{_VARIABLE}(?:,{_VARIABLE})*\}}"
_TEMPLATE = rf"(?:[A-Za-z0-9._~:/?#@!$&()*+,;=-]|%[0-9A-F]{{2}}|{_EXPRESSION})*"
_POINTER = r"(?:/(?:[^/~]|~[01])*)*"
# jsonschema takes any 0 before another digit for a leading one.
_RELATIVE = rf"(?:0|[1-9]{{1,3}}0?)(?:#|{_POINTER})"
_ATOM = (
    r"(?:[A-Za-z0-9 _@,:/-]|\.|\\[dwsDWS.+*?()|^$/]|\[\^?(?:[A-Za-z0-9_]|a-z|A-Z|0-9|\\[dws])+\])"
)
_COUNTED = r"(?:[*+?]\??|\{\d(?:,(?:1\d)?)?\})?"
_GROUP = rf"(?:{_ATOM}|\((?:\?:)?(?:{_ATOM}{_COUNTED})+(?:\|(?:{_ATOM}{_COUNTED})+)*\))"
_REGEX = rf"\^?(?:{_GROUP}{_COUNTED})+\$?"


def _whole(source: str) -> Callable[[], Language]:
    return functools.cache(lambda: compile_regex(f"^(?:{source})$"))


@functools.cache
def _date() -> Language:
    days = compile_regex(
        r"^(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
        r"|02-(?:0[1-9]|1\d|2[0-8]))$"
    )
    fours = r"(?:0[48]|[2468][048]|[13579][26])"
    leap = compile_regex(rf"^(?:\d\d{fours}|(?:{fours})00)-02-29$")
    years = compile_regex(r"^(?:\d{3}[1-9]|\d{2}[1-9]0|\d[1-9]00|[1-9]000)-$")
    return union(cat(years, days), leap)


@functools.cache
def _date_time() -> Language:
    return cat(_date(), literal("T"), _whole(_TIME)())


@functools.cache
def _ipv6() -> Language:
    """RFC 5952's groups, at least two of which :: stands for."""
    group = compile_regex("^[0-9a-f]{1,4}$")
    first, more = cat(group, literal(":")), cat(literal(":"), group)
    forms = [cat(repeat(first, 7, 7), group)]
    for before in range(7):
        if not before:
            start = literal(":")
        else:
            start = repeat(first, before, before)
        if before == 6:
            end = literal(":")
        else:
            end = union(literal(":"), cat(more, repeat(more, 0, 5 - before)))
        forms.append(cat(start, end))
    return union(*forms)


def _uri(wide: str, relative: bool) -> Callable[[], Language]:
    """RFC 3986, or with the letters `wide` RFC 3987: a scheme and more, and where `relative` also
    paths alone."""

    @functools.cache
    def made() -> Language:
        free = rf"[A-Za-z0-9._~!$&'()*+,;=@{wide}-]|%[0-9A-F]{{2}}"
        each = f"(?:{free}|:)"
        path, behind = f"(?:/{each}*)*", rf"(?:\?(?:{each}|[/?])*)?(?:#(?:{each}|[/?])*)?"
        host = rf"[A-Za-z0-9{wide}](?:[.-]?[A-Za-z0-9{wide}])*(?::[1-9]\d{{0,3}})?"
        source = f"[a-z][a-z0-9+.-]*:(?://{host}{path}|{each}+{path})"
        if relative:
            source = f"(?:{source}|(?:{free})+{path}|/(?:{each}+{path})?|(?=[?#]))"
        return compile_regex(f"^{source}{behind}$")

    return made


_WIDE = "À-ÖØ-öø-ÿΑ-ΡΣ-ωА-яぁ-ゖ一-鿿가-힣"

_ANY_IP = functools.cache(lambda: union(_whole(rf"{_OCTET}(?:\.{_OCTET}){{3}}")(), _ipv6()))

FORMATS: dict[str, Callable[[], Language]] = {
    "date": _date,
    "time": _whole(_TIME),
    "date-time": _date_time,
    "duration": _whole(_DURATION),
    "email": _whole(f"{_LOCAL}@{_HOST}"),
    "idn-email": _whole(f"{_IDN_LOCAL}@{_IDN_HOST}"),
    "hostname": _whole(_HOST),
    "idn-hostname": _whole(_IDN_HOST),
    "ipv4": _whole(rf"{_OCTET}(?:\.{_OCTET}){{3}}"),
    "ipv6": _ipv6,
    "uuid": _whole(_UUID),
    "uri": _uri("", False),
    "uri-reference": _uri("", True),
    "iri": _uri(_WIDE, False),
    "iri-reference": _uri(_WIDE, True),
    "uri-template": _whole(_TEMPLATE),
    "json-pointer": _whole(_POINTER),
    "relative-json-pointer": _whole(_RELATIVE),
    "regex": _whole(_REGEX),
    # Those of pydantic's, of which validators know nothing. A network or an interface may be a lone
    # address.
    "ipvanyaddress": _ANY_IP,
    "ipvanyinterface": _ANY_IP,
    "ipvanynetwork": _ANY_IP,
    "ipv4interface": _whole(rf"{_OCTET}(?:\.{_OCTET}){{3}}"),
    "ipv4network": _whole(rf"{_OCTET}(?:\.{_OCTET}){{3}}"),
    "ipv6interface": _ipv6,
    "ipv6network": _ipv6,
    **{f"uuid{version}": _whole(_VERSION.format(version=version)) for version in range(1, 9)},
    "base64": _whole("(?:[A-Za-z0-9+/]{4})*"),
    "base64url": _whole("(?:[A-Za-z0-9_-]{4})*"),
}
