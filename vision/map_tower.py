"""Vision towers from any timm backbone that has feature maps, convolutional ones too, with its
classifier kept.

`config.timm_model` is timm's name of the backbone and `config.timm_maps` the modules whose outputs
are taken, such as ("blocks.4", "bn2") of an EfficientNet or ("layer3", "layer4") of a ResNet. All
maps are brought to the size of the last one and joined: the features of a position are its channels
in each. Nothing is downloaded: weights come from a checkpoint.

Shapes: V views, S pixels per side, P positions in row-major order, D width, C channels, H and W of
a map, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, linear

from mmdiff import torchvision_fix
from mmdiff.config import VisionConfig
from mmdiff.errors import MMDiffError, require_extra
from mmdiff.vision.base_tower import Tower


class MapTower(Tower):
    """A timm backbone whose maps become tokens."""

    trunk: Any  # timm's models are modules with further methods

    def __init__(self, config: VisionConfig, trunk: nn.Module) -> None:
        super().__init__(config)
        self.trunk, self.map_names = trunk, config.timm_maps

    def encode(self, pixels_V3SS: Tensor) -> Tensor:
        return join_maps(self.maps(pixels_V3SS))

    def maps(self, pixels_V3SS: Tensor) -> list[Tensor]:
        """The maps (V, C, H, W) of the configured modules, each at its own size."""
        return _maps(self.trunk, self.map_names, pixels_V3SS)

    def class_logits(self, last_map_VCHW: Tensor) -> Tensor:
        """What the backbone's own classifier says of each whole view (V, K)."""
        logits_VK: Tensor = self.trunk.forward_head(last_map_VCHW)
        return logits_VK

    def class_logits_at_positions(self, features_VPC: Tensor) -> Tensor:
        """The classifier at each position of the last map (V, P, K)."""
        classifier = self.trunk.get_classifier()
        return linear(features_VPC, classifier.weight, classifier.bias)


def join_maps(maps: Sequence[Tensor]) -> Tensor:
    """Features (V, P, D): the channels of all maps, averaged over the positions of the last one."""
    height, width = maps[-1].shape[-2:]
    fitted = [adaptive_avg_pool2d(each, (height, width)) for each in maps]
    return torch.cat(fitted, dim=1).flatten(2).transpose(1, 2)


def build_map_tower(config: VisionConfig) -> MapTower:
    """A tower with fresh weights.

    Raises:
        MMDiffError: timm does not know the model, or it has no such map, or its width or size
            differs from the configuration's.
    """
    trunk = _create(config.timm_model or "")
    width, side = _measure(config.timm_model or "", config.timm_maps, config.image_size)
    if (width, side) != (config.hidden_size, config.patches_per_side):
        raise MMDiffError(
            f"the maps {', '.join(config.timm_maps)} of {config.timm_model} have {width} channels "
            f"and {side} positions a side, not hidden_size={config.hidden_size} and "
            f"{config.patches_per_side} (image_size / patch_size): take what map_config gives"
        )
    return MapTower(config, trunk)


def map_config(
    timm_model: str, timm_maps: Sequence[str], image_size: int, **settings: Any
) -> VisionConfig:
    """The configuration of a tower of timm's, its width and patches measured.

    Args:
        timm_model: timm's name, such as "tf_efficientnet_lite0" or "resnet50".
        timm_maps: names of modules, the one with the smallest map last.
        image_size: pixels per side of a view.
        settings: further fields of `VisionConfig`, such as `layout` or `mean`.

    Raises:
        MMDiffError: timm does not know the model, or it has no such map.
    """
    width, side = _measure(timm_model, timm_maps, image_size)
    return VisionConfig(
        hidden_size=width,
        intermediate_size=0,
        num_hidden_layers=0,
        num_attention_heads=1,
        image_size=image_size,
        patch_size=image_size // side,
        library="timm",
        timm_model=timm_model,
        timm_maps=tuple(timm_maps),
        **settings,
    )


def _create(name: str) -> nn.Module:
    torchvision_fix.declare_operators()
    timm = require_extra("timm", "towers", "a vision tower of timm")
    try:
        trunk: nn.Module = timm.create_model(name, pretrained=False)
    except (RuntimeError, ValueError) as error:
        raise MMDiffError(
            f"timm {timm.__version__} cannot build {name[:80]!r} ({str(error)[:80]}): give a name "
            "of timm.list_models()"
        ) from error
    return trunk.eval()


def _measure(name: str, map_names: Sequence[str], image_size: int) -> tuple[int, int]:
    """Channels of all maps together and positions per side of the last, without any computation."""
    if not map_names:
        raise MMDiffError(f"timm_maps is empty: name the modules of {name[:80]} to take maps of")
    with torch.device("meta"):
        trunk = _create(name)
        pixels_V3SS = torch.zeros(1, 3, image_size, image_size)
    maps = _maps(trunk, map_names, pixels_V3SS)
    for map_name, each in zip(map_names, maps, strict=True):
        if each.dim() != 4 or each.shape[-1] != each.shape[-2]:
            raise MMDiffError(
                f"the output of {map_name!r} of {name[:80]} has the shape {tuple(each.shape)}, "
                "which is not a square map (views, channels, height, width): name another module"
            )
    return sum(each.shape[1] for each in maps), maps[-1].shape[-1]


def _maps(trunk: Any, names: Sequence[str], pixels_V3SS: Tensor) -> list[Tensor]:
    found: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        found[name] = output

    handles = []
    try:
        for name in names:
            handles.append(_module(trunk, name).register_forward_hook(partial(keep, name)))
        trunk.forward_features(pixels_V3SS)
    finally:
        for handle in handles:
            handle.remove()
    if missing := [name for name in names if name not in found]:
        raise MMDiffError(
            f"{missing[0]!r} gives no features of an image: name a module that they pass through"
        )
    return [found[name] for name in names]


def _module(trunk: nn.Module, name: str) -> nn.Module:
    try:
        return trunk.get_submodule(name)
    except AttributeError:
        known = ", ".join(each for each, _ in trunk.named_children())
        raise MMDiffError(
            f"{name[:80]!r} is not a module of this backbone: name one of its parts, which are "
            f"{known}, or a part of theirs such as 'blocks.4'"
        ) from None
