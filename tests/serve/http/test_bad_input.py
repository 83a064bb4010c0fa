"""Bad input, class by class, over every route: the status and code that are promised, and never
anything of ours."""

import io
import json
import random
import re
import struct
import wave
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel

from mmdiff.serve.http import schemas
from tests.helpers.media import data_url, encoded
from tests.helpers.serving import CAPTION, CHAT, LEAKS, QUERY, SPEECH, Served, asking

EITHER = 0  # stands for 200 or 400: some damage leaves enough to see


class Bad(NamedTuple):
    """A request, and what it must end in."""

    path: str
    status: int
    code: str
    sent: dict[str, Any]
    method: str = "POST"
    param: str | None = None


def png(size: tuple[int, int], mode: str = "1", **options: Any) -> bytes:
    return encoded(Image.new(mode, size), **options)


def wav(samples: Any, rate: int = 16000, channels: int = 1) -> bytes:
    held = io.BytesIO()
    with wave.open(held, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(np.asarray(samples, "<i2").tobytes())
    return held.getvalue()


def picture(source: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": source}}


def sound(data: bytes) -> dict[str, Any]:
    return {
        "type": "input_audio",
        "input_audio": {"data": b64encode(data).decode(), "format": "wav"},
    }


def float_wav(values: Any) -> bytes:
    data = np.asarray(values, "<f4").tobytes()
    head = struct.pack("<HHIIHH", 3, 1, 16000, 64000, 4, 32)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + len(data))
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + head
        + b"data"
        + struct.pack("<I", len(data))
        + data
    )


def in_any_picture(source: str, status: int, code: str) -> list[Bad]:
    """An image over all routes that take one."""
    return [
        Bad(CHAT, status, code, {"json": asking("what?", picture(source))}),
        Bad(
            QUERY,
            status,
            code,
            {"json": {"image_url": source, "question": "what?"}},
            param="image_url",
        ),
        Bad(CAPTION, status, code, {"json": {"image_url": source}}, param="image_url"),
    ]


def in_any_sound(data: bytes, status: int, code: str) -> list[Bad]:
    return [
        Bad(CHAT, status, code, {"json": asking("what?", sound(data))}),
        Bad(SPEECH, status, code, {"files": {"file": ("a.wav", data)}}, param="file"),
    ]


def json_cases() -> list[Bad]:
    kind = {"Content-Type": "application/json"}
    bodies = [
        (b"", "invalid_json"),
        (b'{"messages": [', "invalid_json"),
        (b'{"question": NaN}', "invalid_json"),
        (b'{"a": 1, "a": 2}', "invalid_json"),
        (b"[" * 5000, "invalid_json"),
        (b"[" * 200_000, "invalid_json"),
        (b"\xef\xbb\xbf{}", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b"[]", "invalid_request"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "invalid_json"),
        (b"{}", "invalid_request"),
        (b'{"colour": 1}', None),
        (b'"text"', "invalid_request"),
        (b'{"model": 3}', "invalid_request"),
    ]
    return [
        Bad(path, 400, code or "", {"content": body, "headers": kind})
        for path in (CHAT, QUERY, CAPTION)
        for body, code in bodies
    ]


def everywhere() -> list[Bad]:
    """What no route takes: another method, another kind of body."""
    posts, gets = (
        (CHAT, QUERY, CAPTION, SPEECH),
        (
            "/health",
            "/v1/health/live",
            "/v1/health/ready",
            "/v1/models",
            "/v1/models/tiny",
            "/metrics",
            "/docs",
            "/openapi.json",
        ),
    )
    found = [Bad(path, 405, "method_not_allowed", {}, method="GET") for path in posts]
    found += [Bad(path, 405, "method_not_allowed", {}, method="POST") for path in gets]
    found += [
        Bad(
            path,
            415,
            "unsupported_media_type",
            {"content": b"{}", "headers": {"Content-Type": "text/plain"}},
        )
        for path in posts
    ]
    found += [
        Bad(
            path,
            403,
            "origin_not_allowed",
            {"headers": {"Origin": "http://evil.example"}},
            method=method,
        )
        for method, paths in (("POST", posts), ("GET", gets[3:]))
        for path in paths
    ]
    found += [
        Bad(path, 403, "host_not_allowed", {"headers": {"Host": "a/?x="}}, method="GET")
        for path in gets[3:]
    ]
    return (
        found
        + [
            Bad(path, 404, "not_found", {}, method="GET")
            for path in (
                "/v1",
                "//v1/models",
                "/v1/chat/completions/",
                "/%2e%2e/etc/passwd",
                "/V1/models",
                "/docs/oauth2-redirect",
            )
        ]
        + [
            Bad(f"/v1/models/{name}", 404, "model_not_found", {}, method="GET")
            for name in ("large", "", "tiny/")
        ]
    )


def schema_cases() -> list[Bad]:
    user = {"role": "user", "content": "what?"}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "what?"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
        ({"messages": [{**user, "file": "/etc/passwd"}]}, "messages[0].file"),
        ({"messages": [user] * 300}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 80}]},
            "messages",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
    ]
    for name, values in {
        "n": (0, 9, 10**9, "2", 1.5),
        "max_tokens": (0, -1, 10**7, "8"),
        "steps": (0, 10**6, "x"),
        "seed": (2**64, "1"),
        "temperature": (-1, 3, "hot"),
        "threshold": (2, -0.1),
        "block_length": (0, 10**6),
        "gen_length": (0, 5000),
        "stream": ("yes", 1),
        "stop": (["a"] * 100, [""], [3], "x" * 300),
        "rule": ("none",),
        "cache": ("disk",),
        "top_p": (0.5, 2),
        "logprobs": (True,),
        "tools": ([{"type": "function"}],),
        "logit_bias": ({"5": 1},),
        "chat_template": ("{{ 1 }}",),
        "chat_template_kwargs": ({"a": 1},),
        "diffusing": ("yes",),
        "lookahead": (1000,),
        "top_k": (-2,),
        "frequency_penalty": (1.0,),
        "cfg_scale": (-1,),
        "presence_penalty": (0.5,),
        "order": (1,),
    }.items():
        wrong += [({"messages": [user], "temperature": 1.0, name: value}, name) for value in values]
    return [
        Bad(
            CHAT,
            400,
            "",
            {"content": json.dumps(body), "headers": {"Content-Type": "application/json"}},
            param=param,
        )
        for body, param in wrong
    ]


def other_schema_cases() -> list[Bad]:
    found = [
        Bad(CAPTION, 400, "invalid_request", {"json": {"image_url": 3}}, param="image_url"),
        Bad(
            CAPTION,
            400,
            "invalid_request",
            {"json": {"image_url": "data:,", "length": "huge"}},
            param="length",
        ),
        Bad(
            CAPTION,
            400,
            "unknown_parameter",
            {"json": {"image_url": "data:,", "path": "/etc"}},
            param="path",
        ),
        Bad(QUERY, 400, "invalid_request", {"json": {"question": " "}}, param="question"),
        Bad(
            QUERY,
            400,
            "invalid_parameter",
            {"json": {"question": "a", "gen_length": 4000}},
            param="gen_length",
        ),
        Bad(
            QUERY,
            404,
            "model_not_found",
            {"json": {"question": "a", "model": "large"}},
            param="model",
        ),
    ]
    silence = ("a.wav", wav([0] * 1600))
    for fields, param in (
        ({"response_format": "xml"}, "response_format"),
        ({"temperature": "7"}, "temperature"),
        ({"stream": "perhaps"}, "stream"),
        ({"colour": "red"}, "colour"),
        ({"model": "large"}, "model"),
        ({"timestamp_granularities[]": "letter"}, "timestamp_granularities[0]"),
    ):
        status, code = (404, "model_not_found") if param == "model" else (400, "")
        found.append(
            Bad(SPEECH, status, code, {"files": {"file": silence}, "data": fields}, param=param)
        )
    return found + [
        Bad(SPEECH, 400, "invalid_request", {"files": {"other": silence}}, param="other"),
        Bad(SPEECH, 400, "invalid_request", {"files": [("file", silence), ("file", silence)]}),
        Bad(
            SPEECH,
            400,
            "invalid_request",
            {"files": {"file": silence}, "data": {f"a{n}": "1" for n in range(2000)}},
        ),
        Bad(
            SPEECH,
            400,
            "invalid_request",
            {"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}},
        ),
        Bad(
            SPEECH,
            400,
            "invalid_request",
            {"content": b"abc", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        ),
        Bad(
            SPEECH,
            413,
            "audio_too_large",
            {"files": {"file": ("../../a", b"\0" * ((25 << 20) + 1))}},
            param="file",
        ),
    ]


def url_cases() -> list[Bad]:
    found = [
        bad
        for source in (
            "data:",
            "data:image/png",
            "data:image/png,abc",
            "data:image/png;base64,====",
            "data:image/png;base64,a!b",
            "data:image/png;base64,%41",
            "data:;base64;base64,",
            "data:image/png;base64," + "=" * 10_000,
        )
        for bad in in_any_picture(source, 400, "invalid_data_url")
    ]
    for source in ("data:image/png;base64,", "DATA:image/png;base64,"):
        found += in_any_picture(source, 400, "invalid_image")
    found += in_any_picture("data:image/png;base64,a b", 400, "unsupported_image_format")
    for source in (
        "http://127.0.0.1/",
        "http://2130706433/",
        "http://[::1]/",
        "https://localhost./",
        "http://a@b/",
        "http://169.254.169.254/latest",
        "http:\\\\127.0.0.1\\",
        "HTTP://127.1/",
    ):
        found += in_any_picture(source, 400, "media_url_not_allowed")
    for source in (
        "file:///etc/passwd",
        "/etc/passwd",
        "../../etc/passwd",
        "\\\\host\\share",
        "",
        "examples/one.png",
    ):
        found += in_any_picture(source, 400, "local_media_not_allowed")
    return found


def picture_cases() -> list[Bad]:
    whole = png((64, 64), "RGB")
    found = [
        bad
        for end in range(0, len(whole) - 16, 24)
        if end
        for bad in in_any_picture(data_url(whole[:end]), EITHER, "")
    ]
    for kind in ("TIFF", "PPM", "ICO", "PCX", "TGA", "JPEG2000", "EPS", "PDF"):
        held = io.BytesIO()
        Image.new("RGB", (8, 8)).save(held, kind)
        found += in_any_picture(data_url(held.getvalue()), 400, "unsupported_image_format")
    for data in (
        b"<html></html>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"8BPS\0\1",
        b"\0" * 64,
    ):
        found += in_any_picture(data_url(data), 400, "unsupported_image_format")
    header = bytearray(png((8, 8)))
    header[16:24] = struct.pack(">II", 60_000, 60_000)
    for data in (png((9000, 9000)), png((13_000, 13_000)), bytes(header)):
        found += (
            in_any_picture(data_url(data), 413, "image_too_large")
            if data[16:20] != header[16:20]
            else []
        )
    found += in_any_picture(data_url(png((20_000, 16))), 400, "invalid_image")
    frames = [Image.new("RGB", (8, 8), (2 * shade, 0, 0)) for shade in range(90)]
    held = io.BytesIO()
    frames[0].save(held, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    return found + in_any_picture(data_url(held.getvalue()), 413, "image_too_large")


def sound_cases() -> list[Bad]:
    import soundfile

    def flac(values: Any, rate: int) -> bytes:
        held = io.BytesIO()
        soundfile.write(held, values, rate, format="FLAC")
        return held.getvalue()

    found = [
        bad
        for data in (b"RIFF", b"ID3\4\0\0\0\0\0\0", b"<html>", b"\0" * 500, wav([0] * 100)[:30])
        for bad in in_any_sound(data, 400, "invalid_audio")
    ]
    found += in_any_sound(b"", 400, "invalid_audio")
    for data in (
        wav([0] * 100, rate=1),
        wav([0] * 2048, channels=1024),
        float_wav([np.nan] * 1600),
        float_wav([np.inf] * 1600),
        wav([0] * 100, rate=655_350),
    ):
        found += in_any_sound(data, 400, "invalid_audio")
    found += in_any_sound(float_wav([0, 12_000]), 400, "invalid_audio")
    return found + in_any_sound(
        flac(np.zeros(16_000 * 700, np.int16), 16_000), 413, "audio_too_long"
    )


def type_cases() -> list[Bad]:
    """Every field of every body with a value of a type that it never has."""
    models: dict[str, type[BaseModel]] = {
        CHAT: schemas.ChatRequest,
        QUERY: schemas.QueryRequest,
        CAPTION: schemas.CaptionRequest,
    }
    seen = {"image_url": "data:,"}
    whole = {CHAT: asking("what?"), QUERY: {**seen, "question": "what?"}, CAPTION: seen}
    return [
        Bad(path, 400, "", {"json": {**whole[path], field.alias or name: value}})
        for path, model in models.items()
        for name, field in model.model_fields.items()
        for value in ([[0]], {"": {"": 0}})
        if (name, value) != ("metadata", {"": {"": 0}})
    ]


def damaged(whole: bytes, seeds: range, cuts: int) -> Iterator[bytes]:
    """Bits turned over, and ends cut off."""
    for seed in seeds:
        rng, data = random.Random(seed), bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        yield bytes(data)
    yield from (whole[: len(whole) * number // (cuts + 1)] for number in range(1, cuts + 1))


def damaged_cases() -> list[Bad]:
    import soundfile

    found = []
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        held = io.BytesIO()
        Image.effect_noise((48, 40), 90).convert("RGB").save(held, kind)
        for data in damaged(held.getvalue(), range(14), 4):
            source = data_url(data, f"image/{kind.lower()}")
            found.append(
                Bad(QUERY, EITHER, "", {"json": {"image_url": source, "question": "what?"}})
            )
    for kind in ("WAV", "FLAC", "OGG"):
        held = io.BytesIO()
        soundfile.write(held, np.random.default_rng(0).normal(0, 0.1, 4000), 16_000, format=kind)
        found += [
            Bad(SPEECH, EITHER, "", {"files": {"file": ("a.mp3", data)}})
            for data in damaged(held.getvalue(), range(14), 6)
        ]
    return found


def fetch_cases() -> list[Bad]:
    """Addresses and paths in all their spellings; nothing is fetched or opened."""
    hosts = (
        "127.0.0.1",
        "127.1",
        "0",
        "0x7f.1",
        "0177.0.0.1",
        "2130706433",
        "0x7f000001",
        "localhost",
        "localhost.",
        "LOCALHOST",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "metadata.google.internal",
        "100.64.0.1",
        "[fe80::1%25eth0]",
        "user@127.0.0.1",
        "example.com@127.0.0.1",
        "127.0.0.1#@example.com",
        "example.com",
        "xn--bcher-kva.example",
        "ⓛocalhost",
        "127.0.0.1:6379",
        "127.0.0.1\t",
        "127。0。0。1",
    )
    paths = (
        "file:///proc/self/environ",
        "FILE:///etc/passwd",
        "file://localhost/etc/passwd",
        "/dev/zero",
        "/proc/1/mem",
        "~/.ssh/id_rsa",
        "./a.png",
        "..",
        ".",
        "%2e%2e/%2e%2e/etc/passwd",
        "/etc/passwd\0.png",
        "C:\\a.png",
        "\\\\?\\C:\\a.png",
        "ftp://127.0.0.1/a",
        "gopher://127.0.0.1/",
        "javascript:1",
        "blob:null/1",
        "about:blank",
    )
    told = {
        f"{scheme}://{host}/a": "media_url_not_allowed"
        for host in hosts
        for scheme in ("http", "https")
    }
    return [
        Bad(QUERY, 400, code, {"json": {"image_url": source, "question": "what?"}})
        for source, code in (told | dict.fromkeys(paths, "")).items()
    ]


CLASSES: dict[str, Callable[[], list[Bad]]] = {
    "json": json_cases,
    "everywhere": everywhere,
    "schema": schema_cases,
    "other schemas": other_schema_cases,
    "addresses": url_cases,
    "pictures": picture_cases,
    "sounds": sound_cases,
    "types": type_cases,
    "damage": damaged_cases,
    "fetching": fetch_cases,
}


def check(answer: httpx.Response, bad: Bad) -> str | None:
    """What is wrong with an answer."""
    told = (
        f"{bad.method} {bad.path} {str(bad.sent)[:150]}: {answer.status_code} {answer.text[:300]}"
    )
    if bad.status == EITHER and answer.status_code == 200:
        return None
    if answer.status_code != (bad.status or 400) or LEAKS.search(answer.text):
        return told
    error = answer.json()["error"]
    fits = (
        error.keys() == {"message", "type", "param", "code"}
        and error["message"]
        and error["code"]
        and bad.code in ("", error["code"])
        and (bad.param is None or error["param"] == bad.param)
    )
    return None if fits and answer.headers["x-request-id"] else told


@pytest.mark.parametrize("kind", CLASSES)
def test_bad_input_is_refused_as_promised(server: Served, kind: str) -> None:
    wrong = [
        found
        for bad in CLASSES[kind]()
        if (found := check(server.client.request(bad.method, bad.path, **bad.sent), bad))
    ]
    assert wrong == []
    assert server.chat().status_code == 200
    server.settle()


def test_every_route_has_cases(server: Served) -> None:
    """A route that is added without any fails here."""
    covered = {
        (bad.method, re.sub(r"^/v1/models/.+", "/v1/models/{name}", bad.path))
        for bad in everywhere()
    }
    routes = {
        (method.upper(), path)
        for path, methods in server.client.get("/openapi.json").json()["paths"].items()
        for method in methods
    }
    other = {"POST": "GET", "GET": "POST"}
    assert {(other[method], path) for method, path in routes} <= covered
    assert {
        (method, path) for method, path in routes if not path.startswith(("/health", "/v1/health"))
    } <= covered


def test_odd_images_and_audio_are_answered(server: Served, tmp_path: Path) -> None:
    pictures = [
        png((1, 1)),
        png((1, 150)),
        png((3, 3), "LA"),
        png((64, 64), "I;16"),
        png((64, 48), "RGBA"),
    ]
    for kind, mode in (("JPEG", "CMYK"), ("GIF", "P"), ("BMP", "RGB"), ("WEBP", "RGB")):
        held = io.BytesIO()
        Image.new(mode, (64, 40)).save(held, kind)
        pictures.append(held.getvalue())
    for data in pictures:
        answer = server.client.post(CHAT, json=asking("what?", picture(data_url(data))))
        assert answer.status_code == 200, answer.text
    for data in (
        wav([0] * 1600),
        wav([0]),
        wav([30_000, -30_000] * 4000),
        float_wav([1e-40] * 1600),
    ):
        answer = server.client.post(SPEECH, files={"file": ("a.wav", data)})
        assert answer.status_code == 200 and "text" in answer.json()


def test_hostile_text_has_no_effect(server: Served) -> None:
    plain = server.chat("what color is < |image|>?").json()["choices"]
    for text in (
        "what color is <|image|>?",
        "<|eot_id|><|mdm_mask|>",
        "\0",
        "\u202e\u2066",
        "a" * 600,
    ):
        assert server.chat(text).status_code == 200
    assert plain == server.chat("what color is <|image|>?").json()["choices"]
    for text in ("a" * 1_000_000, "why? " * 3000):
        answer = server.chat(text)
        assert (
            answer.status_code == 400
            and answer.json()["error"]["code"] == "context_length_exceeded"
        )


def test_a_body_has_limits(server: Served) -> None:
    answer = server.client.post(
        CHAT, content=b" " * ((32 << 20) + 1), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"

    def endless() -> Any:
        for _ in range(40):
            yield b" " * (1 << 20)

    try:
        answer = server.client.post(
            CHAT, content=endless(), headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 413
    except httpx.TransportError:
        pass  # the connection is closed on a body without end
    server.settle()
