"""Bodies of requests, read with limits and checked: JSON without doubles or depth, against a model of protocol.py."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from mmdiff.serve.errors import ApiError, shown

DEPTH = 64
BRACKETS = 20_000  # checked before parsing, which takes far more time and memory for them than for text
M = TypeVar("M", bound=BaseModel)


async def read_json(request: Request, model: type[M]) -> M:
    """The body as `model`.

    Raises:
        ApiError: it is no JSON, or not of this form; `param` says where.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "unsupported_media_type", "send the body as application/json")
    return validated(model, parse(await request.body()))


def parse(body: bytes) -> Any:
    """JSON, strictly."""
    if body.startswith(b"\xef\xbb\xbf"):
        raise ApiError(400, "invalid_json", "the body begins with a byte order mark: send JSON without one")
    if body.count(b"[") + body.count(b"{") > BRACKETS:
        raise ApiError(400, "invalid_json", f"the body holds more than {BRACKETS:,} lists and objects")
    try:
        values = json.loads(body, object_pairs_hook=_once, parse_constant=_no_constant, parse_int=_integer)
        too_deep = _too_deep(values)
    except RecursionError:
        too_deep = True
    except json.JSONDecodeError as error:
        raise ApiError(400, "invalid_json", f"the body is no JSON: {error.msg} at character {error.pos}") from None
    except UnicodeDecodeError as error:
        raise ApiError(400, "invalid_json", f"the body is no UTF-8 at byte {error.start}") from None
    if too_deep:
        raise ApiError(400, "invalid_json", f"the body is nested more than {DEPTH} deep")
    return values


def validated(model: type[M], values: Any) -> M:
    if not isinstance(values, dict):
        raise ApiError(400, "invalid_request", "the body must be a JSON object")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = _path(first["loc"], values)
        if first["type"] == "extra_forbidden":
            said = f"{shown(param)} is not supported here: leave it out"
            raise ApiError(400, "unknown_parameter", said, param) from None
        if first["type"] == "missing":
            raise ApiError(400, "invalid_request", f"{shown(param)} is missing", param) from None
        said = first["msg"][0].lower() + first["msg"][1:]
        raise ApiError(400, "invalid_request", f"{shown(param)} does not fit: {said}", param) from None


def _path(places: tuple[int | str, ...], values: Any) -> str:
    """`messages[0].content`, without the names that a union adds."""
    path = ""
    for place in places:
        if isinstance(place, int):
            path += f"[{place}]"
            values = values[place] if isinstance(values, list) and place < len(values) else None
        elif isinstance(values, dict) and (place in values or place == places[-1]):
            path += f".{place}" if path else place
            values = values.get(place)
    return (path or ".".join(map(str, places)))[:200]


def _too_deep(value: Any, left: int = DEPTH) -> bool:
    if isinstance(value, dict | list):
        inside = value.values() if isinstance(value, dict) else value
        return left == 0 or any(_too_deep(each, left - 1) for each in inside)
    return False


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ApiError(400, "invalid_json", f"the body names {shown(double)} twice")
    return found


def _no_constant(name: str) -> Any:
    raise ApiError(400, "invalid_json", f"the body holds {name}, which is no JSON")


def _integer(digits: str) -> int:
    if len(digits) > 20:
        raise ApiError(400, "invalid_json", f"the body holds a number of {len(digits)} digits")
    return int(digits)
