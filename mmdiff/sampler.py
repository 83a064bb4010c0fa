"""The one denoising loop: a generator of canvases, with rules that choose positions and guidance as a wrapped model.

Semantics are LLaDA's (arXiv 2502.09992; ML-GSAI/LLaDA `generate.py`): a quota of commits per step, blocks from left to
right, committed tokens are final. Added: a row stops as soon as everything before its end token is decided, every row
has its own seed, and a row never depends on its neighbours. Left out: caches, and rules that take commits back.

Shapes: B rows, A rows still at work, G canvas positions, N eligible positions of the active rows in reading order,
V vocabulary, S steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.config import DecodingConfig, TokenIds
from mmdiff.errors import MMDiffError
from mmdiff.schedule import commit_quota, even_shares


class Predict(Protocol):
    """A model with its prompts: logits (N, V) at the True positions of `select_AG`, for the canvas ids of some rows."""

    def __call__(self, ids_AG: Tensor, rows_A: Tensor, select_AG: Tensor) -> Tensor: ...


Rule = Callable[[Tensor, Tensor, Tensor], Tensor]  # (score_AG, eligible_AG, quota_A) -> positions_AG


def quota_rule(score_AG: Tensor, eligible_AG: Tensor, quota_A: Tensor) -> Tensor:
    """LLaDA: each row's best positions, as many as its quota says; ties go to the lowest index."""
    order_AG = score_AG.masked_fill(~eligible_AG, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank_G = torch.arange(order_AG.shape[1], device=order_AG.device)
    rank_AG = torch.empty_like(order_AG).scatter_(1, order_AG, rank_G.expand_as(order_AG))
    return (rank_AG < quota_A[:, None]) & eligible_AG


def threshold_rule(threshold: float) -> Rule:
    """Fast-dLLM (arXiv 2505.22618): every position at least this confident, and always the best one."""

    def rule(score_AG: Tensor, eligible_AG: Tensor, quota_A: Tensor) -> Tensor:
        best_AG = quota_rule(score_AG, eligible_AG, torch.ones_like(quota_A))
        return best_AG | ((score_AG >= threshold) & eligible_AG)

    return rule


def guided(conditional: Predict, unconditional: Predict, scale: float) -> Predict:
    """Classifier-free guidance (arXiv 2207.12598) in LLaDA's form: u + (scale + 1)(c - u)."""

    def predict(ids_AG: Tensor, rows_A: Tensor, select_AG: Tensor) -> Tensor:
        with_prompt_NV = conditional(ids_AG, rows_A, select_AG)
        without_NV = unconditional(ids_AG, rows_A, select_AG)
        return without_NV + (scale + 1) * (with_prompt_NV - without_NV)

    return predict


def denoise(
    predict: Predict,
    canvas: Canvas,
    decoding: DecodingConfig,
    tokens: TokenIds,
    seeds: Sequence[int] | None = None,
) -> Iterator[Canvas]:
    """Yield the canvas after every step until all rows are finished.

    Args:
        predict: logits at the positions that may be committed now; nothing else is computed.
        canvas: what is fixed and what is open.
        decoding: its `gen_length` is not read here, the canvas has its own.
        seeds: one per row, for temperature and random order; row number by default.

    Raises:
        MMDiffError: fewer steps than blocks, or another number of seeds than of rows.
    """
    device, num_rows = canvas.ids_BG.device, canvas.ids_BG.shape[0]
    seeds = range(num_rows) if seeds is None else seeds
    if len(seeds) != num_rows:
        raise MMDiffError(f"{len(seeds)} seeds for {num_rows} rows; give one seed per row")
    rule = quota_rule if decoding.threshold is None else threshold_rule(decoding.threshold)
    quotas_BS = plan_quotas(canvas, decoding)
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    banned = torch.tensor(tokens.never, dtype=torch.long, device=device)
    end_ids = (tokens.eos, tokens.eot) if decoding.stop else ()
    for step in range(canvas.ids_BG.shape[1]):
        rows_A = (~canvas.finished(end_ids)).nonzero()[:, 0]
        if len(rows_A) == 0:
            return
        part = canvas.take(rows_A)
        eligible_AG = part.eligible(decoding.block_length)
        logits_NV = predict(part.ids_BG, rows_A, eligible_AG).float().index_fill(1, banned, -torch.inf)
        counts = dict(zip(rows_A.tolist(), eligible_AG.sum(dim=1).tolist(), strict=True))
        row_draws = [(draws[row], n) for row, n in counts.items()]
        ids_N, confidence_N = sample(logits_NV, tokens.mask, decoding.temperature, row_draws)
        ids_AG = part.ids_BG.masked_scatter(eligible_AG, ids_N)
        confidence_AG = part.confidence_BG.masked_scatter(eligible_AG, confidence_N)
        score_AG = confidence_AG
        if decoding.order == "random":
            lots_N = torch.cat([torch.rand(n, generator=generator) for generator, n in row_draws]).to(device)
            score_AG = confidence_AG.masked_scatter(eligible_AG, lots_N)
        here_AG = rule(score_AG, eligible_AG, quotas_BS[rows_A, min(step, quotas_BS.shape[1] - 1)])
        canvas = canvas.commit(rows_A, here_AG, ids_AG, confidence_AG, step)
        yield canvas


def sample(
    logits_NV: Tensor, mask_id: int, temperature: float, draws: Sequence[tuple[torch.Generator, int]]
) -> tuple[Tensor, Tensor]:
    """Draw an id for every position, never the mask, and that id's un-noised probability as its confidence.

    The mask's own probability stays in the sum, as in LLaDA: a position that would rather stay masked is less sure.

    The noise is added in float64 as minus the logarithm of an exponential draw, which does not saturate: float32
    uniforms would cut off the tail (arXiv 2409.02908).

    Args:
        draws: one generator and its number of positions per row, so that a row's noise depends on its seed alone.
    """
    noisy_NV = logits_NV.index_fill(1, torch.tensor(mask_id, device=logits_NV.device), -torch.inf)
    if temperature > 0:
        noise_NV = torch.cat([
            torch.empty(n, logits_NV.shape[1], dtype=torch.float64).exponential_(generator=generator)
            for generator, n in draws
        ]).log().neg()
        noisy_NV = noisy_NV.double() + temperature * noise_NV.to(logits_NV.device)
    ids_N = noisy_NV.argmax(dim=-1)
    log_probs_N = logits_NV.gather(1, ids_N[:, None])[:, 0] - logits_NV.logsumexp(dim=-1)
    return ids_N, log_probs_N.exp()


def plan_quotas(canvas: Canvas, decoding: DecodingConfig) -> Tensor:
    """How many positions each row commits at each step (B, S): LLaDA's even shares within every block.

    Steps are shared evenly over the blocks; neither need divide the other.
    """
    blocks = canvas.open_BG.split(decoding.block_length, dim=1)
    if decoding.steps < len(blocks) and decoding.threshold is None:
        raise MMDiffError(
            f"steps={decoding.steps} is fewer than the {len(blocks)} blocks of length {decoding.block_length}; "
            f"raise steps or block_length"
        )
    block_steps = [max(1, share) for share in even_shares(decoding.steps, len(blocks))]
    rows = [
        [quota for block, steps in zip(row, block_steps, strict=True) for quota in commit_quota(block, steps)]
        for row in torch.stack([block.sum(dim=1) for block in blocks], dim=1).tolist()
    ]
    longest = max(map(len, rows), default=0)
    padded = [row + [0] * (max(longest, 1) - len(row)) for row in rows]
    return torch.tensor(padded, device=canvas.ids_BG.device)

