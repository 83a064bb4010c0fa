"""Forward process of masked diffusion: hide answer tokens at a random rate.

Training and the likelihood bound use this one function. Prompts are never hidden.

Shapes: B batch, T positions, R answers of a row (index 0 is the shared prompt).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmdiff.decoding.schedule import masking_rate

IGNORE = -100  # label of a position that is not part of an answer


@dataclass(frozen=True)
class MaskedBatch:
    """Noisy ids (B, T), which positions were hidden (B, T), and each position's hiding probability
    (B, T)."""

    ids_BT: Tensor
    masked_BT: Tensor
    rate_BT: Tensor


def mask_tokens(
    ids_BT: Tensor, labels_BT: Tensor, t_BT: Tensor, u_BT: Tensor, mask_id: int
) -> MaskedBatch:
    """Hide a labelled position where its draw `u` is under the masking rate of its time `t` (both
    in 0..1)."""
    rate_BT = masking_rate(t_BT)
    masked_BT = (u_BT < rate_BT) & (labels_BT != IGNORE)
    return MaskedBatch(torch.where(masked_BT, mask_id, ids_BT), masked_BT, rate_BT)


def draw_times(num_rows: int, num_answers: int, generator: torch.Generator) -> Tensor:
    """One time per answer, (B, R), uniform and evenly spread over the batch to lower the variance
    of the loss.

    Source: the low-discrepancy sampler of variational diffusion models (arXiv 2107.00630).
    """
    count = num_rows * num_answers
    start = torch.rand((), generator=generator)
    times = (start + torch.arange(count) / count) % 1
    return times[torch.randperm(count, generator=generator)].view(num_rows, num_answers)
