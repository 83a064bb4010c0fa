"""Schemas of request bodies, as OpenAI's and moondream's clients send them.

Anything else is refused by name. Settings of OpenAI's that have no meaning here are taken where
they ask for nothing (`top_p: 1`) and refused where they ask for something. What names an account or
a purpose (`user`, `metadata`) is taken and ignored. Settings of the denoising stand beside the
others, where the clients' `extra_body` puts them; they are derived from DecodingConfig.
"""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    Tag,
    create_model,
    field_validator,
    model_validator,
)

from mmdiff.config import DecodingConfig

Number = StrictFloat | StrictInt
UNIONS = (Union, UnionType)  # int | None is one or the other
Seed = Annotated[StrictInt, Field(ge=-(2**63), le=2**63 - 1)]


class Nullable(BaseModel):
    """null stands for what is left out, everywhere: clients send their own empty fields along."""

    model_config = ConfigDict(extra="allow", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None}


# What other servers know and some clients always send: the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "best_of": (1,),
    "chat_template_kwargs": ({"enable_thinking": False}, {"thinking": False}),
    "continue_final_message": (False,),
    "echo": (False,),
    "enable_thinking": (False,),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "mirostat": (0,),
    "partial": (False,),
    "prefix": (False,),
    "priority": (0,),
    "reasoning": (False,),
    "return_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "think": (False,),
    "top_k": (0, -1),
    "typical_p": (1,),
    "use_beam_search": (False,),
}


class Strict(Nullable):
    """Refuses names that it does not know, unless what stands under them is empty or asks for
    nothing.

    What is empty under a known name that may be left out counts as left out, but for an image's
    address: that it is empty is a mistake.
    """

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _not_empty(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        known = {
            field.alias or name: field.is_required() or name == "image_url"
            for name, field in cls.model_fields.items()
        }
        return {
            name: value
            for name, value in values.items()
            if known.get(name)
            or not (value in NEUTRAL.get(name, ()) or _empty(value, deep=name not in known))
        }


def _empty(value: Any, deep: bool) -> bool:
    """Whether nothing is in it or, where `deep`, only what is empty itself, as in `{"refusal":
    null}`."""
    if deep and isinstance(value, dict):
        return all(_empty(each, deep) for each in value.values())
    return value in (None, "", [], {})


class Cacheable(Strict):
    cache_control: Any = Field(None, description="taken, and not looked at")


class TextPart(Cacheable):
    type: Literal["text"]
    text: StrictStr


class ImageUrl(Strict):
    url: StrictStr
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(Cacheable):
    type: Literal["image_url"]
    image_url: ImageUrl

    @field_validator("image_url", mode="before")
    @classmethod
    def _address(cls, value: Any) -> Any:
        """Some clients give the address itself."""
        return {"url": value} if isinstance(value, str) else value


class InputAudio(Strict):
    data: StrictStr
    format: StrictStr = "wav"


class AudioPart(Cacheable):
    type: Literal["input_audio"]
    input_audio: InputAudio


class AudioUrl(Strict):
    url: StrictStr


class AudioUrlPart(Cacheable):
    type: Literal["audio_url"]
    audio_url: AudioUrl


Part = Annotated[TextPart | ImagePart | AudioPart | AudioUrlPart, Field(discriminator="type")]


MAY_BE_EMPTY = ("assistant", "system", "developer")  # roles


class ChatMessage(Cacheable):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[StrictStr, Tag("text")] | Annotated[list[Part], Tag("parts")],
        Discriminator(lambda content: "text" if isinstance(content, str) else "parts"),
    ]
    name: StrictStr | None = None
    parsed: Any = Field(
        None, description="taken, and not looked at: what OpenAI's client made of the content"
    )

    @model_validator(mode="before")
    @classmethod
    def _answered(cls, values: Any) -> Any:
        """An answer without words may come back without content, and so may instructions that are
        not filled in."""
        if (
            isinstance(values, dict)
            and values.get("role") in MAY_BE_EMPTY
            and values.get("content") is None
        ):
            return {**values, "content": ""}
        return values


class StreamOptions(Strict):
    include_usage: StrictBool = False
    include_obfuscation: StrictBool = False


class JsonSchema(Strict):
    name: Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = "answer"
    description: StrictStr | None = None
    strict: StrictBool | None = Field(None, description="an answer fits its schema either way")
    schema_: dict[str, Any] | bool = Field(alias="schema")


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


# The server's own ranges; a setting without one has that of DecodingConfig.
RANGES: dict[str, tuple[float, float]] = {
    "gen_length": (1, 4096),
    "block_length": (1, 4096),
    "steps": (1, 4096),
    "start_length": (1, 4096),
    "threshold": (0, 1),
    "factor": (0, 100),
    "gamma": (0, 100),
    "temperature": (0, 2),
    "top_k": (1, 100_000),
    "cfg_scale": (0, 100),
    "refresh": (1, 4096),
    "lookahead": (0, 16),
}
ALIASES = {  # other projects' names
    "canvas_length": ("block_length", "vLLM"),
    "max_denoising_steps": ("steps", "vLLM"),
    "remasking": ("order", "LLaDA"),
}
TAKEN = ("stop",)  # the name of another setting of OpenAI's
STRICT: dict[Any, Any] = {int: StrictInt, float: Number, bool: StrictBool}


def _setting(name: str, hint: Any) -> Any:
    """The type of a setting in a request: that of the field of DecodingConfig, or null."""
    kind = hint
    if get_origin(hint) in UNIONS:
        (kind,) = set(get_args(hint)) - {NoneType}
    kind = STRICT.get(kind, kind)
    if name in RANGES:
        least, most = RANGES[name]
        kind = Annotated[kind, Field(ge=least, le=most)]
    return kind | None


def _decoding_fields() -> dict[str, Any]:
    hints = get_type_hints(DecodingConfig)
    kinds = {name: _setting(name, hint) for name, hint in hints.items() if name not in TAKEN}
    fields: dict[str, Any] = {name: (kind, None) for name, kind in kinds.items()}
    for alias, (name, project) in ALIASES.items():
        description = f"{project}'s name for {name}"
        fields[alias] = (kinds[name], Field(None, description=description))
    return fields


_DecodingFields: Any = create_model("_DecodingFields", __base__=Strict, **_decoding_fields())


class DecodingSettings(_DecodingFields):  # type: ignore[misc]
    """Settings of the denoising, one for each field of DecodingConfig; see docs/decoding.md."""

    def changes(self) -> dict[str, Any]:
        """Of the model's DecodingConfig, by the names of its fields."""
        given = {name: getattr(self, name) for name in _DecodingFields.model_fields}
        changes = {name: value for name, value in given.items() if value is not None}
        for alias, (name, _) in ALIASES.items():
            if alias in changes:
                changes.setdefault(name, changes.pop(alias))
        return changes


class ChatRequest(DecodingSettings):
    """/v1/chat/completions"""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    model: StrictStr | None = None
    max_tokens: Annotated[StrictInt, Field(ge=1, le=1_000_000)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1, le=1_000_000)] | None = None
    n: Annotated[StrictInt, Field(ge=1)] | None = None
    seed: Seed | None = None
    stop: StrictStr | list[StrictStr] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    diffusing: StrictBool = Field(
        False, description="also stream drafts, in a key `mmdiff` beside `choices`"
    )

    top_p: Annotated[Number, Field(ge=0, le=1)] | None = Field(
        None, description="1, or with temperature 0"
    )
    frequency_penalty: Number | None = Field(None, description="0")
    presence_penalty: Number | None = Field(None, description="0")
    logprobs: StrictBool | None = Field(None, description="false")
    top_logprobs: StrictInt | None = Field(None, description="0")
    logit_bias: dict[str, Number] | None = Field(None, description="empty")
    tools: list[Any] | None = Field(None, description="empty")
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: StrictBool | None = None
    function_call: Literal["none", "auto"] | None = None
    modalities: list[Literal["text"]] | None = None
    min_p: Number | None = Field(None, description="0")
    repetition_penalty: Number | None = Field(None, description="1")
    reasoning_effort: StrictStr | None = Field(None, description="none")
    verbosity: StrictStr | None = Field(None, description="medium")

    user: StrictStr | None = None
    metadata: dict[str, Any] | None = None
    store: StrictBool | None = None
    service_tier: StrictStr | None = None
    safety_identifier: StrictStr | None = None
    prompt_cache_key: StrictStr | None = None
    prompt_cache_retention: StrictStr | None = None

    @property
    def limit(self) -> int | None:
        if self.max_completion_tokens is not None:
            return self.max_completion_tokens
        return self.max_tokens

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    def unsupported(self) -> str | None:
        """The name of a setting whose value is not supported."""
        neutral: dict[str, tuple[Any, ...]] = {
            "top_p": (1,) if self.temperature else (self.top_p,),
            "frequency_penalty": (0,),
            "presence_penalty": (0,),
            "logprobs": (False,),
            "top_logprobs": (0,),
            "logit_bias": ({},),
            "tools": ([],),
            "min_p": (0,),
            "repetition_penalty": (1,),
            "reasoning_effort": ("none",),
            "verbosity": ("medium",),
        }
        for name, values in neutral.items():
            if getattr(self, name) not in (None, *values):
                return name
        return None


class CaptionRequest(DecodingSettings):
    """/v1/caption"""

    image_url: StrictStr
    length: Literal["word", "short", "normal", "long"] = "normal"
    model: StrictStr | None = None
    seed: Seed | None = None
    stream: StrictBool = False


class QueryRequest(DecodingSettings):
    """/v1/query"""

    image_url: StrictStr | None = None
    question: StrictStr
    model: StrictStr | None = None
    seed: Seed | None = None
    stream: StrictBool = False


class TranscriptionRequest(Strict):
    """The fields of /v1/audio/transcriptions beside the file."""

    model: StrictStr | None = None
    language: StrictStr | None = Field(None, description='a code such as "en"; detected by default')
    prompt: StrictStr | None = Field(None, description="words that may occur, such as names")
    response_format: Literal["json", "text", "srt", "vtt", "verbose_json"] = "json"
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    channels: Literal["mix", "separate"] = Field(
        "mix", description="separate: each channel of a call on its own, with its number"
    )
    stream: bool = False
    timestamp_granularities: list[Literal["segment", "word"]] = []
