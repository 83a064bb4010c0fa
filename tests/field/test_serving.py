"""Reports about other servers, tried on this one: the link, a small input of ours, and the right
value."""

import asyncio
import base64
import gzip
import io
import json
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from PIL import Image, ImageDraw

from mmdiff.eval.server_load import hard_schema
from mmdiff.serve.http.app import create
from mmdiff.serve.options import ServerOptions
from tests.helpers.serving import Served

CHAT, JSON = "/v1/chat/completions", "application/json"
QUESTION = "what color is a red circle?"
USER = {"role": "user", "content": QUESTION}
GET = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"


def post(server: Served, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, str) else json.dumps(body)
    return server.client.post(CHAT, content=content, headers={"Content-Type": JSON, **headers})


def words(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


@pytest.fixture(scope="module")
def plain(server: Served) -> str:
    """The answer to the question as it is usually asked."""
    return words(post(server, {"messages": [USER]}))


SAME: list[tuple[str, dict[str, Any]]] = [  # what must be answered as if it were left out
    (
        "https://github.com/LostRuins/koboldcpp/issues/1503",
        {"seed": None, "temperature": None, "max_tokens": None},
    ),
    ("https://github.com/vllm-project/vllm/pull/19679", {"tool_choice": None, "tools": []}),
    (
        "https://github.com/letta-ai/letta/pull/3060",
        {"tools": None, "tool_choice": None, "functions": None},
    ),
    ("https://github.com/AI-DM-Foundry/AI-Combat-Assistant-Pf2e/pull/8", {"stop": None}),
    ("https://github.com/langtail/langtail-node/pull/42", {"stop": []}),
    ("https://github.com/raullenchai/Rapid-MLX/issues/2358", {"stop": "STOP"}),
    ("https://github.com/lvyufeng/PocketLLM/pull/244", {"stop": "", "user": "", "model": ""}),
    (
        "https://github.com/webai-at-home/webai-at-home/issues/191",
        {"response_format": {}, "stream_options": {}, "metadata": {}, "reasoning_effort": ""},
    ),
    (
        "https://github.com/mitsuhiko/agent-stuff/issues/19",
        {
            "best_of": 1,
            "echo": False,
            "ignore_eos": False,
            "skip_special_tokens": True,
            "min_tokens": 0,
            "top_k": -1,
            "chat_template_kwargs": {"enable_thinking": False},
            "prompt_cache_retention": "24h",
        },
    ),
]


@pytest.mark.parametrize(
    "settings", [settings for _, settings in SAME], ids=[link for link, _ in SAME]
)
def test_settings_that_ask_for_nothing(
    server: Served, plain: str, settings: dict[str, Any]
) -> None:
    assert words(post(server, {"messages": [USER], **settings})) == plain


TURNS: list[tuple[str, list[dict[str, Any]]]] = [  # histories that clients send
    (
        "https://github.com/vllm-project/vllm/issues/21089",
        [USER, {"role": "assistant", "content": ""}, USER],
    ),
    (
        "https://github.com/theopenco/llmgateway/pull/1616",
        [USER, {"role": "assistant", "content": None, "tool_calls": None}, USER],
    ),
    ("https://github.com/tashfeenahmed/freellmapi/issues/165", [USER, {"role": "assistant"}, USER]),
    (
        "https://github.com/ollama/ollama-python/issues/453",
        [{"role": "developer", "content": "Be brief."}, USER],
    ),
    (
        "https://github.com/Mintplex-Labs/anything-llm/issues/6422",
        [
            {
                "role": "system",
                "content": [
                    {"type": "text", "text": "Be brief."},
                    {"type": "text", "text": "Be kind."},
                ],
            },
            USER,
        ],
    ),
    (
        "https://github.com/ayunis-core/ayunis-core/pull/719",
        [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}],
    ),
    (
        "https://github.com/HolmesGPT/holmesgpt/pull/1943",
        [
            USER,
            {"role": "assistant", "content": "red", "provider_specific_fields": {"refusal": None}},
            USER,
        ],
    ),
    (
        "https://github.com/github/copilot-sdk/issues/2061",
        [{"role": "system", "content": None}, USER],
    ),
    (
        "https://github.com/mitsuhiko/agent-stuff/issues/19",
        [
            {"role": "system", "content": "Be brief.", "cache_control": {"type": "ephemeral"}},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": QUESTION, "cache_control": {"type": "ephemeral"}}
                ],
            },
        ],
    ),
]


@pytest.mark.parametrize(
    "messages", [messages for _, messages in TURNS], ids=[link for link, _ in TURNS]
)
def test_histories_are_read(server: Served, messages: list[dict[str, Any]]) -> None:
    assert words(post(server, {"messages": messages}))


def red_circle() -> str:
    """A PNG, in base64."""
    image, file = Image.new("RGB", (64, 64), "white"), io.BytesIO()
    ImageDraw.Draw(image).ellipse((12, 12, 52, 52), fill="red")
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


BEFORE = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi", "refusal": None},
]
ADDRESSES: dict[str, Callable[[str], str]] = {  # data URLs as clients spell them
    "plain": lambda text: f"data:image/png;base64,{text}",
    "capitals": lambda text: f"DATA:IMAGE/PNG;BASE64,{text}",
    "parameter": lambda text: f"data:image/png;charset=utf-8;base64,{text}",
    "lines": lambda text: "data:image/png;base64," + "\r\n".join(re.findall(".{1,76}", text)),
    "for addresses": lambda text: (
        "data:image/png;base64," + text.replace("+", "-").replace("/", "_")
    ),
    "not filled up": lambda text: "data:image/png;base64," + text.rstrip("="),
}


# https://github.com/arduino/app-bricks-py/pull/430 and
# https://github.com/QwenLM/Qwen3-VL/issues/1053
@pytest.mark.parametrize("spelling", ADDRESSES)
@pytest.mark.parametrize("before", [[], BEFORE], ids=["first turn", "second turn"])
def test_the_order_of_parts_is_no_matter(
    server: Served, before: list[dict[str, Any]], spelling: str
) -> None:
    image = {
        "type": "image_url",
        "image_url": {"url": ADDRESSES[spelling](red_circle()), "detail": None},
    }
    for question, right in (("what color is the circle?", "red"), ("what shape is it?", "circle")):
        text = {"type": "text", "text": question, "cache_control": None}
        orders = ([text, image], [image, text])
        said = [
            post(server, {"messages": [*before, {"role": "user", "content": parts}]}).json()
            for parts in orders
        ]
        assert said[0]["choices"] == said[1]["choices"] and said[0]["usage"] == said[1]["usage"]
        assert said[0]["choices"][0]["message"]["content"] == right
        assert said[0]["mmdiff"]["confidence"] == said[1]["mmdiff"]["confidence"]


REFUSED: list[tuple[str, Any, str | None]] = [  # bodies, and the parameter at fault
    ("https://github.com/vllm-project/vllm/pull/4529", {"messages": [USER], "seed": 2**64}, "seed"),
    (
        "https://github.com/sgl-project/sglang/pull/28960",
        {"messages": [USER], "seed": 10**20 - 1},
        "seed",
    ),
    (
        "https://github.com/vllm-project/vllm/pull/57018",
        {"messages": [USER], "seed": 2**63},
        "seed",
    ),
    (
        "https://github.com/vllm-project/vllm-omni/pull/6598",
        {"messages": [USER], "steps": -1},
        "steps",
    ),
    (
        "https://github.com/ChuckBuilds/LEDMatrix/pull/497",
        '{"messages": [{"role": "user", "content": "a"}], "temperature": Infinity}',
        None,
    ),
    (
        "https://github.com/apache/hamilton/issues/1458",
        '{"messages": [{"role": "user", "content": "a"}], "top_p": NaN}',
        None,
    ),
    (
        "https://github.com/Aider-AI/aider/issues/3693",
        {"messages": [{"role": "user", "content": "a \ud83d b"}]},
        "messages[0].content",
    ),
    (
        "https://github.com/chenyme/grok2api/pull/222",
        {"messages": [{"role": "user", "content": {"type": "text", "text": "a"}}]},
        "messages[0].content",
    ),
    (
        "https://github.com/anomalyco/opencode/issues/42613",
        {"messages": [{"role": "user", "content": [{"type": "output_text", "text": "a"}]}]},
        "messages[0].content[0]",
    ),
    (
        "https://github.com/foundation-model-stack/fms-guardrails-orchestrator/issues/382",
        {"messages": [{"role": "user", "name": "string"}]},
        "messages[0].content",
    ),
    (
        "https://github.com/HolmesGPT/holmesgpt/pull/1943",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "lang": "en"}]}]},
        "messages[0].content[0].lang",
    ),
    (
        "https://github.com/anomalyco/opencode/issues/27852",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
        "messages[0].content[0].text",
    ),
    (
        "https://github.com/ggml-org/llama.cpp/pull/28697",
        {
            "messages": [USER],
            "response_format": {"type": "json_object", "schema": {"enum": ["red"]}},
        },
        "response_format.schema",
    ),
    (
        "https://github.com/peonist-ai/halogen-flash-server/issues/14",
        {
            "messages": [USER],
            "response_format": {"type": "text", "json_schema": {"schema": {"enum": ["red"]}}},
        },
        "response_format.json_schema",
    ),
]


# https://github.com/Aider-AI/aider/issues/3693
def test_bodies_are_utf_8(server: Served) -> None:
    body = json.dumps({"messages": [USER], "user": "\ud83d"})
    headers = {"Content-Type": JSON}
    answer = server.client.post(CHAT, content=body.encode("utf-16"), headers=headers)
    assert answer.status_code == 400 and "UTF-8" in answer.json()["error"]["message"]
    packed = gzip.compress(json.dumps({"messages": [USER]}).encode())
    answer = server.client.post(
        CHAT, content=packed, headers={**headers, "Content-Encoding": "gzip"}
    )
    assert answer.status_code == 415 and "Content-Encoding" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "body, param", [case[1:] for case in REFUSED], ids=[link for link, *_ in REFUSED]
)
def test_bad_values_are_named(server: Served, body: Any, param: str | None) -> None:
    answer = post(server, body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
    assert len(answer.json()["error"]["message"]) < 300


# https://github.com/vllm-project/vllm/issues/17894
def test_a_large_bound_in_a_schema_is_no_matter(server: Served) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 20_000_000_000}},
        "required": ["n"],
        "additionalProperties": False,
    }
    body = {
        "messages": [USER],
        "response_format": {"type": "json_schema", "json_schema": {"schema": schema}},
    }
    assert 0 <= json.loads(words(post(server, body)))["n"] <= 20_000_000_000


# https://github.com/vllm-project/vllm/issues/54003
def test_alternatives_in_alternatives_end_soon(server: Served) -> None:
    schema: Any = {"type": "string", "maxLength": 3}
    for depth in range(40):
        schema = {
            "oneOf": [
                {"type": "object", "properties": {f"a{depth}": schema}, "required": [f"a{depth}"]},
                {"type": "integer", "minimum": depth},
            ]
        }
    started = time.monotonic()
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    assert post(server, {"messages": [USER], "response_format": form}).status_code in (200, 400)
    assert time.monotonic() - started < 30


def raw(server: Served, *parts: bytes) -> bytes:
    """Everything that comes back on a connection that closes at its end."""
    with socket.create_connection(("127.0.0.1", server.port)) as held:
        held.settimeout(20)
        try:
            for part in parts:
                held.sendall(part)
        except ConnectionError:
            pass
        found = b""
        try:
            while part := held.recv(1 << 16):
                found += part
        except ConnectionError:
            pass
        return found


LAST = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


# https://github.com/vllm-project/vllm/issues/14151
def test_a_schema_whose_client_left_is_let_go(server: Served) -> None:
    form = {"type": "json_schema", "json_schema": {"schema": hard_schema(77)}}
    body = json.dumps({"messages": [USER], "response_format": form}).encode()
    before = server.numbers()["mmdiff_requests_cancelled_total"]
    with socket.create_connection(("127.0.0.1", server.port)) as held:
        held.sendall(
            b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d"
            b"\r\n\r\n" % (CHAT.encode(), len(body)) + body
        )
        time.sleep(0.3)
    assert server.settle()["mmdiff_requests_cancelled_total"] == before + 1
    assert words(post(server, {"messages": [USER]}))


# https://github.com/BerriAI/litellm/issues/37140
def test_an_answer_nobody_waits_for_is_cancelled_though_it_does_not_stream(server: Served) -> None:
    body = {
        "messages": [USER],
        "gen_length": 700,
        "block_length": 700,
        "steps": 700,
        "rule": "quota",
        "cache": "none",
    }
    before = server.numbers()["mmdiff_requests_cancelled_total"]
    with pytest.raises(httpx.ReadTimeout):
        server.client.post(CHAT, json=body, timeout=0.3)
    assert server.settle()["mmdiff_requests_cancelled_total"] == before + 1


UPGRADE = (
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
)
BODY = json.dumps({"messages": [USER]}).encode()
HEAD = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" % CHAT.encode()
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
WIRE: list[
    tuple[str, bytes, list[int]]
] = [  # bytes on a connection, and the statuses of the answers
    (
        "https://github.com/Kludex/uvicorn/issues/1501",
        GET.replace(b"Host", UPGRADE + b"Host") + LAST,
        [200, 200],
    ),
    (
        "https://github.com/vllm-project/vllm/issues/57203",
        HEAD + UPGRADE + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY + LAST,
        [200, 200],
    ),
    (
        "https://github.com/Kludex/uvicorn/issues/2722",
        HEAD + UPGRADE + CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY) + LAST,
        [200, 200],
    ),
    (
        "https://github.com/MagicStack/httptools/issues/124",
        HEAD
        + UPGRADE
        + CHUNKED
        + b"".join(b"1\r\n%c\r\n" % byte for byte in BODY)
        + b"0\r\n\r\n"
        + LAST,
        [200, 200],
    ),
    ("https://github.com/Kludex/uvicorn/issues/89", GET * 30 + LAST, [200] * 31),
    ("https://github.com/Kludex/uvicorn/issues/2238", LAST + GET, [200]),
    ("https://github.com/Kludex/uvicorn/issues/344", GET + b"\r\n" + LAST, [200, 200]),
    (
        "https://github.com/vllm-project/vllm/pull/23267",
        GET + GET[:-2] + b"".join(b"X-%d: 1\r\n" % number for number in range(200)) + b"\r\n",
        [200, 431],
    ),
    (
        "https://github.com/Kludex/uvicorn/pull/1684",
        GET + GET[:-2] + b"X: " + b"a" * 70_000 + b"\r\n\r\n",
        [200, 431],
    ),
    (
        "https://github.com/nodejs/http-parser/issues/33",
        HEAD + CHUNKED + b"0\r\nX: " + b"a" * 140_000,
        [400],
    ),
    (
        "https://github.com/h2o/picohttpparser/pull/81",
        HEAD + CHUNKED + b"1;%s\r\na\r\n" % (b"a" * 40) * 4000,
        [400],
    ),
    (
        "https://github.com/lalinsky/dusty/pull/176",
        HEAD
        + CHUNKED
        + b"%x\r\n%s\r\n0\r\nContent-Type: text/plain\r\n\r\n" % (len(BODY), BODY)
        + LAST,
        [200, 200],
    ),
]


@pytest.mark.parametrize(
    "sent, statuses", [case[1:] for case in WIRE], ids=[link for link, *_ in WIRE]
)
def test_what_comes_on_a_connection(server: Served, sent: bytes, statuses: list[int]) -> None:
    assert [
        int(found) for found in re.findall(rb"HTTP/1.1 (\d{3}) ", raw(server, sent))
    ] == statuses


# https://github.com/passbolt/passbolt_api/issues/507 and
# https://github.com/punkpeye/fastmcp/pull/275
@pytest.mark.parametrize(
    "path", ["/health", "/v1/health/live", "/v1/health/ready", "/", "/v1/models", "/docs"]
)
def test_monitors_ask_with_head(server: Served, path: str) -> None:
    head, whole = server.client.head(path), server.client.get(path)
    assert head.status_code == 200 and head.content == b""
    assert head.headers["content-length"] == whole.headers["content-length"]


# https://github.com/nginx/nginx/issues/1505
def test_streams_ask_proxies_not_to_hold_them_back(server: Served) -> None:
    answer = post(server, {"messages": [USER], "stream": True})
    assert answer.headers["x-accel-buffering"] == "no"


# https://github.com/vllm-project/vllm/issues/8625 and
# https://github.com/BerriAI/litellm/issues/4904
def test_a_stream_has_the_usage_of_the_whole(server: Served) -> None:
    whole = post(server, {"messages": [USER]}).json()["usage"]
    streamed = post(
        server, {"messages": [USER], "stream": True, "stream_options": {"include_usage": True}}
    )
    chunks = [
        json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")
    ]
    assert chunks[-1]["usage"] == whole and [chunk["usage"] for chunk in chunks[:-1]] == [None] * (
        len(chunks) - 1
    )


# https://github.com/perdy/starlette-prometheus/issues/7 and
# https://github.com/mozilla-ai/otari/issues/264
def test_labels_of_metrics_are_routes_and_no_paths(server: Served) -> None:
    for number in range(20):
        server.client.get(f"/v1/models/unheard-of-{number}")
        server.client.get(f"/unheard-of-{number}")
    text = server.client.get("/metrics").text
    assert "unheard-of" not in text and 'route="/v1/models/{name}",status="404"' in text


NEARBY = [
    ("https://github.com/openai/openai-python/pull/1694", "/chat/completions"),
    (
        "https://github.com/harry0703/MoneyPrinterTurbo/issues/57",
        "/v1/chat/completions/chat/completions",
    ),
    ("https://github.com/mhss1/MyBrain/issues/335", "/v4/v1/chat/completions"),
    ("https://github.com/BadgerHobbs/OpenAI-API-Gateway/issues/1", "/v1/chat/completions/"),
]


@pytest.mark.parametrize("path", [path for _, path in NEARBY], ids=[link for link, _ in NEARBY])
def test_wrong_paths_are_told_the_right_one(server: Served, path: str) -> None:
    answer = server.client.post(path, json={"messages": [USER]})
    assert (
        answer.status_code == 404
        and f"did you mean POST {CHAT}?" in answer.json()["error"]["message"]
    )


def preflight(origin: str, names: str, *allowed: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create(ServerOptions(allowed_origins=allowed))[0])
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost:8000"
        ) as client:
            return await client.options(
                CHAT,
                headers={
                    "Origin": origin,
                    "Access-Control-Request-Method": "POST",
                    "Access-Control-Request-Headers": names,
                },
            )

    return asyncio.run(ask())


PREFLIGHTS = [
    (
        "https://github.com/ollama/ollama/issues/4388",
        "http://localhost",
        "content-type,x-stainless-os",
    ),
    (
        "https://github.com/lidge-jun/opencodex/issues/1773",
        "https://app.example",
        "authorization,x-stainless-os,x-stainless-lang,x-stainless-arch,x-stainless-runtime,x-stainless-retry-count",
    ),
    (
        "https://github.com/jeromeleong/poe2openai/issues/15",
        "app://obsidian.md",
        "x-stainless-timeout",
    ),
    (
        "https://github.com/CopilotKit/aimock/issues/158",
        "http://localhost:3000",
        "authorization,user-agent",
    ),
]


@pytest.mark.parametrize(
    "origin, names", [case[1:] for case in PREFLIGHTS], ids=[link for link, *_ in PREFLIGHTS]
)
def test_clients_in_browsers_send_their_own_headers(origin: str, names: str) -> None:
    answer = preflight(origin, names, origin)
    assert answer.status_code == 200
    allowed = answer.headers["access-control-allow-headers"].lower().replace(" ", "")
    assert set(names.split(",")) <= set(allowed.split(","))
    assert preflight(origin, names, "https://other.example").status_code == 400


# https://github.com/ggml-org/llama.cpp/issues/16338 and
# https://github.com/ggml-org/llama.cpp/pull/6325
def test_everything_the_page_needs_is_below_it(server: Served) -> None:
    prefix = {"X-Forwarded-Prefix": "/llm/"}
    page = (
        server.client.get("/", headers=prefix).text
        + server.client.get("/docs", headers=prefix).text
    )
    assert not re.findall(r"(?:src|href)=[\"']?/", page)
    script = "".join(
        server.client.get(f"/{name}").text
        for name in ("app.js", "media.js", "stream.js", "fields.js")
    )
    assert not re.findall(r"fetch\([\"'`]/", script)
    assert server.client.get("/openapi.json", headers=prefix).json()["servers"] == [{"url": "/llm"}]
