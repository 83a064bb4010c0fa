"""What one connection may send and hold: headers, pipelining, chunked bodies, each with limits on
every request."""

import asyncio
import json
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from mmdiff.eval.server_load import resident
from mmdiff.serve.http import connection
from mmdiff.serve.http.connection import Connection

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Echo:
    """An application that answers with what it got, slowly where the path says so."""

    def __init__(self) -> None:
        self.seen: deque[dict[str, Any]] = deque(maxlen=10)
        self.gone = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.seen.append(scope)
        if scope["path"] == "/slow":
            try:
                async with asyncio.timeout(0.3):
                    while (await receive())["type"] != "http.disconnect":
                        pass
                self.gone.set()
                return
            except TimeoutError:
                pass
        body, more = b"", True
        while more and scope["path"] != "/slow":
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone.set()
                return
            body, more = body + message["body"], message["more_body"]
        told = json.dumps([scope["path"], len(body), len(scope["headers"])]).encode()
        told += b" " * (16 << 20 if scope["path"] == "/large" else 0)
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-length", str(len(told)).encode())],
            }
        )
        await send({"type": "http.response.body", "body": told})


class Running:
    def __init__(self, app: Echo) -> None:
        self.app = app
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            self.port = held.getsockname()[1]
        config = uvicorn.Config(
            app, port=self.port, http=Connection, ws="none", lifespan="off", log_config=None
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def connect(self) -> socket.socket:
        held = socket.create_connection(("127.0.0.1", self.port))
        held.settimeout(10)
        return held


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "HEAD_SECONDS", 0.4)
        patch.setattr(connection, "WRITE_SECONDS", 0.4)
        patch.setattr(connection, "DRAINED_SECONDS", 0.1)
        found = Running(Echo())
        yield found
        found.server.should_exit = True
        found.thread.join(10)


def answers(held: socket.socket, count: int) -> list[Any]:
    """The bodies of so many answers on a connection."""
    reader, found = held.makefile("rb"), []
    for _ in range(count):
        assert b" 200 " in reader.readline()
        length = 0
        while (line := reader.readline()) != b"\r\n":
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        found.append(json.loads(reader.read(length)))
    return found


def rest(held: socket.socket) -> bytes:
    """All that comes until the server closes."""
    found = b""
    try:
        while part := held.recv(1 << 16):
            found += part
    except ConnectionError:
        pass
    return found


def refused(held: socket.socket) -> tuple[int, str]:
    head, _, body = rest(held).partition(b"\r\n\r\n")
    assert b"connection: close" in head and b"x-request-id" in head
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.mark.parametrize("first", [b"", GET, GET * 3])
@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 70_000,
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a" * 70_000,
        b"GET / HTTP/1.1\r\n"
        + b"".join(b"X-%d: 1\r\n" % number for number in range(101))
        + b"\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /" + b"a" * 70_000,
        b"\r\n" * 35_000,
    ],
)
def test_headers_are_bounded_on_every_request(running: Running, first: bytes, head: bytes) -> None:
    with running.connect() as held:
        held.sendall(first)
        assert len(answers(held, first.count(b"GET"))) == first.count(b"GET")
        held.sendall(head)
        assert refused(held) == (431, "headers_too_large")
    with running.connect() as held:  # sent ahead, all at once
        held.sendall(first + head)
        found = rest(held)
        assert found.count(b" 200 ") == first.count(b"GET") and b" 431 " in found


def test_headers_within_the_limits_are_read(running: Running) -> None:
    head = (
        b"GET / HTTP/1.1\r\n"
        + b"".join(b"X-%d: %s\r\n" % (number, b"a" * 600) for number in range(100))
        + b"\r\n"
    )
    with running.connect() as held:
        held.sendall(head * 2)
        assert [count for _, _, count in answers(held, 2)] == [100, 100]


@pytest.mark.parametrize("before", [b"", GET])
@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost:", b"GET /", b"\r\n"])
def test_a_request_has_so_long_for_its_headers(
    running: Running, before: bytes, begun: bytes
) -> None:
    if before and not begun:
        return  # an idle connection is kept
    with running.connect() as held:
        held.sendall(before)
        answers(held, before.count(b"GET"))
        started = time.monotonic()
        held.sendall(begun)
        for _ in range(20):  # a byte now and then changes nothing
            time.sleep(0.05)
            try:
                held.sendall(b"\r\n" if begun == b"\r\n" else b"a" if begun else b"")
            except OSError:
                break
        assert rest(held) == b""
        assert 0.3 < time.monotonic() - started < 2


def test_an_idle_connection_is_kept_and_a_late_header_on_it_timed(running: Running) -> None:
    with running.connect() as held:
        for _ in range(2):
            held.sendall(GET)
            answers(held, 1)
            time.sleep(0.6)
        held.sendall(GET + b"GET / HT")
        answers(held, 1)
        assert rest(held) == b""


@pytest.mark.parametrize(
    "bad",
    [
        b"5;" + b"a" * 70_000 + b"\r\nhello\r\n0\r\n\r\n",
        b"0\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"0\r\n" + b"X: 1\r\n" * 200 + b"\r\n",
        b"1\r\na\r\n" * 40_000 + b"0\r\n\r\n",
        b"1;" + b"x" * 200 + b"\r\na\r\n" + b"1;" + b"x" * 200 + b"\r\na\r\n" * 1000,
    ],
)
def test_chunked_bodies_carry_little_beside_the_body(running: Running, bad: bytes) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    with running.connect() as held:
        held.sendall(GET)
        answers(held, 1)
        held.sendall(head + bad)
        assert refused(held)[0] in (400, 431)


def test_chunked_bodies_and_their_trailers_are_read(running: Running) -> None:
    head = b"POST /chunked HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    small = b"".join(b"%x;name=value\r\n%s\r\n" % (size, b"a" * size) for size in range(1, 200))
    large = b"%x\r\n%s\r\n" % (300_000, b"b" * 300_000)
    with running.connect() as held:
        held.sendall((head + small + large + b"0\r\nAuthorization: Bearer other\r\n\r\n") * 2 + GET)
        assert answers(held, 3)[:2] == [["/chunked", sum(range(1, 200)) + 300_000, 2]] * 2
    assert all(
        dict(scope["headers"]).keys() <= {b"host", b"transfer-encoding"}
        for scope in running.app.seen
    )


def test_a_large_body_is_read_whole(running: Running) -> None:
    body = b"c" * (3 << 20)
    with running.connect() as held:
        for _ in range(2):
            held.sendall(
                b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            assert answers(held, 1)[0][1] == len(body)


def test_requests_sent_ahead_are_answered_in_order(running: Running) -> None:
    with running.connect() as held:
        count = 200
        held.sendall(
            b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"
            + b"".join(
                b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" % number
                for number in range(count)
            )
        )
        found = answers(held, count + 1)
        assert [path for path, _, _ in found] == [
            "/slow",
            *(f"/{number}" for number in range(count)),
        ]
        assert {size for _, size, _ in found[1:]} == {3}


def test_who_sends_ahead_and_vanishes_is_noticed(running: Running) -> None:
    running.app.gone.clear()
    with running.connect() as held:
        held.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
        time.sleep(0.1)
    assert running.app.gone.wait(5)


def test_a_malformed_request_is_refused_after_the_answers_before_it(running: Running) -> None:
    with running.connect() as held:
        held.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\nNO HTTP AT ALL\r\n\r\n")
        found = rest(held)
        assert found.index(b" 200 ") < found.index(b" 400 ") and b'"invalid_request"' in found
    with running.connect() as held:
        held.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")  # TLS to a port without it
        assert refused(held) == (400, "invalid_request")


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 5\r\n\r\nhello",
        b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: 1\r\n\r\n",
    ],
)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_proposed_upgrade_is_answered_as_http_1(running: Running, body: bytes, size: int) -> None:
    """As Java's and curl's clients propose HTTP/2 on a first request, body and all."""
    upgrade = (
        b"POST /up HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n" + body
    )
    with running.connect() as held:
        sent = upgrade + GET + upgrade
        for start in range(0, len(sent), size):
            held.sendall(sent[start : start + size])
        assert [found[:2] for found in answers(held, 3)] == [["/up", 5], ["/health", 0], ["/up", 5]]


def test_an_unread_answer_is_not_kept_for_ever(running: Running) -> None:
    with running.connect() as held:
        held.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
        until = time.monotonic() + 5
        while running.server.server_state.connections and time.monotonic() < until:
            time.sleep(0.05)
        assert not running.server.server_state.connections


def flood(running: Running, first: bytes, part: bytes, times: int) -> float:
    """MiB that the process grows by while a connection sends."""
    before, most, done = resident(os.getpid()), 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, resident(os.getpid()))
            time.sleep(0.005)

    watching = threading.Thread(target=watch)
    watching.start()
    with running.connect() as held:
        held.settimeout(0.5)
        try:
            held.sendall(first)
            for _ in range(times):
                held.sendall(part)
        except OSError:
            pass
        time.sleep(0.1)
    done.set()
    watching.join()
    return most - before


@pytest.mark.parametrize(
    "first, part",
    [
        (GET + b"GET / HTTP/1.1\r\nX: ", b"a" * 65_536),
        (GET + b"GET / HTTP/1.1\r\n", b"X: 1\r\n" * 10_000),
        (GET + b"GET /", b"a" * 65_536),
        (b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n", GET * 2000),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
            b"X: 1\r\n" * 10_000,
        ),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"a" * 65_536),
        (b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n", b"a" * 65_536),
    ],
)
def test_a_connection_makes_the_server_grow_by_little(
    running: Running, first: bytes, part: bytes
) -> None:
    flood(running, first, part, 16)  # what is taken once
    assert flood(running, first, part, 256) < 1.0
