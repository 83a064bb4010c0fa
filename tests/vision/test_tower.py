"""One tower through three libraries: same names, same numbers; strict loading."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mmdiff.config import PRESETS, VisionConfig
from mmdiff.errors import CheckpointError
from mmdiff.vision.connector import build_connector
from mmdiff.vision.tower import build_tower, load_tower, tower_names, tower_state

LIBRARIES = ["transformers", "timm", "open_clip"]


def through(library: Any, config: VisionConfig) -> nn.Module:
    return build_tower(dataclasses.replace(config, library=library))


def random_state(config: VisionConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tower = build_tower(config)
    return {
        name: torch.randn(tensor.shape, generator=generator) * 0.3
        for name, tensor in tower_state(tower).items()
    }


def pictures(config: VisionConfig) -> Tensor:
    return torch.randn(
        2, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(1)
    )


def plain_siglip(state: dict[str, Tensor], pixels: Tensor, config: VisionConfig) -> Tensor:
    """The architecture in plain operations, from the paper."""
    size, heads, width = config.patch_size, config.num_attention_heads, config.hidden_size

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + config.layer_norm_eps).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    squares = (
        pixels.unfold(2, size, size)
        .unfold(3, size, size)
        .permute(0, 2, 3, 1, 4, 5)
        .flatten(3)
        .flatten(1, 2)
    )
    x = (
        squares @ state["embeddings.patch_embedding.weight"].flatten(1).T
        + state["embeddings.patch_embedding.bias"]
    )
    x = x + state["embeddings.position_embedding.weight"]
    for number in range(config.num_hidden_layers):
        layer = f"encoder.layers.{number}"
        y = norm(x, f"{layer}.layer_norm1")
        q, k, v = (
            linear(y, f"{layer}.self_attn.{n}_proj").unflatten(2, (heads, -1)).transpose(1, 2)
            for n in "qkv"
        )
        seen = (q @ k.transpose(2, 3) / (width // heads) ** 0.5).softmax(-1) @ v
        x = x + linear(seen.transpose(1, 2).flatten(2), f"{layer}.self_attn.out_proj")
        y = linear(norm(x, f"{layer}.layer_norm2"), f"{layer}.mlp.fc1")
        x = x + linear(nn.functional.gelu(y, approximate="tanh"), f"{layer}.mlp.fc2")
    return x


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_features(library: str, eps: float, small: VisionConfig) -> None:
    config = dataclasses.replace(small, layer_norm_eps=eps)
    state = random_state(config)
    tower = through(library, config)
    load_tower(tower, state)
    assert_close(
        tower(pictures(config)), plain_siglip(state, pictures(config), config), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("library", LIBRARIES)
def test_state_goes_in_and_comes_out(library: str, small: VisionConfig) -> None:
    state = random_state(small)
    tower = through(library, small)
    load_tower(tower, state)
    again = tower_state(tower)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    assert sum(tensor.numel() for tensor in again.values()) == sum(
        p.numel() for p in tower.parameters()
    )


@pytest.mark.parametrize("library", LIBRARIES)
def test_built_without_memory_then_filled(library: str, small: VisionConfig) -> None:
    state = random_state(small)
    with torch.device("meta"):
        tower = through(library, small)
    assert tower(torch.empty(2, 3, 56, 56, device="meta")).shape == (2, 16, 48)
    load_tower(tower, state)
    assert_close(
        tower(pictures(small)), plain_siglip(state, pictures(small), small), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("library", LIBRARIES)
def test_trains_in_mixed_precision(library: str, small: VisionConfig) -> None:
    tower = through(library, small).train()
    with torch.autocast("cpu", torch.bfloat16):
        features = tower(pictures(small))
    features.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tower.parameters())


@pytest.mark.parametrize("library", LIBRARIES)
def test_bfloat16_weights(library: str, small: VisionConfig) -> None:
    tower = through(library, small).bfloat16()
    state = random_state(small)
    load_tower(tower, state)
    assert all(p.dtype == torch.bfloat16 for p in tower.parameters())
    features = tower(pictures(small).bfloat16())
    expected = plain_siglip(state, pictures(small), small)
    assert (features.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_view_never_depends_on_its_neighbours(library: str, small: VisionConfig) -> None:
    tower = through(library, small).eval()
    both = tower(pictures(small))
    assert_close(tower(pictures(small)[1:]), both[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_whole_published_checkpoints(library: str, prefix: str, small: VisionConfig) -> None:
    """SiglipModel's files: a text tower, a pooling head, a final norm and more layers than are
    built."""
    deeper = dataclasses.replace(small, num_hidden_layers=3)
    deep_state = random_state(deeper)
    state = {prefix + name: tensor for name, tensor in deep_state.items()}
    state |= {
        f"{prefix}post_layernorm.weight": torch.ones(48),
        f"{prefix}post_layernorm.bias": torch.ones(48),
        f"{prefix}head.probe": torch.ones(1, 1, 48),
        f"{prefix}head.attention.in_proj_weight": torch.ones(144, 48),
        f"{prefix}embeddings.position_ids": torch.arange(16)[None],
        "logit_scale": torch.ones(1),
        "logit_bias": torch.ones(1),
        "text_model.embeddings.token_embedding.weight": torch.ones(5, 5),
        "text_model.encoder.layers.0.layer_norm1.weight": torch.ones(5),
        "text_model.head.bias": torch.ones(5),
    }
    tower = through(library, small)
    load_tower(tower, state)
    assert_close(
        tower(pictures(small)),
        plain_siglip(deep_state, pictures(small), small),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_does_not_fit_is_listed(library: str, small: VisionConfig) -> None:
    tower = through(library, small)
    before = tower_state(tower)["embeddings.patch_embedding.bias"].clone()
    state = random_state(small)
    del state["encoder.layers.1.self_attn.k_proj.bias"]
    state["embeddings.class_embedding"] = torch.ones(48)
    state["embeddings.position_embedding.weight"] = torch.ones(9, 48)
    with pytest.raises(CheckpointError) as caught:
        load_tower(tower, state)
    message = str(caught.value)
    assert "missing: encoder.layers.1.self_attn.k_proj.bias" in message
    assert "unknown: embeddings.class_embedding" in message
    assert "embeddings.position_embedding.weight is (9, 48), not (16, 48)" in message
    assert torch.equal(tower_state(tower)["embeddings.patch_embedding.bias"], before)


def test_names_of_published_checkpoints(small: VisionConfig) -> None:
    assert tower_names(
        [
            "vision_model.encoder.layers.1.mlp.fc1.bias",
            "encoder.layers.2.mlp.fc1.bias",
            "vision_model.head.probe",
            "text_model.head.bias",
            "logit_scale",
            "embeddings.class_embedding",
        ],
        small,
    ) == {
        "vision_model.encoder.layers.1.mlp.fc1.bias": "encoder.layers.1.mlp.fc1.bias",
        "encoder.layers.2.mlp.fc1.bias": None,
        "vision_model.head.probe": None,
        "text_model.head.bias": None,
        "logit_scale": None,
        "embeddings.class_embedding": "embeddings.class_embedding",
    }


def test_a_name_with_and_without_prefix(small: VisionConfig) -> None:
    state = random_state(small)
    state["vision_model.embeddings.patch_embedding.bias"] = torch.ones(48)
    with pytest.raises(CheckpointError, match=r"named twice: embeddings\.patch_embedding\.bias"):
        load_tower(build_tower(small), state)


def test_fewer_layers_than_are_built_are_missing(small: VisionConfig) -> None:
    with pytest.raises(ValueError, match=r"missing: encoder\.layers\.2\."):
        load_tower(
            build_tower(dataclasses.replace(small, num_hidden_layers=3)), random_state(small)
        )


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("shape", [(1, 3, 28, 28), (1, 3, 56, 57), (1, 1, 56, 56), (3, 56, 56)])
def test_other_pixels_are_refused(
    library: str, shape: tuple[int, ...], small: VisionConfig
) -> None:
    with pytest.raises(ValueError, match=r"pixels of shape .* \(views, 3, 56, 56\)"):
        through(library, small)(torch.zeros(shape))


@pytest.mark.parametrize("library", LIBRARIES)
def test_published_size(library: str) -> None:
    """SigLIP so400m at 384 pixels: 27 x 27 patches; 26 of its 27 layers."""
    vision = PRESETS["llada-v-8b"].vision
    assert vision is not None
    with torch.device("meta"):
        tower = through(library, vision)
    per_layer = 4 * (1152 * 1152 + 1152) + 2 * 1152 * 4304 + 4304 + 1152 + 4 * 1152
    expected = 1152 * (3 * 14 * 14 + 1) + 729 * 1152 + 26 * per_layer
    assert sum(p.numel() for p in tower.parameters()) == expected
    assert tower(torch.empty(5, 3, 384, 384, device="meta")).shape == (5, 729, 1152)


def test_attention_is_fused(small: VisionConfig) -> None:
    tower: Any = build_tower(small)
    assert tower.encoder.config._attn_implementation == "sdpa"


def test_connector() -> None:
    connector = build_connector(6, 4)
    assert {name: tuple(p.shape) for name, p in connector.state_dict().items()} == {
        "0.weight": (4, 6),
        "0.bias": (4,),
        "2.weight": (4, 4),
        "2.bias": (4,),
    }
    x = torch.randn(3, 6)
    w = connector.state_dict()
    hidden = x @ w["0.weight"].T + w["0.bias"]
    exact_gelu = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    assert_close(connector(x), exact_gelu @ w["2.weight"].T + w["2.bias"])
