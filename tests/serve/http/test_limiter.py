"""Limits: capacity in turn, also for waiters that are cancelled by then, and every refusal."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from mmdiff.serve.errors import ApiError
from mmdiff.serve.http.limiter import FairSemaphore, RequestLimiter
from mmdiff.serve.options import ServerOptions


def play(scene: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(5):
            await scene

    asyncio.run(bounded())


async def waiter(rows: FairSemaphore, count: int) -> asyncio.Task[None]:
    """A task that waits for rows."""
    task = asyncio.create_task(rows.take(count))
    await asyncio.sleep(0)
    assert not task.done()
    return task


async def cancelled(task: asyncio.Task[None]) -> bool:
    return isinstance(
        (await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError
    )


def test_all_rows_can_be_taken_at_once_and_given_to_one() -> None:
    async def scene() -> None:
        rows = FairSemaphore(4)
        await rows.take(4)
        all_of_them = await waiter(rows, 4)
        rows.give(4)
        await all_of_them
        assert rows.free == 0

    play(scene())


def test_rows_whose_taker_is_gone_go_to_the_next() -> None:
    """It was cancelled in the moment between its turn and its taking notice."""

    async def scene() -> None:
        rows = FairSemaphore(1)
        await rows.take(1)
        gone, after = await waiter(rows, 1), await waiter(rows, 1)
        rows.give(1)
        gone.cancel()
        assert await cancelled(gone)
        await after
        rows.give(1)
        assert rows.free == 1
        await rows.take(1)

    play(scene())


def test_rows_that_are_given_while_their_taker_goes_are_free() -> None:
    """Its turn is cancelled already, and it does not know yet."""

    async def scene() -> None:
        rows = FairSemaphore(1)
        await rows.take(1)
        gone = await waiter(rows, 1)
        gone.cancel()
        rows.give(1)
        assert await cancelled(gone)
        assert rows.free == 1
        await rows.take(1)

    play(scene())


def test_who_waits_behind_one_that_gives_up_does_not_wait_for_others_too() -> None:
    async def scene() -> None:
        rows = FairSemaphore(4)
        await rows.take(3)
        large, one = await waiter(rows, 4), await waiter(rows, 1)
        large.cancel()
        assert await cancelled(large)
        await one
        assert rows.free == 0

    play(scene())


def refusal(limiter: RequestLimiter, key: str = "key", ready: bool = True) -> tuple[int, str]:
    with pytest.raises(ApiError) as refused, limiter.slot(key, ready):
        pass
    return refused.value.status, refused.value.code


def test_slots_are_sequences_and_those_that_wait() -> None:
    limiter = RequestLimiter(
        ServerOptions(max_num_seqs=2, max_num_queued_reqs=1, overload_status_code=429)
    )
    with (
        limiter.slot("key", True),
        limiter.slot("key", True),
        limiter.slot("key", True),
    ):  # one key may have them all
        assert refusal(limiter) == (429, "queue_full")
    with limiter.slot("key", True):
        assert limiter.in_flight == 1
    assert limiter.rejected == {"queue_full": 1}


def test_no_request_comes_in_before_the_model_is_loaded_or_while_draining() -> None:
    limiter = RequestLimiter(ServerOptions())
    assert refusal(limiter, ready=False) == (503, "model_loading")
    limiter.draining = True
    assert refusal(limiter) == refusal(limiter, ready=False) == (503, "shutting_down")
    assert limiter.accepted == 0 and limiter.rejected == {"model_loading": 1, "shutting_down": 2}


def test_the_engine_is_not_waited_for_too_long_and_its_rows_come_back() -> None:
    async def scene() -> None:
        limiter = RequestLimiter(ServerOptions(max_num_seqs=2, queue_timeout=0.02))
        with pytest.raises(ValueError):
            async with limiter.engine(2):
                assert (limiter.running, limiter.capacity.free) == (1, 0)
                with pytest.raises(ApiError) as late:
                    async with limiter.engine(1):
                        pass
                assert (late.value.status, late.value.code) == (503, "queue_timeout")
                raise ValueError
        assert (limiter.running, limiter.capacity.free) == (0, 2)

    play(scene())


@pytest.mark.parametrize(
    ("status", "end"), [(400, "completed"), (499, "completed"), (500, "failed"), (503, "failed")]
)
def test_a_refusal_that_the_client_caused_is_no_failure(status: int, end: str) -> None:
    limiter = RequestLimiter(ServerOptions())
    with pytest.raises(ApiError), limiter.slot("key", True):
        raise ApiError(status, "x", "y")
    assert {name for name, count in limiter.ended.items() if count} == {end}
