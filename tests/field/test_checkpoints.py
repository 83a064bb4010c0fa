"""Public reports about loading and saving checkpoints, each tried here with a small folder of our
own."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from mmdiff.errors import CheckpointError, MMDiffError
from mmdiff.modeling.checkpoint import CheckpointTensors, config_of, load_folder, load_weights
from mmdiff.modeling.checkpoint_folder import INDEX, SINGLE
from mmdiff.modeling.multimodal import MMDiffConfig, MMDiffModel
from mmdiff.pipeline import load

HEAD, NORM = "model.transformer.ff_out.weight", "model.transformer.ln_f.weight"
A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def settings(reference: Path, tmp_path: Path) -> Callable[..., Any]:
    """The settings of a published config.json with changes."""

    def read(of: str, **changes: Any) -> Any:
        file = {
            "llada": "llada-mha/config.json",
            "dream": "dream/config.json",
            "llada-v": "llada-v/config-variants/published-hub-name.json",
        }[of]
        published = json.loads((reference / file).read_text()) | changes
        (tmp_path / "config.json").write_text(
            json.dumps({k: v for k, v in published.items() if v != "absent"})
        )
        return config_of(tmp_path)

    return read


# What a configuration says and an engine did not do, and so computed something else without a word.
# In both tables a link goes on from https://github.com/.
REFUSED = [
    # theta's scaling was read, and never applied
    (
        "NVIDIA/Megatron-LM/issues/6305",
        "llada",
        {"rope_scaling": {"rope_type": "llama3", "factor": 32.0}},
    ),
    # scaled positions were dropped, and the run ended with exit code 0
    (
        "deepspeedai/DeepSpeed/pull/8341",
        "dream",
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}},
    ),
    # long context was announced and logits did not change
    (
        "MakazhanAlpamys/Soup/issues/793",
        "llada-v",
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    ),
    # a window that only some kernels know
    ("huggingface/text-generation-inference/pull/2033", "dream", {"sliding_window": 4096}),
    # a window that never reached the attention
    (
        "unslothai/unsloth/pull/8253",
        "llada-v",
        {"sliding_window": 1024, "use_sliding_window": True},
    ),
    # the head stayed as it was initialised
    ("vllm-project/vllm/issues/5621", "dream", {"tie_word_embeddings": True}),
    # the kind of quantization is in config.json
    (
        "huggingface/lighteval/issues/200",
        "llada",
        {"quantization_config": {"quant_method": "bitsandbytes"}},
    ),
    (
        "intel/llm-on-ray/issues/85",
        "llada-v",
        {"quantization_config": {"quant_method": "awq", "bits": 4}},
    ),
    # another architecture under a name that is close
    ("ggml-org/llama.cpp/issues/5142", "llada-v", {"architectures": ["LlamaForCausalLM"]}),
    (
        "InternLM/xtuner/issues/748",
        "llada-v",
        {"architectures": "absent", "model_type": "llava_llama"},
    ),
    # another tower's sizes
    (
        "LLaVA-VL/LLaVA-NeXT/issues/246",
        "llada-v",
        {"mm_vision_tower": "openai/clip-vit-base-patch32"},
    ),
    # tiles that are not multiples of the tower's view
    (
        "haotian-liu/LLaVA/issues/1300",
        "llada-v",
        {"image_grid_pinpoints": [[336, 1008], [1008, 336]]},
    ),
    (
        "haotian-liu/LLaVA/issues/1644",
        "llada-v",
        {"image_grid_pinpoints": [[672, 672], [1344, 336]]},
    ),
    # tiling without a list of grids
    ("haotian-liu/LLaVA/issues/1049", "llada-v", {"image_grid_pinpoints": None}),
]


@pytest.mark.parametrize(("link", "of", "changes"), REFUSED)
def test_what_would_be_computed_otherwise_is_refused(
    settings: Callable[..., Any], link: str, of: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError) as raised:
        settings(of, **changes)
    assert any(
        key.removesuffix("s") in str(raised.value) or "vision tower" in str(raised.value)
        for key in changes
    )
    assert "\n" not in str(raised.value)


# What a configuration says and loads.
ACCEPTED = [
    # transformers 5 writes the base of rotary positions into another key, and its value got lost
    (
        "deepspeedai/DeepSpeed/pull/8345",
        "dream",
        {"rope_theta": "absent", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    (
        "vllm-project/vllm/pull/28542",
        "llada-v",
        {"rope_theta": "absent", "rope_scaling": "absent", "rope_parameters": {"rope_theta": 5e5}},
    ),
    # both spellings beside each other
    (
        "sgl-project/sglang/pull/14745",
        "dream",
        {"rope_scaling": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    # a window that is written, and switched off
    (
        "huggingface/transformers/issues/38002",
        "dream",
        {"sliding_window": 4096, "use_sliding_window": False},
    ),
    # the tower's path is that of whoever trained
    (
        "VITA-Group/VLM-3R/issues/18",
        "llada-v",
        {"mm_vision_tower": "/media/x/models/siglip-so400m-patch14-384"},
    ),
    (
        "LLaVA-VL/LLaVA-NeXT/issues/188",
        "llada-v",
        {"mm_vision_tower": "google/siglip-so400m-patch14-384"},
    ),
    # grids in the form that scripts write them
    ("LLaVA-VL/LLaVA-NeXT/issues/358", "llada-v", {"image_grid_pinpoints": "(1x1),...,(6x6)"}),
    # loading LLaDA broke with the library's version; here no code of the folder is run
    (
        "ML-GSAI/LLaDA/issues/130",
        "llada",
        {"transformers_version": "4.38.2", "auto_map": {"AutoModel": "x.Y"}},
    ),
    # keys that only libraries, runs of training and generation read
    (
        "open-edge-platform/physical-ai-studio/pull/1076",
        "dream",
        {"license": "mit", "use_safetensors": True},
    ),
    (
        "NX-AI/xlstm/issues/71",
        "llada",
        {"_name_or_path": "a/b", "seq_length": 4096, "learning_rate": 1e-5},
    ),
    (
        "IAAR-Shanghai/UHGEval/issues/31",
        "dream",
        {"max_new_tokens": 512, "generation_config": {"top_p": 0.9}},
    ),
    (
        "hiyouga/LlamaFactory/issues/7412",
        "llada-v",
        {
            "pretrain_mm_mlp_adapter": "a.bin",
            "weight_decay": 0.1,
            "frames_upbound": 32,
            "mm_perceiver_depth": 3,
        },
    ),
    (
        "IndicoDataSolutions/finetune/pull/401",
        "llada",
        {"resid_pdrop": 0.1, "remasking": "low_confidence"},
    ),
]


@pytest.mark.parametrize(("link", "of", "changes"), ACCEPTED)
def test_what_means_the_same_loads_alike(
    settings: Callable[..., Any], link: str, of: str, changes: dict[str, Any]
) -> None:
    assert settings(of, **changes) == settings(of)


def test_a_byte_order_mark_is_passed_over(reference: Path, tmp_path: Path) -> None:
    # https://github.com/ThilinaRajapakse/simpletransformers/issues/1169
    text = (reference / "dream" / "config.json").read_text()
    (tmp_path / "config.json").write_text(text, encoding="utf-8-sig")
    assert config_of(tmp_path) == config_of(reference / "dream")


def test_a_tower_s_name_may_be_longer_than_a_file_s(settings: Callable[..., Any]) -> None:
    # https://github.com/pqzx/html2docx/issues/28
    with pytest.raises(CheckpointError, match="unknown vision tower") as raised:
        settings("llada-v", mm_vision_tower="x" * 500)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("name", ["x/y" * 99, "x/" + "y" * 400])
def test_names_of_models_are_cut(name: str) -> None:
    # https://github.com/pqzx/html2docx/issues/28
    with pytest.raises(CheckpointError) as raised:
        load(name, device="cpu")
    assert len(str(raised.value)) < 250


def test_a_folder_that_holds_no_model_is_told_so(tmp_path: Path) -> None:
    # https://github.com/BBC-Esq/VectorDB-Plugin/issues/54
    with pytest.raises(
        CheckpointError, match="holds no config.json; give the folder of a whole model"
    ):
        load(tmp_path, device="cpu")


# https://github.com/MakazhanAlpamys/Soup/issues/793: a setting of the maths went unnoticed
@pytest.mark.parametrize(
    "changes", [{"act_fn": "gelu"}, {"q_lora_rank": 512}, {"kv_lora_rank": 64}]
)
def test_maths_under_other_names_is_refused(
    settings: Callable[..., Any], changes: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError, match=next(iter(changes))):
        settings("dream", **changes)


@pytest.fixture
def tensors(reference: Path) -> Tensors:
    return load_file(reference / "llada-mha" / SINGLE)


@pytest.fixture
def folder(reference: Path, tmp_path: Path) -> Path:
    shutil.copytree(reference / "llada-mha", tmp_path / "model")
    return tmp_path / "model"


def model_of(folder: Path) -> MMDiffModel:
    model = MMDiffModel(MMDiffConfig.of(config_of(folder)))
    load_weights(model, CheckpointTensors(folder))
    return model


def shard(folder: Path, first: Tensors, second: Tensors, weight_map: Any) -> None:
    (folder / SINGLE).unlink()
    save_file(first, folder / A)
    save_file(second, folder / B)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


# https://github.com/vllm-project/vllm/pull/54230: files that are used again hold old tensors of the
# same names https://github.com/JustVugg/colibri/issues/1479: a file laid over others supersedes
# what they hold
@pytest.mark.parametrize("stale_in", [A, B])
def test_the_index_chooses_between_copies(folder: Path, tensors: Tensors, stale_in: str) -> None:
    current = B if stale_in == A else A
    old = {HEAD: torch.zeros_like(tensors[HEAD])}
    files = {current: tensors, stale_in: old}
    shard(folder, files[A], files[B], dict.fromkeys(tensors, current))
    assert torch.equal(model_of(folder).backbone.lm_head.weight, tensors[HEAD])


# https://github.com/syv-ai/qwen38-27b-rtx3090/pull/123: a tensor left over in another shape
def test_a_left_over_of_another_shape_counts_for_nothing(folder: Path, tensors: Tensors) -> None:
    shard(folder, tensors, {HEAD: torch.zeros(2, 2)}, dict.fromkeys(tensors, A))
    assert torch.equal(model_of(folder).backbone.lm_head.weight, tensors[HEAD])


# https://github.com/sgl-project/sglang/pull/32279: a file that was not fetched, and weights left as
# they were
def test_a_file_that_was_not_fetched_is_named(folder: Path, tensors: Tensors) -> None:
    shard(folder, tensors, {"x": torch.zeros(1)}, dict.fromkeys(tensors, A) | {NORM: B})
    (folder / B).unlink()
    with pytest.raises(CheckpointError, match=f"incomplete: {B}"):
        model_of(folder)


# https://github.com/pqzx/html2docx/issues/28: a name that no file can have
def test_a_name_in_the_index_that_no_file_can_have_is_told(folder: Path, tensors: Tensors) -> None:
    shard(folder, tensors, {"x": torch.zeros(1)}, dict.fromkeys(tensors, "x" * 5000))
    with pytest.raises(CheckpointError, match="is incomplete: x{77}\\.\\.\\.;"):
        model_of(folder)


# https://github.com/Blaizzy/mlx-vlm/pull/1827, https://github.com/Neph0s/CoSER/issues/3: the index
# is of older files
def test_a_whole_file_beside_an_old_index_loads(folder: Path, tensors: Tensors) -> None:
    (folder / INDEX).write_text(
        json.dumps({"weight_map": dict.fromkeys(tensors, "model-00001-of-00030.safetensors")})
    )
    assert torch.equal(model_of(folder).backbone.lm_head.weight, tensors[HEAD])


# https://github.com/Blaizzy/mlx-vlm/pull/1464: files that the index does not name were mixed in
def test_files_beside_the_index_are_not_mixed_in(folder: Path, tensors: Tensors) -> None:
    shard(folder, tensors, {"x": torch.zeros(1)}, dict.fromkeys(tensors, A))
    save_file({HEAD: torch.zeros(1, dtype=torch.uint8)}, folder / "model-4bit.safetensors")
    assert torch.equal(model_of(folder).backbone.lm_head.weight, tensors[HEAD])


# https://github.com/ICTMCG/Make-Your-Anchor/issues/9: every answer was black
# https://github.com/vllm-project/vllm/pull/53537: a file damaged on its way, with a header that
# fits
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_named(folder: Path, tensors: Tensors, bad: float) -> None:
    broken = tensors[NORM].clone()
    broken[3] = bad
    save_file(tensors | {NORM: broken}, folder / SINGLE)
    with pytest.raises(CheckpointError, match=NORM):
        model_of(folder)


# https://github.com/leejet/stable-diffusion.cpp/pull/1898: 8 bits were cast, and their scales left
# out
@pytest.mark.parametrize("scales", [True, False])
def test_eight_bits_are_never_cast(folder: Path, tensors: Tensors, scales: bool) -> None:
    small = {HEAD: tensors[HEAD].to(torch.float8_e4m3fn)}
    scale = {HEAD.replace(".weight", ".weight_scale"): torch.ones(1)} if scales else {}
    save_file(tensors | small | scale, folder / SINGLE)
    with pytest.raises(
        CheckpointError, match="weight_scale" if scales else f"{HEAD} is stored as float8_e4m3fn"
    ):
        model_of(folder)


# https://github.com/huggingface/transformers/issues/25330,
# https://github.com/huggingface/transformers/pull/35255: buffers that older versions saved
def test_buffers_of_older_versions_are_passed_over(reference: Path, tmp_path: Path) -> None:
    shutil.copytree(reference / "dream", tmp_path / "dream")
    file = tmp_path / "dream" / SINGLE
    save_file(
        load_file(file) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, file
    )
    model_of(tmp_path / "dream")


# https://github.com/QwenLM/Qwen3-VL-Embedding/issues/89: the head is in no file
def test_a_head_that_is_in_no_file_is_named(folder: Path, tensors: Tensors) -> None:
    save_file({name: tensor for name, tensor in tensors.items() if name != HEAD}, folder / SINGLE)
    with pytest.raises(CheckpointError, match="missing names: backbone.lm_head.weight"):
        model_of(folder)


# https://github.com/lm-sys/FastChat/issues/502, https://github.com/QwenLM/Qwen/issues/940: an
# adapter for a model
def test_an_adapter_is_not_taken_for_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "GSAI-ML/LLaDA-V"})
    )
    save_file({"a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"is a PEFT adapter.*GSAI-ML/LLaDA-V"):
        load(tmp_path, device="cpu")


# https://github.com/bitsandbytes-foundation/bitsandbytes/issues/80: saved in 8 bits, and read as
# something else https://github.com/huggingface/transformers/issues/24851: an AttributeError while
# saving
def test_layers_in_few_bits_are_not_saved(random_tiny: Path, tmp_path: Path) -> None:
    small, _ = load_folder(random_tiny, torch.device("cpu"), torch.float32, bits="8bit")
    with pytest.raises(MMDiffError, match="is not saved"):
        small.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


# https://github.com/EvolvingLMMs-Lab/lmms-engine/pull/156: a processor that was loaded as a
# tokenizer https://github.com/hiyouga/LlamaFactory/issues/8855: one whose parts for images were not
# found
def test_a_processor_is_never_a_tokenizer_alone(random_tiny: Path) -> None:
    assert AutoProcessor.from_pretrained(random_tiny).vision is not None


# https://github.com/huggingface/transformers/pull/34285: an option that no processor knows
def test_an_option_that_nothing_knows_is_refused(random_tiny: Path) -> None:
    with pytest.raises(MMDiffError, match="test=True"):
        AutoProcessor.from_pretrained(random_tiny)(text="hello", return_tensors="pt", test=True)


# https://github.com/pytorch/pytorch/issues/96130: an output with one field
def test_outputs_can_be_compiled_and_pickled(random_tiny: Path) -> None:
    model, _ = load_folder(random_tiny, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        out = model(torch.arange(10, 14)[None])
    assert torch.equal(pickle.loads(pickle.dumps(out)).logits, out.logits)


# https://github.com/foundation-model-stack/foundation-model-stack/pull/373: weights came with the
# settings
def test_settings_do_not_bring_weights(monkeypatch: pytest.MonkeyPatch, reference: Path) -> None:
    from mmdiff.modeling.hub import find

    asked: list[str] = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, allow_patterns: asked.extend(allow_patterns) or str(reference / "dream"),
    )
    assert config_of(find("some/model", weights=False)).backbone.shifted
    assert asked and not [pattern for pattern in asked if "safetensors" in pattern]


# https://github.com/hiyouga/LlamaFactory/issues/7454,
# https://github.com/meta-llama/llama-cookbook/issues/640: answers ran on, because turns end with
# another token than texts https://github.com/huggingface/transformers/issues/30893: a template that
# opens an answer whether or not it is asked
@pytest.mark.parametrize("end", ["<|im_end|>", "<|role_end|>"])
def test_answers_end_where_the_template_ends_turns(
    reference: Path, random_tiny: Path, tmp_path: Path, end: str
) -> None:
    shutil.copytree(reference / "dream", tmp_path / "dream")
    tokenizer = AutoProcessor.from_pretrained(random_tiny).tokenizer
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '" + end + "\n' }}{% endfor %}"
        "{{ 'assistant: ' }}"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [end]})
    tokenizer.save_pretrained(tmp_path / "dream")
    config = json.loads((tmp_path / "dream" / "config.json").read_text()) | {"vocab_size": 1024}
    file = tmp_path / "dream" / SINGLE
    wide = {
        name: torch.cat([tensor, tensor]) if len(tensor) == 512 else tensor
        for name, tensor in load_file(file).items()
    }
    save_file(wide, file)
    (tmp_path / "dream" / "config.json").write_text(json.dumps(config))
    pipeline = load(tmp_path / "dream", device="cpu")
    assert pipeline.model.model_config.tokens.eot == tokenizer.convert_tokens_to_ids(end) != 501
    asked = pipeline.processor.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True
    )
    assert asked == f"user: hi{end}\nassistant: "
