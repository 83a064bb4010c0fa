"""A checkpoint with one fault is refused by the name of what is wrong, in every family."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmdiff.errors import CheckpointError
from mmdiff.pipeline import load
from tests.helpers.published import as_published

# Of each family a folder, two tensors, and what the first is called here.
FAMILIES = {
    "llada-mha": (
        "model.transformer.blocks.0.up_proj.weight",
        "backbone.layers.0.mlp.up_proj.weight",
    ),
    "dream": ("model.layers.0.mlp.up_proj.weight", "backbone.layers.0.mlp.up_proj.weight"),
    "lladamoe": (
        "model.layers.1.mlp.experts.3.up_proj.weight",
        "backbone.layers.1.mlp.experts.3.up_proj.weight",
    ),
    "llada2": (
        "model.layers.1.attention.query_key_value.weight",
        "backbone.layers.1.self_attn.k_proj.weight",
    ),
}
Weights = dict[str, Tensor]


def renamed(weights: Weights, name: str) -> None:
    weights[name + "_old"] = weights.pop(name)


def missing(weights: Weights, name: str) -> None:
    del weights[name]


def extra(weights: Weights, name: str) -> None:
    weights[name + "_old"] = weights[name].clone()


def transposed(weights: Weights, name: str) -> None:
    weights[name] = weights[name].T.contiguous()


def not_finite(weights: Weights, name: str) -> None:
    weights[name][-1, -1] = float("nan")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("damage", [renamed, missing, extra, transposed, not_finite])
def test_one_tensor_is_reported_by_name(
    tmp_path: Path, reference: Path, family: str, damage: Callable[[Weights, str], None]
) -> None:
    name, ours = FAMILIES[family]
    folder = as_published(reference / family, tmp_path, mask_token_id=300, eos_token_id=301)
    weights = load_file(folder / "model.safetensors")
    damage(weights, name)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as raised:
        load(folder, device="cpu")
    told = str(raised.value)
    assert "\n" not in told
    if damage in (renamed, extra):
        assert f"{name}_old" in told
    if damage in (renamed, missing):
        assert ours in told
    if damage is transposed:
        assert f"{name} " in told or ours in told
    if damage is not_finite:
        assert f"{name} holds numbers that are not finite" in told


@pytest.mark.parametrize("family", FAMILIES)
def test_one_unknown_setting_is_reported_by_name(
    tmp_path: Path, reference: Path, family: str
) -> None:
    settings = {"mask_token_id": 300, "eos_token_id": 301, "router_jitter": 0.5}
    folder = as_published(reference / family, tmp_path, **settings)
    with pytest.raises(CheckpointError, match=r"config.json says router_jitter=0\.5"):
        load(folder, device="cpu")
