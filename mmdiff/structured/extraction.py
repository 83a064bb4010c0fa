"""Structured sequences: the structure is decided with the model, then the slots are denoised.

Shapes: B rows, G canvas positions, N positions asked about, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mmdiff.answers import Decision, Extraction, FieldResult, Repair
from mmdiff.config import DecodingConfig, TokenIds
from mmdiff.decoding.canvas import PAD_POSITION, Array, Canvas, stacked
from mmdiff.decoding.guidance import Guided
from mmdiff.decoding.model_runner import ModelRunner, make_runner
from mmdiff.decoding.sampler import Runner, Sampler, seed_of
from mmdiff.structured.constraint.compiled import CompiledSchema
from mmdiff.structured.constraint.slots import ChoiceSlot, SlotsConstraint, WordSlot
from mmdiff.structured.constraint.structure_search import (
    Decided,
    ProbeRow,
    search_structure,
)
from mmdiff.structured.constraint.template import Template as Laid
from mmdiff.structured.schema.serialize import pointer

SHOWN = 40  # characters of a value in a sentence
AT_ONCE = 32  # rows of a pass that asks about the structure


@dataclass(eq=False)
class StructuredSequence(SlotsConstraint):
    """The constraint of one row, with what is needed to read the row in the end."""

    scaffold: CompiledSchema = field(kw_only=True)
    canvas: Laid = field(kw_only=True)
    decisions: tuple[Decision, ...] = field(kw_only=True, default=())

    def extraction(self, row: Canvas, passes: int) -> Extraction:
        """What a finished row (a canvas of one) says."""
        ids, sure = row.ids_BG[0].tolist(), row.confidence_BG[0].tolist()
        made = self.scaffold.fill(self.canvas, ids)
        changed = {}
        for change in made.changes:
            changed[change.number] = change
        fields: dict[str, FieldResult] = {}
        repairs: list[Repair] = []
        for number, slot in enumerate(self.canvas.pieces):
            if isinstance(slot, str):
                continue
            assert isinstance(slot, ChoiceSlot | WordSlot)
            names = itertools.chain(
                [slot.path], (pointer(slot.path, number) for number in itertools.count(1))
            )
            name = next(name for name in names if name not in fields)
            fields[name] = self._field(slot, ids, sure)
            if number in changed:
                repairs.append(
                    Repair(
                        name,
                        f"{_quoted(changed[number].before)} was changed to "
                        f"{_quoted(changed[number].now)}, for the value to fit its schema",
                    )
                )
                fields[name] = FieldResult(0.0, fields[name].probabilities)
        if made.stand_in:
            repairs.append(
                Repair(
                    "",
                    "nothing like what the model said fits the schema; the shortest value known to "
                    "fit stands here instead",
                )
            )
            fields = {
                "": FieldResult(0.0),
                **{name: FieldResult(0.0, each.probabilities) for name, each in fields.items()},
            }
        return Extraction(
            made.value,
            made.text,
            fields,
            int(row.step_BG.max()) + 1,
            passes,
            tuple(repairs),
            self.decisions,
            self.scaffold.notes,
        )

    def positions(self, ids: Sequence[int]) -> list[int]:
        """The positions of a finished row that hold its text: all but padding, and the end."""
        nothing = (self.scaffold.layouts.vocabulary.pad, self.scaffold.layouts.end_id, PAD_POSITION)
        found = []
        for position, token in enumerate(ids):
            if token not in nothing:
                found.append(position)
        return found

    def _field(
        self, slot: ChoiceSlot | WordSlot, ids: Sequence[int], sure: Sequence[float]
    ) -> FieldResult:
        """What the positions of a slot say of its confidence."""
        inside = range(slot.first, slot.first + slot.length)
        if isinstance(slot, ChoiceSlot) and slot.probabilities:
            pairs = zip(slot.values, slot.probabilities, strict=True)
            chosen = np.flatnonzero(
                (slot.ids_KL == np.array(ids[slot.first : slot.first + slot.length])).all(1)
            )[0]
            return FieldResult(
                float(slot.probabilities[int(chosen)]),
                tuple(sorted(pairs, key=lambda pair: -pair[1])),
            )
        solid = (
            sure[position]
            for position in inside
            if ids[position] != self.scaffold.layouts.vocabulary.pad
        )
        return FieldResult(float(min(solid, default=min(sure[position] for position in inside))))


def _quoted(text: str) -> str:
    return f"{text[:SHOWN]!r}{'...' if len(text) > SHOWN else ''}"


def start_scaffold(
    prompted: ModelRunner,
    scaffold: CompiledSchema,
    decoding: DecodingConfig,
    tokens: TokenIds,
    seed: int,
) -> Sampler:
    """Decide the structure of one conversation's answer, and lay out what is to be denoised.

    The answer's end is fixed, and its slots lie in one block: `decoding` should have a
    `block_length` as long as the scaffold's budget.
    """
    draws = torch.Generator().manual_seed(seed_of(seed))
    decided: Decided = search_structure(
        scaffold, lambda rows: _probe(prompted, rows, decoding), decoding.temperature, draws
    )
    canvas = decided.canvas
    filling = StructuredSequence(
        canvas.constraint.slots,
        tokens.mask,
        canvas.constraint.groups,
        scaffold=scaffold,
        canvas=canvas,
        decisions=decided.decisions,
    )
    ids_BG = canvas.begun().to(prompted.device)
    runner: Runner = make_runner(prompted, decoding)
    if decoding.cfg_scale > 0:
        runner = Guided(runner, make_runner(prompted.unconditional(), decoding), decoding.cfg_scale)
    return Sampler(
        runner, Canvas.of(ids_BG, tokens.mask), decoding, tokens, [seed], constraints=[filling]
    )


def settings_for(scaffolds: Sequence[CompiledSchema], decoding: DecodingConfig) -> DecodingConfig:
    """The settings with one block for all of a canvas; bounded choices and nothing else are decided
    at one step."""
    budget = max(scaffold.budget for scaffold in scaffolds)
    decoding = dataclasses.replace(
        decoding, gen_length=budget, block_length=budget, start_length=None, stop=True
    )
    if all(scaffold.bounded for scaffold in scaffolds):
        return dataclasses.replace(decoding, rule="threshold", threshold=0.0, lookahead=0)
    if decoding.rule == "editing":  # which could replace what the structure asks for
        return dataclasses.replace(decoding, rule="threshold_or_quota")
    return decoding


@torch.inference_mode()
def _probe(
    prompted: ModelRunner, rows: Sequence[ProbeRow], decoding: DecodingConfig
) -> list[np.ndarray[Any, Any]]:
    """Log-probabilities at positions of canvases behind one prompt."""
    told: list[np.ndarray[Any, Any]] = []
    for first in range(0, len(rows), AT_ONCE):
        some = rows[first : first + AT_ONCE]
        forks = [prompted.prompts[0].fork() for _ in some]
        runner = make_runner(prompted, dataclasses.replace(decoding, lookahead=0))
        ids_BG, select_BG = _padded(some)
        logits_NV = runner(ids_BG, forks, select_BG)
        logs = logits_NV.float().log_softmax(-1).cpu()
        for part in logs.split([len(row.positions) for row in some]):
            told.append(part.numpy())
        prompted.prompts[0].passes += 1
    return told


def _padded(rows: Sequence[ProbeRow]) -> tuple[Array, Array]:
    """Ids and positions of canvases of several lengths."""
    ids_BG = stacked([np.array(row.ids) for row in rows], PAD_POSITION)
    select_BG = np.zeros_like(ids_BG, dtype=bool)
    for select_G, row in zip(select_BG, rows, strict=True):  # each row asks about its own positions
        select_G[list(row.positions)] = True
    return ids_BG, select_BG
