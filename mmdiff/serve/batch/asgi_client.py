"""Client of an ASGI application in the same process: no port, and the same answers.

Not httpx's ASGITransport, which runs no lifespan.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import ASGIApp

AsgiResponse = tuple[int, Any]  # status, and the body: JSON's value, or the text where it is none


class AsgiClient:
    """An application that has been started."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def post_json(self, path: str, body: Any, name: str = "") -> AsgiResponse:
        """POST a body under a request id of the caller's."""
        return await self.call("POST", path, json.dumps(body).encode(), "application/json", name)

    async def post(self, path: str, content: bytes, kind: str, name: str = "") -> AsgiResponse:
        return await self.call("POST", path, content, kind, name)

    async def call(
        self, method: str, path: str, content: bytes = b"", kind: str = "", name: str = ""
    ) -> AsgiResponse:
        sent: list[MutableMapping[str, Any]] = []
        left, forever = [content], asyncio.Event()

        async def receive() -> MutableMapping[str, Any]:
            if left:
                return {"type": "http.request", "body": left.pop(), "more_body": False}
            await forever.wait()  # this client does not disconnect
            raise AssertionError

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        headers = {
            "host": "localhost",
            "content-length": str(len(content)),
            "content-type": kind,
            "x-request-id": name,
        }
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "client": ("127.0.0.1", 0),
            "server": ("127.0.0.1", 0),
            "headers": [(key.encode(), value.encode()) for key, value in headers.items() if value],
        }
        await self.app(scope, receive, send)
        body = b"".join(message.get("body", b"") for message in sent[1:])
        is_json = any(
            key == b"content-type" and value.startswith(b"application/json")
            for key, value in sent[0]["headers"]
        )
        return sent[0]["status"], json.loads(body) if is_json else body.decode()


@asynccontextmanager
async def lifespan(app: ASGIApp) -> AsyncIterator[AsgiClient]:
    """The application between its start and its shutdown."""
    to_app, from_app = asyncio.Queue[Any](), asyncio.Queue[Any]()
    running = asyncio.ensure_future(
        app({"type": "lifespan", "asgi": {"version": "3.0"}}, to_app.get, from_app.put)
    )

    async def do(phase: str) -> None:
        to_app.put_nowait({"type": f"lifespan.{phase}"})
        answer = asyncio.ensure_future(from_app.get())
        await asyncio.wait([answer, running], return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            await running  # with the exception that ended it
        if answer.result()["type"] == f"lifespan.{phase}.failed":
            raise RuntimeError(answer.result().get("message", phase))

    await do("startup")
    try:
        yield AsgiClient(app)
    finally:
        await do("shutdown")
        await running


def form(fields: dict[str, Any], audio: bytes | None) -> tuple[bytes, str]:
    """Fields and audio as a multipart form, and its content type."""
    mark = secrets.token_hex(16)
    parts: list[bytes] = []
    for key, value in fields.items():
        if key == "file_url":
            continue
        name = f"{key}[]" if isinstance(value, list) else key
        for each in value if isinstance(value, list) else [value]:
            text = each if isinstance(each, str) else json.dumps(each)
            parts.append(_part(name, "", text.encode("utf-8", "replace")))
    if audio is not None:
        parts.append(_part("file", '; filename="audio"', audio))
    lines = b"".join(b"--" + mark.encode() + b"\r\n" + part + b"\r\n" for part in parts)
    return lines + b"--" + mark.encode() + b"--\r\n", f"multipart/form-data; boundary={mark}"


def _part(name: str, more: str, content: bytes) -> bytes:
    quoted = name.replace('"', "%22").replace("\r", "").replace("\n", "")
    return (
        f'Content-Disposition: form-data; name="{quoted}"{more}\r\n\r\n'.encode("utf-8", "replace")
        + content
    )
