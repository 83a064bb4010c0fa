"""Inter-process communication: frames of a JSON header and arrays as raw bytes. Nothing is
unpickled.

A frame is the length of its header (4 bytes, little end first), the header as JSON, and the bytes
of its arrays, whose types and shapes the header holds under "arrays".
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
IpcMessage = dict[str, Any]
LENGTH = struct.Struct("<I")
TYPES = ("uint8", "float32")


def pack(message: IpcMessage, arrays: Sequence[Array] = ()) -> list[bytes | memoryview]:
    """The parts of a frame, in order."""
    described = [[str(array.dtype), list(array.shape)] for array in arrays]
    header = json.dumps({**message, "arrays": described}).encode()
    return [
        LENGTH.pack(len(header)) + header,
        *(np.ascontiguousarray(array).data.cast("B") for array in arrays),
    ]


def _described(header: bytes) -> tuple[IpcMessage, list[tuple[str, list[int], int]]]:
    message = json.loads(header)
    found = []
    for kind, shape in message.pop("arrays"):
        if kind not in TYPES:
            raise ValueError(f"arrays of {kind} are not sent here")
        found.append((kind, shape, math.prod(shape) * np.dtype(kind).itemsize))
    return message, found


def send(sock: socket.socket, message: IpcMessage, arrays: Sequence[Array] = ()) -> None:
    for part in pack(message, arrays):
        sock.sendall(part)


def receive(sock: socket.socket) -> tuple[IpcMessage, list[Array]]:
    """The next frame; an EOFError where the other side is gone."""
    header = _exactly(sock, LENGTH.unpack(_exactly(sock, LENGTH.size))[0])
    message, described = _described(bytes(header))
    arrays: list[Array] = [
        np.frombuffer(_exactly(sock, size), kind).reshape(shape) for kind, shape, size in described
    ]
    return message, arrays


def _exactly(sock: socket.socket, size: int) -> bytearray:
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        count = sock.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]
    return buffer


async def send_async(
    writer: asyncio.StreamWriter, message: IpcMessage, arrays: Sequence[Array] = ()
) -> None:
    """Waits while the other side is behind."""
    for part in pack(message, arrays):
        writer.write(part)
    await writer.drain()


async def receive_async(reader: asyncio.StreamReader) -> tuple[IpcMessage, list[Array]]:
    """The next frame; an EOFError where the other side is gone."""
    (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    message, described = _described(await reader.readexactly(length))
    arrays: list[Array] = [
        np.frombuffer(await reader.readexactly(size), kind).reshape(shape)
        for kind, shape, size in described
    ]
    return message, arrays
