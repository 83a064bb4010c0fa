"""Voice activity detection (VAD): cuts long audio into segments that the encoder can take, at
pauses of the speech, or without the VAD at quiet points.

The VAD is silero-vad (snakers4/silero-vad, MIT); what it finds no speech in is never shown to the
model, which would otherwise invent words for it.

All bounds are samples at 16 kHz.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from mmdiff.audio.audio_io import SAMPLE_RATE, Samples
from mmdiff.audio.level import level_locally
from mmdiff.audio.log_mel import WINDOW_SECONDS
from mmdiff.errors import require_extra

QUIET = SAMPLE_RATE // 10  # samples whose loudness is compared when a cut is looked for
SEARCHED = SAMPLE_RATE  # samples before the latest possible cut that are looked through


@dataclass(frozen=True)
class Span:
    """From sample `start` up to, but without, sample `end`."""

    start: int
    end: int

    @property
    def seconds(self) -> tuple[float, float]:
        return self.start / SAMPLE_RATE, self.end / SAMPLE_RATE


Progress = Callable[[float], None]  # is told the share that is done, from 0 to 1


def detect_speech(
    samples: Samples,
    max_seconds: float = WINDOW_SECONDS,
    threshold: float = 0.5,
    min_silence: float = 0.5,
    padding: float = 0.2,
    progress: Progress | None = None,
) -> list[Span]:
    """Where there is speech, at any loudness, in order, each at most `max_seconds` long.

    Args:
        threshold: the gate's probability of speech, 0 to 1.
        min_silence: seconds of silence that end a segment; longer speech is cut at its longest
            pause.
        padding: seconds that are kept around a segment, as far as its neighbours allow.
    """
    silero_vad, model, lock = _gate()
    with lock, torch.inference_mode():
        found = silero_vad.get_speech_timestamps(
            torch.from_numpy(level_locally(samples)),
            model,
            threshold=threshold,
            sampling_rate=SAMPLE_RATE,
            min_speech_duration_ms=100,
            max_speech_duration_s=max_seconds,
            min_silence_duration_ms=int(1000 * min_silence),
            speech_pad_ms=int(1000 * padding),
            progress_tracking_callback=None
            if progress is None
            else lambda percent: progress(percent / 100),
        )
    parts = []
    for speech in found:
        parts += _cut(samples, Span(int(speech["start"]), int(speech["end"])), max_seconds)
    return parts


def quiet_segments(samples: Samples, max_seconds: float = WINDOW_SECONDS) -> list[Span]:
    """The whole audio in segments of at most `max_seconds`, cut where it is quietest near their
    ends."""
    return _cut(samples, Span(0, len(samples)), max_seconds)


def _cut(samples: Samples, span: Span, max_seconds: float) -> list[Span]:
    most, parts, start = int(max_seconds * SAMPLE_RATE), [], span.start
    while span.end - start > most:
        end = _quietest(samples, start + most - min(SEARCHED, most // 2), start + most)
        parts.append(Span(start, end))
        start = end
    return [*parts, Span(start, span.end)]


def _quietest(samples: Samples, start: int, end: int) -> int:
    """The middle of the quietest tenth of a second."""
    energy = np.cumsum(np.concatenate(([0.0], np.square(samples[start:end], dtype=np.float64))))
    if len(energy) <= QUIET:
        return end
    return start + int(np.argmin(energy[QUIET:] - energy[:-QUIET])) + QUIET // 2


@lru_cache
def _gate() -> tuple[Any, Any, threading.Lock]:
    """The package, its model, and a lock: the model remembers what it heard last."""
    threads = torch.get_num_threads()
    silero_vad = require_extra("silero_vad", "audio", "finding speech")
    torch.set_num_threads(threads)  # its import sets one thread for the whole process
    return silero_vad, silero_vad.load_silero_vad(), threading.Lock()
