"""Speculative decoding without loss: likely next canvases are drafted beside the one that is asked
for, and verified.

The sampler asks for what it would have asked for, and gets the model's own logits; where a guess
was right they are there already, and no pass is needed. So the answer is that of the sampler
without guesses. Source: FreeDave (arXiv
2510.00294), which drafts the next commits from the last logits in order of confidence; it pays
where one position is committed a step.

Shapes: B rows, A active rows, K canvases computed for each, G canvas positions, N selected
positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdiff.config import TokenIds
from mmdiff.decoding.sampler import Batch


@dataclass(frozen=True)
class CachedLogits:
    """The logits (N, V) of a row with this canvas, at these positions."""

    ids_G: Tensor
    select_G: Tensor
    logits_NV: Tensor

    def matches(self, ids_G: Tensor, select_G: Tensor) -> bool:
        return torch.equal(self.ids_G, ids_G) and torch.equal(self.select_G, select_G)


class SpeculativeRunner:
    """A `sampler.Batch` that computes `guesses` further canvases of each row in the same pass."""

    def __init__(self, batch: Batch, guesses: int, tokens: TokenIds) -> None:
        self.batch, self.drafts, self.tokens = batch, 1 + guesses, tokens
        self._repeated = False  # whether each row of the batch stands there once for every canvas
        self._known: list[list[CachedLogits]] = [[] for _ in batch.passes_B]
        self._asked: list[CachedLogits | None] = [None for _ in batch.passes_B]

    @property
    def passes_B(self) -> Tensor:
        return self.batch.passes_B[:: self.drafts] if self._repeated else self.batch.passes_B

    @property
    def prompt_length_B(self) -> Tensor:
        return (
            self.batch.prompt_length_B[:: self.drafts]
            if self._repeated
            else self.batch.prompt_length_B
        )

    def take(self, rows_A: Tensor) -> None:
        """As `ModelRunner.take`."""
        self.batch.take(self._places(rows_A))
        self._known = [self._known[row] for row in rows_A.tolist()]
        self._asked = [self._asked[row] for row in rows_A.tolist()]

    def join(self, other: Batch) -> None:
        """As `ModelRunner.join`."""
        assert isinstance(other, SpeculativeRunner) and other.drafts == self.drafts
        for each in (self, other):
            each._repeat()
        self.batch.join(other.batch)
        self._known, self._asked = self._known + other._known, self._asked + other._asked

    def __call__(
        self, ids_AG: Tensor, rows_A: Tensor, select_AG: Tensor, hidden_AG: Tensor | None = None
    ) -> Tensor:
        if hidden_AG is not None:
            return self.batch(
                ids_AG, rows_A * (self.drafts if self._repeated else 1), select_AG, hidden_AG
            )
        asked = list(zip(rows_A.tolist(), ids_AG, select_AG, strict=True))
        if any(self._found(*each) is None for each in asked):
            self._compute(asked)
        for each in asked:
            self._asked[each[0]] = self._found(*each)
        return torch.cat(
            [known.logits_NV for row, *_ in asked if (known := self._asked[row]) is not None]
        )

    def _found(self, row: int, ids_G: Tensor, select_G: Tensor) -> CachedLogits | None:
        return next((known for known in self._known[row] if known.matches(ids_G, select_G)), None)

    def _compute(self, asked: Sequence[tuple[int, Tensor, Tensor]]) -> None:
        """One pass over all canvases that are asked for, and over guesses where there is something
        to guess from."""
        guessed = [self._guess(*each) for each in asked]
        lanes = 1 if max(map(len, guessed)) == 1 and not self._repeated else self.drafts
        if lanes > 1:
            self._repeat()
        # A row with fewer guesses computes its own canvas again, so that every row keeps its place.
        filled = [(canvases + canvases[:1] * lanes)[:lanes] for canvases in guessed]
        ids_SG, select_SG = (
            torch.stack([canvas[part] for row in filled for canvas in row]) for part in (0, 1)
        )
        rows_A = torch.tensor([row for row, *_ in asked], device=ids_SG.device)
        logits_NV = self.batch(ids_SG, self._places(rows_A), select_SG)
        made = list(zip(ids_SG, select_SG, logits_NV.split(select_SG.sum(1).tolist()), strict=True))
        for number, (row, *_) in enumerate(asked):
            self._known[row] = [
                CachedLogits(*each) for each in made[number * lanes : (number + 1) * lanes]
            ]

    def _guess(self, row: int, ids_G: Tensor, select_G: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The canvas that is asked for, and what may be asked for next: one likely commit more each
        time."""
        canvases, last = [(ids_G, select_G)], self._asked[row]
        if last is None or not bool((last.select_G & select_G).any()):
            return canvases
        never = torch.tensor(self.tokens.never, dtype=torch.long, device=ids_G.device)
        chance_NV = last.logits_NV.float().index_fill(1, never, -torch.inf).log_softmax(-1)
        chance_NV[:, self.tokens.mask] = -torch.inf
        chance_N, best_N = chance_NV.max(dim=-1)
        still_N = select_G[last.select_G]
        places = last.select_G.nonzero()[:, 0][still_N].tolist()
        likely = sorted(
            zip(chance_N[still_N].tolist(), places, best_N[still_N].tolist(), strict=True),
            key=lambda each: (-each[0], each[1]),
        )
        for _, place, token in likely[
            : min(self.drafts, len(likely)) - 1
        ]:  # the last of a block opens the next one
            ids_G, select_G = ids_G.clone(), select_G.clone()
            ids_G[place], select_G[place] = token, False
            canvases.append((ids_G, select_G))
        return canvases

    def _places(self, rows_A: Tensor) -> Tensor:
        if not self._repeated:
            return rows_A
        return (
            rows_A[:, None] * self.drafts + torch.arange(self.drafts, device=rows_A.device)
        ).flatten()

    def _repeat(self) -> None:
        if not self._repeated:
            rows_B = torch.arange(len(self._known))
            self.batch.take(rows_B.repeat_interleave(self.drafts))
            self._repeated = True
