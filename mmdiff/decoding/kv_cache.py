"""Keys and values kept between the steps of a generation, and which positions of the canvas each
step computes anew.

A cache is a pair of plain rules: when everything is computed anew (`needs_refresh`), and which
columns of the canvas are computed otherwise (`positions_to_recompute`). What is left out is
attended to as it was when it was last computed. `KVPool` holds the numbers: stored after rotation,
written in place.

`prefix` is exact where the prompt never looks at the canvas (segment-causal attention). With full
attention it is an approximation, and the others always are: what is left out would have changed
with each commit.

Shapes: A active sequences, G canvas columns, P prompt columns, T = P + G, Q computed columns, H
key heads, K head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.config import BackboneConfig
from mmdiff.decoding.canvas import Array


@dataclass(frozen=True)
class CacheState:
    """Where the active rows stand before a step."""

    open_AG: Array
    open_before_AG: Array  # before the last step; all True before the first
    block_AG: Array  # columns of each row's current block
    entered_A: Array  # whether that block is another than at the last step
    # Steps since everything was last computed, 1 at the next one; -1 before the first.
    age_A: Array
    grown_A: Array  # whether the row has become longer


class CachePolicy(Protocol):
    """What a step computes; the loop and the model never ask which one they hold."""

    def needs_refresh(self, progress: CacheState) -> Array:
        """Sequences (A) whose prompt and canvas are computed anew."""
        ...

    def positions_to_recompute(self, progress: CacheState) -> Array:
        """Columns (A, G) of the canvas that are computed in the other rows; all open ones of the
        block among them."""
        ...


@dataclass(frozen=True)
class PrefixPolicy:
    """The prompt is computed once, the whole canvas at every step (LaViDa, arXiv 2505.16839)."""

    interval: int | None = None  # steps after which everything is computed anew

    def needs_refresh(self, progress: CacheState) -> Array:
        return _due(progress.age_A, self.interval)

    def positions_to_recompute(self, progress: CacheState) -> Array:
        return np.ones_like(progress.open_AG)


@dataclass(frozen=True)
class BlockPolicy:
    """Everything at the entry of a block, then the block and what follows it (Fast-dLLM's prefix
    cache, 2505.22618)."""

    interval: int | None = None

    def needs_refresh(self, progress: CacheState) -> Array:
        return _due(progress.age_A, self.interval) | progress.entered_A | progress.grown_A

    def positions_to_recompute(self, progress: CacheState) -> Array:
        return progress.block_AG.cumsum(1) > 0


@dataclass(frozen=True)
class DualPolicy(BlockPolicy):
    """Everything at the entry of a block, then the block alone (Fast-dLLM's dual cache, arXiv
    2505.22618)."""

    def positions_to_recompute(self, progress: CacheState) -> Array:
        return progress.block_AG


@dataclass(frozen=True)
class DelayedPolicy(BlockPolicy):
    """Open positions and those decided at the last step: a token is kept one step after its commit.

    Source: dKV-Cache's decode variant (arXiv 2505.15781), which computes everything anew every 8
    steps.
    """

    interval: int | None = 8

    def positions_to_recompute(self, progress: CacheState) -> Array:
        return progress.open_before_AG | progress.open_AG


CACHES: dict[str, Callable[..., CachePolicy]] = {
    "prefix": PrefixPolicy,
    "block": BlockPolicy,
    "dual": DualPolicy,
    "delayed": DelayedPolicy,
}


def _due(age_A: Array, interval: int | None) -> Array:
    due_A = age_A < 0
    return due_A if interval is None else due_A | (age_A >= interval)


@dataclass(eq=False)
class KVSlot:
    """One sequence's row in a `KVPool`, and what the last step saw of it."""

    index: int
    open_G: Array  # before the last step; all that is not known counts as open
    length: int = -1  # of the canvas
    block: int = -1
    age: int = -1


class KVPool:
    """Rotated keys and values of every layer, a slot for each sequence, written in place.

    One more column takes what is computed for padding; it is never read. The slots stand in the
    order in which the sequences came, so that those of a step are a run of them, and a view.
    """

    def __init__(self, config: BackboneConfig, device: torch.device, dtype: torch.dtype) -> None:
        layers, heads = config.num_hidden_layers, config.num_key_value_heads
        shape = (layers, 2, 0, heads, 1, config.head_dim)
        self.stored = torch.zeros(shape, device=device, dtype=dtype)
        self.slots: list[KVSlot] = []

    @property
    def length(self) -> int:
        """Columns of each slot."""
        return self.stored.shape[4] - 1

    @torch.inference_mode()
    def reserve(self, slots: int, length: int) -> None:
        """Have at least this many slots of at least this length."""
        more, columns = slots - self.stored.shape[2], length - self.length
        if more > 0 or columns > 0:
            padding = (0, 0, 0, max(0, columns), 0, 0, 0, max(0, more))
            self.stored = F.pad(self.stored, padding)

    def add(self) -> KVSlot:
        """A slot behind all others."""
        self.slots.append(KVSlot(len(self.slots), np.ones(0, dtype=bool)))
        return self.slots[-1]

    @torch.inference_mode()
    def keep(self, slots: Sequence[KVSlot]) -> None:
        """Let all other slots go; these move up to the front, in this order."""
        moved = [slot.index for slot in slots]
        if moved == sorted(moved):  # nothing is overwritten that is still to be moved
            for new, old in enumerate(moved):
                if new != old:
                    self.stored[:, :, new] = self.stored[:, :, old]
        else:
            self.stored = self.stored[:, :, moved]
        self.slots = list(slots)
        for number, slot in enumerate(self.slots):
            slot.index = number

    def writers(self, where: slice | Array, slots: slice | Array, total: int) -> list[LayerCache]:
        """For each layer: write its new keys and values at these columns, and give back those of
        the first `total` columns.

        Args:
            where: the columns of all sequences, or of each (A, Q); -1 for what is padding.
            slots: of the sequences that are computed.
        """
        device = self.stored.device
        at: slice | Tensor
        if isinstance(where, slice):
            at = where
        else:
            at = torch.from_numpy(np.where(where < 0, self.length, where)).to(device)
        rows = slots if isinstance(slots, slice) else torch.from_numpy(slots).to(device)
        return [LayerCache(layer, at, rows, total) for layer in self.stored]


@dataclass(frozen=True)
class LayerCache:
    """The keys and values of one layer, and where the new ones belong."""

    stored: Tensor  # (2, slots, H, T + 1, K)
    where: slice | Tensor
    slots_A: slice | Tensor
    total: int

    def __call__(self, k_AHQK: Tensor, v_AHQK: Tensor) -> tuple[Tensor, Tensor]:
        both = self.stored[:, self.slots_A]
        # A run of columns is one copy; others are scattered, the same for all heads.
        for held_AHTK, new_AHQK in zip(both, (k_AHQK, v_AHQK), strict=True):
            if isinstance(self.where, slice):
                held_AHTK[:, :, self.where] = new_AHQK
            else:
                held_AHTK.scatter_(2, self.where[:, None, :, None].expand_as(new_AHQK), new_AHQK)
        if isinstance(self.slots_A, Tensor):  # of others it is a view
            self.stored[:, self.slots_A] = both
        return both[0][:, :, : self.total], both[1][:, :, : self.total]
