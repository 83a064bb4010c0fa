"""Parts that need no server: streaming text, limits, fetching, messages between processes."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncGenerator, Iterator
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response

from mmdiff.config import DecodingConfig
from mmdiff.serve.engine import ipc
from mmdiff.serve.engine.client import EngineClient, PendingRequest, Silence, StreamEvent
from mmdiff.serve.engine.detokenizer import StreamingText, cut, held_back
from mmdiff.serve.engine.messages import (
    AnswerRequest,
    Done,
    DraftMade,
    SegmentTranscribed,
    Started,
    TextAdded,
    decode,
    encode,
)
from mmdiff.serve.errors import ApiError, Disconnected, engine_dead
from mmdiff.serve.http.limiter import FairSemaphore, RequestLimiter
from mmdiff.serve.http.middleware import SecurityMiddleware
from mmdiff.serve.http.parsing import parse_json_strict, validated
from mmdiff.serve.http.responses import Completion, EngineResponse
from mmdiff.serve.http.route_chat import fit_length
from mmdiff.serve.http.schemas import ChatRequest
from mmdiff.serve.http.state import AppState
from mmdiff.serve.media import fetch
from mmdiff.serve.media.parse import unpacked_url
from mmdiff.serve.media.pool import MediaPool
from mmdiff.serve.options import MediaLimits, ServerOptions
from mmdiff.transcript import Segment, Word


def test_what_is_told_joined_is_the_answer() -> None:
    for answer, stops in (
        ("a red circle and a star", ["and", "star"]),
        ("a b  c", ["z"]),
        ("né é", []),
        ("stop", ["stop"]),
    ):
        told = StreamingText(stops)
        pieces = [told.push(answer[:end]) for end in range(len(answer) + 1)]
        whole = cut(answer, stops)[0].rstrip()
        assert "".join(pieces) + ("" if told.stopped else told.finish(answer)) == whole
    assert held_back("a sto", ["stop", "other"]) == 3 and held_back("a", ["b"]) == 0


def test_rows_are_given_in_turn() -> None:
    async def play() -> list[str]:
        rows, order = FairSemaphore(4), []

        async def one(name: str, count: int, seconds: float) -> None:
            await rows.take(count)
            order.append(name)
            await asyncio.sleep(seconds)
            rows.give(count)

        tasks = [
            asyncio.create_task(one(*each))
            for each in (
                ("a", 3, 0.02),
                ("large", 4, 0.01),
                ("b", 1, 0.01),
                ("gone", 2, 0.01),
                ("c", 1, 0.01),
            )
        ]
        await asyncio.sleep(0.005)
        tasks[3].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert rows.free == 4
        return order

    assert asyncio.run(play()) == ["a", "large", "b", "c"]


def test_every_request_that_comes_in_is_counted_once() -> None:
    limiter = RequestLimiter(
        ServerOptions(max_num_seqs=2, max_num_queued_reqs=1, max_num_reqs_per_key=2)
    )
    for error in (
        None,
        ApiError(400, "x", "y"),
        Disconnected(),
        asyncio.CancelledError(),
        ValueError(),
    ):
        try:
            with limiter.slot("key", True):
                if error is not None:
                    raise error
        except BaseException as caught:
            assert caught is error
    assert (limiter.accepted, limiter.in_flight) == (5, 0)
    assert dict(limiter.ended) == {"completed": 2, "failed": 1, "cancelled": 2}
    with limiter.slot("a", True), limiter.slot("a", True):
        with pytest.raises(ApiError, match="in flight") as refused, limiter.slot("a", True):
            pass
        assert refused.value.status == 429
        with limiter.slot("b", True), pytest.raises(ApiError) as full, limiter.slot("b", True):
            pass
        assert (full.value.status, full.value.code) == (503, "queue_full")
    assert limiter.rejected == {"rate_limited": 1, "queue_full": 1} and not limiter.by_key


def test_frames_come_out_as_they_went_in() -> None:
    ours, theirs = socket.socketpair()
    arrays = [
        np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
        np.linspace(0, 1, 7, dtype=np.float32),
    ]
    sender = threading.Thread(target=ipc.send, args=(ours, {"op": "answer", "text": "é"}, arrays))
    sender.start()
    message, found = ipc.receive(theirs)
    assert message == {"op": "answer", "text": "é"} and all(map(np.array_equal, arrays, found))
    sender.join()
    ours.close()
    with pytest.raises(EOFError):
        ipc.receive(theirs)
    theirs.close()


def test_messages_come_out_as_they_went_in() -> None:
    segment = Segment(0.0, 1.0, "a", 0.5, token_ids=(1, 2), words=(Word(0.0, 1.0, "a", 0.5),))
    request = AnswerRequest(
        "a", [{"role": "user", "content": "b"}], DecodingConfig(steps=4), stop=["c"], schema=False
    )
    for message in (request, Started("a", 3), SegmentTranscribed("a", segment, "en"), Done("a")):
        assert decode(json.loads(json.dumps(encode(message)))) == message
    for header in ({"type": "Segment"}, {"type": "Done", "colour": 1}, {}):
        with pytest.raises(ValueError):
            decode(header)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "172.16.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "fe80::1",
        "fc00::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "::",
        "255.255.255.255",
        "198.18.0.1",
    ],
)
def test_addresses_that_are_not_public_are_not_asked(address: str) -> None:
    assert not fetch.is_public(address)


def test_public_addresses_are_known() -> None:
    assert fetch.is_public("93.184.215.14") and fetch.is_public(
        "2606:2800:21f:cb07:6820:80da:af6b:8b2c"
    )


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.example/",
        "http://pictures.example.evil.example/",
        "http://pictures.example@evil.example/",
        "http://evil.example\\@pictures.example/",
        "http://pictures.example:8080/",
        "http://pictures.example\t/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://[::1]/",
        "http://localhost/",
        "https:///a",
        "http://pictures.example./",
        "http://p\u0456ctures.example/",
        "http://127.0.0.1/",
        "http://pictures.example:99999/",
    ],
)
def test_only_named_domains_are_asked(url: str) -> None:
    with pytest.raises(ApiError) as refused:
        asyncio.run(fetch.fetch(url, "param", "image 0", 100, ["pictures.example"]))
    assert (refused.value.status, refused.value.code) == (400, "media_url_not_allowed")


def test_a_name_or_a_redirect_that_leads_inside_is_not_followed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each hop is resolved once and checked; the connection goes to the address that was
    checked."""
    asked: list[tuple[str, str]] = []
    hosts = {"pictures.example": "93.184.215.14", "inside.pictures.example": "10.0.0.1"}

    async def resolve(self: Any, host: str, port: int, **options: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (hosts[host], port))]

    async def get(scheme: str, host: str, address: str, *rest: Any) -> bytes | str:
        asked.append((host, address))
        return {
            "/": b"picture",
            "/in": "http://inside.pictures.example/",
            "/out": "http://evil.example/",
            "/round": "/round",
        }[rest[1]]

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", resolve)
    monkeypatch.setattr(fetch, "_get", get)

    def ask(path: str) -> bytes:
        return asyncio.run(
            fetch.fetch(f"http://pictures.example{path}", "p", "image 0", 100, ["pictures.example"])
        )

    assert ask("/") == b"picture"
    refusals = {
        "/in": "media_url_not_allowed",
        "/out": "media_url_not_allowed",
        "/round": "media_fetch_failed",
    }
    for path, code in refusals.items():
        with pytest.raises(ApiError) as refused:
            ask(path)
        assert refused.value.code == code
    assert {address for _, address in asked} == {"93.184.215.14"}


def test_a_host_that_misbehaves_is_named_and_not_repeated() -> None:
    """What comes back, from a server of our own that is reached past the check of its address."""
    answers = {
        "/404": b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n",
        "/503": b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n",
        "/large": b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + b"x" * 9999,
        "/reset": b"",
        "/": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    }

    async def play() -> dict[str, Any]:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            line = await reader.readline()
            writer.write(answers[line.split()[1].decode()])
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
            port, found = server.sockets[0].getsockname()[1], {}
            for path in answers:
                try:
                    found[path] = await fetch._get(
                        "http", "a.example", "127.0.0.1", port, path, 100, "p", "image 0"
                    )
                except ApiError as error:
                    found[path] = error.status
            return found

    assert asyncio.run(play()) == {
        "/404": 422,
        "/503": 502,
        "/large": 413,
        "/reset": 502,
        "/": b"ok",
    }


def test_data_urls() -> None:
    assert unpacked_url("data:image/png;charset=x;base64,YWI=", "p", "image 0") == b"ab"
    assert unpacked_url("DATA:;base64,YWI=", "p", "image 0") == b"ab"


def test_json_is_read_strictly() -> None:
    assert parse_json_strict(b'{"a": [1.5, true, null]}') == {"a": [1.5, True, None]}
    for body in (b"[" * 70 + b"]" * 70, b'{"a": {"b": 1, "b": 2}}', b"-Infinity", b"[" * 10**6):
        with pytest.raises(ApiError):
            parse_json_strict(body)


def test_names_of_others_mean_ours() -> None:
    asked = validated(
        ChatRequest,
        {
            "messages": [{"role": "user", "content": "a"}],
            "max_denoising_steps": 4,
            "canvas_length": 8,
            "remasking": "random",
        },
    )
    assert asked.changes() == {"steps": 4, "block_length": 8, "order": "random"}


@pytest.mark.parametrize(
    ("limit", "given", "length", "settings"),
    [
        (None, {}, None, {}),
        (8, {}, 8, {}),
        (100, {}, 100, {"gen_length": 128, "start_length": 32}),
        (10**6, {}, 512, {"gen_length": 512, "start_length": 32}),
        (10, {"gen_length": 64}, 10, {"gen_length": 64}),
    ],
)
def test_long_answers_get_a_canvas_that_grows(
    limit: int | None, given: dict[str, Any], length: int | None, settings: dict[str, Any]
) -> None:
    assert fit_length(limit, given, 32, 1024) == length and given == settings


def test_a_reader_that_stops_is_not_waited_for_and_misses_drafts_only() -> None:
    async def play() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            raise AssertionError("sent what nobody reads")

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.body":
                await asyncio.sleep(60)

        scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"localhost")]}
        async with asyncio.timeout(5):
            await SecurityMiddleware(app, ServerOptions(reader_timeout=0.05), print, print)(
                scope, send, send
            )  # type: ignore[arg-type]

    asyncio.run(play())
    work = PendingRequest(EngineClient(ServerOptions()), "a")
    drafts = [DraftMade("a", 0, {"step": step}) for step in range(4)]
    started, text, done = Started("a", 1), TextAdded("a", 0, "b"), Done("a")
    for event in (started, *drafts[:2], text, *drafts[2:], done):
        work.put(event)
    assert list(work._events) == [started, drafts[1], text, drafts[3], done]
    assert work.over


def test_media_workers_that_die_are_replaced() -> None:
    async def play() -> None:
        decoders = MediaPool(MediaLimits(), 1)
        await decoders.start()
        held = BytesIO()
        Image.new("RGB", (5, 3), "red").save(held, "PNG")
        try:
            first = await decoders.open("image", held.getvalue(), "image 0")
            assert first.shape == (3, 5, 3) and first[0, 0].tolist() == [255, 0, 0]
            decoders._all[0].process.kill()
            decoders._all[0].process.wait()
            assert (await decoders.open("image", held.getvalue(), "image 0")).shape == (3, 5, 3)
            with pytest.raises(ApiError) as damaged:
                await decoders.open("image", held.getvalue()[:20], "image 0")
            assert damaged.value.code == "invalid_image"
            task = asyncio.create_task(decoders.open("image", held.getvalue(), "image 0"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert (await decoders.open("image", held.getvalue(), "image 0")).shape == (3, 5, 3)
        finally:
            decoders.stop()

    asyncio.run(play())


class Engine(EngineClient):
    """An engine that yields these events, and then fails."""

    ready = True
    events: tuple[StreamEvent, ...] = ()

    async def generate(self, *arguments: Any) -> AsyncGenerator[StreamEvent, None]:
        for event in self.events:
            yield event
        raise engine_dead()


class Silent(Completion):
    """A request whose answer says nothing."""

    def add(self, event: Any) -> None: ...

    def chunks(self, event: Any) -> Iterator[Any]:
        yield from ()

    def last_chunks(self) -> Iterator[Any]:
        yield from ()

    def body(self) -> Response:
        return Response()


@pytest.mark.parametrize(
    ("events", "opened"),
    [((), None), ((Silence(),), b": working\n\n"), ((Started("a", 1),), b"")],
    ids=["nothing", "silence", "start"],
)
def test_a_stream_is_opened_by_its_start_or_first_comment(
    events: tuple[StreamEvent, ...], opened: bytes | None
) -> None:
    """Errors before have a status of their own, and those after are events."""
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    async def read(state: AppState, request: Request) -> Completion:
        return Silent(AnswerRequest("a", []), [], True)

    async def play() -> None:
        options = ServerOptions()
        state = AppState(
            options, RequestLimiter(options), Engine(options), MediaPool(options.media)
        )
        state.engine.events = events
        scope = {"type": "http", "path": "/", "state": {"key": ""}, "headers": []}
        try:
            await EngineResponse(state, read)(scope, receive, send)
        finally:
            assert (state.limiter.ended["failed"], state.limiter.in_flight) == (1, 0)

    if opened is None:
        with pytest.raises(ApiError, match="the engine stopped"):
            asyncio.run(play())
        assert not sent
        return
    asyncio.run(play())
    start, first, last = sent
    assert start["status"] == 200 and first["body"] == opened
    assert (b"x-accel-buffering", b"no") in start["headers"]
    assert b"engine_dead" in last["body"] and last["body"].endswith(b"data: [DONE]\n\n")


def test_what_is_told_ends_before_the_first_stop_and_holds_no_half_character() -> None:
    assert cut("one two three", ["three", "two"]) == ("one ", True)
    assert cut("stop it", ["stop"]) == ("", True) and cut("go on", ["stop"]) == ("go on", False)
    told = StreamingText([])
    assert [told.push(text) for text in ("a n\ufffd", "a n\u00e9", "a n\u00e9 \ufffd\ufffd")] == [
        "a n",
        "\u00e9",
        "",
    ]
