"""SigLIP vision towers through transformers, timm or open_clip behind one small interface.

A tower maps pixels (V, 3, S, S) to features (V, P, D): the output of the last built layer, before
any final norm. SigLIP 2 checkpoints of fixed resolution have the same architecture; those with
native aspect ratio (NaFlex) do not and are refused when loaded. Pooling heads and text towers are
left out.

Shapes: V views, S pixels per side, P patches in row-major order, D width.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmdiff import torchvision_fix
from mmdiff.config import TowerLibrary, VisionConfig
from mmdiff.errors import CheckpointError, require_extra
from mmdiff.vision.base_tower import Tower
from mmdiff.vision.map_tower import build_map_tower


class TransformersTower(Tower):
    """`transformers.SiglipVisionModel` without final norm and pooling head; its own names are the
    canonical ones."""

    def __init__(self, config: VisionConfig) -> None:
        torchvision_fix.declare_operators()  # which transformers imports
        from transformers import SiglipVisionConfig, SiglipVisionModel

        super().__init__(config)
        sizes = SiglipVisionConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            image_size=config.image_size,
            patch_size=config.patch_size,
            layer_norm_eps=config.layer_norm_eps,
            vision_use_head=False,
        )
        model = SiglipVisionModel._from_config(sizes, attn_implementation="sdpa")
        layers = getattr(
            model, "vision_model", model
        )  # transformers before 5.6 wraps them once more
        self.embeddings, self.encoder = layers.embeddings, layers.encoder
        # A buffer outside the state dict stays uninitialised when a model is built on the meta
        # device and then filled from a checkpoint, so the positions are counted in `encode`
        # instead.
        del self.embeddings.position_ids

    def encode(self, pixels_V3SS: Tensor) -> Tensor:
        patches_VPD = self.embeddings.patch_embedding(pixels_V3SS).flatten(2).transpose(1, 2)
        positions_P = torch.arange(patches_VPD.shape[1], device=patches_VPD.device)
        embedded_VPD = patches_VPD + self.embeddings.position_embedding(positions_P)
        features_VPD: Tensor = self.encoder(inputs_embeds=embedded_VPD).last_hidden_state
        return features_VPD


class TimmTower(Tower):
    """timm's VisionTransformer, bare or inside open_clip's adapter."""

    def __init__(self, config: VisionConfig, trunk: nn.Module) -> None:
        super().__init__(config)
        for module in trunk.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = config.layer_norm_eps
        self.trunk = trunk

    def encode(self, pixels_V3SS: Tensor) -> Tensor:
        features_VPD: Tensor = self.trunk(pixels_V3SS)
        return features_VPD


def _timm_sizes(config: VisionConfig) -> dict[str, Any]:
    return {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        # timm truncates width x ratio, so the half keeps the product from falling below the whole
        # number
        "mlp_ratio": (config.intermediate_size + 0.5) / config.hidden_size,
        "act_layer": "gelu_tanh",
        "class_token": False,
        "final_norm": False,
        "global_pool": "",
        "num_classes": 0,
    }


def _build_timm(config: VisionConfig) -> Tower:
    if config.timm_model is not None:
        return build_map_tower(config)
    torchvision_fix.declare_operators()
    timm = require_extra("timm.models.vision_transformer", "towers", "a vision tower of timm")
    return TimmTower(config, timm.VisionTransformer(**_timm_sizes(config)))


def _build_open_clip(config: VisionConfig) -> Tower:
    torchvision_fix.declare_operators()
    open_clip = require_extra("open_clip.timm_model", "towers", "a vision tower of open_clip")

    # open_clip names its SigLIP towers after timm models; timm reads the sizes of an unlisted one
    # from a folder.
    description = {
        "architecture": "vit_base_patch16_siglip_224",
        "pretrained_cfg": {},
        "model_args": _timm_sizes(config),
    }
    with tempfile.TemporaryDirectory(prefix="mmdiff-") as folder:
        Path(folder, "config.json").write_text(json.dumps(description), encoding="utf-8")
        name = f"local-dir:{folder}"
        adapter = open_clip.TimmModel(
            name, config.hidden_size, config.image_size, pool="", proj="none"
        )
    return TimmTower(config, adapter)


BUILDERS: dict[TowerLibrary, Callable[[VisionConfig], Tower]] = {
    "transformers": TransformersTower,
    "timm": _build_timm,
    "open_clip": _build_open_clip,
}


def build_tower(config: VisionConfig) -> Tower:
    """A tower with fresh weights, through the library that `config.library` names."""
    return BUILDERS[config.library](config)


# Parts of published checkpoints that are never built.
EXTRAS = (
    "head.",
    "post_layernorm.",
    "embeddings.position_ids",
    "text_model.",
    "logit_scale",
    "logit_bias",
)

# transformers' names and timm's, in this order; timm also fuses q, k and v and keeps positions as
# (1, P, D).
TIMM_NAMES = (
    ("embeddings.patch_embedding.", "patch_embed.proj."),
    ("embeddings.position_embedding.weight", "pos_embed"),
    ("encoder.layers.", "blocks."),
    (".layer_norm1.", ".norm1."),
    (".layer_norm2.", ".norm2."),
    (".self_attn.out_proj.", ".attn.proj."),
    (".self_attn.{}_proj.", ".attn.qkv."),
)


def tower_state(tower: nn.Module) -> dict[str, Tensor]:
    """The weights under transformers' bare SigLIP names (`embeddings.*`, `encoder.layers.N.*`),
    whatever the library.

    The tensors share memory with the tower, save timm's fused projections, which are copied apart.
    """
    state: dict[str, Tensor] = {}
    for own_name, tensor in tower.state_dict().items():
        name = _canonical_name(own_name)
        if "{}" in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                state[name.format(letter)] = part.clone()
        elif own_name.endswith("pos_embed"):
            state[name] = tensor[0]
        else:
            state[name] = tensor
    return state


def load_tower(tower: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fill a tower from a SigLIP checkpoint, keeping the tower's dtype (a tower on the meta device
    takes the state's).

    Names may carry the prefix `vision_model.`; a whole published checkpoint is welcome: the text
    tower, pooling head, final norm and layers beyond those built are left out.

    Raises:
        CheckpointError: any other name is unknown, missing, there both with and without the prefix,
            or of the wrong shape; the message lists them.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in tower_state(tower).items()}
    layers = [name.split(".")[2] for name in expected if name.startswith("encoder.layers.")]
    num_layers = 1 + max(map(int, layers))
    kept: dict[str, Tensor] = {}
    twice, wrong = [], []
    for given, name in _published_names(state, num_layers).items():
        if name is None:
            continue
        if name in kept:
            twice.append(name)
        kept[name] = state[given]
    for name, shape in expected.items():
        if name in kept and tuple(kept[name].shape) != shape:
            wrong.append(f"{name} is {tuple(kept[name].shape)}, not {shape}")
    problems = {
        "missing": expected.keys() - kept.keys(),
        "unknown": kept.keys() - expected.keys(),
        "named twice": twice,
        "wrong": wrong,
    }
    listed = [f"{kind}: {', '.join(sorted(names))}" for kind, names in problems.items() if names]
    if listed:
        raise CheckpointError(
            f"these weights are not of a SigLIP tower of this size ({'; '.join(listed)})"
        )
    on_meta = any(parameter.is_meta for parameter in tower.parameters())
    tower.load_state_dict(_own_names(tower, kept), assign=on_meta)


def tower_names(names: Iterable[str], config: VisionConfig) -> dict[str, str | None]:
    """What the names of a SigLIP checkpoint are called in `tower_state`; None for parts that
    `config` does not build.

    A name that is not known stays as it is, so that a caller finds it when comparing with the names
    it expects.
    """
    return _published_names(names, config.num_hidden_layers)


def _published_names(names: Iterable[str], num_layers: int) -> dict[str, str | None]:
    bare = {name: name.removeprefix("vision_model.") for name in names}
    return {name: None if _is_extra(short, num_layers) else short for name, short in bare.items()}


def _is_extra(name: str, num_layers: int) -> bool:
    layer = re.match(r"encoder\.layers\.(\d+)\.", name)
    return name.startswith(EXTRAS) or (layer is not None and int(layer[1]) >= num_layers)


def _own_names(tower: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A complete canonical state under the names and shapes of the tower's library."""
    own: dict[str, Tensor] = {}
    for own_name, tensor in tower.state_dict().items():
        name = _canonical_name(own_name)
        # Of a name without {}, all three are the same.
        parts = [state[each] for each in dict.fromkeys(map(name.format, "qkv"))]
        own[own_name] = parts[0]
        if own_name.startswith("trunk."):
            own[own_name] = torch.cat(parts).reshape(tensor.shape)
    return own


def _canonical_name(own_name: str) -> str:
    """Transformers' name, with {} for q, k and v where they are fused; a name of transformers stays
    as it is."""
    name = re.sub(r"^(trunk\.)+", "", own_name)
    for canonical, timm in TIMM_NAMES:
        name = name.replace(timm, canonical)
    return name
