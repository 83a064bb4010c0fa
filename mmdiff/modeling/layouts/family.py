"""What a published family is made of, and what those of transformers have in common.

A setting of config.json is in one of three tables. What has a size or an id is read
(`published_config.py`). What changes the maths is in `Family.settings` with the values that the
backbone here computes, and any other value is refused by name (`settings.py`). Bookkeeping of
training and of libraries is passed over (`bookkeeping.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmdiff.config import DecodingConfig, ModelConfig, TokenIds
from mmdiff.errors import CheckpointError

Accepted = tuple[Any, ...]
OFF: Accepted = ()  # nothing but what switches a setting off: null, false, 0 or empty
Published = Mapping[str, Any]  # a config.json


@dataclass(frozen=True)
class Family:
    """What published configurations of one kind have in common."""

    name: str  # as messages say it
    settings: Mapping[str, Accepted]  # the accepted values of each setting that changes the maths
    read: frozenset[str]  # settings that sizes, ids and the tiling of images are read from
    architectures: tuple[str, ...] = ()  # class names in config.json
    model_types: tuple[str, ...] = ()
    # Whether a config.json is of this family: names alone do not tell, two families share them.
    recognises: Callable[[Published], bool] = lambda published: False
    fixed: Mapping[str, Any] = field(default_factory=dict)  # what its backbone always does
    # What its own settings say about the backbone, by the fields of `BackboneConfig`.
    backbone: Callable[[Published], Mapping[str, Any]] = lambda published: {}
    # Special ids where the vocabulary is the published one, decoding, system prompt: of models for
    # text, and of those with a vision tower. A family that is not a preset has `tokens` alone.
    defaults: ModelConfig | None = None
    vision_defaults: ModelConfig | None = None
    tokens: TokenIds | None = None
    decoding: DecodingConfig = field(default_factory=DecodingConfig)


@dataclass(frozen=True)
class Layout:
    """The names of tensors in a checkpoint."""

    name: str
    # A tensor that every checkpoint of this layout has, and none of a layout after it: a pattern
    # that matches the whole name.
    mark: str
    # Theirs -> ours: patterns that match the whole name; those of None are dropped on purpose.
    names: Mapping[str, str | None]
    # Theirs -> ours, of tensors that hold several of ours, one behind the other in their rows.
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def required(published: Published, *keys: str) -> dict[str, Any]:
    """Settings that a family cannot do without.

    Raises:
        CheckpointError: some are not there; the message names them.
    """
    if missing := [key for key in keys if published.get(key) is None]:
        raise CheckpointError(f"config.json does not say {', '.join(missing)}")
    return {key: published[key] for key in keys}


def architectures_of(published: Published) -> list[Any]:
    """The class names that a config.json gives."""
    named = published.get("architectures") or []
    if isinstance(named, list):
        return named
    return [named]


SIZES = frozenset(
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
IDS = frozenset(
    {
        "mask_token_id",
        "eos_token_id",
        "eot_token_id",
        "bos_token_id",
        "pad_token_id",
        "image_token_id",
    }
)
EVERYWHERE: dict[str, Accepted] = {
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
