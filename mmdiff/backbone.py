"""LLaDA's bidirectional transformer (arXiv 2502.09992) with Llama's names: embeddings in, hidden states out.

Left out: sampling, pictures and sound (they arrive as embeddings), caches.

Shapes: B batch, T positions, D width, H heads, K head width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiff.attention import attention, rotary_tables, rotate
from mmdiff.config import BackboneConfig


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


class Attention(nn.Module):
    """Multi-head (or grouped-query) attention with rotary positions."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor], mask_B1TT: Tensor | None) -> Tensor:
        q_BHTK, k_BHTK, v_BHTK = (
            proj(x_BTD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        out_BHTK = attention(rotate(q_BHTK, rotary), rotate(k_BHTK, rotary), v_BHTK, mask_B1TT)
        out_BTD: Tensor = self.o_proj(out_BHTK.transpose(1, 2).flatten(2))
        return out_BTD


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        out_BTD: Tensor = self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
        return out_BTD


class Block(nn.Module):
    """One pre-norm layer."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor], mask_B1TT: Tensor | None) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rotary, mask_B1TT)
        out_BTD: Tensor = x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))
        return out_BTD


class Backbone(nn.Module):
    """The transformer with its token embedding and its untied head."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def init_weights(self) -> None:
        """Start from scratch: matrices that keep the scale of their input, embeddings of a similar scale."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                # The last matrix of each branch is smaller, since all layers add to the same sum.
                scale = len(self.layers) ** -0.5 if name.endswith(("o_proj", "down_proj")) else 1.0
                nn.init.normal_(module.weight, std=scale * module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.5)

    def forward(self, x_BTD: Tensor, positions_BT: Tensor, mask_B1TT: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, D) after the last norm; `lm_head` turns the rows that matter into logits.

        Args:
            x_BTD: token, picture and sound embeddings.
            positions_BT: rotary positions, counted per row.
            mask_B1TT: True where a position may look; None lets every position see every other (no causal mask).
        """
        config = self.config
        rotary = rotary_tables(positions_BT, config.head_dim, config.rope_theta, config.rope_ntk_factor)
        for layer in self.layers:
            x_BTD = layer(x_BTD, rotary, mask_B1TT)
        out_BTD: Tensor = self.norm(x_BTD)
        return out_BTD
