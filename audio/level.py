"""Bring audio to one loudness, so that what is transcribed does not depend on the distance to the
microphone.

Neither silero-vad nor Whisper's log-mel spectrogram is free of the level: speech 50 dB below full
scale loses words to the first and turns into other words in the second.

All levels are root mean squares relative to full scale, in decibels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmdiff.audio.audio_io import SAMPLE_RATE, Samples

LOUD = -20.0  # what the louder parts of speech are brought to
QUIETEST = (
    -85.0
)  # of the louder parts: what is below it is noise of the converter, and is raised no further
FRAME = 512  # samples over which a level is measured
LOUDER_PARTS = 90.0  # percentile of the frames' levels: neither pauses nor a click decide it
REACH = 2 * SAMPLE_RATE // FRAME  # frames on both sides that decide the level at a frame


def level(samples: Samples) -> Samples:
    """All of the audio by one gain, without its constant part."""
    gain = float(_gains(np.percentile(_frame_rms(samples), LOUDER_PARTS)))
    return (samples - samples.mean(dtype=np.float64)).astype(np.float32) * np.float32(gain)


def level_locally(samples: Samples) -> Samples:
    """By a gain that follows the audio: who speaks softly is as loud as who was loud before."""
    rms = _frame_rms(samples)
    around = np.lib.stride_tricks.sliding_window_view(
        np.pad(rms, REACH, mode="edge"), 2 * REACH + 1
    )
    loudness = _gains(np.percentile(around, LOUDER_PARTS, axis=1))
    smooth = np.exp(_running_mean(np.log(loudness))).astype(np.float32)
    framed = _framed(samples - np.float32(samples.mean(dtype=np.float64)))
    # From frame to frame the gain goes in a straight line, or its steps would be heard as clicks.
    along = np.arange(FRAME, dtype=np.float32) / FRAME
    after = np.append(smooth[1:], smooth[-1:])
    framed *= smooth[:, None] + (after - smooth)[:, None] * along
    return framed.reshape(-1)[: len(samples)]


def _gains(rms: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return 10 ** (LOUD / 20) / np.maximum(rms, 10 ** (QUIETEST / 20))


def _frame_rms(samples: Samples) -> npt.NDArray[np.float64]:
    """The level of each frame, its own mean left out."""
    framed = _framed(samples)
    power = np.einsum("nf,nf->n", framed, framed, dtype=np.float64) / FRAME
    return np.sqrt(np.maximum(power - framed.mean(axis=1, dtype=np.float64) ** 2, 0))


def _framed(samples: Samples) -> Samples:
    """Samples (frames, FRAME), the last frame filled with its last value."""
    return np.pad(samples, (0, -len(samples) % FRAME), mode="edge").reshape(-1, FRAME)


def _running_mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    padded = np.pad(values, (REACH + 1, REACH), mode="edge").cumsum()
    return (padded[2 * REACH + 1 :] - padded[: -2 * REACH - 1]) / (2 * REACH + 1)
