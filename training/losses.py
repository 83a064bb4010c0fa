"""Objectives: LLaDA's masked cross-entropy in its published weightings, and SigLIP's sigmoid loss.

A weighting is how times are distributed and what a token hidden at one of them weighs; the two
belong together, and only together are they a bound on the likelihood. It is chosen once by a
recipe.

Shapes: B batch, T positions, S hidden positions, V vocabulary, X patches of a batch, M phrases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.training.forward_process import IGNORE, MaskedBatch


def pretraining_weights(corrupted: MaskedBatch, labels_BT: Tensor, branches_BT: Tensor) -> Tensor:
    """LLaDA pre-training: 1 / rate over all positions of the batch."""
    return corrupted.masked_BT / corrupted.rate_BT / labels_BT.numel()


def response_weights(corrupted: MaskedBatch, labels_BT: Tensor, branches_BT: Tensor) -> Tensor:
    """LLaDA fine-tuning: 1 / rate / length of the answer, averaged over the answers of the
    batch."""
    answered_BT = labels_BT != IGNORE
    lengths_BR = torch.zeros(
        labels_BT.shape[0], int(branches_BT.max()) + 1, device=labels_BT.device
    )
    lengths_BR.scatter_add_(1, branches_BT, answered_BT.float())
    lengths_BT = lengths_BR.gather(1, branches_BT).clamp(min=1)
    return corrupted.masked_BT / corrupted.rate_BT / lengths_BT / (lengths_BR > 0).sum()


def mean_weights(corrupted: MaskedBatch, labels_BT: Tensor, branches_BT: Tensor) -> Tensor:
    """LaViDa (arXiv 2505.16839) as released: the plain mean over hidden positions, whatever their
    rate."""
    return corrupted.masked_BT / corrupted.masked_BT.sum().clamp(min=1)


def uniform_times(t: Tensor) -> Tensor:
    """All times alike."""
    return t


def late_times(t: Tensor) -> Tensor:
    """Late times more often: short answers are mostly decided from a fully masked canvas."""
    return t.sqrt()


def last_time(t: Tensor) -> Tensor:
    """The last time alone: all is hidden, as where a scaffold of bounded choices is decided in one
    step."""
    return torch.ones_like(t)


@dataclass(frozen=True)
class Weighting:
    """How times are drawn, from uniform ones, and what a token that is hidden at its time
    weighs."""

    times: Callable[[Tensor], Tensor]
    weights: Callable[[MaskedBatch, Tensor, Tensor], Tensor]
    bound: bool  # whether its mean is an upper bound on the negative log-likelihood, a token

    def __call__(self, corrupted: MaskedBatch, labels_BT: Tensor, branches_BT: Tensor) -> Tensor:
        """Weights (B, T)."""
        return self.weights(corrupted, labels_BT, branches_BT)


WEIGHTINGS: dict[str, Weighting] = {
    "pretraining": Weighting(uniform_times, pretraining_weights, bound=True),
    "response": Weighting(uniform_times, response_weights, bound=True),
    "mean": Weighting(uniform_times, mean_weights, bound=False),
    "late_mean": Weighting(late_times, mean_weights, bound=False),
    "one_step": Weighting(last_time, mean_weights, bound=False),
}


def masked_cross_entropy(logits_SV: Tensor, labels_S: Tensor, weights_S: Tensor) -> Tensor:
    """Weighted sum of the cross-entropies at the hidden positions, in float32."""
    return (F.cross_entropy(logits_SV.float(), labels_S, reduction="none") * weights_S).sum()


def ctc_loss(logits_SV: Tensor, counts: Sequence[int], said_NU: Tensor, blank: int) -> Tensor:
    """CTC (Graves et al., 2006) between the outputs at the embeddings of audio and the words, per
    token of the words.

    Args:
        logits_SV: at the embeddings of all clips, in reading order.
        counts: embeddings of each clip; S in all.
        said_NU: tokens of each clip's words, `IGNORE` behind them. Words with more tokens than the
            clip has embeddings count nothing.
    """
    counts_N = torch.tensor(counts)
    real_NT = (torch.arange(int(counts_N.max())) < counts_N[:, None]).to(logits_SV.device)
    log_probs_NTV = logits_SV.new_zeros(*real_NT.shape, logits_SV.shape[1], dtype=torch.float32)
    log_probs_NTV[real_NT] = logits_SV.float().log_softmax(-1)
    lengths_N = (said_NU != IGNORE).sum(1)
    return F.ctc_loss(
        log_probs_NTV.transpose(0, 1),
        said_NU.clamp(min=0),
        counts_N,
        lengths_N,
        blank,
        zero_infinity=True,
    )


def fact_loss(logits_NF: Tensor, facts_NK: Tensor, sizes: Sequence[int]) -> tuple[Tensor, float]:
    """Cross-entropy of what references tell, averaged per fact and then over the facts, and the
    share told right.

    Some facts are known of nearly every reference and some of few, which may be the harder ones; so
    each counts alike.

    Args:
        logits_NF: of the values of all facts, side by side.
        facts_NK: the right value of each fact; `IGNORE` where it is open.
        sizes: number of values of each fact; F in all.
    """
    parts = logits_NF.float().split(list(sizes), dim=1)
    sums_K = torch.stack(
        [
            F.cross_entropy(part, facts_N, ignore_index=IGNORE, reduction="sum")
            for part, facts_N in zip(parts, facts_NK.unbind(1), strict=True)
        ]
    )
    told_NK = torch.stack([part.argmax(1) for part in parts], dim=1)
    known_NK = facts_NK != IGNORE
    counts_K = known_NK.sum(0)
    loss = (sums_K / counts_K.clamp(min=1)).sum() / (counts_K > 0).sum().clamp(min=1)
    right = ((told_NK == facts_NK) & known_NK).sum().item()
    return loss, right / max(1, int(counts_K.sum()))


def region_text_loss(
    logits_XM: Tensor, truth_XM: Tensor, shown_X: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """SigLIP's pairwise sigmoid loss (arXiv 2303.15343) between patches and phrases, and how many
    pairs are told right.

    A patch matches every phrase that is true of the thing it shows, and none where it shows the
    background. True pairs, false pairs on things and false pairs on background are averaged apart,
    since their numbers differ by far.

    Args:
        logits_XM: of each patch with each phrase.
        shown_X: True at patches that show a thing.
    """
    losses_XM = F.softplus(torch.where(truth_XM, -logits_XM, logits_XM))
    wrong_XM = ~truth_XM & shown_X[:, None]
    loss = (
        losses_XM[truth_XM].mean() + losses_XM[wrong_XM].mean() + 0.2 * losses_XM[~shown_X].mean()
    )
    said_XM = logits_XM.detach() > 0
    recall, specificity = said_XM[truth_XM].float().mean(), 1 - said_XM[wrong_XM].float().mean()
    return loss, {"recall": recall.item(), "specificity": specificity.item()}
