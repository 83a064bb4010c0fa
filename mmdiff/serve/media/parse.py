"""Images and audio of a request: data URLs parsed, addresses fetched where that is allowed, files
decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdiff.files import data_url_head, decode_base64, is_data_url
from mmdiff.serve.engine import ipc
from mmdiff.serve.errors import ApiError, invalid
from mmdiff.serve.http.schemas import AudioPart, AudioUrlPart, ChatMessage, ImagePart, TextPart
from mmdiff.serve.media.fetch import fetch
from mmdiff.serve.media.pool import MediaPool
from mmdiff.serve.options import ServerOptions


class Medium:
    """An image or audio as it came, and where it stood in the request."""

    def __init__(
        self, kind: str, source: str | bytes, param: str, name: str, separate: bool = False
    ) -> None:
        """
        Args:
            separate: whether the channels of audio are kept apart.
        """
        self.kind, self.source = kind, source
        self.param, self.name = param, name
        self.separate = separate


def split_media(
    messages: Sequence[ChatMessage], options: ServerOptions
) -> tuple[list[dict[str, Any]], list[Medium]]:
    """The conversation with numbers in place of its media, and the media, not yet decoded.

    Raises:
        ApiError: there are more of something than allowed.
    """
    if len(messages) > options.max_messages:
        raise invalid(
            "messages",
            f"{len(messages):,} messages are more than the {options.max_messages} allowed",
        )
    parts = sum(len(message.content) for message in messages if isinstance(message.content, list))
    if parts > options.max_parts:
        raise invalid("messages", f"{parts:,} parts are more than the {options.max_parts} allowed")
    media: list[Medium] = []
    made: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        role = "system" if message.role == "developer" else message.role
        if isinstance(message.content, str):
            made.append({"role": role, "content": message.content})
            continue
        content: list[dict[str, Any]] = []
        for position, part in enumerate(message.content):
            param = f"messages[{number}].content[{position}]"
            if isinstance(part, TextPart):
                content.append({"type": "text", "text": part.text})
                continue
            medium = _medium(part, param, media)
            content.append({"type": medium.kind, "array": len(media)})
            media.append(medium)
        made.append({"role": role, "content": content})
    check_counts(media, options)
    return made, media


def check_counts(media: Sequence[Medium], options: ServerOptions) -> None:
    for kind, what, most in (
        ("image", "images", options.max_images),
        ("audio", "audio inputs", options.max_audios),
    ):
        if (count := sum(medium.kind == kind for medium in media)) > most:
            raise invalid("messages", f"{count:,} {what} are more than the {most} allowed")


def _medium(
    part: ImagePart | AudioPart | AudioUrlPart, param: str, before: Sequence[Medium]
) -> Medium:
    kind = "image" if isinstance(part, ImagePart) else "audio"
    name = f"{kind} {sum(medium.kind == kind for medium in before)}"
    if isinstance(part, ImagePart):
        return Medium(kind, part.image_url.url, f"{param}.image_url.url", name)
    if isinstance(part, AudioUrlPart):
        return Medium(kind, part.audio_url.url, f"{param}.audio_url.url", name)
    param = f"{param}.input_audio.data"
    return Medium(kind, _unpacked(part.input_audio.data, param, name), param, name)


async def decoded(
    media: Sequence[Medium], pool: MediaPool, options: ServerOptions
) -> list[ipc.Array]:
    """The arrays of all media.

    Raises:
        ApiError: one of them cannot be had, read, or is larger than allowed.
    """
    arrays = []
    for medium in media:
        most = options.max_image if medium.kind == "image" else options.max_audio
        data = await _data(medium, most, options)
        medium.source = b""  # what is decoded is not kept twice
        if not data:
            raise invalid(medium.param, f"{medium.name} is empty", f"invalid_{medium.kind}")
        if len(data) > most:
            raise ApiError(
                413,
                f"{medium.kind}_too_large",
                f"{medium.name} has {len(data):,} bytes, more than the {most:,} allowed",
                medium.param,
            )
        try:
            arrays.append(await pool.open(medium.kind, data, medium.name, medium.separate))
        except ApiError as error:
            raise ApiError(error.status, error.code, error.message, medium.param) from None
    return arrays


async def _data(medium: Medium, most: int, options: ServerOptions) -> bytes:
    if isinstance(medium.source, bytes):
        return medium.source
    if is_data_url(medium.source):
        return unpacked_url(medium.source, medium.param, medium.name)
    return await fetch(
        medium.source, medium.param, medium.name, most, options.allowed_media_domains
    )


def unpacked_url(url: str, param: str, name: str) -> bytes:
    """The bytes of a data URL (RFC 2397), in base64 only."""
    head = data_url_head(url)
    if head is None:
        raise invalid(
            param, f"{name} is not a data URL such as data:image/png;base64,...", "invalid_data_url"
        )
    return _unpacked(url[head:], param, name)


def _unpacked(text: str, param: str, name: str) -> bytes:
    if is_data_url(text):  # where its base64 alone is expected
        return unpacked_url(text, param, name)
    try:
        return decode_base64(text)
    except ValueError:
        raise invalid(param, f"{name} is not base64", "invalid_data_url") from None
