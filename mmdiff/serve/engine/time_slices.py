"""Work in time slices: a thread that runs only while the engine's loop waits for it.

Compiling a schema may take seconds, most of them in Python, where a thread beside the engine's
would take its turns from it. So it is stopped wherever it checks its limits
(structured/regular/compile_limits.py), until it gets the next slice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from mmdiff.structured.regular.compile_limits import pausing

T = TypeVar("T")


class Abandoned(BaseException):
    """Ends work that is no longer wanted, through every handler of ordinary errors."""


class SlicedWork(Generic[T]):
    """One piece of work: `advance` it until it is over, then take its `result`."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work, self._until = work, 0.0
        self._interrupt: Callable[[], bool] = bool
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._value: T | Exception | None = None
        self._abandoned = False
        self._thread: threading.Thread | None = None
        self.over = False

    def advance(self, seconds: float, interrupt: Callable[[], bool] = bool) -> bool:
        """Work for `seconds`, or until there is something else to do; whether it is over."""
        self._until, self._interrupt = time.monotonic() + seconds, interrupt
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        else:
            self._go.release()
        self._stopped.acquire()
        return self.over

    def abandon(self) -> None:
        """End it where it stands."""
        self._abandoned = True
        if self._thread is not None and not self.over:
            self.advance(0.0)

    def result(self) -> T | Exception:
        """What came of it, or the error that ended it."""
        assert self.over and self._value is not None
        return self._value

    def _run(self) -> None:
        try:
            with pausing(self._pause):
                self._value = self._work()
        except Exception as error:
            error.__context__ = None  # with all that was made on the way
            self._value = error.with_traceback(None)
        except Abandoned:
            pass
        self.over = True
        self._stopped.release()

    def _pause(self) -> None:
        if time.monotonic() < self._until and not self._interrupt():
            return
        self._stopped.release()
        self._go.acquire()
        if self._abandoned:
            raise Abandoned
