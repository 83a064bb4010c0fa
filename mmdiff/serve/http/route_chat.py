"""/v1/chat/completions, as OpenAI's clients use it.

What `delta.content` holds is never revised, and joined it is the content of the answer that does
not stream. Drafts of what is open come on request, in a key of their own beside `choices`, which
clients that do not know it leave alone.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mmdiff.config import DecodingConfig, changed, shown
from mmdiff.serve.engine.messages import (
    AnswerFinished,
    AnswerRequest,
    DraftMade,
    RequestEvent,
    Started,
    TextAdded,
)
from mmdiff.serve.errors import ApiError, invalid
from mmdiff.serve.http.middleware import state_of
from mmdiff.serve.http.parsing import read_json_body
from mmdiff.serve.http.responses import Chunk, Completion, json_body
from mmdiff.serve.http.schemas import ChatRequest
from mmdiff.serve.http.state import AppState
from mmdiff.serve.media.parse import Medium, split_media

ROUND = 32  # positions: so that limits that differ a little share a batch


async def read(state: AppState, request: Request) -> ChatCompletion:
    body = await read_json_body(request, ChatRequest)
    model = state.check_model(body.model)
    answer, media = engine_request(state, body, state_of(request)["id"])
    return ChatCompletion(answer, media, body, model)


def engine_request(
    state: AppState, body: ChatRequest, id: str
) -> tuple[AnswerRequest, list[Medium]]:
    """What the engine gets, and the media that belong to it.

    Raises:
        ApiError: a value does not fit.
    """
    options, model = state.options, state.model
    if (name := body.unsupported()) is not None:
        message = f"{name}={shown(getattr(body, name))} is not supported: leave it out"
        raise invalid(name, message, "unsupported_parameter")
    schema = wanted_schema(body)
    count, most = body.n or 1, min(options.max_n, options.max_num_seqs)
    if count > most:
        raise invalid("n", f"n={count} must lie between 1 and {most}")
    check_stops(body.stops, options.max_stops)
    messages, media = split_media(body.messages, options)
    check_length(messages, model.max_model_len)
    spoken = is_spoken(messages)
    changes = body.changes()
    limit = fit_length(body.limit, changes, model.decoding.gen_length, model.max_model_len)
    return AnswerRequest(
        id=id,
        messages=messages,
        n=count,
        seed=_seed(body.seed, changes.get("temperature", model.decoding.temperature)),
        limit=limit,
        decoding=parse_decoding(model.decoding, changes),
        stop=body.stops,
        stream=bool(body.stream),
        drafts=bool(body.stream) and body.diffusing,
        schema=schema,
        spoken=spoken,
    ), media


def _seed(given: int | None, temperature: float) -> int:
    if given is not None:
        return given
    return secrets.randbits(31) if temperature else 0


def check_stops(stops: list[str], most: int) -> None:
    """
    Raises:
        ApiError: there are more than `most`, or one is empty or long.
    """
    if len(stops) > most or not all(0 < len(stop) <= 256 for stop in stops):
        raise invalid("stop", f"stop may hold at most {most} texts of 1 to 256 characters")


def is_spoken(messages: list[dict[str, Any]]) -> bool:
    """Whether the question is in the last message's audio: there are no words in it.

    Raises:
        ApiError: there is no audio either.
    """
    content = messages[-1]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if any(part.get("text", "").strip() for part in parts):
        return False
    if messages[-1]["role"] == "user" and any(part["type"] == "audio" for part in parts):
        return True
    param = f"messages[{len(messages) - 1}].content"
    raise invalid(param, "the question is empty; say what you want to know", "invalid_request")


def wanted_schema(body: ChatRequest) -> Any:
    """The JSON Schema that the answer has to fit, or None."""
    form = body.response_format
    if form is None:
        return None
    if form.json_schema is not None and form.type != "json_schema":
        raise invalid(
            "response_format.json_schema",
            f"json_schema does not go with type '{form.type}': set type to "
            "'json_schema', or leave json_schema out",
        )
    if form.type == "text":
        return None
    if body.stops:
        raise invalid(
            "stop", "stop and a response_format of JSON do not go together: leave stop out"
        )
    if form.type == "json_object":
        return {"type": "object"}
    if form.json_schema is None:
        raise invalid(
            "response_format.json_schema",
            "response_format of type 'json_schema' needs json_schema.schema",
        )
    return form.json_schema.schema_


def check_length(messages: list[dict[str, Any]], capacity: int) -> None:
    """Refuse texts that cannot fit before anything reads them: a token is hardly longer than 16
    characters.

    Raises:
        ApiError: they cannot.
    """
    length = sum(_characters(message["content"]) for message in messages)
    if length > 16 * capacity:
        raise ApiError(
            400,
            "context_length_exceeded",
            f"{length:,} characters of text are more than the model's {capacity:,} tokens can hold",
            "messages",
        )


def _characters(content: str | list[dict[str, Any]]) -> int:
    if isinstance(content, str):
        return len(content)
    return sum(len(part.get("text", "")) for part in content)


def fit_length(limit: int | None, changes: dict[str, Any], usual: int, capacity: int) -> int | None:
    """Positions that an answer may have; `changes` of the decoding get the canvas for it.

    An answer that may be longer than the model's usual one starts with that length and grows where
    it has to.
    """
    if "gen_length" in changes:
        check_gen_length(changes, capacity)
        return min(limit, changes["gen_length"]) if limit is not None else None
    if limit is None or limit <= usual:
        return limit
    changes["gen_length"] = max(usual, min(-(-limit // ROUND) * ROUND, capacity // 2))
    changes.setdefault("start_length", usual)
    return min(limit, changes["gen_length"])


def parse_decoding(usual: DecodingConfig, changes: dict[str, Any]) -> DecodingConfig:
    """The model's usual settings with those of a request.

    Raises:
        ApiError: one does not fit.
    """
    try:
        return changed(usual, changes)
    except ValueError as error:
        raise ApiError(400, "invalid_request", str(error)) from None


def check_gen_length(changes: dict[str, Any], capacity: int) -> None:
    """
    Raises:
        ApiError: it is longer than the model's positions.
    """
    length = changes.get("gen_length", 0)
    if length > capacity:
        raise invalid("gen_length", f"gen_length={length} must lie between 1 and {capacity}")


class ChatCompletion(Completion):
    """One request for chat completions, and what has come of it."""

    def __init__(
        self, request: AnswerRequest, media: list[Medium], body: ChatRequest, model: str
    ) -> None:
        super().__init__(request, media, request.stream)
        self.seed, self.diffusing = request.seed, body.diffusing
        self.include_usage = bool(body.stream_options and body.stream_options.include_usage)
        self.head = {"id": f"chatcmpl-{request.id}", "created": int(time.time()), "model": model}
        self.choices: dict[int, dict[str, Any]] = {}
        self.emitted = [0] * request.n  # characters of each choice
        self.prompt_tokens, self.tokens = 0, 0
        self.steps, self.blocks = 0, 0
        self.details: dict[str, Any] = {}
        self.structures: dict[int, dict[str, Any]] = {}
        self.heard: dict[str, Any] = {}  # a spoken question in words

    def add(self, event: RequestEvent) -> None:
        match event:
            case Started():
                self.prompt_tokens = event.prompt_tokens
                if event.heard:
                    self.heard = {
                        "heard": event.heard,
                        "heard_confidence": event.heard_confidence,
                    }
            case TextAdded():
                self.emitted[event.index] += len(event.text)
            case AnswerFinished():
                self._add_answer(event)

    def chunks(self, event: RequestEvent) -> Iterator[Chunk]:
        match event:
            case Started():
                for index in range(len(self.emitted)):
                    yield self._chunk(index, {"role": "assistant", "content": ""})
            case TextAdded():
                chunk = self._chunk(event.index, {"content": event.text})
                if self.diffusing:
                    chunk["mmdiff"] = {"type": "commit", "offset": self.emitted[event.index]}
                yield chunk
            case DraftMade():
                yield {**self._chunk(event.index, {}), "mmdiff": event.draft}
            case AnswerFinished():
                delta = {"content": event.rest} if event.rest else {}
                chunk = self._chunk(event.index, delta, event.finish_reason)
                yield {**chunk, "mmdiff": {"type": "end", **self.details}}

    def last_chunks(self) -> Iterator[Chunk]:
        if self.include_usage:
            yield {**self._chunk(), "choices": [], "usage": self._usage()}

    def body(self) -> Response:
        return json_body(
            {
                **self.head,
                "object": "chat.completion",
                "choices": [self.choices[index] for index in sorted(self.choices)],
                "usage": self._usage(),
                "mmdiff": self.details,
            }
        )

    def _add_answer(self, answer: AnswerFinished) -> None:
        self.tokens += answer.tokens
        self.steps = max(self.steps, answer.steps)
        self.blocks = max(self.blocks, answer.blocks)
        self.choices[answer.index] = {
            "index": answer.index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": None,
            "finish_reason": answer.finish_reason,
        }
        self.details = {
            **self.heard,
            "steps": self.steps,
            "blocks": self.blocks,
            "seed": self.seed,
            "tokens_per_step": round(self.tokens / max(1, self.steps), 2),
            "confidence": min(answer.confidence, self.details.get("confidence", 1.0)),
        }
        if answer.late:
            self.details["truncated_by"] = "deadline"
        if answer.structure is not None:
            self.structures[answer.index] = answer.structure
        if self.structures:
            self._add_structures()

    def _add_structures(self) -> None:
        for kind in ("repairs", "decisions"):
            self.details[kind] = [
                {"index": index, **each}
                for index in sorted(self.structures)
                for each in self.structures[index][kind]
            ]
        notes: list[str] = []
        for index in sorted(self.structures):
            notes += self.structures[index]["notes"]
        self.details["notes"] = notes

    def _chunk(
        self, index: int = 0, delta: dict[str, Any] | None = None, finish: str | None = None
    ) -> Chunk:
        choice = {"index": index, "delta": delta or {}, "logprobs": None, "finish_reason": finish}
        chunk = {**self.head, "object": "chat.completion.chunk", "choices": [choice]}
        if self.include_usage:
            chunk["usage"] = None
        return chunk

    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": self.prompt_tokens + self.tokens,
        }
