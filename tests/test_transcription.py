"""Speech to text with a recogniser that is told what to hear: windows, the likelier reading,
channels, bounds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmdiff import transcription
from mmdiff.audio.audio_io import load_audio, load_channels
from mmdiff.audio.confidence import agreed_confidence, words_confidence
from mmdiff.audio.vad import Span
from mmdiff.errors import MMDiffError
from mmdiff.transcript import Segment, Word
from mmdiff.transcription import (
    RecognitionOptions,
    merge_spans,
    recognize,
    speech_windows,
    transcribe_audio,
)

RATE = 16_000
SAMPLES = np.zeros(60 * RATE, np.float32)


def span(start: float, end: float) -> Span:
    return Span(round(start * RATE), round(end * RATE))


def said(start: float, end: float, text: str, confidence: float = 0.5, **more: Any) -> Segment:
    return Segment(start, end, text, confidence, **more)


class Told:
    """A recogniser that hears these segments, those of a window when it is asked about it."""

    languages = ("en", "de")

    def __init__(self, *segments: Segment) -> None:
        self.segments, self.asked = segments, list[tuple[Any, str | None]]()

    def check_language(self, language: str | None) -> str | None:
        return language

    def transcribe(
        self, samples: Any, window: Any, *, language: str | None = None, **_: Any
    ) -> Iterator[Any]:
        self.asked.append((window, language))
        first, last = window[0].start / RATE, window[-1].end / RATE
        for segment in self.segments:
            if first <= segment.start < last:
                yield segment, language or "de"


def heard(recognizer: Told, windows: Any, read: Any = None) -> list[tuple[str, float]]:
    found = recognize(recognizer, SAMPLES, windows, RecognitionOptions(), read)  # type: ignore[arg-type]
    return [(segment.text, round(segment.confidence, 3)) for segment, _ in found]


def test_neighbours_are_recognised_together() -> None:
    spans = [span(0, 5), span(6, 10), span(13, 20), span(20.5, 40), span(41, 45)]
    assert merge_spans(spans, 30) == [tuple(spans[:2]), (spans[2], spans[3]), (spans[4],)]
    assert merge_spans([], 30) == [] and merge_spans([span(0, 50)], 30) == [(span(0, 50),)]


def test_speech_that_fills_the_audio_is_not_cut(root: Path) -> None:
    speech = load_audio(root / "examples" / "talk.flac")[4_000:33_000]
    assert speech_windows(speech) == [(Span(0, len(speech)),)]


def test_without_the_gate_nothing_is_left_out() -> None:
    windows = speech_windows(SAMPLES, gate=False)
    assert windows[0][0].start == 0 and windows[-1][-1].end == len(SAMPLES)
    assert all(
        one[-1].end == other[0].start for one, other in zip(windows, windows[1:], strict=False)
    )
    assert speech_windows(SAMPLES[:0], gate=False) == [] and speech_windows(SAMPLES) == []


@pytest.mark.parametrize("most", [0.0, -3.0, float("nan")])
def test_windows_that_do_not_fit_are_refused(most: float) -> None:
    with pytest.raises(MMDiffError, match=f"max_seconds={most}"):
        speech_windows(SAMPLES, max_seconds=most)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 1.5}, "temperature=1.5"),
        ({"beam_size": 0}, "beam_size=0"),
        ({"beam_size": 100}, "beam_size=100"),
    ],
)
def test_options_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(MMDiffError, match=message):
        RecognitionOptions(**change)


def test_the_language_is_detected_once() -> None:
    recognizer = Told(said(0, 1, "ja"), said(31, 32, "nein"))
    assert heard(recognizer, [(span(0, 2),), (span(31, 33),)]) == [("ja", 0.5), ("nein", 0.5)]
    assert [language for _, language in recognizer.asked] == [None, "de"]


@pytest.mark.parametrize(
    ("reading", "wanted"),
    [
        ("turn on the light", ("Turn on the light.", 0.8)),  # both say the same: the surer of it
        ("turn on the lamp", ("Turn on the light.", 0.6)),
        ("", ("Turn on the light.", 0.6)),
    ],
)
def test_whispers_words_stay_where_they_are_likelier(
    reading: str, wanted: tuple[str, float]
) -> None:
    def read(samples: Any, window: Any) -> list[Segment | None]:
        return [said(0, 2, reading, 0.5)]

    assert heard(Told(said(0, 2, "Turn on the light.", 0.6)), [(span(0, 2),)], read) == [wanted]


def test_the_likelier_reading_is_chosen_for_each_stretch_of_speech() -> None:
    window = (span(0, 2), span(3, 5), span(6, 8))

    def read(samples: Any, window: Any) -> list[Segment | None]:
        return [said(0, 2, "one", 0.7), None, said(6, 8, "three", 0.1)]

    recognizer = Told(said(0, 2, "Won.", 0.3), said(3, 5, "Two.", 0.2), said(6, 8, "Tree.", 0.4))
    assert heard(recognizer, [window], read) == [("one", 0.7), ("Two.", 0.2), ("Tree.", 0.4)]


def test_where_whisper_hears_no_speech_nothing_stays() -> None:
    def read(samples: Any, window: Any) -> list[Segment | None]:
        return [said(0, 2, "uh", 0.6)]

    assert heard(Told(), [(span(0, 2),)], read) == []
    noise = said(0, 2, "Thank you.", 0.05, no_speech_prob=0.9)
    assert heard(Told(noise), [(span(0, 2),)]) == []


def test_a_sure_reading_is_taken_without_asking_whisper() -> None:
    recognizer = Told(said(0, 2, "Won.", 0.99))
    assert heard(
        recognizer, [(span(0, 2),)], lambda samples, window: [said(0, 2, "one", 0.95)]
    ) == [("one", 0.95)]
    assert recognizer.asked == []


def test_channels_are_transcribed_on_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call: each side has a channel, and the segments stand in the order of the talk."""
    left, right = np.zeros(4 * RATE, np.float32), np.zeros(4 * RATE, np.float32)
    left[:RATE], right[2 * RATE : 3 * RATE] = 0.5, 0.25

    def windows(samples: Any, *_: Any) -> Any:
        loud = np.flatnonzero(samples)
        return [(Span(int(loud[0]), int(loud[-1]) + 1),)]

    monkeypatch.setattr(transcription, "speech_windows", windows)
    recognizer, shares = Told(said(0, 1, "Hello."), said(2, 3, "Hi.")), list[float]()
    made = transcribe_audio(
        recognizer,
        np.stack([left, right], 1),
        RecognitionOptions(),
        sample_rate=RATE,  # type: ignore
        separate=True,
        progress=shares.append,
    )
    assert [(segment.text, segment.channel) for segment in made.segments] == [
        ("Hello.", 0),
        ("Hi.", 1),
    ]
    assert made.duration == 4 and shares == sorted(shares) and shares[-1] == 1


def test_channels_are_those_of_the_file(tmp_path: Any) -> None:
    import soundfile

    both = np.random.default_rng(0).normal(size=(8000, 2)).astype(np.float32) * 0.1
    soundfile.write(tmp_path / "call.wav", both, RATE, subtype="FLOAT")
    for found in (load_channels(tmp_path / "call.wav"), load_channels(both, RATE)):
        np.testing.assert_allclose(np.stack(found, 1), both, atol=1e-6)
    assert len(load_channels(both[:, 0], RATE)) == 1
    with pytest.raises(MMDiffError, match="sample_rate=8000 is for arrays"):
        load_channels(tmp_path / "call.wav", 8000)


def test_confidence_falls_with_every_doubted_word() -> None:
    def words(*probabilities: float) -> list[Word]:
        return [Word(0, 1, "x", probability) for probability in probabilities]

    sure, doubted, worse = words(0.99, 0.98), words(0.99, 0.5), words(0.5, 0.5)
    values = [words_confidence(each) for each in (sure, doubted, worse)]
    assert 1 > values[0] > 0.9 > values[1] > values[2] > 0
    assert agreed_confidence(0.5, 0.6) == pytest.approx(0.8)
