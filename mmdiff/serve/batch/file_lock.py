"""flock-based file lock, released when the process dies.

The lock is held on a file beside the one it guards, since that one may be replaced. Left out:
machines that share the folder over a network file system without locks.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmdiff.errors import MMDiffError


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """No other process works on `path` meanwhile.

    Raises:
        MMDiffError: one does; the message names it.
    """
    beside = path.with_name(path.name + ".lock")
    try:
        handle = _acquire(beside)
    except BlockingIOError:
        holder = _holder(beside)
        raise MMDiffError(
            f"another job{holder} writes {path}; wait for it, or name another file"
        ) from None
    except OSError as error:
        raise MMDiffError(
            f"{path} cannot be written ({error.strerror}); name a file in a writable folder"
        ) from error
    try:
        os.ftruncate(handle, 0)
        # for the message above; what counts is the lock
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
        os.close(handle)


def _acquire(beside: Path) -> int:
    """A handle on the lock's file, locked; a BlockingIOError where another process has it."""
    while True:
        handle = os.open(beside, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(handle)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(beside)):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its holder removed the file between our opening and our locking it


def _lock(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(beside: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return f" (process {int(beside.read_text())})"
    return ""
