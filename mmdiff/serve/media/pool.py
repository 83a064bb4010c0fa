"""The server's side of the decoder (worker.py): files in, arrays out, one after the other in each
process."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import numpy as np

from mmdiff.serve.engine import ipc
from mmdiff.serve.engine.worker import WorkerProcess
from mmdiff.serve.errors import ApiError
from mmdiff.serve.options import MediaLimits

SECONDS = 20.0  # on the clock, for one file


class MediaPool:
    """Processes that open pictures and sounds; one that dies or hangs is replaced."""

    def __init__(self, limits: MediaLimits, count: int = 2) -> None:
        self.limits, self.count = json.dumps(dataclasses.asdict(limits)), count
        self.restarts = 0
        self._free: asyncio.Queue[WorkerProcess | None] = asyncio.Queue()
        self._all: list[WorkerProcess] = []

    async def start(self) -> None:
        for _ in range(self.count):
            self._free.put_nowait(await self._new())

    async def open(self, kind: str, data: bytes, name: str) -> ipc.Array:
        """The pixels of a picture ("image") or the samples of a sound ("audio").

        Raises:
            ApiError: it cannot be read, or is larger than it may be.
        """
        child = await self._free.get()
        broken = True
        try:
            if child is None or child.process.poll() is not None:
                child = await self._new()
            async with asyncio.timeout(SECONDS):
                await child.send({"kind": kind, "name": name}, [np.frombuffer(data, np.uint8)])
                answer, arrays = await child.receive()
            broken = False
        except (TimeoutError, EOFError, OSError):
            raise ApiError(
                413, f"{kind}_too_large", f"{name} takes more time or memory to read than allowed"
            ) from None
        finally:  # also where the request was cancelled between question and answer
            if broken and child is not None:
                self._discard(child)
                self.restarts += 1
            self._free.put_nowait(None if broken else child)
        if answer:
            raise ApiError(answer["status"], answer["code"], answer["message"], name)
        return arrays[0]

    def stop(self) -> None:
        for child in list(self._all):
            self._discard(child)

    async def _new(self) -> WorkerProcess:
        child = await WorkerProcess.start("mmdiff.serve.media.worker", self.limits)
        self._all.append(child)
        return child

    def _discard(self, child: WorkerProcess) -> None:
        child.kill()
        if child in self._all:
            self._all.remove(child)
