"""LLaDA-MoE (arXiv 2509.24389): LLaDA with a mixture of experts, and transformers' names.

Its `model_type` is that of LLaDA-8B; its architecture and its keys tell it apart.
"""

from __future__ import annotations

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

# Written in config.json, and not used by the published code: router weights are never normalised
# or scaled, experts have no groups, and scores are always a softmax.
_WITHOUT_EFFECT = frozenset(
    {
        "norm_topk_prob",
        "routed_scaling_factor",
        "router_num_group",
        "router_topk_group",
        "moe_router_score_function",
        "router_aux_loss_coef",
    }
)

_REQUIRED = (
    "num_hidden_layers",
    "num_experts",
    "num_experts_per_tok",
    "expert_intermediate_size",
)


def _recognises(published: Published) -> bool:
    named = architectures_of(published)
    return "LLaDAMoEModelLM" in named or "expert_intermediate_size" in published


def _backbone(published: Published) -> dict[str, Any]:
    sizes = required(published, *_REQUIRED)
    dense = _dense_layers(published.get("moe_layer_freq"), sizes["num_hidden_layers"])
    if dense:
        required(published, "dense_intermediate_size")
    fraction = published.get("partial_rotary_factor")
    # Without a dense layer nothing has this size.
    width = published.get("dense_intermediate_size") or sizes["expert_intermediate_size"]
    return {
        "intermediate_size": width,
        "qk_norm": bool(published.get("qk_layernorm")),
        "rotary_fraction": 1.0 if fraction is None else fraction,
        "experts": ExpertsConfig(
            num_experts=sizes["num_experts"],
            experts_per_token=sizes["num_experts_per_tok"],
            intermediate_size=sizes["expert_intermediate_size"],
            shared_intermediate_size=published.get("shared_expert_intermediate_size") or 0,
            router_bias=bool(published.get("moe_router_enable_expert_bias")),
            dense_layers=dense,
        ),
    }


def _dense_layers(frequency: object, layers: int) -> tuple[int, ...]:
    """The layers that `moe_layer_freq` gives a plain MLP: a number for each, 0 where it is one."""
    if frequency is None or frequency == 1:
        return ()
    if not isinstance(frequency, list) or len(frequency) != layers:
        raise CheckpointError(
            f"config.json says moe_layer_freq={shown(frequency)}; give a list with 0 or 1 for each "
            f"of the {layers} layers"
        )
    return tuple(number for number, has_experts in enumerate(frequency) if not has_experts)


LLADA_MOE = Family(
    name="LLaDA-MoE",
    settings=EVERYWHERE | {"clip_qkv": OFF},
    read=(SIZES - {"intermediate_size"})
    | IDS
    | _WITHOUT_EFFECT
    | {
        "dense_intermediate_size",
        "expert_intermediate_size",
        "shared_expert_intermediate_size",
        "partial_rotary_factor",
        "num_experts",
        "num_experts_per_tok",
        "qk_layernorm",
        "moe_layer_freq",
        "moe_router_enable_expert_bias",
    },
    architectures=("LLaDAMoEModelLM",),
    model_types=("llada",),
    recognises=_recognises,
    backbone=_backbone,
    tokens=TokenIds(mask=156895, eos=156892, eot=156892, bos=156892, pad=156892),
    decoding=DecodingConfig(gen_length=128, block_length=32, steps=128),
)

_LAYER = r"model\.(layers\.\d+\.)"
LLADA_MOE_LAYOUT = Layout(
    name="llada-moe",
    mark=r"model\.layers\.\d+\.mlp\.experts\.\d+\.gate_proj\.weight",
    names={
        r"model\.(embed_tokens|norm)\.weight": r"backbone.\1.weight",
        r"lm_head\.weight": "backbone.lm_head.weight",
        # of old versions; follows from rope_theta
        _LAYER + r"self_attn\.rotary_emb\.inv_freq": None,
        _LAYER + r"shared_expert\.(.*)": r"backbone.\1mlp.shared_expert.\2",
        _LAYER + r"mlp\.expert_bias": r"backbone.\1mlp.gate.expert_bias",
        _LAYER + r"(.*)": r"backbone.\1\2",
    },
)
