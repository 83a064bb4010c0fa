"""The feed-forward parts of a layer: one MLP, or a mixture of experts with its router.

An expert is an MLP like any other, so that quantization, adapters and saving know it already.
Sources: LLaDA-MoE (arXiv 2509.24389), LLaDA2.0 (arXiv 2512.15745).

Shapes: B batch, T positions, D width, N positions of all sequences, E experts, G groups of experts,
K experts of a position.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiff.config import ExpertsConfig


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, width: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, intermediate_size, bias=False)
        self.up_proj = nn.Linear(width, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        out_BTD: Tensor = self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
        return out_BTD


class Router(nn.Module):
    """Which experts a position goes to, and how much each of them counts.

    Not an `nn.Linear`: it stays in its own precision when layers are quantized, since a rounded
    score sends a position to another expert.
    """

    def __init__(self, width: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_experts, width))
        nn.init.normal_(self.weight, std=0.02)
        self.expert_bias: Tensor | None
        bias = torch.zeros(config.num_experts) if config.router_bias else None
        self.register_buffer("expert_bias", bias)

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (N, K) in float32 and numbers (N, K) of the experts."""
        raise NotImplementedError


class SoftmaxRouter(Router):
    """LLaDA-MoE's: the most probable experts with their probabilities, which need not sum to 1.

    A bias is part of the probability, in the choice and in the weight.
    """

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        probs_NE = F.linear(x_ND, self.weight).float().softmax(dim=-1)
        if self.expert_bias is not None:
            probs_NE = probs_NE + self.expert_bias.float()
        weights_NK, experts_NK = probs_NE.topk(self.config.experts_per_token, dim=-1)
        return weights_NK, experts_NK


class GroupedSigmoidRouter(Router):
    """LLaDA2's: the best experts of the best groups, with weights that sum to `scale`.

    A bias counts in the choice, not in the weight. All in float32.
    """

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        scores_NE = F.linear(x_ND.float(), self.weight.float()).sigmoid()
        biased_NE = scores_NE
        if self.expert_bias is not None:
            biased_NE = scores_NE + self.expert_bias.float()
        grouped_NGE = biased_NE.unflatten(1, (config.num_groups, -1))
        # A group is as good as its two best experts together; those of the others are out.
        best = min(2, grouped_NGE.shape[-1])
        groups_NG = grouped_NGE.topk(best, dim=-1).values.sum(-1)
        kept_NK = groups_NG.topk(config.groups_per_token, dim=-1).indices
        out_NG = torch.ones_like(groups_NG, dtype=torch.bool).scatter(1, kept_NK, False)
        biased_NE = grouped_NGE.masked_fill(out_NG[..., None], -torch.inf).flatten(1)
        experts_NK = biased_NE.topk(config.experts_per_token, dim=-1).indices
        weights_NK = scores_NE.gather(1, experts_NK)
        if config.experts_per_token > 1:
            weights_NK = weights_NK / (weights_NK.sum(-1, keepdim=True) + 1e-20)
        return weights_NK * config.scale, experts_NK


ROUTERS: dict[str, type[Router]] = {
    "softmax": SoftmaxRouter,
    "grouped_sigmoid": GroupedSigmoidRouter,
}


class SparseMoE(nn.Module):
    """A few experts for each position, chosen by a router, and one that all go through."""

    def __init__(self, width: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.gate = ROUTERS[config.router](width, config)
        sizes = [config.intermediate_size] * config.num_experts
        self.experts = nn.ModuleList(MLP(width, size) for size in sizes)
        self.shared_expert: MLP | None = None
        if config.shared_intermediate_size:
            self.shared_expert = MLP(width, config.shared_intermediate_size)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.flatten(0, -2)
        weights_NK, experts_NK = self.gate(x_ND)
        out_ND = torch.zeros_like(x_ND)
        # In the order of the experts, so that each sees the positions that chose it in one piece;
        # how many these are is the one thing that the host must be told.
        chosen = experts_NK.flatten()
        order = chosen.argsort(stable=True)
        counts = chosen.bincount(minlength=len(self.experts)).tolist()
        rows = (order // experts_NK.shape[1]).split(counts)
        weights = weights_NK.flatten()[order].split(counts)
        for number, count in enumerate(counts):
            if count:
                made = self.experts[number](x_ND[rows[number]]) * weights[number][:, None]
                out_ND.index_add_(0, rows[number], made.to(out_ND.dtype))
        if self.shared_expert is not None:
            out_ND = out_ND + self.shared_expert(x_ND)
        return out_ND.view_as(x_BTD)
