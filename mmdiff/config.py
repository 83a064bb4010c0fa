"""Every setting of a model, as frozen dataclasses without any heavy import.

A model is described by `ModelConfig`: the backbone, the vision tower, the special token ids and the
decoding defaults. `from_dict` is strict: an unknown or missing key is a `ValueError` that names it.
`PRESETS` is the literal table of the known sizes. What a published `config.json` calls these things
is translated in `checkpoint.py`, not here.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, cast

AttentionPattern = Literal["full", "segment-causal", "block-causal"]
Router = Literal["softmax", "grouped_sigmoid"]
ViewLayout = Literal["anyres", "resize", "pad"]
TowerLibrary = Literal["transformers", "timm", "open_clip"]
AudioConnector = Literal["stack", "dual"]
Order = Literal["low_confidence", "margin", "entropy", "random", "left_to_right"]
Rule = Literal[
    "quota",
    "threshold",
    "factor",
    "entropy_bounded",
    "dilated",
    "local",
    "first_hitting",
    "running_confidence",
    "saber",
    "wino",
    "threshold_or_quota",
    "editing",
]
Schedule = Literal["uniform", "shifted", "cosine", "dream"]
Cache = Literal["none", "prefix", "block", "dual", "delayed", "finished_blocks"]
BlockOrigin = Literal["answer", "sequence"]
T = TypeVar("T")


@dataclass(frozen=True)
class Flag:
    """How a field is given on the command line."""

    help: str | None
    name: str | None  # by default the field's
    least: float | None
    most: float | None
    argument: bool  # without a name
    metavar: str | None


def flag(
    default: Any,
    help: str | None = None,
    *,
    name: str | None = None,
    least: float | None = None,
    most: float | None = None,
    argument: bool = False,
    metavar: str | None = None,
) -> Any:
    """A field that has a flag of the command line; a tuple's flag may be given again."""
    of_field = Flag(help, name, least, most, argument, metavar)
    return field(default=default, metadata={"flag": of_field})


def help_of(cls: type, name: str) -> str | None:
    """What the command line says about a field made by `flag`."""
    found = next(each for each in dataclasses.fields(cls) if each.name == name)
    return found.metadata["flag"].help


@dataclass(frozen=True)
class ExpertsConfig:
    """A mixture of experts in the place of a layer's MLP; see `modeling/moe.py`."""

    num_experts: int
    experts_per_token: int
    intermediate_size: int  # of one expert
    shared_intermediate_size: int = 0  # of the expert that every token goes through; 0: none
    router: Router = "softmax"
    router_bias: bool = False
    num_groups: int = 1  # of neighbouring experts, for "grouped_sigmoid"
    groups_per_token: int = 1
    scale: float = 1.0  # of the weights, for "grouped_sigmoid"
    dense_layers: tuple[int, ...] = ()  # numbers of the layers with a plain MLP, from 0

    def __post_init__(self) -> None:
        _require_counts(
            self,
            "num_experts",
            "experts_per_token",
            "intermediate_size",
            "num_groups",
            "groups_per_token",
        )
        whole("shared_intermediate_size", self.shared_intermediate_size, 0)
        _require(self.router in typing.get_args(Router), "router", self.router)
        _require(self.num_experts % self.num_groups == 0, "num_groups", self.num_groups)
        _require(
            self.groups_per_token <= self.num_groups, "groups_per_token", self.groups_per_token
        )
        within = self.num_experts // self.num_groups * self.groups_per_token
        _require(
            self.experts_per_token <= within,
            "experts_per_token",
            self.experts_per_token,
            f"a token can choose among {within} experts",
        )
        _require(is_number(self.scale) and self.scale > 0, "scale", self.scale)


@dataclass(frozen=True)
class BackboneConfig:
    """The bidirectional transformer (LLaDA, arXiv 2502.09992)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rope_theta: float = 500_000.0
    rope_ntk_factor: float = (
        1.0  # stretches the base for prompts longer than trained ("NTK-aware" scaling)
    )
    rms_norm_eps: float = 1e-5
    qkv_bias: bool = False
    max_position_embeddings: int = 4096
    attention_pattern: AttentionPattern = "full"  # the others: see attention.py
    shifted: bool = False  # whether a position's logits come out one position before it (Dream)
    head_width: int | None = None  # by default hidden_size / num_attention_heads
    rotary_fraction: float = 1.0  # of each head that rotates, from its start
    qk_norm: bool = False  # an RMSNorm of each head's queries and keys before they rotate
    o_bias: bool = False
    experts: ExpertsConfig | None = None  # in the place of the layers' MLPs
    attention_block: int = 32  # positions of a block, for "block-causal" where nothing else says

    def __post_init__(self) -> None:
        _require_counts(
            self,
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
        )
        whole("attention_block", self.attention_block, 1)
        if self.head_width is None:
            _require(
                self.hidden_size % self.num_attention_heads == 0,
                "num_attention_heads",
                self.num_attention_heads,
            )
        else:
            whole("head_width", self.head_width, 1)
        _require(
            is_number(self.rotary_fraction) and self.rotary_dim >= 2 and not self.rotary_dim % 2,
            "rotary_fraction",
            self.rotary_fraction,
            f"an even number of the {self.head_dim} numbers of a head rotates",
        )
        _require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            "num_key_value_heads",
            self.num_key_value_heads,
        )
        _require(
            self.attention_pattern in typing.get_args(AttentionPattern),
            "attention_pattern",
            self.attention_pattern,
        )

    @property
    def head_dim(self) -> int:
        if self.head_width is not None:
            return self.head_width
        return self.hidden_size // self.num_attention_heads

    @property
    def causal_block(self) -> int | None:
        """The length of a block, where none sees what follows it."""
        if self.attention_pattern == "block-causal":
            return self.attention_block
        return None

    @property
    def rotary_dim(self) -> int:
        """How many numbers of a head rotate."""
        return int(self.head_dim * min(self.rotary_fraction, 1))


@dataclass(frozen=True)
class VisionConfig:
    """A SigLIP tower (arXiv 2303.15343, 2502.14786) and how an image is cut into square views for
    it.

    `num_hidden_layers` counts the layers that are built: features are the output of the last one,
    before any final norm. LLaVA-style models take the penultimate layer of a published tower, so
    they build one layer fewer.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int  # pixels per side of one view
    patch_size: int  # pixels per side of one patch
    layer_norm_eps: float = 1e-6
    library: TowerLibrary = "transformers"
    layout: ViewLayout = "anyres"
    layout_of_several: ViewLayout = "pad"  # when a conversation holds more than one image
    grids: tuple[tuple[int, int], ...] = ()  # anyres: the allowed (columns, rows)
    max_base_areas: int | None = (
        None  # anyres: shrink the tiled map to this many base views ("anyres_max_4": 4)
    )
    pixel_shuffle: int = 1  # patches per side that are joined into one embedding (1: none)
    connector_norm: bool = (
        False  # a LayerNorm before the connector: raw features of a tower can be loud
    )
    newline: bool = True  # a learned embedding at the end of every row of tiles
    mean: float = 0.5
    std: float = 0.5
    timm_model: str | None = None  # library "timm": a backbone with maps instead of a SigLIP tower
    timm_maps: tuple[str, ...] = ()  # modules of it whose maps are the features; see map_tower.py

    def __post_init__(self) -> None:
        _require_counts(
            self, "hidden_size", "num_attention_heads", "image_size", "patch_size", "pixel_shuffle"
        )
        _require(self.layout in typing.get_args(ViewLayout), "layout", self.layout)
        _require(
            self.layout_of_several in ("resize", "pad"), "layout_of_several", self.layout_of_several
        )
        _require(self.library in typing.get_args(TowerLibrary), "library", self.library)
        _require(
            self.patches_per_side % self.pixel_shuffle == 0,
            "pixel_shuffle",
            self.pixel_shuffle,
            f"it must divide the {self.patches_per_side} patches of a side",
        )
        _require(self.layout != "anyres" or len(self.grids) > 0, "grids", self.grids)
        _require(
            self.timm_model is None or self.library == "timm",
            "timm_model",
            self.timm_model,
            "it needs library='timm'",
        )

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def tokens_per_side(self) -> int:
        """Embeddings per side of one view, as the backbone sees it."""
        return self.patches_per_side // self.pixel_shuffle


@dataclass(frozen=True)
class AudioConfig:
    """A Whisper encoder (arXiv 2212.04356) and the connector behind it; see `audio/`.

    `num_hidden_layers` counts the layers that are built. Whisper's own features are those of its
    last layer after `final_norm`; for the penultimate layer's, build one layer fewer and no norm.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_mels: int = 80
    max_positions: int = 1500  # encoder frames of 20 ms in the longest window
    final_norm: bool = True
    connector: AudioConnector = "stack"
    frames_per_token: int = (
        4  # encoder frames that are joined into one embedding: 12.5 embeddings per second
    )
    taps: tuple[int, ...] = ()  # "dual": numbers of the layers whose inputs the queries look at
    num_queries: int = 64  # "dual": embeddings of each window besides those for its frames
    qformer_layers: int = 2
    qformer_heads: int = 12
    qformer_intermediate_size: int = 3072
    segment_seconds: float = 30.0  # of the longest piece of speech that is transcribed at once
    # whether the model's outputs at the embeddings of audio spell it (CTC; blank: end of text)
    ctc_drafts: bool = False

    def __post_init__(self) -> None:
        _require_counts(
            self,
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_mels",
            "max_positions",
            "frames_per_token",
            "num_queries",
            "qformer_layers",
            "qformer_heads",
            "qformer_intermediate_size",
        )
        _require(
            self.hidden_size % self.num_attention_heads == 0,
            "num_attention_heads",
            self.num_attention_heads,
        )
        _require(self.connector in typing.get_args(AudioConnector), "connector", self.connector)
        _require(
            all(0 <= tap < self.num_hidden_layers for tap in self.taps),
            "taps",
            self.taps,
            f"they are numbers of the {self.num_hidden_layers} layers, from 0",
        )
        _require(
            self.segment_seconds > 0, "segment_seconds", self.segment_seconds, "it must be above 0"
        )
        _require(
            (self.connector == "dual") == bool(self.taps),
            "taps",
            self.taps,
            "the dual adapter needs some, the stacking connector takes none",
        )


@dataclass(frozen=True)
class TokenIds:
    """Special ids by name; no literal id stands anywhere else."""

    mask: int
    eos: int  # end of text; also pads answers
    eot: int  # end of turn
    bos: int
    pad: int
    image: int | None = None  # placeholder, one per image embedding
    audio: int | None = None  # placeholder, one per audio embedding
    never: tuple[int, ...] = ()  # ids that are never generated, besides mask


@dataclass(frozen=True)
class DecodingConfig:
    """How an answer is denoised; `sampler.py`, `commit_rules.py`, `schedule.py` and `kv_cache.py`
    say what each does.

    A field made by `flag` has a flag of `mmdiff ask`; the others are given by `--set NAME=VALUE`.
    """

    gen_length: int = flag(128, "Positions of the answer.")
    block_length: int = flag(128, "Positions of a block; blocks are decided from left to right.")
    steps: int = flag(128, "Steps in all, with a fixed number of commits per step.")
    # with which an answer starts, to grow up to gen_length; by default gen_length
    start_length: int | None = None
    # how the steps of a block share its positions, for the rule "quota"
    schedule: Schedule = "uniform"
    order: Order = "low_confidence"
    rule: Rule | None = None  # by default "threshold" where one is given, else "quota"
    # for the rule "threshold", where it is 0.9 by default
    threshold: float | None = flag(None, "Commit every position this confident (0 to 1) at once.")
    factor: float = 1.0  # for the rule "factor"
    gamma: float = 0.1  # nats, for the rule "entropy_bounded"
    temperature: float = flag(0.0, "0 takes the likeliest token.")
    # ids that may be drawn at a position, the likeliest; the others count nothing anywhere
    top_k: int | None = None
    cfg_scale: float = flag(0.0, "Classifier-free guidance; 0 is none.")
    stop: bool = True  # end as soon as everything before the end-of-answer token is decided
    cache: Cache | None = None  # by default "prefix" where it is exact, else "none"
    # steps after which a cache computes everything anew; by default its own choice
    refresh: int | None = None
    # likely next canvases computed in each pass, with no or an exact cache; same answer
    lookahead: int = 0
    # where blocks are counted from: the answer's start, or the sequence's with the prompt in it
    block_origin: BlockOrigin = "answer"
    # for the rule "editing": how sure another token must be to replace a decided one, steps in a
    # block that is complete, and how many positions are decided at least at a step
    editing_threshold: float = 0.9
    max_post_steps: int = 16
    num_to_transfer: int = 1

    def __post_init__(self) -> None:
        for name, (least, most) in _WHOLE_SETTINGS.items():
            if getattr(self, name) is not None or name in (
                "gen_length",
                "block_length",
                "steps",
                "lookahead",
                "max_post_steps",
                "num_to_transfer",
            ):
                object.__setattr__(self, name, whole(name, getattr(self, name), least, most))
        for name, upper in _SETTINGS.items():
            if name != "threshold" or self.threshold is not None:
                object.__setattr__(self, name, number(name, getattr(self, name), 0.0, upper))
        for name, known in {
            "order": Order,
            "schedule": Schedule,
            "rule": Rule,
            "cache": Cache,
            "block_origin": BlockOrigin,
        }.items():
            value, names = getattr(self, name), typing.get_args(known)
            unset = value is None and name in ("rule", "cache")
            _require(unset or value in names, name, value, f"use one of {', '.join(names)}")
        _require(
            type(self.stop).__name__ in ("bool", "bool_"),
            "stop",
            self.stop,
            "it must be true or false",
        )
        object.__setattr__(self, "stop", bool(self.stop))


def changed(settings: DecodingConfig, changes: Mapping[str, Any]) -> DecodingConfig:
    """Decoding settings with changes; a number of steps has no meaning to a usual threshold.

    Raises:
        ValueError: a name is unknown (the message lists them), or a value does not fit.
    """
    known = sorted(each.name for each in dataclasses.fields(DecodingConfig))
    if unknown := sorted(changes.keys() - set(known)):
        raise ValueError(f"unknown decoding setting {unknown[0]!r}; known are {', '.join(known)}")
    if "steps" in changes and not {"threshold", "rule"} & changes.keys():
        changes = {**changes, "threshold": None}
    try:
        return dataclasses.replace(settings, **changes)
    except TypeError as error:
        raise ValueError(str(error)) from None


# What whole numbers and numbers among the settings may be; beyond, time, memory or the range of
# floats would run out.
_WHOLE_SETTINGS = {
    "gen_length": (1, 1 << 20),
    "block_length": (1, 1 << 20),
    "steps": (1, 1 << 16),
    "start_length": (1, 1 << 20),
    "top_k": (1, 1 << 31),
    "refresh": (1, 1 << 31),
    "lookahead": (0, 64),
    "max_post_steps": (0, 1 << 16),
    "num_to_transfer": (1, 1 << 20),
}
_SETTINGS = {
    "temperature": 1000.0,
    "cfg_scale": 100.0,
    "factor": 1e6,
    "gamma": 1e6,
    "threshold": 1.0,
    "editing_threshold": 1.0,
}


@dataclass(frozen=True)
class ModelConfig:
    """One model: everything needed to build it, without its weights."""

    backbone: BackboneConfig
    tokens: TokenIds
    vision: VisionConfig | None = None
    audio: AudioConfig | None = None
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    system_prompt: str = ""
    media_first: bool = (
        True  # whether a message's images and audio stood before its text in training
    )


# Keys that a folder saved by an earlier version may hold, and what they are called now.
RENAMED_KEYS = {"AudioConfig": {"drafts": "ctc_drafts"}}
# Settings that nothing reads any more; folders that were saved with them go on loading.
RETIRED: dict[type, frozenset[str]] = {AudioConfig: frozenset({"doubt"})}


def to_dict(config: Any) -> dict[str, Any]:
    """A JSON-ready dictionary of any of the dataclasses here."""
    return dataclasses.asdict(config)


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Build `cls` from nested dictionaries; retired settings are passed over.

    Raises:
        ValueError: a key is unknown or a required one is missing (the message lists them), or a
            value does not fit.
    """
    renamed = RENAMED_KEYS.get(cls.__name__, {})
    retired = RETIRED.get(cls, ())
    values = {renamed.get(key, key): value for key, value in values.items() if key not in retired}
    hints = _hints(cls)  # type: ignore[arg-type]
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    missing = sorted(
        name
        for name, f in fields.items()
        if name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    )
    if unknown or missing:
        raise ValueError(
            f"{where} ({cls.__name__}): unknown keys {unknown}, missing keys {missing}"
        )
    return cls(
        **{name: _convert(hints[name], value, f"{where}.{name}") for name, value in values.items()}
    )


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _convert(hint: Any, value: Any, where: str) -> Any:
    options = [
        h
        for h in (typing.get_args(hint) or (hint,))
        if isinstance(h, type) and dataclasses.is_dataclass(h)
    ]
    if options and not (value is None and type(None) in typing.get_args(hint)):
        _require(
            isinstance(value, Mapping),
            where,
            value,
            f"it must hold the keys of {options[0].__name__}",
        )
        return from_dict(options[0], value, where)
    return _tuples(value)


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    return value


def whole(name: str, value: object, least: int, most: int = 1 << 31) -> int:
    """A whole number in a range, Python's or NumPy's, as Python's.

    Raises:
        ValueError: it is none, or out of range; the message names it.
    """
    fits = (
        isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) <= most
    )
    _require(fits, name, value, f"it must be a whole number, at least {least} and at most {most:,}")
    return int(cast(int, value))


def number(name: str, value: object, least: float, most: float) -> float:
    """A number in a range, Python's or NumPy's, as Python's.

    Raises:
        ValueError: it is none, or out of range; the message names it.
    """
    fits = is_number(value) and least <= cast(float, value) <= most
    _require(fits, name, value, f"it must be a number between {least:g} and {most:g}")
    return float(cast(float, value))


def is_number(value: object) -> bool:
    """Whether it is one, Python's or NumPy's, and no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _require_counts(config: object, *names: str) -> None:
    for name in names:
        whole(name, getattr(config, name), 1)


def _require(condition: bool, name: str, value: object, hint: str = "") -> None:
    if not condition:
        message = f"{name}={shown(value)} does not fit"
        if hint:
            message += f": {hint}"
        raise ValueError(message)


def shown(value: object) -> str:
    """A value as messages show it: at most 80 characters."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a whole number of {value.bit_length()} bits"
    text = repr(value)
    if len(text) > 80:
        return f"{text[:77]}..."
    return text


LLADA_TOKENS = TokenIds(
    mask=126336,
    eos=126081,
    eot=126348,
    bos=126080,
    pad=126081,
    image=126087,
    audio=126088,
    never=(126080, 126346, 126347),
)  # 126087 and 126088 are reserved tokens of LLaDA's tokenizer, free to be placeholders

DREAM_TOKENS = TokenIds(
    mask=151666, eos=151643, eot=151645, bos=151643, pad=151643
)  # Qwen2's, with a mask

_LLADA_8B = BackboneConfig(
    vocab_size=126464,
    hidden_size=4096,
    intermediate_size=12288,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
)
SO400M_PENULTIMATE = VisionConfig(
    hidden_size=1152,
    intermediate_size=4304,
    num_hidden_layers=26,
    num_attention_heads=16,
    image_size=384,
    patch_size=14,
    grids=tuple((columns, rows) for columns in range(1, 7) for rows in range(1, 7)),
    max_base_areas=4,
)  # google/siglip2-so400m-patch14-384 without its last layer
_LLADA_V_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)

PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(
        backbone=BackboneConfig(
            vocab_size=768,
            hidden_size=192,
            intermediate_size=576,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=6,
            rope_theta=10_000.0,
            max_position_embeddings=1024,
            attention_pattern="segment-causal",
        ),
        tokens=TokenIds(
            mask=0, eos=1, eot=2, bos=3, pad=1, image=6, audio=7, never=(3, 4, 5, 6, 7)
        ),
        vision=VisionConfig(
            hidden_size=192,
            intermediate_size=576,
            num_hidden_layers=4,
            num_attention_heads=3,
            image_size=96,
            patch_size=8,
            layout="pad",
            pixel_shuffle=2,
            connector_norm=True,
            newline=False,
        ),
        audio=AudioConfig(
            hidden_size=384,
            intermediate_size=1536,
            num_hidden_layers=4,
            num_attention_heads=6,
            segment_seconds=10.0,
            ctc_drafts=True,
        ),  # openai/whisper-tiny.en
        decoding=DecodingConfig(gen_length=32, block_length=8, steps=32, threshold=0.9),
    ),
    "llada-8b": ModelConfig(backbone=_LLADA_8B, tokens=LLADA_TOKENS),
    "llada-v-8b": ModelConfig(
        backbone=dataclasses.replace(_LLADA_8B, max_position_embeddings=16384),
        tokens=dataclasses.replace(LLADA_TOKENS, never=(126081, 126080, 126346, 126347)),
        vision=SO400M_PENULTIMATE,
        system_prompt=_LLADA_V_SYSTEM,
    ),
}
