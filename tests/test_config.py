"""Settings survive JSON, and whatever does not fit is refused by name."""

import dataclasses
import json
from typing import Any

import pytest

from mmdiff.config import (
    LLADA_TOKENS,
    PRESETS,
    SO400M_PENULTIMATE,
    BackboneConfig,
    DecodingConfig,
    ModelConfig,
    TokenIds,
    from_dict,
    to_dict,
)

TINY = PRESETS["tiny"]


def as_json(config: ModelConfig) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(to_dict(config)))
    return values


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str) -> None:
    """JSON turns tuples into lists; unless they are turned back, a loaded config is unequal and
    cannot be hashed."""
    loaded = from_dict(ModelConfig, as_json(PRESETS[name]))
    assert loaded == PRESETS[name] and hash(loaded) == hash(PRESETS[name])
    assert all(isinstance(grid, tuple) for grid in (loaded.vision.grids if loaded.vision else ()))


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.backbone.hidden_size = 8  # type: ignore[misc]


def test_what_is_left_out_takes_its_default() -> None:
    values = as_json(PRESETS["llada-8b"])
    for name in ("vision", "decoding", "system_prompt"):
        del values[name]
    assert from_dict(ModelConfig, values) == ModelConfig(PRESETS["llada-8b"].backbone, LLADA_TOKENS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v: v.update(colour=1),
            r"^config \(ModelConfig\): unknown keys \['colour'\], missing keys \[\]$",
        ),
        (
            lambda v: v["backbone"].update(heads=1, blocks=2),
            r"config\.backbone .*unknown keys \['blocks', 'heads'\]",
        ),
        (
            lambda v: v["vision"].pop("patch_size"),
            r"config\.vision \(VisionConfig\): .*missing keys \['patch_size'\]",
        ),
        (lambda v: v["tokens"].pop("mask"), r"config\.tokens .*missing keys \['mask'\]"),
        (lambda v: v["decoding"].update(cfg=1.0), r"config\.decoding .*unknown keys \['cfg'\]"),
        (lambda v: v.pop("backbone"), r"missing keys \['backbone'\]"),
    ],
)
def test_unknown_and_missing_keys_are_named_with_their_path(change: Any, message: str) -> None:
    """A typing error in config.json would otherwise leave a setting at its default without a
    word."""
    values = as_json(TINY)
    change(values)
    with pytest.raises(ValueError, match=message):
        from_dict(ModelConfig, values)


def test_folders_saved_with_a_retired_setting_go_on_loading() -> None:
    values = as_json(TINY)
    values["audio"]["doubt"] = 0.5
    assert from_dict(ModelConfig, values) == TINY and "doubt" not in to_dict(TINY)["audio"]
    values["backbone"]["doubt"] = 0.5  # retired of audio alone
    with pytest.raises(ValueError, match=r"config\.backbone .*unknown keys \['doubt'\]"):
        from_dict(ModelConfig, values)


@pytest.mark.parametrize(
    ("part", "value"), [("backbone", None), ("backbone", 4), ("tokens", []), ("vision", "siglip")]
)
def test_a_part_that_is_no_dictionary_is_refused(part: str, value: object) -> None:
    """`"backbone": null` used to pass, and to fail much later with an AttributeError."""
    with pytest.raises(ValueError, match=rf"config\.{part}="):
        from_dict(ModelConfig, {**as_json(TINY), part: value})
    assert from_dict(ModelConfig, {**as_json(TINY), "vision": None}).vision is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_attention_heads", 5),  # 192 is no multiple of it
        ("num_attention_heads", 0),  # once a ZeroDivisionError
        ("num_key_value_heads", 4),  # 6 heads cannot share 4
        ("num_key_value_heads", 0),
        ("vocab_size", 0),
        ("num_hidden_layers", -1),
        ("hidden_size", 192.5),
        ("attention_pattern", "causal"),
    ],
)
def test_backbone_misfits_name_the_value(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}={value!r} does not fit"):
        from_dict(BackboneConfig, {**to_dict(TINY.backbone), name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layout", "tiles"),
        ("layout", "anyres"),  # without grids
        ("layout_of_several", "anyres"),
        ("library", "keras"),
        ("pixel_shuffle", 5),  # does not divide 12 patches
        ("pixel_shuffle", 0),
        ("patch_size", 0),
        ("image_size", "96"),
    ],
)
def test_vision_misfits_name_the_value(name: str, value: object) -> None:
    assert TINY.vision is not None
    with pytest.raises(
        ValueError,
        match="grids=" if value == "anyres" and name == "layout" else f"{name}={value!r}",
    ):
        dataclasses.replace(TINY.vision, **{name: value})


@pytest.mark.parametrize("name", ["gen_length", "block_length", "steps"])
@pytest.mark.parametrize("value", [0, -8, 8.5, "8", None])
def test_decoding_counts_are_whole_and_positive(name: str, value: Any) -> None:
    """`gen_length=8.5` used to pass, and to end in a TypeError of PyTorch."""
    with pytest.raises(ValueError, match=f"{name}={value!r} does not fit.*at least 1"):
        DecodingConfig(**{name: value})
    assert getattr(DecodingConfig(**{name: 1}), name) == 1


@pytest.mark.parametrize(
    ("name", "fits", "misfits"),
    [
        ("threshold", [None, 0.0, 0.5, 1.0], [-0.1, 1.1, float("nan"), "high"]),
        ("temperature", [0.0, 2.0], [-1.0, float("nan"), "hot", True]),
        ("start_length", [None, 4], [0, 1.5, "x"]),
        ("top_k", [None, 50], [0, 2.5]),
        ("refresh", [None, 3], [0, "often"]),
        ("lookahead", [0, 4], [-1, 1.5, None]),
        ("stop", [True, False], ["maybe", 1]),
        ("rule", [None, "wino"], ["winoo", 3]),
        ("cache", [None, "dual"], ["yes", False]),
        ("cfg_scale", [0.0, 3.0], [-0.5, float("nan")]),
        ("order", ["low_confidence", "random"], ["alphabetical"]),
    ],
)
def test_decoding_bounds(name: str, fits: list[Any], misfits: list[Any]) -> None:
    for value in fits:
        assert getattr(DecodingConfig(**{name: value}), name) == value
    for value in misfits:
        with pytest.raises(ValueError, match=f"{name}={value!r} does not fit"):
            DecodingConfig(**{name: value})


@pytest.mark.parametrize("name", PRESETS)
def test_presets_hold_together(name: str) -> None:
    """Special ids lie in the vocabulary, the answer fits the positions, and no answer token is
    forbidden."""
    config = PRESETS[name]
    tokens = config.tokens
    ids = [
        tokens.mask,
        tokens.eos,
        tokens.eot,
        tokens.bos,
        tokens.pad,
        tokens.image,
        tokens.audio,
        *tokens.never,
    ]
    assert all(token is not None and 0 <= token < config.backbone.vocab_size for token in ids)
    assert len({tokens.mask, tokens.eos, tokens.eot, tokens.bos, tokens.image, tokens.audio}) == 6
    assert config.decoding.gen_length < config.backbone.max_position_embeddings
    assert tokens.eot not in tokens.never and tokens.mask not in tokens.never


def test_derived_sizes() -> None:
    assert TINY.backbone.head_dim == 32
    assert TINY.vision is not None and (
        TINY.vision.patches_per_side,
        TINY.vision.tokens_per_side,
    ) == (12, 6)
    assert (
        SO400M_PENULTIMATE.patches_per_side == 27
    )  # 384 pixels hold 27 patches of 14, and 6 pixels are left over
    assert from_dict(
        TokenIds, {"mask": 0, "eos": 1, "eot": 2, "bos": 3, "pad": 1, "never": [3]}
    ).never == (3,)
