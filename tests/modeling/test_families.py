"""Settings that change the maths are refused by name and value; bookkeeping never is."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmdiff.errors import CheckpointError
from mmdiff.modeling.checkpoint import config_of


@pytest.fixture
def folders(reference: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Makes a folder with the config.json of a reference model, changed."""

    def make(name: str, **changes: Any) -> Path:
        published = json.loads((reference / name).read_text()) | changes
        (tmp_path / "config.json").write_text(
            json.dumps({k: v for k, v in published.items() if v != "absent"})
        )
        return tmp_path

    return make


LLADA, DREAM = "llada-mha/config.json", "dream/config.json"
LLADA_V = "llada-v/config-variants/published-hub-name.json"
YARN = {"rope_type": "yarn", "factor": 4.0}
GPTQ = {"quant_method": "gptq", "bits": 4}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope_scaling", YARN),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("rope_parameters", YARN),
        (
            "rope_parameters",
            {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [16, 24, 24]},
        ),
        ("sliding_window", 4096),
        ("use_sliding_window", True),
        ("partial_rotary_factor", 0.5),
        ("head_dim", 99),
        ("quantization_config", GPTQ),
        ("quantization_config", {"quant_method": "fp8"}),
        ("tie_word_embeddings", True),
        ("hidden_act", "gelu"),
        ("mlp_bias", True),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("is_decoder", True),
        ("final_logit_softcapping", 30.0),
        ("attn_logit_softcapping", 50.0),
        ("qk_layernorm", True),
        ("num_experts", 8),
        ("embedding_multiplier", 12.0),
        ("attention_multiplier", 0.5),
        ("use_mrope", True),
        ("query_pre_attn_scalar", 256),
        ("activation_name", "relu"),
        ("a_new_switch", True),
        ("vision_config", {"a": 1}),
        ("position_type", "learned"),
    ],
)
@pytest.mark.parametrize("published", [LLADA, LLADA_V, DREAM])
def test_what_changes_the_maths_is_refused(folders, published: str, key: str, value: Any) -> None:  # type: ignore
    with pytest.raises(CheckpointError, match=f"config.json says {key}=") as raised:
        config_of(folders(published, **{key: value}))
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("activation_type", "gelu"),
        ("activation_type", "swiglu"),
        ("block_type", "sequential"),
        ("rope", False),
        ("layer_norm_type", "default"),
        ("layer_norm_with_affine", False),
        ("alibi", True),
        ("weight_tying", True),
        ("attention_layer_norm", True),
        ("bias_for_layer_norm", True),
        ("include_bias", True),
        ("scale_logits", True),
        ("input_emb_norm", True),
        ("multi_query_attention", True),
        ("clip_qkv", 8.0),
    ],
)
def test_what_llada_could_do_is_refused(folders, key: str, value: Any) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CheckpointError, match=f"{key}={value!r}"):
        config_of(folders(LLADA, **{key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mm_use_im_start_end", True),
        ("mm_use_im_patch_token", True),
        ("mm_projector_type", "linear"),
        ("mm_vision_select_layer", -1),
        ("mm_vision_select_layer", 0),
        ("mm_vision_select_feature", "cls_patch"),
        ("mm_spatial_pool_stride", 2),
        ("mm_resampler_type", "perceiver"),
        ("mm_hidden_size", 1024),
        ("mm_patch_merge_type", "flat"),
        ("image_aspect_ratio", "highres"),
        ("image_aspect_ratio", "anyres_max_0"),
        ("mm_patch_merge_type", "spatial"),
        ("mm_patch_merge_type", None),
        ("image_aspect_ratio", None),
        ("mm_vision_tower", "openai/clip-vit-large-patch14-336"),
        ("mm_pooler_ratio", 2),
        ("use_mm_proj", False),
    ],
)
def test_what_llava_could_do_is_refused(folders, key: str, value: Any) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(
        CheckpointError, match="tower" if key == "mm_vision_tower" else f"{key}={value!r}"
    ):
        config_of(folders(LLADA_V, **{key: value}))


@pytest.mark.parametrize(
    "changes",
    [
        {
            "_name_or_path": "/data/run-7",
            "torch_dtype": "bfloat16",
            "dtype": "float32",
            "transformers_version": "5.23.0",
        },
        {"mm_vision_tower_lr": 2e-6, "mm_projector_lr": None, "unfreeze_mm_vision_tower": True},
        {
            "tune_mm_mlp_adapter": True,
            "freeze_mm_mlp_adapter": False,
            "tokenizer_padding_side": "right",
        },
        {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28},
        {
            "rope_scaling": {"type": "default"},
            "layer_types": ["full_attention"] * 3,
            "partial_rotary_factor": 1.0,
        },
        {
            "attention_dropout": 0.1,
            "initializer_range": 0.02,
            "_attn_implementation": "sdpa",
            "use_cache": True,
        },
        {
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
            "max_length": 20,
            "num_beams": 1,
            "id2label": {"0": "LABEL_0"},
        },
        {
            "unsloth_version": "2025.9",
            "run_name": "sft-3",
            "num_train_epochs": 3,
            "global_step": 1200,
            "seed": 42,
        },
        {
            "auto_map": {"AutoModel": "modeling.Model"},
            "architectures": None,
            "note": "for a paper",
            "language": ["en"],
        },
        {
            "model_max_length": 4096,
            "max_seq_length": 4096,
            "use_flash_attn": True,
            "num_labels": 2,
            "num_params": 8e9,
        },
        {
            "deepspeed": {"stage": 3},
            "bf16": True,
            "lora_r": 64,
            "local_rank": 3,
            "world_size": 8,
            "trained_tokens": 5e9,
        },
        {
            "quantization_config": None,
            "num_experts": 0,
            "qk_layernorm": False,
            "some_switch": False,
        },
    ],
)
@pytest.mark.parametrize("published", [LLADA, LLADA_V, DREAM])
def test_bookkeeping_is_passed_over(folders, published: str, changes: dict[str, Any]) -> None:  # type: ignore
    plain = config_of(folders(published))
    assert config_of(folders(published, **changes)) == plain


@pytest.mark.parametrize("published", [LLADA, LLADA_V, DREAM])
def test_theta_is_read_where_transformers_5_writes_it(folders, published: str) -> None:  # type: ignore[no-untyped-def]
    new = {
        "rope_theta": "absent",
        "rope_parameters": {"rope_type": "default", "rope_theta": 1234567.0},
    }
    assert config_of(folders(published, **new)).backbone.rope_theta == 1234567.0
    with pytest.raises(CheckpointError, match="does not say rope_theta"):
        config_of(folders(published, rope_theta="absent"))
    with pytest.raises(CheckpointError, match="two values of rope_theta"):
        config_of(folders(published, rope_theta=1e4, rope_parameters=new["rope_parameters"]))


@pytest.mark.parametrize(
    "name",
    [
        "LlamaForCausalLM",
        "Qwen2ForCausalLM",
        "MistralForCausalLM",
        "Gemma2ForCausalLM",
        "LlavaLlamaForCausalLM",
        "LlavaQwenForCausalLM",
        "LlavaLladaForMaskedDiffusion",
    ],
)
def test_another_architecture_is_refused_by_name(folders, name: str) -> None:  # type: ignore[no-untyped-def]
    for published in (LLADA, LLADA_V, DREAM):
        with pytest.raises(CheckpointError, match=name):
            config_of(folders(published, architectures=[name]))


@pytest.mark.parametrize("named", ["LlamaForCausalLM", {"a": 1}, 5, [["LLaDAModelLM"]], [None]])
def test_an_architecture_of_another_form_is_refused(folders, named: Any) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CheckpointError, match="names the architecture"):
        config_of(folders(LLADA, architectures=named))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gemma", "llava_dream"])
def test_another_model_type_is_refused_by_name(folders, kind: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CheckpointError, match=f"model_type='{kind}'"):
        config_of(folders(LLADA_V, architectures="absent", model_type=kind))


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "64"},
        {"num_attention_heads": 7},
        {"vocab_size": None},
        {"eos_token_id": "</s>"},
        {"mask_token_id": 9999},
        {"mask_token_id": [True]},
        {"rope_theta": [1]},
        {"rms_norm_eps": None},
    ],
)
def test_a_value_that_cannot_be_is_one_sentence(folders, changes: dict[str, Any]) -> None:  # type: ignore
    with pytest.raises(CheckpointError, match=next(iter(changes))):
        config_of(folders(DREAM, **changes))


def test_of_several_ids_that_end_an_answer_the_first_counts(folders) -> None:  # type: ignore[no-untyped-def]
    assert config_of(folders(DREAM, eos_token_id=[501, 502])).tokens.eos == 501
