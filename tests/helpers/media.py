"""Image and audio files as bytes."""

from __future__ import annotations

import io
import struct
import zlib
from base64 import b64encode
from typing import Any

import numpy as np
from PIL import Image


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


def png_line(samples: bytes, width: int, depth: int, kind: int, clear: bytes = b"") -> bytes:
    """One line of a PNG of that depth and kind of colour, and what is transparent in it."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0)),
        (b"tRNS", clear),
        (b"IDAT", zlib.compress(b"\0" + samples)),
        (b"IEND", b""),
    ]
    made = b"\x89PNG\r\n\x1a\n"
    for name, content in chunks:
        if content or name == b"IEND":
            made += struct.pack(">I", len(content)) + name + content
            made += struct.pack(">I", zlib.crc32(name + content))
    return made


def audio_file(samples: np.ndarray, rate: int = 16_000, **kind: str) -> bytes:
    """Of samples (samples,) or (samples, channels)."""
    import soundfile

    held = io.BytesIO()
    soundfile.write(held, samples, rate, **{"format": "WAV", **kind})
    return held.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{b64encode(data).decode()}"
