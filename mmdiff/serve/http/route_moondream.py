"""/v1/caption and /v1/query, in moondream's shapes."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from mmdiff.serve.engine import ipc
from mmdiff.serve.errors import invalid
from mmdiff.serve.http.parsing import read_json_body
from mmdiff.serve.http.responses import AppState, EngineRequest, Perform, SseWriter
from mmdiff.serve.http.route_chat import check_room
from mmdiff.serve.http.schemas import CaptionRequest, QueryRequest
from mmdiff.serve.media.parse import Medium

LENGTHS = {"normal": "short"}  # moondream's names for ours


async def read_caption(house: AppState, request: Request) -> Perform:
    asked = await read_json_body(request, CaptionRequest)
    house.check_model(asked.model)
    prompt, room = house.about["captions"][LENGTHS.get(asked.length, asked.length)]
    settings = {"gen_length": room, **asked.settings()}
    return _performed(house, request, "caption", asked, prompt, asked.image_url, settings)


async def read_query(house: AppState, request: Request) -> Perform:
    asked = await read_json_body(request, QueryRequest)
    house.check_model(asked.model)
    if not asked.question.strip():
        raise invalid(
            "question", "the question is empty; say what you want to know", "invalid_request"
        )
    return _performed(
        house, request, "answer", asked, asked.question, asked.image_url, asked.settings()
    )


def _performed(
    house: AppState,
    request: Request,
    name: str,
    asked: CaptionRequest | QueryRequest,
    text: str,
    image_url: str | None,
    settings: dict[str, Any],
) -> Perform:
    room = house.about["max_model_len"]
    if settings.get("gen_length", 0) > room:
        raise invalid(
            "gen_length", f"gen_length={settings['gen_length']} must lie between 1 and {room}"
        )
    media = [] if image_url is None else [Medium("image", image_url, "image_url", "image 0")]
    content: list[dict[str, Any]] = [{"type": "image", "array": 0}] if media else []
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
    check_room(messages, room)
    message: ipc.IpcMessage = {
        "op": "answer",
        "messages": messages,
        "n": 1,
        "seed": asked.seed or 0,
        "limit": None,
        "decoding": settings,
        "stop": [],
        "stream": asked.stream,
        "drafts": False,
    }
    return lambda reply: _perform(EngineRequest(house, request), reply, name, message, media)


async def _perform(
    asked: EngineRequest, reply: SseWriter, name: str, message: ipc.IpcMessage, media: list[Medium]
) -> None:
    told: list[str] = []

    async def heard(event: ipc.IpcMessage) -> None:
        if event["event"] == "started" and message["stream"]:
            await reply.begin()
        new = event.get("text", "") if event["event"] == "text" else event.get("rest", "")
        if new:
            told.append(new)
            if message["stream"]:
                await reply.data({"text": new, "chunk": new, "completed": False})

    await asked.events(message, media, heard, reply.comment if message["stream"] else None)
    if message["stream"]:
        await reply.data({"completed": True, "request_id": asked.id, name: "".join(told)})
        await reply.end()
    else:
        await reply.whole({"request_id": asked.id, name: "".join(told)})
