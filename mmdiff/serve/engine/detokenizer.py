"""What may be told of an answer while it is denoised: text that never changes again, and drafts of
the rest.

Told is the longest run of decided tokens from the answer's start, or for rules that take commits
back the finished blocks. Half characters, trailing blanks and what may become a stop string are
held back, so that what was told, joined, is the finished text.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmdiff.config import DecodingConfig
from mmdiff.decoding.canvas import PAD_POSITION
from mmdiff.decoding.commit_rules import RemaskingRule
from mmdiff.decoding.sampler import Sampler
from mmdiff.pipeline import Answer, Pipeline, Token
from mmdiff.structured.extraction import Extraction, StructuredSequence

OPEN = "▒"


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string, and whether there is one."""
    places = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)


def held_back(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end may be the beginning of a stop string."""
    longest = max(map(len, stops), default=1) - 1
    return next(
        (
            size
            for size in range(min(longest, len(text)), 0, -1)
            if any(stop.startswith(text[-size:]) for stop in stops)
        ),
        0,
    )


class StreamingText:
    """The text of one row, as far as it was told."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops, self.told, self.stopped = stops, "", False

    def push(self, settled: str) -> str:
        """What can be told now that so much of the answer is settled."""
        text, self.stopped = cut(settled.rstrip("\ufffd"), self.stops)
        if not self.stopped:
            text = text[: len(text) - held_back(text, self.stops)]
        return self._new(text.rstrip())

    def finish(self, answer: str) -> str:
        """What is left to be told of a finished answer."""
        text, self.stopped = cut(answer, self.stops)
        return self._new(text.rstrip())

    def _new(self, text: str) -> str:
        assert text.startswith(self.told) or self.told.startswith(text), (self.told, text)
        new = text[len(self.told) :]
        self.told += new
        return new


def settled_text(pipeline: Pipeline, batch: Sampler, row: int) -> str:
    """The text of a row's decided tokens that no later step changes."""
    if batch.constraints[row] is not None:
        return ""  # it may be repaired in the end
    tokens, open_G = pipeline.model.model_config.tokens, batch.canvas.open_BG[row]
    end = int(open_G.int().argmax()) if bool(open_G.any()) else len(open_G)
    if isinstance(batch.rule, RemaskingRule) and end < len(open_G):
        end -= end % batch.decoding.block_length
    ids = batch.canvas.ids_BG[row, :end].tolist()
    stop = next(
        (
            place
            for place, token in enumerate(ids)
            if token in (tokens.eos, tokens.eot, PAD_POSITION)
        ),
        len(ids),
    )
    return str(pipeline.processor.tokenizer.decode(ids[:stop], skip_special_tokens=True)).lstrip()


def draft(pipeline: Pipeline, batch: Sampler, row: int, offset: int) -> dict[str, object]:
    """The answer as it stands after a step: each position up to its end, None where it is open.

    Args:
        offset: how much of the text was told, in characters.
    """
    filling = batch.constraints[row]
    positions = pipeline.draft(
        batch.canvas, row, filling if isinstance(filling, StructuredSequence) else None
    ).tokens
    return _drafted(positions, int(batch.steps_B[row]), batch.decoding, offset)


def last_draft(
    answer: Answer, steps: int, decoding: DecodingConfig, offset: int
) -> dict[str, object]:
    """A finished answer in the form of a draft."""
    return _drafted(answer.tokens, steps, decoding, offset)


def structure_told(made: Extraction) -> dict[str, object]:
    """What of a structured answer is not in its text: repairs, decisions about its structure, notes
    on its schema."""
    return {
        "repairs": [{"pointer": each.pointer, "what": each.what} for each in made.repairs],
        "decisions": [
            {
                "pointer": each.pointer,
                "kind": each.kind,
                "chances": [list(pair) for pair in each.probabilities],
            }
            for each in made.decisions
        ],
        "notes": list(made.notes),
    }


def _drafted(
    positions: Sequence[Token | None], step: int, decoding: DecodingConfig, offset: int
) -> dict[str, object]:
    first = next((place for place, token in enumerate(positions) if token is None), len(positions))
    text = "".join(OPEN if token is None else token.text for token in positions).lstrip()
    return {
        "type": "draft",
        "block": first // decoding.block_length,
        "step": step,
        "steps": decoding.steps,
        "offset": offset,
        "text": text[offset:],
        "masked": sum(token is None for token in positions),
        "tokens": [
            None
            if token is None
            else {"text": token.text, "confidence": round(token.confidence, 4), "step": token.step}
            for token in positions
        ],
    }
