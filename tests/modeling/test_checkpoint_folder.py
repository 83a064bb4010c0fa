"""The index says where a tensor is; what is missing, malformed or no whole model is one
sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmdiff.errors import CheckpointError
from mmdiff.modeling.checkpoint import CheckpointTensors, config_of, load_folder, load_weights
from mmdiff.modeling.checkpoint_folder import INDEX, SINGLE
from mmdiff.modeling.layouts.families import translate
from mmdiff.modeling.layouts.llada_v import LLADA_V_LAYOUT
from mmdiff.modeling.multimodal import MMDiffConfig, MMDiffModel

HEAD = "model.transformer.ff_out.weight"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def tensors(reference: Path) -> Tensors:
    return load_file(reference / "llada-mha" / SINGLE)


@pytest.fixture
def sharded(reference: Path, tensors: Tensors, tmp_path: Path) -> Path:
    """The tiny LLaDA in two files with an index."""
    names = sorted(tensors)
    parts = {
        "model-00001-of-00002.safetensors": names[::2],
        "model-00002-of-00002.safetensors": names[1::2],
    }
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, tmp_path / file)
    write_index(tmp_path, {name: file for file, held in parts.items() for name in held})
    (tmp_path / "config.json").symlink_to(reference / "llada-mha" / "config.json")
    return tmp_path


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def listed(folder: Path) -> dict[str, str]:
    return json.loads((folder / INDEX).read_text())["weight_map"]  # type: ignore[no-any-return]


def rewrite(file: Path, **more: torch.Tensor) -> None:
    save_file({**load_file(file), **more}, file)


def same(folder: Path, tensors: Tensors) -> bool:
    found = CheckpointTensors(folder)
    return found.keys() == tensors.keys() and all(
        torch.equal(found[name], tensors[name]) for name in tensors
    )


def test_a_stale_copy_in_another_file_counts_for_nothing(sharded: Path, tensors: Tensors) -> None:
    for file in set(listed(sharded).values()) - {listed(sharded)[HEAD]}:
        rewrite(sharded / file, **{HEAD: torch.zeros_like(tensors[HEAD])})
    assert same(sharded, tensors)


def test_tensors_that_the_index_does_not_name_are_not_read(sharded: Path, tensors: Tensors) -> None:
    rewrite(sharded / "model-00001-of-00002.safetensors", left_over=torch.ones(2))
    save_file({HEAD: torch.zeros(3)}, sharded / "model-00009-of-00009.safetensors")
    assert same(sharded, tensors)


def test_a_ghost_is_named(sharded: Path) -> None:
    write_index(sharded, listed(sharded) | {"ghost.weight": "model-00002-of-00002.safetensors"})
    with pytest.raises(
        CheckpointError, match="names tensors that are not there: ghost.weight in model-00002"
    ):
        CheckpointTensors(sharded)


def test_a_missing_file_is_named(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match="incomplete: model-00002-of-00002.safetensors; fetch it again"
    ):
        CheckpointTensors(sharded)


@pytest.mark.parametrize(
    "weight_map", [None, [], {}, 5, "model.safetensors", {"a": 5}, {"a": None}, {"a": ["b"]}]
)
@pytest.mark.parametrize("whole", [False, True])
def test_a_malformed_index_is_one_sentence(
    sharded: Path, tensors: Tensors, weight_map: Any, whole: bool
) -> None:
    write_index(sharded, weight_map)
    if whole:
        save_file(tensors, sharded / SINGLE)
    with pytest.raises(CheckpointError, match="has no weight_map from tensor names to file names"):
        CheckpointTensors(sharded)


@pytest.mark.parametrize("stale", ["files gone", "files there"])
def test_a_whole_file_goes_before_a_stale_index(
    sharded: Path, tensors: Tensors, stale: str
) -> None:
    new = {name: tensor + 1 for name, tensor in tensors.items()}
    save_file(new, sharded / SINGLE)
    if stale == "files gone":
        for file in sharded.glob("model-*"):
            file.unlink()
    assert same(sharded, new)


def test_a_part_of_a_model_does_not_go_before_its_index(sharded: Path, tensors: Tensors) -> None:
    save_file({HEAD: tensors[HEAD] + 1}, sharded / SINGLE)
    assert same(sharded, tensors)


def test_an_index_may_name_the_one_file(sharded: Path, tensors: Tensors) -> None:
    save_file(tensors, sharded / SINGLE)
    write_index(sharded, dict.fromkeys(tensors, SINGLE))
    assert same(sharded, tensors)
    write_index(sharded, dict.fromkeys([*tensors, "ghost"], SINGLE))
    with pytest.raises(CheckpointError, match="ghost in model.safetensors"):
        CheckpointTensors(sharded)


@pytest.mark.parametrize(
    "kind", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_quantized_weights_without_scales_are_refused_by_name(
    sharded: Path, kind: torch.dtype
) -> None:
    file = sharded / listed(sharded)[HEAD]
    rewrite(file, **{HEAD: load_file(file)[HEAD].to(kind)})
    with pytest.raises(
        CheckpointError, match=f"{HEAD} is stored as {str(kind).removeprefix('torch.')}"
    ):
        fill(sharded)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_that_are_not_finite_are_refused_by_name(
    sharded: Path, bad: float, kind: torch.dtype
) -> None:
    file = sharded / listed(sharded)[HEAD]
    head = load_file(file)[HEAD].to(kind)
    head[7, 3] = bad
    rewrite(file, **{HEAD: head})
    with pytest.raises(CheckpointError, match=f"{HEAD} holds numbers that are not finite"):
        fill(sharded)


def test_numbers_that_the_wanted_type_cannot_hold_are_refused(sharded: Path) -> None:
    file = sharded / listed(sharded)[HEAD]
    rewrite(file, **{HEAD: load_file(file)[HEAD] + 1e5})
    with pytest.raises(CheckpointError, match=f"{HEAD} has numbers that torch.float16 cannot hold"):
        fill(sharded, torch.float16)
    fill(sharded, torch.bfloat16)


def fill(folder: Path, dtype: torch.dtype | None = None) -> None:
    load_weights(MMDiffModel(MMDiffConfig.of(config_of(folder))), CheckpointTensors(folder), dtype)


def test_old_versions_buffers_are_passed_over(reference: Path) -> None:
    names = [
        "model.vision_tower.vision_tower.vision_model.embeddings.position_ids",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
    ]
    assert [translate(name, LLADA_V_LAYOUT) for name in names] == [None, None]


def test_an_adapter_alone_says_how_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "GSAI-ML/LLaDA-V"})
    )
    save_file(
        {"base_model.model.a.lora_A.weight": torch.zeros(2)}, tmp_path / "adapter_model.safetensors"
    )
    for load in (config_of, lambda folder: load_folder(folder, torch.device("cpu"), torch.float32)):
        with pytest.raises(
            CheckpointError, match=r"is a PEFT adapter.*mmdiff.load\('GSAI-ML/LLaDA-V'\).*PeftModel"
        ):
            load(tmp_path)


def test_a_save_removes_what_an_earlier_one_left(random_tiny: Path, tmp_path: Path) -> None:
    """One file over many and many over one: the folder then holds what was saved last, for any
    reader."""
    model, _ = load_folder(random_tiny, torch.device("cpu"), torch.float32)
    for size in ("50GB", "3MB", "50GB"):
        model.save_pretrained(tmp_path, max_shard_size=size)
        assert (tmp_path / SINGLE).exists() == (size == "50GB") and (tmp_path / INDEX).exists() == (
            size == "3MB"
        )
        assert CheckpointTensors(tmp_path).keys() == model.state_dict().keys()
