"""One request from its slot to its last byte: the skeleton that all routes to the engine share.

A slot is taken before the body is read and given back when the answer is out, was refused, or its
client has left. A client that disconnects is noticed at once, whether or not the answer streams.
"""

from __future__ import annotations

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, TypeAlias

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from mmdiff.serve.engine.client import Silence, StreamEvent
from mmdiff.serve.engine.messages import (
    AnswerFinished,
    EngineRequest,
    RequestEvent,
    SegmentTranscribed,
    Started,
)
from mmdiff.serve.errors import ApiError, Disconnected
from mmdiff.serve.http.metrics import Times
from mmdiff.serve.http.state import AppState
from mmdiff.serve.media.parse import Medium, decoded

Chunk: TypeAlias = dict[str, Any]  # the JSON of one server-sent event
OPENED = ""  # opens a stream that has nothing to say yet
WORKING = ": working\n\n"  # keeps proxies from closing a stream that is silent
LAST = "data: [DONE]\n\n"


class Completion(ABC):
    """What a route makes of a request: first what the engine gets, then a body or a stream of what
    comes back."""

    def __init__(self, request: EngineRequest, media: Sequence[Medium], stream: bool) -> None:
        self.request, self.media = request, media
        self.stream = stream

    @abstractmethod
    def add(self, event: RequestEvent) -> None:
        """Take in what an event says."""

    @abstractmethod
    def chunks(self, event: RequestEvent) -> Iterator[Chunk]:
        """What a stream says about an event that was taken in."""

    @abstractmethod
    def last_chunks(self) -> Iterator[Chunk]:
        """What a stream says at its end."""

    @abstractmethod
    def body(self) -> Response:
        """All of it, where it does not stream."""


ReadRequest: TypeAlias = Callable[[AppState, Request], Awaitable[Completion]]


class EngineResponse(Response):
    """Reads a request, has the engine work on it, and responds, unless the client leaves."""

    def __init__(self, state: AppState, read: ReadRequest) -> None:
        super().__init__()
        self.state, self.read = state, read
        self.streaming = False  # from here on errors are server-sent events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = self.state
        try:
            with state.limiter.slot(scope["state"]["key"], state.engine.ready):
                completion = await self.read(state, Request(scope, receive))
                times = state.metrics.times(scope["path"])
                await _until_disconnect(receive, self._respond(completion, times, send))
        except Disconnected:
            scope["state"]["gone"] = True
        except ApiError as error:
            if not self.streaming:
                raise
            last = (sse(error.body) + LAST).encode()
            with suppress(Disconnected):
                await send({"type": "http.response.body", "body": last})

    async def _respond(self, completion: Completion, times: Times, send: Send) -> None:
        if not completion.stream:
            async with aclosing(self._generate(completion, times)) as events:
                async for event in events:
                    if not isinstance(event, Silence):
                        completion.add(event)
            await completion.body()({"type": "http"}, _no_body, send)
            return
        async with aclosing(self._stream(completion, times)) as chunks:
            first = await anext(chunks)
            self.streaming = True
            response = StreamingResponse(
                _chained(first, chunks),
                media_type="text/event-stream",
                headers={"X-Accel-Buffering": "no"},
            )
            # not `response()`, which would watch for a disconnect a second time
            await response.stream_response(send)

    async def _stream(self, completion: Completion, times: Times) -> AsyncGenerator[str, None]:
        """Server-sent events."""
        async with aclosing(self._generate(completion, times)) as events:
            async for event in events:
                if isinstance(event, Silence):
                    yield WORKING
                    continue
                completion.add(event)
                if isinstance(event, Started):
                    yield OPENED
                for chunk in completion.chunks(event):
                    yield sse(chunk)
        for chunk in completion.last_chunks():
            yield sse(chunk)
        yield LAST

    async def _generate(
        self, completion: Completion, times: Times
    ) -> AsyncGenerator[StreamEvent, None]:
        """The engine's events: when it is the request's turn, media are decoded and sent there."""
        received = time.monotonic()
        state, options = self.state, self.state.options
        keepalive = options.keepalive if completion.stream else None
        async with state.limiter.engine(completion.request.n):
            times.queue.observe(time.monotonic() - received)
            arrays = await decoded(completion.media, state.media, options)
            left = max(0.0, options.request_timeout - (time.monotonic() - received))
            request = replace(completion.request, seconds=left)
            generated = state.engine.generate(request, arrays, keepalive)
            del arrays  # not kept beside the engine's
            sent, waiting = time.monotonic(), True
            async with aclosing(generated) as events:
                async for event in events:
                    state.metrics.count_tokens(event)
                    if waiting and isinstance(event, AnswerFinished | SegmentTranscribed):
                        waiting = False
                        times.first_commit.observe(_first_commit(event, sent) - received)
                    yield event
            times.whole.observe(time.monotonic() - received)


def sse(data: Chunk) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(data)}\n\n"


def json_body(body: Mapping[str, Any]) -> Response:
    """JSON as `json.dumps` writes it, ASCII with spaces."""
    return Response(json.dumps(body), media_type="application/json")


def _first_commit(event: AnswerFinished | SegmentTranscribed, sent: float) -> float:
    """When the first tokens of an answer were decided, on the monotonic clock."""
    now = time.monotonic()
    return min(sent + event.first, now) if isinstance(event, AnswerFinished) else now


async def _chained(first: str, rest: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    yield first
    async for chunk in rest:
        yield chunk


async def _until_disconnect(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, or cancel it when the client disconnects.

    Raises:
        Disconnected: it did.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Disconnected
        task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _no_body() -> Any:
    raise AssertionError("a plain response reads nothing")
