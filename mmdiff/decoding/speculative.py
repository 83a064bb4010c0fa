"""Speculative decoding without loss: likely next canvases are drafted beside the one that is asked
for, and verified.

The sampler asks for what it would have asked for, and gets the model's own logits; where a guess
was right they are there already, and no pass is needed. So the answer is that of the sampler
without guesses. Source: FreeDave (arXiv 2510.00294), which drafts the next commits from the last
logits in order of confidence; it pays where one position is committed a step.

Shapes: A active sequences, S canvases that are computed, G canvas positions, N selected positions,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdiff.config import TokenIds
from mmdiff.decoding.canvas import Array
from mmdiff.decoding.sampler import Runner


@dataclass(frozen=True)
class CachedLogits:
    """The logits (N, V) of a sequence with this canvas, at these positions."""

    ids_G: Array
    select_G: Array
    logits_NV: Tensor
    likely: Sequence[tuple[int, int]]  # positions and ids, the likeliest first


@dataclass(eq=False)
class DraftedPrompt:
    """A prompt once for each canvas that is computed, and the logits there are."""

    lanes: list[Any]
    known: list[CachedLogits] = field(default_factory=list)
    asked: CachedLogits | None = None  # what was asked for last

    @property
    def passes(self) -> int:
        return int(self.lanes[0].passes)

    @property
    def length(self) -> int:
        return int(self.lanes[0].length)

    def draft(self, ids_G: Array, select_G: Array, guesses: int) -> list[tuple[Array, Array]]:
        """The canvas that is asked for, and what may be asked for next: one likely commit more each
        time."""
        canvases, likely = [(ids_G, select_G)], self.asked.likely if self.asked else ()
        still = [each for each in likely if each[0] < len(select_G) and select_G[each[0]]]
        # The last of a block opens the next one, so it is not guessed.
        for place, token in still[:-1][:guesses]:
            ids_G, select_G = ids_G.copy(), select_G.copy()
            ids_G[place], select_G[place] = token, False
            canvases.append((ids_G, select_G))
        return canvases

    def find(self, ids_G: Array, select_G: Array) -> CachedLogits | None:
        """What is known of a canvas."""
        for each in self.known:
            if np.array_equal(each.ids_G, ids_G) and np.array_equal(each.select_G, select_G):
                return each
        return None


class SpeculativeRunner:
    """A `sampler.Runner` that computes `guesses` further canvases of each sequence in the same
    pass."""

    def __init__(self, runner: Runner, guesses: int, tokens: TokenIds) -> None:
        self.runner, self.guesses, self.tokens = runner, guesses, tokens
        self.prompts = [DraftedPrompt([each]) for each in runner.prompts]

    def __call__(
        self,
        ids_AG: Array,
        prompts: Sequence[DraftedPrompt],
        select_AG: Array,
        hidden_AG: Array | None = None,
    ) -> Tensor:
        if hidden_AG is not None:
            return self.runner(ids_AG, [each.lanes[0] for each in prompts], select_AG, hidden_AG)
        asked = list(zip(prompts, ids_AG, select_AG, strict=True))
        if any(each.find(ids_G, select_G) is None for each, ids_G, select_G in asked):
            self._compute(asked)
        made = list[Tensor]()
        for each, ids_G, select_G in asked:
            each.asked = each.find(ids_G, select_G)
            assert each.asked is not None
            made.append(each.asked.logits_NV)
        return torch.cat(made)

    def _compute(self, asked: Sequence[tuple[DraftedPrompt, Array, Array]]) -> None:
        """One pass over all canvases that are asked for, and over those that are drafted."""
        drafts = [each.draft(ids_G, select_G, self.guesses) for each, ids_G, select_G in asked]
        # With fewer guesses its own canvas is computed again, so that every lane is kept.
        width = max(map(len, [*drafts, *[each.lanes for each, *_ in asked]]))
        prompts, canvases = list[Any](), list[tuple[Array, Array]]()
        for (each, *_), some in zip(asked, drafts, strict=True):
            each.lanes += [each.lanes[0].fork() for _ in range(width - len(each.lanes))]
            prompts += each.lanes
            canvases += (some + some[:1] * width)[:width]
        select_SG = np.stack([select_G for _, select_G in canvases])
        logits_NV = self.runner(np.stack([ids_G for ids_G, _ in canvases]), prompts, select_SG)
        made, told = list[CachedLogits](), iter(self._likely(logits_NV))
        parts = logits_NV.split(select_SG.sum(1).tolist())
        for (ids_G, select_G), part_NV in zip(canvases, parts, strict=True):
            pairs = zip(select_G.nonzero()[0].tolist(), told, strict=False)
            likely = sorted((doubt, place, int(token)) for place, (doubt, token) in pairs)
            made.append(CachedLogits(ids_G, select_G, part_NV, [each[1:] for each in likely]))
        for number, (each, *_) in enumerate(asked):
            each.known = made[number * width : (number + 1) * width]

    def _likely(self, logits_NV: Tensor) -> list[tuple[float, float]]:
        """For each position how little sure its likeliest id is, and that id: in one transfer."""
        banned = torch.tensor(self.tokens.never, dtype=torch.long, device=logits_NV.device)
        logits_NV = logits_NV.float().index_fill(1, banned, -torch.inf)
        total_N = logits_NV.logsumexp(-1)
        # The mask counts for the confidence, as in the sampler, and is never chosen.
        logits_NV[:, self.tokens.mask] = -torch.inf
        best = logits_NV.max(dim=-1)
        doubt_N, best_N = (total_N - best.values).double(), best.indices.double()
        told: list[tuple[float, float]] = torch.stack((doubt_N, best_N), dim=1).tolist()
        return told
