"""LLaDA2.0 (arXiv 2512.15745) and 2.1 (arXiv 2602.08676): block-causal mixtures of experts.

Both have the same tensors and the same forward pass; 2.1 was trained to correct what it wrote, and
only its longer context tells it apart in config.json.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mmdiff.config import DecodingConfig, ExpertsConfig, TokenIds, shown
from mmdiff.errors import CheckpointError
from mmdiff.modeling.layouts.family import (
    EVERYWHERE,
    IDS,
    OFF,
    SIZES,
    Family,
    Layout,
    Published,
    architectures_of,
    required,
)

# Written in config.json, and not used by the published code: weights are always normalised, and a
# bias of the router is always there.
_WITHOUT_EFFECT = frozenset(
    {
        "norm_topk_prob",
        "moe_router_enable_expert_bias",
        "router_aux_loss_coef",
        "output_router_logits",
    }
)
_REQUIRED = (
    "num_hidden_layers",
    "num_attention_heads",
    "head_dim",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "n_group",
    "topk_group",
)
CONTEXT_21 = 32768  # positions of LLaDA2.1; 2.0 has 16384 at most


def _recognises(published: Published) -> bool:
    named = architectures_of(published)
    return "LLaDA2MoeModelLM" in named or published.get("model_type") == "llada2_moe"


def _recognises_21(published: Published) -> bool:
    return _recognises(published) and published.get("max_position_embeddings") == CONTEXT_21


def _backbone(published: Published) -> dict[str, Any]:
    sizes = required(published, *_REQUIRED)
    fraction = published.get("partial_rotary_factor")
    if fraction is None:
        fraction = 1.0
    rotary = published.get("rotary_dim")
    if rotary not in (None, int(sizes["head_dim"] * fraction)):
        raise CheckpointError(
            f"config.json says rotary_dim={shown(rotary)}, but partial_rotary_factor="
            f"{shown(fraction)} of head_dim={shown(sizes['head_dim'])}"
        )
    shared = published.get("num_shared_experts") or 0
    return {
        # 2.1 writes 0 where every head has its own keys.
        "num_key_value_heads": published.get("num_key_value_heads") or sizes["num_attention_heads"],
        "head_width": sizes["head_dim"],
        "rotary_fraction": fraction,
        "qk_norm": bool(published.get("use_qk_norm")),
        "qkv_bias": bool(published.get("use_qkv_bias")),
        "o_bias": bool(published.get("use_bias")),
        "experts": ExpertsConfig(
            num_experts=sizes["num_experts"],
            experts_per_token=sizes["num_experts_per_tok"],
            intermediate_size=sizes["moe_intermediate_size"],
            shared_intermediate_size=sizes["moe_intermediate_size"] * shared,
            router="grouped_sigmoid",
            router_bias=True,
            num_groups=sizes["n_group"],
            groups_per_token=sizes["topk_group"],
            scale=published.get("routed_scaling_factor", 1.0),
            dense_layers=tuple(range(published.get("first_k_dense_replace") or 0)),
        ),
    }


LLADA2 = Family(
    name="LLaDA2.0",
    settings=EVERYWHERE
    | {
        "norm_head": OFF,
        "norm_softmax": OFF,
        "router_dtype": ("fp32", "float32"),
        "score_function": ("sigmoid",),
        "use_rmsnorm": (True,),
    },
    read=(SIZES - {"attention_bias"})
    | IDS
    | _WITHOUT_EFFECT
    | {
        "first_k_dense_replace",
        "moe_intermediate_size",
        "n_group",
        "num_experts",
        "num_experts_per_tok",
        "num_shared_experts",
        "partial_rotary_factor",
        "rotary_dim",
        "routed_scaling_factor",
        "topk_group",
        "use_bias",
        "use_qk_norm",
        "use_qkv_bias",
    },
    architectures=("LLaDA2MoeModelLM",),
    model_types=("llada2_moe",),
    recognises=_recognises,
    fixed={"attention_pattern": "block-causal"},
    backbone=_backbone,
    tokens=TokenIds(mask=156895, eos=156892, eot=156892, bos=156892, pad=156892),
    decoding=DecodingConfig(
        gen_length=2048,
        block_length=32,
        steps=2048,
        rule="threshold_or_quota",
        threshold=0.95,
        block_origin="sequence",
    ),
)
LLADA21 = dataclasses.replace(
    LLADA2,
    name="LLaDA2.1",
    recognises=_recognises_21,
    decoding=dataclasses.replace(LLADA2.decoding, rule="editing"),
)

_LAYER = r"model\.(layers\.\d+\.)"
LLADA2_LAYOUT = Layout(
    name="llada2",
    mark=r"model\.layers\.\d+\.attention\.query_key_value\.weight",
    names={
        r"model\.word_embeddings\.weight": "backbone.embed_tokens.weight",
        r"model\.norm\.weight": "backbone.norm.weight",
        r"lm_head\.weight": "backbone.lm_head.weight",
        _LAYER + r"attention\.rotary_emb\.inv_freq": None,
        _LAYER + r"attention\.dense\.(.*)": r"backbone.\1self_attn.o_proj.\2",
        _LAYER + r"attention\.query_layernorm\.(.*)": r"backbone.\1self_attn.q_norm.\2",
        _LAYER + r"attention\.key_layernorm\.(.*)": r"backbone.\1self_attn.k_norm.\2",
        _LAYER + r"mlp\.shared_experts\.(.*)": r"backbone.\1mlp.shared_expert.\2",
        _LAYER + r"(mlp\..*|input_layernorm\..*|post_attention_layernorm\..*)": r"backbone.\1\2",
    },
    joined={
        _LAYER + r"attention\.query_key_value\.(.*)": (
            r"backbone.\1self_attn.q_proj.\2",
            r"backbone.\1self_attn.k_proj.\2",
            r"backbone.\1self_attn.v_proj.\2",
        )
    },
)
