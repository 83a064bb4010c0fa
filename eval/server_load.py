"""Load test of a server: `python -m mmdiff.eval.server_load --url http://127.0.0.1:8000` from a
second process.

Closed-loop clients ask about images for a while, each as soon as its last answer is there, over
connections that stay open where the server lets them. What comes back is counted by status and
timed; /health is asked beside it. Nothing is retried. Several numbers of clients are measured one
after the other, which shows what batching gives.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CHAT = "/v1/chat/completions"
QUESTIONS = (
    "what color is it?",
    "how many things are there?",
    "Describe the picture in detail.",
    "what is it?",
)


@dataclass
class Tally:
    """What clients saw."""

    seconds: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))  # by status
    errors: Counter[str] = field(default_factory=Counter)
    health: list[float] = field(default_factory=list)

    def report(self, clients: int, duration: float) -> dict[str, Any]:
        good = self.seconds.get(200, [])
        refused = []
        statuses = {}
        for status, found in sorted(self.seconds.items()):
            statuses[str(status)] = len(found)
            if status in (429, 503):
                refused += found
        return {
            "clients": clients,
            "seconds": round(duration, 1),
            "statuses": statuses,
            "errors": dict(self.errors),
            "answers_per_second": round(len(good) / duration, 2),
            "answer_ms": spread(good),
            "refused_ms": spread(refused),
            "health_ms": spread(self.health),
        }


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum, in milliseconds."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    quantiles = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    found = {}
    for name, share in quantiles.items():
        found[name] = round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)
    return found


class LoadConnection:
    """One connection, as plain as can be, so that the clients take little of the machine they
    measure."""

    def __init__(self, host: str, port: int, key: str | None) -> None:
        self.host, self.port = host, port
        self.head = f"Host: {host}\r\n" + (f"Authorization: Bearer {key}\r\n" if key else "")
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self, method: str, path: str, body: bytes = b"", kind: str = "application/json"
    ) -> tuple[int, bytes]:
        if self.streams is None:
            self.streams = await asyncio.open_connection(self.host, self.port, limit=1 << 24)
        reader, writer = self.streams
        writer.write(
            f"{method} {path} HTTP/1.1\r\n{self.head}Content-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            if "transfer-encoding: chunked" in head:
                content = await reader.readuntil(b"\r\n0\r\n\r\n")
            else:
                content = await reader.readexactly(
                    int(head.partition("content-length: ")[2].partition("\r\n")[0])
                )
        except BaseException:
            self.close()
            raise
        if "connection: close" in head:
            self.close()
        return int(head.split(" ", 2)[1]), content

    def close(self) -> None:
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None


def bodies(size: int, count: int, stream_share: float = 0.0) -> list[bytes]:
    """Questions about images, each of its own, padded with noise to about `size` bytes."""
    import numpy as np
    from PIL import Image

    draw, made = np.random.default_rng(0), []
    for number in range(count):
        side = max(8, int((0.7 * size / 3) ** 0.5))
        held = BytesIO()
        Image.fromarray(draw.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(
            held, "PNG", compress_level=0
        )
        url = f"data:image/png;base64,{b64encode(held.getvalue()).decode()}"
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": QUESTIONS[number % len(QUESTIONS)]},
        ]
        made.append(
            json.dumps(
                {
                    "messages": [{"role": "user", "content": content}],
                    "max_tokens": 32,
                    "stream": number < stream_share * count,
                }
            ).encode()
        )
    return made


async def measure(
    url: str, key: str | None, clients: int, seconds: float, size: int, total: int | None = None
) -> Tally:
    """Ask for so long, or so often."""
    parts, tally = urlsplit(url), Tally()
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    asked, left = bodies(size, 64, 0.25), [total]
    until = time.monotonic() + seconds

    async def client(number: int) -> None:
        draw, connection = random.Random(number), LoadConnection(host, port, key)
        while time.monotonic() < until and left[0] != 0:
            if left[0] is not None:
                left[0] -= 1
            started = time.monotonic()
            try:
                async with asyncio.timeout(120):
                    status, _ = await connection.ask("POST", CHAT, draw.choice(asked))
                tally.seconds[status].append(time.monotonic() - started)
                if status != 200:
                    await asyncio.sleep(
                        draw.uniform(0.05, 0.15)
                    )  # far sooner than Retry-After says
            except (OSError, EOFError, TimeoutError, ValueError) as error:
                tally.errors[type(error).__name__] += 1
                connection.close()
        connection.close()

    async def health() -> None:
        connection = LoadConnection(host, port, None)
        while True:
            started = time.monotonic()
            try:
                await connection.ask("GET", "/health")
                tally.health.append(time.monotonic() - started)
            except (OSError, EOFError):
                tally.errors["health"] += 1
                connection.close()
            await asyncio.sleep(0.1)

    beside = asyncio.create_task(health())
    await asyncio.gather(*map(client, range(clients)))
    beside.cancel()
    return tally


def hard_schema(number: int) -> dict[str, Any]:
    """A JSON Schema that takes more time than compiling may, another one for each number."""
    properties = {}
    for count in range(40):
        pattern = f"^(x|y)*x(x|y){{9}}{number}b{count}$"
        properties[f"n{count}"] = {"type": "string", "pattern": pattern}
    return {"type": "object", "properties": properties, "required": list(properties)}


async def measure_beside_schemas(
    url: str, key: str | None, schemas: int, seconds: float
) -> dict[str, Any]:
    """The times of a plain request alone, then beside clients that ask for what cannot be
    compiled.

    Each of their requests has a schema that was not asked for before.
    """
    parts, numbers = urlsplit(url), iter(range(1_000_000))
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    ask = {
        "messages": [{"role": "user", "content": "what color is a red circle?"}],
        "max_tokens": 8,
    }
    refused: Counter[int] = Counter()

    async def plain() -> Tally:
        tally, connection = Tally(), LoadConnection(host, port, key)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            started = time.monotonic()
            status, _ = await connection.ask("POST", CHAT, json.dumps(ask).encode())
            tally.seconds[status].append(time.monotonic() - started)
            started = time.monotonic()
            await connection.ask("GET", "/health")
            tally.health.append(time.monotonic() - started)
        connection.close()
        return tally

    async def schema() -> None:
        connection = LoadConnection(host, port, key)
        while True:
            wanted = {"type": "json_schema", "json_schema": {"schema": hard_schema(next(numbers))}}
            status, _ = await connection.ask(
                "POST", CHAT, json.dumps({**ask, "response_format": wanted}).encode()
            )
            refused[status] += 1

    await plain()  # what is slow once
    alone = await plain()
    beside = [asyncio.create_task(schema()) for _ in range(schemas)]
    await asyncio.sleep(0.5)
    together = await plain()
    for task in beside:
        task.cancel()
    await asyncio.gather(*beside, return_exceptions=True)
    by_itself, beside_others = spread(alone.seconds[200]), spread(together.seconds[200])
    statuses = {}
    for status, count in sorted(refused.items()):
        statuses[str(status)] = count
    return {
        "schemas": schemas,
        "alone_ms": by_itself,
        "beside_ms": beside_others,
        "health_ms": [spread(alone.health), spread(together.health)],
        "ratio_p50": round(beside_others["p50"] / by_itself["p50"], 2),
        "ratio_p99": round(beside_others["p99"] / by_itself["p99"], 2),
        "answers": [len(alone.seconds[200]), len(together.seconds[200])],
        "schemas_refused": statuses,
    }


def resident(pid: int) -> float:
    """MiB that a process and its children hold."""
    pages = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if pid in (parent, int(folder.name)):
                pages += int((folder / "statm").read_text().split()[1])
        except OSError:
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mmdiff.eval.server_load", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key", help="an API key")
    parser.add_argument(
        "--clients", type=int, nargs="+", default=[1, 16, 128], help="measured one after the other"
    )
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--size", type=int, default=64 << 10, help="of a body, in bytes")
    parser.add_argument(
        "--soak",
        type=int,
        help="number of requests to send instead, with the memory of --pid before and after",
    )
    parser.add_argument(
        "--schemas",
        type=int,
        help="number of clients beside a plain one that ask for what does not compile",
    )
    parser.add_argument("--pid", type=int, help="of the server")
    options = parser.parse_args(argv)
    if options.schemas is not None:
        report = asyncio.run(
            measure_beside_schemas(options.url, options.key, options.schemas, options.seconds)
        )
        print(json.dumps(report), flush=True)
        return
    for clients in options.clients:
        before, started = resident(options.pid) if options.pid else 0.0, time.monotonic()
        if options.soak:
            seconds = 3600.0
        else:
            seconds = options.seconds
        tally = asyncio.run(
            measure(options.url, options.key, clients, seconds, options.size, options.soak)
        )
        report = tally.report(clients, time.monotonic() - started)
        if options.pid:
            report["mebibytes"] = [round(before, 1), round(resident(options.pid), 1)]
        json.dump(report, sys.stdout)
        print(flush=True)


if __name__ == "__main__":
    main()
