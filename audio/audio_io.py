"""Decode any audio to 16 kHz mono: files, bytes, streams, arrays; or say in one sentence what is
wrong.

WAV, FLAC, OGG, MP3 and AIFF are read by libsndfile (soundfile); M4A, MP4, WebM, AAC, AMR, WMA, AVI,
MPEG-TS, FLAC in OGG and G.722 by FFmpeg's libraries (PyAV, the extra `av`). Channels are averaged,
or the loudest is taken where they cancel, and the rate is changed by soxr, block by block, so that
memory holds the mono audio and one block. The container is told by its first bytes, never by the
name, except for G.722, which has no mark.
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
from mmdiff.files import decode_data_url, is_data_url, open_file, read_stream, shorten

SAMPLE_RATE = 16_000  # Hz, of everything behind this file
MIN_RATE, MAX_RATE = 4_000, 192_000  # Hz
MAX_CHANNELS = 32
BLOCK_VALUES = 1 << 18  # samples x channels that are decoded at once: 1 MiB of float32
UNKNOWN_LENGTH = (1 << 63) - 1  # libsndfile's number of frames where the header does not tell
USE = "use a WAV, FLAC, OGG, MP3, M4A or WebM file"
HEAD = 512  # bytes at the beginning of a file that tell its container
MARKS = (  # FFmpeg's name of a container that PyAV reads, where its mark stands, and the mark
    ("mp4", 4, b"ftyp"),
    ("mp4", 4, b"moov"),
    ("mp4", 4, b"mdat"),
    ("mp4", 4, b"wide"),
    ("matroska", 0, b"\x1a\x45\xdf\xa3"),
    ("ogg", 28, b"\x7fFLAC"),
    ("ogg", 28, b"Speex   "),
    ("asf", 0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
    ("avi", 8, b"AVI LIST"),
    ("amr", 0, b"#!AMR"),
)
TS_PACKET = 188  # bytes
LARGEST = (
    16.0  # times full scale: no float recording is so loud, so its values are of another scale
)
# of the energy that the mean of unrelated channels has: below it they are each other's opposite
CANCELLED = 0.4

Samples = npt.NDArray[np.float32]
AudioSource = str | os.PathLike[str] | bytes | BinaryIO | npt.NDArray[np.generic]


class AudioError(MMDiffError):
    """Audio cannot be used; the message names it and says what to do."""


class AudioTooLong(AudioError):
    """Audio lasts longer than allowed."""


class AudioTooLarge(AudioError):
    """Audio takes more memory than allowed."""


@dataclass(frozen=True)
class Limits:
    """What one file may cost; checked from the header and again while decoding, since headers
    lie."""

    seconds: float = 1800.0
    decoded_bytes: int = 256 << 20  # of the mono samples at 16 kHz, which is what is held


def load_audio(
    source: AudioSource, sample_rate: int | None = None, limits: Limits | None = None
) -> Samples:
    """The audio as float32 samples at 16 kHz, (samples,), from -1 to 1 for integer formats.

    Args:
        source: a path, a data URL, the bytes of a file, a binary stream (read from its start where
            it can seek, left open), or an array (samples,), (samples, channels) or (channels,
            samples): floats from -1 to 1, or integers of up to 32 bits that fill the range of their
            type, as PCM does.
        sample_rate: of an array, in Hz; files know their own.
        limits: how long and large it may be.

    Raises:
        AudioError: the source is missing, empty, damaged, too long, of an unusual rate, or no
            audio.
    """
    limits = limits or Limits()
    if isinstance(source, np.ndarray) or not (
        isinstance(source, str | os.PathLike | bytes | bytearray | memoryview)
        or hasattr(source, "read")
    ):
        return _from_array(source, sample_rate, limits)
    if sample_rate is not None:
        raise AudioError(
            f"sample_rate={sample_rate} is for arrays only: a file knows its own, leave it out"
        )
    with _opened(source) as (file, name):
        blocks, rate, channels = _decoder(file, name, limits)
        return _mono_16_khz(blocks, rate, channels, name, limits)


def load_channels(
    source: AudioSource, sample_rate: int | None = None, limits: Limits | None = None
) -> list[Samples]:
    """The channels of audio each on its own, as `load_audio` gives their mean; arguments and errors
    as there."""
    limits = limits or Limits()
    if isinstance(source, np.ndarray) or not (
        isinstance(source, str | os.PathLike | bytes | bytearray | memoryview)
        or hasattr(source, "read")
    ):
        array = _array(source)
        if array.ndim != 2:
            return [load_audio(source, sample_rate, limits)]
        if not _channels_first(array):
            array = array.T
        return [load_audio(np.ascontiguousarray(row), sample_rate, limits) for row in array]
    if sample_rate is not None:
        return [load_audio(source, sample_rate, limits)]  # which says what is wrong with that
    found: list[Samples] = []
    with _opened(source) as (file, name):
        channels = 1
        while len(found) < channels:
            file.seek(0)
            blocks, rate, channels = _decoder(file, name, limits)
            column = (block[:, [len(found)]] for block in blocks)
            found.append(_mono_16_khz(column, rate, 1, name, limits))
    return found


def resample(samples: Samples, rate: int, target: int = SAMPLE_RATE) -> Samples:
    """Audio at another rate, by soxr's high quality."""
    soxr = require_extra("soxr", "audio", "changing the rate of audio")
    if rate == target:
        return samples
    return np.asarray(soxr.resample(samples, rate, target), np.float32)


@contextmanager
def _opened(source: str | os.PathLike[str] | bytes | BinaryIO) -> Iterator[tuple[BinaryIO, str]]:
    if isinstance(source, bytes | bytearray | memoryview):
        yield io.BytesIO(source), "the audio"
    elif isinstance(source, str) and is_data_url(source):
        yield io.BytesIO(decode_data_url(source, AudioError)), "the audio"
    elif isinstance(source, str | os.PathLike):
        with open_file(str(source), "audio", AudioError) as file:
            yield file, shorten(str(source))
    else:
        name = str(getattr(source, "name", "the audio"))
        yield read_stream(source, name, AudioError), name


Blocks = Iterable[npt.NDArray[np.float32]]  # (samples, channels) each


def _decoder(file: BinaryIO, name: str, limits: Limits) -> tuple[Blocks, int, int]:
    """The blocks of a file, its rate and its number of channels."""
    start = file.read(HEAD)
    file.seek(0)
    if not start:
        raise AudioError(f"{name} is empty: {USE}")
    if container := container_of(start):
        return _through_av(file, name, container, limits)
    if name.lower().endswith(".g722"):
        return _through_av(file, name, "g722", limits)
    return _through_soundfile(_with_length(file, start), name, limits)


def container_of(start: bytes) -> str | None:
    """FFmpeg's name of a container that libsndfile does not read, by the first `HEAD` bytes of a
    file."""
    for container, offset, mark in MARKS:
        if start[offset:].startswith(mark):
            return container
    if len(start) > 1 and start[0] == 0xFF and start[1] & 0xF6 == 0xF0:
        return "aac"  # ADTS: MPEG audio's sync word with a layer of 0
    if start[:1] == b"G" and start[TS_PACKET : TS_PACKET + 1] == b"G":
        return "mpegts"
    return None


def _with_length(file: BinaryIO, start: bytes) -> BinaryIO:
    """A WAV whose header says 0 bytes of samples, as one written to a pipe does, with all that
    follows as samples."""
    found = start.find(b"data", 12)
    if start[:4] != b"RIFF" or found < 0 or start[found + 4 : found + 8] != bytes(4):
        return file
    behind = file.seek(0, os.SEEK_END) - found - 8
    file.seek(0)
    next_chunk = int.from_bytes(start[found + 12 : found + 16], "little") + 8
    if behind == 0 or next_chunk == behind:  # truly empty, perhaps with a list of tags behind
        return file
    content = bytearray(file.read())
    content[found + 4 : found + 8] = behind.to_bytes(4, "little")
    return io.BytesIO(content)


def _through_soundfile(file: BinaryIO, name: str, limits: Limits) -> tuple[Blocks, int, int]:
    soundfile = require_extra("soundfile", "audio", "reading audio")

    try:
        opened = soundfile.SoundFile(file)
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"{name} is not audio that can be read ({_reason(error)}): {USE}"
        ) from error
    rate, channels = int(opened.samplerate), int(opened.channels)
    _check_kind(rate, channels, name)
    if (
        opened.frames == UNKNOWN_LENGTH
    ):  # a FLAC that was written to a pipe; soundfile stumbles over those
        file.seek(0)
        return _through_av(file, name, opened.format.lower(), limits)
    _check_length(opened.frames, rate, name, limits)

    def blocks() -> Iterator[npt.NDArray[np.float32]]:
        with opened:
            while True:
                try:
                    block = opened.read(BLOCK_VALUES // channels, dtype="float32", always_2d=True)
                except soundfile.LibsndfileError as error:
                    raise AudioError(
                        f"{name} is damaged ({_first_line(error)}): save it again"
                    ) from error
                if not len(block):
                    return
                yield block

    return blocks(), rate, channels


def _through_av(
    file: BinaryIO, name: str, container: str, limits: Limits
) -> tuple[Blocks, int, int]:
    av = require_extra("av", "av", f"reading {container}")

    try:
        # The format is given, so that FFmpeg never guesses a playlist, which could name other
        # files.
        opened = av.open(file, format=container)
        stream = opened.streams.audio[0]
        rate, channels = int(stream.codec_context.sample_rate), int(stream.codec_context.channels)
    except IndexError as error:
        raise AudioError(f"{name} holds no audio: give a file with an audio track") from error
    except (av.FFmpegError, ValueError) as error:
        raise AudioError(
            f"{name} is not {container} audio that can be read ({_first_line(error)}): {USE}"
        ) from error
    _check_kind(rate, channels, name)
    if opened.duration:
        _check_length(
            int(opened.duration / 1e6 * rate), rate, name, limits
        )  # given in microseconds

    def blocks() -> Iterator[npt.NDArray[np.float32]]:
        planar = av.AudioResampler(format="fltp", rate=rate, layout=stream.codec_context.layout)
        with opened:
            try:
                for frame in opened.decode(stream):
                    for part in planar.resample(frame):
                        yield part.to_ndarray().T
            except (av.FFmpegError, ValueError) as error:
                raise AudioError(
                    f"{name} is damaged ({_first_line(error)}): save it again"
                ) from error

    return blocks(), rate, channels


def _mono_16_khz(blocks: Blocks, rate: float, channels: int, name: str, limits: Limits) -> Samples:
    soxr = require_extra("soxr", "audio", "changing the rate of audio")
    stream = None
    if rate != SAMPLE_RATE:
        stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
    mix, done = _Mix(channels), 0
    parts = [np.zeros(0, np.float32)]
    for block in blocks:
        done += len(block)
        _check_length(done, rate, name, limits)
        if not np.isfinite(block).all():
            raise AudioError(
                f"{name} holds values that are not finite: replace NaN and infinity first"
            )
        if (most := float(np.abs(block).max(initial=0))) > LARGEST:
            raise AudioError(
                f"{name} holds values up to {most:,.0f}, but floats go from -1 to 1: divide them "
                "by their full scale, which is 32,768 for 16-bit values"
            )
        mono = mix(block)
        parts.append(stream.resample_chunk(mono) if stream else mono)
    if stream is not None:
        parts.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    samples = np.concatenate(parts)
    if not len(samples):
        raise AudioError(f"{name} has no samples: give audio of at least a few milliseconds")
    return np.asarray(samples, np.float32)


class _Mix:
    """Channels to one, block by block: their mean, or one of them where so far they cancel each
    other."""

    def __init__(self, channels: int) -> None:
        self.energy = np.zeros(channels)
        self.mean_energy = 0.0
        self.chosen = 0

    def __call__(self, block: npt.NDArray[np.float32]) -> Samples:
        """Mono samples (samples,) of a block (samples, channels)."""
        mean = block.mean(axis=1, dtype=np.float32)
        self.energy += np.square(block, dtype=np.float64).sum(axis=0)
        self.mean_energy += float(np.square(mean, dtype=np.float64).sum())
        unrelated = self.energy.sum() / len(self.energy) ** 2
        if self.mean_energy >= CANCELLED * unrelated:
            return mean
        if 2 * self.energy[self.chosen] < self.energy.max():  # not from one to the other and back
            self.chosen = int(self.energy.argmax())
        return np.ascontiguousarray(block[:, self.chosen])


def _from_array(source: object, rate: object, limits: Limits) -> Samples:
    array = _array(source)
    name = f"the array of shape {array.shape} and type {array.dtype}"
    if array.dtype.kind not in "uif" or array.ndim not in (1, 2):
        raise AudioError(f"{name} is not audio: give numbers as (samples,) or (samples, channels)")
    if rate is None:
        raise AudioError(f"{name} does not tell its rate: give sample_rate, in Hz")
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.integer | np.floating):
        raise AudioError(
            f"sample_rate={shorten(repr(rate))} is not a number: give it in Hz, such as 16000"
        )
    by_channel = array
    if array.ndim == 1:
        by_channel = array[:, None]
    elif _channels_first(array):
        by_channel = array.T
    hertz, channels = float(rate), by_channel.shape[1]
    _check_kind(hertz, channels, name)
    _check_length(len(by_channel), hertz, name, limits)
    _check_scale(array, name)
    return _mono_16_khz(_scaled_blocks(by_channel), hertz, channels, name, limits)


def _array(source: object) -> npt.NDArray[np.generic]:
    """Arrays, lists and tensors of any library as a NumPy array."""
    try:
        array = np.asarray(source.detach().cpu() if hasattr(source, "detach") else source)
    except Exception as error:  # whatever a class of others raises in its conversion
        raise AudioError(
            f"a {type(source).__name__} cannot be made an array ({_first_line(error)[:80]}): "
            "give a NumPy array of "
            "float32 or int16"
        ) from error
    if array.dtype.kind == "O" and not isinstance(source, np.ndarray):
        raise AudioError(
            f"{shorten(repr(source))} is not audio: give a path, bytes, a stream, or a NumPy "
            "array with its sample_rate"
        )
    return array


def _check_scale(array: npt.NDArray[np.generic], name: str) -> None:
    """Integers must fill the range of their type, or nothing says how loud they are."""
    if array.dtype.kind not in "ui" or not array.size:
        return
    if array.dtype.itemsize > 4:
        raise AudioError(
            f"{name} holds integers of {8 * array.dtype.itemsize} bits, which audio does not "
            "come in: give 16-bit "
            "values as numpy.int16, or floats from -1 to 1"
        )
    low, high = int(array.min()), int(array.max())
    if array.dtype.itemsize == 4 and max(-low, high) <= 32_768 and (low, high) != (0, 0):
        raise AudioError(
            f"{name} holds values from {low:,} to {high:,}, which is silence in a type that goes "
            "to 2,147,483,647: "
            "give 16-bit values as numpy.int16"
        )


def _scaled_blocks(array: npt.NDArray[np.generic]) -> Blocks:
    """Floats as they are, integers of any width from -1 to 1 (unsigned ones are centred, as in
    8-bit WAV)."""
    kind, step = array.dtype.kind, max(1, BLOCK_VALUES // array.shape[1])
    half, middle = 1.0, 0.0
    if kind in "ui":
        half = float(1 << (8 * array.dtype.itemsize - 1))
    if kind == "u":
        middle = half
    for start in range(0, len(array), step):
        block = array[start : start + step].astype(np.float64) - middle
        yield (block / half).astype(np.float32)


def _channels_first(array: npt.NDArray[np.generic]) -> bool:
    """Whether a table is (channels, samples), as torchaudio has it, rather than the other way."""
    return array.shape[0] <= MAX_CHANNELS < array.shape[1]


def _check_kind(rate: float, channels: int, name: str) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(f"{name} has a rate of {rate:,} Hz: give {MIN_RATE:,} to {MAX_RATE:,} Hz")
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(
            f"{name} has {channels:,} channels: give 1 to {MAX_CHANNELS}, in an array as "
            "(samples, channels)"
        )


def _check_length(samples: int, rate: float, name: str, limits: Limits) -> None:
    seconds = samples / rate
    if seconds > limits.seconds:
        raise AudioTooLong(
            f"{name} lasts {seconds:,.0f} seconds or more, longer than the {limits.seconds:,.0f} "
            "allowed: "
            "cut it into parts"
        )
    held = int(seconds * SAMPLE_RATE) * 4
    if held > limits.decoded_bytes:
        raise AudioTooLarge(
            f"{name} takes {held >> 20:,} MiB or more when decoded, above the "
            f"{limits.decoded_bytes >> 20:,} allowed: cut it into parts"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _reason(error: Exception) -> str:
    """What libsndfile says of a file, without the file."""
    return _first_line(error).rpartition(">: ")[2]
