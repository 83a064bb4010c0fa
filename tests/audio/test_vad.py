"""Segments are short enough, in order, and hold all speech and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdiff.audio.audio_io import SAMPLE_RATE, load_audio
from mmdiff.audio.vad import detect_speech, quiet_segments

PAUSE = np.zeros(2 * SAMPLE_RATE, np.float32)


@pytest.fixture(scope="module")
def spoken(root: Path) -> np.ndarray:
    return load_audio(root / "tests" / "recordings" / "sentence.flac")


def noises() -> dict[str, np.ndarray]:
    time = np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE
    rng = np.random.default_rng(0)
    chords = [
        np.sin(
            2 * np.pi * np.array([[262.0], [330.0], [392.0]]) * 2 ** (step / 12) * time[:8000]
        ).mean(0)
        for step in (0, 5, 7, 0, 5, 7, 0, 2)
    ]
    return {
        "silence": 0 * time,
        "beep": 0.5 * np.sin(2 * np.pi * 1000 * time) * (time % 1 < 0.3),
        "hiss": 0.01 * rng.normal(size=len(time)),
        "chords": 0.4 * np.concatenate(chords),
    }


@pytest.mark.parametrize("name", noises())
def test_there_is_no_speech_in_noise(name: str) -> None:
    assert detect_speech(noises()[name].astype(np.float32)) == []


def test_segments_follow_the_pauses(spoken: np.ndarray) -> None:
    sound = np.concatenate((PAUSE, spoken, PAUSE, spoken, PAUSE))
    done: list[float] = []
    first, second = detect_speech(sound, progress=done.append)
    for span, start in ((first, len(PAUSE)), (second, 2 * len(PAUSE) + len(spoken))):
        assert (
            abs(span.start - start) < 0.35 * SAMPLE_RATE
            and abs(span.end - start - len(spoken)) < 0.5 * SAMPLE_RATE
        )
    assert done[-1] == 1.0 and first.seconds == (first.start / 16_000, first.end / 16_000)


def test_long_speech_is_cut(spoken: np.ndarray) -> None:
    sound = np.tile(spoken, 6)
    spans = detect_speech(sound, max_seconds=5)
    assert len(spans) >= 3 and all(0 < span.end - span.start <= 5 * SAMPLE_RATE for span in spans)
    assert all(one.end <= other.start for one, other in zip(spans, spans[1:], strict=False))
    assert sum(span.end - span.start for span in spans) > 0.8 * len(sound)


def test_the_gate_leaves_the_number_of_threads_alone(spoken: np.ndarray) -> None:
    threads = torch.get_num_threads()
    detect_speech(spoken)
    assert torch.get_num_threads() == threads


@given(st.integers(0, 5 * SAMPLE_RATE), st.floats(0.02, 2))
@settings(max_examples=60, deadline=None)
def test_without_the_gate_nothing_is_lost(length: int, max_seconds: float) -> None:
    sound = np.random.default_rng(0).normal(size=length).astype(np.float32)
    spans = quiet_segments(sound, max_seconds)
    assert spans[0].start == 0 and spans[-1].end == length
    assert all(one.end == other.start for one, other in zip(spans, spans[1:], strict=False))
    assert all(span.end - span.start <= max_seconds * SAMPLE_RATE for span in spans)


def test_cuts_are_where_it_is_quiet() -> None:
    sound = np.random.default_rng(0).normal(size=35 * SAMPLE_RATE).astype(np.float32)
    sound[472_000:476_000] = 0
    first, second = quiet_segments(sound)
    assert 472_000 <= first.end == second.start <= 476_000
