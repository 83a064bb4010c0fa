"""The server's side of the engine process: starts and restarts it, and streams its events.

An engine that dies, or whose heartbeat stops for too long, is killed; the requests in its hands
fail at once, and another engine is started. One that dies again and again ends the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mmdiff.serve.engine import ipc
from mmdiff.serve.engine.messages import (
    CancelRequest,
    Done,
    DraftMade,
    EngineRequest,
    Failed,
    FromEngine,
    Heartbeat,
    ModelInfo,
    Ready,
    RequestEvent,
    ToEngine,
    Unloadable,
    decode,
    encode,
)
from mmdiff.serve.engine.worker import WorkerProcess
from mmdiff.serve.errors import ApiError, engine_dead, model_loading, shutting_down
from mmdiff.serve.options import ServerOptions

log = logging.getLogger("mmdiff.serve")
DEATHS, WITHIN = 5, 60.0  # of the engine, in that many seconds: the server gives up
STUCK = 10  # times the time of silence: one step that takes longer never ends


@dataclass(frozen=True)
class Silence:
    """No event came for `keepalive` seconds."""


StreamEvent: TypeAlias = RequestEvent | Silence


class PendingRequest:
    """A request in the engine's hands: its events in order, of whose drafts only the newest is
    kept."""

    def __init__(self, engine: EngineClient, id: str) -> None:
        self.engine, self.id = engine, id
        self.over = False
        self._events: deque[RequestEvent] = deque()
        self._arrived = asyncio.Event()

    async def event(self) -> RequestEvent:
        """The next event.

        Raises:
            ApiError: the engine refused, failed or died.
        """
        while not self._events:
            self._arrived.clear()
            await self._arrived.wait()
        event = self._events.popleft()
        if isinstance(event, Failed):
            raise ApiError(event.status, event.code, event.message, event.param)
        return event

    def put(self, event: RequestEvent) -> None:
        newer = isinstance(event, DraftMade)
        if newer and self._events and isinstance(self._events[-1], DraftMade):
            self._events.pop()
        self.over |= isinstance(event, Done | Failed)
        self._events.append(event)
        self._arrived.set()

    async def cancel(self) -> None:
        """The client has left; does nothing where the engine is done."""
        if self.engine.pending.pop(self.id, None) is not None and not self.over:
            await self.engine.send(CancelRequest(self.id))


class EngineClient:
    """An engine process and the requests in its hands."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.model: ModelInfo | None = None  # once it is loaded
        self.pending: dict[str, PendingRequest] = {}
        self.restarts = 0
        self.heartbeat = Heartbeat()
        self.unloadable: str | None = None  # why the first engine did not start
        self.given_up = asyncio.Event()
        self._worker: WorkerProcess | None = None
        self._last_event = self._busy = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return self.model is not None and self._worker is not None

    @property
    def pid(self) -> int | None:
        return self._worker.process.pid if self._worker else None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        self._end(shutting_down())
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def generate(
        self,
        request: EngineRequest,
        arrays: Sequence[ipc.Array] = (),
        keepalive: float | None = None,
    ) -> AsyncGenerator[StreamEvent, None]:
        """The events of a request until it is done; closing it early cancels the request.

        Args:
            keepalive: seconds without an event after which a `Silence` is yielded.

        Raises:
            ApiError: there is no engine, or it refused, failed or died.
        """
        pending = await self._submit(request, arrays)
        del arrays  # the engine has them now
        event: RequestEvent | None = None
        try:
            while not isinstance(event, Done):
                try:
                    async with asyncio.timeout(keepalive):
                        event = await pending.event()
                except TimeoutError:
                    yield Silence()
                else:
                    yield event
        finally:
            await pending.cancel()

    async def send(self, message: ToEngine, arrays: Sequence[ipc.Array] = ()) -> None:
        if self._worker is not None:
            with contextlib.suppress(OSError):  # the reader notices, and fails all requests
                await self._worker.send(encode(message), arrays)

    async def _submit(self, request: EngineRequest, arrays: Sequence[ipc.Array]) -> PendingRequest:
        if not self.ready:
            raise model_loading()
        pending = self.pending[request.id] = PendingRequest(self, request.id)
        await self.send(request, arrays)
        return pending

    async def _run(self) -> None:
        deaths: deque[float] = deque(maxlen=DEATHS)
        while True:
            await self._run_engine()
            if self.unloadable is None:
                deaths.append(time.monotonic())
                self.restarts += 1
                log.error("the engine died; starting another")
            if self.unloadable or (len(deaths) == DEATHS and deaths[-1] - deaths[0] < WITHIN):
                self.given_up.set()
                return

    async def _run_engine(self) -> None:
        """One engine process, from start to end."""
        self._worker = worker = await WorkerProcess.start(
            "mmdiff.serve.engine", json.dumps(_engine_options(self.options))
        )
        self._last_event = time.monotonic()
        watch = asyncio.create_task(self._watch(worker))
        try:
            while True:
                header, _ = await worker.receive()
                self._deliver(decode(header))
        except (EOFError, ValueError):
            pass
        finally:
            watch.cancel()
            self._end(engine_dead())

    def _deliver(self, event: FromEngine) -> None:
        self._last_event, self._busy = time.monotonic(), 0.0
        match event:
            case Heartbeat():
                self.heartbeat, self._busy = event, event.busy
            case Ready():
                self.model = event.model
                log.info("the model is loaded")
            case Unloadable():
                self.unloadable = event.message
            case _:
                self._deliver_to_request(event)

    def _deliver_to_request(self, event: RequestEvent) -> None:
        pending = self.pending.get(event.id)
        if pending is None:  # it was cancelled
            return
        pending.put(event)
        if pending.over:
            del self.pending[event.id]

    async def _watch(self, worker: WorkerProcess) -> None:
        """Kill an engine without heartbeat; while it loads, it may be silent."""
        longest = self.options.engine_timeout
        while True:
            await asyncio.sleep(min(1.0, longest / 4))
            silent = time.monotonic() - self._last_event
            if self.model is not None and (silent > longest or self._busy > STUCK * longest):
                log.error("the engine gives no sign of life")
                worker.process.kill()

    def _end(self, reason: ApiError) -> None:
        """Fail all requests in the engine's hands."""
        self.model = None
        if self._worker is not None:
            self._worker.kill()
            self._worker = None
        for pending in list(self.pending.values()):
            pending.put(Failed(pending.id, reason.status, reason.code, reason.message))
        self.pending.clear()


def _engine_options(options: ServerOptions) -> dict[str, str | int | None]:
    threads = options.threads or max(1, (os.cpu_count() or 2) - 1)
    return {
        "model": options.model,
        "device": options.device,
        "dtype": options.dtype,
        "quantize": options.quantize,
        "speech_model": options.speech_model,
        "threads": threads,
        "max_model_len": options.max_model_len,
    }
