"""The file of finished rows: torn, full, foreign, in use, or cut off at any write, it loses nothing
that was done."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mmdiff.errors import MMDiffError
from mmdiff.serve.batch import journal as journals
from mmdiff.serve.batch.journal import Journal, Row, encode, open_journal

NAMES = {f"r{number}": f"name-{number}" for number in range(6)}


def row(number: int, **more: Any) -> Row:
    return {
        "id": f"r{number}",
        "name": f"name-{number}",
        "text": "é\ud800" * number,
        "error": None,
        **more,
    }


@contextmanager
def opened(path: Path, names: dict[str, str] = NAMES) -> Iterator[Journal]:
    with open_journal(path, names, "name", lambda found: found["error"] == "busy") as journal:
        yield journal


def ids(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_bytes().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def test_rows_are_kept_and_can_be_put_in_order(path: Path) -> None:
    with opened(path) as journal:
        journal.append([row(2), row(0)])
        assert ids(path) == ["r2", "r0"] and "r2" in journal and "r1" not in journal
    with opened(path) as journal:
        assert len(journal) == 2
        journal.append([row(1)])
        journal.settle(list(NAMES))
    assert ids(path) == ["r0", "r1", "r2"]
    assert json.loads(path.read_bytes().splitlines()[2]) == row(2)
    assert os.listdir(path.parent) == ["out.jsonl"]


@pytest.mark.parametrize("cut", range(1, len(encode(row(1)))))
def test_a_torn_last_line_is_dropped(path: Path, cut: int) -> None:
    path.write_bytes(encode(row(0)) + encode(row(1))[:cut])
    with opened(path) as journal:
        assert len(journal) == 1
        journal.append([row(1)])
    assert ids(path) == ["r0", "r1"]


@pytest.mark.parametrize("cut", [1, 7, 20])
def test_a_torn_first_line_is_ours_too(path: Path, cut: int) -> None:
    path.write_bytes(encode(row(0))[:cut])
    with opened(path) as journal:
        journal.append([row(0)])
    assert ids(path) == ["r0"]


def test_what_is_not_wanted_any_more_goes(path: Path) -> None:
    rows = [row(0), row(7), row(1), row(1), row(2, error="busy"), row(3, error="bad")]
    path.write_bytes(b"".join(map(encode, rows)) + b'{"id": "r4" damaged\n' + encode(row(5)))
    with opened(path) as journal:
        assert len(journal) == 4 and journal.failed == 1
    assert ids(path) == ["r0", "r1", "r3", "r5"]


@pytest.mark.parametrize(
    "content", [b"notes\n", b"notes", b'{"name": "a"}\n', encode({"id": "x", "name": "other"})]
)
def test_a_file_of_another_program_is_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(MMDiffError, match="name another file"), opened(path):
        pass
    assert path.read_bytes() == content


def test_bad_paths_are_refused_in_a_sentence(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere" / "out.jsonl", Path("/dev/null")):
        with pytest.raises(MMDiffError, match="name "), opened(place):
            pass


def test_two_jobs_do_not_write_one_file(path: Path) -> None:
    code = (
        "import sys; from mmdiff.serve.batch.file_lock import locked; from pathlib import Path\n"
        f"with locked(Path({str(path)!r})):\n print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with (
        pytest.raises(MMDiffError, match=rf"another job \(process {holder.pid}\) writes"),
        opened(path),
    ):
        pass
    holder.kill()
    holder.communicate()
    assert path.with_name("out.jsonl.lock").exists()  # stale now, and in nobody's way
    with opened(path) as journal:
        journal.append([row(0)])
    assert os.listdir(path.parent) == ["out.jsonl"]


class Failing:
    """The k-th call of any kind fails, once; a write may have put a part down before."""

    def __init__(self, kth: int, code: int) -> None:
        self.left, self.code = kth, code

    def wrap(self, call: Any, torn: bool = False) -> Any:
        def wrapped(*arguments: Any) -> Any:
            self.left -= 1
            if self.left != 0:
                return call(*arguments)
            if torn:
                call(*arguments[:-1], bytes(arguments[-1])[:5])
            raise OSError(self.code, os.strerror(self.code))

        return wrapped


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_every_failing_write_leaves_what_was_done(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The k-th write, sync or rename fails, for every k until none is left to fail; then the same
    job goes through."""
    for kth in range(1, 40):
        path.write_bytes(encode(row(0)) + encode(row(7)) + b'{"id"')
        failing = Failing(kth, code)
        with monkeypatch.context() as patched:
            patched.setattr(journals, "_write_all", failing.wrap(journals._write_all, torn=True))
            patched.setattr(journals.os, "fsync", failing.wrap(os.fsync))
            patched.setattr(journals.os, "replace", failing.wrap(os.replace))
            done = ["r0"]
            try:
                with opened(path) as journal:
                    for number in (2, 1):
                        journal.append([row(number)])
                        done.append(f"r{number}")
                    journal.settle(list(NAMES))
            except MMDiffError as error:
                assert os.strerror(code) in str(error)
        assert set(done) <= set(ids(path)) if done != ["r0"] else b'"r0"' in path.read_bytes()
        with opened(path) as journal:
            journal.append([row(number) for number in (1, 2) if f"r{number}" not in journal])
            journal.settle(list(NAMES))
        assert ids(path) == ["r0", "r1", "r2"]
        if failing.left > 0:
            break
    assert 8 < kth < 39


def test_of_a_row_that_is_there_twice_the_first_is_kept_and_errors_are_counted(path: Path) -> None:
    first, second = row(1, text="first"), row(1, error="bad")
    path.write_bytes(encode(first) + encode(second) + encode(row(0)))
    with opened(path) as journal:
        assert (len(journal), journal.failed) == (2, 0)
        journal.append([row(2), row(3, error="bad"), row(4)])
        assert journal.failed == 1
    assert json.loads(path.read_bytes().splitlines()[0]) == first and ids(path) == [
        "r1",
        "r0",
        "r2",
        "r3",
        "r4",
    ]
