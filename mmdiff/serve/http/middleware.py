"""Security middleware: API keys, hosts and origins, limits on bodies, and one shape for errors.

Keys are required on every path but those of health, whether or not it exists. Bodies have a largest
size and a slowest rate. Every error leaves in the shape of errors.py, without paths or tracebacks
of ours.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from base64 import b64decode
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmdiff.config import shown
from mmdiff.serve.errors import ApiError, Disconnected
from mmdiff.serve.options import ServerOptions

log = logging.getLogger("mmdiff.serve")
OPEN_PATHS = ("/health", "/v1/health/live", "/v1/health/ready")
REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
PREFIX = re.compile(r"(/[A-Za-z0-9_.~-]{1,64}){1,8}")
LOCAL_HOST = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?")
# of a refused body, so that its sender sees the refusal
DRAINED_BYTES, DRAINED_SECONDS = 4 << 20, 1.0
BODILESS = ("GET", "HEAD", "OPTIONS")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
POLICY = "default-src 'none'; frame-ancestors 'none'"


class SecurityMiddleware:
    """The outermost layer of the application."""

    def __init__(
        self,
        app: ASGIApp,
        options: ServerOptions,
        rejected: Callable[[str], None],
        answered: Callable[[str, str, int | None], None] = lambda method, path, status: None,
        files: Collection[str] = (),
    ) -> None:
        """
        Args:
            rejected: called with the code of each request that is not authorized.
            answered: called with method, path and status of each request in the end; None where its
                client left.
            files: paths of the page's own files, which browsers may fetch for a page of any origin.
        """
        self.app, self.options = app, options
        self.rejected, self.answered = rejected, answered
        self.files = frozenset(files)
        self.keys = [hashlib.sha256(key.encode()).digest() for key in options.api_keys]
        self.hosts = {urlsplit(origin).netloc for origin in options.allowed_origins} - {""}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        state = scope.setdefault("state", {})
        state["id"] = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(12)
        answer = _GuardedExchange(scope, receive, send, self.options)
        started = time.monotonic()
        try:
            state["key"] = self._key(scope["path"], scope["method"], headers)
            answer.check_length(headers)
            await self.app(_routed(scope, headers), answer.receive, answer.send)
        except ApiError as error:
            if error.status in (401, 403):
                self.rejected(error.code)
            await answer.refuse(error)
        except Disconnected:
            state["gone"] = True
        except Exception:
            log.exception("request %s failed", state["id"])
            await answer.refuse(ApiError(500, "internal_error", "the server could not answer this"))
        finally:
            status = None if "gone" in state else answer.status
            self.answered(scope["method"], scope["path"], status)
            path = scope["path"][:80].encode("ascii", "backslashreplace").decode()
            log.log(
                logging.DEBUG if path in OPEN_PATHS else logging.INFO,
                "%s %s %s %s %.0f ms",
                state["id"],
                scope["method"],
                path,
                status or 499,
                1000 * (time.monotonic() - started),
            )

    def _key(self, path: str, method: str, headers: Headers) -> str:
        """A name for the key that was given, to count its requests by.

        Raises:
            ApiError: it is missing or wrong, or the request is another site's page's.
        """
        if path in OPEN_PATHS:
            return ""
        if not self.keys:
            self._check_host(headers.get("host", "").lower())
            self._check_origin(path, method, headers)
            return ""
        digest = hashlib.sha256(_given_key(headers)).digest()
        # all of them are compared, whichever fits, so that the time is the same
        right = [hmac.compare_digest(digest, known) for known in self.keys]
        if not any(right):
            raise ApiError(401, "invalid_api_key", "send your key as `Authorization: Bearer KEY`")
        self._check_origin(path, method, headers)
        return digest.hex()[:12]

    def _check_host(self, host: str) -> None:
        """Without a key, a name that resolves to this machine must not make it answer a page."""
        known = LOCAL_HOST.fullmatch(host) or host in self.hosts
        if self.options.on_loopback and not known:
            raise ApiError(
                403,
                "host_not_allowed",
                f"without a key, this server answers to localhost only, not to {shown(host)}: "
                "start it with --api-key, or with --allowed-origins for that name",
            )

    def _check_origin(self, path: str, method: str, headers: Headers) -> None:
        """Same-origin pages may send requests, by the name that their browser uses; others only
        where allowed."""
        origin, host = headers.get("origin"), headers.get("host")
        ours = (f"http://{host}", f"https://{host}", *self.options.allowed_origins)
        if origin is None or origin in ours or "*" in self.options.allowed_origins:
            return
        if path in self.files and method in ("GET", "HEAD"):  # the same for all clients
            return
        # set by browsers, and not by pages
        if headers.get("sec-fetch-site") == "same-origin":
            return
        raise ApiError(
            403,
            "origin_not_allowed",
            f"pages of {shown(origin)} may not send requests here: let the proxy pass on "
            "the Host of the request, or start with --allowed-origins",
        )


def _routed(scope: Scope, headers: Headers) -> Scope:
    """The request as the routes see it: HEAD is GET whose body is not sent, and a proxy's prefix is
    the root path."""
    prefix = headers.get("x-forwarded-prefix", "").rstrip("/")
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    routed = {**scope, "method": method}
    if PREFIX.fullmatch(prefix):
        routed["root_path"] = prefix
    return routed


def _given_key(headers: Headers) -> bytes:
    """The one key of a request; of what a browser asks its user for (Basic) the password. Empty
    where there is none."""
    values = headers.getlist("authorization")
    values += [f"Bearer {key}" for key in headers.getlist("x-moondream-auth")]
    if len(values) != 1:
        return b""
    scheme, _, key = values[0].partition(" ")
    if scheme.lower() == "bearer":
        return key.strip().encode("utf-8", "surrogateescape")
    if scheme.lower() != "basic":
        return b""
    try:
        return b64decode(key, validate=True).partition(b":")[2]
    except ValueError:
        return b""


class _GuardedExchange:
    """One request's messages in both directions."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, options: ServerOptions) -> None:
        self.scope, self.options = scope, options
        self._receive, self._send = receive, send
        self.status: int | None = None
        self.got, self.started = 0, 0.0
        has_body = any(
            name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"]
        )
        self.body_over = scope["method"] in BODILESS and not has_body

    def check_length(self, headers: Headers) -> None:
        length = headers.get("content-length")
        if length is not None and (not length.isascii() or not length.isdigit()):
            raise ApiError(400, "invalid_request", "Content-Length is not a number")
        if length is not None and int(length) > self.options.max_body:
            raise self._too_large()

    async def receive(self) -> Message:
        """The next message, unless the body is too large or comes too slowly."""
        if self.body_over:
            return await self._receive()
        self.started = self.started or time.monotonic()
        due = self.started + self.options.body_grace + self.got / self.options.body_rate
        try:
            async with asyncio.timeout(max(0.0, due - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(400, "body_too_slow", "the body comes in too slowly") from None
        if message["type"] == "http.disconnect":
            raise Disconnected
        self.got += len(message.get("body", b""))
        self.body_over = not message.get("more_body", False)
        if self.got > self.options.max_body:
            raise self._too_large()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Content-Security-Policy", POLICY)
            headers["X-Request-Id"] = self.scope["state"]["id"]
            if not self.body_over:
                headers["Connection"] = "close"
        elif (
            message["type"] == "http.response.body"
            and not message.get("more_body")
            and not self.body_over
        ):
            await self._bounded({**message, "more_body": True})
            await self._drain()
            message = {"type": "http.response.body", "body": b""}
        await self._bounded(message)

    async def _bounded(self, message: Message) -> None:
        """Sent, unless its reader does not read."""
        try:
            async with asyncio.timeout(self.options.reader_timeout):
                await self._send(message)
        except (TimeoutError, OSError):
            raise Disconnected from None

    async def _drain(self) -> None:
        """Read some more of a refused body, or the refusal is lost in the reset of the
        connection."""
        try:
            async with asyncio.timeout(DRAINED_SECONDS):
                drained = 0
                while not self.body_over and drained < DRAINED_BYTES:
                    message = await self._receive()
                    drained += len(message.get("body", b""))
                    self.body_over = message["type"] == "http.disconnect" or not message.get(
                        "more_body", False
                    )
        except TimeoutError:
            pass
        self.body_over = True

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error, if nothing was answered yet."""
        if self.status is not None:
            return
        body = json.dumps(error.body).encode()
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **error.headers,
        }
        if error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
            accepted = Headers(scope=self.scope).get("accept", "")
            if "text/html" in accepted:  # a browser, which asks its user for the key
                headers["WWW-Authenticate"] = 'Basic realm="the key as password"'
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        try:
            await self.send({"type": "http.response.start", "status": error.status, "headers": raw})
            await self.send({"type": "http.response.body", "body": body})
        except Disconnected:
            pass

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            "body_too_large",
            f"the body has more than the {self.options.max_body:,} bytes allowed",
        )


def state_of(request: Any) -> dict[str, Any]:
    """What the middleware knows of a request: `id` and `key`."""
    return dict(request.scope["state"])
