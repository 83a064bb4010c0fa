"""Every weight is accounted for, in both published layouts and ours, and a bad folder is one clear
sentence."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from mmdiff.config import PRESETS
from mmdiff.errors import CheckpointError
from mmdiff.modeling.checkpoint import (
    CheckpointTensors,
    canonical_state,
    config_of,
    config_of_published,
    describe,
    load_folder,
    load_weights,
    recognise,
)
from mmdiff.modeling.layouts.families import translate
from mmdiff.modeling.layouts.llada import LLADA_LAYOUT
from mmdiff.modeling.layouts.llada_v import LLADA_V_LAYOUT
from mmdiff.modeling.layouts.own import OWN_LAYOUT
from mmdiff.modeling.multimodal import MMDiffConfig, MMDiffModel

CPU = torch.device("cpu")


@pytest.fixture
def llada(reference: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "llada"
    shutil.copytree(reference / "llada-mha", folder)
    return folder


def rewrite(folder: Path, change) -> None:  # type: ignore[no-untyped-def]
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def model_of(folder: Path) -> MMDiffModel:
    model = MMDiffModel(MMDiffConfig.of(config_of(folder)))
    load_weights(model, CheckpointTensors(folder))
    return model


def test_layouts_are_told_apart_by_their_keys(reference: Path, random_tiny: Path) -> None:
    assert recognise(CheckpointTensors(reference / "llada-mha")) is LLADA_LAYOUT
    assert recognise(CheckpointTensors(reference / "llada-v")) is LLADA_V_LAYOUT
    assert recognise(CheckpointTensors(random_tiny)) is OWN_LAYOUT


def test_ff_out_is_the_head_or_a_block_s_projection() -> None:
    assert translate("model.transformer.ff_out.weight", LLADA_LAYOUT) == "backbone.lm_head.weight"
    assert (
        translate("model.transformer.blocks.7.ff_out.weight", LLADA_LAYOUT)
        == "backbone.layers.7.mlp.down_proj.weight"
    )


def test_every_name_of_llada_8b_is_known() -> None:
    """The 291 names of the published checkpoint, made from its sizes, cover the meta model
    exactly."""
    parts = [
        "q_proj",
        "k_proj",
        "v_proj",
        "attn_out",
        "ff_proj",
        "up_proj",
        "ff_out",
        "attn_norm",
        "ff_norm",
    ]
    names = [f"model.transformer.blocks.{n}.{part}.weight" for n in range(32) for part in parts]
    names += [f"model.transformer.{part}.weight" for part in ("wte", "ln_f", "ff_out")]
    with torch.device("meta"):
        model = MMDiffModel(MMDiffConfig.of(PRESETS["llada-8b"]))
    assert len(names) == 291
    assert {translate(name, LLADA_LAYOUT) for name in names} == set(canonical_state(model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop("model.transformer.blocks.1.q_proj.weight"),
            "missing names: backbone.layers.1.self_attn.q_",
        ),
        (lambda w: w.update(surprise=torch.zeros(1)), "unknown names: surprise"),
        (
            lambda w: w.update({"model.transformer.ln_f.weight": torch.zeros(3)}),
            r"norm.weight: \(3,\) instead of",
        ),
        (lambda w: w.pop("model.transformer.wte.weight"), "unknown architecture"),
    ],
)
def test_misfits_are_listed(llada: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    rewrite(llada, change)
    with pytest.raises(CheckpointError, match=message):
        model_of(llada)


def test_a_damaged_file_is_refused(llada: Path) -> None:
    data = (llada / "model.safetensors").read_bytes()
    for cut in (0, 4, 100, len(data) // 2, len(data) - 1):
        (llada / "model.safetensors").write_bytes(data[:cut])
        with pytest.raises(CheckpointError, match="damaged"):
            model_of(llada)


def test_pickles_are_never_read(llada: Path) -> None:
    (llada / "model.safetensors").rename(llada / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"pytorch_model.bin is a pickle, which is never read"
    ):
        model_of(llada)


def test_a_missing_shard_is_named(llada: Path) -> None:
    (llada / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "one.safetensors"}})
    )
    with pytest.raises(CheckpointError, match="incomplete: one.safetensors"):
        model_of(llada)


def test_an_index_cannot_point_outside_its_folder(llada: Path, tmp_path: Path) -> None:
    shutil.copy(llada / "model.safetensors", tmp_path / "other.safetensors")
    (llada / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../other.safetensors"}})
    )
    with pytest.raises(CheckpointError, match="incomplete"):
        model_of(llada)


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"model_type": "llama"}', '{"model_type": "mmdiff"}']
)
def test_a_config_of_something_else_is_refused(llada: Path, text: str) -> None:
    (llada / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="config.json"):
        config_of(llada)


def test_a_model_that_does_more_is_refused(llada: Path) -> None:
    published = json.loads((llada / "config.json").read_text())
    (llada / "config.json").write_text(json.dumps({**published, "alibi": True}))
    with pytest.raises(CheckpointError, match="alibi=True"):
        config_of_published(llada)


def test_published_sizes_come_from_config_json(tmp_path: Path) -> None:
    """LLaDA-V's published config.json, in the parts that matter, gives the preset."""
    published = {
        "model_type": "llava_llada",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 126464,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "max_position_embeddings": 16384,
        "bos_token_id": 128000,
        "mm_vision_tower": "google/siglip2-so400m-patch14-384",
        "image_aspect_ratio": "anyres_max_4",
        "image_grid_pinpoints": "(1x1),...,(6x6)",
        "mm_patch_merge_type": "spatial_unpad",
    }
    (tmp_path / "config.json").write_text(json.dumps(published))
    assert config_of(tmp_path) == PRESETS["llada-v-8b"]


def test_the_shipped_form_round_trips(random_tiny: Path, tmp_path: Path) -> None:
    """Folder -> model -> sharded folder -> both loaders, and nothing changes."""
    model, processor = load_folder(random_tiny, CPU, torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="500KB")
    processor.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours, _ = load_folder(tmp_path, CPU, torch.float32)
    theirs = MMDiffModel.from_pretrained(tmp_path, dtype=torch.float32)
    auto = AutoModel.from_pretrained(tmp_path, dtype=torch.float32, device_map="cpu")
    assert AutoConfig.from_pretrained(tmp_path).model == model.model_config
    for other in (ours, theirs, auto):
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name


def test_a_folder_saved_with_a_retired_setting_loads(random_tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(random_tiny, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "config.json"
    settings = json.loads(file.read_text())
    settings["settings"]["audio"]["doubt"] = 0.25
    file.write_text(json.dumps(settings))
    (loaded, _), (before, _) = (
        load_folder(folder, CPU, torch.float32) for folder in (tmp_path, random_tiny)
    )
    assert loaded.model_config == before.model_config


@pytest.mark.parametrize("library", ["timm", "open_clip"])
def test_a_tower_of_another_library_loads_the_same_folder(
    random_tiny: Path, tmp_path: Path, library: str
) -> None:
    shutil.copytree(random_tiny, tmp_path / "model")
    stored = json.loads((random_tiny / "config.json").read_text())
    stored["settings"]["vision"]["library"] = library
    (tmp_path / "model" / "config.json").write_text(json.dumps(stored))
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    features = []
    for folder in (random_tiny, tmp_path / "model"):
        model, _ = load_folder(folder, CPU, torch.float32)
        assert model.vision_tower is not None
        with torch.no_grad():
            features.append(model.eval().vision_tower(pixels))
    torch.testing.assert_close(features[0], features[1], rtol=1e-4, atol=1e-4)


def test_describe_counts_without_weights() -> None:
    told = describe(PRESETS["llada-8b"])
    assert told["parameters"]["total"] == 8_015_581_184
    assert describe(PRESETS["llada-v-8b"])["parameters"]["vision_tower"] > 390_000_000


def test_presets_survive_json() -> None:
    for preset in PRESETS.values():
        assert (
            MMDiffConfig(settings=json.loads(json.dumps(dataclasses.asdict(preset)))).model
            == preset
        )


def test_a_folder_without_a_tokenizer_is_one_sentence(
    llada: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        CheckpointError,
        match="no tokenizer that can be read .there is no tokenizer.json.; fetch it",
    ):
        load_folder(llada, CPU, torch.float32)
    assert capfd.readouterr().err == ""
