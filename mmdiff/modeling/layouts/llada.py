"""LLaDA (arXiv 2502.09992): the config.json and tensor names of its own training code."""

from __future__ import annotations

from mmdiff.config import PRESETS
from mmdiff.modeling.layouts.family import EVERYWHERE, IDS, OFF, SIZES, Family, Layout, Published


def _recognises(published: Published) -> bool:
    return "d_model" in published  # saved through transformers, it is hidden_size


LLADA = Family(
    name="LLaDA",
    settings=EVERYWHERE
    | {
        "activation_type": ("silu",),
        "alibi": OFF,
        "attention_layer_norm": OFF,
        "bias_for_layer_norm": OFF,
        "block_type": ("llama",),
        "clip_qkv": OFF,
        "include_bias": OFF,
        "input_emb_norm": OFF,
        "layer_norm_type": ("rms",),
        "layer_norm_with_affine": (True,),
        "multi_query_attention": OFF,
        "norm_after": OFF,
        "rope": (True,),
        "scale_logits": OFF,
        "weight_tying": OFF,
    },
    read=SIZES
    | IDS
    | {
        "embedding_size",
        "d_model",
        "mlp_hidden_size",
        "n_layers",
        "n_heads",
        "n_kv_heads",
        "include_qkv_bias",
        "max_sequence_length",
        "mlp_ratio",
    },
    architectures=("LLaDAModelLM",),
    model_types=("llada",),
    recognises=_recognises,
    defaults=PRESETS["llada-8b"],
)

_BLOCK = r"model\.transformer\.blocks\.(\d+)\."
LLADA_LAYOUT = Layout(
    name="llada",
    mark=r"model\.transformer\.wte\.weight",
    names={
        r"model\.transformer\.wte\.weight": "backbone.embed_tokens.weight",
        r"model\.transformer\.ln_f\.weight": "backbone.norm.weight",
        r"model\.transformer\.ff_out\.weight": "backbone.lm_head.weight",
        _BLOCK + r"([qkv]_proj\..*)": r"backbone.layers.\1.self_attn.\2",
        _BLOCK + r"attn_out\.(.*)": r"backbone.layers.\1.self_attn.o_proj.\2",
        _BLOCK + r"ff_proj\.(.*)": r"backbone.layers.\1.mlp.gate_proj.\2",
        _BLOCK + r"up_proj\.(.*)": r"backbone.layers.\1.mlp.up_proj.\2",
        _BLOCK + r"ff_out\.(.*)": r"backbone.layers.\1.mlp.down_proj.\2",
        _BLOCK + r"attn_norm\.(.*)": r"backbone.layers.\1.input_layernorm.\2",
        _BLOCK + r"ff_norm\.(.*)": r"backbone.layers.\1.post_attention_layernorm.\2",
    },
)
