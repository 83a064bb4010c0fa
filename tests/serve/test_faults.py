"""What goes wrong around the server: full houses, clients that vanish, engines that die, and the
end."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.helpers.serving import SLOW, Served, asking, children

Start = Callable[..., Served]
KEY = "a-key-for-tests"


@contextmanager
def streaming(served: Served, key: str | None = None, **settings: Any) -> Iterator[Iterator[str]]:
    """The lines of a slow answer that has begun."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    body = asking("what?", stream=True, **{**SLOW, **settings})
    with served.client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        yield lines


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_clients_that_vanish_leave_nothing_behind(server: Served) -> None:
    """Half of them stream, half do not."""
    before = server.settle()["mmdiff_requests_cancelled_total"]
    sockets = []
    for number in range(64):
        body = json.dumps(asking("what?", stream=number % 2 == 0, n=2, **SLOW)).encode()
        held = socket.create_connection(("127.0.0.1", server.port))
        held.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        sockets.append(held)
    until = time.monotonic() + 20
    while server.numbers()["mmdiff_requests_running"] < 8 and time.monotonic() < until:
        time.sleep(0.02)
    assert server.numbers()["mmdiff_requests_in_flight"] == 64
    for held in sockets:
        held.close()
    left = time.monotonic()
    after = server.settle()
    assert time.monotonic() - left < 5
    assert after["mmdiff_requests_cancelled_total"] - before == 64
    assert server.chat().json()["choices"][0]["message"]["content"]


def test_a_body_that_hardly_comes_is_not_waited_for(server: Served) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.settimeout(12)
        slow.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\n"
            b"Content-Length: 1000\r\n\r\n{"
        )
        started, answer = time.monotonic(), b""
        while part := slow.recv(4096):
            answer += part
        assert 3 < time.monotonic() - started < 11
    assert (
        b" 400 " in answer and b"body_too_slow" in answer and b"connection: close" in answer.lower()
    )
    assert server.chat().status_code == 200
    server.settle()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Room for one at work and one who waits, with keys."""
    served = Served(
        tmp_path_factory.mktemp("small") / "log",
        "--api-key",
        KEY,
        "--api-key",
        "another",
        "--max-num-seqs",
        "4",
        "--max-num-queued-reqs",
        "1",
        "--max-num-reqs-per-key",
        "3",
        "--request-timeout",
        "3",
        "--queue-timeout",
        "1",
        "--engine-timeout",
        "2",
        "--shutdown-timeout",
        "20",
    )
    yield served
    served.client.close()
    if served.process.poll() is None:
        served.process.kill()


def test_keys_are_asked_for_on_every_path(small: Served) -> None:
    schema = small.client.get("/openapi.json", headers={"Authorization": f"Bearer {KEY}"}).json()
    paths = [
        *schema["paths"],
        "/",
        "/openapi.json",
        "/docs",
        "/none",
        "//health",
        "/health/",
        "/v1/health",
        "/HEALTH",
    ]
    free = {"/health", "/v1/health/live", "/v1/health/ready"}
    for path in paths:
        for method in ("GET", "POST", "OPTIONS", "HEAD", "PUT"):
            for headers in (
                {},
                {"Authorization": "Bearer wrong"},
                {"Authorization": f"Bearer {KEY[:-1]}"},
                {"Authorization": KEY},
                {"Authorization": f"Basic {KEY}"},
                {"Host": "a/health?x="},
            ):
                answer = small.client.request(method, path, headers=headers)
                if path in free:
                    assert answer.status_code in (200, 405)
                else:
                    assert (
                        answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
                    ), path
                    assert method == "HEAD" or answer.json()["error"]["code"] == "invalid_api_key"
    double = [("Authorization", "Bearer wrong"), ("Authorization", f"Bearer {KEY}")]
    assert small.client.get("/v1/models", headers=double).status_code == 401
    for right in (
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": "bearer another"},
        {"X-Moondream-Auth": KEY},
    ):
        assert small.client.get("/v1/models", headers=right).status_code == 200


def test_a_browser_asks_its_user_for_the_key(small: Served) -> None:
    asked = small.client.get("/", headers={"Accept": "text/html,*/*"})
    assert asked.status_code == 401 and asked.headers["www-authenticate"].startswith("Basic realm=")
    page = small.client.get("/", auth=("anybody", KEY))
    assert page.status_code == 200 and "<html" in page.text
    assert small.client.get("/", auth=(KEY, "")).status_code == 401
    foreign = {
        "Origin": "https://elsewhere.example"
    }  # a browser sends such a password to whatever asks here
    assert (
        small.client.post(
            "/v1/chat/completions", auth=("", KEY), headers=foreign, json={}
        ).status_code
        == 403
    )


def test_a_full_server_refuses_before_it_reads(small: Served) -> None:
    with streaming(small, KEY, n=4), ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(small.chat, key=KEY) for _ in range(2)]
        until = time.monotonic() + 5
        while (
            small.numbers("another")["mmdiff_requests_in_flight"] < 3 and time.monotonic() < until
        ):
            time.sleep(0.02)
        refused = small.chat(key=KEY)
        assert (
            code(refused) == (429, "rate_limited")
            and 1 <= int(refused.headers["retry-after"]) <= 30
        )
        more = [pool.submit(small.chat, key="another") for _ in range(6)]
        ends = [
            code(each.result()) for each in [*waiting, *more] if each.result().status_code != 200
        ]
        assert (503, "queue_full") in ends and (503, "queue_timeout") in ends
        with socket.create_connection(
            ("127.0.0.1", small.port)
        ) as never:  # no byte of its body comes
            never.settimeout(5)
            for _ in range(5):
                pool.submit(small.chat, key="another")
            time.sleep(0.2)
            never.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"
                b"Authorization: Bearer another\r\n"
                b"Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
            )
            assert never.recv(4096).startswith((b"HTTP/1.1 503 ", b"HTTP/1.1 429 "))
    small.settle(KEY)


def test_an_answer_that_takes_too_long_ends_as_it_stands(small: Served) -> None:
    """The four rows have 3 seconds, and then one step; test_engine has the same without a clock."""
    started = time.monotonic()
    answer = small.chat(key=KEY, n=4, seed=1, **SLOW).json()
    assert answer["mmdiff"]["truncated_by"] == "deadline" and 3 < time.monotonic() - started < 15
    assert "length" in [choice["finish_reason"] for choice in answer["choices"]]
    small.settle(KEY)


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_an_engine_that_dies_or_hangs_is_replaced(small: Served, fault: signal.Signals) -> None:
    small.wait()
    with streaming(small, KEY, n=2) as lines, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(small.chat, key=KEY, n=2, **SLOW)
        until = time.monotonic() + 5
        while small.numbers(KEY)["mmdiff_requests_running"] < 2 and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(small.engine(), fault)
        struck = time.monotonic()
        rest = [line for line in lines if line]
        assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "engine_dead"
        assert rest[-1] == "data: [DONE]"
        assert code(waiting.result()) == (500, "engine_dead")
        assert time.monotonic() - struck < (2 if fault is signal.SIGKILL else 6)
    dead = small.client.get("/health")
    assert code(dead) == (503, "engine_dead")
    assert code(small.chat(key=KEY)) == (503, "model_loading")
    assert small.client.get("/v1/health/live").status_code == 200
    small.wait()
    assert small.chat(key=KEY).status_code == 200
    small.settle(KEY)


def test_sigterm_lets_everybody_finish(small: Served) -> None:
    small.wait()
    with streaming(small, KEY, n=1) as lines:
        small.process.send_signal(signal.SIGTERM)
        small.wait("/v1/health/ready", 503, 5)
        assert small.client.get("/v1/health/live").status_code == 200
        assert code(small.chat(key=KEY)) == (503, "shutting_down")
        rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]" and '"error"' not in rest[-2]
    small.client.close()
    assert small.process.wait(20) == 0
    assert children(small.process.pid) == []


def test_past_its_time_and_when_killed_the_server_leaves_nothing(serve: Start) -> None:
    hurried, killed = serve("--shutdown-timeout", "1", wait=False), serve(wait=False)
    hurried.wait()
    with streaming(hurried, n=8) as lines:
        hurried.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
        assert '"shutting_down"' in rest[-2] and rest[-1] == "data: [DONE]"
    assert hurried.process.wait(20) == 1
    killed.wait()
    family = [pid for pid, _ in children(killed.process.pid)]
    assert len(family) == 3
    killed.process.kill()
    killed.process.wait()
    until = time.monotonic() + 5
    while (
        left := [pid for pid in family if os.path.exists(f"/proc/{pid}")]
    ) and time.monotonic() < until:
        time.sleep(0.05)
    assert left == []


def test_a_model_that_cannot_be_loaded_ends_in_one_sentence(serve: Start) -> None:
    served = serve("--dtype", "float7", wait=False)
    assert served.process.wait(300) == 2
    assert "mmdiff: dtype='float7' does not fit" in served.log.read_text()
    assert "Traceback" not in served.log.read_text()
