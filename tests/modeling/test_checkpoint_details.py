"""Published sizes and ids are read from the right key, and messages count what does not fit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmdiff.config import PRESETS
from mmdiff.errors import CheckpointError
from mmdiff.modeling.checkpoint import (
    CheckpointTensors,
    _tokenizer,
    config_of,
    load_folder,
    load_weights,
)
from mmdiff.modeling.multimodal import MMDiffConfig, MMDiffModel
from mmdiff.modeling.onednn_linear import OneDNNLinear

LLADA = {
    "model_type": "llada",
    "d_model": 64,
    "mlp_hidden_size": 96,
    "n_layers": 3,
    "n_heads": 8,
    "n_kv_heads": 4,
    "embedding_size": 512,
    "vocab_size": 500,
    "rope_theta": 1000.0,
    "rms_norm_eps": 1e-4,
    "include_qkv_bias": True,
    "max_sequence_length": 77,
    "mask_token_id": 400,
    "eos_token_id": 401,
}
LLADA_V = {
    "model_type": "llava_llada",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "rope_theta": 1000.0,
    "rms_norm_eps": 1e-4,
    "mask_token_id": 400,
    "eos_token_id": 401,
    "eot_token_id": 402,
    "image_token_id": 403,
    "mm_vision_tower": "google/siglip2-so400m-patch14-384",
    "image_aspect_ratio": "anyres_max_4",
    "image_grid_pinpoints": "(1x1),...,(2x3)",
    "mm_patch_merge_type": "spatial_unpad",
}


def read(folder: Path, published: dict[str, Any], **changes: Any) -> Any:
    kept = {name: value for name, value in {**published, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    return config_of(folder)


def test_llada_s_own_keys_are_read(tmp_path: Path) -> None:
    backbone = read(tmp_path, LLADA).backbone
    assert (backbone.vocab_size, backbone.hidden_size, backbone.intermediate_size) == (512, 64, 96)
    assert (
        backbone.num_hidden_layers,
        backbone.num_attention_heads,
        backbone.num_key_value_heads,
    ) == (3, 8, 4)
    assert (backbone.rope_theta, backbone.rms_norm_eps, backbone.qkv_bias) == (1000.0, 1e-4, True)
    assert backbone.max_position_embeddings == 77
    assert (
        read(tmp_path, LLADA, n_kv_heads=None).backbone.num_key_value_heads == 8
    )  # as many as there are heads


def test_llada_v_s_keys_are_read(tmp_path: Path) -> None:
    config = read(tmp_path, LLADA_V)
    assert (config.backbone.num_attention_heads, config.backbone.num_key_value_heads) == (8, 2)
    assert config.vision.grids == ((1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3))  # columns, rows
    assert config.vision.max_base_areas == 4
    from_two = read(tmp_path, LLADA_V, image_grid_pinpoints="(2x1),...,(2x2)").vision
    assert from_two.grids == ((2, 1), (2, 2))


@pytest.mark.parametrize(
    "name", ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"]
)
def test_a_size_that_is_missing_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=f"does not say .*{name}"):
        read(tmp_path, LLADA_V, **{name: None})


def test_special_ids_are_those_that_are_named_unless_the_vocabulary_is_the_published_one(
    tmp_path: Path,
) -> None:
    tokens = read(tmp_path, LLADA_V).tokens
    assert (tokens.mask, tokens.eos, tokens.eot, tokens.image) == (400, 401, 402, 403)
    assert (
        read(tmp_path, LLADA_V, eot_token_id=None).tokens.eot == 401
    )  # the end of all ends a turn too
    large = PRESETS["llada-v-8b"].tokens
    assert read(tmp_path, LLADA_V, vocab_size=126464, mask_token_id=None).tokens == large
    assert read(tmp_path, LLADA_V, vocab_size=126464, mask_token_id=large.mask).tokens == large
    assert read(tmp_path, LLADA_V, vocab_size=126464).tokens.mask == 400
    assert (
        read(tmp_path, LLADA_V, eot_token_id=0, bos_token_id=0).tokens.eot == 0
    )  # an id like any other
    with pytest.raises(CheckpointError, match="mask_token_id"):
        read(tmp_path, LLADA_V, mask_token_id=None)
    for key in ("mask_token_id", "eos_token_id"):
        with pytest.raises(CheckpointError, match=f"{key}=512, outside of its vocabulary of 512"):
            read(tmp_path, LLADA_V, **{key: 512})


def test_a_tower_is_taken_without_its_last_layer(tmp_path: Path) -> None:
    (tmp_path / "tower").mkdir()
    sizes = {
        "hidden_size": 48,
        "intermediate_size": 56,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 14,
    }
    (tmp_path / "tower" / "config.json").write_text(json.dumps(sizes))
    vision = read(tmp_path, LLADA_V, mm_vision_tower="tower").vision
    assert vision.num_hidden_layers == 4
    assert (vision.hidden_size, vision.intermediate_size, vision.num_attention_heads) == (48, 56, 4)
    assert (vision.image_size, vision.patch_size) == (28, 14)


@pytest.mark.parametrize(
    ("key", "value"), [("rope", False), ("tie_word_embeddings", True), ("weight_tying", True)]
)
def test_what_is_not_computed_is_refused_and_what_is_may_be_said(
    tmp_path: Path, key: str, value: bool
) -> None:
    with pytest.raises(CheckpointError, match=f"{key}={value}"):
        read(tmp_path, LLADA, **{key: value})
    assert read(tmp_path, LLADA, **{key: not value}) == read(tmp_path, LLADA)


def test_weights_are_turned_into_the_type_that_is_asked_for(random_tiny: Path) -> None:
    assert {tensor.dtype for tensor in load_file(random_tiny / "model.safetensors").values()} == {
        torch.bfloat16
    }
    for dtype in (torch.float32, torch.bfloat16):
        model, _ = load_folder(random_tiny, torch.device("cpu"), dtype)
        assert {each.dtype for each in model.parameters()} == {dtype}


def test_misfits_are_counted_and_told_apart(reference: Path, tmp_path: Path) -> None:
    weights = load_file(reference / "llada-mha" / "model.safetensors")
    model = MMDiffModel(MMDiffConfig.of(config_of(reference / "llada-mha")))
    more = {f"more.{number}": torch.zeros(1) for number in range(10)}
    with pytest.raises(CheckpointError, match=r"unknown names: more\.0, .*more\.7 and 2 more$"):
        load_weights(model, {**weights, **more})
    wider = {
        "model.transformer.ln_f.weight": torch.zeros(
            len(weights["model.transformer.ln_f.weight"]) + 1
        )
    }
    with pytest.raises(CheckpointError, match="wrong shapes: backbone.norm.weight"):
        load_weights(model, {**weights, **wider})


def test_an_index_or_a_json_file_of_another_kind_is_refused(
    reference: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "llada"
    shutil.copytree(reference / "llada-mha", folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="index.json"):
        load_folder(folder, torch.device("cpu"), torch.float32)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError) as nothing:
        load_folder(folder, torch.device("cpu"), torch.float32)
    assert "pickle" not in str(nothing.value)
    for text in ("3", '"a"', "null", "[]"):
        (folder / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match="not a JSON object"):
            config_of(folder)


def test_a_shard_is_asked_for_by_its_name_alone(reference: Path, tmp_path: Path) -> None:
    """A path that leads back into the folder is none."""
    folder = tmp_path / "llada"
    shutil.copytree(reference / "llada-mha", folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "one.safetensors")
    listed = dict.fromkeys(weights, "../llada/one.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(CheckpointError, match="incomplete"):
        load_folder(folder, torch.device("cpu"), torch.float32)


def test_a_list_of_eight_is_told_whole(reference: Path) -> None:
    weights = load_file(reference / "llada-mha" / "model.safetensors")
    model = MMDiffModel(MMDiffConfig.of(config_of(reference / "llada-mha")))
    more = {f"more.{number}": torch.zeros(1) for number in range(8)}
    with pytest.raises(CheckpointError, match=r"more\.7$"):
        load_weights(model, {**weights, **more})


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda weight: weight.index_fill(0, torch.tensor([0]), torch.nan), "not finite"),
        (lambda weight: weight.index_fill(0, torch.tensor([0]), -torch.inf), "not finite"),
        (lambda weight: weight.index_fill(0, torch.tensor([0]), torch.inf), "not finite"),
        (lambda weight: weight.index_fill(0, torch.tensor([0]), 1e30), "float16 cannot hold"),
        (lambda weight: weight.to(torch.int8), "stored as int8"),
    ],
    ids=["nan", "low", "high", "large", "int8"],
)
def test_numbers_that_are_none_are_refused(reference: Path, made: Any, message: str) -> None:
    weights = load_file(reference / "llada-mha" / "model.safetensors")
    model = MMDiffModel(MMDiffConfig.of(config_of(reference / "llada-mha")))
    name = "model.transformer.ln_f.weight"
    with pytest.raises(CheckpointError, match=f"{name} .*{message}"):
        load_weights(model, {**weights, name: made(weights[name])}, torch.float16)


def test_layers_of_a_processor_are_made_for_it(random_tiny: Path) -> None:
    model, _ = load_folder(random_tiny, torch.device("cpu"), torch.float32)
    assert any(isinstance(each, OneDNNLinear) for each in model.backbone.modules())


def test_a_whole_file_goes_before_an_index_that_does_not_name_it(
    reference: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "llada"
    shutil.copytree(reference / "llada-mha", folder)
    weights = load_file(folder / "model.safetensors")
    first, *others = sorted(weights)
    stale = {first: weights[first] + 1}
    save_file(stale, folder / "part.safetensors")
    index = folder / "model.safetensors.index.json"

    def found() -> Any:
        return CheckpointTensors(folder)[first]

    index.write_text(json.dumps({"weight_map": {first: "part.safetensors"}}))
    torch.testing.assert_close(found(), weights[first])
    whole = dict.fromkeys(others, "model.safetensors")
    index.write_text(json.dumps({"weight_map": {**whole, first: "part.safetensors"}}))
    torch.testing.assert_close(found(), stale[first])  # an index that names both is obeyed
    save_file({others[0]: weights[others[0]]}, folder / "model.safetensors")  # a leftover
    index.write_text(json.dumps({"weight_map": {first: "part.safetensors"}}))
    torch.testing.assert_close(found(), stale[first])


def test_code_beside_a_tokenizer_is_never_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own:\n    pass\n")
    named = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llada"}))
    with pytest.raises(CheckpointError, match="no tokenizer that can be read"):
        _tokenizer(tmp_path)
    assert not ran.exists()


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_scaled_positions_are_refused_by_their_kind_alone(tmp_path: Path, kind: str) -> None:
    with pytest.raises(CheckpointError, match=f"rope_scaling=.*{kind}"):
        read(tmp_path, LLADA_V, rope_scaling={"rope_type": kind})
    assert read(tmp_path, LLADA_V, rope_scaling={"rope_type": "default"}).backbone.hidden_size == 64
