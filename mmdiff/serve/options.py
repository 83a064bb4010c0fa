"""Every limit and option of the server, with its default; `mmdiff serve` has a flag for each that
people change."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mmdiff.errors import require_extra, require_posix

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class MediaLimits:
    """What one picture or sound may be."""

    pixels: int = 33_500_000  # 96 MiB as RGB
    side: int = 16_384
    aspect: int = 200  # the longer side over the shorter
    frames: int = 64  # of an animation, of which the first is seen
    seconds: float = 600.0
    decoded_bytes: int = 256 << 20  # of the mono samples at 16 kHz
    channels: int = 8


@dataclass(frozen=True)
class ServerOptions:
    """How the server listens, what it admits, and what one request may ask for."""

    model: str = "tiny"
    served_model_name: tuple[str, ...] = ()  # the model's name by default
    speech_model: str | None = None  # Whisper tiny.en by default
    device: str | None = None
    dtype: str = "auto"
    quantize: str | None = None
    threads: int | None = None  # of the engine; by default one core is left to the server

    host: str = "127.0.0.1"
    port: int = 8000
    uds: str | None = None
    api_keys: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()  # of pages in browsers
    allowed_media_domains: tuple[str, ...] = ()  # nothing is fetched by default

    max_num_seqs: int = 16  # rows denoised at once
    max_num_queued_reqs: int = 64
    max_num_reqs_per_key: int = 0  # at once; 0: as many as the server takes
    max_model_len: int | None = None  # the model's by default
    queue_timeout: float = 30.0
    request_timeout: float = (
        60.0  # of the engine's work, after which the answer is ended as it stands
    )
    shutdown_timeout: float = 30.0
    engine_timeout: float = 20.0  # without a sign of life
    overload_status_code: int = 503

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

    @property
    def names(self) -> tuple[str, ...]:
        """What clients may call the model."""
        return self.served_model_name or (
            Path(self.model).name if Path(self.model).is_dir() else self.model,
        )

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
    for module in (
        "fastapi",
        "uvicorn",
        "httptools",
        "python_multipart",
        "prometheus_client",
        "httpx",
    ):
        require_extra(module, "serve", "answering many requests")
