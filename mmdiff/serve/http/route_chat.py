"""/v1/chat/completions, as OpenAI's clients ask for it.

What `delta.content` holds is never revised, and joined it is the content of the answer that does
not stream. Drafts of what is open come on request, in a key of their own beside `choices`, which
clients that do not know it leave alone.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

from starlette.requests import Request

from mmdiff.config import shown
from mmdiff.serve.engine import ipc
from mmdiff.serve.errors import ApiError, invalid
from mmdiff.serve.http.parsing import read_json_body
from mmdiff.serve.http.responses import AppState, EngineRequest, Perform, SseWriter
from mmdiff.serve.http.schemas import ChatRequest
from mmdiff.serve.media.parse import Medium, taken_apart

ROUND = 32  # positions: so that limits that differ a little share a batch


async def read(house: AppState, request: Request) -> Perform:
    asked = await read_json_body(request, ChatRequest)
    model = house.check_model(asked.model)
    message, media = engine_message(house, asked)
    chat = Chat(house, EngineRequest(house, request), asked, model, message["seed"])
    return lambda reply: chat.perform(reply, message, media)


def engine_message(house: AppState, asked: ChatRequest) -> tuple[ipc.IpcMessage, list[Medium]]:
    """What the engine is asked, with the media that belong to it.

    Raises:
        ApiError: a value does not fit.
    """
    options, about = house.options, house.about
    if (name := asked.unsupported()) is not None:
        said = f"{name}={shown(getattr(asked, name))} is not supported: leave it out"
        raise invalid(name, said, "unsupported_parameter")
    schema = wanted_schema(asked)
    count = asked.n or 1
    if count > min(options.max_n, options.max_num_seqs):
        raise invalid(
            "n", f"n={count} must lie between 1 and {min(options.max_n, options.max_num_seqs)}"
        )
    if len(asked.stops) > options.max_stops or not all(
        0 < len(stop) <= 256 for stop in asked.stops
    ):
        raise invalid(
            "stop", f"stop may hold up to {options.max_stops} texts of 1 to 256 characters"
        )
    messages, media = taken_apart(asked.messages, options)
    room = house.about["max_model_len"]
    check_room(messages, room)
    spoken = is_spoken(messages)
    settings = asked.settings()
    limit = fit_length(asked.limit, settings, about["gen_length"], room)
    temperature = settings.get("temperature", about["temperature"])
    seed = asked.seed if asked.seed is not None else secrets.randbits(31) if temperature else 0
    return {
        "op": "answer",
        "messages": messages,
        "n": count,
        "seed": seed,
        "limit": limit,
        "decoding": settings,
        "stop": asked.stops,
        "stream": bool(asked.stream),
        "drafts": bool(asked.stream) and asked.diffusing,
        **({} if schema is None else {"schema": schema}),
        **({"spoken": True} if spoken else {}),
    }, media


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
    place = f"messages[{len(messages) - 1}].content"
    raise invalid(place, "the question is empty; say what you want to know", "invalid_request")


def wanted_schema(asked: ChatRequest) -> Any:
    """The JSON Schema that the answer has to fit, or None."""
    form = asked.response_format
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
    if asked.stops:
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


def check_room(messages: list[dict[str, Any]], room: int) -> None:
    """Texts that cannot fit are refused before anything reads them: a token is hardly longer than
    16 characters."""
    contents = [message["content"] for message in messages]
    texts = [content for content in contents if isinstance(content, str)]
    texts += [
        part.get("text", "")
        for content in contents
        if not isinstance(content, str)
        for part in content
    ]
    if (length := sum(map(len, texts))) > 16 * room:
        raise ApiError(
            400,
            "context_length_exceeded",
            f"{length:,} characters of text are more than the model's {room:,} tokens can hold",
            "messages",
        )


def fit_length(limit: int | None, settings: dict[str, Any], usual: int, room: int) -> int | None:
    """Positions that an answer may have; `settings` get the canvas for it.

    An answer that may be longer than the model's usual one starts with that length and grows where
    it has to.
    """
    if "gen_length" in settings:
        if settings["gen_length"] > room:
            raise invalid(
                "gen_length", f"gen_length={settings['gen_length']} must lie between 1 and {room}"
            )
        return min(limit, settings["gen_length"]) if limit is not None else None
    if limit is None or limit <= usual:
        return limit
    settings["gen_length"] = max(usual, min(-(-limit // ROUND) * ROUND, room // 2))
    settings.setdefault("start_length", usual)
    return min(limit, settings["gen_length"])


class Chat:
    """One request for completions, and what has come of it."""

    def __init__(
        self, house: AppState, work: EngineRequest, asked: ChatRequest, model: str, seed: int
    ) -> None:
        self.house, self.work, self.asked, self.seed = house, work, asked, seed
        self.head = {"id": f"chatcmpl-{work.id}", "created": int(time.time()), "model": model}
        self.choices: dict[int, dict[str, Any]] = {}
        self.told = [0] * (asked.n or 1)  # characters of each row
        self.prompt_tokens = self.tokens = self.steps = self.blocks = 0
        self.details: dict[str, Any] = {}
        self.structures: dict[int, dict[str, Any]] = {}
        self.heard: dict[str, Any] = {}  # a spoken question in words

    async def perform(self, reply: SseWriter, message: ipc.IpcMessage, media: list[Medium]) -> None:
        if not self.asked.stream:
            await self.work.events(message, media, self._heard)
            choices = [self.choices[row] for row in sorted(self.choices)]
            await reply.whole(
                {
                    **self.head,
                    "object": "chat.completion",
                    "choices": choices,
                    "usage": self._usage(),
                    "mmdiff": self.details,
                }
            )
            return

        async def streamed(event: ipc.IpcMessage) -> None:
            await self._heard(event)
            await self._tell(reply, event)

        await self.work.events(message, media, streamed, reply.comment)
        options = self.asked.stream_options
        if options is not None and options.include_usage:
            await reply.data({**self._chunk(), "choices": [], "usage": self._usage()})
        await reply.end()

    async def _heard(self, event: ipc.IpcMessage) -> None:
        if event["event"] == "started":
            self.prompt_tokens = event["prompt_tokens"]
            told = ("heard", "heard_confidence")
            self.heard = {name: event[name] for name in told} if event.get("heard") else {}
        elif event["event"] == "row":
            self.tokens += event["tokens"]
            self.steps, self.blocks = (
                max(self.steps, event["steps"]),
                max(self.blocks, event["blocks"]),
            )
            self.choices[event["row"]] = {
                "index": event["row"],
                "message": {"role": "assistant", "content": event["text"], "refusal": None},
                "logprobs": None,
                "finish_reason": event["finish"],
            }
            self.details = {
                **self.heard,
                "steps": self.steps,
                "blocks": self.blocks,
                "seed": self.seed,
                "tokens_per_step": round(self.tokens / max(1, self.steps), 2),
                "confidence": min(event["confidence"], self.details.get("confidence", 1.0)),
            }
            if event["late"]:
                self.details["truncated_by"] = "deadline"
            if "structure" in event:
                self.structures[event["row"]] = event["structure"]
            for kind in ("repairs", "decisions", "notes") if self.structures else ():
                self.details[kind] = [
                    {"index": row, **each} if isinstance(each, dict) else each
                    for row in sorted(self.structures)
                    for each in self.structures[row][kind]
                ]

    async def _tell(self, reply: SseWriter, event: ipc.IpcMessage) -> None:
        kind, row = event["event"], event.get("row", 0)
        if kind == "started":
            await reply.begin()
            for number in range(len(self.told)):
                await reply.data(self._chunk(number, {"role": "assistant", "content": ""}))
        elif kind == "text":
            self.told[row] += len(event["text"])
            more = (
                {"mmdiff": {"type": "commit", "offset": self.told[row]}}
                if self.asked.diffusing
                else {}
            )
            await reply.data({**self._chunk(row, {"content": event["text"]}), **more})
        elif kind == "draft":
            await reply.data({**self._chunk(row, {}), "mmdiff": event["draft"]})
        elif kind == "row":
            delta = {"content": event["rest"]} if event["rest"] else {}
            await reply.data(
                {
                    **self._chunk(row, delta, event["finish"]),
                    "mmdiff": {"type": "end", **self.details},
                }
            )

    def _chunk(
        self, row: int = 0, delta: dict[str, Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        choices = [{"index": row, "delta": delta or {}, "logprobs": None, "finish_reason": finish}]
        usage = (
            {"usage": None}
            if self.asked.stream_options and self.asked.stream_options.include_usage
            else {}
        )
        return {**self.head, "object": "chat.completion.chunk", "choices": choices, **usage}

    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": self.prompt_tokens + self.tokens,
        }
