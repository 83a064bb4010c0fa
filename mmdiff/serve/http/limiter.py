"""Who comes in: places, taken before a body is read, and rows of the engine, taken in turn.

The server holds so many requests as there are rows and places to wait; who comes when all are taken
is refused at once. Every request that is let in ends as completed, failed or cancelled, and is
counted once.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from mmdiff.serve.errors import ApiError, Disconnected, shutting_down
from mmdiff.serve.options import ServerOptions


class FairSemaphore:
    """So many rows; whoever wants some waits for those that came before."""

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
    """The door."""

    def __init__(self, options: ServerOptions) -> None:
        self.options, self.rows = options, FairSemaphore(options.max_num_seqs)
        self.most = options.max_num_seqs + options.max_num_queued_reqs
        self.draining = False
        self.accepted, self.inside, self.running = 0, 0, 0
        self.ended: Counter[str] = Counter(completed=0, failed=0, cancelled=0)
        self.rejected: Counter[str] = Counter()
        self.by_key: Counter[str] = Counter()

    @contextmanager
    def slot(self, key: str, ready: bool) -> Iterator[None]:
        """A place for one request, from before its body is read until it ends.

        Raises:
            ApiError: there is none now.
        """
        if (refusal := self._refusal(key, ready)) is not None:
            self.rejected[refusal.code] += 1
            raise refusal
        self.accepted += 1
        self.inside += 1
        self.by_key[key] += 1
        end = "failed"
        try:
            yield
            end = "completed"
        except (asyncio.CancelledError, Disconnected, GeneratorExit):
            end = "cancelled"
            raise
        except ApiError as error:
            if error.status < 500:  # what the client sent was the reason, and it was told so
                end = "completed"
            raise
        finally:
            self.ended[end] += 1
            self.inside -= 1
            self.by_key[key] -= 1
            if not self.by_key[key]:
                del self.by_key[key]

    def _refusal(self, key: str, ready: bool) -> ApiError | None:
        if self.draining:
            return shutting_down()
        if not ready:
            return ApiError(
                503, "model_loading", "the model is being loaded; ask again in a moment"
            )
        if self.inside >= self.most:
            status = self.options.overload_status_code
            return ApiError(
                status, "queue_full", f"all {self.most} places are taken; ask again in a moment"
            )
        most = self.options.max_num_reqs_per_key
        if most and self.by_key[key] >= most:
            return ApiError(
                429,
                "rate_limited",
                f"this key has {most} requests at work, and may have no more at once",
            )
        return None

    @asynccontextmanager
    async def engine(self, rows: int) -> AsyncIterator[None]:
        """Rows of the engine, when it is this request's turn.

        Raises:
            ApiError: it waited for too long.
        """
        try:
            async with asyncio.timeout(self.options.queue_timeout):
                await self.rows.take(rows)
        except TimeoutError:
            waited = f"{self.options.queue_timeout:g} seconds"
            raise ApiError(
                503, "queue_timeout", f"the engine was not free within {waited}; ask again"
            ) from None
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self.rows.give(rows)
