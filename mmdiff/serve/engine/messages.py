"""Messages between the server and its engine process, as frozen dataclasses.

On the wire each is the JSON header of a frame (ipc.py), with the name of its class under "type";
arrays follow behind it. Nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

from mmdiff.config import DecodingConfig, from_dict
from mmdiff.serve.engine import ipc
from mmdiff.transcript import Segment, Word

# From the server to the engine


@dataclass(frozen=True)
class AnswerRequest:
    """Answers to one conversation; where media stand in it, there are numbers of arrays."""

    id: str
    messages: Sequence[dict[str, Any]]
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    seed: int = 0  # of the first answer; each further one has the next
    n: int = 1
    limit: int | None = None  # positions of an answer
    stop: Sequence[str] = ()
    stream: bool = False
    drafts: bool = False
    schema: dict[str, Any] | bool | None = None  # JSON Schema that the answer has to fit
    spoken: bool = False  # the question is the last message's audio
    seconds: float = 0.0  # until the deadline


@dataclass(frozen=True)
class TranscribeRequest:
    """A transcript of the first array: (samples,), or (channels, samples) where the channels of
    audio are transcribed each on its own."""

    n: ClassVar[int] = 1
    id: str
    language: str | None = None
    prompt: str | None = None
    temperature: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class CancelRequest:
    """The client has left."""

    id: str


# From the engine to the server, about itself


@dataclass(frozen=True)
class ModelInfo:
    """What the server must know of a model."""

    max_model_len: int
    decoding: DecodingConfig
    captions: dict[str, tuple[str, int]]  # by length: prompt, and positions of the canvas
    speech_model: str | None
    languages: Sequence[str] = ()
    no_speech_model: str = ""  # why there is none

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ModelInfo:
        return cls(**{**values, "decoding": from_dict(DecodingConfig, values["decoding"])})


@dataclass(frozen=True)
class Ready:
    """The model is loaded."""

    model: ModelInfo


@dataclass(frozen=True)
class Unloadable:
    """The model cannot be loaded; starting the engine again would not help."""

    message: str


@dataclass(frozen=True)
class Heartbeat:
    """A sign of life; `busy` says for how many seconds the loop has not come round."""

    steps: int = 0
    store_bytes: int = 0
    store_hits: int = 0
    store_misses: int = 0
    busy: float = 0.0


# From the engine to the server, about one request


@dataclass(frozen=True)
class Started:
    """The prompt is prefilled, or a recording received; `heard` is a spoken question in words."""

    id: str
    prompt_tokens: int
    heard: str | None = None
    heard_confidence: float | None = None


@dataclass(frozen=True)
class TextAdded:
    """Text that never changes again, of the answer `index` of a request."""

    id: str
    index: int
    text: str


@dataclass(frozen=True)
class DraftMade:
    """An answer as it stands after a step, in the form that clients get it."""

    id: str
    index: int
    draft: dict[str, Any]


@dataclass(frozen=True)
class AnswerFinished:
    """One answer of a request is finished."""

    id: str
    index: int
    text: str
    finish_reason: str
    tokens: int
    steps: int
    blocks: int
    confidence: float
    late: bool  # it was ended by its deadline
    rest: str = ""  # the end of the text, which was not emitted before
    passes: int = 0
    first: float = 0.0  # seconds from the request's arrival to its first committed tokens
    structure: dict[str, Any] | None = None


@dataclass(frozen=True)
class SpeechFound:
    """How long a recording is, and how many encoder frames hold speech."""

    id: str
    duration: float
    prompt_tokens: int


@dataclass(frozen=True)
class SegmentTranscribed:
    """The next segment of a transcript."""

    id: str
    segment: Segment
    language: str


@dataclass(frozen=True)
class Done:
    """Nothing more will come for a request."""

    id: str
    late: bool = False


@dataclass(frozen=True)
class Failed:
    """A request is refused or has failed; nothing more will come for it."""

    id: str
    status: int
    code: str
    message: str
    param: str | None = None


EngineRequest: TypeAlias = AnswerRequest | TranscribeRequest
RequestEvent: TypeAlias = (
    Started
    | TextAdded
    | DraftMade
    | AnswerFinished
    | SpeechFound
    | SegmentTranscribed
    | Done
    | Failed
)
ToEngine: TypeAlias = EngineRequest | CancelRequest
FromEngine: TypeAlias = RequestEvent | Ready | Unloadable | Heartbeat

TYPES: dict[str, type[Any]] = {
    message.__name__: message
    for message in (
        AnswerRequest,
        TranscribeRequest,
        CancelRequest,
        Ready,
        Unloadable,
        Heartbeat,
        Started,
        TextAdded,
        DraftMade,
        AnswerFinished,
        SpeechFound,
        SegmentTranscribed,
        Done,
        Failed,
    )
}


def encode(message: ToEngine | FromEngine) -> ipc.IpcMessage:
    """The header of a message's frame."""
    header = {"type": type(message).__name__, **vars(message)}
    match message:
        case AnswerRequest():
            header["decoding"] = dataclasses.asdict(message.decoding)
        case Ready():
            header["model"] = dataclasses.asdict(message.model)
        case SegmentTranscribed():
            header["segment"] = dataclasses.asdict(message.segment)
    return header


def decode(header: ipc.IpcMessage) -> Any:
    """The message of a frame's header.

    Raises:
        ValueError: it is not one of ours.
    """
    values = dict(header)
    kind = values.pop("type", None)
    if kind not in TYPES:
        raise ValueError(f"{kind!r} is not a type of message")
    if "model" in values:
        values["model"] = ModelInfo.of(values["model"])
    if "decoding" in values:
        values["decoding"] = from_dict(DecodingConfig, values["decoding"])
    if "segment" in values:
        values["segment"] = _segment(values["segment"])
    try:
        return TYPES[kind](**values)
    except TypeError as error:
        raise ValueError(str(error)) from None


def _segment(values: Mapping[str, Any]) -> Segment:
    words = tuple(Word(**word) for word in values["words"])
    return Segment(**{**values, "words": words, "token_ids": tuple(values["token_ids"])})
