"""Requests with something broken in them at random: a refusal with a code, or an answer; never the
server's fault."""

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.helpers.serving import (
    CAPTION,
    CHAT,
    LEAKS,
    QUERY,
    SPEECH,
    Served,
    asking,
    data_url,
)

SECONDS = float(os.environ.get("MMDIFF_FUZZ_SECONDS", "20"))
ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**63,
    1e308,
    -0.0,
    "",
    "a",
    "\0",
    "\u202e",
    "<|image|>",
    "data:",
    "http://127.0.0.1/",
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"type": "text"},
    {"type": "image_url"},
    "1",
    "tiny",
    {"url": "data:image/png,"},
)
NAMES = (
    "n",
    "seed",
    "stop",
    "stream",
    "steps",
    "rule",
    "threshold",
    "temperature",
    "max_tokens",
    "block_length",
    "cache",
    "diffusing",
    "response_format",
    "tools",
    "top_k",
    "order",
    "lookahead",
    "gen_length",
    "length",
    "model",
    "user",
)


def broken(value: Any, rng: random.Random) -> Any:
    """The value with one place of it changed."""
    if isinstance(value, dict) and (value and rng.random() < 0.8):
        made = dict(value)
        key = rng.choice([*made, *NAMES[: 2 + len(made)]])
        way = rng.random()
        if way < 0.15:
            made.pop(key, None)
        elif way < 0.3:
            made[rng.choice(NAMES)] = rng.choice(ODD)
        else:
            made[key] = broken(made.get(key), rng)
        return made
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        return [*value[:place], broken(value[place], rng), *value[place + (rng.random() < 0.8) :]]
    if isinstance(value, str) and len(value) > 8 and rng.random() < 0.7:
        place = rng.randrange(len(value))
        return (
            value[:place]
            + rng.choice(("", "=", "%", "\n", "\ud800", "A" * 50))
            + value[place + rng.randrange(40) :]
        )
    return rng.choice(ODD)


def torn(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(max(1, len(data)))
        data = data[:place] + rng.randbytes(rng.randrange(4)) + data[place + rng.randrange(8) :]
    return data if rng.random() < 0.7 else data[: rng.randrange(len(data) + 1)]


def ask(server: Served, whole: dict[str, Any], sound: bytes, rng: random.Random) -> httpx.Response:
    path = rng.choice((*whole, SPEECH))
    if path == SPEECH:
        fields = {
            name: rng.choice(("", "1", "srt", "true", "word", "\u202e"))
            for name in rng.sample(NAMES, 1)
        }
        fields |= {
            rng.choice(("response_format", "temperature", "language")): rng.choice(
                ("json", "text", "0", "en")
            )
        }
        return server.client.post(
            path,
            files={"file": ("a.flac", torn(sound, rng))},
            data=fields if rng.random() < 0.3 else {},
        )
    body = broken(whole[path], rng)
    content = json.dumps(body).encode()
    return server.client.post(
        path,
        content=torn(content, rng) if rng.random() < 0.25 else content,
        headers={"Content-Type": "application/json"},
    )


@pytest.mark.slow
def test_no_request_is_the_servers_fault(server: Served, root: Path) -> None:
    """For MMDIFF_FUZZ_SECONDS, and never less than 200 requests."""
    picture = data_url(root / "examples" / "one.png")
    few = {"max_tokens": 4, "seed": 1}
    whole = {
        CHAT: asking("what?", {"type": "image_url", "image_url": {"url": picture}}, **few),
        QUERY: {"image_url": picture, "question": "what?"},
        CAPTION: {"image_url": picture, "length": "short"},
    }
    sound = (root / "examples" / "question.flac").read_bytes()
    seed, started, seen = 0, time.monotonic(), dict[int, int]()
    while seed < 200 or time.monotonic() < started + SECONDS:
        answer = ask(server, whole, sound, random.Random(seed))
        told = f"seed {seed}: {answer.status_code} {answer.text[:300]}"
        assert answer.status_code < 500 and not LEAKS.search(answer.text), told
        if answer.status_code != 200:
            assert answer.json()["error"].keys() == {"message", "type", "param", "code"}, told
        seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
        seed += 1
    assert seen[200] and seen[400] > 50
    assert server.chat("what color is the circle?").status_code == 200
    server.settle()
