"""Conversations as the engine gets them, turned into what a pipeline takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from mmdiff.prompts import EXTRACT_PROMPT
from mmdiff.serve.engine import ipc
from mmdiff.structured.schema.serialize import outline


def with_outline(messages: Sequence[Any], schema: Any) -> list[dict[str, Any]]:
    """The conversation with the schema's outline at its end, as `Pipeline.extract` has it."""
    last, wanted = messages[-1], EXTRACT_PROMPT.format(outline(schema))
    content = last["content"]
    if isinstance(content, str):
        return [*messages[:-1], {**last, "content": f"{content}\n{wanted}"}]
    parts = [dict(part) for part in content]
    texts = [part for part in parts if part["type"] == "text"]
    if texts:
        texts[-1]["text"] += f"\n{wanted}"
    else:
        parts.append({"type": "text", "text": wanted})
    return [*messages[:-1], {**last, "content": parts}]


def with_media(messages: Sequence[Any], arrays: Sequence[ipc.Array]) -> list[dict[str, Any]]:
    """The conversation with the arrays where their numbers stand."""
    return [
        {"role": message["role"], "content": _with_media(message["content"], arrays)}
        for message in messages
    ]


def _with_media(content: Any, arrays: Sequence[ipc.Array]) -> Any:
    if isinstance(content, str):
        return content
    return [_filled(part, arrays) for part in content]


def _filled(part: dict[str, Any], arrays: Sequence[ipc.Array]) -> dict[str, Any]:
    match part["type"]:
        case "image":
            return {"type": "image", "image": Image.fromarray(arrays[part["array"]])}
        case "audio":
            return {"type": "audio", "audio": arrays[part["array"]]}
        case _:
            return part
