"""The config.json of a published checkpoint, in every spelling that its training code writes, as
our settings.

Settings that change the maths are checked by `families.py`; here sizes, special ids, the vision
tower and the tiling of images are read.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff.config import (
    PRESETS,
    SO400M_PENULTIMATE,
    BackboneConfig,
    ModelConfig,
    TokenIds,
    ViewLayout,
    VisionConfig,
    shown,
)
from mmdiff.errors import CheckpointError
from mmdiff.modeling.checkpoint_folder import read_json
from mmdiff.modeling.layouts.families import (
    DREAM,
    SIGLIP,
    Family,
    check_settings,
    family_of,
    rope_theta,
)

# From published keys to ours: the first key that is there counts.
_BACKBONE_KEYS: dict[str, tuple[str, ...]] = {
    "vocab_size": ("embedding_size", "vocab_size"),
    "hidden_size": ("d_model", "hidden_size"),
    "intermediate_size": ("mlp_hidden_size", "intermediate_size"),
    "num_hidden_layers": ("n_layers", "num_hidden_layers"),
    "num_attention_heads": ("n_heads", "num_attention_heads"),
    "num_key_value_heads": ("n_kv_heads", "num_key_value_heads", "n_heads", "num_attention_heads"),
    "rms_norm_eps": ("rms_norm_eps",),
    "qkv_bias": ("include_qkv_bias", "attention_bias"),
    "max_position_embeddings": ("max_sequence_length", "max_position_embeddings"),
}
_OPTIONAL = ("qkv_bias", "max_position_embeddings")
_MOST_GRIDS = 1_000
_ONE_VIEW: dict[object, ViewLayout] = {"square": "resize", "pad": "pad"}
# Of `transformers.SiglipVisionConfig`, which leaves out what is as usual when it saves.
_SIGLIP_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
}


def config_of_published(folder: Path) -> ModelConfig:
    """Our settings for a published LLaDA, LLaDA-V or Dream folder.

    Its family's special ids are used where the vocabulary is the published one; another must name
    its mask and EOS ids.

    Raises:
        CheckpointError: a size is missing, or the model does what mmdiff does not.
    """
    published = read_json(folder / "config.json")
    try:
        return _config(published, folder)
    except (ValueError, TypeError, ArithmeticError, AttributeError) as error:
        raise CheckpointError(f"{folder}: {error}") from None


def _config(published: Mapping[str, Any], folder: Path) -> ModelConfig:
    family = family_of(published)
    check_settings(published, family)
    backbone = _backbone_of(published, family)
    vision = _vision_of(published, folder) if published.get("mm_vision_tower") else None
    tokens = _tokens_of(published, backbone.vocab_size, family, vision is not None)
    if family is DREAM:
        return ModelConfig(backbone=backbone, tokens=tokens)
    preset = PRESETS["llada-v-8b" if vision else "llada-8b"]
    return dataclasses.replace(preset, backbone=backbone, tokens=tokens, vision=vision)


def _backbone_of(published: Mapping[str, Any], family: Family) -> BackboneConfig:
    found: dict[str, Any] = {
        ours: next((published[key] for key in keys if published.get(key) is not None), None)
        for ours, keys in _BACKBONE_KEYS.items()
    }
    if found["intermediate_size"] is None and found["hidden_size"] and published.get("mlp_ratio"):
        found["intermediate_size"] = (
            published["mlp_ratio"] * found["hidden_size"]
        )  # as LLaDA's own code takes it
    found["rope_theta"] = rope_theta(published)
    if missing := [
        name for name, value in found.items() if value is None and name not in _OPTIONAL
    ]:
        raise CheckpointError(
            f"config.json does not say {', '.join(missing)}; this is not a LLaDA-style model"
        )
    for name in ("rope_theta", "rms_norm_eps"):
        if not isinstance(found[name], int | float) or not 0 < found[name] < math.inf:
            raise CheckpointError(
                f"config.json says {name}={shown(found[name])}, which is not a number above 0"
            )
    backbone = BackboneConfig(
        **{k: value for k, value in found.items() if value is not None} | dict(family.fixed)
    )
    if published.get("head_dim") not in (None, backbone.head_dim):
        raise CheckpointError(
            f"config.json says head_dim={shown(published['head_dim'])}, but mmdiff's heads are "
            "hidden_size / "
            f"num_attention_heads = {backbone.head_dim} wide"
        )
    return backbone


def _tokens_of(
    published: Mapping[str, Any], vocab_size: int, family: Family, sees: bool
) -> TokenIds:
    mask = _id(published, "mask_token_id")
    usual = PRESETS["llada-v-8b"].tokens if sees else family.tokens
    if usual is not None and vocab_size > max(usual.eot, usual.mask) and mask in (None, usual.mask):
        return usual
    eos = _id(published, "eos_token_id")
    if mask is None or eos is None:
        raise CheckpointError(
            f"config.json names no {'mask' if mask is None else 'eos'}_token_id, and a "
            f"vocabulary of {vocab_size} is "
            f"not that of {family.name}"
        )
    for key, token in (("mask_token_id", mask), ("eos_token_id", eos)):
        if not 0 <= token < vocab_size:
            raise CheckpointError(
                f"config.json says {key}={token}, outside of its vocabulary of {vocab_size}"
            )
    bos = _id(published, "bos_token_id")
    image = _id(published, "image_token_id")
    if sees and image is None:
        image = (
            vocab_size - 1
        )  # published code keeps its mark outside of the vocabulary: any id that no text has
    return TokenIds(
        mask=mask,
        eos=eos,
        pad=eos,
        eot=_either(_id(published, "eot_token_id"), eos),
        bos=_either(bos, eos),
        image=image,
    )


def _id(published: Mapping[str, Any], key: str) -> int | None:
    """A token id; of several that end an answer, the first."""
    value = published.get(key)
    value = value[0] if isinstance(value, list) and value else value
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise CheckpointError(f"config.json says {key}={shown(value)}, which is not a token id")


def _either(token: int | None, otherwise: int) -> int:
    return otherwise if token is None else token


def _vision_of(published: Mapping[str, Any], folder: Path) -> VisionConfig:
    """The tower, and how images are cut for it: LLaDA-V's tiles, or one view as in its first
    stage."""
    tower = _tower_of(published["mm_vision_tower"], folder)
    if published.get("mm_hidden_size") not in (None, tower.hidden_size):
        raise CheckpointError(
            f"config.json says mm_hidden_size={shown(published['mm_hidden_size'])}, but its "
            "vision tower "
            f"{shown(published['mm_vision_tower'])} gives {tower.hidden_size}"
        )
    aspect, merge = published.get("image_aspect_ratio"), published.get("mm_patch_merge_type")
    if aspect in _ONE_VIEW and merge in ("flat", "spatial_unpad"):
        layout = _ONE_VIEW[aspect]
        return dataclasses.replace(
            tower, layout=layout, layout_of_several=layout, newline=merge == "spatial_unpad"
        )
    tiled = re.fullmatch(r"anyres(?:_max_([1-9]\d*))?", str(aspect))
    if tiled is None or merge != "spatial_unpad":
        raise CheckpointError(
            f"config.json says image_aspect_ratio={shown(aspect)} and "
            f"mm_patch_merge_type={shown(merge)}, a way of "
            "cutting images that mmdiff does not know; it knows anyres_max_N, anyres, pad and "
            "square with "
            "spatial_unpad, and pad and square with flat"
        )
    grids = grids_of(published.get("image_grid_pinpoints"), tower.image_size)
    return dataclasses.replace(
        tower, grids=grids, max_base_areas=int(tiled[1]) if tiled[1] else None
    )


def _tower_of(name: object, folder: Path) -> VisionConfig:
    """A tower by its name or path: of the folder that it names, where that is there, else by what
    its name says.

    Towers' weights are inside the checkpoint, so that the path of whoever trained it need not
    exist.
    """
    path = str(name).rstrip("/\\")
    last = re.split(r"[/\\]", path)[-1]
    with contextlib.suppress(OSError):  # a name that can be no path
        for own in (folder / last / "config.json", folder / path / "config.json"):
            if last and own.is_file():
                return _siglip(read_json(own))
    patches = re.search(r"patch\d+.*", last.lower())
    if "siglip" in path.lower() and (patches is None or patches[0].startswith("patch14-384")):
        return SO400M_PENULTIMATE
    raise CheckpointError(
        f"unknown vision tower {shown(name)}; known are SigLIP and SigLIP 2 so400m-patch14-384, "
        "or a SigLIP tower "
        "whose own folder, with its config.json, lies beside the weights"
    )


def _siglip(sizes: Mapping[str, Any]) -> VisionConfig:
    """A tower's own config.json, alone or inside that of the whole SigLIP model, without its last
    layer."""
    inner = sizes.get("vision_config", sizes)
    if not isinstance(inner, Mapping):
        raise CheckpointError(
            f"the vision tower's config.json says vision_config={shown(inner)}, not an object"
        )
    check_settings(inner, SIGLIP)
    found = {name: inner.get(name, usual) for name, usual in _SIGLIP_DEFAULTS.items()}
    found["num_hidden_layers"] -= 1  # LLaVA takes the features of the penultimate layer
    return dataclasses.replace(SO400M_PENULTIMATE, **found)


def grids_of(pinpoints: object, side: int) -> tuple[tuple[int, int], ...]:
    """The grids of tiles, as (columns, rows), that `image_grid_pinpoints` allows; among equal ones
    the first counts.

    Args:
        pinpoints: pairs of width and height in pixels, in a list or written out as one; or a text
            such as "(1x1),...,(6x6)": all grids from the first to the last, whatever stands between
            them.
        side: of a tile, in pixels.

    Raises:
        CheckpointError: it is none of these, or a size is not a multiple of the tile's.
    """
    if isinstance(pinpoints, str) and (corners := re.findall(r"\((\d+)\s*x\s*(\d+)\)", pinpoints)):
        (columns, rows), (last_columns, last_rows) = ([int(n) for n in corners[i]] for i in (0, -1))
        across, down = (
            range(columns, last_columns + 1)[:_MOST_GRIDS],
            range(rows, last_rows + 1)[:_MOST_GRIDS],
        )
        grids = [(c, r) for c in across for r in down if c > 0 and r > 0]
    else:
        pairs = _literal(pinpoints) if isinstance(pinpoints, str) else pinpoints
        if not isinstance(pairs, Sequence) or not all(_is_size(pair, side) for pair in pairs):
            raise CheckpointError(
                f"config.json says image_grid_pinpoints={shown(pinpoints)}; give pairs of pixels "
                "that are multiples "
                f"of {side}, or '(1x1),...,(6x6)'"
            )
        grids = [(width // side, height // side) for width, height in pairs]
    if not 0 < len(grids) <= _MOST_GRIDS:
        raise CheckpointError(
            f"config.json says image_grid_pinpoints={shown(pinpoints)}, which is {len(grids)} "
            "grids; give 1 to "
            f"{_MOST_GRIDS}"
        )
    return tuple(grids)


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _is_size(pair: object, side: int) -> bool:
    return (
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and all(isinstance(each, int) and each > 0 and each % side == 0 for each in pair)
    )
