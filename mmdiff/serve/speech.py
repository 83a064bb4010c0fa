"""/v1/audio/transcriptions: a sound as a form's file, its words in OpenAI's forms, all at once or as they are written.

Segments are written in the order that suits the engine; a stream tells them in the order of the sound.
"""

from __future__ import annotations

from typing import Any

from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from mmdiff.config import shown
from mmdiff.serve import wire
from mmdiff.serve.bodies import check_coding, validated
from mmdiff.serve.errors import ApiError, invalid
from mmdiff.serve.exchange import Asked, House, Perform, Reply
from mmdiff.serve.media import Medium
from mmdiff.serve.protocol import TranscriptionRequest
from mmdiff.transcript import FORMATS, Segment, Transcript

FIELDS, FIELD_BYTES = 16, 64 << 10
KINDS = {"json": "application/json", "verbose_json": "application/json"}
TRUTH = {"true": True, "false": False, "1": True, "0": False}


async def read(house: House, request: Request) -> Perform:
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ApiError(415, "unsupported_media_type", "send the sound as multipart/form-data, in a field `file`")
    check_coding(request)
    try:
        async with request.form(max_files=1, max_fields=FIELDS, max_part_size=FIELD_BYTES) as form:
            asked, data = validated(TranscriptionRequest, _fields(form)), await _file(form, house.options.max_audio)
    except (HTTPException, FormParserError):  # the second one is let through by older releases of starlette
        raise ApiError(400, "invalid_request", f"the form cannot be read: send one file and up to {FIELDS} fields of "
                                               f"up to {FIELD_BYTES >> 10} KiB") from None
    house.check_model(asked.model)
    if not house.about["sounds"]:
        raise ApiError(400, "invalid_request", "this model takes no sounds", "file")
    writing = Writing(Asked(house, request), asked)
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
            raise invalid(name[:80], f"{shown(name)} is a file: only `file` may be one", "invalid_request")
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

    def __init__(self, work: Asked, asked: TranscriptionRequest) -> None:
        self.work, self.asked = work, asked
        self.segments: list[Segment] = []
        self.starts: list[float] = []  # of all segments to come, in order
        self.told = 0  # of them
        self.duration = 0.0

    async def perform(self, reply: Reply, sound: Medium) -> None:
        settings = {"temperature": self.asked.temperature} if self.asked.temperature else {}
        message: wire.Message = {"op": "transcribe", "gate": True, "decoding": settings}
        if not self.asked.stream:
            await self.work.events(message, [sound], self._heard)
            form = self.asked.response_format
            kind = KINDS.get(form, "text/plain; charset=utf-8")
            await reply.whole(FORMATS[form](self._transcript()), kind)
            return
        words: list[str] = []

        async def streamed(event: wire.Message) -> None:
            await self._heard(event)
            await reply.begin()
            for text in self._in_order():
                words.append(text if not words else f" {text}")
                await reply.data({"type": "transcript.text.delta", "delta": words[-1]})

        await self.work.events(message, [sound], streamed, reply.comment)
        await reply.data({"type": "transcript.text.done", "text": "".join(words)})
        await reply.end()

    async def _heard(self, event: wire.Message) -> None:
        if event["event"] == "found":
            self.starts, self.duration = event["starts"], event["duration"]
        elif event["event"] == "segments":
            self.segments += [Segment(start, end, text, confidence, tuple(ids))
                              for start, end, text, confidence, ids in event["segments"]]

    def _in_order(self) -> list[str]:
        """The words that follow what was told, as far as they are written without a gap."""
        written, words = {segment.start: segment.text for segment in self.segments}, []
        while self.told < len(self.starts) and self.starts[self.told] in written:
            if text := written[self.starts[self.told]]:
                words.append(text)
            self.told += 1
        return words

    def _transcript(self) -> Transcript:
        return Transcript.of(self.segments, self.duration)
