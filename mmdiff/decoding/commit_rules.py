"""Commit rules: which masked positions a step unmasks, and which it remasks. Functions and small
classes, chosen by name.

An order scores the positions, and a rule says how many of the best are committed. All of them
commit at least one position of each sequence, and ties go to the lowest index. Rules that take
commits back (`RemaskingRule`) commit more than they take back at every step, so they end.

Shapes: A active sequences, G canvas positions, N eligible positions in reading order, M decided
ones that a rule looks back at, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.config import DecodingConfig
from mmdiff.decoding.canvas import Canvas
from mmdiff.decoding.schedule import SCHEDULES


@dataclass(frozen=True)
class Proposal:
    """What the model says about the eligible positions at a step."""

    canvas: Canvas  # of the active sequences, before the step
    eligible_AG: Tensor
    logits_NV: Tensor  # at the eligible positions; float32, un-noised, banned ids at minus infinity
    ids_N: Tensor  # what would be committed
    quota_A: Tensor  # how many positions the schedule commits
    steps_A: Tensor  # the number of each sequence's step
    block_length: int
    draws: Sequence[tuple[torch.Generator, int]]  # of each sequence, and how many are eligible
    names: Sequence[int]  # of the sequences; each keeps its name
    decided_AG: Tensor  # decided positions of the block, where a rule reads them
    decided_ids_M: Tensor  # the ids there
    decided_MV: Tensor  # the logits there, as `RemaskingRule.needs` says
    mask_id: int = 0
    # Positions of each first block that lie before the canvas, and steps since each sequence came
    # into its block; of one number for all by default.
    offset_A: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.long))
    block_steps_A: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.long))

    def scatter(self, values_N: Tensor, elsewhere: float = -torch.inf) -> Tensor:
        """Values at the eligible positions, (A, G)."""
        grid_AG = torch.full(self.eligible_AG.shape, elsewhere, device=values_N.device)
        # The N values follow each other in reading order, as the eligible positions do.
        return grid_AG.masked_scatter(self.eligible_AG, values_N.float())

    @property
    def chosen_AG(self) -> Tensor:
        """The ids of the canvas, with those that would be committed in place."""
        return self.canvas.ids_BG.masked_scatter(self.eligible_AG, self.ids_N)

    def commits(self, after: Canvas) -> Tensor:
        """How many positions (A, 1) of each sequence are decided in `after`."""
        return (self.eligible_AG & ~after.open_BG).sum(1, keepdim=True)

    @cached_property
    def block_AG(self) -> Tensor:
        """Positions of each sequence's current block."""
        first_A1 = self.eligible_AG.int().argmax(1, keepdim=True)
        blocks_AG = self.places_AG // self.block_length
        return blocks_AG == blocks_AG.gather(1, first_A1)

    @property
    def places_AG(self) -> Tensor:
        """Every position of the canvas, counted from the start of its first block."""
        places_G = torch.arange(self.eligible_AG.shape[1], device=self.eligible_AG.device)
        return (places_G + self.offset_A[:, None]).expand_as(self.eligible_AG)

    @cached_property
    def uniform_N(self) -> Tensor:
        """Uniform draws of each sequence's own seed."""
        drawn = [torch.rand(count, generator=generator) for generator, count in self.draws]
        return torch.cat(drawn).to(self.ids_N.device)

    @cached_property
    def log_probs_NV(self) -> Tensor:
        return self.logits_NV.log_softmax(-1)

    @cached_property
    def confidence_AG(self) -> Tensor:
        """Probability of each id that would be committed."""
        chosen_N = self.logits_NV.gather(1, self.ids_N[:, None])[:, 0]
        return self.scatter((chosen_N - self.logits_NV.logsumexp(-1)).exp())

    @cached_property
    def entropy_AG(self) -> Tensor:
        """In nats; infinite where nothing is eligible."""
        # A banned id has a logarithm of minus infinity, which times 0 is not a number.
        terms_NV = self.log_probs_NV.exp() * self.log_probs_NV.clamp(min=-1e9)
        return self.scatter(-terms_NV.sum(-1), torch.inf)

    @cached_property
    def margin_AG(self) -> Tensor:
        """By how much the likeliest id's probability exceeds the next one's."""
        best_N2 = self.log_probs_NV.topk(2, dim=-1).values.exp()
        return self.scatter(best_N2[:, 0] - best_N2[:, 1])


Order = Callable[[Proposal], Tensor]  # scores (A, G), the best first

ORDERS: dict[str, Order] = {
    # LLaDA's name: those of low confidence stay masked.
    "low_confidence": lambda votes: votes.confidence_AG,
    "margin": lambda votes: votes.margin_AG,  # Dream's topk_margin (arXiv 2508.15487)
    "entropy": lambda votes: -votes.entropy_AG,  # Dream's entropy
    "random": lambda votes: votes.scatter(votes.uniform_N),
    "left_to_right": lambda votes: (
        -votes.scatter(torch.arange(len(votes.ids_N), device=votes.ids_N.device), torch.inf)
    ),
}


class Rule(Protocol):
    def __call__(self, votes: Proposal, score_AG: Tensor) -> Tensor:
        """The positions (A, G) that are committed, eligible all."""


@runtime_checkable
class RemaskingRule(Rule, Protocol):
    """A rule that takes commits back, fewer than it makes. It lives for one generation and may
    remember."""

    # Which logits it wants at the block's decided positions: as they stand, as if each were hidden,
    # or none.
    needs: Literal["decided", "hidden"] | None

    def remask(self, votes: Proposal, after: Canvas) -> Tensor:
        """The positions (A, G) that are open again, now that those of the step are committed in
        `after`."""


@runtime_checkable
class EditingRule(Rule, Protocol):
    """A rule that replaces what it committed. It lives for one generation and may remember."""

    needs: Literal["decided"]  # the logits at the block's decided positions, as they stand

    def edit(self, votes: Proposal, after: Canvas) -> tuple[Canvas, Tensor]:
        """`after` with other tokens where it wants them, and which sequences (A) stay in their
        block."""


@dataclass(frozen=True)
class Quota:
    """LLaDA (arXiv 2502.09992): as many of the best as the schedule says."""

    def __call__(self, votes: Proposal, score_AG: Tensor) -> Tensor:
        return _first(score_AG, votes.eligible_AG, votes.quota_A[:, None])


@dataclass(frozen=True)
class Threshold:
    """Fast-dLLM (arXiv 2505.22618): every position at least this confident, and always the best
    one."""

    threshold: float = 0.9

    def __call__(self, votes: Proposal, score_AG: Tensor) -> Tensor:
        sure_AG = (votes.confidence_AG >= self.threshold) & votes.eligible_AG
        return sure_AG | _first(score_AG, votes.eligible_AG, 1)


@dataclass(frozen=True)
class Factor:
    """Fast-dLLM's Theorem 1: the n most confident while each has a confidence of at least 1 -
    factor / (n + 1)."""

    factor: float = 1.0

    def __call__(self, votes: Proposal, score_AG: Tensor) -> Tensor:
        ranks_AG = _ranks(votes.confidence_AG, votes.eligible_AG)
        safe_AG = votes.confidence_AG >= 1 - self.factor / (ranks_AG + 2)
        return _run_of_best(ranks_AG, safe_AG, votes.eligible_AG)


@dataclass(frozen=True)
class EntropyBounded:
    """EB-Sampler (arXiv 2505.24857): the most certain ones, while the entropies of those before sum
    to gamma nats."""

    gamma: float = 0.1

    def __call__(self, votes: Proposal, score_AG: Tensor) -> Tensor:
        ranks_AG = _ranks(-votes.entropy_AG, votes.eligible_AG)
        entropy_AG = votes.entropy_AG.masked_fill(~votes.eligible_AG, 0.0)
        # Into the order of the ranks, where those before can be summed, and back.
        sorted_AG = torch.zeros_like(entropy_AG).scatter_(1, ranks_AG, entropy_AG)
        before_AG = (sorted_AG.cumsum(1) - sorted_AG).gather(1, ranks_AG)
        return _run_of_best(ranks_AG, before_AG <= self.gamma, votes.eligible_AG)


@dataclass(frozen=True)
class Dilated:
    """DUS (arXiv 2506.19037): far apart first, whatever the confidence; each round halves the
    distance in a block."""

    base: int = 2

    def __call__(self, votes: Proposal, score_AG: Tensor) -> Tensor:
        places_AG = votes.places_AG % votes.block_length
        round_AG, stride = torch.zeros_like(places_AG), votes.block_length
        while stride > 1:
            stride = max(1, stride // self.base)
            round_AG += places_AG % stride != 0
        # Later than any round, so that only eligible positions count for the earliest one.
        round_AG = round_AG.masked_fill(~votes.eligible_AG, votes.block_length)
        return votes.eligible_AG & (round_AG == round_AG.amin(1, keepdim=True))


@dataclass(frozen=True)
class LocalDeterminism:
    """LocalLeap (arXiv 2510.07081): confident anchors, and fairly confident positions near one."""

    anchor: float = 0.9
    near: float = 0.75
    radius: int = 4

    def __call__(self, votes: Proposal, score_AG: Tensor) -> Tensor:
        anchors_AG = (votes.confidence_AG >= self.anchor) & votes.eligible_AG
        width = 2 * self.radius + 1
        around_A1G = F.max_pool1d(anchors_AG[:, None].float(), width, 1, self.radius)
        nearby_AG = (around_A1G[:, 0] > 0) & (votes.confidence_AG >= self.near) & votes.eligible_AG
        return _first(score_AG, votes.eligible_AG, 1) | anchors_AG | nearby_AG


@dataclass(frozen=True)
class FirstHitting:
    """Zheng et al. (arXiv 2409.02908): one position at a time, any with the same chance."""

    def __call__(self, votes: Proposal, score_AG: Tensor) -> Tensor:
        return _first(votes.scatter(votes.uniform_N), votes.eligible_AG, 1)


@dataclass(frozen=True)
class RunningConfidence:
    """RCR of MDPO (arXiv 2508.13148): everything is committed, and the least confident is opened
    again.

    As much stays as the schedule says. A token has the confidence of its last commit; finished
    blocks stay as they are.
    """

    needs: Literal["decided", "hidden"] | None = None

    def __call__(self, votes: Proposal, score_AG: Tensor) -> Tensor:
        return votes.eligible_AG

    def remask(self, votes: Proposal, after: Canvas) -> Tensor:
        made_AG = (after.step_BG >= 0) & votes.block_AG
        count_A1 = votes.eligible_AG.sum(1, keepdim=True) - votes.quota_A[:, None]
        return _first(-after.confidence_BG, made_AG, count_A1)


class Saber:
    """Saber (arXiv 2510.18165): the two best and all above the mean confidence so far; then some
    older ones go back.

    For every eight commits one is taken back, at least one at a step of two or more: in the block,
    those whose likeliest id, with everything else in view, lost most probability since the step
    before.
    """

    needs: Literal["decided", "hidden"] | None = "decided"

    def __init__(self, least: int = 2) -> None:
        self.least = least
        # Of each sequence, the likeliest ids' probabilities (G) at the step before.
        self.top: dict[int, Tensor] = {}

    def __call__(self, votes: Proposal, score_AG: Tensor) -> Tensor:
        made_AG = votes.canvas.step_BG >= 0
        sums_A = (votes.canvas.confidence_BG * made_AG).sum(1)
        mean_A = torch.where(made_AG.any(1), sums_A / made_AG.sum(1).clamp(min=1), 1.0)
        best_AG = _first(score_AG, votes.eligible_AG, self.least)
        return best_AG | ((votes.confidence_AG > mean_A[:, None]) & votes.eligible_AG)

    def remask(self, votes: Proposal, after: Canvas) -> Tensor:
        top_AG = votes.scatter(votes.log_probs_NV.amax(-1).exp(), 0.0)
        # The eligible positions are filled in; these are the decided ones, in reading order too.
        decided_M = votes.decided_MV.softmax(-1).amax(-1)
        top_AG = top_AG.masked_scatter(votes.decided_AG, decided_M)
        drop_AG = -top_AG
        # Sequences may have become longer since, or be new.
        for drop_G, name in zip(drop_AG, votes.names, strict=True):
            before_G = self.top.get(name, top_AG[0, :0])
            drop_G[: len(before_G)] += before_G[: len(drop_G)]
        self.top = dict(zip(votes.names, top_AG, strict=True))
        commits_A1 = votes.commits(after)
        count_A1 = ((commits_A1 + 7) // 8).clamp(min=self.least // 2)
        return _first(drop_AG, votes.decided_AG, torch.minimum(count_A1, commits_A1 - 1))


@dataclass(frozen=True)
class WideInNarrowOut:
    """WINO (arXiv 2507.18578): commit at little confidence, take back what the others do not bear
    out.

    A verify lane tells how likely each decided token of the block is with that token hidden and all
    others in view; those below `keep` go back, the least likely first, and fewer than are committed
    at the same step.
    """

    take: float = 0.6
    keep: float = 0.9
    share: float = 0.7  # of the eligible positions that are committed at most,
    least: int = 5  # but this many are always allowed,
    most: int = 20  # and no more than that
    needs: Literal["decided", "hidden"] | None = "hidden"

    def __call__(self, votes: Proposal, score_AG: Tensor) -> Tensor:
        share_A1 = self.share * votes.eligible_AG.sum(1, keepdim=True)
        most_A1 = share_A1.long().clamp(self.least, self.most)
        sure_AG = votes.eligible_AG & (votes.confidence_AG > self.take)
        best_AG = _first(score_AG, votes.eligible_AG, 1)
        return best_AG | _first(votes.confidence_AG, sure_AG, most_A1)

    def remask(self, votes: Proposal, after: Canvas) -> Tensor:
        ids_M1 = votes.decided_ids_M[:, None]
        likely_M = votes.decided_MV.log_softmax(-1).gather(1, ids_M1)[:, 0].exp()
        # Probability 1 where nothing is decided, so that nothing there is doubted.
        likely_AG = torch.ones_like(votes.confidence_AG).masked_scatter(votes.decided_AG, likely_M)
        doubted_AG = votes.decided_AG & (likely_AG < self.keep)
        return _first(-likely_AG, doubted_AG, votes.commits(after) - 1)


@dataclass(frozen=True)
class ThresholdOrQuota:
    """LLaDA2.0 (arXiv 2512.15745): all above the threshold where these are at least the step's
    quota, else as many of the best as the quota says.

    Quotas are those of a whole block, whatever the prompt holds of it.
    """

    threshold: float
    quotas: tuple[int, ...]  # of a block's steps

    def __call__(self, votes: Proposal, score_AG: Tensor) -> Tensor:
        quotas = torch.tensor((*self.quotas, 1), device=score_AG.device).clamp(min=1)
        quota_A = quotas[votes.block_steps_A.clamp(max=len(self.quotas))]
        return _sure_or_best(votes, score_AG, self.threshold, quota_A[:, None])


class Editing:
    """LLaDA2.1 (arXiv 2602.08676): tokens of the block are also replaced, where another one has
    become more probable than a threshold.

    A block is left when it is complete and a further step replaces nothing, or after `most` of such
    further steps.
    """

    needs: Literal["decided"] = "decided"

    def __init__(self, threshold: float, editing_threshold: float, least: int, most: int) -> None:
        self.threshold, self.editing_threshold = threshold, editing_threshold
        self.least, self.most = least, most
        self.further: dict[int, Tensor] = {}  # of each sequence, its steps in a complete block

    def __call__(self, votes: Proposal, score_AG: Tensor) -> Tensor:
        return _sure_or_best(votes, score_AG, self.threshold, self.least)

    def edit(self, votes: Proposal, after: Canvas) -> tuple[Canvas, Tensor]:
        hidden = torch.tensor(votes.mask_id, device=votes.decided_MV.device)
        ids_M = votes.decided_MV.index_fill(1, hidden, -torch.inf).argmax(-1)
        probs_M = votes.decided_MV.log_softmax(-1).gather(1, ids_M[:, None])[:, 0].exp()
        replaced_M = (probs_M > self.editing_threshold) & (ids_M != votes.decided_ids_M)
        # The M decided positions follow each other in reading order, as in the grid.
        decided_AG = votes.decided_AG
        here_AG = torch.zeros_like(decided_AG).masked_scatter(decided_AG, replaced_M)
        ids_AG = after.ids_BG.masked_scatter(decided_AG, ids_M)
        sure_AG = after.confidence_BG.masked_scatter(decided_AG, probs_M)
        edited = after.commit(here_AG, ids_AG, sure_AG, votes.steps_A)
        was_open_A = votes.eligible_AG.any(1)
        is_open_A = (after.open_BG & votes.eligible_AG).any(1)
        none = torch.zeros_like(votes.steps_A[0])
        further_A = torch.stack([self.further.get(name, none) for name in votes.names]) + 1
        further_A = further_A.masked_fill(was_open_A, 0)
        self.further = dict(zip(votes.names, further_A, strict=True))
        settled_A = ~was_open_A & ~here_AG.any(1)
        return edited, is_open_A | (~settled_A & (further_A < self.most))


RULES: dict[str, Callable[[DecodingConfig], Rule]] = {
    "quota": lambda decoding: Quota(),
    "threshold": lambda decoding: Threshold(
        0.9 if decoding.threshold is None else decoding.threshold
    ),
    "factor": lambda decoding: Factor(decoding.factor),
    "entropy_bounded": lambda decoding: EntropyBounded(decoding.gamma),
    "dilated": lambda decoding: Dilated(),
    "local": lambda decoding: LocalDeterminism(),
    "first_hitting": lambda decoding: FirstHitting(),
    "running_confidence": lambda decoding: RunningConfidence(),
    "saber": lambda decoding: Saber(),
    "wino": lambda decoding: WideInNarrowOut(),
    "threshold_or_quota": lambda decoding: ThresholdOrQuota(
        0.95 if decoding.threshold is None else decoding.threshold, _block_quotas(decoding)
    ),
    "editing": lambda decoding: Editing(
        0.95 if decoding.threshold is None else decoding.threshold,
        decoding.editing_threshold,
        decoding.num_to_transfer,
        decoding.max_post_steps,
    ),
}


def rule_name(decoding: DecodingConfig) -> str:
    return decoding.rule or ("quota" if decoding.threshold is None else "threshold")


def make_rule(decoding: DecodingConfig) -> Rule:
    """The rule that the settings name, with the settings for it."""
    return RULES[rule_name(decoding)](decoding)


def _block_quotas(decoding: DecodingConfig) -> tuple[int, ...]:
    """How many positions of a whole block each of its steps commits."""
    blocks = -(-decoding.gen_length // decoding.block_length)
    steps = max(1, decoding.steps // blocks)
    return tuple(SCHEDULES[decoding.schedule](decoding.block_length, steps))


def _sure_or_best(
    votes: Proposal, score_AG: Tensor, threshold: float, count_A1: Tensor | int
) -> Tensor:
    """All above the threshold where these are at least `count_A1`, else that number of the best."""
    sure_AG = (votes.confidence_AG > threshold) & votes.eligible_AG
    best_AG = _first(score_AG, votes.eligible_AG, count_A1)
    return torch.where(sure_AG.sum(1, keepdim=True) >= count_A1, sure_AG, best_AG)


def _ranks(score_AG: Tensor, eligible_AG: Tensor) -> Tensor:
    """The place of each position from 0, the best eligible one first; ties in reading order."""
    score_AG = score_AG.masked_fill(~eligible_AG, -torch.inf)
    order_AG = score_AG.argsort(dim=1, descending=True, stable=True)
    places_G = torch.arange(order_AG.shape[1], device=order_AG.device)
    # The inverse of the order: where a position stands in it.
    return torch.empty_like(order_AG).scatter_(1, order_AG, places_G.expand_as(order_AG))


def _first(score_AG: Tensor, eligible_AG: Tensor, count_A1: Tensor | int) -> Tensor:
    return (_ranks(score_AG, eligible_AG) < count_A1) & eligible_AG


def _run_of_best(ranks_AG: Tensor, allowed_AG: Tensor, eligible_AG: Tensor) -> Tensor:
    """The best positions up to the first that is not allowed, and always the best one."""
    allowed_AG = (allowed_AG & eligible_AG) | ((ranks_AG == 0) & eligible_AG)
    # Into the order of the ranks, where the run ends at the first zero of a product, and back.
    sorted_AG = torch.zeros_like(allowed_AG).scatter_(1, ranks_AG, allowed_AG)
    return sorted_AG.cumprod(1).bool().gather(1, ranks_AG)
