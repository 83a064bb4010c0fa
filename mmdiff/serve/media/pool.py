"""Pool of sandboxed media workers (worker.py): files in, arrays out, one at a time in each."""

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
    """Processes that decode images and audio; one that dies or hangs is replaced."""

    def __init__(self, limits: MediaLimits, count: int = 2) -> None:
        self.limits, self.count = json.dumps(dataclasses.asdict(limits)), count
        self.restarts = 0
        self._free: asyncio.Queue[WorkerProcess | None] = asyncio.Queue()
        self._all: list[WorkerProcess] = []

    async def start(self) -> None:
        for _ in range(self.count):
            self._free.put_nowait(await self._new())

    async def open(self, kind: str, data: bytes, name: str, separate: bool = False) -> ipc.Array:
        """The pixels of an image, or the samples of audio: of all channels together, or each on its
        own.

        Raises:
            ApiError: it cannot be read, or is larger than it may be.
        """
        worker = await self._free.get()
        broken = True
        try:
            if worker is None or worker.process.poll() is not None:
                worker = await self._new()
            async with asyncio.timeout(SECONDS):
                asked = {"kind": kind, "name": name, "separate": separate}
                await worker.send(asked, [np.frombuffer(data, np.uint8)])
                answer, arrays = await worker.receive()
            broken = False
        except (TimeoutError, EOFError, OSError):
            raise ApiError(
                413, f"{kind}_too_large", f"{name} takes more time or memory to read than allowed"
            ) from None
        finally:  # also where the request was cancelled between question and answer
            if broken and worker is not None:
                self._discard(worker)
                self.restarts += 1
            self._free.put_nowait(None if broken else worker)
        if answer:
            raise ApiError(answer["status"], answer["code"], answer["message"], name)
        return arrays[0]

    def stop(self) -> None:
        for worker in list(self._all):
            self._discard(worker)

    async def _new(self) -> WorkerProcess:
        worker = await WorkerProcess.start("mmdiff.serve.media.worker", self.limits)
        self._all.append(worker)
        return worker

    def _discard(self, worker: WorkerProcess) -> None:
        worker.kill()
        if worker in self._all:
            self._all.remove(worker)
