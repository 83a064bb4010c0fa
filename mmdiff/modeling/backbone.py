"""LLaDA's bidirectional transformer (arXiv 2502.09992) with Llama's names: embeddings in, hidden
states out.

Left out: sampling, images and audio (they arrive as embeddings), what is kept between steps (see
kv_cache.py).

Shapes: B batch, T positions, Q positions whose states are wanted, S positions looked at, D width, H
heads, K head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from mmdiff.config import BackboneConfig
from mmdiff.modeling.attention import attention, rotary_tables, rotate
from mmdiff.modeling.moe import MLP, SparseMoE


class LayerKVCache(Protocol):
    """What a layer needs of a KV cache: it writes its new keys and values, and reads all of
    them."""

    def __call__(self, k_AHQK: Tensor, v_AHQK: Tensor) -> tuple[Tensor, Tensor]: ...


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32, cast back before the learned scale."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_BTD: Tensor) -> Tensor:
        x = x_BTD.float()
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return x.to(x_BTD.dtype) * self.weight


def _taken(x: Tensor, wanted_BQ: Tensor | None) -> Tensor:
    """Each sequence's wanted positions of (B, ..., T, X)."""
    if wanted_BQ is None:
        return x
    # An index that says the same position for every head and every number of a vector.
    index = wanted_BQ.view(len(wanted_BQ), *[1] * (x.ndim - 3), -1, 1)
    return x.gather(-2, index.expand(*x.shape[:-2], -1, x.shape[-1]))


class Attention(nn.Module):
    """Multi-head (or grouped-query) attention with rotary positions."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        q_width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, q_width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(q_width, config.hidden_size, bias=config.o_bias)
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(
        self,
        x_BTD: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask_B1TS: Tensor | None,
        keep: LayerKVCache | None = None,
        wanted_BQ: Tensor | None = None,
    ) -> Tensor:
        """What the positions `wanted_BQ` see, (B, Q, D)."""
        cos_B1TK, sin_B1TK = rotary
        rotary_Q = (_taken(cos_B1TK, wanted_BQ), _taken(sin_B1TK, wanted_BQ))
        q_BHQK = self._heads(self.q_proj(_taken(x_BTD, wanted_BQ)))
        q_BHQK = rotate(self.q_norm(q_BHQK), rotary_Q)
        k_BHSK = rotate(self.k_norm(self._heads(self.k_proj(x_BTD))), rotary)
        v_BHSK = self._heads(self.v_proj(x_BTD))
        if keep is not None:
            k_BHSK, v_BHSK = keep(k_BHSK, v_BHSK)
        if mask_B1TS is not None:
            mask_B1TS = _taken(mask_B1TS, wanted_BQ)
        out_BHQK = attention(q_BHQK, k_BHSK, v_BHSK, mask_B1TS)
        out_BQD: Tensor = self.o_proj(out_BHQK.transpose(1, 2).flatten(2))
        return out_BQD

    def _heads(self, x_BTD: Tensor) -> Tensor:
        """(B, H, T, K)."""
        return x_BTD.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


def _mlp(config: BackboneConfig, number: int) -> nn.Module:
    """What a layer computes of each position alone: a mixture of experts, where there is one."""
    if config.experts is None or number in config.experts.dense_layers:
        return MLP(config.hidden_size, config.intermediate_size)
    return SparseMoE(config.hidden_size, config.experts)


class Block(nn.Module):
    """One pre-norm layer."""

    def __init__(self, config: BackboneConfig, number: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = _mlp(config, number)

    def forward(
        self,
        x_BTD: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask_B1TS: Tensor | None,
        keep: LayerKVCache | None = None,
        wanted_BQ: Tensor | None = None,
    ) -> Tensor:
        seen_BQD = self.self_attn(self.input_layernorm(x_BTD), rotary, mask_B1TS, keep, wanted_BQ)
        x_BQD = _taken(x_BTD, wanted_BQ) + seen_BQD
        out_BQD: Tensor = x_BQD + self.mlp(self.post_attention_layernorm(x_BQD))
        return out_BQD


class Backbone(nn.Module):
    """The transformer with its token embedding and its untied head."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList(Block(config, number) for number in layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self,
        x_BTD: Tensor,
        positions_BT: Tensor,
        mask_B1TS: Tensor | None = None,
        keeps: Sequence[LayerKVCache] = (),
        wanted_BQ: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, Q, D) after the last norm; `lm_head` turns the rows that matter into
        logits.

        Args:
            x_BTD: token, image and audio embeddings.
            positions_BT: rotary positions, counted per row.
            mask_B1TS: True where a position may look; None lets every position see every other (no
                causal mask).
            keeps: one per layer, where keys and values are kept; positions then see all that are
                kept there.
            wanted_BQ: each row's positions whose hidden states are wanted, all by default; the last
                layer computes no others.
        """
        config = self.config
        rotary = rotary_tables(
            positions_BT, config.rotary_dim, config.rope_theta, config.rope_ntk_factor
        )
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            keep = keeps[number] if keeps else None
            x_BTD = layer(x_BTD, rotary, mask_B1TS, keep, wanted_BQ if number == last else None)
        out_BQD: Tensor = self.norm(x_BTD)
        return out_BQD
