"""Rotary positions, the attention mask, and the one attention call.

Left out: key/value caches and kernels of our own; `scaled_dot_product_attention` chooses the
kernel.

Shapes: B batch, T positions, H heads, K head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.config import AttentionPattern


def rotary_tables(
    positions_BT: Tensor, head_dim: int, theta: float, ntk_factor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, 1, T, K) in float32 for the half-rotation form of RoPE (arXiv
    2104.09864).

    The sines of the left half are negated, as `rotate` needs them. `ntk_factor` > 1 raises the base
    so that positions up to that many times the trained length stay in range.
    """
    base = theta * ntk_factor ** (head_dim / (head_dim - 2))
    exponents = (
        torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions_BT.device) / head_dim
    )
    angles_BTK = positions_BT[..., None].float() * (base**-exponents)
    cos_B1TK, sin_B1TK = angles_BTK.cos()[:, None], angles_BTK.sin()[:, None]
    return torch.cat((cos_B1TK, cos_B1TK), dim=-1), torch.cat((-sin_B1TK, sin_B1TK), dim=-1)


def rotate(x_BHTK: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary positions in float32, give back the input's dtype.

    Where the tables are narrower than a head, what is beyond them passes through unchanged.
    """
    cos_B1TK, sin_B1TK = tables
    width = cos_B1TK.shape[-1]
    if width < x_BHTK.shape[-1]:
        turned = rotate(x_BHTK[..., :width], tables)
        return torch.cat((turned, x_BHTK[..., width:]), dim=-1)
    x = x_BHTK.float()
    left, right = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos_B1TK, torch.cat((right, left), dim=-1), sin_B1TK).to(x_BHTK.dtype)


def build_attention_mask(
    valid_BT: Tensor,
    segments_BT: Tensor,
    pattern: AttentionPattern,
    branches_BT: Tensor | None = None,
) -> Tensor | None:
    """The boolean mask (B, 1, T, T), True where row position may look at column position; None
    where all may.

    Padding is never looked at. "full" is bidirectional; "segment-causal" is bidirectional inside a
    segment (system, an image, user text, answer) and causal between segments, so a prompt's keys
    and values never depend on what follows. "block-causal" is the same where segments are blocks of
    one length, counted from the sequence's start. `branches_BT` packs several continuations behind
    a shared beginning: 0 marks the shared part, and a branch sees itself and the shared part only.
    """
    if pattern == "full" and branches_BT is None and bool(valid_BT.all()):
        return None
    mask_BTT = valid_BT[:, None, :].expand(-1, valid_BT.shape[1], -1)
    if pattern != "full":
        mask_BTT = mask_BTT & (segments_BT[:, None, :] <= segments_BT[:, :, None])
    if branches_BT is not None:
        same_BTT = branches_BT[:, None, :] == branches_BT[:, :, None]
        mask_BTT = mask_BTT & (same_BTT | (branches_BT == 0)[:, None, :])
    # A padding row must see something, or its softmax is not a number; nothing ever reads what it
    # computes.
    itself_TT = torch.eye(valid_BT.shape[1], dtype=torch.bool, device=valid_BT.device)
    return (mask_BTT | itself_TT)[:, None]


def attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, mask_B1TT: Tensor | None) -> Tensor:
    """Softmax attention without a causal mask; fewer key heads than query heads are shared in
    groups (GQA)."""
    return F.scaled_dot_product_attention(
        q_BHTK, k_BHTK, v_BHTK, attn_mask=mask_B1TT, enable_gqa=q_BHTK.shape[1] != k_BHTK.shape[1]
    )
