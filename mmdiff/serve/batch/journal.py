"""Crash-safe append-only JSONL of finished rows.

Every row is on the disk before the next ones are begun. A file that is opened again keeps the rows
that are still wanted and drops a torn last line. A row is known by its `id`, which stands for all
that decides its content.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mmdiff.errors import MMDiffError
from mmdiff.files import sync_folder
from mmdiff.serve.batch.file_lock import locked

Row = dict[str, Any]
START = b'{"id": "'  # of every line


class Journal:
    """The rows that are done, and the offset and length of each in the file."""

    def __init__(
        self, path: Path, file: BinaryIO, spans: dict[str, tuple[int, int]], failed: int
    ) -> None:
        self.path, self.failed = path, failed
        self._file, self._spans = file, spans
        self._size = sum(length for _, length in spans.values())

    def __contains__(self, name: str) -> bool:
        return name in self._spans

    def __len__(self) -> int:
        return len(self._spans)

    def append(self, rows: Sequence[Row]) -> None:
        """Write the rows and wait until they are on the disk.

        Raises:
            MMDiffError: they could not be written, and nothing of them stays in the file.
        """
        lines = [encode(row) for row in rows]
        try:
            _write_all(self._file, b"".join(lines))
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise MMDiffError(
                f"{self.path} cannot be written any further ({error.strerror}); "
                f"its {len(self)} rows are kept: free some space and run the same command again"
            ) from error
        for row, line in zip(rows, lines, strict=True):
            self._spans[row["id"]] = (self._size, len(line))
            self._size += len(line)
            self.failed += is_failed(row)

    def failures(self) -> Iterator[Row]:
        """The rows with errors, as they stand in the file."""
        with open(self.path, "rb") as file:
            yield from filter(is_failed, map(json.loads, file))

    def settle(self, order: Sequence[str]) -> None:
        """Put the rows in this order. They stay as they are where the disk is full."""
        there = [name for name in order if name in self._spans]
        if there != sorted(self._spans, key=lambda name: self._spans[name]):
            with contextlib.suppress(OSError):
                _replace(self.path, [self._spans[name] for name in there])


@contextmanager
def open_journal(
    path: Path, names: Mapping[str, Any], field: str, is_transient: Callable[[Row], bool]
) -> Iterator[Journal]:
    """The journal at `path`, new or begun, with nothing in it but rows that are wanted; one process
    at a time.

    Args:
        names: the wanted rows' `id`s, each with the row's name.
        field: where a row has its name.
        is_transient: whether a row failed for a reason that may pass; it is dropped and can be
            done again.

    Raises:
        MMDiffError: another job has it, it cannot be written, or it holds something else, which is
            left alone.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise MMDiffError(f"{path} is not a regular file; name one for the output")
    with locked(path):
        try:
            spans, failed = _keep(path, names, field, is_transient)
            file = open(path, "ab", buffering=0)  # noqa: SIM115  closed below
        except OSError as error:
            raise MMDiffError(
                f"{path} cannot be written ({error.strerror}); name another file"
            ) from error
        with file:
            yield Journal(path, file, spans, failed)


def encode(row: Row) -> bytes:
    line = json.dumps(row, allow_nan=False).encode() + b"\n"
    assert line.startswith(START), line[:80]
    return line


def is_failed(row: Row) -> bool:
    """Whether a row holds an error instead of an answer."""
    status = (row.get("response") or {}).get("status_code", 200)
    return row.get("error") is not None or status != 200


def _keep(
    path: Path, names: Mapping[str, Any], field: str, is_transient: Callable[[Row], bool]
) -> tuple[dict[str, tuple[int, int]], int]:
    """Drop from the file what is not wanted; gives offset and length of every row that stays."""
    if not path.exists():
        path.touch()
        sync_folder(path.parent)
        return {}, 0
    kept: dict[str, tuple[int, int]] = {}
    failed, end = 0, 0
    rows, known = 0, 0
    wanted_names = set(map(str, names.values()))
    with open(path, "rb") as file:
        for line in file:
            row = _row(line)
            if row is not None:
                rows += 1
                known += str(row.get(field)) in wanted_names
                if row["id"] in names and row["id"] not in kept and not is_transient(row):
                    kept[row["id"]] = (end, len(line))
                    failed += is_failed(row)
            elif not rows and not (line.startswith(START) or START.startswith(line)):
                raise MMDiffError(
                    f"{path} holds something other than rows of such a job; name another file"
                )
            end += len(line)
    if rows and not known:
        raise MMDiffError(
            f"{path} holds the rows of another job: none of its {rows} is in this input; "
            "name another file, or remove it"
        )
    spans, size = {}, 0
    for name, (_, length) in kept.items():
        spans[name] = (size, length)
        size += length
    if spans == kept and size < end:  # only a tail is to go
        with open(path, "r+b") as whole:
            whole.truncate(size)
            os.fsync(whole.fileno())
    elif spans != kept:
        _replace(path, list(kept.values()))
    return spans, failed


def _row(line: bytes) -> Row | None:
    """What a complete line holds; nothing where it was torn."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    is_row = isinstance(row, dict) and isinstance(row.get("id"), str) and line.startswith(START)
    return row if is_row else None


def _replace(path: Path, spans: Sequence[tuple[int, int]]) -> None:
    """Keep only these parts of the file, in this order; it stays as it was if that fails."""
    beside = path.with_name(path.name + ".tmp")
    try:
        with open(path, "rb") as old, open(beside, "wb") as new:
            for offset, length in spans:
                old.seek(offset)
                new.write(old.read(length))
            new.flush()
            os.fsync(new.fileno())
        shutil.copymode(path, beside)
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    sync_folder(path.parent)


def _write_all(file: BinaryIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
    os.fsync(file.fileno())
