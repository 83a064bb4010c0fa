"""Speculative decoding without loss: likely next canvases are drafted beside the one that is asked
for, and verified.

The sampler asks for what it would have asked for, and gets the model's own logits; where a guess
was right they are there already, and no pass is needed. So the answer is that of the sampler
without guesses. Source: FreeDave (arXiv 2510.00294), which drafts the next commits from the last
logits in order of confidence; it pays where one position is committed a step.

Shapes: A active sequences, K canvases computed for each, G canvas positions, N selected positions,
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

    def matches(self, ids_G: Array, select_G: Array) -> bool:
        return np.array_equal(self.ids_G, ids_G) and np.array_equal(self.select_G, select_G)


@dataclass(eq=False)
class DraftedPrompt:
    """A prompt once for each canvas that is computed, and the logits there are."""

    lanes: list[Any]
    known: list[CachedLogits] = field(default_factory=list)
    asked: CachedLogits | None = None

    @property
    def passes(self) -> int:
        return int(self.lanes[0].passes)

    @property
    def length(self) -> int:
        return int(self.lanes[0].length)

    def find(self, ids_G: Array, select_G: Array) -> CachedLogits | None:
        """What is known of a canvas, from now on what was asked for last."""
        found = (each for each in self.known if each.matches(ids_G, select_G))
        return next(found, None)


class SpeculativeRunner:
    """A `sampler.Runner` that computes `guesses` further canvases of each sequence in the same
    pass."""

    def __init__(self, runner: Runner, guesses: int, tokens: TokenIds) -> None:
        self.runner, self.drafts, self.tokens = runner, 1 + guesses, tokens
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
        made = []
        for each, ids_G, select_G in asked:
            each.asked = each.find(ids_G, select_G)
            assert each.asked is not None
            made.append(each.asked.logits_NV)
        return torch.cat(made)

    def _compute(self, asked: Sequence[tuple[DraftedPrompt, Array, Array]]) -> None:
        """One pass over all canvases that are asked for, and over guesses where there is something
        to guess from."""
        guessed = [self._guess(*each) for each in asked]
        drafted = any(len(canvases) > 1 for canvases in guessed)
        lanes = self.drafts if drafted or any(len(each.lanes) > 1 for each, *_ in asked) else 1
        ids, selects, prompts = list[Array](), list[Array](), list[Any]()
        for (each, *_), canvases in zip(asked, guessed, strict=True):
            each.lanes += [each.lanes[0].fork() for _ in range(lanes - len(each.lanes))]
            prompts += each.lanes
            # With fewer guesses its own canvas is computed again, so that every one has its lane.
            for ids_G, select_G in (canvases + canvases[:1] * lanes)[:lanes]:
                ids.append(ids_G)
                selects.append(select_G)
        select_SG = np.stack(selects)
        logits_NV = self.runner(np.stack(ids), prompts, select_SG)
        parts = logits_NV.split(select_SG.sum(1).tolist())
        made = [CachedLogits(*each) for each in zip(ids, selects, parts, strict=True)]
        for number, (each, *_) in enumerate(asked):
            each.known = made[number * lanes : (number + 1) * lanes]

    def _guess(
        self, prompt: DraftedPrompt, ids_G: Array, select_G: Array
    ) -> list[tuple[Array, Array]]:
        """The canvas that is asked for, and what may be asked for next: one likely commit more each
        time."""
        canvases, last = [(ids_G, select_G)], prompt.asked
        if (
            last is None
            or not (last.select_G[: len(select_G)] & select_G[: len(last.select_G)]).any()
        ):
            return canvases
        never = torch.tensor((*self.tokens.never, self.tokens.mask), device=last.logits_NV.device)
        chance_NV = last.logits_NV.float().index_fill(1, never[:-1], -torch.inf).log_softmax(-1)
        chance_NV[:, self.tokens.mask] = -torch.inf
        chance_N, best_N = chance_NV.max(dim=-1)
        likely = []
        places = last.select_G.nonzero()[0].tolist()
        for place, chance, token in zip(places, chance_N.tolist(), best_N.tolist(), strict=True):
            if place < len(select_G) and select_G[place]:
                likely.append((-chance, place, token))
        # The last of a block opens the next one.
        for _, place, token in sorted(likely)[: min(self.drafts, len(likely)) - 1]:
            ids_G, select_G = ids_G.copy(), select_G.copy()
            ids_G[place], select_G[place] = token, False
            canvases.append((ids_G, select_G))
        return canvases
