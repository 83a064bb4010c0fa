"""Answer a file of requests into a file of answers, as `mmdiff run-batch` does; it may be broken off at any time.

Bodies are answered by whatever the server answers them by, so that a row holds what the server would have said. A row's
`id` stands for its name, body, model and settings: what is there under it is not done again, and anything else is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mmdiff.serve.batch_input import Line, index, read
from mmdiff.serve.job import answered, write
from mmdiff.serve.journal import Journal, Row, is_failed, open_journal

Reply = tuple[int, dict[str, Any]]  # status, and the body
Ask = Callable[[str, dict[str, Any]], Awaitable[Reply]]  # of a url and a body
PASSING = (408, 429)  # and from 500 on: another time may be a better one


@dataclass(frozen=True)
class Outcome:
    """How many rows there are, and those with errors."""

    rows: int
    failed: int


async def run_batch(
    source: Path, out: Path, asking: Callable[[], Any], *, urls: Sequence[str], settings: Any, most: int
) -> Outcome:
    """Do what is not done yet.

    Args:
        asking: gives an asynchronous context with an `Ask`; entered only if there is something to do.
        settings: what the answers depend on beside the bodies, such as the model.
        most: requests on their way at once.

    Raises:
        MMDiffError: the input cannot be read or changes meanwhile, or the output cannot be written or is another job's.
    """
    lines = index(source, urls, settings)
    names = {line.id: line.custom_id for line in lines}
    with open_journal(out, names, "custom_id", _may_pass) as journal, open(source, "rb") as file:
        bad = [refusal(line) for line in lines if line.problem is not None and line.id not in journal]
        if bad:
            journal.append(bad)
        left = [line for line in lines if line.id not in journal]
        if left:
            async with asking() as ask:
                await _answer(left, file, ask, journal, len(lines), urls, settings, most)
        journal.settle([line.id for line in lines])
        return Outcome(len(journal), journal.failed)


async def _answer(
    lines: Sequence[Line], file: BinaryIO, ask: Ask, journal: Journal, total: int, urls: Sequence[str], settings: Any,
    most: int,
) -> None:
    async def one(line: Line) -> Row:
        request = read(file, line, urls, settings)
        return reply(line, await ask(request.url, request.body))

    await write(answered(lines, one, most), journal, total, "requests")


def reply(line: Line, said: Reply) -> Row:
    """The row of a request that was answered, be it with an error."""
    status, body = said
    response = {"status_code": status, "request_id": line.id.removeprefix("batch_"), "body": body}
    return {"id": line.id, "custom_id": line.custom_id, "response": response, "error": None}


def refusal(line: Line) -> Row:
    """The row of a line that is no request."""
    assert line.problem is not None
    error = {"code": line.problem.code, "message": f"line {line.number} {line.problem}", "line": line.number}
    return {"id": line.id, "custom_id": None, "response": None, "error": error}


def failures(out: Path, count: int) -> Iterator[str]:
    """A sentence for each of the first rows with an error."""
    import json

    with open(out, "rb") as file:
        for row in filter(is_failed, map(json.loads, file)):
            if count == 0:
                return
            count -= 1
            error = row["error"] or row["response"]["body"]["error"]
            name = f"{row['custom_id']}: " if row["custom_id"] else ""
            yield name + error["message"]


def _may_pass(row: Row) -> bool:
    status = (row.get("response") or {}).get("status_code", 200)
    return status in PASSING or status >= 500
