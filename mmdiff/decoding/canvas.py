"""The state of one batch of generations: the ids, which positions are open, and how sure each
commit was.

A free answer, an infill or a scaffold are different canvases for the same sampler: fixed positions
are simply not open. Rows may be shorter than the canvas: behind a row's last position its ids are
`PAD_POSITION`, which no model sees. A canvas is never changed; `commit` and `reopen` give
the next one.

Shapes: B sequences, G positions of the canvas, A chosen ones of the sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
PAD_POSITION = -1  # stands where a row has no position


def stacked(arrays: Sequence[Array], behind: float) -> Array:
    """Arrays of several lengths as the rows of one, padded behind."""
    width = max(map(len, arrays), default=0)
    made = np.full((len(arrays), width), behind, arrays[0].dtype if arrays else np.int64)
    for row, array in zip(made, arrays, strict=True):
        row[: len(array)] = array
    return made


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

    def select(self, rows_A: Tensor) -> Canvas:
        """The canvas of some rows."""
        return Canvas(
            self.ids_BG[rows_A],
            self.open_BG[rows_A],
            self.confidence_BG[rows_A],
            self.step_BG[rows_A],
        )

    def commit(
        self, here_BG: Tensor, ids_BG: Tensor, confidence_BG: Tensor, step_B: Tensor
    ) -> Canvas:
        """The next canvas: the positions `here_BG` are decided, each row at its own step."""
        return Canvas(
            torch.where(here_BG, ids_BG, self.ids_BG),
            self.open_BG & ~here_BG,
            torch.where(here_BG, confidence_BG, self.confidence_BG),
            torch.where(here_BG, step_B[:, None], self.step_BG),
        )

    def reopen(self, here_BG: Tensor, mask_id: int) -> Canvas:
        """The next canvas: what was decided at the positions `here_BG` is taken back."""
        return Canvas(
            self.ids_BG.masked_fill(here_BG, mask_id),
            self.open_BG | here_BG,
            self.confidence_BG.masked_fill(here_BG, 0.0),
            self.step_BG.masked_fill(here_BG, -1),
        )

    def packed(self) -> Tensor:
        """All four tensors as whole numbers (4, B, G), to be read in one transfer."""
        bits_BG = self.confidence_BG.float().view(torch.int32).long()
        return torch.stack((self.ids_BG, self.open_BG.long(), bits_BG, self.step_BG))

    def token_ids(self, end_ids: Sequence[int]) -> list[list[int]]:
        """The ids of each row before its first end token, or to its end."""
        rows, ends = self.ids_BG.tolist(), (*end_ids, PAD_POSITION)
        return [
            row[: next((i for i, token in enumerate(row) if token in ends), len(row))]
            for row in rows
        ]
