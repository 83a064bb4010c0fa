"""uvicorn's HTTP/1.1 protocol with limits that hold for every request on a connection.

uvicorn bounds neither the size nor the time of headers, keeps the trailers of a chunked body, and
parses requests that are sent ahead (pipelining) while an answer is on its way. Here what arrives is
parsed in small pieces and no further than to the next request, so that what a connection makes the
server hold beside an admitted body is below a mebibyte.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from mmdiff.serve.errors import ApiError
from mmdiff.serve.http.middleware import DRAINED_BYTES, DRAINED_SECONDS, HEADERS

HEAD_BYTES, HEAD_FIELDS = 64 << 10, 100  # of a request line with its headers
# from a request's first byte, or the connection's start, to the end of the headers
HEAD_SECONDS = 10.0
# of a chunked body (sizes, extensions, trailers), beyond as much as the body itself
FRAMING_BYTES = 64 << 10
WRITE_SECONDS = 40.0  # for which a client may take nothing of what waits for it
PIECE = 1 << 10  # bytes parsed at once: few requests fit into it
TURN = 32 << 10  # bytes parsed before other connections have their turn

HEADERS_TOO_LARGE = ApiError(
    431,
    "headers_too_large",
    f"the request has more than {HEAD_BYTES >> 10} KiB or "
    f"{HEAD_FIELDS} fields of headers: send fewer or shorter ones",
)
BAD_FRAMING = ApiError(
    400,
    "invalid_request",
    "the body's chunks are too small or carry too much beside the body: "
    "send larger ones, or a Content-Length",
)
MALFORMED = ApiError(400, "invalid_request", "this is not an HTTP/1.1 request")


class _Flow(FlowControl):
    """Keeps reading paused while received bytes wait to be parsed."""

    waiting = False

    def resume_reading(self) -> None:
        if not self.waiting:
            super().resume_reading()


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with limits on headers, framing, pipelining and idle peers."""

    flow: _Flow

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._waiting = bytearray()  # received, not yet parsed
        self._in_head = True  # outside of any body
        self._begun = False  # after the first byte of a request
        self._head_bytes = self._fields = 0
        self._body_bytes = self._sent_bytes = 0
        self._refeeding = False  # a head that was read already
        self._silent_bytes = 0  # since the parser last came to something new
        self._moved = False
        self._reason: ApiError | None = None  # why a callback stopped the parser
        self._refusal: ApiError | None = None  # after which nothing is parsed
        self._dropped = 0
        self._active: RequestResponseCycle | None = None  # the request that is being answered
        self._turn: asyncio.Handle | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}

    # What asyncio calls

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for name in list(self._timers):  # they hold on to all that the connection had
            self._stop_timer(name)
        if self._turn is not None:
            self._turn.cancel()
        self._waiting.clear()
        self.flow.waiting = False
        # uvicorn notifies the newest request only
        if self._active is not None and not self._active.response_complete:
            self._active.disconnected = True
            self._active.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._refusal is None:
            self._waiting += data
            self._parse()
            return
        self._dropped += len(data)
        if self._dropped > DRAINED_BYTES and "refused" in self._timers:
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_timer("write", WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_timer("write")

    # Parsing

    def _parse(self) -> None:
        """Parse what waits: at most to the next request while one is being answered, and at most
        TURN bytes."""
        self._turn, parsed = None, 0
        while self._waiting and parsed < TURN and not self.pipeline and self._refusal is None:
            piece = bytes(self._waiting[:PIECE])
            del self._waiting[:PIECE]
            parsed += len(piece)
            self._feed(piece)
        if self.transport.is_closing():
            return
        self.flow.waiting = bool(self._waiting)
        if self._waiting:
            self.flow.pause_reading()
            if not self.pipeline:
                self._turn = self.loop.call_soon(self._parse)
        elif not self.pipeline and (self.cycle is None or len(self.cycle.body) <= HIGH_WATER_LIMIT):
            self.flow.resume_reading()
        self._watch_head()

    def _feed(self, piece: bytes) -> None:
        self._moved = False
        try:
            self.parser.feed_data(piece)
        # answered as HTTP/1.1, whatever else was proposed
        except httptools.HttpParserUpgrade as upgrade:
            if not self._in_head:
                self._refeed_head()
            if rest := piece[upgrade.args[0] :]:
                self._feed(rest)
            return
        except httptools.HttpParserError:
            self._refuse(self._reason or MALFORMED)
            return
        self._silent_bytes = 0 if self._moved else self._silent_bytes + len(piece)
        if self._in_head and self._silent_bytes > HEAD_BYTES:
            self._refuse(HEADERS_TOO_LARGE)
        elif not self._in_head:
            self._sent_bytes += len(piece)
            if max(self._silent_bytes, self._sent_bytes - 2 * self._body_bytes) > FRAMING_BYTES:
                self._refuse(BAD_FRAMING)

    def _refeed_head(self) -> None:
        """Have a new parser read the body of a request that proposed an upgrade: the old one leaves
        it out."""
        kept = {
            name: value
            for name, value in self.headers
            if name in (b"content-length", b"transfer-encoding")
        }
        self.parser = httptools.HttpRequestParser(self)
        self._refeeding = True
        lines = b"".join(b"%s: %s\r\n" % pair for pair in kept.items())
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + lines + b"\r\n")
        self._refeeding = False

    def on_message_begin(self) -> None:
        if self._refeeding:
            return
        super().on_message_begin()
        self._moved = True
        self._in_head, self._begun = True, True
        self._head_bytes, self._fields = 0, 0
        self._body_bytes, self._sent_bytes = 0, 0

    def on_url(self, url: bytes) -> None:
        if self._refeeding:
            return
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._refeeding:
            return
        self._fields += 1
        self._count(len(name) + len(value) + 4)
        if self._in_head:  # trailers are counted and dropped
            super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES or self._fields > HEAD_FIELDS:
            self._reason = HEADERS_TOO_LARGE
            raise ValueError  # it stops the parser

    def on_headers_complete(self) -> None:
        if self._refeeding:
            return
        super().on_headers_complete()
        self._moved = True
        self._in_head, self._begun = False, False

    def on_chunk_header(self) -> None:
        self._moved = True

    def on_body(self, body: bytes) -> None:
        self._moved = True
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._moved = True
        names = {name for name, _ in self.headers}
        if self.parser.should_upgrade() and names & {b"content-length", b"transfer-encoding"}:
            return  # the body is still to come
        super().on_message_complete()
        self._in_head = True

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._refusal is not None and not self._answering:
            self._send_refusal(self._refusal)
        elif self._waiting and not self.pipeline and self._turn is None:
            self._turn = self.loop.call_soon(self._parse)
        self._watch_head()

    @property
    def _answering(self) -> bool:
        """Whether an answer is owed."""
        return bool(self.pipeline) or (
            self._active is not None and not self._active.response_complete
        )

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active = cycle
        super()._start_asgi_task(cycle, app)

    # Refusing

    def refused(self, error: ApiError) -> None:
        """Called with each refusal that no application sees; for subclasses."""

    def _refuse(self, error: ApiError) -> None:
        """Parse no more; refuse once the requests before are answered."""
        self._refusal = error
        self._waiting.clear()
        if not self._in_head:  # the body of the newest request cannot be read on
            if self.pipeline and self.pipeline[0][0] is self.cycle:
                self.pipeline.popleft()
            elif self._answering:
                self._abandon(self.cycle)
        if not self._answering or self.cycle.disconnected:
            self._send_refusal(error)

    def _abandon(self, cycle: RequestResponseCycle) -> None:
        """To its application the client is gone."""
        cycle.disconnected = True
        cycle.message_event.set()
        if cycle.response_started:
            self.transport.close()

    def _send_refusal(self, error: ApiError) -> None:
        if self.transport.is_closing():
            return
        self.refused(error)
        body = json.dumps(error.body).encode()
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
            "X-Request-Id": secrets.token_hex(12),
            **HEADERS,
        }
        lines = "".join(f"{name.lower()}: {value}\r\n" for name, value in headers.items())
        self.transport.write(STATUS_LINE[error.status] + f"{lines}\r\n".encode() + body)
        self.flow.waiting = False
        self.flow.resume_reading()  # what still comes is dropped, or the refusal is lost in a reset
        self._start_timer("refused", DRAINED_SECONDS, self.transport.close)

    # Timers

    def _watch_head(self) -> None:
        """A request that has begun, or the first one, has HEAD_SECONDS for its headers."""
        begun = self.cycle is None or self._begun or self._silent_bytes > 0
        if self._in_head and begun and not self._answering and self._refusal is None:
            self._start_timer("head", HEAD_SECONDS, self.transport.close)
        else:
            self._stop_timer("head")

    def _start_timer(self, name: str, seconds: float, then: Callable[[], None]) -> None:
        if name not in self._timers:
            self._timers[name] = self.loop.call_later(seconds, then)

    def _stop_timer(self, name: str) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()
