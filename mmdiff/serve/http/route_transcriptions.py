"""/v1/audio/transcriptions: a sound as a form's file, its words in OpenAI's forms, all at once or
as they are written.

A stream emits each segment when it is recognised, in the order of the audio.
"""

from __future__ import annotations

from typing import Any

from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from mmdiff.config import shown
from mmdiff.serve.engine import ipc
from mmdiff.serve.errors import ApiError, invalid
from mmdiff.serve.http.parsing import check_coding, validated
from mmdiff.serve.http.responses import AppState, EngineRequest, Perform, SseWriter
from mmdiff.serve.http.schemas import TranscriptionRequest
from mmdiff.serve.media.parse import Medium
from mmdiff.transcript import FORMATS, Segment, Transcript, Word, summary, verbose

FIELDS, FIELD_BYTES = 16, 64 << 10
KINDS = {"json": "application/json", "verbose_json": "application/json"}
TRUTH = {"true": True, "false": False, "1": True, "0": False}


async def read(house: AppState, request: Request) -> Perform:
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ApiError(
            415,
            "unsupported_media_type",
            "send the sound as multipart/form-data, in a field `file`",
        )
    check_coding(request)
    try:
        async with request.form(max_files=1, max_fields=FIELDS, max_part_size=FIELD_BYTES) as form:
            asked, data = (
                validated(TranscriptionRequest, _fields(form)),
                await _file(form, house.options.max_audio),
            )
    except (
        HTTPException,
        FormParserError,
    ):  # the second one is let through by older releases of starlette
        raise ApiError(
            400,
            "invalid_request",
            f"the form cannot be read: send one file and up to {FIELDS} fields of "
            f"up to {FIELD_BYTES >> 10} KiB",
        ) from None
    house.check_model(asked.model)
    if house.about["speech_model"] is None:
        raise ApiError(400, "invalid_request", house.about["no_speech_model"], "file")
    if (
        asked.language is not None
        and asked.language.strip().lower() not in house.about["languages"]
    ):
        known = ", ".join(house.about["languages"][:12])
        raise invalid(
            "language",
            f"language={asked.language[:80]!r} is not known to {house.about['speech_model']}: "
            f"use one of {known}",
        )
    writing = Writing(EngineRequest(house, request), asked)
    return lambda reply: writing.perform(reply, Medium("audio", data, "file", "audio 0"))


async def _file(form: FormData, most: int) -> bytes:
    files = [value for value in form.getlist("file") if isinstance(value, UploadFile)]
    if len(files) != 1:
        raise invalid("file", "the form needs one file, in a field `file`", "invalid_request")
    if (files[0].size or 0) > most:
        said = f"the file has {files[0].size:,} bytes, more than the {most:,} allowed"
        raise ApiError(413, "audio_too_large", said, "file")
    return await files[0].read()


def _fields(form: FormData) -> dict[str, Any]:
    """The fields beside the file, by the names of the model; `stream` is a word in a form."""
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name == "file" or value == "":  # an empty field asks for nothing
            continue
        if isinstance(value, UploadFile):
            raise invalid(
                name[:80], f"{shown(name)} is a file: only `file` may be one", "invalid_request"
            )
        if name in ("timestamp_granularities[]", "timestamp_granularities"):
            fields.setdefault("timestamp_granularities", []).append(value)
        elif name in fields:
            raise invalid(name[:80], f"{shown(name)} is given twice", "invalid_request")
        else:
            fields[name] = value
    if "stream" in fields:
        if fields["stream"].lower() not in TRUTH:
            raise invalid("stream", "stream must be true or false", "invalid_request")
        fields["stream"] = TRUTH[fields["stream"].lower()]
    return fields


class Writing:
    """One transcript, as far as it is written."""

    def __init__(self, work: EngineRequest, asked: TranscriptionRequest) -> None:
        self.work, self.asked = work, asked
        self.segments: list[Segment] = []
        self.duration, self.language = 0.0, ""

    async def perform(self, reply: SseWriter, sound: Medium) -> None:
        options = {
            "language": self.asked.language,
            "prompt": self.asked.prompt,
            "temperature": self.asked.temperature or 0.0,
        }
        message: ipc.IpcMessage = {"op": "transcribe", "options": options}
        if not self.asked.stream:
            await self.work.events(message, [sound], self._heard)
            form = self.asked.response_format
            kind = KINDS.get(form, "text/plain; charset=utf-8")
            await reply.whole(self._body(form), kind)
            return

        async def streamed(event: ipc.IpcMessage) -> None:
            await self._heard(event)
            await reply.begin()
            if event["event"] == "segment":
                space = " " if len(self.segments) > 1 else ""
                await reply.data(
                    {"type": "transcript.text.delta", "delta": space + self.segments[-1].text}
                )

        await self.work.events(message, [sound], streamed, reply.comment)
        made = self._transcript()
        await reply.data(
            {"type": "transcript.text.done", "text": made.text, "mmdiff": summary(made)}
        )
        await reply.end()

    async def _heard(self, event: ipc.IpcMessage) -> None:
        if event["event"] == "found":
            self.duration = event["duration"]
        elif event["event"] == "segment":
            self.language, found = event["language"], event["segment"]
            words = tuple(Word(**word) for word in found["words"])
            self.segments.append(
                Segment(**{**found, "words": words, "token_ids": tuple(found["token_ids"])})
            )

    def _transcript(self) -> Transcript:
        return Transcript.of(self.segments, self.duration, self.language)

    def _body(self, form: str) -> str | dict[str, Any]:
        if form == "verbose_json":
            return verbose(self._transcript(), self.asked.timestamp_granularities or ["segment"])
        return FORMATS[form](self._transcript())
