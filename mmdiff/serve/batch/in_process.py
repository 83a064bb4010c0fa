"""Batch jobs on this machine: the server's application in this process, without a port.

Limits on what a body may hold are the server's; those on time are not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mmdiff.errors import MMDiffError
from mmdiff.serve.batch import captions, run
from mmdiff.serve.batch.asgi_client import AsgiClient, AsgiResponse, form, lifespan
from mmdiff.serve.batch.fingerprint import fingerprint
from mmdiff.serve.batch.worker_pool import JobOutcome
from mmdiff.serve.options import ServerOptions, require_packages

URLS = (run.CHAT, "/v1/audio/transcriptions")
AHEAD = 4  # requests that are read and decoded while the engine's rows are all taken
FOREVER = 10.0 * 365 * 86_400  # seconds
TRIES = 3  # of a request whose engine died


def run_batch(source: Path, out: Path, options: ServerOptions) -> JobOutcome:
    """Answer a file of requests into `out`; what is there already is not done again.

    Raises:
        MMDiffError: as of `run.run_batch`, or the model cannot be loaded.
    """
    answering = run.by(lambda: asking(options), options.max_num_seqs + AHEAD)
    return asyncio.run(run.run_batch(source, out, answering, urls=URLS, settings=identity(options)))


def caption_folder(
    folder: Path,
    out: Path,
    body: dict[str, Any],
    model: str = "tiny",
    device: str | None = None,
    most: int = 16,
) -> JobOutcome:
    """Describe a folder's pictures into `out`; arguments as of `captions.caption_folder` and
    `local_options`."""
    options = local_options(model, (), device, most)
    return asyncio.run(
        captions.caption_folder(
            folder,
            out,
            lambda: asking(options),
            body=body,
            settings=identity(options),
            most=most + AHEAD,
        )
    )


def local_options(
    model: str,
    names: tuple[str, ...] = (),
    device: str | None = None,
    most: int = 16,
    domains: tuple[str, ...] = (),
    speech_model: str | None = None,
) -> ServerOptions:
    """The options of a job.

    Args:
        names: what requests may call the model.
        most: answers in the making at once.
        domains: from which media may be fetched.
        speech_model: a folder or hub name of a Whisper; tiny.en by default.

    Raises:
        MMDiffError: a package of the extra `serve` is missing.
    """
    require_packages()
    return ServerOptions(
        model=model,
        speech_model=speech_model,
        served_model_name=names,
        device=device,
        max_num_seqs=most,
        max_num_queued_reqs=2 * AHEAD,
        queue_timeout=FOREVER,
        request_timeout=FOREVER,
        allowed_media_domains=domains,
    )


def identity(options: ServerOptions) -> list[Any]:
    """What the answers depend on beside the bodies."""
    from mmdiff.audio.whisper_decoder import find_folder  # PyTorch comes with it
    from mmdiff.pipeline import find

    heard_by = (
        [] if options.speech_model is None else [fingerprint(find_folder(options.speech_model))]
    )
    return [fingerprint(find(options.model)), list(options.names), *heard_by]


@asynccontextmanager
async def asking(options: ServerOptions) -> AsyncIterator[run.Ask]:
    """A way to ask the model, from its being loaded to the end."""
    from mmdiff.serve.http.app import create

    app, state = create(options)
    async with lifespan(app) as inside:

        async def ready() -> None:
            while not state.engine.ready:
                if state.engine.given_up.is_set():
                    raise MMDiffError(
                        state.engine.unloadable
                        or "the engine died again and again; the rows that are "
                        "done are kept: run the same command when there is more memory"
                    )
                await asyncio.sleep(0.05)

        async def ask(url: str, body: dict[str, Any], name: str) -> AsgiResponse:
            for _ in range(TRIES):
                await ready()
                reply = await _once(inside, options, url, body, name)
                if reply[0] not in (500, 503):
                    break
            return reply

        await ready()
        yield ask


async def _once(
    inside: AsgiClient, options: ServerOptions, url: str, body: dict[str, Any], name: str
) -> AsgiResponse:
    from mmdiff.serve.errors import ApiError, invalid

    try:
        if body.get("stream"):
            raise invalid(
                "stream",
                "a job has nobody to stream to: leave `stream` out",
                "unsupported_parameter",
            )
        if url == URLS[1]:
            return await inside.post(url, *form(body, await _sound(body, options)), name)
        return await inside.post_json(url, body, name)
    except ApiError as error:
        return error.status, error.body


async def _sound(body: dict[str, Any], options: ServerOptions) -> bytes | None:
    """The sound that a body's `file_url` holds or names; nothing where there is none."""
    from mmdiff.files import is_data_url
    from mmdiff.serve.media.fetch import fetch
    from mmdiff.serve.media.parse import unpacked_url

    url = body.get("file_url")
    if not isinstance(url, str):
        return None
    if is_data_url(url):
        return unpacked_url(url, "file_url", "audio 0")
    return await fetch(url, "file_url", "audio 0", options.max_audio, options.allowed_media_domains)
