"""From Whisper's features to the backbone's width: joined frames and two layers, or DIFFA's dual
adapter.

Sources: frame stacking as in Ultravox (fixie-ai/ultravox) and Voxtral (arXiv 2507.13264);
`DualAdapter` is DIFFA (arXiv 2507.18452, NKU-HLT/DIFFA): a strided convolution for what is said,
queries over several layers for how.

Shapes: N windows, T encoder frames, D their width, Q queries, E width of the backbone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from mmdiff.config import AudioConfig


class StackConnector(nn.Module):
    """Every `frames_per_token` frames side by side (zeros behind the last), a norm, and two layers
    with GELU."""

    def __init__(self, config: AudioConfig, out_features: int) -> None:
        super().__init__()
        self.stack = config.frames_per_token
        width = config.hidden_size * self.stack
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(
            nn.Linear(width, out_features), nn.GELU(), nn.Linear(out_features, out_features)
        )

    def forward(self, states: Sequence[Tensor], valid_NT: Tensor) -> list[Tensor]:
        """The embeddings (tokens, E) of each window."""
        features_NTD = pad(
            states[-1] * valid_NT[..., None], (0, 0, 0, -states[-1].shape[1] % self.stack)
        )
        stacked = features_NTD.reshape(len(features_NTD), -1, self.stack * features_NTD.shape[2])
        joined = self.layers(self.norm(stacked))
        return _cut(joined, (valid_NT.sum(1) + self.stack - 1) // self.stack)


class DualAdapter(nn.Module):
    """Acoustic embeddings, a fixed number per window, and semantic ones, one for every
    `frames_per_token` frames."""

    def __init__(self, config: AudioConfig, out_features: int) -> None:
        super().__init__()
        self.acoustic = AcousticAdapter(config, out_features)
        self.semantic = SemanticAdapter(config, out_features)

    def forward(self, states: Sequence[Tensor], valid_NT: Tensor) -> list[Tensor]:
        """The embeddings (queries + tokens, E) of each window."""
        *taps, features_NTD = states
        acoustic_NQE = self.acoustic(taps, valid_NT)
        semantic = self.semantic(features_NTD, valid_NT)
        return [torch.cat(both) for both in zip(acoustic_NQE, semantic, strict=True)]


class SemanticAdapter(nn.Module):
    """Two convolutions, the second with a stride, and two layers; frames behind the last whole
    token are dropped."""

    def __init__(self, config: AudioConfig, out_features: int) -> None:
        super().__init__()
        width, self.stride = config.hidden_size, config.frames_per_token
        self.conv = nn.Sequential(
            nn.Conv1d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv1d(width, width * self.stride, 3, stride=self.stride, padding=1),
        )
        self.layers = nn.Sequential(
            nn.Linear(width * self.stride, width),
            nn.ReLU(),
            nn.Linear(width, out_features),
            nn.ReLU(),
            nn.LayerNorm(out_features),
        )

    def forward(self, features_NTD: Tensor, valid_NT: Tensor) -> list[Tensor]:
        """The embeddings (tokens, E) of each window."""
        counts_N = valid_NT.sum(1) // self.stride
        length = int(counts_N.max()) * self.stride
        whole_NT = torch.arange(length, device=counts_N.device) < counts_N[:, None] * self.stride
        first, activation, second = self.conv
        hidden_NDT = first((features_NTD[:, :length] * whole_NT[..., None]).transpose(1, 2))
        joined_NDT = second(activation(hidden_NDT) * whole_NT[:, None])
        embeds = self.layers(joined_NDT.transpose(1, 2))
        return _cut(embeds, counts_N)


class AcousticAdapter(nn.Module):
    """Learned queries for each tapped layer through one Q-former, mixed by weights of their own,
    projected."""

    def __init__(self, config: AudioConfig, out_features: int) -> None:
        super().__init__()
        width, queries = config.hidden_size, config.num_queries
        self.queries = nn.ParameterList(
            nn.Parameter(torch.randn(1, queries, width)) for _ in config.taps
        )
        self.layers = nn.ModuleList(QFormerLayer(config) for _ in range(config.qformer_layers))
        self.layer_weights = nn.Parameter(torch.zeros(queries, len(config.taps)))
        self.norm, self.proj = nn.LayerNorm(width), nn.Linear(width, out_features)

    def forward(self, taps: Sequence[Tensor], valid_NT: Tensor) -> Tensor:
        """Embeddings (N, Q, E)."""
        answers = []
        for query_1QD, states_NTD in zip(self.queries, taps, strict=True):
            hidden_NQD = query_1QD.expand(len(states_NTD), -1, -1)
            for layer in self.layers:
                hidden_NQD = layer(hidden_NQD, states_NTD, valid_NT)
            answers.append(hidden_NQD)
        mixed_NQD = (torch.stack(answers, dim=3) * self.layer_weights.softmax(1)[:, None]).sum(3)
        return self.proj(self.norm(mixed_NQD))


class QFormerLayer(nn.Module):
    """BERT's layer with cross-attention (BLIP-2, arXiv 2301.12597): the norm stands behind each
    sum."""

    def __init__(self, config: AudioConfig, eps: float = 1e-12) -> None:
        super().__init__()
        width = config.hidden_size
        self.self_attn = QFormerAttention(width, config.qformer_heads)
        self.cross_attn = QFormerAttention(width, config.qformer_heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.qformer_intermediate_size),
            nn.GELU(),
            nn.Linear(config.qformer_intermediate_size, width),
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=eps) for _ in range(3))

    def forward(self, hidden_NQD: Tensor, states_NTD: Tensor, valid_NT: Tensor) -> Tensor:
        hidden_NQD = self.norms[0](hidden_NQD + self.self_attn(hidden_NQD, hidden_NQD, None))
        hidden_NQD = self.norms[1](
            hidden_NQD + self.cross_attn(hidden_NQD, states_NTD, valid_NT[:, None, None])
        )
        return self.norms[2](hidden_NQD + self.mlp(hidden_NQD))


class QFormerAttention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)

    def forward(self, hidden_NQD: Tensor, states_NTD: Tensor, mask_N11T: Tensor | None) -> Tensor:
        q = self._heads(self.q_proj(hidden_NQD))
        k = self._heads(self.k_proj(states_NTD))
        v = self._heads(self.v_proj(states_NTD))
        out_NHQK = scaled_dot_product_attention(q, k, v, attn_mask=mask_N11T)
        return self.o_proj(out_NHQK.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


def _cut(embeds_NTE: Tensor, counts_N: Tensor) -> list[Tensor]:
    """The first embeddings of each window, without those of its padding."""
    return [row[:count] for row, count in zip(embeds_NTE, counts_N.tolist(), strict=True)]


CONNECTORS = {"stack": StackConnector, "dual": DualAdapter}


def count_tokens(num_frames: int, config: AudioConfig) -> int:
    """Embeddings of one window of `num_frames` frames of 10 ms."""
    encoded = (num_frames + 1) // 2
    if config.connector == "dual":
        return config.num_queries + encoded // config.frames_per_token
    return -(-encoded // config.frames_per_token)
