"""What was said and when, and the forms that others read: text, SRT, WebVTT, and OpenAI's JSON shapes.

Times are seconds from the start of the sound.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Segment:
    """A stretch of speech; `confidence` (0 to 1) is the mean of its tokens'."""

    start: float
    end: float
    text: str
    confidence: float
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Transcript:
    """All that was said in a sound of `duration` seconds; no segments where nobody speaks."""

    segments: tuple[Segment, ...]
    duration: float
    text: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", " ".join(segment.text for segment in self.segments))

    @classmethod
    def of(cls, segments: Iterable[Segment], duration: float) -> Transcript:
        """Segments in any order, those without words left out."""
        said = sorted((segment for segment in segments if segment.text), key=lambda segment: segment.start)
        return cls(tuple(said), duration)

    def as_dict(self) -> dict[str, object]:
        """Text, segments with start, end, text and confidence, and the duration."""
        segments = [
            {"start": round(s.start, 2), "end": round(s.end, 2), "text": s.text, "confidence": round(s.confidence, 4)}
            for s in self.segments
        ]
        return {"text": self.text, "segments": segments, "duration": round(self.duration, 2)}


def _verbose(transcript: Transcript) -> dict[str, object]:
    """OpenAI's verbose_json; the language is not told from the sound, and what is transcribed counts as speech."""
    segments = [
        {
            "id": number, "seek": 0, "start": round(segment.start, 2), "end": round(segment.end, 2),
            "text": segment.text, "tokens": list(segment.token_ids), "temperature": 0.0,
            "avg_logprob": round(math.log(max(segment.confidence, 1e-6)), 4),
            "compression_ratio": round(_compression(segment.text), 4), "no_speech_prob": 0.0,
        }
        for number, segment in enumerate(transcript.segments)
    ]
    return {"task": "transcribe", "language": "unknown", "duration": round(transcript.duration, 2),
            "text": transcript.text, "segments": segments}


def _compression(text: str) -> float:
    """Whisper's measure of repetition: bytes before and after zlib."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def _srt(transcript: Transcript) -> str:
    return "".join(
        f"{number}\n{_clock(s.start, ',', True)} --> {_clock(s.end, ',', True)}\n{_cue(s.text)}\n\n"
        for number, s in enumerate(transcript.segments, start=1)
    )


def _vtt(transcript: Transcript) -> str:
    cues = (f"{_clock(s.start, '.')} --> {_clock(s.end, '.')}\n{_cue(s.text)}\n\n" for s in transcript.segments)
    return "WEBVTT\n\n" + "".join(cues)


def _cue(text: str) -> str:
    return text.replace("-->", "->")


def _clock(seconds: float, mark: str, hours_always: bool = False) -> str:
    thousandths = round(1000 * seconds)
    hours, rest = divmod(thousandths, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    whole, part = divmod(rest, 1000)
    head = f"{hours:02}:" if hours or hours_always else ""
    return f"{head}{minutes:02}:{whole:02}{mark}{part:03}"


FORMATS: dict[str, Callable[[Transcript], str]] = {  # name, as in OpenAI's response_format: the body
    "text": lambda transcript: f"{transcript.text}\n",
    "json": lambda transcript: json.dumps({"text": transcript.text}) + "\n",
    "verbose_json": lambda transcript: json.dumps(_verbose(transcript)) + "\n",
    "srt": _srt,
    "vtt": _vtt,
}
