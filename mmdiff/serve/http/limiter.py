"""Limits concurrent requests before their bodies are read, and shares the engine's capacity fairly.

The server holds as many requests as the engine denoises sequences at once, and a queue of more;
when all slots are taken, a request is refused at once. Every accepted request ends as completed,
failed or cancelled, and is counted once.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from mmdiff.serve.errors import ApiError, Disconnected, model_loading, shutting_down
from mmdiff.serve.options import ServerOptions


class FairSemaphore:
    """A semaphore for several units at once; waiters get theirs in the order in which they came."""

    def __init__(self, count: int) -> None:
        self.count, self.free = count, count
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, count: int) -> None:
        if not self._waiting and self.free >= count:
            self.free -= count
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((count, turn))
        try:
            await turn
        except asyncio.CancelledError:
            granted = turn.done() and not turn.cancelled()  # in the moment before it was cancelled
            self.give(count if granted else 0)
            raise

    def give(self, count: int) -> None:
        self.free += count
        while self._waiting:
            wanted, turn = self._waiting[0]
            cancelled = turn.done()
            if not cancelled and wanted > self.free:
                return
            self._waiting.popleft()
            if not cancelled:
                self.free -= wanted
                turn.set_result(None)


class RequestLimiter:
    """Slots for requests, and capacity for the engine's sequences."""

    def __init__(self, options: ServerOptions) -> None:
        self.options, self.capacity = options, FairSemaphore(options.max_num_seqs)
        self.most = options.max_num_seqs + options.max_num_queued_reqs
        self.draining = False
        self.accepted, self.in_flight = 0, 0
        self.running = 0  # at the engine
        self.ended: Counter[str] = Counter(completed=0, failed=0, cancelled=0)
        self.rejected: Counter[str] = Counter()
        self.by_key: Counter[str] = Counter()

    @contextmanager
    def slot(self, key: str, ready: bool) -> Iterator[None]:
        """A slot for one request, from before its body is read until it ends.

        Raises:
            ApiError: there is none now.
        """
        if (refusal := self._refusal(key, ready)) is not None:
            self.rejected[refusal.code] += 1
            raise refusal
        self.accepted += 1
        self.in_flight += 1
        self.by_key[key] += 1
        end = "failed"
        try:
            yield
            end = "completed"
        except (asyncio.CancelledError, Disconnected, GeneratorExit):
            end = "cancelled"
            raise
        except ApiError as error:
            if error.status < 500:  # for what the client sent, which was refused
                end = "completed"
            raise
        finally:
            self.ended[end] += 1
            self.in_flight -= 1
            self.by_key[key] -= 1
            if not self.by_key[key]:
                del self.by_key[key]

    def _refusal(self, key: str, ready: bool) -> ApiError | None:
        if self.draining:
            return shutting_down()
        if not ready:
            return model_loading()
        if self.in_flight >= self.most:
            status = self.options.overload_status_code
            return ApiError(
                status, "queue_full", f"all {self.most} slots are taken; try again in a moment"
            )
        most = self.options.max_num_reqs_per_key
        if most and self.by_key[key] >= most:
            return ApiError(
                429,
                "rate_limited",
                f"this key has {most} requests in flight, and may have at most {most} at once",
            )
        return None

    @asynccontextmanager
    async def engine(self, sequences: int) -> AsyncIterator[None]:
        """Capacity of the engine, when it is this request's turn.

        Raises:
            ApiError: it waited for too long.
        """
        try:
            async with asyncio.timeout(self.options.queue_timeout):
                await self.capacity.take(sequences)
        except TimeoutError:
            waited = f"{self.options.queue_timeout:g} seconds"
            raise ApiError(
                503, "queue_timeout", f"the engine was not free within {waited}; try again"
            ) from None
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self.capacity.give(sequences)
