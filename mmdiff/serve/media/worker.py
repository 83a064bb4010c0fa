"""Sandboxed worker that decodes untrusted media, with limits on memory, time and files.

It reads a frame with the bytes of a file and answers with pixels, with samples, or with a refusal.
What a decoding library says about a file is never passed on: such messages hold addresses. A file
that takes more memory or time than it may have ends the process, and the server starts another.
"""

from __future__ import annotations

import contextlib
import io
import json
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from mmdiff.audio.audio_io import (
    HEAD,
    MAX_RATE,
    MIN_RATE,
    AudioError,
    AudioTooLarge,
    AudioTooLong,
    container_of,
    load_audio,
    load_channels,
)
from mmdiff.audio.audio_io import Limits as AudioLimits
from mmdiff.errors import MMDiffError
from mmdiff.serve.engine import ipc
from mmdiff.serve.errors import ApiError
from mmdiff.serve.options import MediaLimits
from mmdiff.vision.image_io import PNG_MARK, ImageError, open_image, png_without_text

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
AUDIO_FORMATS = {
    "WAV": ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW"),
    "WAVEX": ("PCM_", "FLOAT", "DOUBLE"),
    "FLAC": ("PCM_",),
    "OGG": ("VORBIS", "OPUS"),
    "MP3": ("MPEG_",),
    "MPEG": ("MPEG_",),
}  # libsndfile's names: what may be in it
USE = "send WAV (PCM), FLAC, OGG or MP3"
MEMORY = 1 << 30  # bytes beyond what the process takes before its first file
SECONDS = 10  # of processor time for one file


def decode_image(data: bytes, limits: MediaLimits, name: str) -> ipc.Array:
    """The pixels (H, W, 3) of a file.

    Raises:
        ApiError: it is of another format, damaged or too large.
    """
    use = f"send one of {', '.join(IMAGE_FORMATS)}"
    try:
        with _header(data) as opened:
            width, height = opened.size
            if width * height <= limits.pixels:
                frames = int(getattr(opened, "n_frames", 1))
    except Image.DecompressionBombError:
        raise ApiError(
            413, "image_too_large", f"{name} has more than the {limits.pixels:,} pixels allowed"
        ) from None
    except UnidentifiedImageError:
        raise ApiError(
            400, "unsupported_image_format", f"{name} is not an image that can be read: {use}"
        ) from None
    except Exception:  # decoders raise whatever their reading of damaged bytes ends in
        raise ApiError(
            400, "invalid_image", f"{name} is damaged: save it again, or {use}"
        ) from None
    if width * height > limits.pixels:
        raise ApiError(
            413,
            "image_too_large",
            f"{name} has {width} x {height} = {width * height:,} pixels, more than "
            f"the {limits.pixels:,} allowed",
        )
    if max(width, height) > limits.side or max(width, height) > limits.aspect * min(width, height):
        raise ApiError(
            400,
            "invalid_image",
            f"{name} has {width} x {height} pixels: a side may have {limits.side:,}, "
            f"and be {limits.aspect} times as long as the other",
        )
    if frames > limits.frames:
        raise ApiError(
            413,
            "image_too_large",
            f"{name} has {frames:,} frames, more than the {limits.frames} allowed",
        )
    try:
        return np.asarray(open_image(data, limits.pixels))
    except (ImageError, Image.DecompressionBombError):
        raise ApiError(
            400, "invalid_image", f"{name} is damaged or cut short: save it again"
        ) from None


def _header(data: bytes) -> Image.Image:
    """An image whose pixels are not decoded yet; a PNG may have more text in it than Pillow
    reads."""
    try:
        return Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except ValueError:
        if not data.startswith(PNG_MARK):
            raise
        return Image.open(io.BytesIO(png_without_text(data)), formats=IMAGE_FORMATS)


def decode_audio(data: bytes, limits: MediaLimits, name: str, separate: bool = False) -> ipc.Array:
    """The samples of a file at 16 kHz: (samples,), or of its channels (channels, samples).

    Raises:
        ApiError: it is of another format, damaged, too long, or has one channel, which cannot be
            separated.
    """
    if container_of(data[:HEAD]) is None:
        _check_header(data, limits, name)
    allowed = AudioLimits(limits.seconds, limits.decoded_bytes)
    try:
        if not separate:
            return load_audio(data, limits=allowed)
        samples_CN = np.stack(load_channels(data, limits=allowed))
        if samples_CN.nbytes > limits.decoded_bytes:
            raise AudioTooLarge
    except AudioTooLong:
        most = f"{limits.seconds:,.0f} seconds"
        raise ApiError(
            413, "audio_too_long", f"{name} lasts longer than the {most} allowed"
        ) from None
    except AudioTooLarge:
        most = f"{limits.decoded_bytes >> 20:,} MiB"
        raise ApiError(
            413, "audio_too_large", f"{name} takes more than the {most} allowed when decoded"
        ) from None
    except AudioError:
        raise ApiError(
            400,
            "invalid_audio",
            f"{name} is not audio that can be read: {USE}, of {MIN_RATE:,} to "
            f"{MAX_RATE:,} Hz, with finite samples from -1 to 1",
        ) from None
    except MMDiffError:
        raise ApiError(
            400, "unsupported_audio_format", f"{name} is of a format that is not read here: {USE}"
        ) from None
    if len(samples_CN) == 1:
        raise ApiError(
            400,
            "invalid_audio",
            f"{name} has one channel, and channels=separate takes audio of two or more: send "
            "channels=mix, or leave it out",
        )
    return samples_CN


def _check_header(data: bytes, limits: MediaLimits, name: str) -> None:
    import soundfile

    try:
        found = soundfile.info(io.BytesIO(data))
    except (soundfile.LibsndfileError, RuntimeError):
        raise ApiError(
            400, "invalid_audio", f"{name} is not audio that can be read: {USE}"
        ) from None
    if not found.subtype.startswith(AUDIO_FORMATS.get(found.format, ())):
        raise ApiError(
            400, "unsupported_audio_format", f"{name} is of a format that is not read here: {USE}"
        )
    if found.channels > limits.channels:
        raise ApiError(
            400,
            "invalid_audio",
            f"{name} has {found.channels:,} channels, and at most {limits.channels} are read",
        )


def _decode(message: ipc.IpcMessage, data: bytes, limits: MediaLimits) -> ipc.Array:
    if message["kind"] == "image":
        return decode_image(data, limits, message["name"])
    return decode_audio(data, limits, message["name"], message["separate"])


def _limit_process() -> None:
    """What one file may take; what the libraries of this process have taken already is left to
    them."""
    import resource

    status = Path("/proc/self/statm")
    if status.exists():
        pages = int(status.read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _allow_time() -> None:
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + SECONDS, hard))


def _warm(limits: MediaLimits) -> None:
    """Load the libraries before memory is limited."""
    import soundfile
    import soxr

    held = io.BytesIO()
    soundfile.write(held, np.zeros(800, np.float32), 8000, format="WAV")
    load_audio(held.getvalue())
    soxr.resample(np.zeros(800, np.float32), 8000, 16000)
    with contextlib.suppress(ImportError):
        import av  # noqa: F401
    held = io.BytesIO()
    Image.new("RGB", (2, 2)).save(held, "PNG")
    decode_image(held.getvalue(), limits, "an image")


def main(argv: Sequence[str]) -> None:
    """`python -m mmdiff.serve.media.worker FD LIMITS`, as the server starts it."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    Image.MAX_IMAGE_PIXELS = None  # our own limits are far below
    sock, limits = socket.socket(fileno=int(argv[0])), MediaLimits(**json.loads(argv[1]))
    _warm(limits)
    _limit_process()
    while True:
        try:
            message, arrays = ipc.receive(sock)
        except (EOFError, OSError):
            return
        _allow_time()
        answer: dict[str, Any] = {}
        made: list[ipc.Array] = []
        try:
            made = [_decode(message, arrays[0].tobytes(), limits)]
        except ApiError as error:
            answer = {"status": error.status, "code": error.code, "message": error.message}
        except MemoryError:
            answer = {
                "status": 413,
                "code": f"{message['kind']}_too_large",
                "message": f"{message['name']} takes more memory than allowed",
            }
        except Exception:
            answer = {
                "status": 400,
                "code": f"invalid_{message['kind']}",
                "message": f"{message['name']} cannot be read: save it again",
            }
        ipc.send(sock, answer, made)


if __name__ == "__main__":
    main(sys.argv[1:])
