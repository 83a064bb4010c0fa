"""Towers from timm's backbones with maps: sizes, joining, classifier, and what is refused."""

import pytest
import torch
from torch import nn

from mmdiff.config import VisionConfig, from_dict, to_dict
from mmdiff.errors import MMDiffError
from mmdiff.vision.map_tower import MapTower, build_map_tower, join_maps, map_config
from mmdiff.vision.tower import build_tower

timm = pytest.importorskip("timm")
NAME = "test_efficientnet"  # 0.36 M parameters


@pytest.fixture(scope="module")
def config() -> VisionConfig:
    return map_config(NAME, ("blocks.2", "bn2"), 64, layout="resize")


@pytest.fixture(scope="module")
def tower(config: VisionConfig) -> MapTower:
    torch.manual_seed(0)
    made = build_tower(config)
    assert isinstance(made, MapTower)
    return made


def test_width_and_patches_are_measured(config: VisionConfig, tower: MapTower) -> None:
    features = tower(torch.randn(2, 3, 64, 64))
    assert features.shape == (2, config.patches_per_side**2, config.hidden_size)
    assert from_dict(VisionConfig, to_dict(config)) == config


def test_maps_are_what_the_modules_give(tower: MapTower) -> None:
    pixels = torch.randn(2, 3, 64, 64)
    block, last = tower.maps(pixels)
    assert torch.equal(last, tower.trunk.forward_features(pixels))
    assert block.shape[-1] >= last.shape[-1]
    features = tower(pixels)
    assert torch.equal(features[:, :, block.shape[1] :], last.flatten(2).transpose(1, 2))
    assert not any(module._forward_hooks for module in tower.trunk.modules())


def test_positions_are_in_row_major_order() -> None:
    large = torch.arange(16.0).view(1, 1, 4, 4)
    small = torch.arange(4.0).view(1, 1, 2, 2)
    assert join_maps([large, small]).tolist() == [[[2.5, 0], [4.5, 1], [10.5, 2], [12.5, 3]]]


def test_the_classifier_is_kept(tower: MapTower) -> None:
    pixels = torch.randn(2, 3, 64, 64)
    last = tower.maps(pixels)[-1]
    logits = tower.class_logits(last)
    assert torch.allclose(logits, tower.trunk(pixels), atol=1e-5)
    at_positions = tower.class_logits_at_positions(last.flatten(2).transpose(1, 2))
    assert torch.allclose(at_positions.mean(1), logits, atol=1e-5)


def test_a_vision_transformer_has_no_maps() -> None:
    with pytest.raises(MMDiffError, match="which is not a square map"):
        map_config("test_vit", ("blocks.1",), 160)


@pytest.mark.parametrize(
    ("name", "maps", "message"),
    [
        ("no_such_model", ("bn2",), "cannot build 'no_such_model'"),
        (NAME, ("blocks.99",), "'blocks.99' is not a module of this backbone"),
        (NAME, (), "timm_maps is empty"),
        (NAME, ("classifier",), "'classifier' gives no features of an image"),
    ],
)
def test_what_timm_does_not_have_is_named(name: str, maps: tuple[str, ...], message: str) -> None:
    with pytest.raises(MMDiffError, match=message):
        map_config(name, maps, 64)


def test_another_width_is_refused(config: VisionConfig) -> None:
    wrong = from_dict(VisionConfig, to_dict(config) | {"hidden_size": 7})
    with pytest.raises(MMDiffError, match="not hidden_size=7"):
        build_map_tower(wrong)


def test_maps_need_timm(config: VisionConfig) -> None:
    with pytest.raises(ValueError, match="timm_model"):
        from_dict(VisionConfig, to_dict(config) | {"library": "transformers"})


def test_pixels_of_another_size_are_refused(tower: MapTower) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        tower(torch.zeros(1, 3, 32, 32))
    assert isinstance(tower.trunk, nn.Module)
