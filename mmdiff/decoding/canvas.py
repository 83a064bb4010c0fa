"""The state of one batch of generations: the ids, which positions are open, and how sure each
commit was.

A free answer, an infill or a scaffold are different canvases for the same sampler: fixed positions
are simply not open. Rows may be shorter than the canvas: behind a row's last position its ids are
`ABSENT`, which no model sees. A canvas is never changed; `commit`, `reopen` and `extended` give
the next one.

Shapes: B rows, G positions of the canvas, A active rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PAD_POSITION = -1  # stands where a row has no position


@dataclass(frozen=True)
class Canvas:
    """Ids (the mask id where open), open positions, and the confidence (0 to 1) and step (from 0)
    of each commit.

    Positions that were never open have confidence 1 and step -1; open ones have confidence 0 and
    step -1.
    """

    ids_BG: Tensor
    open_BG: Tensor
    confidence_BG: Tensor
    step_BG: Tensor

    @classmethod
    def of(cls, ids_BG: Tensor, mask_id: int) -> Canvas:
        """A canvas whose open positions are those that hold the mask id."""
        open_BG = ids_BG == mask_id
        return cls(ids_BG, open_BG, (~open_BG).float(), torch.full_like(ids_BG, -1))

    @classmethod
    def blank(
        cls, rows: int, length: int, mask_id: int, device: torch.device | str = "cpu"
    ) -> Canvas:
        """An answer of `length` open positions for each row."""
        return cls.of(torch.full((rows, length), mask_id, device=device), mask_id)

    @classmethod
    def ragged(
        cls, lengths: Sequence[int], width: int, mask_id: int, device: torch.device | str = "cpu"
    ) -> Canvas:
        """An answer of its own number of open positions for each row."""
        here_BG = torch.arange(width, device=device) < torch.tensor(lengths, device=device)[:, None]
        return cls.of(torch.where(here_BG, mask_id, PAD_POSITION), mask_id)

    @property
    def length_B(self) -> Tensor:
        """How many positions each row has."""
        return torch.ne(self.ids_BG, PAD_POSITION).sum(dim=1)

    def eligible(self, block_length: int) -> Tensor:
        """Open positions of each row's current block (B, G): the block of its first open
        position."""
        index_G = torch.arange(self.ids_BG.shape[1], device=self.ids_BG.device)
        first_B1 = self.open_BG.int().argmax(dim=1, keepdim=True)
        return self.open_BG & (index_G < (first_B1 // block_length + 1) * block_length)

    def finished(self, end_ids: Sequence[int]) -> Tensor:
        """Rows (B) without an open position before their first end token, or without any."""
        ends = torch.tensor(end_ids, dtype=torch.long, device=self.ids_BG.device)
        ended_BG = (torch.isin(self.ids_BG, ends) & ~self.open_BG).cumsum(dim=1) > 0
        return ~(self.open_BG & ~ended_BG).any(dim=1)

    def tail(self, length: int) -> Tensor:
        """The last open positions of each row (B, G), at most so many."""
        return self.open_BG & (self.open_BG.flip(1).cumsum(1).flip(1) <= length)

    def select(self, rows_A: Tensor) -> Canvas:
        """The canvas of some rows."""
        return Canvas(
            self.ids_BG[rows_A],
            self.open_BG[rows_A],
            self.confidence_BG[rows_A],
            self.step_BG[rows_A],
        )

    def concatenated(self, other: Canvas) -> Canvas:
        """The rows of both, as wide as the wider."""
        width = max(self.ids_BG.shape[1], other.ids_BG.shape[1])

        def both(mine: Tensor, others: Tensor, behind: float) -> Tensor:
            return torch.cat(
                [F.pad(each, (0, width - each.shape[1]), value=behind) for each in (mine, others)]
            )

        return Canvas(
            both(self.ids_BG, other.ids_BG, PAD_POSITION),
            both(self.open_BG, other.open_BG, False),
            both(self.confidence_BG, other.confidence_BG, 1.0),
            both(self.step_BG, other.step_BG, -1),
        )

    def extended(self, rows_A: Tensor, length_A: Tensor, mask_id: int) -> Canvas:
        """The next canvas: the rows `rows_A` have so many positions, the new ones open."""
        part, index_G = (
            self.select(rows_A),
            torch.arange(self.ids_BG.shape[1], device=self.ids_BG.device),
        )
        new_AG = torch.eq(part.ids_BG, PAD_POSITION) & (index_G < length_A[:, None])
        return self.reopen(rows_A, new_AG, mask_id)

    def commit(
        self, rows_A: Tensor, here_AG: Tensor, ids_AG: Tensor, confidence_AG: Tensor, step_A: Tensor
    ) -> Canvas:
        """The next canvas: the positions `here_AG` of the rows `rows_A` are decided, each row at
        its own step."""
        part = self.select(rows_A)
        return Canvas(
            self.ids_BG.index_copy(0, rows_A, torch.where(here_AG, ids_AG, part.ids_BG)),
            self.open_BG.index_copy(0, rows_A, part.open_BG & ~here_AG),
            self.confidence_BG.index_copy(
                0, rows_A, torch.where(here_AG, confidence_AG, part.confidence_BG)
            ),
            self.step_BG.index_copy(0, rows_A, torch.where(here_AG, step_A[:, None], part.step_BG)),
        )

    def reopen(self, rows_A: Tensor, here_AG: Tensor, mask_id: int) -> Canvas:
        """The next canvas: what was decided at the positions `here_AG` of the rows `rows_A` is
        taken back."""
        part = self.select(rows_A)
        return Canvas(
            self.ids_BG.index_copy(0, rows_A, part.ids_BG.masked_fill(here_AG, mask_id)),
            self.open_BG.index_copy(0, rows_A, part.open_BG | here_AG),
            self.confidence_BG.index_copy(0, rows_A, part.confidence_BG.masked_fill(here_AG, 0.0)),
            self.step_BG.index_copy(0, rows_A, part.step_BG.masked_fill(here_AG, -1)),
        )

    def token_ids(self, end_ids: Sequence[int]) -> list[list[int]]:
        """The ids of each row before its first end token, or to its end."""
        rows, ends = self.ids_BG.tolist(), (*end_ids, PAD_POSITION)
        return [
            row[: next((i for i, token in enumerate(row) if token in ends), len(row))]
            for row in rows
        ]
