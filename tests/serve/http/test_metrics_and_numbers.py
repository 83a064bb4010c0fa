"""What the server says of itself: metrics by route and status, token counts, and the OpenAPI
document."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

from mmdiff.serve.batch.asgi_client import AsgiClient
from mmdiff.serve.http.app import create
from mmdiff.serve.options import ServerOptions
from tests.helpers.serving import Served, asking, data_url

CHAT = "/v1/chat/completions"


def change(server: Served, ask: Any) -> dict[str, float]:
    """What the numbers grew by."""
    before = server.settle()
    ask()
    after = server.settle()
    return {
        name: value - before.get(name, 0)
        for name, value in after.items()
        if "_created" not in name and value != before.get(name, 0)
    }


def http(method: str, route: str, status: int) -> str:
    return f'mmdiff_http_requests_total{{method="{method}",route="{route}",status="{status}"}}'


def test_a_clients_fault_is_no_failure(server: Served) -> None:
    def ask() -> None:
        assert server.client.post(CHAT, json={"messages": 3}).status_code == 400
        assert server.client.post(CHAT, json=asking("a", stop=[""])).status_code == 400
        assert server.client.post(CHAT, json=asking("a", model="other")).status_code == 404
        assert server.client.post("/v1/caption", json={"image_url": "data:,"}).status_code == 400
        assert server.client.post("/v1/audio/transcriptions").status_code == 415

    grown = change(server, ask)
    assert "mmdiff_requests_failed_total" not in grown
    assert grown["mmdiff_requests_accepted_total"] == grown["mmdiff_requests_completed_total"] == 5
    assert grown[http("POST", CHAT, 400)] == 2 and grown[http("POST", CHAT, 404)] == 1
    assert grown[http("POST", "/v1/caption", 400)] == 1
    assert grown[http("POST", "/v1/audio/transcriptions", 415)] == 1


def test_times_are_told_by_route(server: Served, root: Path) -> None:
    url = data_url(root / "examples" / "shapes.png")

    def ask() -> None:
        for stream in (False, True):
            assert server.chat(stream=stream).status_code == 200
        assert server.client.post("/v1/caption", json={"image_url": url}).status_code == 200
        with (root / "examples" / "question.flac").open("rb") as held:
            sent = server.client.post("/v1/audio/transcriptions", files={"file": held})
        assert sent.status_code == 200

    grown = change(server, ask)
    for route, count in ((CHAT, 2), ("/v1/caption", 1), ("/v1/audio/transcriptions", 1)):
        times = []
        for name in ("request_queue_time", "time_to_first_commit", "e2e_request_latency"):
            label = f'{{route="{route}"}}'
            assert grown[f"mmdiff_{name}_seconds_count{label}"] == count, (name, route)
            times.append(grown[f"mmdiff_{name}_seconds_sum{label}"])
        assert 0 < times[0] < times[1] <= times[2]


def test_prompt_and_completion_tokens_are_counted_on_every_route(
    server: Served, root: Path
) -> None:
    url = data_url(root / "examples" / "shapes.png")
    question = (root / "examples" / "question.flac").read_bytes()
    asked = {
        "chat": lambda: server.chat(),
        "caption": lambda: server.client.post("/v1/caption", json={"image_url": url}),
        "query": lambda: server.client.post(
            "/v1/query", json={"image_url": url, "question": "what?"}
        ),
        "speech": lambda: server.client.post(
            "/v1/audio/transcriptions", files={"file": ("a.flac", question)}
        ),
    }
    for name, ask in asked.items():
        grown = change(server, ask)
        assert grown["mmdiff_prompt_tokens_total"] > 5, name
        assert grown["mmdiff_completion_tokens_total"] > 0, name


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_reached_a_stop_string_has_the_tokens_it_says(
    server: Served, shapes: dict[str, Any], stream: bool
) -> None:
    describe = "Describe the picture in detail."
    whole = server.client.post(CHAT, json=asking(describe, shapes)).json()
    words, seen = whole["choices"][0]["message"]["content"].split(), list[int]()
    for count in (1, 2, 5):
        body = asking(
            describe,
            shapes,
            stop=[f" {words[count]}"],
            stream=stream,
            stream_options={"include_usage": True} if stream else None,
        )
        answer = server.client.post(CHAT, json=body)
        if stream:
            chunks = [
                json.loads(line[6:])
                for line in answer.text.splitlines()
                if line.startswith("data: {")
            ]
            text = "".join(
                chunk["choices"][0]["delta"].get("content", "")
                for chunk in chunks
                if chunk["choices"]
            )
            usage = chunks[-1]["usage"]
        else:
            text, usage = answer.json()["choices"][0]["message"]["content"], answer.json()["usage"]
        assert text and text.split() == words[: len(text.split())] and len(text.split()) <= count
        assert len(text.split()) <= usage["completion_tokens"] <= 2 * len(text.split()), (
            text,
            usage,
        )
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        seen.append(usage["completion_tokens"])
    assert seen == sorted(seen) and seen[-1] < whole["usage"]["completion_tokens"]


def test_labels_are_bounded(server: Served) -> None:
    for number in range(50):
        server.client.request(f"METHOD{number}", f"/path/{number}")
        server.client.get(f"/v1/models/{number}")
        server.client.post(CHAT, json=asking("a", model=f"m{number}"))
    text = server.client.get("/metrics").text
    routes = set(re.findall(r'route="([^"]*)"', text))
    assert {CHAT, "/v1/models/{name}", "other", "/metrics"} <= routes and len(routes) < 25
    assert set(re.findall(r'method="([^"]*)"', text)) <= {"GET", "HEAD", "POST", "OPTIONS", "other"}


def called(path: str, **options: Any) -> Any:
    """What an application without a running engine answers."""
    return asyncio.run(AsgiClient(create(ServerOptions(**options))[0]).call("GET", path))[1]


def test_the_openapi_document_is_valid_and_whole() -> None:
    document = called("/openapi.json")
    validate(document)
    names = set(re.findall(r'"\$ref": "([^"]*)"', json.dumps(document)))
    assert names and all(name.startswith("#/components/schemas/") for name in names)
    assert {name.rpartition("/")[2] for name in names} <= document["components"]["schemas"].keys()
    assert called("/openapi.json") == document  # asking twice changes nothing
    body = document["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "messages" in body["properties"] and "$defs" not in body


@pytest.mark.parametrize(
    "path, route",
    [
        ("/chat/completions", "POST /v1/chat/completions"),
        ("/v1/v1/chat/completions", "POST /v1/chat/completions"),
        ("/v1/completions", "POST /v1/chat/completions"),
        ("/v1/chat/completion", "POST /v1/chat/completions"),
        ("/v1/chat/completions/", "POST /v1/chat/completions"),
        ("/V1/CHAT/COMPLETIONS", "POST /v1/chat/completions"),
        ("/api/generate", "POST /v1/chat/completions"),
        ("/v1/responses", "POST /v1/chat/completions"),
        ("/audio/transcriptions", "POST /v1/audio/transcriptions"),
        ("/v1/model", "GET /v1/models"),
        ("/models", "GET /v1/models"),
        ("/healthz", "GET /health"),
        ("/caption", "POST /v1/caption"),
        ("/v1/something/else", "GET /docs"),
        ("/" + "a" * 5000, "GET /docs"),
        ("/é\u202e", "GET /docs"),
    ],
)
def test_a_wrong_path_is_told_the_nearest_route(path: str, route: str) -> None:
    error = called(path)["error"]
    assert (
        error["code"] == "not_found" and route in error["message"] and len(error["message"]) < 250
    )
