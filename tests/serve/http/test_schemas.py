"""Schemas that take longer than they may: others are answered meanwhile, and a refusal is
remembered."""

import asyncio
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mmdiff.eval.server_load import hard_schema, measure_beside_schemas
from mmdiff.serve.engine.time_slices import SlicedWork
from mmdiff.structured.regular.compile_limits import CompileLimits
from tests.helpers.serving import Served, asking


def counting(upto: int, seen: list[int]) -> int:
    deadline = CompileLimits(10)
    for number in range(upto):
        seen.append(number)
        time.sleep(0.001)
        deadline.check()
    return upto


def test_work_in_slices_stops_where_it_looks_at_its_deadline() -> None:
    seen: list[int] = []
    work = SlicedWork(lambda: counting(50, seen))
    counts = []
    while not work.advance(0.005):
        counts.append(len(seen))
        time.sleep(0.002)
        assert len(seen) == counts[-1]  # nothing is done between slices
    assert work.result() == 50 and len(seen) == 50 and len(counts) >= 5
    assert counts == sorted(set(counts))


def test_work_in_slices_is_interrupted() -> None:
    seen: list[int] = []
    work = SlicedWork(lambda: counting(20, seen))
    assert not work.advance(10, lambda: len(seen) >= 3) and len(seen) == 3
    assert work.advance(10) and work.result() == 20


def test_an_error_is_the_result_and_holds_on_to_nothing() -> None:
    def fail() -> None:
        try:
            raise KeyError("inner")
        except KeyError:
            raise ValueError("outer") from None

    work = SlicedWork(fail)
    while not work.advance(1):
        pass
    error = work.result()
    assert isinstance(error, ValueError) and str(error) == "outer"
    assert error.__traceback__ is None and error.__context__ is None


def test_what_is_abandoned_ends() -> None:
    seen: list[int] = []
    never, begun = SlicedWork(lambda: counting(5, seen)), SlicedWork(lambda: counting(10_000, seen))
    before = threading.active_count()
    begun.advance(0.003)
    assert threading.active_count() == before + 1
    begun.abandon()
    never.abandon()
    until = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == before and len(seen) < 10_000


def structured(number: int) -> dict[str, Any]:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": hard_schema(number)}}
    return asking("what color is a red circle?", response_format=form)


@pytest.mark.slow
def test_others_are_answered_while_a_schema_is_compiled(server: Served) -> None:
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.client.post, "/v1/chat/completions", json=structured(0))
        times = []
        while not asked.done() and len(times) < 8:
            started = time.monotonic()
            assert server.chat("what color is a red circle?").status_code == 200
            times.append(time.monotonic() - started)
        error = asked.result().json()["error"]
    assert asked.result().status_code == 400 and "seconds" in error["message"] and len(times) > 3
    assert statistics.median(times) < 1
    started = time.monotonic()
    again = server.client.post("/v1/chat/completions", json=structured(0))
    assert again.json()["error"] == error and time.monotonic() - started < 1
    assert server.settle()["mmdiff_engine_restarts_total"] == 0


@pytest.mark.slow
@pytest.mark.long
def test_plain_requests_beside_schemas_take_at_most_three_times_as_long(server: Served) -> None:
    found = [asyncio.run(measure_beside_schemas(server.url, None, 6, 10)) for _ in range(3)]
    print(*found, sep="\n")
    assert statistics.median(each["ratio_p99"] for each in found) <= 3
    server.settle()
