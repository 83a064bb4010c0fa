"""LLaDA-V (arXiv 2505.16933): LLaVA's code around a LLaDA backbone with transformers' names.

A LLaDA with transformers' names is of this family too: its class name is that of either.
"""

from __future__ import annotations

from mmdiff.config import PRESETS
from mmdiff.modeling.layouts.family import EVERYWHERE, IDS, OFF, SIZES, Family, Layout, Published


def _recognises(published: Published) -> bool:
    return "d_model" not in published


LLADA_V = Family(
    name="LLaDA-V",
    settings=EVERYWHERE
    | {
        "add_faster_video": OFF,
        "mm_projector_type": ("mlp2x_gelu",),
        "mm_resampler_type": OFF,
        # counts for nothing without a stride
        "mm_spatial_pool_mode": ("bilinear", "average", "max"),
        "mm_spatial_pool_stride": (1,),
        "mm_use_im_patch_token": OFF,
        "mm_use_im_start_end": OFF,
        "mm_vision_select_feature": ("patch",),
        "mm_vision_select_layer": (-2,),
        "use_mm_proj": (True,),
    },
    read=SIZES
    | IDS
    | {
        "mm_vision_tower",
        "mm_hidden_size",
        "image_aspect_ratio",
        "image_grid_pinpoints",
        "mm_patch_merge_type",
    },
    architectures=("LlavaLLaDAModelLM",),
    model_types=("llava_llada",),
    recognises=_recognises,
    defaults=PRESETS["llada-8b"],
    vision_defaults=PRESETS["llada-v-8b"],
)

_TOWER = r"model\.vision_tower\.vision_tower\.vision_model\."
LLADA_V_LAYOUT = Layout(
    name="llada-v",
    mark=r"model\.embed_tokens\.weight",
    names={
        r"model\.(embed_tokens|norm)\.weight": r"backbone.\1.weight",
        r"lm_head\.weight": "backbone.lm_head.weight",
        # of old versions; follows from rope_theta
        r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq": None,
        r"model\.(layers\.\d+\..*)": r"backbone.\1",
        # of old versions
        _TOWER + r"embeddings\.position_ids": None,
        _TOWER + r"(embeddings\..*|encoder\..*)": r"vision_tower.\1",
        # behind what we take
        _TOWER + r"(post_layernorm|head)\..*": None,
        r"model\.mm_projector\.([02]\..*)": r"connector.\1",
        r"model\.image_newline": "image_newline",
    },
)
