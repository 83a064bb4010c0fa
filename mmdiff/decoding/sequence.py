"""One request while it is denoised: its canvas on the host, its prompt, and what it alone is
subject to.

All that decides which positions a step looks at is NumPy on the host, so that no step waits for
the device to tell it; tensors are made of several sequences at once, in sampler.py.

Shapes: G positions of this sequence's canvas.
"""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mmdiff.config import DecodingConfig
from mmdiff.decoding.canvas import PAD_POSITION, Array, Canvas, stacked
from mmdiff.decoding.commit_rules import rule_name
from mmdiff.decoding.schedule import SCHEDULES, even_shares
from mmdiff.errors import MMDiffError


class Constraint(Protocol):
    """What may stand in the open positions of one sequence, whatever the model says."""

    def decide(
        self,
        ids_G: Tensor,
        places: abc.Sequence[int],
        logits_NV: Tensor,
        temperature: float,
        draws: torch.Generator,
    ) -> Tensor:
        """Ids (N) for the positions, of which any part may be committed; the logits (N, V) lose in
        place what may not. All of them are on the host."""

    def expand(self, here_G: Tensor) -> Tensor:
        """The positions (G) to be committed, and those that are only decided together with one of
        them."""

    def forced(self, ids_G: Tensor) -> dict[int, int]:
        """The open positions that nothing is left to decide about, and what must stand there."""


@dataclass(eq=False)
class Sequence:
    """One request: ids (the mask id where open), open positions, and the confidence (0 to 1) and
    step (from 0) of each commit."""

    name: int
    prompt: Any  # whatever its runner computes with
    ids_G: Array
    open_G: Array
    confidence_G: Array
    step_G: Array
    capacity: int  # positions that its schedule counts blocks over
    limit: int  # positions that it may grow to
    generator: torch.Generator
    constraint: Constraint | None
    quotas: abc.Sequence[int] = ()
    steps: int = 0
    growth: int = 0  # those of the steps in which it grew
    expired: bool = False  # past its deadline: all that is open is decided at the next step
    offset: int = 0  # positions of its first block that lie before the canvas
    block: int = 0  # the first position of its current block
    entered: int = -1  # the step at which it came into the block
    held: bool = False  # whether it stays in the block, though nothing may be open there

    @property
    def length(self) -> int:
        return len(self.ids_G)

    @property
    def growing(self) -> bool:
        """Whether it may still become longer, before anything is committed."""
        return self.length < self.limit and not self.expired

    @property
    def quota(self) -> int:
        """How many positions the schedule commits at the next step."""
        return self.quotas[min(self.steps - self.growth, len(self.quotas) - 1)]

    def plan(self, decoding: DecodingConfig) -> None:
        """Make the schedule for the canvas as it is."""
        open_G = np.pad(self.open_G, (0, max(0, self.capacity - self.length)))
        self.quotas = plan_quotas(np.pad(open_G, (self.offset, 0)), decoding)

    def finished(self, end_ids: abc.Sequence[int]) -> bool:
        """Whether nothing is open, or without a constraint nothing before the first end token."""
        places = self.open_G.nonzero()[0]
        if self.held and not self.expired:
            return False
        if not len(places):
            return True
        ahead_G = self.ids_G[: places[0]]
        return self.constraint is None and any((ahead_G == each).any() for each in end_ids)

    def advance(self, block_length: int) -> None:
        """Go to the block of the first open position, unless it is held where it is."""
        if self.held:
            return
        number = (int(self.open_G.argmax()) + self.offset) // block_length
        block = max(0, number * block_length - self.offset)
        if block != self.block or self.entered < 0:
            self.block, self.entered = block, self.steps

    def eligible(self, block_length: int) -> Array:
        """Positions (G) that may be committed now."""
        if self.expired:
            return self.open_G.copy()
        return self._in_block(self.open_G, block_length)

    def decided(self, block_length: int) -> Array:
        """Positions (G) of the current block that were decided by earlier steps."""
        return self._in_block(self.step_G >= 0, block_length)

    def _in_block(self, some_G: Array, block_length: int) -> Array:
        """Those positions that lie in the current block; none while the canvas may still grow."""
        here_G = np.zeros_like(some_G)
        if not self.growing:
            length = block_length
            if self.block == 0:  # of which the prompt may hold a part
                length -= self.offset
            block = slice(self.block, self.block + length)
            here_G[block] = some_G[block]
        return here_G

    def tail(self, length: int) -> Array:
        """The last open positions (G), at most `length`, of a sequence that may still grow."""
        here_G = np.zeros_like(self.open_G)
        # Whether these expect the end tells whether it is long enough.
        if self.growing:
            here_G[self.open_G.nonzero()[0][-length:]] = True
        return here_G

    def update(self, ids_G: Array, open_G: Array, sure_G: Array, step_G: Array) -> None:
        """Take over what a step made of the canvas; padding behind is cut off."""
        length = self.length
        self.ids_G, self.open_G = ids_G[:length], open_G[:length] != 0
        self.confidence_G, self.step_G = sure_G[:length], step_G[:length]

    def grow(self, more: int, mask_id: int) -> None:
        """Add open positions, at most to the limit; where none are wanted, it is long enough."""
        more = min(more, self.limit - self.length)
        if not more:
            self.limit = self.length
        self.growth += 1
        self.ids_G = np.pad(self.ids_G, (0, more), constant_values=mask_id)
        self.open_G = np.pad(self.open_G, (0, more), constant_values=True)
        self.confidence_G = np.pad(self.confidence_G, (0, more))
        self.step_G = np.pad(self.step_G, (0, more), constant_values=-1)

    def cut(self) -> None:
        """Let go of what stands behind its limit, and was there to complete a block."""
        self.update(
            self.ids_G[: self.limit],
            self.open_G[: self.limit],
            self.confidence_G[: self.limit],
            self.step_G[: self.limit],
        )

    def commit_forced(self) -> None:
        """Commit what nothing is left to decide about, without a pass."""
        if self.constraint is None:
            return
        for place, token in self.constraint.forced(torch.from_numpy(self.ids_G)).items():
            self.ids_G[place], self.open_G[place] = token, False
            self.confidence_G[place], self.step_G[place] = 1.0, self.steps


def stack(sequences: abc.Sequence[Sequence], device: torch.device | str = "cpu") -> Canvas:
    """The canvases of some sequences side by side, padded behind."""

    def rows(arrays: list[Array], behind: float) -> Tensor:
        return torch.from_numpy(stacked(arrays, behind)).to(device, non_blocking=True)

    return Canvas(
        rows([each.ids_G for each in sequences], PAD_POSITION),
        rows([each.open_G for each in sequences], False),
        rows([each.confidence_G for each in sequences], 1.0),
        rows([each.step_G for each in sequences], -1),
    )


def plan_quotas(open_G: Array, decoding: DecodingConfig) -> list[int]:
    """How many positions are committed at each step, by the schedule within every block.

    Steps are shared evenly over the blocks; neither need divide the other.
    """
    length, schedule = decoding.block_length, SCHEDULES[decoding.schedule]
    blocks = [int(open_G[first : first + length].sum()) for first in range(0, len(open_G), length)]
    if decoding.steps < len(blocks) and rule_name(decoding) == "quota":
        raise MMDiffError(
            f"steps={decoding.steps} is fewer than the {len(blocks)} blocks of length {length}; "
            f"raise steps or block_length"
        )
    quotas: list[int] = []
    for block, steps in zip(blocks, even_shares(decoding.steps, len(blocks)), strict=True):
        quotas += [quota for quota in schedule(block, max(1, steps)) if quota]
    return quotas or [0]
