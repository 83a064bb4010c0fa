"""How likely a text is at the embeddings of audio (CTC; Graves et al., 2006).

Shapes: T embeddings of one sound, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def text_probability(logits_TV: Tensor, ids: Sequence[int], blank: int) -> float:
    """The probability (0 to 1) that the embeddings spell exactly these ids: the sum over all paths that do.

    It knows of words that were left out, which the confidences of the words that are there do not.
    """
    if not len(logits_TV) or blank in ids:
        return 0.0
    log_probs_T1V = logits_TV.double().log_softmax(-1)[:, None].cpu()
    loss = torch.nn.functional.ctc_loss(
        log_probs_T1V,
        torch.tensor([list(ids)], dtype=torch.long),
        torch.tensor([len(logits_TV)]),
        torch.tensor([len(ids)]),
        blank=blank,
        reduction="sum",
    )
    return float((-loss).exp())
