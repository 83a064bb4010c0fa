"""Load and save weights: safetensors and JSON only, every name accounted for, published layouts through one table.

The layout is recognised by the keys, never by `model_type`: two published models share one and differ in layout. Three
layouts are known: our own, LLaDA's (`model.transformer.blocks.N...`) and LLaDA-V's (`model.layers.N...`). Both
published ones rotate halves as we do, so translating is renaming.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import InvalidVersion, Version
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mmdiff.audio.tower import WhisperTower, encoder_state, whisper_config
from mmdiff.config import PRESETS, SO400M_PENULTIMATE, BackboneConfig, ModelConfig, TokenIds, VisionConfig, to_dict
from mmdiff.errors import CheckpointError
from mmdiff.model import MMDiffConfig, MMDiffModel
from mmdiff.onednn import suit_processors
from mmdiff.processor import MMDiffProcessor
from mmdiff.quantize import Bits, quantize
from mmdiff.vision.tower import load_tower, tower_state

TOWER = "vision_tower."
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

# Published name -> ours, as regular expressions that must match the whole name; a target of None is dropped on purpose.
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
        r"model\.transformer\.blocks\.(\d+)\.attn_out\.(.*)": r"backbone.layers.\1.self_attn.o_proj.\2",
        r"model\.transformer\.blocks\.(\d+)\.ff_proj\.(.*)": r"backbone.layers.\1.mlp.gate_proj.\2",
        r"model\.transformer\.blocks\.(\d+)\.up_proj\.(.*)": r"backbone.layers.\1.mlp.up_proj.\2",
        r"model\.transformer\.blocks\.(\d+)\.ff_out\.(.*)": r"backbone.layers.\1.mlp.down_proj.\2",
        r"model\.transformer\.blocks\.(\d+)\.attn_norm\.(.*)": r"backbone.layers.\1.input_layernorm.\2",
        r"model\.transformer\.blocks\.(\d+)\.ff_norm\.(.*)": r"backbone.layers.\1.post_attention_layernorm.\2",
    },
    "llada-v": {
        r"model\.(embed_tokens|norm)\.weight": r"backbone.\1.weight",
        r"lm_head\.weight": "backbone.lm_head.weight",
        r"model\.(layers\.\d+\..*)": r"backbone.\1",
        r"model\.vision_tower\.vision_tower\.vision_model\.(embeddings\..*|encoder\..*)": r"vision_tower.\1",
        r"model\.vision_tower\.vision_tower\.vision_model\.(post_layernorm|head)\..*": None,  # behind what we take
        r"model\.mm_projector\.([02]\..*)": r"connector.\1",
        r"model\.image_newline": "image_newline",
    },
}
_MARKS = {"mmdiff": "backbone.embed_tokens.weight", "llada": "model.transformer.wte.weight",
          "llada-v": "model.embed_tokens.weight"}


def recognise(names: Iterable[str]) -> str:
    """The layout of a checkpoint, by its keys."""
    names = set(names)
    for layout, mark in _MARKS.items():
        if mark in names:
            return layout
    raise CheckpointError(
        f"unknown architecture: none of {sorted(_MARKS.values())} is among its {len(names)} names, such as "
        f"{sorted(names)[:3]}"
    )


def translate(name: str, layout: str) -> str | None:
    """Our name of a published one; None for one that is not needed, the name itself where it is unknown."""
    for pattern, target in LAYOUTS[layout].items():
        if match := re.fullmatch(pattern, name):
            return None if target is None else match.expand(target)
    return name


def load_weights(model: MMDiffModel, weights: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Put weights into a model whose every parameter they must name, once, in its shape.

    Args:
        dtype: what they are turned into; their own by default.

    Raises:
        CheckpointError: names are unknown, missing or of another shape; the message lists them.
    """
    layout = recognise(weights)
    sources = {target: name for name in weights if (target := translate(name, layout)) is not None}
    expected = canonical_state(model)
    shapes = {target: tuple(weights[name].shape) for target, name in sources.items() if target in expected}
    problems = {
        "unknown names": sorted(sources[target] for target in sources.keys() - expected.keys()),
        "missing names": sorted(expected.keys() - sources.keys()),
        "wrong shapes": [
            f"{target}: {shape} instead of {tuple(expected[target].shape)}"
            for target, shape in sorted(shapes.items()) if shape != tuple(expected[target].shape)
        ],
    }
    listed = [f"{kind}: {_some(names)}" for kind, names in problems.items() if names]
    if listed:
        raise CheckpointError(f"the checkpoint ({layout} layout) does not fit the model; {'; '.join(listed)}")
    ours = {target: weights[name].to(dtype) for target, name in sources.items()}
    if model.vision_tower is not None:
        tower = {name.removeprefix(TOWER): tensor for name, tensor in ours.items() if name.startswith(TOWER)}
        load_tower(model.vision_tower, tower)
    rest = {name: tensor for name, tensor in ours.items() if not name.startswith(TOWER)}
    model.load_state_dict(rest, strict=False, assign=True)


def canonical_state(model: MMDiffModel) -> dict[str, Tensor]:
    """The model's weights under the names that are saved, whichever library its tower comes from."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(TOWER)}
    if model.vision_tower is not None:
        state |= {TOWER + name: tensor for name, tensor in tower_state(model.vision_tower).items()}
    return state


def _some(names: list[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


class Weights(Mapping[str, Tensor]):
    """The tensors of a folder's safetensors files, read one at a time when asked for."""

    def __init__(self, folder: Path) -> None:
        self._files = {name: file for file in weight_files(folder) for name in _names(file)}

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._files[name], framework="pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, all there.

    Raises:
        CheckpointError: the folder has none, or not all that its index names.
    """
    index = folder / INDEX
    if index.exists():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        absent = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
        if absent or not names:
            what = _some(absent) or f"{INDEX} names no files"
            raise CheckpointError(f"{folder} is incomplete: {what}; fetch it again")
        return [folder / name for name in names]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    others = sorted(path.name for path in folder.glob("*.bin")) + sorted(path.name for path in folder.glob("*.pt"))
    hint = f"; {others[0]} is a pickle, which is never read: convert it to safetensors" if others else ""
    raise CheckpointError(f"{folder} holds neither {SINGLE} nor {INDEX}{hint}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or a CheckpointError that says what is wrong with it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error.__class__.__name__}); fetch it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not a JSON object; fetch it again")
    return value


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged or no safetensors file ({error}); fetch it again") from None


# From published config.json keys to ours: the first key that is there counts.
_BACKBONE_KEYS: dict[str, tuple[str, ...]] = {
    "vocab_size": ("embedding_size", "vocab_size"),
    "hidden_size": ("d_model", "hidden_size"),
    "intermediate_size": ("mlp_hidden_size", "intermediate_size"),
    "num_hidden_layers": ("n_layers", "num_hidden_layers"),
    "num_attention_heads": ("n_heads", "num_attention_heads"),
    "num_key_value_heads": ("n_kv_heads", "num_key_value_heads", "n_heads", "num_attention_heads"),
    "rope_theta": ("rope_theta",),
    "rms_norm_eps": ("rms_norm_eps",),
    "qkv_bias": ("include_qkv_bias", "attention_bias"),
    "max_position_embeddings": ("max_sequence_length", "max_position_embeddings"),
}
_UNSUPPORTED = {"alibi": True, "weight_tying": True, "tie_word_embeddings": True, "attention_layer_norm": True,
                "input_emb_norm": True, "scale_logits": True, "rope": False, "include_bias": True}


TOWERS: dict[str, VisionConfig] = {
    "google/siglip2-so400m-patch14-384": SO400M_PENULTIMATE,
    "google/siglip-so400m-patch14-384": SO400M_PENULTIMATE,
}


def config_of_published(folder: Path) -> ModelConfig:
    """Our settings for a published LLaDA, LLaDA-V or Dream folder.

    LLaDA's special ids are used where the vocabulary is LLaDA's; a smaller one must name its mask and EOS ids.

    Raises:
        CheckpointError: a size is missing, or the model does what mmdiff does not.
    """
    published = read_json(folder / "config.json")
    for key, value in _UNSUPPORTED.items():
        if published.get(key) is value:
            raise CheckpointError(f"{folder}: config.json says {key}={value}, which mmdiff's backbone does not do")
    found: dict[str, Any] = {
        ours: next((published[key] for key in keys if published.get(key) is not None), None)
        for ours, keys in _BACKBONE_KEYS.items()
    }
    if missing := [name for name in list(_BACKBONE_KEYS)[:6] if found[name] is None]:
        raise CheckpointError(f"{folder}: config.json does not say {', '.join(missing)}; this is no LLaDA-style model")
    if published.get("model_type") == "Dream":  # Qwen2's layers, which always have these biases; logits one place early
        found |= {"qkv_bias": True, "shifted": True}
    backbone = BackboneConfig(**{name: value for name, value in found.items() if value is not None})
    vision = _vision_of(published, folder) if published.get("mm_vision_tower") else None
    preset = PRESETS["llada-v-8b" if vision else "llada-8b"]
    tokens = _tokens_of(published, backbone.vocab_size, preset.tokens)
    return dataclasses.replace(preset, backbone=backbone, tokens=tokens, vision=vision)


def _tokens_of(published: Mapping[str, Any], vocab_size: int, usual: TokenIds) -> TokenIds:
    if vocab_size > usual.eot and published.get("mask_token_id", usual.mask) == usual.mask:
        return usual
    if "mask_token_id" not in published:
        raise CheckpointError(f"config.json names no mask_token_id, and a vocabulary of {vocab_size} is not LLaDA's")
    mask, eos = int(published["mask_token_id"]), int(published["eos_token_id"])
    return TokenIds(mask=mask, eos=eos, eot=int(published.get("eot_token_id", eos)), pad=eos,
                    bos=int(published.get("bos_token_id", eos)), image=published.get("image_token_id"))


def _vision_of(published: Mapping[str, Any], folder: Path) -> VisionConfig:
    """The tower by its name, or by a folder of that name beside the weights, and LLaDA-V's tiling."""
    name = str(published["mm_vision_tower"])
    ratio = re.fullmatch(r"anyres_max_(\d+)", str(published.get("image_aspect_ratio")))
    corners = re.findall(r"\((\d+)x(\d+)\)", str(published.get("image_grid_pinpoints")))
    if ratio is None or len(corners) < 2 or published.get("mm_patch_merge_type") != "spatial_unpad":
        raise CheckpointError(f"{folder}: only LLaDA-V's way of tiling pictures (anyres_max_N, spatial_unpad) is known")
    own = folder / name / "config.json"
    if name not in TOWERS and not own.is_file():
        raise CheckpointError(f"{folder}: unknown vision tower {name!r}; known are {', '.join(TOWERS)}")
    tower = TOWERS[name] if name in TOWERS else _siglip(read_json(own))
    (first_columns, first_rows), (last_columns, last_rows) = (map(int, corners[i]) for i in (0, -1))
    grids = tuple((c, r) for c in range(first_columns, last_columns + 1) for r in range(first_rows, last_rows + 1))
    return dataclasses.replace(tower, grids=grids, max_base_areas=int(ratio[1]))


def _siglip(sizes: Mapping[str, Any]) -> VisionConfig:
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "image_size", "patch_size")
    return dataclasses.replace(
        SO400M_PENULTIMATE, num_hidden_layers=sizes["num_hidden_layers"] - 1, **{name: sizes[name] for name in names}
    )


def load_folder(
    folder: Path, device: torch.device, dtype: torch.dtype, device_map: str | None = None, bits: Bits | None = None
) -> tuple[MMDiffModel, MMDiffProcessor]:
    """A model and its processor from a folder of ours or of a published layout, every weight accounted for.

    Raises:
        CheckpointError: the folder is incomplete, damaged or of another architecture.
    """
    config = config_of(folder)
    with torch.device("meta"):
        model = MMDiffModel(MMDiffConfig.of(config))
    load_weights(model, Weights(folder), dtype=dtype)
    if bits is not None:
        quantize(model.backbone.layers, bits)
    elif device.type == "cpu" and device_map is None:  # Accelerate's hooks bring weights to the modules they belong to
        suit_processors(model)
    if device_map is not None:
        from accelerate import dispatch_model, infer_auto_device_map

        model = dispatch_model(model, infer_auto_device_map(model, no_split_module_classes=model._no_split_modules))
    else:
        torch.nn.Module.to(model, device)
    return model, MMDiffProcessor.of(_tokenizer(folder), config)


def load_whisper(folder: Path, **changes: Any) -> WhisperTower:
    """A tower with the encoder of a published Whisper checkpoint; `changes` of its settings, such as the connector.

    Raises:
        CheckpointError: the folder is incomplete or damaged, or holds no Whisper model.
    """
    tower = WhisperTower(whisper_config(read_json(folder / "config.json"), **changes))
    tower.load_state_dict(encoder_state(Weights(folder), tower))
    return tower


def config_of(folder: Path) -> ModelConfig:
    """The settings of a checkpoint folder, ours or published."""
    stored = read_json(folder / "config.json")
    if stored.get("model_type") != MMDiffConfig.model_type:
        return config_of_published(folder)
    try:
        return MMDiffConfig(settings=stored.get("settings")).model
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} does not describe a model: {error}") from None


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the tokenizers package raises plain Exceptions
        reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
        raise CheckpointError(f"{folder} holds no tokenizer that can be read ({reason}); {_cure(folder)}") from None
    return tokenizer


def _cure(folder: Path) -> str:
    """What to do about files that cannot be read: a newer transformers, where they were saved with one."""
    with contextlib.suppress(InvalidVersion, TypeError):
        saved_with = str(read_json(folder / "config.json").get("transformers_version"))
        if Version(saved_with) > Version(transformers.__version__):
            return (f"it was saved with transformers {saved_with}, and {transformers.__version__} is installed: "
                    f"pip install 'transformers>={saved_with}'")
    return "fetch it again"


def save_folder(model: MMDiffModel, processor: MMDiffProcessor, folder: Path) -> None:
    """Write a model and its processor as `load_folder` reads them, and `from_pretrained` for transformers towers."""
    model.save_pretrained(folder, state_dict=canonical_state(model))
    processor.save_pretrained(folder)


def describe(config: ModelConfig) -> dict[str, Any]:
    """Settings and numbers of parameters, counted on the meta device."""
    with torch.device("meta"):
        model = MMDiffModel(MMDiffConfig.of(config))
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    total = sum(p.numel() for p in model.parameters())
    return {"parameters": {"total": total, **parts}, "settings": to_dict(config)}
