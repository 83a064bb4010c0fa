"""Plain functions of time: how much is masked at t, what a masked token's loss weighs, how many commit per step.

Sources: LLaDA (arXiv 2502.09992, ML-GSAI/LLaDA).
"""

from __future__ import annotations

from torch import Tensor

MIN_RATE = 1e-3  # masking rate at t = 0, so that weights stay finite


def masking_rate(t: Tensor) -> Tensor:
    """Probability that a token is masked at time t (0 to 1), linear in t."""
    return (1 - MIN_RATE) * t + MIN_RATE


def commit_quota(num_masked: int, num_steps: int) -> list[int]:
    """How many positions each step of a block commits: as even as can be, the larger shares first.

    Steps that would commit nothing (more steps than positions) are left out.
    """
    return [share for share in even_shares(num_masked, num_steps) if share > 0]


def even_shares(total: int, parts: int) -> list[int]:
    """Split a whole number into whole shares as even as can be, the larger ones first."""
    base, extra = divmod(total, parts)
    return [base + (part < extra) for part in range(parts)]
