"""The state of one batch of generations: the ids, which positions are open, and how sure each commit was.

A free answer, an infill or a scaffold are different canvases for the same sampler: fixed positions are simply not open.
A canvas is never changed; `commit` gives the next one.

Shapes: B rows, G positions of the canvas, A active rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Canvas:
    """Ids (the mask id where open), open positions, and the confidence (0 to 1) and step (from 0) of each commit.

    Positions that were never open have confidence 1 and step -1; open ones have confidence 0 and step -1.
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
    def blank(cls, rows: int, length: int, mask_id: int, device: torch.device | str = "cpu") -> Canvas:
        """An answer of `length` open positions for each row."""
        return cls.of(torch.full((rows, length), mask_id, device=device), mask_id)

    def eligible(self, block_length: int) -> Tensor:
        """Open positions of each row's current block (B, G): the block of its first open position."""
        index_G = torch.arange(self.ids_BG.shape[1], device=self.ids_BG.device)
        first_B1 = self.open_BG.int().argmax(dim=1, keepdim=True)
        return self.open_BG & (index_G < (first_B1 // block_length + 1) * block_length)

    def finished(self, end_ids: Sequence[int]) -> Tensor:
        """Rows (B) without an open position before their first end token, or without any."""
        ends = torch.tensor(end_ids, dtype=torch.long, device=self.ids_BG.device)
        ended_BG = (torch.isin(self.ids_BG, ends) & ~self.open_BG).cumsum(dim=1) > 0
        return ~(self.open_BG & ~ended_BG).any(dim=1)

    def take(self, rows_A: Tensor) -> Canvas:
        """The canvas of some rows."""
        return Canvas(self.ids_BG[rows_A], self.open_BG[rows_A], self.confidence_BG[rows_A], self.step_BG[rows_A])

    def commit(self, rows_A: Tensor, here_AG: Tensor, ids_AG: Tensor, confidence_AG: Tensor, step: int) -> Canvas:
        """The next canvas: the positions `here_AG` of the rows `rows_A` are decided at this step."""
        part = self.take(rows_A)
        return Canvas(
            self.ids_BG.index_copy(0, rows_A, torch.where(here_AG, ids_AG, part.ids_BG)),
            self.open_BG.index_copy(0, rows_A, part.open_BG & ~here_AG),
            self.confidence_BG.index_copy(0, rows_A, torch.where(here_AG, confidence_AG, part.confidence_BG)),
            self.step_BG.index_copy(0, rows_A, torch.where(here_AG, step, part.step_BG)),
        )

    def answers(self, end_ids: Sequence[int]) -> list[list[int]]:
        """The ids of each row before its first end token."""
        rows = self.ids_BG.tolist()
        return [row[: next((i for i, token in enumerate(row) if token in end_ids), len(row))] for row in rows]
