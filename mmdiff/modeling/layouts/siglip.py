"""SigLIP vision towers (arXiv 2303.15343, 2502.14786), by the config.json of their own folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmdiff.config import SO400M_PENULTIMATE, VisionConfig, shown
from mmdiff.errors import CheckpointError
from mmdiff.modeling.layouts.family import Family
from mmdiff.modeling.layouts.settings import check_settings

SIGLIP = Family(
    name="SigLIP",
    settings={
        "hidden_act": ("gelu_pytorch_tanh",),
        "model_type": ("siglip_vision_model", "siglip"),
        "num_channels": (3,),
    },
    read=frozenset(
        {
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "image_size",
            "patch_size",
            "layer_norm_eps",
            "vision_use_head",
        }
    ),
)
# Of `transformers.SiglipVisionConfig`, which leaves out what is as usual when it saves.
_SIGLIP_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
}


def siglip_config(sizes: Mapping[str, Any]) -> VisionConfig:
    """A tower's own config.json, alone or inside that of the whole SigLIP model, without its last
    layer."""
    inner = sizes.get("vision_config", sizes)
    if not isinstance(inner, Mapping):
        raise CheckpointError(
            f"the vision tower's config.json says vision_config={shown(inner)}, not an object"
        )
    check_settings(inner, SIGLIP)
    found = {name: inner.get(name, usual) for name, usual in _SIGLIP_DEFAULTS.items()}
    found["num_hidden_layers"] -= 1  # LLaVA takes the features of the penultimate layer
    return dataclasses.replace(SO400M_PENULTIMATE, **found)
