"""What structured output refuses, before the model is asked anything."""

from __future__ import annotations

from typing import Any

from mmdiff.errors import MMDiffError


class ScaffoldError(MMDiffError):
    """A schema that cannot be honoured; `pointer` is the JSON pointer of the part of it that is at
    fault."""

    def __init__(self, message: str, pointer: str = "") -> None:
        super().__init__(f"at {pointer or 'the root'} of the schema: {message}")
        self.pointer, self.reason = pointer, message

    def __reduce__(self) -> tuple[Any, ...]:  # so that it can cross to another process
        return type(self), (self.reason, self.pointer)


class UnsupportedSchemaError(ScaffoldError):
    """It asks for something that no scaffold expresses."""


class UnsatisfiableSchemaError(ScaffoldError):
    """No value fits it, or none was found."""


class SchemaTooLargeError(ScaffoldError):
    """Compiling it would take too much time or memory."""


class BudgetError(ScaffoldError):
    """The shortest value that fits takes more tokens than the limit; `needed` says how
    many."""

    def __init__(self, message: str, needed: int, pointer: str = "") -> None:
        super().__init__(message, pointer)
        self.needed = needed

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.needed, self.pointer)
