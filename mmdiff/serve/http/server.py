"""Start, serve, and stop without losing anything that was let in.

The first SIGTERM, SIGINT or SIGHUP closes the door: new requests are refused, old ones finish, up
to the time for it; the second one ends everything now.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from types import FrameType

from mmdiff.errors import MMDiffError
from mmdiff.serve.errors import ApiError
from mmdiff.serve.options import Replicas, ServerOptions, require_packages

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
            "anybody who reaches %s can use this server: give it an --api-key", options.host
        )
    if replicas is not None:
        from mmdiff.serve import ray

        return ray.serve(options, replicas)
    return asyncio.run(_serve(options))


async def _serve(options: ServerOptions) -> int:
    import uvicorn

    from mmdiff.serve.http.app import create
    from mmdiff.serve.http.connection import Connection

    app, house = create(options)

    class Counted(Connection):
        def refused(self, error: ApiError) -> None:
            house.metrics.answered("", "", error.status)

    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=options.host,
            port=options.port,
            uds=options.uds,
            http=Counted,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=2048,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=2,
            limit_concurrency=4096,
        )
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    code, told = 0, 0

    async def drain() -> None:
        nonlocal code
        house.admission.draining = True
        log.info("draining: %d requests in flight", house.admission.inside)
        try:
            async with asyncio.timeout(options.shutdown_timeout):
                while house.admission.inside:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            code = 1
            log.error("ended with %d requests in flight", house.admission.inside)
            await house.service.stop()  # their streams end with an error event
            await asyncio.sleep(0.1)
        server.should_exit = True

    async def watch() -> None:
        nonlocal code
        await house.service.given_up.wait()
        code = 2 if house.service.unloadable else 1
        server.should_exit = True

    draining: list[asyncio.Task[None]] = []

    def stop(sig: int, frame: FrameType | None) -> None:
        nonlocal told, code
        told += 1
        if told == 1:
            loop.call_soon_threadsafe(lambda: draining.append(asyncio.ensure_future(drain())))
        else:
            code, server.should_exit, server.force_exit = 1, True, True

    loop = asyncio.get_running_loop()
    server.handle_exit = stop  # type: ignore[method-assign]
    if (
        signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    ):  # as under nohup, which outlives its terminal
        signal.signal(signal.SIGHUP, stop)
    watching = asyncio.ensure_future(watch())
    log.info(
        "mmdiff serves %s on %s",
        ", ".join(options.names),
        options.uds or f"http://{options.host}:{options.port}",
    )
    try:
        await server.serve()
    except SystemExit as error:
        raise MMDiffError(
            f"the server cannot start on {options.uds or f'{options.host}:{options.port}'}; "
            "is the port taken? choose another --port"
        ) from error
    finally:
        watching.cancel()
        await house.service.stop()
        house.decoders.stop()
    if house.service.unloadable is not None:
        raise MMDiffError(house.service.unloadable)
    return code
