"""Input of a batch job: JSONL with one request a line, as of OpenAI's Batch API.

The file is read twice: once to know what there is to do, and each line again when its turn comes,
so that memory holds names and offsets but never all images. Lines that are not requests become rows
with an error that names the line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mmdiff.errors import MMDiffError

MAX_LINE = 48 << 20  # bytes: a body of 32 MiB, which is what the server takes, and its envelope


class LineError(Exception):
    """A line is not a request; `code` is for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Line:
    """One line: its number from 1, its offset, its row's `id` and its `custom_id`; or what is wrong
    with it."""

    number: int
    offset: int
    length: int
    id: str
    custom_id: str | None = None
    problem: LineError | None = None


@dataclass(frozen=True)
class Request:
    """The request of a line."""

    custom_id: str
    url: str
    body: dict[str, Any]


def index_lines(path: Path, urls: Sequence[str], settings: Any) -> list[Line]:
    """The lines of a file; blank ones are left out.

    Args:
        urls: those that requests may name.
        settings: whatever else the answers depend on, such as the model; a part of each row's `id`.

    Raises:
        MMDiffError: the file cannot be read, or holds no lines.
    """
    lines: list[Line] = []
    seen: dict[str, int] = {}
    try:
        with open(path, "rb") as file:
            for number, offset, raw in _raw_lines(file):
                if raw is not None and not raw.strip():
                    continue
                lines.append(_line(number, offset, raw, urls, settings, seen))
    except OSError as error:
        raise MMDiffError(
            f"{path} cannot be read ({error.strerror}); give a JSONL file of requests"
        ) from error
    if not lines:
        raise MMDiffError(f"{path} has no lines; give a JSONL file with one request a line")
    return lines


def read_request(file: BinaryIO, line: Line, urls: Sequence[str], settings: Any) -> Request:
    """The request of a line that has no problem.

    Raises:
        MMDiffError: the file is not what it was when it was indexed.
    """
    file.seek(line.offset)
    raw = file.read(line.length)
    try:
        request = parse(raw, urls)
        if identify(request, settings) == line.id:
            return request
    except LineError:
        pass
    raise MMDiffError(
        f"{file.name} was changed while it was worked on (line {line.number}); "
        "run the command again"
    )


def parse(raw: bytes, urls: Sequence[str]) -> Request:
    """A line's request.

    Raises:
        LineError: it has none.
    """
    try:
        content = json.loads(raw.decode("utf-8-sig"))  # a mark at the start is Windows' habit
    except (ValueError, RecursionError) as error:
        where = f" (column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        raise LineError("invalid_json", f"is not JSON{where}") from None
    if not isinstance(content, dict):
        raise LineError("invalid_json", "is not a JSON object")
    custom_id = content.get("custom_id")
    url, body = content.get("url"), content.get("body")
    if not (isinstance(custom_id, str) and custom_id):
        raise LineError("missing_custom_id", "has no custom_id, which must be a string")
    if content.get("method", "POST") != "POST":
        raise LineError(
            "invalid_method", f"has the method {_short(content['method'])}; only POST is possible"
        )
    if url not in urls:
        raise LineError("invalid_url", f"has the url {_short(url)}; known are {', '.join(urls)}")
    if not isinstance(body, dict):
        raise LineError("missing_body", "has no body, which must be an object")
    return Request(custom_id, str(url), body)


def identify(request: Request, settings: Any) -> str:
    """The `id` of a request's row: another body, model or setting gives another one."""
    content = [request.custom_id, request.url, request.body, settings]
    return name_of(json.dumps(content, sort_keys=True).encode())


def name_of(content: bytes, kind: str = "batch_req") -> str:
    return f"{kind}_" + hashlib.sha256(content).hexdigest()[:32]


def _line(
    number: int,
    offset: int,
    raw: bytes | None,
    urls: Sequence[str],
    settings: Any,
    seen: dict[str, int],
) -> Line:
    length = len(raw or b"")
    try:
        if raw is None:
            raise LineError("line_too_long", f"is longer than {MAX_LINE >> 20} MiB")
        request = parse(raw, urls)
        first = seen.setdefault(request.custom_id, number)
        if first != number:
            raise LineError(
                "duplicate_custom_id",
                f"has the custom_id of line {first}, {_short(request.custom_id)}",
            )
        return Line(number, offset, length, identify(request, settings), request.custom_id)
    except LineError as error:
        id = name_of(json.dumps([number, error.code, str(error)]).encode())
        return Line(number, offset, length, id, problem=error)


def _raw_lines(file: BinaryIO) -> Iterator[tuple[int, int, bytes | None]]:
    """Number, offset and content of each line; no content where it is too long."""
    number, offset = 0, 0
    while raw := file.readline(MAX_LINE + 1):
        number += 1
        start, offset = offset, offset + len(raw)
        rest = raw
        while not rest.endswith(b"\n") and (rest := file.readline(1 << 20)):
            offset += len(rest)
        yield number, start, raw if len(raw) <= MAX_LINE else None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
