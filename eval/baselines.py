"""The obvious versions that `speed.py` measures against: LLaDA's loop as described, and caches that
grow by joining.

Written from the descriptions in arXiv 2502.09992 and 2505.22618. They do what the published loops
do at temperature 0 and nothing more; `tests/eval/test_speed.py` holds that they give the ids of the
sampler.

Shapes: B rows, T positions, D width, H heads, K head width, V vocabulary, G canvas positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiff.decoding.schedule import even_shares
from mmdiff.modeling.attention import attention, rotary_tables, rotate
from mmdiff.modeling.backbone import Attention, Backbone, Block
from mmdiff.modeling.moe import MLP

Pair = tuple[Tensor, Tensor]


@torch.inference_mode()
def llada_loop(
    backbone: Backbone, prompt_BT: Tensor, gen_length: int, block_length: int, steps: int, mask: int
) -> Tensor:
    """LLaDA's sampler: logits at every position, float64 softmax over all of them, top-k per row in
    a Python loop."""
    canvas_BG = torch.full((len(prompt_BT), gen_length), mask, device=prompt_BT.device)
    ids_BT, start = torch.cat((prompt_BT, canvas_BG), dim=1), prompt_BT.shape[1]
    positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
    blocks = gen_length // block_length
    for block in range(blocks):
        end = start + (block + 1) * block_length
        for quota in even_shares(block_length, steps // blocks):
            x_BTD, config = backbone.embed_tokens(ids_BT), backbone.config
            tables = rotary_tables(
                positions_BT, config.head_dim, config.rope_theta, config.rope_ntk_factor
            )
            for layer in backbone.layers:
                assert isinstance(layer, Block)
                q, k, v = _project(layer, x_BTD)
                x_BTD = _finish(
                    layer, x_BTD, attention(rotate(q, tables), rotate(k, tables), v, None)
                )
            _commit(ids_BT, backbone.lm_head(backbone.norm(x_BTD)), quota, end, mask)
    return ids_BT


@torch.inference_mode()
def joining_caches(
    backbone: Backbone,
    prompt_BT: Tensor,
    gen_length: int,
    block_length: int,
    steps: int,
    mask: int,
    dual: bool,
) -> Tensor:
    """Fast-dLLM's two caches in their obvious form: keys kept unrotated, joined and rotated anew at
    every step."""
    canvas_BG = torch.full((len(prompt_BT), gen_length), mask, device=prompt_BT.device)
    ids_BT, start = torch.cat((prompt_BT, canvas_BG), dim=1), prompt_BT.shape[1]
    blocks = gen_length // block_length
    for block in range(blocks):
        first, end = start + block * block_length, start + (block + 1) * block_length
        kept: list[Pair] = []
        for step, quota in enumerate(even_shares(block_length, steps // blocks)):
            if step == 0:
                logits_BTV, kept = _joined(backbone, ids_BT, [], [])
                _commit(ids_BT, logits_BTV, quota, end, mask)
                continue
            before = [(k[:, :, :first], v[:, :, :first]) for k, v in kept]
            after, part_BT = list[Pair](), ids_BT[:, first:]
            if dual:
                after = [(k[:, :, end:], v[:, :, end:]) for k, v in kept]
                part_BT = ids_BT[:, first:end]
            logits_BQV, _ = _joined(backbone, part_BT, before, after)
            _commit(part_BT, logits_BQV, quota, block_length, mask)
            ids_BT[:, first : first + part_BT.shape[1]] = part_BT
    return ids_BT


def _cached_length(layers: list[Pair]) -> int:
    if not layers:
        return 0
    return layers[0][0].shape[2]


def _concatenated(one: Pair, other: Pair) -> Pair:
    return torch.cat((one[0], other[0]), dim=2), torch.cat((one[1], other[1]), dim=2)


def _joined(
    backbone: Backbone, ids_BT: Tensor, before: list[Pair], after: list[Pair]
) -> tuple[Tensor, list[Pair]]:
    """Logits of these positions, and their unrotated keys and values."""
    config, x_BTD, made = backbone.config, backbone.embed_tokens(ids_BT), []
    first = _cached_length(before)
    length = first + ids_BT.shape[1] + _cached_length(after)
    positions_1T = torch.arange(length, device=ids_BT.device)[None]
    for number, layer in enumerate(backbone.layers):
        assert isinstance(layer, Block)
        q, k, v = _project(layer, x_BTD)
        made.append((k, v))
        if before:
            k, v = _concatenated(before[number], (k, v))
        if after:
            k, v = _concatenated((k, v), after[number])
        tables = rotary_tables(
            positions_1T, config.head_dim, config.rope_theta, config.rope_ntk_factor
        )
        own_tables = tuple(table[:, :, first : first + ids_BT.shape[1]] for table in tables)
        out_BHTK = attention(rotate(q, (own_tables[0], own_tables[1])), rotate(k, tables), v, None)
        x_BTD = _finish(layer, x_BTD, out_BHTK)
    return backbone.lm_head(backbone.norm(x_BTD)), made


def _project(layer: Block, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unrotated queries, keys and values (B, H, T, K), with a product for each."""
    own, h_BTD = layer.self_attn, layer.input_layernorm(x_BTD)
    assert isinstance(own, Attention)

    def heads(proj: nn.Linear) -> Tensor:
        return proj(h_BTD).unflatten(-1, (-1, own.head_dim)).transpose(1, 2)

    return heads(own.q_proj), heads(own.k_proj), heads(own.v_proj)


def _finish(layer: Block, x_BTD: Tensor, out_BHTK: Tensor) -> Tensor:
    """The rest of a layer. Written out here, so that a faster layer of the model does not speed up
    what it is measured against."""
    x_BTD = x_BTD + layer.self_attn.o_proj(out_BHTK.transpose(1, 2).flatten(2))
    h_BTD, mlp = layer.post_attention_layernorm(x_BTD), layer.mlp
    assert isinstance(mlp, MLP)
    inner_BTD = F.silu(mlp.gate_proj(h_BTD)) * mlp.up_proj(h_BTD)
    out_BTD: Tensor = x_BTD + mlp.down_proj(inner_BTD)
    return out_BTD


def _commit(ids_BT: Tensor, logits_BTV: Tensor, quota: int, end: int, mask: int) -> None:
    """Put the most confident tokens before `end` in place."""
    logits_BTV[..., mask] = -torch.inf
    best_BT = logits_BTV.argmax(-1)
    confidence_BT = logits_BTV.double().softmax(-1).gather(-1, best_BT[..., None])[..., 0]
    confidence_BT[:, end:] = -torch.inf
    confidence_BT = torch.where(ids_BT == mask, confidence_BT, -torch.inf)
    for row in range(len(ids_BT)):
        positions = confidence_BT[row].topk(quota).indices
        ids_BT[row, positions] = best_BT[row, positions]
