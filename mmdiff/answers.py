"""Result types: what the verbs give back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Decision:
    """A structural decision that the model was asked about.

    `kind` is "present" (whether an optional member is there, given what was decided before it),
    "items" (how many, of an array or a map) or "alternative" (which one of a union); `chances` has
    the chance of each (option, chance), the chosen one first.
    """

    pointer: str
    kind: Literal["present", "items", "alternative"]
    probabilities: tuple[tuple[Any, float], ...]

    @property
    def chosen(self) -> Any:
        """The option that was taken."""
        return self.probabilities[0][0]

    @property
    def confidence(self) -> float:
        """The chance of the option that was taken."""
        return self.probabilities[0][1]


@dataclass(frozen=True)
class FieldResult:
    """A value that was decided: how sure (0 to 1), and of a choice the chance of each (value,
    chance), best first."""

    confidence: float
    probabilities: tuple[tuple[Any, float], ...] = ()


@dataclass(frozen=True)
class Repair:
    """What was changed for a value to fit: where (a JSON pointer), and a sentence about it."""

    pointer: str
    what: str


@dataclass(frozen=True)
class Extraction:
    """A value that fits its schema.

    `fields` has, by JSON pointer, the values that were decided; several slots of one pointer, as
    the holes of a text, are numbered behind it. `decisions` has what was decided about the
    structure, and its chances. `repairs` says what is not the model's: a slot that had to be
    changed, or all of the value, where nothing like the model's would fit; the confidence of these
    is 0. `notes` says what of the schema could not be worked in. `passes` counts the forward
    passes, those that decide the structure among them.
    """

    value: Any
    text: str
    fields: dict[str, FieldResult]
    steps: int
    passes: int
    repairs: tuple[Repair, ...] = ()
    decisions: tuple[Decision, ...] = ()
    notes: tuple[str, ...] = ()
    heard: str = ""
    heard_confidence: float = 1.0

    @property
    def confidence(self) -> float:
        """The least of any field or decision."""
        parts: tuple[FieldResult | Decision, ...] = (*self.fields.values(), *self.decisions)
        return min([1.0, *(each.confidence for each in parts)])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know of, in sentences: the repairs and the notes."""
        return (
            *(
                f"at {each.pointer or 'the root'} of the value: {each.what}"
                for each in self.repairs
            ),
            *self.notes,
        )


@dataclass(frozen=True)
class Token:
    """One decided position: its text, its confidence when decided (0 to 1) and the step (from
    0)."""

    text: str
    confidence: float
    step: int


@dataclass(frozen=True)
class Answer:
    """A finished answer; `steps` is how often its row was denoised, `passes` how many forward
    passes had it in them."""

    text: str
    tokens: tuple[Token, ...]
    steps: int
    passes: int = 0
    heard: str = ""  # the question, where it was spoken
    heard_confidence: float = (
        1.0  # probability (0 to 1) that all words of a spoken question were transcribed right
    )
    structured: Extraction | None = None  # where it had a scaffold

    @property
    def confidence(self) -> float:
        """The least confidence of any of its tokens; of a structured answer that of its value."""
        if self.structured is not None:
            return self.structured.confidence
        return min((token.confidence for token in self.tokens), default=1.0)


@dataclass(frozen=True)
class Draft:
    """An answer on its way: a token for every position up to the answer's end, None where it is
    still open."""

    step: int
    tokens: tuple[Token | None, ...]
