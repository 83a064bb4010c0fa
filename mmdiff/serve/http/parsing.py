"""Bodies of requests, read with limits and checked: JSON without doubles or depth, against a model
of schemas.py."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from mmdiff.config import shown
from mmdiff.serve.errors import ApiError

DEPTH = 64
BRACKETS, COMMAS = (
    20_000,
    200_000,
)  # checked first: parsing takes far more time and memory for them than for text
M = TypeVar("M", bound=BaseModel)


async def read_json_body(request: Request, model: type[M]) -> M:
    """The body as `model`.

    Raises:
        ApiError: it is no JSON, or not of this form; `param` says where.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "unsupported_media_type", "send the body as application/json")
    check_coding(request)
    return validated(model, parse_json_strict(await request.body()))


def check_coding(request: Request) -> None:
    """Refuse a body that is packed: what it unpacks to could be of any size.

    Raises:
        ApiError: it is.
    """
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        said = f"the body is packed ({shown(coding)}): send it without Content-Encoding"
        raise ApiError(415, "unsupported_media_type", said)


def parse_json_strict(body: bytes) -> Any:
    """JSON, strictly."""
    if body.startswith(b"\xef\xbb\xbf"):
        raise ApiError(
            400, "invalid_json", "the body begins with a byte order mark: send JSON without one"
        )
    if body.count(b"[") + body.count(b"{") > BRACKETS:
        raise ApiError(
            400, "invalid_json", f"the body holds more than {BRACKETS:,} lists and objects"
        )
    if body.count(b",") > COMMAS:
        raise ApiError(
            400,
            "invalid_json",
            f"the body holds more than {COMMAS:,} commas: it has too many values",
        )
    try:
        values = json.loads(
            body.decode(),
            object_pairs_hook=_reject_duplicate_keys,
            parse_constant=_no_constant,
            parse_int=_integer,
            parse_float=_float,
        )
        too_deep = _too_deep(values)
    except RecursionError:
        too_deep = True
    except json.JSONDecodeError as error:
        raise ApiError(
            400, "invalid_json", f"the body is no JSON: {error.msg} at character {error.pos}"
        ) from None
    except UnicodeDecodeError as error:
        raise ApiError(400, "invalid_json", f"the body is no UTF-8 at byte {error.start}") from None
    if too_deep:
        raise ApiError(400, "invalid_json", f"the body is nested more than {DEPTH} deep")
    if b"\\ud" in body.lower() and (place := _half_character(values)) is not None:
        said = f"{shown(place)} holds half of a character (a lone surrogate)"
        raise ApiError(400, "invalid_request", said, place[:200])
    return values


def validated(model: type[M], values: Any) -> M:
    if not isinstance(values, dict):
        raise ApiError(400, "invalid_request", "the body must be a JSON object")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        param = _path(first["loc"], values, first["type"] == "missing")
        if first["type"] == "extra_forbidden":
            said = f"{shown(param)} is not supported here: leave it out"
            raise ApiError(400, "unknown_parameter", said, param) from None
        if first["type"] == "missing":
            raise ApiError(400, "invalid_request", f"{shown(param)} is missing", param) from None
        said = first["msg"][0].lower() + first["msg"][1:]
        if first["type"] == "union_tag_invalid":
            tag, tags = first["ctx"]["tag"], first["ctx"]["expected_tags"]
            said = f"its type is {shown(tag)}, and should be one of {tags}"
        raise ApiError(
            400, "invalid_request", f"{shown(param)} does not fit: {said}", param
        ) from None


def _path(places: tuple[int | str, ...], values: Any, missing: bool) -> str:
    """`messages[0].content`, without the names that a union adds.

    Args:
        missing: the last place is not there.
    """
    path = ""
    for number, place in enumerate(places):
        part = isinstance(values, dict) and number > 0 and isinstance(places[number - 1], int)
        if part and number + 1 < len(places) and values.get("type") == place:
            # the tag by which a union chose, though there may be a key of that name as well
            continue
        if isinstance(place, int):
            path += f"[{place}]"
            values = values[place] if isinstance(values, list) and place < len(values) else None
        elif isinstance(values, dict) and (place in values or (missing and place == places[-1])):
            path += f".{place}" if path else place
            values = values.get(place)
    return (path or ".".join(map(str, places)))[:200]


def _too_deep(value: Any, left: int = DEPTH) -> bool:
    if isinstance(value, dict | list):
        inside = value.values() if isinstance(value, dict) else value
        return left == 0 or any(_too_deep(each, left - 1) for each in inside)
    return False


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ApiError(400, "invalid_json", f"the body names {shown(double)} twice")
    return found


def _half_character(value: Any, place: str = "") -> str | None:
    """Where there is a text that is none, if anywhere."""
    if isinstance(value, dict):
        inside = [
            (f"{place}.{name}" if place else name, name, each) for name, each in value.items()
        ]
        return next(
            (
                found
                for path, name, each in inside
                if (found := _half_character(name, path) or _half_character(each, path)) is not None
            ),
            None,
        )
    if isinstance(value, list):
        return next(
            (
                found
                for number, each in enumerate(value)
                if (found := _half_character(each, f"{place}[{number}]")) is not None
            ),
            None,
        )
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return place.encode("ascii", "backslashreplace").decode() or "the body"
    return None


def _no_constant(name: str) -> Any:
    raise ApiError(400, "invalid_json", f"the body holds {name}, which is no JSON")


def _float(digits: str) -> float:
    if len(digits) > 400:
        raise ApiError(400, "invalid_json", f"the body holds a number of {len(digits):,} digits")
    return float(digits)


def _integer(digits: str) -> int:
    if len(digits) > 20:
        raise ApiError(400, "invalid_json", f"the body holds a number of {len(digits)} digits")
    return int(digits)
