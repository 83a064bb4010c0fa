"""Keys and values kept between the steps of a generation, and which positions of the canvas each
step computes anew.

A cache is a pair of plain rules: when everything is computed anew (`stale`), and which columns of
the canvas are computed otherwise (`columns`). What is left out is attended to as it was when it was
last computed. `KVCache` holds the numbers: preallocated, stored after rotation, written in place.

`prefix` is exact where the prompt never looks at the canvas (segment-causal attention). With full
attention it is an approximation, and the others always are: what is left out would have changed
with each commit.

Shapes: B rows, A active rows, G canvas columns, P prompt columns, T = P + G, Q computed columns, H
key heads, K head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.config import BackboneConfig


@dataclass(frozen=True)
class CacheState:
    """Where the active rows stand before a step."""

    open_AG: Tensor
    open_before_AG: Tensor  # before the last step; all True before the first
    block_AG: Tensor  # columns of each row's current block
    entered_A: Tensor  # whether that block is another than at the last step
    age_A: (
        Tensor  # steps since everything was last computed, 1 at the next one; -1 before the first
    )
    grown_A: Tensor  # whether the row has become longer


class CachePolicy(Protocol):
    """What a step computes; the loop and the model never ask which one they hold."""

    def needs_refresh(self, progress: CacheState) -> Tensor:
        """Rows (A) whose prompt and canvas are computed anew."""
        ...

    def positions_to_recompute(self, progress: CacheState) -> Tensor:
        """Columns (A, G) of the canvas that are computed in the other rows; all open ones of the
        block among them."""
        ...


@dataclass(frozen=True)
class PrefixPolicy:
    """The prompt is computed once, the whole canvas at every step (LaViDa, arXiv 2505.16839)."""

    interval: int | None = None  # steps after which everything is computed anew

    def needs_refresh(self, progress: CacheState) -> Tensor:
        return _due(progress.age_A, self.interval)

    def positions_to_recompute(self, progress: CacheState) -> Tensor:
        return torch.ones_like(progress.open_AG)


@dataclass(frozen=True)
class BlockPolicy:
    """Everything at the entry of a block, then the block and what follows it (Fast-dLLM's prefix
    cache, 2505.22618)."""

    interval: int | None = None

    def needs_refresh(self, progress: CacheState) -> Tensor:
        return _due(progress.age_A, self.interval) | progress.entered_A | progress.grown_A

    def positions_to_recompute(self, progress: CacheState) -> Tensor:
        return progress.block_AG.cumsum(1) > 0


@dataclass(frozen=True)
class DualPolicy(BlockPolicy):
    """Everything at the entry of a block, then the block alone (Fast-dLLM's dual cache, arXiv
    2505.22618)."""

    def positions_to_recompute(self, progress: CacheState) -> Tensor:
        return progress.block_AG


@dataclass(frozen=True)
class DelayedPolicy(BlockPolicy):
    """Open positions and those decided at the last step: a token is kept one step after its commit.

    Source: dKV-Cache's decode variant (arXiv 2505.15781), which computes everything anew every 8
    steps.
    """

    interval: int | None = 8

    def positions_to_recompute(self, progress: CacheState) -> Tensor:
        return progress.open_before_AG | progress.open_AG


CACHES: dict[str, Callable[..., CachePolicy]] = {
    "prefix": PrefixPolicy,
    "block": BlockPolicy,
    "dual": DualPolicy,
    "delayed": DelayedPolicy,
}


def _due(age_A: Tensor, interval: int | None) -> Tensor:
    due_A = age_A < 0
    return due_A if interval is None else due_A | (age_A >= interval)


class KVCache:
    """Rotated keys and values of every layer at T columns of some rows, written in place.

    One more column takes what is computed for padding; it is never read. The room of rows that left
    is used again.
    """

    def __init__(
        self,
        config: BackboneConfig,
        rows: int,
        columns: int,
        device: torch.device,
        dtype: torch.dtype,
    ):
        shape = (
            config.num_hidden_layers,
            2,
            rows,
            config.num_key_value_heads,
            columns + 1,
            config.head_dim,
        )
        self._room = torch.zeros(shape, device=device, dtype=dtype)
        self.rows, self.length = rows, columns

    @property
    def stored(self) -> Tensor:
        """(layers, 2, B, H, T + 1, K)"""
        return self._room[:, :, : self.rows]

    @torch.inference_mode()
    def take(self, rows_A: Tensor) -> None:
        """Keep these rows only; a row may be named several times."""
        rows = rows_A.tolist()
        if all(
            old >= new for new, old in enumerate(rows)
        ):  # nothing is overwritten that is still to be moved
            for new, old in enumerate(rows):
                if new != old:
                    self._room[:, :, new] = self._room[:, :, old]
        else:
            self._room = self.stored[:, :, rows_A]
        self.rows = len(rows)

    @torch.inference_mode()
    def extend(self, rows: int = 0, before: int = 0, after: int = 0) -> None:
        """Make room for more rows behind, and more columns before and after those there are."""
        wanted = self.rows + rows
        if before or after or wanted > self._room.shape[2]:
            self._room = F.pad(self.stored, (0, 0, before, after, 0, 0, 0, rows))
            self.length += before + after
        else:
            self._room[:, :, self.rows : wanted] = 0
        self.rows = wanted

    def writers(self, where: slice | Tensor, rows_A: slice | Tensor) -> list[LayerCache]:
        """For each layer: write its new keys and values at these columns, and give back those of
        all columns.

        Args:
            where: the columns of all rows, or of each row (A, Q); `length` for what is padding.
            rows_A: the rows that are computed.
        """
        return [LayerCache(layer, where, rows_A, self.length) for layer in self.stored]


@dataclass(frozen=True)
class LayerCache:
    """The keys and values of one layer, and where the new ones belong."""

    stored: Tensor  # (2, B, H, T + 1, K)
    where: slice | Tensor
    rows_A: slice | Tensor
    length: int

    def __call__(self, k_AHQK: Tensor, v_AHQK: Tensor) -> tuple[Tensor, Tensor]:
        both = self.stored[:, self.rows_A]
        for held_AHTK, new_AHQK in zip(both, (k_AHQK, v_AHQK), strict=True):
            if isinstance(self.where, slice):
                held_AHTK[:, :, self.where] = new_AHQK
            else:
                held_AHTK.scatter_(2, self.where[:, None, :, None].expand_as(new_AHQK), new_AHQK)
        if isinstance(self.rows_A, Tensor):  # of others it is a view
            self.stored[:, self.rows_A] = both
        return both[0][:, :, : self.length], both[1][:, :, : self.length]
