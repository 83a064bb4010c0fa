"""Options of the server with their defaults.

A field that is made by `flag` has a flag of `mmdiff serve`; the others are limits that are seldom
changed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mmdiff.config import flag
from mmdiff.errors import MMDiffError, require_extra, require_posix

PACKAGES = (
    "fastapi",
    "uvicorn",
    "httptools",
    "python_multipart",
    "prometheus_client",
    "httpx",
)
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/?#\s]+")


@dataclass(frozen=True)
class MediaLimits:
    """What one image or audio may be."""

    pixels: int = 33_500_000  # 96 MiB as RGB
    side: int = 16_384
    aspect: int = 200  # the longer side over the shorter
    frames: int = 64  # of an animation, of which the first is seen
    seconds: float = 600.0
    decoded_bytes: int = 256 << 20  # of the mono samples at 16 kHz
    channels: int = 8


@dataclass(frozen=True)
class ServerOptions:
    """How the server listens, what it admits, and what one request may hold."""

    model: str = flag("tiny", "A shipped model, a checkpoint folder or a hub name.", argument=True)
    speech_model: str | None = flag(
        None, "Whisper that writes speech down: a folder or hub name (default: tiny.en)."
    )
    host: str = flag("127.0.0.1", "Address to listen on; 0.0.0.0 is all of them.")
    port: int = flag(8000, least=0, most=65535)
    uds: str | None = flag(None, "Path of a Unix socket to listen on instead.")
    api_keys: tuple[str, ...] = flag(
        (),
        "Required on every path but health; those in MMDIFF_API_KEY are valid beside it.",
        name="api_key",
    )
    served_model_name: tuple[str, ...] = flag((), "What clients call the model.")
    max_num_seqs: int = flag(16, "Answers denoised at once.", least=1)
    max_num_queued_reqs: int = flag(64, "Requests that wait; more are refused.", least=0)
    max_num_reqs_per_key: int = flag(0, "At once; 0 for no limit.", least=0)
    max_model_len: int | None = flag(None, "Positions of prompt and answer.", least=1)
    queue_timeout: float = flag(30.0, "Seconds before the engine is free.", least=0)
    # of the engine's work, after which the answer is ended as it stands
    request_timeout: float = flag(60.0, "Seconds, then an answer ends as it stands.", least=0)
    shutdown_timeout: float = flag(30.0, "Seconds to finish in after SIGTERM.", least=0)
    engine_timeout: float = flag(20.0, "Seconds of an engine's silence.", least=1)
    overload_status_code: int = flag(503, "503 or 429, when all slots are taken.")
    allowed_media_domains: tuple[str, ...] = flag(
        (), "Domains to fetch media from; none by default."
    )
    allowed_origins: tuple[str, ...] = flag((), "Origins whose pages may send requests.")
    dtype: str = flag("auto", "auto, float32 or bfloat16.")
    device: str | None = flag(None, "cpu, cuda, mps, ... (default: cuda where there is it).")
    quantize: str | None = flag(None, "8bit or 4bit: the layers' weights in fewer bits.")
    threads: int | None = flag(None, "Of the engine (default: all cores but one).", least=1)

    max_body: int = 32 << 20  # bytes
    max_image: int = 20 << 20  # bytes of a file
    max_audio: int = 25 << 20
    max_images: int = 4  # of a request
    max_audios: int = 1
    max_messages: int = 256
    max_parts: int = 64  # of all contents together
    max_n: int = 8
    max_stops: int = 16
    body_grace: float = 5.0  # seconds before a body must have come at `body_rate`
    body_rate: int = 16 << 10  # bytes per second
    reader_timeout: float = 30.0  # for which a client may stop reading
    keepalive: float = 10.0  # seconds between comments in a stream that is silent
    media: MediaLimits = field(default_factory=MediaLimits)

    def check(self) -> None:
        """
        Raises:
            MMDiffError: a value does not fit.
        """
        code = self.overload_status_code
        if code not in (429, 503):
            raise MMDiffError(f"--overload-status-code {code} does not fit; use 503 or 429")
        for name in ("queue", "request", "shutdown", "engine"):
            seconds = getattr(self, f"{name}_timeout")
            if not math.isfinite(seconds):
                raise MMDiffError(
                    f"--{name}-timeout {seconds} is not a number of seconds; give one such as 3600"
                )
        if not all(key.strip() for key in self.api_keys):
            raise MMDiffError("--api-key is empty; give a key, or leave it out")
        for origin in self.allowed_origins:
            if not ORIGIN.fullmatch(origin):
                raise MMDiffError(
                    f"--allowed-origins {origin[:80]!r} is not an origin; give scheme and host "
                    "alone, such as https://example.com"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """What clients may call the model."""
        folder = Path(self.model)
        return self.served_model_name or (folder.name if folder.is_dir() else self.model,)

    @property
    def on_loopback(self) -> bool:
        return self.uds is None and (self.host in LOOPBACK or self.host.startswith("127."))


class Replicas(NamedTuple):
    """How many copies of the model there are, at least and at most."""

    least: int = 1
    most: int = 1


def require_packages() -> None:
    """An MMDiffError where a package of the extra `serve` or a part of the system is missing."""
    require_posix("answering many requests (serve, run-batch, caption --out)")
    for module in PACKAGES:
        require_extra(module, "serve", "answering many requests")
