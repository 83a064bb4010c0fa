"""What was said and when, and the forms that others read: text, SRT, WebVTT, and OpenAI's JSON
shapes.

Times are seconds from the start of the audio.
"""

from __future__ import annotations

import html
import json
import math
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

UNSURE = 0.5  # a confidence below which a user is told that a transcript may be wrong


@dataclass(frozen=True)
class Word:
    """A word with its punctuation, and how likely its tokens are (0 to 1)."""

    start: float
    end: float
    text: str
    probability: float


@dataclass(frozen=True)
class Segment:
    """A stretch of speech; `confidence` is the probability (0 to 1) that all of its words are
    right.

    From `logprob` on the fields are Whisper's: the mean log probability of its window's tokens, the
    probability that there is no speech, bytes before and after compression, and the temperature
    that the text was drawn at. `channel` counts from 0, where channels are transcribed separately.
    """

    start: float
    end: float
    text: str
    confidence: float
    token_ids: tuple[int, ...] = ()
    words: tuple[Word, ...] = ()
    logprob: float | None = None
    no_speech_prob: float = 0.0
    compression_ratio: float | None = None
    temperature: float = 0.0
    channel: int | None = None

    @property
    def avg_logprob(self) -> float:
        """The mean log probability of a token, as Whisper has it; below -1 it takes the words for
        wrong."""
        if self.logprob is not None:
            return self.logprob
        return math.log(max(self.confidence, sys.float_info.min)) / max(1, len(self.token_ids))


@dataclass(frozen=True)
class Transcript:
    """All that was said in audio of `duration` seconds; no segments where there is no speech.

    `language` is a code such as "en", empty where it is not known.
    """

    segments: tuple[Segment, ...]
    duration: float
    language: str = ""
    text: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", " ".join(segment.text for segment in self.segments))

    @property
    def confidence(self) -> float:
        """The probability (0 to 1) that all of its words are right; 0 where there are none."""
        if not self.segments:
            return 0.0
        return math.prod(segment.confidence for segment in self.segments)

    @property
    def unsure(self) -> tuple[Segment, ...]:
        """The segments that may well be wrong."""
        return tuple(segment for segment in self.segments if segment.confidence < UNSURE)

    @classmethod
    def of(cls, segments: Iterable[Segment], duration: float, language: str = "") -> Transcript:
        """Segments in any order, those without words left out."""
        said = sorted(
            (segment for segment in segments if segment.text), key=lambda segment: segment.start
        )
        return cls(tuple(said), duration, language)


def _brief(transcript: Transcript) -> dict[str, object]:
    body: dict[str, object] = {
        "text": transcript.text,
        "confidence": round(transcript.confidence, 4),
    }
    return {**body, "mmdiff": summary(transcript)}


def summary(transcript: Transcript) -> dict[str, object]:
    """What stands beside OpenAI's fields, in the key `mmdiff`: the confidence, and the segments
    that are not sure."""
    unsure = [
        {
            "start": round(segment.start, 2),
            "end": round(segment.end, 2),
            "text": segment.text,
            "confidence": round(segment.confidence, 4),
        }
        for segment in transcript.unsure
    ]
    return {
        "confidence": round(transcript.confidence, 4),
        "unsure": unsure,
        "speech": bool(transcript.segments),
    }


def verbose(
    transcript: Transcript, granularities: Sequence[str] = ("segment", "word")
) -> dict[str, object]:
    """OpenAI's verbose_json with times of segments, of words, or of both; and confidences."""
    body: dict[str, object] = {
        "task": "transcribe",
        "language": transcript.language or "unknown",
        "duration": round(transcript.duration, 2),
        "text": transcript.text,
        "confidence": round(transcript.confidence, 4),
    }
    if "segment" in granularities:
        body["segments"] = [
            _verbose_segment(number, each) for number, each in enumerate(transcript.segments)
        ]
    if "word" in granularities:
        body["words"] = [
            {"word": word.text, "start": round(word.start, 2), "end": round(word.end, 2)}
            for segment in transcript.segments
            for word in segment.words
        ]
    return {**body, "mmdiff": summary(transcript)}


def _verbose_segment(number: int, segment: Segment) -> dict[str, object]:
    ratio = segment.compression_ratio
    if ratio is None:
        ratio = _compression(segment.text)
    made: dict[str, object] = {
        "id": number,
        "seek": 0,
        "start": round(segment.start, 2),
        "end": round(segment.end, 2),
        "text": segment.text,
        "tokens": list(segment.token_ids),
        "temperature": segment.temperature,
        "avg_logprob": round(segment.avg_logprob, 4),
        "compression_ratio": round(ratio, 4),
        "no_speech_prob": round(segment.no_speech_prob, 4),
        "confidence": round(segment.confidence, 4),
    }
    if segment.channel is not None:
        made["channel"] = segment.channel
    return made


def _compression(text: str) -> float:
    """Whisper's measure of repetition: bytes before and after zlib."""
    data = text.encode()
    if not data:
        return 0.0
    return len(data) / len(zlib.compress(data))


def _srt(transcript: Transcript) -> str:
    return "".join(
        f"{number}\n{_times(segment, ',', True)}\n{_line(segment.text).replace('-->', '->')}\n\n"
        for number, segment in enumerate(transcript.segments, start=1)
    )


def _vtt(transcript: Transcript) -> str:
    """WebVTT: in a cue's text `&`, `<` and `>` are references, and so no arrow stands there."""
    cues = (
        f"{_times(segment, '.')}\n{html.escape(_line(segment.text), quote=False)}\n\n"
        for segment in transcript.segments
    )
    return "WEBVTT\n\n" + "".join(cues)


def _line(text: str) -> str:
    """An empty line would end a cue."""
    return " ".join(text.split())


def _times(segment: Segment, mark: str, hours_always: bool = False) -> str:
    end = max(segment.end, segment.start + 0.001)  # a cue without length is not valid
    return f"{_clock(segment.start, mark, hours_always)} --> {_clock(end, mark, hours_always)}"


def _clock(seconds: float, mark: str, hours_always: bool = False) -> str:
    thousandths = round(1000 * seconds)
    hours, rest = divmod(thousandths, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    whole, part = divmod(rest, 1000)
    head = f"{hours:02}:" if hours or hours_always else ""
    return f"{head}{minutes:02}:{whole:02}{mark}{part:03}"


FORMATS: dict[
    str, Callable[[Transcript], str]
] = {  # name, as in OpenAI's response_format: the body
    "text": lambda transcript: f"{transcript.text}\n",
    "json": lambda transcript: json.dumps(_brief(transcript)) + "\n",
    "verbose_json": lambda transcript: json.dumps(verbose(transcript)) + "\n",
    "srt": _srt,
    "vtt": _vtt,
}
