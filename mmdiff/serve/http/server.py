"""Starts the server, and shuts it down gracefully.

On the first SIGTERM, SIGINT or SIGHUP it drains: new requests are refused, and those in flight have
`shutdown_timeout` to finish; the second signal ends everything now.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING

from mmdiff.errors import MMDiffError
from mmdiff.serve.errors import ApiError
from mmdiff.serve.options import Replicas, ServerOptions, require_packages

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

    from mmdiff.serve.http.state import AppState

log = logging.getLogger("mmdiff.serve")


def serve(options: ServerOptions, replicas: Replicas | None = None) -> int:
    """Serve until told to stop, on this machine or, with replicas, on a cluster; gives the exit
    code.

    Raises:
        MMDiffError: the model cannot be loaded, or a package is missing.
    """
    require_packages()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if not (options.api_keys or options.on_loopback or options.uds):
        log.warning(
            "every client that reaches %s can use this server: give it an --api-key", options.host
        )
    if replicas is not None:
        from mmdiff.serve import ray

        return ray.serve(options, replicas)
    return asyncio.run(_serve(options))


async def _serve(options: ServerOptions) -> int:
    from mmdiff.serve.http.app import create

    app, state = create(options)
    address = options.uds or f"{options.host}:{options.port}"
    shutdown = Shutdown(_uvicorn(app, state), state)
    shutdown.install()
    watching = asyncio.ensure_future(shutdown.watch_engine())
    log.info("mmdiff serves %s on %s", ", ".join(options.names), options.uds or f"http://{address}")
    try:
        await shutdown.server.serve()
    except SystemExit as error:
        raise MMDiffError(
            f"the server cannot start on {address}; is the port taken? choose another --port"
        ) from error
    finally:
        watching.cancel()
        await state.engine.stop()
        state.media.stop()
    if state.engine.unloadable is not None:
        raise MMDiffError(state.engine.unloadable)
    return shutdown.exit_code


def _uvicorn(app: ASGIApp, state: AppState) -> uvicorn.Server:
    import uvicorn

    from mmdiff.serve.http.connection import Connection

    class CountedConnection(Connection):
        def refused(self, error: ApiError) -> None:
            state.metrics.answered("", "", error.status)

    config = uvicorn.Config(
        app,
        host=state.options.host,
        port=state.options.port,
        uds=state.options.uds,
        http=CountedConnection,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=2048,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
        limit_concurrency=4096,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    return uvicorn.Server(config)


class Shutdown:
    """Ends the server: on signals, or when its engine is given up."""

    def __init__(self, server: uvicorn.Server, state: AppState) -> None:
        self.server, self.state = server, state
        self.exit_code, self._signals = 0, 0
        self._loop = asyncio.get_running_loop()
        self._draining: asyncio.Task[None] | None = None

    def install(self) -> None:
        """Handle the signals that end a server."""
        self.server.handle_exit = self.on_signal  # type: ignore[method-assign]
        # it is ignored under nohup, where the server outlives its terminal
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self.on_signal)

    def on_signal(self, sig: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals == 1:
            self._loop.call_soon_threadsafe(self._begin_draining)
        else:
            self.exit_code = 1
            self.server.should_exit = self.server.force_exit = True

    async def watch_engine(self) -> None:
        """End the server when its engine is given up."""
        await self.state.engine.given_up.wait()
        self.exit_code = 2 if self.state.engine.unloadable else 1
        self.server.should_exit = True

    def _begin_draining(self) -> None:
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        limiter = self.state.limiter
        limiter.draining = True
        log.info("draining: %d requests in flight", limiter.in_flight)
        try:
            async with asyncio.timeout(self.state.options.shutdown_timeout):
                while limiter.in_flight:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            self.exit_code = 1
            log.error("ended with %d requests in flight", limiter.in_flight)
            await self.state.engine.stop()  # their streams end with an error event
            await asyncio.sleep(0.1)
        self.server.should_exit = True
