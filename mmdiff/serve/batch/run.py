"""Batch jobs: a file of requests answered into a file of rows, resumable after any interruption.

Bodies are answered by the server's application, so a row holds what the server would have
answered. A row's `id` stands for its name, body, model and settings: what is there under it is not
done again, and anything else is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeAlias

from mmdiff.serve.batch.asgi_client import AsgiResponse
from mmdiff.serve.batch.input import Line, Request, index_lines, read_request
from mmdiff.serve.batch.journal import Row, open_journal
from mmdiff.serve.batch.worker_pool import JobOutcome, concurrently, outcome, write_rows

# Posts a body to a url under the request's id.
Post: TypeAlias = Callable[[str, dict[str, Any], str], Awaitable[AsgiResponse]]
BatchItem: TypeAlias = tuple[Line, Request]
# Rows of requests as they are finished.
RowSource: TypeAlias = Callable[[Iterable[BatchItem]], AsyncGenerator[list[Row], None]]
CHAT = "/v1/chat/completions"
TRANSIENT = (408, 429)  # and from 500 on


async def run_batch(
    source: Path, out: Path, respond: RowSource, *, urls: Sequence[str], settings: Any
) -> JobOutcome:
    """Do what is not done yet.

    Args:
        respond: gives the rows of requests, which it takes as it has capacity; called only if
            there is something to do.
        settings: what the answers depend on beside the bodies, such as the model.

    Raises:
        MMDiffError: the input cannot be read or changes meanwhile, or the output cannot be written
            or is another job's.
    """
    lines = index_lines(source, urls, settings)
    names = {line.id: line.custom_id for line in lines}
    with (
        open_journal(out, names, "custom_id", _is_transient) as journal,
        open(source, "rb") as file,
    ):
        left = [line for line in lines if line.id not in journal]
        bad = [error_row(line) for line in left if line.problem is not None]
        if bad:
            journal.append(bad)
        good = [line for line in left if line.problem is None]
        if good:
            requests = ((line, read_request(file, line, urls, settings)) for line in good)
            await write_rows(respond(requests), journal, len(lines), "requests")
        journal.settle([line.id for line in lines])
        return outcome(journal, failure_message)


def rows_by(connect: Callable[[], Any], max_concurrent: int) -> RowSource:
    """Rows of requests that are posted by what `connect()`, an asynchronous context, gives."""

    async def respond(requests: Iterable[BatchItem]) -> AsyncGenerator[list[Row], None]:
        async with connect() as post:

            async def one(item: BatchItem) -> Row:
                line, request = item
                body = with_seed(request, line)
                return response_row(line, await post(request.url, body, request_id(line)))

            async with aclosing(concurrently(requests, one, max_concurrent)) as finished:
                async for rows in finished:
                    yield rows

    return respond


def with_seed(request: Request, line: Line) -> dict[str, Any]:
    """The body with a seed, so that a row is the same however often the job is broken off."""
    if request.url != CHAT or request.body.get("seed") is not None:
        return request.body
    return {**request.body, "seed": int(line.id[-8:], 16)}


def response_row(line: Line, answer: AsgiResponse) -> Row:
    """The row of a request that was answered, be it with an error."""
    status, body = answer
    response = {"status_code": status, "request_id": request_id(line), "body": body}
    return {"id": line.id, "custom_id": line.custom_id, "response": response, "error": None}


def request_id(line: Line) -> str:
    return line.id.removeprefix("batch_")


def error_row(line: Line) -> Row:
    """The row of a line that is not a request."""
    assert line.problem is not None
    error = {
        "code": line.problem.code,
        "message": f"line {line.number} {line.problem}",
        "line": line.number,
    }
    return {"id": line.id, "custom_id": None, "response": None, "error": error}


def failure_message(row: Row) -> str:
    """What is wrong with a row."""
    error = row["error"] or row["response"]["body"]["error"]
    return f"{row['custom_id']}: {error['message']}" if row["custom_id"] else str(error["message"])


def _is_transient(row: Row) -> bool:
    return is_transient((row.get("response") or {}).get("status_code", 200))


def is_transient(status: int) -> bool:
    """Whether the same request may succeed at another time."""
    return status in TRANSIENT or status >= 500
