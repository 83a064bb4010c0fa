"""A job over many rows: so many at once are answered, and each is written down when it is finished.

Left out: where rows come from and how they look, which `batch` and `captions` know, and who answers
them.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from mmdiff.serve.batch.journal import Journal, Row

SHOWN = 5  # of the rows with errors, when all is done
TELL_SECONDS = 30.0  # between two lines about the state of things, where there is no terminal
T = TypeVar("T")


@dataclass(frozen=True)
class JobOutcome:
    """How many rows there are, those with errors, and a sentence for each of the first of these."""

    rows: int
    failed: int
    failures: tuple[str, ...] = ()


def outcome(journal: Journal, sentence: Callable[[Row], str]) -> JobOutcome:
    return JobOutcome(
        len(journal), journal.failed, tuple(map(sentence, islice(journal.failures(), SHOWN)))
    )


async def answered(
    items: Iterable[T], answer: Callable[[T], Awaitable[Row]], most: int
) -> AsyncGenerator[list[Row], None]:
    """The rows in the order in which they are finished, those that are finished together in one
    list.

    Args:
        items: taken one after another, when there is room; so they may be read from a file
            meanwhile.
        most: how many are being answered at once.
    """
    coming, going = iter(items), set[asyncio.Task[Row]]()
    try:
        while True:
            for item in _next(coming, most - len(going)):
                going.add(asyncio.ensure_future(answer(item)))
            if not going:
                return
            done, going = await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
            yield [task.result() for task in done]
    finally:
        for task in going:
            task.cancel()
        await asyncio.gather(*going, return_exceptions=True)


async def write(
    parts: AsyncGenerator[list[Row], None], journal: Journal, total: int, what: str
) -> None:
    """Write rows down as they come, with a bar in the terminal or a line now and then elsewhere."""
    before, started = len(journal), time.monotonic()
    told = started
    with _bar(total, before, what) as bar:
        async with aclosing(
            parts
        ):  # what is on its way is called off where a row cannot be written
            async for rows in parts:
                journal.append(rows)
                now = time.monotonic()
                rate = f"{(len(journal) - before) / (now - started):.1f}/s"
                bar.update(bar.task_ids[0], completed=len(journal), rate=rate)
                if bar.disable and now - told >= TELL_SECONDS:
                    told = now
                    print(f"{len(journal)} of {total} {what}, {rate}", file=sys.stderr, flush=True)


def _next(items: Iterator[T], count: int) -> Iterator[T]:
    for _ in range(count):
        try:
            yield next(items)
        except StopIteration:
            return


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
