"""Bounds on compiling a schema: seconds, trees and states, and the errors that tell of them."""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Callable, Iterator

from mmdiff.errors import MMDiffError

TREES = 200_000  # about 100 MB


class LanguageError(MMDiffError):
    """A language that is unsupported, empty where it must not be, or too large."""


class LanguageSizeError(LanguageError):
    """A language that is too large to work out."""


class CompileLimits:
    """Bounds one piece of work: its seconds of this thread's time, an automaton's states, the trees
    made on the way."""

    def __init__(self, seconds: float = 2.0, states: int = 4000) -> None:
        self.seconds, self.states = seconds, states
        self._end = time.thread_time() + seconds
        self._unseen = self._trees = 0

    def check(self) -> None:
        """A LanguageError when the time is over; the place where work done in slices waits for the
        next one."""
        if (pause := _pause.get()) is not None:
            pause()
        if time.thread_time() > self._end:  # others may be using the processor
            raise LanguageSizeError(
                f"the language is too large: not worked out after {self.seconds:g} seconds"
            )

    def step(self, trees: int = 0, work: int = 1) -> None:
        """Counts work done and the trees that it made; looks at the clock now and then."""
        self._unseen += work
        self._trees += trees
        if self._trees > TREES:
            raise LanguageSizeError(f"the language is too large: more than {TREES} trees")
        if self._unseen > 64:
            self._unseen = 0
            self.check()

    def count(self, states: int) -> None:
        """A LanguageError when an automaton has more states than allowed."""
        if states > self.states:
            raise LanguageSizeError(f"the language is too large: more than {self.states} states")


_running: contextvars.ContextVar[CompileLimits | None] = contextvars.ContextVar(
    "deadline of the work at hand", default=None
)

_pause: contextvars.ContextVar[Callable[[], None] | None] = contextvars.ContextVar(
    "pause", default=None
)


@contextlib.contextmanager
def pausing(pause: Callable[[], None]) -> Iterator[None]:
    """Has `pause` called wherever the work within looks at its deadline."""
    token = _pause.set(pause)
    try:
        yield
    finally:
        _pause.reset(token)


@contextlib.contextmanager
def bounded(deadline: CompileLimits | None) -> Iterator[CompileLimits]:
    """Bounds the work within by the deadline, or by one of its own; a deep nesting is a
    LanguageError as well."""
    deadline = deadline or _running.get() or CompileLimits()
    token = _running.set(deadline)
    try:
        yield deadline
    except RecursionError:
        raise LanguageSizeError("the language is nested too deeply") from None
    finally:
        _running.reset(token)


def counted(trees: int = 0, work: int = 1) -> None:
    """`CompileLimits.step` of the work at hand, if it has a deadline."""
    if (deadline := _running.get()) is not None:
        deadline.step(trees, work)


def still_time() -> None:
    """A LanguageError when the deadline of the work at hand, if it has one, is over."""
    if (deadline := _running.get()) is not None:
        deadline.check()
