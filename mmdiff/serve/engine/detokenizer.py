"""Incremental text of a partially decoded answer (detokenizer), and drafts of the rest.

Emitted is the longest run of decided tokens from the answer's start, or for rules that remask the
finished blocks. Half characters, trailing blanks and what may become a stop string are held back,
so that the emitted pieces, joined, are the finished text.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmdiff.answers import Answer, Extraction, Token
from mmdiff.config import DecodingConfig
from mmdiff.decoding.canvas import PAD_POSITION
from mmdiff.decoding.commit_rules import EditingRule, RemaskingRule
from mmdiff.decoding.sampler import Sampler
from mmdiff.pipeline import Pipeline
from mmdiff.structured.extraction import StructuredSequence

OPEN = "▒"


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string, and whether there is one."""
    found = [start for stop in stops if (start := text.find(stop)) >= 0]
    return (text[: min(found)], True) if found else (text, False)


def held_back(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end may be the beginning of a stop string."""
    longest = max(map(len, stops), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return size
    return 0


class StreamingText:
    """The text of one answer, as far as it was emitted."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.emitted, self.stopped = "", False

    def push(self, settled: str) -> str:
        """What can be emitted now that this much of the answer is settled."""
        text, self.stopped = cut(settled.rstrip("\ufffd"), self.stops)
        if not self.stopped:
            text = text[: len(text) - held_back(text, self.stops)]
        return self._new(text.rstrip())

    def finish(self, answer: str) -> str:
        """What is left to be emitted of a finished answer."""
        text, self.stopped = cut(answer, self.stops)
        return self._new(text.rstrip())

    def _new(self, text: str) -> str:
        assert text.startswith(self.emitted) or self.emitted.startswith(text), (self.emitted, text)
        new = text[len(self.emitted) :]
        self.emitted += new
        return new


def settled_text(pipeline: Pipeline, batch: Sampler, row: int) -> str:
    """The text of an answer's decided tokens that no later step changes."""
    sequence = batch.running[row]
    if sequence.constraint is not None:
        return ""  # it may be repaired in the end
    tokens, open_G = pipeline.model.model_config.tokens, batch.canvas.open_BG[row]
    end = int(open_G.int().argmax()) if bool(open_G.any()) else len(open_G)
    revises = isinstance(batch.rule, RemaskingRule | EditingRule)
    if revises and (sequence.held or end < len(open_G)):
        sequence.advance(batch.decoding.block_length)
        end = sequence.block
    end = min(end, sequence.limit)  # what is behind it only completes a block
    ids = batch.canvas.ids_BG[row, :end].tolist()
    ends = (tokens.eos, tokens.eot, PAD_POSITION)
    stop = next((position for position, token in enumerate(ids) if token in ends), len(ids))
    return str(pipeline.processor.tokenizer.decode(ids[:stop], skip_special_tokens=True)).lstrip()


def draft(pipeline: Pipeline, batch: Sampler, row: int, offset: int) -> dict[str, object]:
    """The answer as it stands after a step: each position up to its end, None where it is open.

    Args:
        offset: how much of the text was emitted, in characters.
    """
    constraint = batch.running[row].constraint
    structured = constraint if isinstance(constraint, StructuredSequence) else None
    positions = pipeline.draft(batch.canvas, row, structured).tokens
    return _draft_body(positions, batch.running[row].steps, batch.decoding, offset)


def last_draft(
    answer: Answer, steps: int, decoding: DecodingConfig, offset: int
) -> dict[str, object]:
    """A finished answer in the form of a draft."""
    return _draft_body(answer.tokens, steps, decoding, offset)


def structure_details(made: Extraction) -> dict[str, object]:
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


def _draft_body(
    positions: Sequence[Token | None], step: int, decoding: DecodingConfig, offset: int
) -> dict[str, object]:
    is_open = [token is None for token in positions]
    first = is_open.index(True) if any(is_open) else len(positions)
    text = "".join(OPEN if token is None else token.text for token in positions).lstrip()
    return {
        "type": "draft",
        "block": first // decoding.block_length,
        "step": step,
        "steps": decoding.steps,
        "offset": offset,
        "text": text[offset:],
        "masked": sum(is_open),
        "tokens": [_token_body(token) for token in positions],
    }


def _token_body(token: Token | None) -> dict[str, object] | None:
    if token is None:
        return None
    return {"text": token.text, "confidence": round(token.confidence, 4), "step": token.step}
