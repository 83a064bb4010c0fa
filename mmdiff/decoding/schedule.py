"""Plain functions of time: how much is masked at t, what a masked token's loss weighs, how many
commit per step.

Sources: LLaDA (arXiv 2502.09992, ML-GSAI/LLaDA) where no other is named.

Shares may be 0; a step that would commit nothing is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

MIN_RATE = 1e-3  # masking rate at t = 0, so that weights stay finite


def masking_rate(t: Tensor) -> Tensor:
    """Probability that a token is masked at time t (0 to 1), linear in t."""
    return (1 - MIN_RATE) * t + MIN_RATE


def even_shares(total: int, parts: int) -> list[int]:
    """Split a whole number into whole shares as even as can be, the larger ones first."""
    base, extra = divmod(total, parts)
    return [base + (part < extra) for part in range(parts)]


def cosine_shares(total: int, parts: int) -> list[int]:
    """Few at first: what is left follows a quarter of a cosine (MaskGIT, arXiv 2202.04200)."""
    return _shares(total, [math.cos(math.pi / 2 * (part + 1) / parts) for part in range(parts)])


def shifted_shares(total: int, parts: int, shift: float = 1 / 3) -> list[int]:
    """Many at first: LaViDa's shifted schedule (arXiv 2505.16839), t' = a t / (1 + (a - 1) t) of
    the time left."""
    times = [1 - (part + 1) / parts for part in range(parts)]
    return _shares(total, [shift * t / (1 + (shift - 1) * t) for t in times])


def dream_shares(total: int, parts: int, end: float = 1e-3) -> list[int]:
    """Dream's (arXiv 2508.15487): of those left at time t, the whole part of (1 - s / t), times
    even down to `end`."""
    times = [1 + (end - 1) * part / parts for part in range(parts + 1)]
    shares, left = [], total
    for part in range(parts):
        share = int(left * (1 - times[part + 1] / times[part])) if part < parts - 1 else left
        shares.append(share)
        left -= share
    return shares


def _shares(total: int, left: Sequence[float]) -> list[int]:
    """Whole shares, so that after each part no more than this share of the total is left."""
    remaining = [total, *[int(total * share + 1e-9) for share in left[:-1]], 0]
    return [before - after for before, after in zip(remaining, remaining[1:], strict=False)]


Shares = Callable[[int, int], list[int]]

SCHEDULES: dict[str, Shares] = {
    "uniform": even_shares,
    "cosine": cosine_shares,
    "shifted": shifted_shares,
    "dream": dream_shares,
}
