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
AHEAD = 4  # requests that are read and decoded while the engine is full
FOREVER = 10.0 * 365 * 86_400  # seconds
TRIES = 3  # of a request whose engine died


def run_batch(source: Path, out: Path, options: ServerOptions) -> JobOutcome:
    """Answer a file of requests into `out`; what is there already is not done again.

    Raises:
        MMDiffError: as of `run.run_batch`, or the model cannot be loaded.
    """
    respond = run.rows_by(lambda: connect(options), options.max_num_seqs + AHEAD)
    return asyncio.run(run.run_batch(source, out, respond, urls=URLS, settings=identity(options)))


def caption_folder(
    folder: Path,
    out: Path,
    body: dict[str, Any],
    model: str = "tiny",
    device: str | None = None,
    most: int = 16,
) -> JobOutcome:
    """Describe a folder's images into `out`; arguments as of `captions.caption_folder` and
    `local_options`."""
    options = local_options(model, (), device, most)
    return asyncio.run(
        captions.caption_folder(
            folder,
            out,
            lambda: connect(options),
            body=body,
            settings=identity(options),
            max_concurrent=most + AHEAD,
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
        most: answers made at once.
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
    from mmdiff.modeling.hub import find

    identities = [fingerprint(find(options.model)), list(options.names)]
    if options.speech_model is not None:
        identities.append(fingerprint(find_folder(options.speech_model)))
    return identities


@asynccontextmanager
async def connect(options: ServerOptions) -> AsyncIterator[run.Post]:
    """Posts requests to the application, once the model is loaded."""
    from mmdiff.serve.http.app import create

    app, state = create(options)
    async with lifespan(app) as client:

        async def ready() -> None:
            while not state.engine.ready:
                if state.engine.given_up.is_set():
                    raise MMDiffError(
                        state.engine.unloadable
                        or "the engine died again and again; the rows that are "
                        "done are kept: run the same command when there is more memory"
                    )
                await asyncio.sleep(0.05)

        async def post(url: str, body: dict[str, Any], name: str) -> AsgiResponse:
            for _ in range(TRIES):
                await ready()
                answer = await _once(client, options, url, body, name)
                if answer[0] not in (500, 503):
                    break
            return answer

        await ready()
        yield post


async def _once(
    client: AsgiClient, options: ServerOptions, url: str, body: dict[str, Any], name: str
) -> AsgiResponse:
    from mmdiff.serve.errors import ApiError, invalid

    try:
        if body.get("stream"):
            raise invalid(
                "stream",
                "a batch job does not stream: leave `stream` out",
                "unsupported_parameter",
            )
        if url == URLS[1]:
            return await client.post(url, *form(body, await _audio(body, options)), name)
        return await client.post_json(url, body, name)
    except ApiError as error:
        return error.status, error.body


async def _audio(body: dict[str, Any], options: ServerOptions) -> bytes | None:
    """The audio that a body's `file_url` holds or names; None where there is none."""
    from mmdiff.files import is_data_url
    from mmdiff.serve.media.fetch import fetch
    from mmdiff.serve.media.parse import unpacked_url

    url = body.get("file_url")
    if not isinstance(url, str):
        return None
    if is_data_url(url):
        return unpacked_url(url, "file_url", "audio 0")
    return await fetch(url, "file_url", "audio 0", options.max_audio, options.allowed_media_domains)
