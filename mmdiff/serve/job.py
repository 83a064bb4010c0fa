"""A job over many rows: prepared one after another, answered together, written down as they are finished.

Left out: where rows come from and how they look, which `run_batch` and `captions` know.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mmdiff.errors import MMDiffError
from mmdiff.pipeline import Answer
from mmdiff.serve.journal import Journal, Row
from mmdiff.serve.together import Question, Together

WHOLE_BYTES = 1 << 30  # files of weights up to this size are told apart by all of their content


@dataclass(frozen=True)
class Work:
    """What is to be asked for one row, and the row that its answers make."""

    questions: tuple[Question, ...]
    row: Callable[[Sequence[Answer]], Row]
    refused: Callable[[MMDiffError], Row]


class Item(Protocol):
    """What there is to do, known by the `id` of its row."""

    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=Item)


def answered(
    items: Iterable[T], prepare: Callable[[T], Work | Row], together: Together, most: int
) -> Iterator[list[Row]]:
    """The rows in the order in which they are finished, those of a step in one list.

    Args:
        prepare: gives the questions of an item, or its row where there is nothing to ask.
        most: questions that are answered at once.
    """
    waiting: dict[str, _Begun] = {}
    coming, more = iter(items), True
    while more or len(together):
        new: list[tuple[Hashable, Question]] = []
        while more and len(together) + len(new) < most:
            item = next(coming, None)
            if item is None:
                more = False
                break
            work = prepare(item)
            if not isinstance(work, Work):
                yield [work]
                continue
            waiting[item.id] = _Begun(work, [None] * len(work.questions))
            new += [((item.id, place), question) for place, question in enumerate(work.questions)]
        rows = [begun.work.refused(error) for (name, _), error in together.add(new).items()  # type: ignore[misc]
                if (begun := waiting.pop(name, None))]
        for (name, place), answer in together.step():  # type: ignore[misc]
            if name in waiting:
                waiting[name].answers[place] = answer
                if (row := waiting[name].finished()) is not None:
                    del waiting[name]
                    rows.append(row)
        if rows:
            yield rows


@dataclass
class _Begun:
    work: Work
    answers: list[Answer | None]

    def finished(self) -> Row | None:
        answers = [answer for answer in self.answers if answer is not None]
        return self.work.row(answers) if len(answers) == len(self.answers) else None


def write(parts: Iterable[list[Row]], journal: Journal, total: int, what: str) -> None:
    """Write each row down as it comes, with a bar in the terminal or a line now and then elsewhere."""
    already, told = len(journal), time.monotonic()
    with _bar(total, already, what) as bar:
        started = time.monotonic()
        for rows in parts:
            journal.append(rows)
            bar.update(bar.task_ids[0], completed=len(journal), rate=_rate(len(journal) - already, started))
            if bar.disable and time.monotonic() - told > 30:
                told = time.monotonic()
                rate = _rate(len(journal) - already, started)
                print(f"{len(journal)} of {total} {what}, {rate}", file=sys.stderr, flush=True)


def _rate(count: int, started: float) -> str:
    return f"{count / max(time.monotonic() - started, 1e-9):.1f}/s"


def _bar(total: int, already: int, what: str) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                   TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
                   console=Console(stderr=True), disable=not sys.stderr.isatty())
    bar.add_task(what, total=total, completed=already, rate="")
    return bar


def fingerprint(folder: Path) -> str:
    """What tells a model from others: its files, and their content. Of huge files, size and date stand for it."""
    known = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".json", ".safetensors", ".txt", ".model", ".jinja") or not path.is_file():
            continue
        state = os.stat(path)
        known.update(f"{path.name} {state.st_size}\n".encode())
        if state.st_size > WHOLE_BYTES:
            known.update(str(state.st_mtime_ns).encode())
            continue
        with open(path, "rb") as file:
            known.update(hashlib.file_digest(file, "sha256").digest())
    return known.hexdigest()[:32]
