"""Read a draft off the outputs at a sound's embeddings: CTC's best path (Graves et al., 2006).

Shapes: T embeddings of one sound, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor


def best_path(logits_TV: Tensor, blank: int) -> tuple[list[int], list[float]]:
    """The ids, repeats joined and blanks left out, and the confidence of each (0 to 1), its highest in its run."""
    best = logits_TV.float().softmax(-1).max(-1)
    ids: list[int] = []
    confidences: list[float] = []
    last = blank
    for token, confidence in zip(best.indices.tolist(), best.values.tolist(), strict=True):
        if token == last and token != blank:
            confidences[-1] = max(confidences[-1], confidence)
        elif token != blank:
            ids.append(token)
            confidences.append(confidence)
        last = token
    return ids, confidences
