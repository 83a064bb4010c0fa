"""/v1/caption and /v1/query, in moondream's shapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mmdiff.serve.engine.messages import AnswerFinished, AnswerRequest, RequestEvent, TextAdded
from mmdiff.serve.errors import invalid
from mmdiff.serve.http.middleware import state_of
from mmdiff.serve.http.parsing import read_json_body
from mmdiff.serve.http.responses import Chunk, Completion, json_body
from mmdiff.serve.http.route_chat import check_gen_length, check_length, parse_decoding
from mmdiff.serve.http.schemas import CaptionRequest, QueryRequest
from mmdiff.serve.http.state import AppState
from mmdiff.serve.media.parse import Medium

LENGTHS = {"normal": "short"}  # moondream's names for ours


async def read_caption(state: AppState, request: Request) -> MoondreamCompletion:
    body = await read_json_body(request, CaptionRequest)
    state.check_model(body.model)
    prompt, length = state.model.captions[LENGTHS.get(body.length, body.length)]
    changes = {"gen_length": length, **body.changes()}
    return _completion(state, request, "caption", body, prompt, changes)


async def read_query(state: AppState, request: Request) -> MoondreamCompletion:
    body = await read_json_body(request, QueryRequest)
    state.check_model(body.model)
    if not body.question.strip():
        raise invalid(
            "question", "the question is empty; say what you want to know", "invalid_request"
        )
    return _completion(state, request, "answer", body, body.question, body.changes())


def _completion(
    state: AppState,
    request: Request,
    name: str,
    body: CaptionRequest | QueryRequest,
    text: str,
    changes: dict[str, Any],
) -> MoondreamCompletion:
    """
    Args:
        name: of the answer, in the response.
        changes: of the model's decoding settings.
    """
    check_gen_length(changes, state.model.max_model_len)
    media: list[Medium] = []
    content: list[dict[str, Any]] = []
    if body.image_url is not None:
        media = [Medium("image", body.image_url, "image_url", "image 0")]
        content = [{"type": "image", "array": 0}]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
    check_length(messages, state.model.max_model_len)
    answer = AnswerRequest(
        id=state_of(request)["id"],
        messages=messages,
        seed=body.seed or 0,
        decoding=parse_decoding(state.model.decoding, changes),
        stream=body.stream,
    )
    return MoondreamCompletion(answer, media, name)


class MoondreamCompletion(Completion):
    """One request for a caption or an answer, and its text so far."""

    def __init__(self, request: AnswerRequest, media: list[Medium], name: str) -> None:
        super().__init__(request, media, request.stream)
        self.name, self.text = name, ""

    def add(self, event: RequestEvent) -> None:
        self.text += _new_text(event)

    def chunks(self, event: RequestEvent) -> Iterator[Chunk]:
        if new := _new_text(event):
            yield {"text": new, "chunk": new, "completed": False}

    def last_chunks(self) -> Iterator[Chunk]:
        yield {"completed": True, "request_id": self.request.id, self.name: self.text}

    def body(self) -> Response:
        return json_body({"request_id": self.request.id, self.name: self.text})


def _new_text(event: RequestEvent) -> str:
    match event:
        case TextAdded():
            return event.text
        case AnswerFinished():
            return event.rest
        case _:
            return ""
