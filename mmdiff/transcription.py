"""Speech to text: where there is speech (VAD), what is said there (Whisper), one window of audio
after the other.

A model whose audio embeddings spell words (CTC) may read a window too; the likelier of both
readings stays.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from mmdiff.audio.audio_io import SAMPLE_RATE, AudioSource, Samples, load_audio, load_channels
from mmdiff.audio.confidence import agree, agreed_confidence
from mmdiff.audio.log_mel import WINDOW_SECONDS
from mmdiff.audio.vad import Span, detect_speech, quiet_segments
from mmdiff.audio.whisper_decoder import BEAM_SIZE, SpeechRecognizer, Window
from mmdiff.config import is_number, shown, whole
from mmdiff.errors import MMDiffError
from mmdiff.transcript import Segment, Transcript

ENCODER_RATE = 50  # positions of Whisper's encoder in a second
MERGE_GAP = 2.0  # seconds of silence within a window that is recognised in one piece
SURE = 0.9  # confidence of a CTC reading from which on Whisper is not asked
MOST_NO_SPEECH, LEAST_CONFIDENCE = (
    0.6,
    0.1,
)  # a segment beyond both is not speech, whatever the VAD says

Reader = Callable[
    [Samples, Window], list[Segment | None]
]  # of each stretch of speech; None where it cannot read it


@dataclass(frozen=True)
class RecognitionOptions:
    """How speech is recognised.

    `language` is a code such as "en", by default detected; `prompt` holds words that may occur,
    such as names; `temperature` is that of the first attempt; `beam_size` hypotheses are kept, 1 is
    greedy; `gate` and `max_seconds` are those of `speech_windows`.
    """

    language: str | None = None
    prompt: str | None = None
    temperature: float = 0.0
    beam_size: int = BEAM_SIZE
    gate: bool = True
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("language", "prompt"):
            value = getattr(self, name)
            if not (value is None or isinstance(value, str)):
                raise MMDiffError(f"{name}={shown(value)} is not a text")
        if not (is_number(self.temperature) and 0 <= self.temperature <= 1):
            raise MMDiffError(f"temperature={shown(self.temperature)} must lie between 0 and 1")
        try:
            whole("beam_size", self.beam_size, 1, 64)
        except ValueError as error:
            raise MMDiffError(str(error)) from None


def speech_windows(
    samples: Samples, gate: bool = True, max_seconds: float | None = None
) -> list[Window]:
    """The windows of audio that are recognised each on its own, in order.

    Args:
        gate: leave out what silero-vad takes for no speech, and cut at pauses; otherwise all of it
            is kept.
        max_seconds: of a window; by default 30, and more where there is no pause: Whisper then
            finds the cuts.
    """
    if max_seconds is not None and not (is_number(max_seconds) and max_seconds >= 1):
        raise MMDiffError(
            f"max_seconds={shown(max_seconds)} does not fit: give 1 second or more, to hold words"
        )
    if not gate:
        if not len(samples):
            return []
        return [(span,) for span in quiet_segments(samples, max_seconds or WINDOW_SECONDS)]
    # silero-vad cuts a little before the length that it is given: speech that fills the audio must
    # not be cut.
    longest = max_seconds or len(samples) / SAMPLE_RATE + 1
    return merge_spans(detect_speech(samples, longest), min(longest, WINDOW_SECONDS))


def merge_spans(spans: Sequence[Span], most_seconds: float, gap: float = MERGE_GAP) -> list[Window]:
    """Neighbouring spans as one window, where at most `gap` seconds lie between them and it does
    not get too long."""
    windows: list[Window] = []
    for span in spans:
        if (
            windows
            and span.start - windows[-1][-1].end <= gap * SAMPLE_RATE
            and span.end - windows[-1][0].start <= most_seconds * SAMPLE_RATE
        ):
            windows[-1] = (*windows[-1], span)
        else:
            windows.append((span,))
    return windows


def encoder_frames(window: Window) -> int:
    """Positions that a window takes in Whisper's encoder, without what pads it to 30 s."""
    return ENCODER_RATE * (window[-1].end - window[0].start) // SAMPLE_RATE


def recognize(
    recognizer: SpeechRecognizer,
    samples: Samples,
    windows: Sequence[Window],
    options: RecognitionOptions,
    read: Reader | None = None,
) -> Iterator[tuple[Segment, str]]:
    """Segment after segment with its language, which is detected in the first window.

    Args:
        read: reads a window in another way; its reading stays where it is the likelier one.

    Raises:
        MMDiffError: the recogniser does not know the language.
    """
    language = recognizer.check_language(options.language)
    for window in windows:
        readings: list[Segment | None] = []
        if read is not None:
            readings = read(samples, window)
        sure = [
            reading for reading in readings if reading is not None and reading.confidence >= SURE
        ]
        if sure and len(sure) == len(window):
            yield from ((segment, "en") for segment in sure)
            continue
        found = recognizer.transcribe(
            samples,
            window,
            language=language,
            prompt=options.prompt,
            temperature=options.temperature,
            beam_size=options.beam_size,
        )
        if readings:
            found = _likelier(window, readings, found)
        for segment, spoken in found:
            language = language or spoken
            if not _is_noise(segment):
                yield segment, spoken


def _likelier(
    window: Window, readings: Sequence[Segment | None], found: Iterator[tuple[Segment, str]]
) -> Iterator[tuple[Segment, str]]:
    """For each stretch of speech the reading that is likelier to have every word right; where both
    agree, the surer."""
    written: dict[int, list[tuple[Segment, str]]] = {}
    ends = [span.end / SAMPLE_RATE for span in window[:-1]]
    for segment, spoken in found:
        written.setdefault(bisect_left(ends, (segment.start + segment.end) / 2), []).append(
            (segment, spoken)
        )
    for number, pairs in sorted(written.items()):  # where Whisper hears no speech, nothing stays
        segments, reading = [segment for segment, _ in pairs], readings[number]
        if reading is None or not reading.text:
            yield from pairs
        elif agree([reading], segments):
            for segment, spoken in pairs:
                both = agreed_confidence(segment.confidence, reading.confidence)
                yield replace(segment, confidence=both), spoken
        elif reading.confidence <= min(segment.confidence for segment in segments):
            yield from pairs
        else:
            yield reading, "en"


def _is_noise(segment: Segment) -> bool:
    return segment.no_speech_prob > MOST_NO_SPEECH and segment.confidence < LEAST_CONFIDENCE


def transcribe_audio(
    recognizer: SpeechRecognizer,
    audio: AudioSource,
    options: RecognitionOptions,
    *,
    sample_rate: int | None = None,
    separate: bool = False,
    read: Reader | None = None,
    progress: Callable[[float], None] | None = None,
) -> Transcript:
    """What is said in audio of any length; arguments as of `Pipeline.transcribe` and
    `recognize`."""
    recognizer.check_language(options.language)
    if separate:
        tracks = load_channels(audio, sample_rate)
    else:
        tracks = [load_audio(audio, sample_rate)]
    segments, language = list[Segment](), ""
    for number, samples in enumerate(tracks):
        windows = speech_windows(samples, options.gate, options.max_seconds)
        for segment, spoken in recognize(recognizer, samples, windows, options, read):
            language = language or spoken
            if separate:
                segment = replace(segment, channel=number)
            segments.append(segment)
            if progress is not None:
                progress(
                    min(
                        1.0,
                        (number + segment.end * SAMPLE_RATE / windows[-1][-1].end) / len(tracks),
                    )
                )
    if progress is not None:
        progress(1.0)
    return Transcript.of(segments, max(map(len, tracks)) / SAMPLE_RATE, language)
