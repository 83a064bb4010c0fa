"""LLaDA-V's config.json in every spelling that its own code writes gives one model."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmdiff.config import PRESETS, SO400M_PENULTIMATE, ModelConfig
from mmdiff.errors import CheckpointError
from mmdiff.modeling.checkpoint import CheckpointTensors, config_of, load_weights
from mmdiff.modeling.layouts.published_config import grids_of
from mmdiff.modeling.multimodal import MMDiffConfig, MMDiffModel
from mmdiff.vision.anyres import choose_grid, count_tokens
from mmdiff.vision.image_io import open_image
from mmdiff.vision.preprocess import make_views

VARIANTS = Path(__file__).parents[1] / "reference" / "llada-v" / "config-variants"
EXPECTED = json.loads((VARIANTS / "expected.json").read_text())
TINY = [name for name, told in EXPECTED.items() if told["loads_with_the_tiny_weights"]]
GRIDS = tuple((columns, rows) for columns in range(1, 7) for rows in range(1, 7))


def folder_of(reference: Path, folder: Path, variant: str, **changes: Any) -> Path:
    """A folder as published, with weights, the tower's own folder beside them, and a config.json of
    the variants."""
    folder.mkdir(exist_ok=True)
    for name in ("model.safetensors", "siglip-tiny"):
        if not (folder / name).exists():
            (folder / name).symlink_to(reference / "llada-v" / name)
    published = json.loads((VARIANTS / f"{variant}.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(published))
    return folder


@pytest.mark.parametrize("name", EXPECTED)
def test_grids_and_numbers_of_tokens_are_the_published_ones(
    reference: Path, tmp_path: Path, name: str
) -> None:
    vision = config_of(folder_of(reference, tmp_path, name)).vision
    assert vision is not None
    assert vision.grids == tuple(map(tuple, EXPECTED[name]["grids"]))
    for choice in EXPECTED[name]["choices"]:
        size = (choice["size"][0], choice["size"][1])
        assert [*choose_grid(size, vision)] == choice["grid"] and count_tokens(
            size, vision
        ) == choice["tokens"]


def test_the_published_ones_are_the_preset(reference: Path, tmp_path: Path) -> None:
    for name in EXPECTED.keys() - set(TINY):
        assert config_of(folder_of(reference, tmp_path, name)) == PRESETS["llada-v-8b"]


@pytest.mark.parametrize("name", TINY)
def test_the_tiny_ones_load_alike(reference: Path, tmp_path: Path, name: str) -> None:
    folder = folder_of(reference, tmp_path / "a", name)
    config = config_of(folder)
    assert config == config_of(folder_of(reference, tmp_path / "b", TINY[0]))
    case = json.loads((reference / "llada-v" / "cases.json").read_text())["cases"][0]
    assert torch.allclose(
        logits(config, folder, case), expected(reference, case), rtol=1e-4, atol=1e-4
    )


def expected(reference: Path, case: dict[str, Any]) -> torch.Tensor:
    outputs = load_file(reference / "llada-v" / "outputs.safetensors")
    return outputs[f"{Path(case['image']).stem}.logits_last16"]


@torch.no_grad()
def logits(config: ModelConfig, folder: Path, case: dict[str, Any]) -> torch.Tensor:
    model = MMDiffModel(MMDiffConfig.of(config)).eval()
    load_weights(model, CheckpointTensors(folder))
    assert config.vision is not None and config.tokens.image is not None
    views = make_views(open_image(VARIANTS.parent / case["image"]), config.vision)
    ids = [
        token
        for part in case["prompt"]
        for token in ([config.tokens.image] * case["tokens"] if part == -200 else [part])
    ]
    last = torch.arange(len(ids))[None] >= len(ids) - 16
    return model(
        torch.tensor([ids]),
        pixel_values=views.pixels_V3HW,
        image_sizes=torch.tensor([views.size]),
        image_grids=torch.tensor([views.grid]),
        select=last,
    ).logits


@pytest.mark.parametrize(
    "tower",
    [
        "google/siglip2-so400m-patch14-384",
        "model/siglip2-so400m-patch14-384",
        "/data/models/siglip2-so400m-patch14-384/",
        "google/siglip-so400m-patch14-384",
        "C:\\models\\siglip2-so400m-patch14-384",
        "../siglip-so400m-patch14-384-ours",
        "/root/.cache/huggingface/hub/models--google--siglip2-so400m-patch14-384/snapshots/0123abc",
    ],
)
def test_a_tower_goes_by_the_last_part_of_its_path(
    reference: Path, tmp_path: Path, tower: str
) -> None:
    vision = config_of(
        folder_of(reference, tmp_path, "published-hub-name", mm_vision_tower=tower)
    ).vision
    assert vision == dataclasses.replace(SO400M_PENULTIMATE, grids=GRIDS, max_base_areas=4)


@pytest.mark.parametrize(
    "tower",
    [
        "openai/clip-vit-large-patch14-336",
        "google/siglip-base-patch16-224",
        "google/siglip2-so400m-patch16-naflex",
        "google/siglip2-so400m-patch14-224",
        "eva_clip_g",
        7,
        "/",
    ],
)
def test_another_tower_is_refused_by_name(reference: Path, tmp_path: Path, tower: Any) -> None:
    with pytest.raises(CheckpointError, match="unknown vision tower"):
        config_of(
            folder_of(
                reference,
                tmp_path,
                "published-hub-name",
                mm_vision_tower=tower,
                mm_hidden_size=None,
            )
        )


@pytest.mark.parametrize("named", ["model/tower", "tower/", "tower"])
def test_a_tower_s_own_folder_says_its_sizes(reference: Path, tmp_path: Path, named: str) -> None:
    """Whole SigLIP 2 models nest them, and leave out what is as usual."""
    flat = json.loads((reference / "llada-v" / "siglip-tiny" / "config.json").read_text())
    folder = folder_of(reference, tmp_path, "pairs", mm_vision_tower=named)
    (folder / "tower").mkdir()
    towers = []
    for written in (
        flat,
        {"model_type": "siglip", "text_config": {"hidden_size": 9}, "vision_config": flat},
    ):
        (folder / "tower" / "config.json").write_text(json.dumps(written))
        towers.append(config_of(folder).vision)
    assert towers[0] == towers[1] and towers[0] is not None and towers[0].hidden_size == 48
    nested = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "image_size": 384,
        "model_type": "siglip_vision_model",
    }
    (folder / "tower" / "config.json").write_text(
        json.dumps({"model_type": "siglip", "vision_config": nested})
    )
    changed = folder_of(reference, tmp_path, "pairs", mm_vision_tower=named, mm_hidden_size=1152)
    assert config_of(changed).vision == dataclasses.replace(
        SO400M_PENULTIMATE, grids=GRIDS, max_base_areas=4
    )


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"vision_config": None}, "vision_config=None"),
        ({"vision_config": {"hidden_act": "quick_gelu"}}, "hidden_act='quick_gelu'"),
        ({"vision_config": {"model_type": "siglip2_vision_model"}}, "siglip2_vision_model"),
        ({"vision_config": {"hidden_size": "48"}}, "48"),
        ({"vision_config": {"num_hidden_layers": "4"}}, "str"),
    ],
)
def test_a_tower_of_another_kind_is_one_sentence(
    reference: Path, tmp_path: Path, sizes: dict[str, Any], message: str
) -> None:
    folder = folder_of(reference, tmp_path, "pairs", mm_vision_tower="tower", mm_hidden_size=None)
    (folder / "tower").mkdir()
    (folder / "tower" / "config.json").write_text(json.dumps(sizes))
    with pytest.raises(CheckpointError, match=message):
        config_of(folder)


@pytest.mark.parametrize(
    ("pinpoints", "grids"),
    [
        ("(1x1),...,(6x6)", GRIDS),
        ("(2x2),(3x3),(4x4)", tuple((c, r) for c in (2, 3, 4) for r in (2, 3, 4))),
        ("(1x2)", ((1, 2),)),
        ([[384, 768], [1152, 384]], ((1, 2), (3, 1))),
        ("[(384, 768), (1152, 384)]", ((1, 2), (3, 1))),
        ("[[384, 768], [1152, 384]]", ((1, 2), (3, 1))),
        ("((384, 768),)", ((1, 2),)),
        ([(768, 384)], ((2, 1),)),
    ],
)
def test_grids_are_read_in_every_form(pinpoints: Any, grids: Any) -> None:
    assert grids_of(pinpoints, 384) == grids


@pytest.mark.parametrize(
    "pinpoints",
    [
        None,
        "",
        "1x1",
        [],
        "[]",
        [[384]],
        [[384, 768, 2]],
        [[400, 400]],
        [[336, 672], [672, 336]],
        [["384", "768"]],
        5,
        "(1x1),...,(99999999x99999999)",
        "(0x0)",
        "(6x6),...,(1x1)",
        "[(384, 768)",
        "__import__('os')",
        {"a": 1},
        [384, 768],
    ],
)
def test_other_grids_are_refused_by_value(pinpoints: Any) -> None:
    with pytest.raises(CheckpointError, match="image_grid_pinpoints="):
        grids_of(pinpoints, 384)


def test_a_tower_s_own_folder_may_lie_elsewhere(reference: Path, tmp_path: Path) -> None:
    tower = (reference / "llada-v" / "siglip-tiny").resolve()
    vision = config_of(folder_of(reference, tmp_path, "pairs", mm_vision_tower=f"{tower}/")).vision
    assert vision == config_of(folder_of(reference, tmp_path, "pairs")).vision


def test_another_tower_s_weights_do_not_pass_for_it(reference: Path, tmp_path: Path) -> None:
    """Where no folder says otherwise a SigLIP of an unknown name is so400m, and the shapes must
    be."""
    folder = folder_of(
        reference, tmp_path, "pairs", mm_vision_tower="model/our-siglip", mm_hidden_size=1152
    )
    with torch.device("meta"):
        model = MMDiffModel(MMDiffConfig.of(config_of(folder)))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_weights(model, CheckpointTensors(folder))


def test_a_vocabulary_of_another_size_must_name_its_ids(reference: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no mask_token_id"):
        config_of(folder_of(reference, tmp_path, "pairs", mask_token_id=None))


@pytest.mark.parametrize(
    ("aspect", "merge", "tokens"),
    [
        ("square", "flat", 729),
        ("pad", "flat", 729),
        ("square", "spatial_unpad", 730),
        ("pad", "spatial_unpad", 730),
    ],
)
def test_one_view_as_in_the_first_stage(
    reference: Path, tmp_path: Path, aspect: str, merge: str, tokens: int
) -> None:
    vision = config_of(
        folder_of(
            reference,
            tmp_path,
            "published-hub-name",
            image_aspect_ratio=aspect,
            image_grid_pinpoints=None,
            mm_patch_merge_type=merge,
        )
    ).vision
    assert vision is not None and count_tokens((640, 480), vision) == tokens


def test_tiles_without_a_bound(reference: Path, tmp_path: Path) -> None:
    vision = config_of(
        folder_of(reference, tmp_path, "published-hub-name", image_aspect_ratio="anyres")
    ).vision
    assert vision is not None and vision.max_base_areas is None
    assert count_tokens((2304, 2304), vision) == 729 + 162 * 163


def test_the_mlp_may_be_given_as_a_ratio(reference: Path, tmp_path: Path) -> None:
    """LLaDA's own code reads it where no size is given."""
    published = json.loads((reference / "llada-mha" / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**published, "mlp_hidden_size": None, "mlp_ratio": 2})
    )
    assert config_of(tmp_path).backbone.intermediate_size == 128
