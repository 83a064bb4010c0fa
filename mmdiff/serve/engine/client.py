"""The server's side of the engine: keeps it running, sends it requests, and hands their events to
whoever waits.

An engine that dies, or gives no sign of life for too long, is ended; what was in its hands fails at
once, and another is started. One that dies again and again ends the server.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from mmdiff.serve.engine import ipc
from mmdiff.serve.engine.worker import WorkerProcess
from mmdiff.serve.errors import ApiError, engine_dead, shutting_down
from mmdiff.serve.options import ServerOptions

log = logging.getLogger("mmdiff.serve")
DEATHS, WITHIN = 5, 60.0  # of the engine, in so many seconds: the server gives up
STUCK = 10  # times the time of silence: one step that takes longer never ends


class PendingRequest:
    """A request in the engine's hands: its events, in order, of whose drafts only the newest is
    kept."""

    def __init__(self, service: EngineClient, name: str) -> None:
        self.service, self.name, self.over = service, name, False
        self._events: deque[ipc.IpcMessage] = deque()
        self._arrived = asyncio.Event()

    async def event(self) -> ipc.IpcMessage:
        """The next one.

        Raises:
            ApiError: the engine refused, failed or died.
        """
        while not self._events:
            self._arrived.clear()
            await self._arrived.wait()
        event = self._events.popleft()
        if event["event"] == "failed":
            raise ApiError(event["status"], event["code"], event["message"], event.get("param"))
        return event

    def put(self, event: ipc.IpcMessage) -> None:
        if self._events and event["event"] == "draft" == self._events[-1]["event"]:
            self._events.pop()
        self.over |= event["event"] in ("done", "failed")
        self._events.append(event)
        self._arrived.set()

    async def cancel(self) -> None:
        """Nobody waits any more; does nothing where the engine is done."""
        if self.service.works.pop(self.name, None) is not None and not self.over:
            await self.service.send({"op": "cancel", "id": self.name})


class EngineClient:
    """An engine's process, looked after."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.about: dict[str, Any] | None = None  # what the model takes, once it is loaded
        self.works: dict[str, PendingRequest] = {}
        self.restarts = 0
        self.counts: dict[str, int] = {
            "steps": 0,
            "store_bytes": 0,
            "store_hits": 0,
            "store_misses": 0,
        }
        self.unloadable: str | None = None  # why the first engine did not start
        self.given_up = asyncio.Event()
        self._child: WorkerProcess | None = None
        self._heard = self._busy = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return self.about is not None and self._child is not None

    @property
    def pid(self) -> int | None:
        return self._child.process.pid if self._child else None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        self._end(shutting_down())
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def begin(
        self, name: str, message: ipc.IpcMessage, arrays: Sequence[ipc.Array] = ()
    ) -> PendingRequest:
        """Send a request; events follow.

        Raises:
            ApiError: there is no engine to send it to.
        """
        if not self.ready:
            raise ApiError(503, "model_loading", "the model is being loaded; ask again in a moment")
        work = self.works[name] = PendingRequest(self, name)
        await self.send({**message, "id": name}, arrays)
        return work

    async def send(self, message: ipc.IpcMessage, arrays: Sequence[ipc.Array] = ()) -> None:
        if self._child is not None:
            try:
                await self._child.send(message, arrays)
            except OSError:
                pass  # the reader notices, and tells all

    async def _run(self) -> None:
        deaths: deque[float] = deque(maxlen=DEATHS)
        while True:
            await self._live()
            if self.unloadable is None:
                deaths.append(time.monotonic())
                self.restarts += 1
                log.error("the engine died; starting another")
            if self.unloadable or (len(deaths) == DEATHS and deaths[-1] - deaths[0] < WITHIN):
                self.given_up.set()
                return

    async def _live(self) -> None:
        """One engine, from start to end."""
        options = self.options
        threads = options.threads or max(1, (os.cpu_count() or 2) - 1)
        self._child = child = await WorkerProcess.start(
            "mmdiff.serve.engine.process",
            json.dumps(
                {
                    "model": options.model,
                    "device": options.device,
                    "dtype": options.dtype,
                    "quantize": options.quantize,
                    "speech_model": options.speech_model,
                    "threads": threads,
                    "max_model_len": options.max_model_len,
                }
            ),
        )
        self._heard = time.monotonic()
        watch = asyncio.create_task(self._watch(child))
        try:
            while True:
                event, _ = await child.receive()
                self._heard, self._busy = time.monotonic(), event.get("busy", 0.0)
                self._deliver(event)
        except EOFError:
            pass
        finally:
            watch.cancel()
            self._end(engine_dead())

    def _deliver(self, event: ipc.IpcMessage) -> None:
        kind = event["event"]
        if kind == "beat":
            self.counts = {name: event[name] for name in self.counts}
        elif kind == "ready":
            self.about = event
            log.info("the model is loaded")
        elif kind == "unloadable":
            self.unloadable = event["message"]
        elif (work := self.works.get(event["id"])) is not None:
            work.put(event)
            if work.over:
                del self.works[event["id"]]

    async def _watch(self, child: WorkerProcess) -> None:
        """End an engine that is stuck; while it loads, it may be silent."""
        while True:
            await asyncio.sleep(min(1.0, self.options.engine_timeout / 4))
            most, silent = self.options.engine_timeout, time.monotonic() - self._heard
            if self.about is not None and (silent > most or self._busy > STUCK * most):
                log.error("the engine gives no sign of life")
                child.process.kill()

    def _end(self, reason: ApiError) -> None:
        """Fail all that the engine had in its hands."""
        self.about = None
        if self._child is not None:
            self._child.kill()
            self._child = None
        for work in list(self.works.values()):
            work.put(
                {
                    "event": "failed",
                    "status": reason.status,
                    "code": reason.code,
                    "message": reason.message,
                }
            )
        self.works.clear()
