"""Decode any sound to 16 kHz mono: files, bytes, streams, arrays; or say in one sentence what is wrong.

WAV, FLAC, OGG, MP3 and AIFF are read by libsndfile (soundfile), M4A, MP4, WebM and G.722 by FFmpeg's libraries (PyAV,
the extra `av`). Channels are averaged and the rate is changed by soxr, block by block, so that memory holds the mono
sound and one block. The container is told by its first bytes, never by the name, except for G.722, which has no mark.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from mmdiff.errors import MMDiffError, require_extra
from mmdiff.files import open_file, read_stream

SAMPLE_RATE = 16_000  # Hz, of everything behind this file
MIN_RATE, MAX_RATE = 4_000, 192_000  # Hz
MAX_CHANNELS = 32
BLOCK_VALUES = 1 << 18  # samples x channels that are decoded at once: 1 MiB of float32
UNKNOWN_LENGTH = (1 << 63) - 1  # libsndfile's number of frames where the header does not tell
USE = "use a WAV, FLAC, OGG, MP3, M4A or WebM file"
MARKS = {"mp4": (4, b"ftyp"), "matroska": (0, b"\x1a\x45\xdf\xa3")}  # container: offset and first bytes; for PyAV

Samples = npt.NDArray[np.float32]
AudioSource = str | os.PathLike[str] | bytes | BinaryIO | npt.NDArray[np.generic]


class AudioError(MMDiffError):
    """A sound cannot be used; the message names it and says what to do."""


class AudioTooLong(AudioError):
    """A sound lasts longer than allowed."""


class AudioTooLarge(AudioError):
    """A sound takes more memory than allowed."""


@dataclass(frozen=True)
class Limits:
    """What one sound may cost; checked from the header and again while decoding, since headers lie."""

    seconds: float = 1800.0
    decoded_bytes: int = 256 << 20  # samples x channels x 4


def load_audio(source: AudioSource, sample_rate: int | None = None, limits: Limits | None = None) -> Samples:
    """The sound as float32 samples at 16 kHz, (samples,), from -1 to 1 for integer formats.

    Args:
        source: a path, the bytes of a file, a binary stream (read from its start where it can seek, left open), or an
            array (samples,) or (samples, channels) of integers or floats.
        sample_rate: of an array, in Hz; files know their own.
        limits: how long and large it may be.

    Raises:
        AudioError: the source is missing, empty, damaged, too long, of an unusual rate, or no sound.
    """
    limits = limits or Limits()
    if isinstance(source, np.ndarray) or not (
        isinstance(source, str | os.PathLike | bytes | bytearray | memoryview) or hasattr(source, "read")
    ):
        return _from_array(source, sample_rate, limits)
    if sample_rate is not None:
        raise AudioError(f"sample_rate={sample_rate} is for arrays only: a file knows its own, leave it out")
    with _opened(source) as (file, name):
        blocks, rate, channels = _decoder(file, name, limits)
        return _mono_16_khz(blocks, rate, channels, name, limits)


def resample(samples: Samples, rate: int, target: int = SAMPLE_RATE) -> Samples:
    """One sound at another rate, by soxr's high quality."""
    soxr = require_extra("soxr", "audio", "changing the rate of a sound")
    return samples if rate == target else np.asarray(soxr.resample(samples, rate, target), np.float32)


@contextmanager
def _opened(source: str | os.PathLike[str] | bytes | BinaryIO) -> Iterator[tuple[BinaryIO, str]]:
    if isinstance(source, bytes | bytearray | memoryview):
        yield io.BytesIO(source), "the sound"
    elif isinstance(source, str | os.PathLike):
        with open_file(str(source), "sound", AudioError) as file:
            yield file, str(source)
    else:
        name = str(getattr(source, "name", "the sound"))
        yield read_stream(source, name, AudioError), name


Blocks = Iterable[npt.NDArray[np.float32]]  # (samples, channels) each


def _decoder(file: BinaryIO, name: str, limits: Limits) -> tuple[Blocks, int, int]:
    """The blocks of a file, its rate and its number of channels."""
    start = file.read(16)
    file.seek(0)
    if not start:
        raise AudioError(f"{name} is empty: {USE}")
    for container, (offset, mark) in MARKS.items():
        if start[offset:].startswith(mark):
            return _through_av(file, name, container, limits)
    if name.lower().endswith(".g722"):
        return _through_av(file, name, "g722", limits)
    return _through_soundfile(file, name, limits)


def _through_soundfile(file: BinaryIO, name: str, limits: Limits) -> tuple[Blocks, int, int]:
    soundfile = require_extra("soundfile", "audio", "reading sound")

    try:
        opened = soundfile.SoundFile(file)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{name} is no sound that can be read ({_first_line(error)}): {USE}") from error
    rate, channels = int(opened.samplerate), int(opened.channels)
    _check_kind(rate, channels, name)
    if opened.frames == UNKNOWN_LENGTH:  # a FLAC that was written to a pipe; soundfile stumbles over those
        file.seek(0)
        return _through_av(file, name, opened.format.lower(), limits)
    _check_length(opened.frames, rate, channels, name, limits)

    def blocks() -> Iterator[npt.NDArray[np.float32]]:
        with opened:
            while True:
                try:
                    block = opened.read(BLOCK_VALUES // channels, dtype="float32", always_2d=True)
                except soundfile.LibsndfileError as error:
                    raise AudioError(f"{name} is damaged ({_first_line(error)}): save it again") from error
                if not len(block):
                    return
                yield block

    return blocks(), rate, channels


def _through_av(file: BinaryIO, name: str, container: str, limits: Limits) -> tuple[Blocks, int, int]:
    av = require_extra("av", "av", f"reading {container}")

    try:
        # The format is given, so that FFmpeg never guesses a playlist, which could name other files.
        opened = av.open(file, format=container)
        stream = opened.streams.audio[0]
        rate, channels = int(stream.codec_context.sample_rate), int(stream.codec_context.channels)
    except IndexError as error:
        raise AudioError(f"{name} holds no sound: give a file with an audio track") from error
    except (av.FFmpegError, ValueError) as error:
        raise AudioError(f"{name} is no {container} sound that can be read ({_first_line(error)}): {USE}") from error
    _check_kind(rate, channels, name)
    if opened.duration:
        _check_length(int(opened.duration / 1e6 * rate), rate, channels, name, limits)  # given in microseconds

    def blocks() -> Iterator[npt.NDArray[np.float32]]:
        planar = av.AudioResampler(format="fltp", rate=rate, layout=stream.codec_context.layout)
        with opened:
            try:
                for frame in opened.decode(stream):
                    for part in planar.resample(frame):
                        yield part.to_ndarray().T
            except (av.FFmpegError, ValueError) as error:
                raise AudioError(f"{name} is damaged ({_first_line(error)}): save it again") from error

    return blocks(), rate, channels


def _mono_16_khz(blocks: Blocks, rate: int, channels: int, name: str, limits: Limits) -> Samples:
    soxr = require_extra("soxr", "audio", "changing the rate of a sound")
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32") if rate != SAMPLE_RATE else None
    done, parts = 0, []
    for block in blocks:
        done += len(block)
        _check_length(done, rate, channels, name, limits)
        if not np.isfinite(block).all():
            raise AudioError(f"{name} holds values that are not finite: replace NaN and infinity first")
        mono = block.mean(axis=1, dtype=np.float32)
        parts.append(stream.resample_chunk(mono) if stream else mono)
    if stream is not None:
        parts.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if not len(samples):
        raise AudioError(f"{name} has no samples: give a sound of at least a few milliseconds")
    return np.asarray(samples, np.float32)


def _from_array(source: object, rate: int | None, limits: Limits) -> Samples:
    array = np.asarray(source)
    name = f"the array of shape {array.shape} and type {array.dtype}"
    if array.dtype.kind not in "uif" or array.ndim not in (1, 2):
        raise AudioError(f"{name} is no sound: give numbers as (samples,) or (samples, channels)")
    if rate is None:
        raise AudioError(f"{name} does not tell its rate: give sample_rate, in Hz")
    by_channel = array if array.ndim == 2 else array[:, None]
    channels = by_channel.shape[1]
    _check_kind(rate, channels, name)
    _check_length(len(by_channel), rate, channels, name, limits)
    return _mono_16_khz(_scaled_blocks(by_channel), rate, channels, name, limits)


def _scaled_blocks(array: npt.NDArray[np.generic]) -> Blocks:
    """Floats as they are, integers of any width from -1 to 1 (unsigned ones are centred, as in 8-bit WAV)."""
    kind, step = array.dtype.kind, max(1, BLOCK_VALUES // array.shape[1])
    half = float(1 << (8 * array.dtype.itemsize - 1)) if kind in "ui" else 1.0
    for start in range(0, len(array), step):
        block = array[start : start + step].astype(np.float64) - (half if kind == "u" else 0.0)
        yield (block / half).astype(np.float32)


def _check_kind(rate: int, channels: int, name: str) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(f"{name} has a rate of {rate:,} Hz: give {MIN_RATE:,} to {MAX_RATE:,} Hz")
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(
            f"{name} has {channels:,} channels: give 1 to {MAX_CHANNELS}, in an array as (samples, channels)"
        )


def _check_length(samples: int, rate: int, channels: int, name: str, limits: Limits) -> None:
    if samples / rate > limits.seconds:
        raise AudioTooLong(
            f"{name} lasts {samples / rate:,.0f} seconds or more, longer than the {limits.seconds:,.0f} allowed: "
            "cut it into parts or raise the limit"
        )
    if samples * channels * 4 > limits.decoded_bytes:
        raise AudioTooLarge(
            f"{name} takes {samples * channels * 4 >> 20:,} MiB or more when decoded, above the "
            f"{limits.decoded_bytes >> 20:,} allowed: cut it into parts or lower its rate"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
