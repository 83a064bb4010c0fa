"""The published families: how each is recognised, what its tensors are called, and which settings
it may have.

A setting of config.json is in one of three tables. What has a size or an id is read
(`published_config.py`). What changes the maths is in `Family.settings` with the values that the
backbone here computes, and any other value is refused by name. Bookkeeping of training and of
libraries is passed over. What is in none of them is refused where it is switched on, unless its
name says that it is bookkeeping: a model must not load and compute something else in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmdiff.config import DREAM_TOKENS, LLADA_TOKENS, TokenIds, shown
from mmdiff.errors import CheckpointError
from mmdiff.modeling.checkpoint_folder import some

Accepted = tuple[Any, ...]
OFF: Accepted = ()  # nothing but what switches a setting off: null, false, 0 or empty


@dataclass(frozen=True)
class Family:
    """What published configurations of one kind have in common."""

    name: str  # as messages say it
    settings: Mapping[str, Accepted]  # the accepted values of each setting that changes the maths
    read: frozenset[str]  # settings that sizes, ids and pictures' layout are read from
    tokens: TokenIds | None = None  # special ids where the vocabulary is the published one
    fixed: Mapping[str, Any] = field(default_factory=dict)  # what its backbone always does


_SIZES = frozenset(
    {
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "rope_theta",
        "rope_parameters",
        "rope_scaling",
        "rms_norm_eps",
        "attention_bias",
        "max_position_embeddings",
        "head_dim",
    }
)
_IDS = frozenset(
    {
        "mask_token_id",
        "eos_token_id",
        "eot_token_id",
        "bos_token_id",
        "pad_token_id",
        "image_token_id",
    }
)
_EVERYWHERE: dict[str, Accepted] = {
    "add_cross_attention": OFF,
    "hidden_act": ("silu", "swish"),
    "is_decoder": OFF,
    "is_encoder_decoder": OFF,
    "layer_types": ("full_attention",),
    "mlp_bias": OFF,
    "partial_rotary_factor": (1,),
    "pruned_heads": OFF,
    "quantization_config": OFF,
    "sliding_window": OFF,
    "tie_word_embeddings": OFF,
    "use_mrope": OFF,
    "use_sliding_window": OFF,
}

LLADA = Family(
    name="LLaDA",
    settings=_EVERYWHERE
    | {
        "activation_type": ("silu",),
        "alibi": OFF,
        "attention_layer_norm": OFF,
        "bias_for_layer_norm": OFF,
        "block_type": ("llama",),
        "clip_qkv": OFF,
        "include_bias": OFF,
        "input_emb_norm": OFF,
        "layer_norm_type": ("rms",),
        "layer_norm_with_affine": (True,),
        "multi_query_attention": OFF,
        "norm_after": OFF,
        "rope": (True,),
        "scale_logits": OFF,
        "weight_tying": OFF,
    },
    read=_SIZES
    | _IDS
    | {
        "embedding_size",
        "d_model",
        "mlp_hidden_size",
        "n_layers",
        "n_heads",
        "n_kv_heads",
        "include_qkv_bias",
        "max_sequence_length",
        "mlp_ratio",
    },
    tokens=LLADA_TOKENS,
)
LLADA_V = Family(
    name="LLaDA-V",
    settings=_EVERYWHERE
    | {
        "add_faster_video": OFF,
        "mm_projector_type": ("mlp2x_gelu",),
        "mm_resampler_type": OFF,
        "mm_spatial_pool_mode": (
            "bilinear",
            "average",
            "max",
        ),  # counts for nothing without a stride
        "mm_spatial_pool_stride": (1,),
        "mm_use_im_patch_token": OFF,
        "mm_use_im_start_end": OFF,
        "mm_vision_select_feature": ("patch",),
        "mm_vision_select_layer": (-2,),
        "use_mm_proj": (True,),
    },
    read=_SIZES
    | _IDS
    | {
        "mm_vision_tower",
        "mm_hidden_size",
        "image_aspect_ratio",
        "image_grid_pinpoints",
        "mm_patch_merge_type",
    },
    tokens=LLADA_TOKENS,
)
DREAM = Family(
    name="Dream",
    settings=_EVERYWHERE,
    read=_SIZES | _IDS,
    tokens=DREAM_TOKENS,
    fixed={"qkv_bias": True, "shifted": True},  # Qwen2's layers; logits one position early
)
SIGLIP = Family(
    name="SigLIP",
    settings={
        "hidden_act": ("gelu_pytorch_tanh",),
        "model_type": ("siglip_vision_model", "siglip"),
        "num_channels": (3,),
    },
    read=frozenset(
        {
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "image_size",
            "patch_size",
            "layer_norm_eps",
            "vision_use_head",
        }
    ),
)

# Class names in config.json. Two of the families share a model_type, and LLaDAModelLM is written
# for either layout.
ARCHITECTURES = ("LLaDAModelLM", "LlavaLLaDAModelLM", "DreamModel")
MODEL_TYPES = ("llada", "llava_llada", "dream")


def family_of(published: Mapping[str, Any]) -> Family:
    """The family of a config.json.

    Raises:
        CheckpointError: its architecture or model type is that of another kind of model.
    """
    named = published.get("architectures") or []
    named = named if isinstance(named, list) else [named]
    if named and not any(name in ARCHITECTURES for name in named):
        raise CheckpointError(
            f"config.json names the architecture {shown(named[0])}, which mmdiff does not "
            "compute; it loads "
            f"{', '.join(ARCHITECTURES)}"
        )
    kind = published.get("model_type") or MODEL_TYPES[0]
    if str(kind).lower() not in MODEL_TYPES:
        raise CheckpointError(
            f"config.json says model_type={shown(kind)}, which mmdiff does not compute; it loads "
            f"{', '.join(MODEL_TYPES)}"
        )
    if str(kind).lower() == "dream" or "DreamModel" in named:
        return DREAM
    return LLADA if "d_model" in published else LLADA_V


def check_settings(published: Mapping[str, Any], family: Family) -> None:
    """Refuse what changes the maths and is not computed here.

    Raises:
        CheckpointError: the message names the setting, its value and what is accepted.
    """
    for key, value in published.items():
        if key in family.read:
            continue
        if key in family.settings:
            if not _is_accepted(key, value, published, family.settings[key]):
                takes = " or ".join(map(repr, family.settings[key]))
                only = f"; only {takes} is computed" if takes else ""
                raise _refusal(
                    key, value, f"which mmdiff does not compute for {family.name} models{only}"
                )
        elif value and not _is_bookkeeping(key, value):
            raise _refusal(
                key,
                value,
                "a setting that mmdiff does not know; take it out if it changes nothing that the "
                "model computes",
            )


def _is_accepted(key: str, value: object, published: Mapping[str, Any], accepted: Accepted) -> bool:
    if key == "sliding_window" and published.get("use_sliding_window") is False:
        return True  # the width is written, and not used
    if value is None or accepted == OFF:
        return not value
    return all(each in accepted for each in (value if isinstance(value, list) else [value]))


def rope_theta(published: Mapping[str, Any]) -> float | None:
    """The base of the rotary positions, which transformers 5 writes into `rope_parameters`.

    Raises:
        CheckpointError: positions are scaled, or two bases are named.
    """
    found = [published["rope_theta"]] if published.get("rope_theta") is not None else []
    for key in ("rope_parameters", "rope_scaling"):
        value = published.get(key)
        if not value:
            continue
        rope = dict(value) if isinstance(value, Mapping) else {"rope_type": value}
        kinds = [rope.pop(name, None) for name in ("rope_type", "type")]
        theta = rope.pop("rope_theta", None)
        others = [
            name
            for name, each in rope.items()
            if each and (name, each) != ("partial_rotary_factor", 1)
        ]
        if others or not all(kind in (None, "default") for kind in kinds):
            raise _refusal(key, value, "and mmdiff computes rotary positions without scaling only")
        found += [theta] if theta is not None else []
    if any(theta != found[0] for theta in found):
        raise CheckpointError(
            f"config.json names two values of rope_theta, {shown(found)}; keep the right one"
        )
    return found[0] if found else None


def _refusal(key: str, value: object, why: str) -> CheckpointError:
    return CheckpointError(f"config.json says {key}={shown(value)}, {why}")


# Settings of libraries and of training, by their whole names ...
_BOOKKEEPING = frozenset(
    [
        "activation_checkpointing",
        "add_time_instruction",
        "alibi_bias_max",
        "architectures",
        "attention_layer_norm_with_affine",
        "attn_implementation",
        "auto_map",
        "bad_words_ids",
        "begin_suppress_tokens",
        "block_group_size",
        "chunk_size_feed_forward",
        "context_length",
        "cpu_offload",
        "decoder_start_token_id",
        "delay_load",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "epsilon_cutoff",
        "eta_cutoff",
        "exponential_decay_length_penalty",
        "faster_token_stride",
        "finetuning_task",
        "flash_attention",
        "force_sample",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "frames_upbound",
        "gen_length",
        "generation_config",
        "guidance_scale",
        "id2label",
        "ignore_index",
        "image_crop_resolution",
        "image_split_resolution",
        "initializer_factor",
        "initializer_range",
        "is_multimodal",
        "label2id",
        "label_smoothing",
        "label_smoothing_factor",
        "learning_rate",
        "length_penalty",
        "low_cpu_mem_usage",
        "low_memory",
        "lr",
        "mask_token",
        "max_length",
        "max_new_tokens",
        "max_seq_len",
        "max_seq_length",
        "max_time",
        "max_window_layers",
        "min_length",
        "min_new_tokens",
        "min_p",
        "mlp_ratio",
        "mm_newline_position",
        "mm_resampler_location",
        "mm_spatial_pool_out_channels",
        "mm_tunable_parts",
        "model_max_length",
        "model_type",
        "n_ctx",
        "n_positions",
        "neftune_noise_alpha",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_labels",
        "num_return_sequences",
        "original_vocab_size",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "output_scores",
        "padding_side",
        "penalty_alpha",
        "pos_skipping_range",
        "precision",
        "prefix",
        "pretrain_mm_mlp_adapter",
        "pretraining_tp",
        "problem_type",
        "remasking",
        "remove_invalid_values",
        "renormalize_logits",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "rope_full_precision",
        "sampling_eps",
        "sep_token_id",
        "seq_len",
        "seq_length",
        "stop_strings",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "time_epsilon",
        "top_k",
        "top_p",
        "torchscript",
        "transformers.js_config",
        "trust_remote_code",
        "typical_p",
        "use_bfloat16",
        "use_cache",
        "use_fast",
        "use_flash_attention",
        "use_flash_attention_2",
        "use_liger_kernel",
        "use_pos_skipping",
        "use_return_dict",
        "use_safetensors",
        "video_fps",
        "vision_tower_pretrained",
        "weight_decay",
    ]
)
# ... or by what their names say.
_BOOKKEEPING_NAMES = re.compile(
    r"_.*|(init|tokenizer|training|train|wandb|unsloth|deepspeed|lora|peft|freeze|unfreeze|tune)_.*|.*flash_att.*"
    r"|mm_(mask_drop|perceiver|qformer)_.*"  # of resamplers, which are refused themselves
    r"|.*(_lr|_dropout|_dropout_prob|_pdrop|_token_id|_token_index|_version)|dropout|(torch_)?dtype"
)
_BOOKKEEPING_WORDS = frozenset(
    [
        "author",
        "batch",
        "bf16",
        "checkpoint",
        "checkpointing",
        "comment",
        "commit",
        "created",
        "data",
        "dataset",
        "datasets",
        "date",
        "ddp",
        "deepspeed",
        "description",
        "device",
        "devices",
        "epoch",
        "epochs",
        "eval",
        "fp16",
        "framework",
        "fsdp",
        "gpu",
        "gpus",
        "gradient",
        "hash",
        "info",
        "language",
        "library",
        "license",
        "log",
        "logging",
        "loss",
        "name",
        "note",
        "notes",
        "optimizer",
        "parameters",
        "params",
        "path",
        "peft",
        "rank",
        "revision",
        "run",
        "save",
        "scheduler",
        "seed",
        "step",
        "steps",
        "tag",
        "tags",
        "tf32",
        "trained",
        "trainer",
        "training",
        "version",
        "wandb",
        "warmup",
        "world",
    ]
)
# A name with one of these is never taken for bookkeeping on account of another word in it.
_MATHS_WORDS = re.compile(
    r"rope|rotary|alibi|attn|attention|window|sliding|norm|softcap|scal|multiplier|factor|bias|activation|gate"
    r"|(^|_)act(_|$)|[qkv]_lora"
    r"|expert|moe|router|head|layer|pool|stride|proj|resampl|tower|vision|image|audio|quant|embed|residual|parallel"
    r"|clip|mlp|ffn|logit|causal|shift|mask|conv|compress|sparse|adapter|delta|position|hidden|block|kernel|ntk"
)


def _is_bookkeeping(key: str, value: object) -> bool:
    if key in _BOOKKEEPING or _BOOKKEEPING_NAMES.fullmatch(key):
        return True
    if _MATHS_WORDS.search(key):
        return False
    return isinstance(value, str) or bool(_BOOKKEEPING_WORDS & set(key.split("_")))


# Published name -> ours, as regular expressions that must match the whole name; a target of None is
# dropped on purpose.
_LLADA_BLOCK = r"model\.transformer\.blocks\.(\d+)\."
_LLADA_V_TOWER = r"model\.vision_tower\.vision_tower\.vision_model\."
LAYOUTS: dict[str, dict[str, str | None]] = {
    "mmdiff": {
        r"(backbone|vision_tower|connector|audio_tower|audio_connector)\..*": r"\g<0>",
        r"image_newline": r"\g<0>",
    },
    "llada": {
        r"model\.transformer\.wte\.weight": "backbone.embed_tokens.weight",
        r"model\.transformer\.ln_f\.weight": "backbone.norm.weight",
        r"model\.transformer\.ff_out\.weight": "backbone.lm_head.weight",
        r"model\.transformer\.blocks\.(\d+)\.([qkv]_proj\..*)": r"backbone.layers.\1.self_attn.\2",
        _LLADA_BLOCK + r"attn_out\.(.*)": r"backbone.layers.\1.self_attn.o_proj.\2",
        r"model\.transformer\.blocks\.(\d+)\.ff_proj\.(.*)": r"backbone.layers.\1.mlp.gate_proj.\2",
        r"model\.transformer\.blocks\.(\d+)\.up_proj\.(.*)": r"backbone.layers.\1.mlp.up_proj.\2",
        r"model\.transformer\.blocks\.(\d+)\.ff_out\.(.*)": r"backbone.layers.\1.mlp.down_proj.\2",
        _LLADA_BLOCK + r"attn_norm\.(.*)": r"backbone.layers.\1.input_layernorm.\2",
        _LLADA_BLOCK + r"ff_norm\.(.*)": r"backbone.layers.\1.post_attention_layernorm.\2",
    },
    "llada-v": {
        r"model\.(embed_tokens|norm)\.weight": r"backbone.\1.weight",
        r"lm_head\.weight": "backbone.lm_head.weight",
        # of old versions: follows from rope_theta
        r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq": None,
        r"model\.(layers\.\d+\..*)": r"backbone.\1",
        # of old versions
        r"model\.vision_tower\.vision_tower\.vision_model\.embeddings\.position_ids": None,
        _LLADA_V_TOWER + r"(embeddings\..*|encoder\..*)": r"vision_tower.\1",
        # behind what we take
        r"model\.vision_tower\.vision_tower\.vision_model\.(post_layernorm|head)\..*": None,
        r"model\.mm_projector\.([02]\..*)": r"connector.\1",
        r"model\.image_newline": "image_newline",
    },
}
_MARKS = {
    "mmdiff": "backbone.embed_tokens.weight",
    "llada": "model.transformer.wte.weight",
    "llada-v": "model.embed_tokens.weight",
}


def recognise(names: Iterable[str]) -> str:
    """The layout of a checkpoint, by its keys."""
    names = set(names)
    for layout, mark in _MARKS.items():
        if mark in names:
            return layout
    raise CheckpointError(
        f"unknown architecture: none of {sorted(_MARKS.values())} is among its {len(names)} "
        "names, such as "
        f"{some(sorted(names), 3)}"
    )


def translate(name: str, layout: str) -> str | None:
    """Our name of a published one; None for one that is not needed, the name itself where it is
    unknown."""
    for pattern, target in LAYOUTS[layout].items():
        if match := re.fullmatch(pattern, name):
            return None if target is None else match.expand(target)
    return name
