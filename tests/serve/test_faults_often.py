"""What goes wrong again and again, with as many clients as there are places; each fault some twenty
times."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from tests.helpers.serving import Served, asking, children, free_port

pytestmark = pytest.mark.long
Start = Callable[..., Served]
CLIENTS = 16
STEPS = {
    "gen_length": 256,
    "block_length": 256,
    "steps": 256,
    "rule": "quota",
    "order": "random",
    "cache": "none",
}


@contextmanager
def streams(served: Served, **settings: int) -> Iterator[list[Future[list[str]]]]:
    """So many slow answers, all of them begun; a client gives the lines that came, or its
    connection's error."""
    begun = threading.Semaphore(0)

    def client() -> list[str]:
        found = []
        try:
            with httpx.stream(
                "POST",
                f"{served.url}/v1/chat/completions",
                timeout=60,
                trust_env=False,
                json=asking("what?", stream=True, **{**STEPS, **settings}),
            ) as answer:
                for line in answer.iter_lines():
                    if not found:
                        begun.release()
                    found.append(line)
        finally:
            if not found:
                begun.release()
        return [line for line in found if line]

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(client) for _ in range(CLIENTS)]
        for _ in clients:
            begun.acquire()
        yield clients


def error(lines: list[str]) -> str:
    """The code of the error that a stream ended with, or nothing."""
    assert lines[-1] == "data: [DONE]"
    return str(json.loads(lines[-2].removeprefix("data: ")).get("error", {}).get("code", ""))


def gone(pids: list[int], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_a_killed_server_leaves_its_port_and_starts_again(tmp_path: Path) -> None:
    port = free_port()
    ends, starts, left = list[float](), list[float](), sorted(os.listdir("/dev/shm"))
    for _ in range(20):
        started = time.monotonic()
        served = Served(tmp_path / "log", port=port)
        starts.append(time.monotonic() - started)
        family = [pid for pid, _ in children(served.process.pid)]
        with streams(served) as clients:
            served.process.kill()
            killed = time.monotonic()
            for client in clients:
                assert isinstance(client.exception(), httpx.TransportError)
            ends.append(time.monotonic() - killed)
        served.client.close()
        served.process.wait()
        assert gone(family, 5)
    assert sorted(os.listdir("/dev/shm")) == left
    assert max(ends) < 2
    print(
        f"\nclients were told after {max(ends):.2f} s at most; "
        f"the server was ready after {sorted(starts)[10]:.1f} s (median), "
        f"{max(starts):.1f} s (most)"
    )


@pytest.mark.parametrize(("fault", "times"), [(signal.SIGKILL, 20), (signal.SIGSTOP, 5)])
def test_an_engine_that_dies_or_hangs_fails_what_it_had(
    serve: Start, fault: signal.Signals, times: int
) -> None:
    ends, alive = list[float](), list[float]()
    for number in range(times):
        if number % 4 == 0:  # a fifth time within a minute would be the end of the server
            served = serve("--engine-timeout", "2", wait=False)
        served.wait()
        with streams(served) as clients:
            os.kill(served.engine(), fault)
            struck = time.monotonic()
            served.wait(status=503)
            alive.append(time.monotonic() - struck)
            assert {error(client.result()) for client in clients} == {"engine_dead"}
            ends.append(time.monotonic() - struck)
        assert served.settle()["mmdiff_requests_failed_total"] == CLIENTS * (number % 4 + 1)
        assert served.numbers()["mmdiff_engine_restarts_total"] == number % 4 + 1
        if number % 4 == 3 or number == times - 1:
            served.wait()
            assert served.chat().status_code == 200
            assert served.stop() == 0
    hang = 2 if fault is signal.SIGSTOP else 0
    assert max(ends) < 2 + 2 * hang
    print(
        f"\n/health was 503 after {max(alive):.2f} s at most, "
        f"clients got an error after {max(ends):.2f} s"
    )


def test_sigterm_lets_all_of_them_finish(serve: Start) -> None:
    for _ in range(10):
        served = serve("--shutdown-timeout", "60")
        with streams(served, gen_length=64, block_length=64, steps=64) as clients:
            served.process.send_signal(signal.SIGTERM)
            served.wait("/v1/health/ready", 503, 2)
            assert served.client.get("/v1/health/live").status_code == 200
            refused = served.chat()
            assert refused.status_code == 503 and refused.json()["error"]["code"] == "shutting_down"
            assert {error(client.result()) for client in clients} == {""}
        served.client.close()
        assert served.process.wait(10) == 0


def test_past_its_time_or_told_twice_the_server_ends_with_an_error(serve: Start) -> None:
    for told in (1, 2):
        served = serve("--shutdown-timeout", "1" if told == 1 else "60")
        with streams(served, gen_length=700, block_length=700, steps=700) as clients:
            family = [pid for pid, _ in children(served.process.pid)]
            served.process.send_signal(signal.SIGTERM)
            if told == 2:
                served.wait("/v1/health/ready", 503, 2)
                served.process.send_signal(signal.SIGTERM)
            ends = [client.exception() or error(client.result()) for client in clients]
        assert all(
            end == "shutting_down" or isinstance(end, httpx.TransportError) for end in ends
        ), ends
        assert served.process.wait(5) == 1
        assert gone(family, 5)


def test_bodies_that_hardly_come_hold_up_no_client(server: Served) -> None:
    """32 clients who send a byte a second."""
    server.settle()
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(32)]
    started, ended = time.monotonic(), dict[int, bytes]()
    for each in slow:
        each.setblocking(False)
        each.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\n"
            b"Content-Length: 1000\r\n\r\n{"
        )
    answered = 0
    while len(ended) < len(slow) and time.monotonic() < started + 15:
        assert server.chat().status_code == 200
        answered += 1
        for number, each in enumerate(slow):
            if number not in ended:
                try:
                    ended[number] = each.recv(65536)
                except BlockingIOError:
                    each.send(b" ")
        time.sleep(1)
    assert time.monotonic() - started < 11 and answered >= 5
    for each in slow:
        each.close()
    assert all(b" 400 " in answer and b"body_too_slow" in answer for answer in ended.values())
    server.settle()


def test_readers_that_stop_take_no_memory(server: Served) -> None:
    """16 clients that ask for drafts and never read them."""
    server.settle()
    before = server.numbers()["mmdiff_requests_cancelled_total"]
    body = json.dumps(
        asking(
            "what?",
            stream=True,
            diffusing=True,
            **{**STEPS, "gen_length": 700, "block_length": 700, "steps": 700},
        )
    ).encode()
    deaf = []
    for _ in range(CLIENTS):
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        held.connect(("127.0.0.1", server.port))
        held.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        deaf.append(held)
    door = psutil.Process(server.process.pid)
    resident, most = door.memory_info().rss, 0
    until = time.monotonic() + 150
    while server.numbers()["mmdiff_requests_in_flight"] < CLIENTS and time.monotonic() < until:
        time.sleep(0.02)  # they have been sent, and not yet read
    while server.numbers()["mmdiff_requests_in_flight"] and time.monotonic() < until:
        most = max(most, door.memory_info().rss)
        time.sleep(0.5)
    after = server.settle()
    assert most - resident < CLIENTS * (256 << 10), (most - resident) >> 10
    assert server.chat().status_code == 200
    print(
        f"\n{after['mmdiff_requests_cancelled_total'] - before:.0f} of {CLIENTS} readers "
        "were let go; "
        f"the server grew by {(most - resident) / 2**20:.1f} MiB"
    )
    for held in deaf:
        held.close()
