"""Conversations as the engine gets them, made into what a pipeline takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from mmdiff.serve.engine import ipc
from mmdiff.structured.schema.serialize import EXTRACT_PROMPT, outline


def with_outline(messages: Sequence[Any], schema: Any) -> list[dict[str, Any]]:
    """The conversation with what is wanted said at its end, as `Pipeline.extract` does."""
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

    def filled(part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] == "text":
            return part
        array = arrays[part["array"]]
        return {
            "type": part["type"],
            part["type"]: Image.fromarray(array) if part["type"] == "image" else array,
        }

    return [
        {
            "role": message["role"],
            "content": message["content"]
            if isinstance(message["content"], str)
            else [filled(part) for part in message["content"]],
        }
        for message in messages
    ]
