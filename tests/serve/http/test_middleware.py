"""The security middleware: keys, origins, bodies, headers, and what is logged."""

import asyncio
import base64
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from mmdiff.serve.errors import ApiError
from mmdiff.serve.http.middleware import SecurityMiddleware
from mmdiff.serve.options import ServerOptions

KEYS = ServerOptions(api_keys=("one", "another"))
ONE = {"Authorization": "Bearer one"}


async def reading(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads its body, and tells the name of the key."""
    while (await receive()).get("more_body"):
        pass
    await answering(scope, receive, send)


async def answering(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads nothing."""
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"cache-control", b"max-age=9")],
        }
    )
    await send({"type": "http.response.body", "body": scope["state"]["key"].encode()})


class Asked:
    """One request through the middleware, and what came of it."""

    def __init__(  # noqa: PLR0913
        self,
        options: ServerOptions,
        headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
        *,
        path: str = "/v1/models",
        method: str = "POST",
        body: Sequence[bytes] = (b"",),
        app: ASGIApp = reading,
        pause: float = 0.0,
        leaves: bool = False,
        endless: bool = False,
        files: Sequence[str] = (),
    ) -> None:
        given = [
            ("host", "localhost:8000"),
            *(headers.items() if isinstance(headers, Mapping) else headers),
        ]
        if any(name.lower() == "host" for name, _ in given[1:]):
            del given[0]
        self.sent: list[dict[str, Any]] = []
        self.rejected: list[str] = []
        self.answered: list[tuple[str, str, int | None]] = []
        self.received = 0
        parts = list(body)

        async def receive() -> dict[str, Any]:
            if self.received and pause:
                await asyncio.sleep(pause)
            self.received += 1
            if leaves:
                return {"type": "http.disconnect"}
            part = parts[0] if endless else parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": endless or bool(parts)}

        async def send(message: Any) -> None:
            self.sent.append(message)

        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in given]
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": raw,
        }
        guard = SecurityMiddleware(
            app, options, self.rejected.append, lambda *what: self.answered.append(what), files
        )
        asyncio.run(guard(self.scope, receive, send))
        starts = [message for message in self.sent if message["type"] == "http.response.start"]
        assert len(starts) <= 1
        self.status = starts[0]["status"] if starts else None
        self.headers = (
            {name.decode(): value.decode() for name, value in starts[0]["headers"]}
            if starts
            else {}
        )
        self.body = b"".join(message.get("body", b"") for message in self.sent)

    @property
    def refusal(self) -> tuple[int | None, str]:
        return self.status, json.loads(self.body)["error"]["code"]


def basic(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize("options", [ServerOptions(), KEYS], ids=["without keys", "with keys"])
def test_foreign_pages_may_not_use_a_key_of_their_visitor(options: ServerOptions) -> None:
    for origin in (
        "http://evil.example",
        "null",
        "http://localhost",
        "http://localhost:8000.evil.example",
        "",
    ):
        refused = Asked(options, {**ONE, "Origin": origin})
        assert refused.refusal == (403, "origin_not_allowed") and refused.rejected == [
            "origin_not_allowed"
        ]
        assert "www-authenticate" not in refused.headers
    for origin in ("http://localhost:8000", "https://localhost:8000"):
        assert Asked(options, {**ONE, "Origin": origin}).status == 200


def test_pages_that_are_allowed_may_ask() -> None:
    named = ServerOptions(api_keys=("one",), allowed_origins=("https://page.example",))
    assert Asked(named, {**ONE, "Origin": "https://page.example"}).status == 200
    assert Asked(named, {**ONE, "Origin": "https://other.example"}).status == 403
    assert (
        Asked(ServerOptions(allowed_origins=("*",)), {"Origin": "https://other.example"}).status
        == 200
    )


def test_the_page_s_own_files_and_what_a_browser_says_is_the_same_origin_are_let_in() -> None:
    foreign, files = {**ONE, "Origin": "http://evil.example"}, ("/page.js",)
    for method, path, status in (
        ("GET", "/page.js", 200),
        ("HEAD", "/page.js", 200),
        ("POST", "/page.js", 403),
        ("GET", "/v1/models", 403),
    ):
        assert Asked(KEYS, foreign, method=method, path=path, files=files).status == status
    for said, status in (
        ("same-origin", 200),
        ("same-site", 403),
        ("cross-site", 403),
        ("none", 403),
    ):
        assert Asked(KEYS, {**foreign, "Sec-Fetch-Site": said}).status == status


def test_the_host_of_an_allowed_origin_is_answered_to() -> None:
    options = ServerOptions(allowed_origins=("https://page.example",))
    assert Asked(options, {"Host": "page.example"}).status == 200
    assert Asked(options, {"Host": "other.example"}).status == 403


async def telling(scope: Scope, receive: Receive, send: Send) -> None:
    """Tells how the routes see the request."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send(
        {
            "type": "http.response.body",
            "body": f"{scope['method']} {scope.get('root_path')}".encode(),
        }
    )


def test_a_head_is_routed_as_a_get_and_a_proxy_s_prefix_is_the_root() -> None:
    for method, prefix, told in (
        ("HEAD", "/models/a", b"GET /models/a"),
        ("POST", "/a/", b"POST /a"),
        ("GET", "//evil.example", b"GET None"),
        ("GET", "/a b", b"GET None"),
        ("GET", "", b"GET None"),
    ):
        assert (
            Asked(ServerOptions(), {"X-Forwarded-Prefix": prefix}, method=method, app=telling).body
            == told
        )


def test_either_key_opens_and_each_has_its_own_name() -> None:
    names = [Asked(KEYS, {"Authorization": f"Bearer {key}"}).body for key in KEYS.api_keys]
    assert len(set(names)) == 2 and all(len(name) == 12 for name in names)
    assert Asked(ServerOptions()).body == b""


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer two"},
        {"Authorization": f"Basic {basic('one:')}"},
        {"Authorization": f"Basic {basic('one:two')}"},
        {"Authorization": "Basic !" + basic(":one")},
        {"Authorization": "one"},
        [("Authorization", "Bearer one"), ("Authorization", "Bearer two")],
        [("Authorization", "Bearer one"), ("X-Moondream-Auth", "one")],
    ],
)
def test_a_key_is_given_once_and_in_its_header(headers: Any) -> None:
    refused = Asked(KEYS, headers)
    assert refused.refusal == (401, "invalid_api_key") and refused.rejected == ["invalid_api_key"]
    assert refused.headers["www-authenticate"] == "Bearer"


def test_a_password_or_moondream_s_header_is_a_key_too() -> None:
    for headers in ({"Authorization": f"Basic {basic('name:one')}"}, {"X-Moondream-Auth": "one"}):
        assert Asked(KEYS, headers).status == 200


def test_paths_of_health_and_nothing_behind_them_are_open() -> None:
    assert Asked(KEYS, path="/health", method="GET").status == 200
    assert Asked(KEYS, path="/health/keys", method="GET").status == 401


def test_without_a_key_only_this_machine_s_own_names_are_answered_to() -> None:
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:80", "[::1]:8000"):
        assert Asked(ServerOptions(), {"Host": host}).status == 200
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", ""):
        refused = Asked(ServerOptions(), {"Host": host})
        assert refused.refusal == (403, "host_not_allowed") and refused.rejected == [
            "host_not_allowed"
        ]
    for options in (ServerOptions(host="0.0.0.0"), ServerOptions(uds="/run/mmdiff"), KEYS):
        assert Asked(options, {**ONE, "Host": "any.example"}).status == 200


def test_a_request_id_is_kept_where_it_can_be_logged() -> None:
    assert Asked(ServerOptions(), {"X-Request-Id": "a.b_c-9"}).headers["x-request-id"] == "a.b_c-9"
    for name in ("two words", "", "x" * 65, "a\tb"):
        made = Asked(ServerOptions(), {"X-Request-Id": name}).headers["x-request-id"]
        assert made != name and len(made) == 24


def test_a_body_may_have_just_so_many_bytes() -> None:
    options = ServerOptions(max_body=10)
    for parts in ([b"x" * 10], [b"x" * 5, b"x" * 5]):
        assert Asked(options, body=parts).status == 200
        assert Asked(options, {"Content-Length": "10"}, body=parts).status == 200
    for parts in ([b"x" * 11], [b"x" * 6, b"x" * 5], [b"x" * 5, b"x" * 6]):
        assert Asked(options, body=parts).refusal == (413, "body_too_large")
    assert Asked(options, {"Content-Length": "11"}, body=[b"x"]).refusal == (413, "body_too_large")
    for length in ("ten", "-1", "1.0", "\xb2", ""):
        assert Asked(options, {"Content-Length": length}).refusal == (400, "invalid_request")


def test_bytes_that_came_buy_time_for_the_rest() -> None:
    options = ServerOptions(body_grace=0.05, body_rate=100)
    assert Asked(options, body=[b"x" * 100, b"x"], pause=0.15).status == 200
    assert Asked(options, body=[b"x", b"x"], pause=0.15).refusal == (400, "body_too_slow")


def test_what_the_application_says_of_itself_stays_and_the_rest_is_added() -> None:
    headers = Asked(ServerOptions()).headers
    assert headers["cache-control"] == "max-age=9" and headers["x-frame-options"] == "DENY"
    assert headers["content-security-policy"].startswith("default-src 'none'")


def test_a_connection_whose_body_was_not_read_is_closed() -> None:
    assert "connection" not in Asked(ServerOptions()).headers
    assert Asked(ServerOptions(), app=answering).headers["connection"] == "close"
    assert "connection" not in Asked(ServerOptions(), app=answering, method="GET").headers
    for name, value in (("Content-Length", "5"), ("Transfer-Encoding", "chunked")):
        assert (
            Asked(ServerOptions(), {name: value}, app=answering, method="GET").headers["connection"]
            == "close"
        )


def test_some_of_a_refused_body_is_taken_and_not_all_of_it() -> None:
    refused = Asked(KEYS, body=[b"x" * (1 << 20)], endless=True)
    assert refused.status == 401 and refused.received == 4
    assert refused.sent[-1] == {"type": "http.response.body", "body": b""}


def test_only_a_page_s_reader_is_asked_for_a_password() -> None:
    assert (
        Asked(KEYS, {"Accept": "text/html"}).headers["www-authenticate"].startswith("Basic realm=")
    )


async def failing(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/late":
        await send({"type": "http.response.start", "status": 200, "headers": []})
    raise ApiError(422, "odd", "an odd one") if scope["path"] == "/odd" else RuntimeError("secret")


def test_faults_end_in_one_answer_that_tells_nothing() -> None:
    assert Asked(ServerOptions(), app=failing).refusal == (500, "internal_error")
    assert b"secret" not in Asked(ServerOptions(), app=failing).body
    odd = Asked(ServerOptions(), app=failing, path="/odd")
    assert odd.refusal == (422, "odd") and odd.rejected == []
    late = Asked(ServerOptions(), app=failing, path="/late")
    assert late.status == 200 and late.body == b""  # it has begun, and cannot be taken back


def test_a_client_that_leaves_is_logged_as_such(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mmdiff.serve")
    gone, there = Asked(ServerOptions(), leaves=True), Asked(ServerOptions())
    assert gone.sent == [] and gone.answered == [("POST", "/v1/models", None)]
    assert there.status == 200 and there.answered == [("POST", "/v1/models", 200)]
    assert [record.args[3] for record in caplog.records if record.args] == [499, 200]  # type: ignore[index]
