"""The config.json of a published checkpoint, in every spelling that its training code writes, as
our settings.

Settings that change the maths are checked by `settings.py`; here sizes, special ids, the vision
tower and the tiling of images are read.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff.config import (
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
from mmdiff.modeling.layouts.families import family_of
from mmdiff.modeling.layouts.family import Family
from mmdiff.modeling.layouts.settings import check_settings, rope_theta
from mmdiff.modeling.layouts.siglip import siglip_config

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
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_theta",
)
_MOST_GRIDS = 1_000
_ONE_VIEW: dict[object, ViewLayout] = {"square": "resize", "pad": "pad"}


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
    vision, defaults = None, family.defaults
    if published.get("mm_vision_tower"):
        vision, defaults = _vision_of(published, folder), family.vision_defaults
    usual = family.tokens
    if defaults is not None:
        usual = defaults.tokens
    tokens = _tokens_of(published, backbone.vocab_size, family.name, usual)
    if defaults is None:
        return ModelConfig(
            backbone=backbone, tokens=tokens, vision=vision, decoding=family.decoding
        )
    return dataclasses.replace(defaults, backbone=backbone, tokens=tokens, vision=vision)


def _backbone_of(published: Mapping[str, Any], family: Family) -> BackboneConfig:
    found: dict[str, Any] = {"rope_theta": rope_theta(published)}
    own = family.backbone(published)
    for ours, keys in _BACKBONE_KEYS.items():
        written = [key for key in keys if published.get(key) is not None]
        if written:
            found[ours] = published[written[0]]
    ratio = published.get("mlp_ratio")
    found |= own
    if "intermediate_size" not in found and found.get("hidden_size") and ratio:
        found["intermediate_size"] = ratio * found["hidden_size"]  # as LLaDA's own code takes it
    if missing := [name for name in _REQUIRED if found.get(name) is None]:
        raise CheckpointError(
            f"config.json does not say {', '.join(missing)}; this is not a LLaDA-style model"
        )
    for name in ("rope_theta", "rms_norm_eps"):
        if not isinstance(found[name], int | float) or not 0 < found[name] < math.inf:
            raise CheckpointError(
                f"config.json says {name}={shown(found[name])}, which is not a number above 0"
            )
    backbone = BackboneConfig(**found | dict(family.fixed))
    if published.get("head_dim") not in (None, backbone.head_dim):
        raise CheckpointError(
            f"config.json says head_dim={shown(published['head_dim'])}, but mmdiff's heads are "
            f"hidden_size / num_attention_heads = {backbone.head_dim} wide"
        )
    return backbone


def _tokens_of(
    published: Mapping[str, Any], vocab_size: int, family: str, usual: TokenIds | None
) -> TokenIds:
    mask = _id(published, "mask_token_id")
    if usual is not None and vocab_size > max(usual.eot, usual.mask) and mask in (None, usual.mask):
        return usual
    mask = _needed_id(published, "mask_token_id", vocab_size, family)
    eos_key = "eos_token_id"
    if published.get(eos_key) is None and published.get("pad_token_id") is not None:
        eos_key = "pad_token_id"  # the end of text pads answers in every family
    eos = _needed_id(published, eos_key, vocab_size, family)
    bos = _id(published, "bos_token_id")
    image = _id(published, "image_token_id")
    if published.get("mm_vision_tower") and image is None:
        # Published code keeps its mark outside of the vocabulary: any id that no text has.
        image = vocab_size - 1
    return TokenIds(
        mask=mask,
        eos=eos,
        pad=eos,
        eot=_either(_id(published, "eot_token_id"), eos),
        bos=_either(bos, eos),
        image=image,
    )


def _needed_id(published: Mapping[str, Any], key: str, vocab_size: int, family: str) -> int:
    token = _id(published, key)
    if token is None:
        raise CheckpointError(
            f"config.json names no {key}, and a vocabulary of {vocab_size} is not that of {family}"
        )
    if not 0 <= token < vocab_size:
        raise CheckpointError(
            f"config.json says {key}={token}, outside of its vocabulary of {vocab_size}"
        )
    return token


def _id(published: Mapping[str, Any], key: str) -> int | None:
    """A token id; of several that end an answer, the first."""
    value = published.get(key)
    if isinstance(value, list) and value:
        value = value[0]
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise CheckpointError(f"config.json says {key}={shown(value)}, which is not a token id")


def _either(token: int | None, otherwise: int) -> int:
    if token is None:
        return otherwise
    return token


def _vision_of(published: Mapping[str, Any], folder: Path) -> VisionConfig:
    """The tower, and how images are cut for it: LLaDA-V's tiles, or one view as in its first
    stage."""
    tower = _tower_of(published["mm_vision_tower"], folder)
    if published.get("mm_hidden_size") not in (None, tower.hidden_size):
        raise CheckpointError(
            f"config.json says mm_hidden_size={shown(published['mm_hidden_size'])}, but its vision "
            f"tower {shown(published['mm_vision_tower'])} gives {tower.hidden_size}"
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
            f"mm_patch_merge_type={shown(merge)}, a way of cutting images that mmdiff does not "
            "know; it knows anyres_max_N, anyres, pad and square with spatial_unpad, and pad and "
            "square with flat"
        )
    grids = grids_of(published.get("image_grid_pinpoints"), tower.image_size)
    if tiled[1]:
        return dataclasses.replace(tower, grids=grids, max_base_areas=int(tiled[1]))
    return dataclasses.replace(tower, grids=grids, max_base_areas=None)


def _tower_of(name: object, folder: Path) -> VisionConfig:
    """A tower by its name or path: of the folder that it names, where that is there, else by what
    its name says.

    Towers' weights are inside the checkpoint, so that the path where it was trained need not exist.
    """
    path = str(name).rstrip("/\\")  # Windows writes either
    last = re.split(r"[/\\]", path)[-1]
    with contextlib.suppress(OSError):  # a name that can be no path
        for own in (folder / last / "config.json", folder / path / "config.json"):
            if last and own.is_file():
                return siglip_config(read_json(own))
    patches = re.search(r"patch\d+.*", last.lower())
    if "siglip" in path.lower() and (patches is None or patches[0].startswith("patch14-384")):
        return SO400M_PENULTIMATE
    raise CheckpointError(
        f"unknown vision tower {shown(name)}; known are SigLIP and SigLIP 2 so400m-patch14-384, "
        "or a SigLIP tower whose own folder, with its config.json, lies beside the weights"
    )


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
        columns, rows = map(int, corners[0])
        last_columns, last_rows = map(int, corners[-1])
        across = range(max(columns, 1), last_columns + 1)[:_MOST_GRIDS]
        down = range(max(rows, 1), last_rows + 1)[:_MOST_GRIDS]
        grids = list(itertools.product(across, down))
    else:
        pairs = pinpoints
        if isinstance(pinpoints, str):
            pairs = _literal(pinpoints)
        if not isinstance(pairs, Sequence) or not all(_is_size(pair, side) for pair in pairs):
            raise CheckpointError(
                f"config.json says image_grid_pinpoints={shown(pinpoints)}; give pairs of pixels "
                f"that are multiples of {side}, or '(1x1),...,(6x6)'"
            )
        grids = [(width // side, height // side) for width, height in pairs]
    if not 0 < len(grids) <= _MOST_GRIDS:
        raise CheckpointError(
            f"config.json says image_grid_pinpoints={shown(pinpoints)}, which is {len(grids)} "
            f"grids; give 1 to {_MOST_GRIDS}"
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
