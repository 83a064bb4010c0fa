"""/v1/audio/transcriptions: audio as a form's file, its transcript in OpenAI's formats.

A stream emits each segment when it is recognised, in the order of the audio; where channels are
separate, one channel after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mmdiff.config import shown
from mmdiff.serve.engine.messages import (
    ModelInfo,
    RequestEvent,
    SegmentTranscribed,
    SpeechFound,
    TranscribeRequest,
)
from mmdiff.serve.errors import ApiError, invalid
from mmdiff.serve.http.middleware import state_of
from mmdiff.serve.http.parsing import check_coding, validated
from mmdiff.serve.http.responses import Chunk, Completion, json_body
from mmdiff.serve.http.schemas import TranscriptionRequest
from mmdiff.serve.http.state import AppState
from mmdiff.serve.media.parse import Medium
from mmdiff.transcript import FORMATS, Segment, Transcript, summary, verbose

FIELDS, FIELD_BYTES = 16, 64 << 10
TRUTH = {"true": True, "false": False, "1": True, "0": False}


async def read(state: AppState, request: Request) -> TranscriptionCompletion:
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ApiError(
            415,
            "unsupported_media_type",
            "send the audio as multipart/form-data, in a field `file`",
        )
    check_coding(request)
    try:
        async with request.form(max_files=1, max_fields=FIELDS, max_part_size=FIELD_BYTES) as form:
            body = validated(TranscriptionRequest, _fields(form))
            data = await _file(form, state.options.max_audio)
    # the second one is let through by older releases of starlette
    except (HTTPException, FormParserError):
        raise ApiError(
            400,
            "invalid_request",
            f"the form cannot be read: send one file and at most {FIELDS} fields of "
            f"at most {FIELD_BYTES >> 10} KiB",
        ) from None
    state.check_model(body.model)
    _check_language(body.language, state.model)
    audio = Medium("audio", data, "file", "audio 0", body.channels == "separate")
    return TranscriptionCompletion(state_of(request)["id"], audio, body)


def _check_language(language: str | None, model: ModelInfo) -> None:
    """
    Raises:
        ApiError: the speech model does not know it, or there is none.
    """
    if model.speech_model is None:
        raise ApiError(400, "invalid_request", model.no_speech_model, "file")
    if language is None or language.strip().lower() in model.languages:
        return
    known = ", ".join(model.languages[:12])
    raise invalid(
        "language",
        f"language={language[:80]!r} is not known to {model.speech_model}: use one of {known}",
    )


async def _file(form: FormData, most: int) -> bytes:
    files = [value for value in form.getlist("file") if isinstance(value, UploadFile)]
    if len(files) != 1:
        raise invalid("file", "the form needs one file, in a field `file`", "invalid_request")
    if (files[0].size or 0) > most:
        message = f"the file has {files[0].size:,} bytes, more than the {most:,} allowed"
        raise ApiError(413, "audio_too_large", message, "file")
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


class TranscriptionCompletion(Completion):
    """One transcript, as far as it is made."""

    def __init__(self, id: str, audio: Medium, body: TranscriptionRequest) -> None:
        request = TranscribeRequest(id, body.language, body.prompt, body.temperature or 0.0)
        super().__init__(request, [audio], body.stream)
        self.format = body.response_format
        self.granularities = body.timestamp_granularities or ["segment"]
        self.segments: list[Segment] = []
        self.duration, self.language = 0.0, ""

    def add(self, event: RequestEvent) -> None:
        match event:
            case SpeechFound():
                self.duration = event.duration
            case SegmentTranscribed():
                self.language = event.language
                self.segments.append(event.segment)

    def chunks(self, event: RequestEvent) -> Iterator[Chunk]:
        if isinstance(event, SegmentTranscribed):
            space = " " if len(self.segments) > 1 else ""
            yield {"type": "transcript.text.delta", "delta": space + event.segment.text}

    def last_chunks(self) -> Iterator[Chunk]:
        made = self._transcript()
        yield {"type": "transcript.text.done", "text": made.text, "mmdiff": summary(made)}

    def body(self) -> Response:
        transcript = self._transcript()
        if self.format == "verbose_json":
            return json_body(verbose(transcript, self.granularities))
        kind = "application/json" if self.format == "json" else "text/plain; charset=utf-8"
        return Response(FORMATS[self.format](transcript), media_type=kind)

    def _transcript(self) -> Transcript:
        return Transcript.of(self.segments, self.duration, self.language)
