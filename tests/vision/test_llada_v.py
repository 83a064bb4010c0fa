"""Views, grids, token counts and embeddings equal those of the published LLaDA-V code."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from mmdiff.config import VisionConfig
from mmdiff.vision.connector import build_connector
from mmdiff.vision.image_io import open_image
from mmdiff.vision.merge import merge_views
from mmdiff.vision.preprocess import count_tokens, make_views
from mmdiff.vision.tower import build_tower, load_tower

PICTURES = (0, 1, 3, 4, 6)


@pytest.fixture(scope="module")
def weights(llada_v: Path) -> dict[str, Tensor]:
    return load_file(llada_v / "model.safetensors")


@pytest.fixture(scope="module")
def outputs(llada_v: Path) -> dict[str, Tensor]:
    return load_file(llada_v / "outputs.safetensors")


@pytest.fixture(scope="module")
def cases(llada_v: Path) -> dict[int, dict[str, Any]]:
    listed = json.loads((llada_v / "cases.json").read_text())["cases"]
    return {int(Path(case["image"]).stem): case for case in listed}


def part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }


def test_no_case_is_left_out(cases: dict[int, dict[str, Any]]) -> None:
    assert tuple(cases) == PICTURES


@pytest.mark.parametrize("number", PICTURES)
def test_views(
    number: int,
    llada_v: Path,
    anyres: VisionConfig,
    cases: dict[int, dict[str, Any]],
    outputs: dict[str, Tensor],
) -> None:
    case = cases[number]
    views = make_views(open_image(llada_v / case["image"]), anyres)
    assert list(views.size) == case["size"]
    assert list(views.grid) == case["grid"]
    assert views.pixels_V3HW.shape == (case["tiles"], 3, 384, 384)
    assert count_tokens(views.size, anyres) == case["tokens"]
    assert_close(
        views.pixels_V3HW[:, :, ::16, ::16],
        outputs[f"{number}.pixels_stride16"],
        rtol=1e-4,
        atol=1e-5,
    )
    assert views.pixels_V3HW.double().mean().item() == pytest.approx(case["pixel_mean"], abs=1e-6)
    assert views.pixels_V3HW.double().std().item() == pytest.approx(case["pixel_std"], abs=1e-6)


@pytest.mark.parametrize("library", ["transformers", "timm", "open_clip"])
@pytest.mark.parametrize("number", PICTURES)
def test_embeddings(
    number: int,
    library: Any,
    llada_v: Path,
    anyres: VisionConfig,
    cases: dict[int, dict[str, Any]],
    weights: dict[str, Tensor],
    outputs: dict[str, Tensor],
) -> None:
    config = dataclasses.replace(anyres, library=library)
    tower, connector = build_tower(config), build_connector(48, 64)
    load_tower(tower, part(weights, "model.vision_tower.vision_tower."))
    connector.load_state_dict(part(weights, "model.mm_projector."))
    views = make_views(open_image(llada_v / cases[number]["image"]), config)
    with torch.inference_mode():
        features = connector(tower(views.pixels_V3HW))
        embeddings = merge_views(
            features, views.size, views.grid, config, weights["model.image_newline"]
        )
    assert len(embeddings) == cases[number]["tokens"]
    assert_close(embeddings[::32], outputs[f"{number}.image_embeds_every32"], rtol=1e-4, atol=1e-4)


def test_the_layer_before_the_last(
    llada_v: Path, anyres: VisionConfig, weights: dict[str, Tensor]
) -> None:
    """The tower as SigLIP publishes it (one layer more, a pooling head) gives what LLaDA-V's own
    copy gives."""
    towers = build_tower(anyres), build_tower(anyres)
    load_tower(towers[0], load_file(llada_v / "siglip-tiny" / "model.safetensors"))
    load_tower(towers[1], part(weights, "model.vision_tower.vision_tower."))
    pixels = torch.randn(1, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert_close(towers[0](pixels), towers[1](pixels))
