"""Worker processes of the server: started with one end of a socket pair, never forked.

A worker ends when its socket does, so nothing is left behind even when the server is killed.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from mmdiff.serve.engine import ipc

BUFFER = 1 << 20  # bytes


class WorkerProcess:
    """A process, and the frames to and from it."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.process = process
        self.reader, self.writer = reader, writer

    @classmethod
    async def start(cls, module: str, *arguments: str) -> WorkerProcess:
        ours, theirs = socket.socketpair()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        with theirs:
            # a session of its own: Ctrl-C in the terminal is for the server alone
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno()), *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=environment,
            )
        ours.setblocking(False)
        return cls(process, *await asyncio.open_connection(sock=ours, limit=BUFFER))

    async def send(self, message: ipc.IpcMessage, arrays: Sequence[ipc.Array] = ()) -> None:
        await ipc.send_async(self.writer, message, arrays)

    async def receive(self) -> tuple[ipc.IpcMessage, list[ipc.Array]]:
        """An EOFError where the worker is gone."""
        try:
            return await ipc.receive_async(self.reader)
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            raise EOFError from None

    def kill(self) -> None:
        """Now, even one that is stopped."""
        self.writer.close()
        self.process.kill()
        self.process.wait()
