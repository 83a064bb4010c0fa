"""Parses request bodies strictly, and validates them against the models of schemas.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from mmdiff.config import shown
from mmdiff.serve.errors import ApiError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

DEPTH = 64
# checked first: parsing takes far more time and memory for them than for text
BRACKETS, COMMAS = 20_000, 200_000
M = TypeVar("M", bound=BaseModel)


async def read_json_body(request: Request, model: type[M]) -> M:
    """The body as `model`.

    Raises:
        ApiError: it is not JSON, or does not fit; `param` says where.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "unsupported_media_type", "send the body as application/json")
    check_coding(request)
    return validated(model, parse_json_strict(await request.body()))


def check_coding(request: Request) -> None:
    """Refuse a compressed body: what it decompresses to could be of any size.

    Raises:
        ApiError: it is.
    """
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        message = f"the body is compressed ({shown(coding)}): send it without Content-Encoding"
        raise ApiError(415, "unsupported_media_type", message)


def parse_json_strict(body: bytes) -> Any:
    """The value of JSON without duplicate keys, deep nesting, constants or lone surrogates.

    Raises:
        ApiError: it is not such JSON.
    """
    if body.startswith(b"\xef\xbb\xbf"):
        raise _not_json("the body begins with a byte order mark: send JSON without one")
    if body.count(b"[") + body.count(b"{") > BRACKETS:
        raise _not_json(f"the body holds more than {BRACKETS:,} lists and objects")
    if body.count(b",") > COMMAS:
        raise _not_json(f"the body holds more than {COMMAS:,} commas: it has too many values")
    try:
        values = json.loads(
            body.decode(),
            object_pairs_hook=_reject_duplicate_keys,
            parse_constant=_reject_constant,
            parse_int=_parse_int,
            parse_float=_parse_float,
        )
        too_deep = _is_too_deep(values)
    except RecursionError:
        too_deep = True
    except json.JSONDecodeError as error:
        raise _not_json(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except UnicodeDecodeError as error:
        raise _not_json(f"the body is not UTF-8 at byte {error.start}") from None
    if too_deep:
        raise _not_json(f"the body is nested more than {DEPTH} deep")
    if b"\\ud" in body.lower() and (path := _lone_surrogate(values)) is not None:
        message = f"{shown(path)} holds half of a character (a lone surrogate)"
        raise ApiError(400, "invalid_request", message, path[:200])
    return values


def _not_json(message: str) -> ApiError:
    return ApiError(400, "invalid_json", message)


def validated(model: type[M], values: Any) -> M:
    """The body as `model`.

    Raises:
        ApiError: it does not fit; `param` says where.
    """
    if not isinstance(values, dict):
        raise ApiError(400, "invalid_request", "the body must be a JSON object")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _misfit(first, values) from None


def _misfit(error: ErrorDetails, values: Any) -> ApiError:
    """The refusal of a body by pydantic's first error."""
    kind, param = error["type"], _path(error["loc"], values, error["type"] == "missing")
    if kind == "extra_forbidden":
        message = f"{shown(param)} is not supported here: leave it out"
        return ApiError(400, "unknown_parameter", message, param)
    if kind == "missing":
        return ApiError(400, "invalid_request", f"{shown(param)} is missing", param)
    reason = error["msg"][0].lower() + error["msg"][1:]
    if kind == "union_tag_invalid":
        tag, tags = error["ctx"]["tag"], error["ctx"]["expected_tags"]
        reason = f"its type is {shown(tag)}, and should be one of {tags}"
    return ApiError(400, "invalid_request", f"{shown(param)} does not fit: {reason}", param)


def _path(location: tuple[int | str, ...], values: Any, missing: bool) -> str:
    """`messages[0].content`, without the names that a union adds.

    Args:
        location: pydantic's.
        missing: its last key is not there.
    """
    path = ""
    for number, key in enumerate(location):
        in_list = isinstance(values, dict) and number > 0 and isinstance(location[number - 1], int)
        if in_list and number + 1 < len(location) and values.get("type") == key:
            # the tag by which a union chose, though there may be a key of that name as well
            continue
        if isinstance(key, int):
            path += f"[{key}]"
            values = values[key] if isinstance(values, list) and key < len(values) else None
        elif isinstance(values, dict) and (key in values or (missing and key == location[-1])):
            path += f".{key}" if path else key
            values = values.get(key)
    return (path or ".".join(map(str, location)))[:200]


def _is_too_deep(value: Any, left: int = DEPTH) -> bool:
    if isinstance(value, dict | list):
        inside = value.values() if isinstance(value, dict) else value
        return left == 0 or any(_is_too_deep(each, left - 1) for each in inside)
    return False


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise _not_json(f"the body names {shown(double)} twice")
    return found


def _lone_surrogate(value: Any, path: str = "") -> str | None:
    """The path of a text that cannot be encoded, if there is one."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return path.encode("ascii", "backslashreplace").decode() or "the body"
        return None
    found = (_lone_surrogate(inner, inner_path) for inner_path, inner in _inside(value, path))
    return next((each for each in found if each is not None), None)


def _inside(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Keys and values of an object, or items of a list, each with its path."""
    if isinstance(value, dict):
        for name, each in value.items():
            inner = f"{path}.{name}" if path else name
            yield inner, name
            yield inner, each
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield f"{path}[{number}]", each


def _reject_constant(name: str) -> Any:
    raise _not_json(f"the body holds {name}, which is not JSON")


def _parse_float(digits: str) -> float:
    if len(digits) > 400:
        raise _not_json(f"the body holds a number of {len(digits):,} digits")
    return float(digits)


def _parse_int(digits: str) -> int:
    if len(digits) > 20:
        raise _not_json(f"the body holds a number of {len(digits)} digits")
    return int(digits)
