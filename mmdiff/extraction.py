"""Scaffolds and the model together: rows whose structure is decided and whose slots are being denoised.

Shapes: B rows, G canvas positions, N places asked about, V vocabulary.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdiff.cached import cached
from mmdiff.canvas import ABSENT, Canvas
from mmdiff.config import DecodingConfig, TokenIds
from mmdiff.guidance import Guided
from mmdiff.prompted import Prompted
from mmdiff.sampler import Batch, Denoiser, seed_of
from mmdiff.scaffold.layout import Canvas as Laid
from mmdiff.scaffold.plan import Decided, Row, plan
from mmdiff.scaffold.scaffold import Filled, Scaffold
from mmdiff.scaffold.slots import ChoiceSlot, SlotsConstraint, WordSlot
from mmdiff.scaffold.spelling import pointer

AT_ONCE = 32  # rows of a pass that asks about the structure


@dataclass(frozen=True)
class Field:
    """A value that was decided: how sure (0 to 1), and of a choice the chance of each (value, chance), best first."""

    confidence: float
    chances: tuple[tuple[Any, float], ...] = ()


@dataclass(frozen=True)
class Extraction:
    """A value that fits its schema.

    `fields` has, by JSON pointer, what the model decided, before any repair; several slots of one pointer, as the holes
    of a text, are numbered behind it. `repairs` counts the slots that had to be changed for the value
    to fit; it is -1 where nothing like it would, and the shortest value known to fit stands here instead. `passes`
    counts the forward passes, those that decide the structure among them.
    """

    value: Any
    text: str
    fields: dict[str, Field]
    steps: int
    passes: int
    repairs: int = 0

    @property
    def confidence(self) -> float:
        """The least of any field."""
        return min((each.confidence for each in self.fields.values()), default=1.0)


@dataclass(eq=False)
class Filling(SlotsConstraint):
    """The constraint of one row, with what is needed to read the row in the end."""

    scaffold: Scaffold = field(kw_only=True)
    canvas: Laid = field(kw_only=True)

    def filled(self, ids: Sequence[int]) -> Filled:
        return self.scaffold.fill(self.canvas, ids)

    def extraction(self, row: Canvas, passes: int) -> Extraction:
        """What a finished row (a canvas of one) says."""
        ids, sure = row.ids_BG[0].tolist(), row.confidence_BG[0].tolist()
        made = self.filled(ids)
        fields: dict[str, Field] = {}
        for slot in self.slots:
            assert isinstance(slot, ChoiceSlot | WordSlot)
            inside = range(slot.first, slot.first + slot.room)
            chances: tuple[tuple[Any, float], ...] = ()
            confidence = min((sure[place] for place in inside if ids[place] != self.scaffold.layouts.vocabulary.pad),
                             default=min(sure[place] for place in inside))
            if isinstance(slot, ChoiceSlot) and slot.chances:
                pairs = zip(slot.values, slot.chances, strict=True)
                chances = tuple(sorted(pairs, key=lambda pair: -pair[1]))
                chosen = np.flatnonzero((slot.ids_KL == np.array(ids[slot.first : slot.first + slot.room])).all(1))[0]
                confidence = slot.chances[int(chosen)]
            names = itertools.chain([slot.path], (pointer(slot.path, number) for number in itertools.count(1)))
            fields[next(name for name in names if name not in fields)] = Field(float(confidence), chances)
        return Extraction(made.value, made.text, fields, int(row.step_BG.max()) + 1, passes, made.repairs)


def start_scaffold(
    prompted: Prompted, scaffold: Scaffold, decoding: DecodingConfig, tokens: TokenIds, seed: int
) -> Denoiser:
    """Decide the structure of one conversation's answer, and lay out what is to be denoised.

    The answer's end is fixed, and its slots lie in one block: `decoding` should have a `block_length` as long as
    the scaffold's budget.
    """
    draws = torch.Generator().manual_seed(seed_of(seed))
    decided: Decided = plan(scaffold, lambda rows: _probe(prompted, rows, decoding), decoding.temperature, draws)
    canvas = decided.canvas
    filling = Filling(canvas.constraint.slots, tokens.mask, scaffold=scaffold, canvas=canvas)
    ids_BG = canvas.begun().to(prompted.embeds_BPD.device)
    batch: Batch = cached(prompted, decoding)
    if decoding.cfg_scale > 0:
        batch = Guided(batch, cached(prompted.unconditional(), decoding), decoding.cfg_scale)
    return Denoiser(batch, Canvas.of(ids_BG, tokens.mask), decoding, tokens, [seed], constraints=[filling])


def settings_for(scaffolds: Sequence[Scaffold], decoding: DecodingConfig) -> DecodingConfig:
    """The settings with one block for all of a canvas; bounded choices and nothing else are decided at one step."""
    budget = max(scaffold.budget for scaffold in scaffolds)
    decoding = dataclasses.replace(decoding, gen_length=budget, block_length=budget, start_length=None, stop=True)
    if all(scaffold.bounded for scaffold in scaffolds):
        return dataclasses.replace(decoding, rule="threshold", threshold=0.0, lookahead=0)
    return decoding


@torch.inference_mode()
def _probe(prompted: Prompted, rows: Sequence[Row], decoding: DecodingConfig) -> list[np.ndarray[Any, Any]]:
    """Log-probabilities at places of canvases behind one prompt."""
    told: list[np.ndarray[Any, Any]] = []
    for first in range(0, len(rows), AT_ONCE):
        some = rows[first : first + AT_ONCE]
        batch = copy.copy(prompted)
        batch.take(torch.zeros(len(some), dtype=torch.long, device=prompted.embeds_BPD.device))
        ids_BG, select_BG = _padded(some, prompted.embeds_BPD.device)
        rows_B = torch.arange(len(some), device=ids_BG.device)
        logits_NV = cached(batch, dataclasses.replace(decoding, lookahead=0))(ids_BG, rows_B, select_BG)
        logs = logits_NV.float().log_softmax(-1).cpu()
        told += [part.numpy() for part in logs.split([len(row.places) for row in some])]
        prompted.passes_B += 1
    return told


def _padded(rows: Sequence[Row], device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(len(row.ids) for row in rows)
    ids_BG = torch.tensor([[*row.ids, *[ABSENT] * (width - len(row.ids))] for row in rows], device=device)
    select_BG = torch.zeros_like(ids_BG, dtype=torch.bool)
    for select_G, row in zip(select_BG, rows, strict=True):
        select_G[list(row.places)] = True
    return ids_BG, select_BG
