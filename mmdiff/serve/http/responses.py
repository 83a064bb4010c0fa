"""One request from its place at the door to its last byte, whatever it asks for.

A place is taken before the body is read and given back when the answer is out, was refused, or has
nobody left to take it. A client that goes away is noticed at once, whether or not the answer
streams.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mmdiff.config import shown
from mmdiff.serve.engine import ipc
from mmdiff.serve.engine.client import EngineClient
from mmdiff.serve.errors import ApiError, Disconnected
from mmdiff.serve.http.limiter import RequestLimiter
from mmdiff.serve.http.metrics import Metrics
from mmdiff.serve.http.middleware import state_of
from mmdiff.serve.media.parse import Medium, decoded
from mmdiff.serve.media.pool import MediaPool
from mmdiff.serve.options import ServerOptions


@dataclass
class AppState:
    """What all requests share."""

    options: ServerOptions
    admission: RequestLimiter
    service: EngineClient
    decoders: MediaPool
    metrics: Metrics = field(default_factory=Metrics)

    @property
    def about(self) -> dict[str, Any]:
        """What the engine says of its model; refused while there is none."""
        if self.service.about is None:
            raise ApiError(503, "model_loading", "the model is being loaded; ask again in a moment")
        return self.service.about

    def check_model(self, name: str | None) -> str:
        """The name that an answer carries."""
        if name is not None and name not in self.options.names:
            known = ", ".join(self.options.names)
            raise ApiError(
                404,
                "model_not_found",
                f"the model {shown(name)} is not served here; use {known}",
                "model",
            )
        return name or self.options.names[0]


class SseWriter:
    """An answer on its way out: one JSON or text body, or a stream of server-sent events."""

    def __init__(self, send: Send) -> None:
        self._send, self.begun, self._last = send, False, 0.0

    async def whole(
        self, body: str | bytes | dict[str, Any], kind: str = "application/json"
    ) -> None:
        content = json.dumps(body) if isinstance(body, dict) else body
        await Response(content, media_type=kind)({"type": "http"}, _nothing, self._send)

    async def begin(self) -> None:
        """Open the stream; from here on errors are events."""
        if not self.begun:
            self.begun = True
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"x-accel-buffering", b"no"),
            ]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def data(self, event: dict[str, Any]) -> None:
        await self._write(f"data: {json.dumps(event)}\n\n")

    async def comment(self) -> None:
        """Keeps proxies from closing a stream that is silent, also before there is anything to
        tell."""
        await self.begin()
        await self._write(": working\n\n")

    async def end(self) -> None:
        await self._write("data: [DONE]\n\n")
        await self._send({"type": "http.response.body", "body": b""})

    async def _write(self, text: str) -> None:
        await self._send({"type": "http.response.body", "body": text.encode(), "more_body": True})


async def _nothing() -> Any:
    raise AssertionError("a plain body reads nothing")


class EngineRequest:
    """A request's work at the engine: when it is its turn, media are decoded, and events come
    back."""

    def __init__(self, house: AppState, request: Request) -> None:
        self.house, self.id, self.started = house, state_of(request)["id"], time.monotonic()
        self.times = house.metrics.times(request.scope)

    async def events(
        self,
        message: ipc.IpcMessage,
        media: Sequence[Medium],
        heard: Callable[[ipc.IpcMessage], Awaitable[None]],
        idle: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Hand every event of the engine to `heard`, until all is done.

        Args:
            idle: called while nothing comes for long.
        """
        options = self.house.options
        async with self.house.admission.engine(message.get("n", 1)):
            self.times.queue.observe(time.monotonic() - self.started)
            arrays = await decoded(media, self.house.decoders, options)
            message["seconds"] = max(
                0.0, options.request_timeout - (time.monotonic() - self.started)
            )
            work = await self.house.service.begin(self.id, message, arrays)
            del arrays
            begun, first = time.monotonic(), False
            try:
                event: ipc.IpcMessage = {"event": ""}
                while event["event"] != "done":
                    try:
                        async with asyncio.timeout(options.keepalive if idle else None):
                            event = await work.event()
                    except TimeoutError:
                        if idle is not None:
                            await idle()
                        continue
                    self.house.metrics.count_tokens(event)
                    if not first and event["event"] in ("row", "segment"):
                        first, now = True, time.monotonic()
                        committed = begun + event["first"] if "first" in event else now
                        self.times.first_commit.observe(min(committed, now) - self.started)
                    await heard(event)
                self.times.whole.observe(time.monotonic() - self.started)
            finally:
                await work.cancel()


Perform = Callable[[SseWriter], Coroutine[Any, Any, None]]


class Exchange(Response):
    """The whole of one request: `read` the body, then `perform` what it asks for, unless the client
    goes away."""

    def __init__(self, house: AppState, read: Callable[[Request], Awaitable[Perform]]) -> None:
        super().__init__()
        self.house, self.read = house, read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, reply = Request(scope, receive), SseWriter(send)
        admission = self.house.admission
        try:
            with admission.slot(scope["state"]["key"], self.house.service.ready):
                perform = await self.read(request)
                await _unless_gone(receive, perform(reply))
        except Disconnected:
            scope["state"]["gone"] = True
        except ApiError as error:
            if not reply.begun:
                raise
            with suppress(Disconnected):
                await reply.data(error.body)
                await reply.end()


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Disconnected
        task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
