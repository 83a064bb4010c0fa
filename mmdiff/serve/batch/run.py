"""Answer a file of requests into a file of answers, as `mmdiff run-batch` does; it may be broken
off at any time.

Bodies are answered by whatever the server answers them by, so that a row holds what the server
would have said. A row's `id` stands for its name, body, model and settings: what is there under it
is not done again, and anything else is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeAlias

from mmdiff.serve.batch.asgi_client import AsgiResponse
from mmdiff.serve.batch.input import Line, Request, index, read
from mmdiff.serve.batch.journal import Row, open_journal
from mmdiff.serve.batch.worker_pool import JobOutcome, answered, outcome, write

Ask: TypeAlias = Callable[
    [str, dict[str, Any], str], Awaitable[AsgiResponse]
]  # of a url, a body and the request's id
BatchItem: TypeAlias = tuple[Line, Request]
Answering: TypeAlias = Callable[
    [Iterable[BatchItem]], AsyncGenerator[list[Row], None]
]  # rows as they are finished
CHAT = "/v1/chat/completions"
PASSING = (408, 429)  # and from 500 on


async def run_batch(
    source: Path, out: Path, answering: Answering, *, urls: Sequence[str], settings: Any
) -> JobOutcome:
    """Do what is not done yet.

    Args:
        answering: gives the rows of requests, which it reads when it has room; called only if there
            is something to do.
        settings: what the answers depend on beside the bodies, such as the model.

    Raises:
        MMDiffError: the input cannot be read or changes meanwhile, or the output cannot be written
            or is another job's.
    """
    lines = index(source, urls, settings)
    names = {line.id: line.custom_id for line in lines}
    with (
        open_journal(out, names, "custom_id", _row_may_pass) as journal,
        open(source, "rb") as file,
    ):
        bad = [
            refusal(line) for line in lines if line.problem is not None and line.id not in journal
        ]
        if bad:
            journal.append(bad)
        left = [line for line in lines if line.id not in journal]
        if left:
            asked = ((line, read(file, line, urls, settings)) for line in left)
            await write(answering(asked), journal, len(lines), "requests")
        journal.settle([line.id for line in lines])
        return outcome(journal, sentence)


def by(asking: Callable[[], Any], most: int) -> Answering:
    """Rows from an asynchronous context with an `Ask`, so many of them in the making at once."""

    async def answering(asked: Iterable[BatchItem]) -> AsyncGenerator[list[Row], None]:
        async with asking() as ask:

            async def one(each: BatchItem) -> Row:
                line, request = each
                return reply(line, await ask(request.url, seeded(request, line), request_id(line)))

            async with aclosing(answered(asked, one, most)) as parts:
                async for rows in parts:
                    yield rows

    return answering


def seeded(request: Request, line: Line) -> dict[str, Any]:
    """The body with a seed, so that a row is the same however often the job is broken off."""
    if request.url != CHAT or request.body.get("seed") is not None:
        return request.body
    return {**request.body, "seed": int(line.id[-8:], 16)}


def reply(line: Line, said: AsgiResponse) -> Row:
    """The row of a request that was answered, be it with an error."""
    status, body = said
    response = {"status_code": status, "request_id": request_id(line), "body": body}
    return {"id": line.id, "custom_id": line.custom_id, "response": response, "error": None}


def request_id(line: Line) -> str:
    return line.id.removeprefix("batch_")


def refusal(line: Line) -> Row:
    """The row of a line that is no request."""
    assert line.problem is not None
    error = {
        "code": line.problem.code,
        "message": f"line {line.number} {line.problem}",
        "line": line.number,
    }
    return {"id": line.id, "custom_id": None, "response": None, "error": error}


def sentence(row: Row) -> str:
    """What is wrong with a row."""
    error = row["error"] or row["response"]["body"]["error"]
    return f"{row['custom_id']}: {error['message']}" if row["custom_id"] else str(error["message"])


def _row_may_pass(row: Row) -> bool:
    status = (row.get("response") or {}).get("status_code", 200)
    return may_pass(status)


def may_pass(status: int) -> bool:
    """Whether an error of this status may be none at another time."""
    return status in PASSING or status >= 500
