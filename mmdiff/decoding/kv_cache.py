"""Keys and values kept between the steps of a generation, and which positions of the canvas each
step computes anew.

A cache policy is a pair of plain rules: when everything of a sequence is computed anew
(`needs_refresh`), and which positions of its canvas are computed otherwise
(`positions_to_recompute`). What is left out is attended to as it was when it was last computed.
`KVPool` holds the numbers: stored after rotation, written in place.

`prefix` is exact where the prompt never looks at the canvas (segment-causal attention). With full
attention it is an approximation, and the others always are: what is left out would have changed
with each commit.

Shapes: A active sequences, G canvas positions, T columns (prompt and canvas), Q computed columns,
H key heads, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mmdiff.config import BackboneConfig
from mmdiff.decoding.canvas import PAD_POSITION, Array
from mmdiff.decoding.prefix_cache import PrefixBlock, PrefixCache


@dataclass(eq=False)
class KVSlot:
    """One sequence's row in a `KVPool`, and where the sequence stands before a step."""

    open_G: Array = field(default_factory=partial(np.zeros, 0, bool))
    open_before_G: Array = field(default_factory=partial(np.zeros, 0, bool))  # before the last step
    block_G: Array = field(
        default_factory=partial(np.zeros, 0, bool)
    )  # positions of the current block
    block: int = -1
    last_block: int = -1  # the one before, at the step that enters another
    blocks_G: Array = field(default_factory=partial(np.zeros, 0, int))  # each position's block
    offset: int = 0  # positions of the first block that the prompt holds
    length: int = -1  # of the canvas
    age: int = -1  # steps since everything was last computed, 1 at the next one
    entered: bool = False  # whether the block is another than at the last step
    grown: bool = False  # whether the canvas has become longer

    def advance(self, ids_G: Array, select_G: Array, mask_id: int, block_length: int) -> None:
        """Take in the canvas before a step, and what the step asks for."""
        self.blocks_G = (np.arange(len(ids_G)) + self.offset) // block_length
        block, length = int(self.blocks_G[select_G.argmax()]), int((ids_G != PAD_POSITION).sum())
        self.last_block = self.block
        self.entered, self.grown = block != self.block, length != self.length
        self.block, self.length = block, length
        # What was not there before the last step counts as open.
        self.open_before_G = np.ones(len(ids_G), dtype=bool)
        self.open_before_G[: len(self.open_G)] = self.open_G[: len(ids_G)]
        self.open_G = ids_G == mask_id
        self.block_G = self.blocks_G == block


@dataclass(frozen=True)
class CachePolicy:
    """What a step computes of a sequence; loop and model never ask which policy they hold."""

    interval: int | None = None  # steps after which everything is computed anew

    def needs_refresh(self, slot: KVSlot) -> bool:
        """Whether prompt and canvas are computed anew."""
        return slot.age < 0 or (self.interval is not None and slot.age >= self.interval)

    def positions_to_recompute(self, slot: KVSlot) -> Array:
        """Positions (G) that are computed otherwise; all open ones of the block among them."""
        return np.ones_like(slot.open_G)


class PrefixPolicy(CachePolicy):
    """The prompt is computed once, the whole canvas at every step (LaViDa, arXiv 2505.16839)."""


class BlockPolicy(CachePolicy):
    """Everything at the entry of a block, then the block and what follows it (Fast-dLLM's prefix
    cache, arXiv 2505.22618)."""

    def needs_refresh(self, slot: KVSlot) -> bool:
        return super().needs_refresh(slot) or slot.entered or slot.grown

    def positions_to_recompute(self, slot: KVSlot) -> Array:
        return slot.block_G.cumsum() > 0


class DualPolicy(BlockPolicy):
    """Everything at the entry of a block, then the block alone (Fast-dLLM's dual cache, arXiv
    2505.22618)."""

    def positions_to_recompute(self, slot: KVSlot) -> Array:
        return slot.block_G


@dataclass(frozen=True)
class DelayedPolicy(BlockPolicy):
    """Open positions and those decided at the last step: a token is kept one step after its commit.

    Source: dKV-Cache's decode variant (arXiv 2505.15781), which computes everything anew every 8
    steps.
    """

    interval: int | None = 8

    def positions_to_recompute(self, slot: KVSlot) -> Array:
        return slot.open_before_G | slot.open_G


class FinishedBlocksPolicy(CachePolicy):
    """The current block at every step, and the one before it once more when the next is entered.

    Exact with block-causal attention, where a finished block never sees what follows it. While the
    prompt holds a part of the block everything is computed anew, since that part sees the rest.
    """

    def needs_refresh(self, slot: KVSlot) -> bool:
        in_first = slot.block == 0 or (slot.entered and slot.last_block == 0)
        return super().needs_refresh(slot) or slot.grown or (slot.offset > 0 and in_first)

    def positions_to_recompute(self, slot: KVSlot) -> Array:
        first = min(slot.block, slot.last_block)
        return np.asarray((slot.blocks_G >= first) & (slot.blocks_G <= slot.block))


CACHES: dict[str, type[CachePolicy]] = {
    "prefix": PrefixPolicy,
    "block": BlockPolicy,
    "dual": DualPolicy,
    "delayed": DelayedPolicy,
    "finished_blocks": FinishedBlocksPolicy,
}


def plan_step(
    policy: CachePolicy,
    slots: Sequence[KVSlot],
    ids_AG: Array,
    select_AG: Array,
    mask_id: int,
    block_length: int,
) -> tuple[Array, Array]:
    """Which sequences (A) are computed anew, and which positions (A, G) of the others."""
    anew_A, columns_AG = np.zeros(len(slots), dtype=bool), select_AG.copy()
    for row, slot in enumerate(slots):
        slot.advance(ids_AG[row], select_AG[row], mask_id, block_length)
        anew_A[row] = policy.needs_refresh(slot)
        columns_AG[row] |= policy.positions_to_recompute(slot)
        slot.age = 1 if anew_A[row] else slot.age + 1
    return anew_A, columns_AG & (ids_AG != PAD_POSITION)


class KVPool:
    """Rotated keys and values of every layer, a slot for each sequence, written in place.

    The slots stand in the order of the sequences of a step, so that all of them together are a
    view. One more column takes what is computed for padding; it is never read.
    """

    def __init__(self, config: BackboneConfig, device: torch.device, dtype: torch.dtype) -> None:
        layers, heads = config.num_hidden_layers, config.num_key_value_heads
        shape = (layers, 2, 0, heads, 1, config.head_dim)
        self.stored = torch.zeros(shape, device=device, dtype=dtype)
        self.slots: list[KVSlot] = []

    def arrange(self, slots: Sequence[KVSlot], length: int) -> None:
        """Hold these slots in this order, each of at least this length; all others are let go."""
        before, columns = self.stored, self.stored.shape[4] - 1
        if self.slots == slots and columns >= length:
            return
        shape = list(before.shape)
        shape[2], shape[4] = len(slots), length + 1
        self.stored = before.new_zeros(shape)
        kept = min(columns, length)
        # One copy for each sequence that stays, whenever one joins, leaves or outgrows its slot.
        for row, slot in enumerate(slots):
            if slot in self.slots:
                self.stored[:, :, row, :, :kept] = before[:, :, self.slots.index(slot), :, :kept]
        self.slots = list(slots)

    def recall(self, slot: KVSlot, blocks: Sequence[PrefixBlock], store: PrefixCache) -> int:
        """Put in a slot what the prefix cache holds of a prompt; gives the first column that it
        does not."""
        end = 0
        for block in blocks:
            found = store.get(b"kv" + block.key)
            if found is None:
                break
            self._columns(slot, block).copy_(found)
            end = block.end
        return end

    def remember(self, slot: KVSlot, blocks: Sequence[PrefixBlock], store: PrefixCache) -> None:
        """Give the prefix cache the keys and values of a prompt that was just computed."""
        for block in blocks:
            if b"kv" + block.key not in store:
                store.put(b"kv" + block.key, self._columns(slot, block))

    def _columns(self, slot: KVSlot, block: PrefixBlock) -> Tensor:
        return self.stored[:, :, self.slots.index(slot), :, block.first : block.end]

    def writers(self, slots: Sequence[KVSlot], at_AQ: Array, total: int) -> list[LayerCache]:
        """For each layer: write its new keys and values at these columns of the slots (-1 is
        padding), and give back those of the first `total` columns."""
        device, indices = self.stored.device, [self.slots.index(each) for each in slots]
        run = slice(indices[0], indices[0] + len(indices))
        rows: slice | Tensor = run
        if indices != list(range(run.start, run.stop)):
            rows = torch.tensor(indices, device=device)
        first, end = int(at_AQ[0, 0]), int(at_AQ[0, 0]) + at_AQ.shape[1]
        at: slice | Tensor = slice(first, end)
        if (at_AQ != np.arange(first, end)).any():
            at = torch.from_numpy(np.where(at_AQ < 0, self.stored.shape[4] - 1, at_AQ)).to(device)
        return [LayerCache(layer, rows, at, total) for layer in self.stored]


@dataclass(frozen=True)
class LayerCache:
    """The keys and values of one layer, and where the new ones belong."""

    stored: Tensor  # (2, slots, H, T + 1, K)
    rows: slice | Tensor
    at: slice | Tensor  # a run of columns, or those of each row (A, Q)
    total: int

    def __call__(self, k_AHQK: Tensor, v_AHQK: Tensor) -> tuple[Tensor, Tensor]:
        both = self.stored[:, self.rows]
        # A run of columns is one copy; others are scattered, the same for all heads.
        for held_AHTK, new_AHQK in zip(both, (k_AHQK, v_AHQK), strict=True):
            if isinstance(self.at, slice):
                held_AHTK[:, :, self.at] = new_AHQK
            else:
                held_AHTK.scatter_(2, self.at[:, None, :, None].expand_as(new_AHQK), new_AHQK)
        if isinstance(self.rows, Tensor):  # a run of rows is a view
            self.stored[:, self.rows] = both
        return both[0][:, :, : self.total], both[1][:, :, : self.total]
