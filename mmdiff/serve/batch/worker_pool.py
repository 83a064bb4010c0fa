"""Worker pool of a batch job: rows are made concurrently, and each is appended when it is finished.

Where rows come from and what is in them is known to `run` and `captions`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from mmdiff.serve.batch.journal import Journal, Row

SHOWN = 5  # of the rows with errors, when all is done
PRINT_SECONDS = 30.0  # between two lines of progress, where there is no terminal
T = TypeVar("T")


@dataclass(frozen=True)
class JobOutcome:
    """How many rows there are, those with errors, and a sentence for each of the first of these."""

    rows: int
    failed: int
    failures: tuple[str, ...] = ()


def outcome(journal: Journal, failure_message: Callable[[Row], str]) -> JobOutcome:
    shown = tuple(map(failure_message, islice(journal.failures(), SHOWN)))
    return JobOutcome(len(journal), journal.failed, shown)


async def concurrently(
    items: Iterable[T], answer: Callable[[T], Awaitable[Row]], max_concurrent: int
) -> AsyncGenerator[list[Row], None]:
    """The rows in the order in which they are finished, those that are finished together in one
    list.

    Args:
        items: taken one after another, as others are finished; so they may be read from a file
            meanwhile.
    """
    waiting, running = iter(items), set[asyncio.Task[Row]]()
    try:
        while True:
            for item in islice(waiting, max_concurrent - len(running)):
                running.add(asyncio.ensure_future(answer(item)))
            if not running:
                return
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            yield [task.result() for task in done]
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def write_rows(
    finished: AsyncGenerator[list[Row], None], journal: Journal, total: int, what: str
) -> None:
    """Append rows as they are finished, with a progress bar in the terminal or a line now and then
    elsewhere."""
    before, started = len(journal), time.monotonic()
    printed = started
    with _bar(total, before, what) as bar:
        # closed, which cancels what is running, where a row cannot be written
        async with aclosing(finished):
            async for rows in finished:
                journal.append(rows)
                now = time.monotonic()
                rate = f"{(len(journal) - before) / (now - started):.1f}/s"
                bar.update(bar.task_ids[0], completed=len(journal), rate=rate)
                if bar.disable and now - printed >= PRINT_SECONDS:
                    printed = now
                    print(f"{len(journal)} of {total} {what}, {rate}", file=sys.stderr, flush=True)


def _bar(total: int, done: int, what: str) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    bar.add_task(what, total=total, completed=done, rate="")
    return bar
