"""Open a file that a user names, or say in one sentence why not; the same for pictures and sounds.

And what every folder that is written needs: names that outlive a power cut, and the usual permissions.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
from pathlib import Path
from typing import BinaryIO

from mmdiff.errors import MMDiffError


def open_file(path: str, what: str, error_type: type[MMDiffError]) -> BinaryIO:
    """A regular file, open for reading.

    Args:
        what: "picture" or "sound", for the message.

    Raises:
        error_type: the path is empty, an address, missing, a directory, or not to be read.
    """
    if not path:
        raise error_type(f"the path of the {what} is empty: give the path of a {what} file")
    if path.startswith(("http://", "https://", "data:")):
        raise error_type(f"{path[:80]} is an address, not a file: download the {what} and give its path")
    try:
        kind = os.stat(path).st_mode
        if stat.S_ISREG(kind):
            return open(path, "rb")
    except FileNotFoundError as error:
        raise error_type(f"{path} does not exist: give the path of a {what} file") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise error_type(f"{path!r} cannot be read ({reason}): give the path of a readable {what} file") from error
    kind_name = "a directory" if stat.S_ISDIR(kind) else "not a regular file"
    raise error_type(f"{path} is {kind_name}: give the path of a {what} file")


def read_stream(stream: BinaryIO, name: str, error_type: type[MMDiffError]) -> BinaryIO:
    """All of a binary stream, from its start where it can seek.

    Raises:
        error_type: it is closed or not to be read, or was opened as text.
    """
    try:
        if stream.seekable():
            stream.seek(0)  # what was just saved into a buffer leaves it at its end
        content = stream.read()
    except (OSError, ValueError, AttributeError) as error:
        raise error_type(f"{name} cannot be read ({error}): give an open binary stream") from error
    if not isinstance(content, bytes):
        raise error_type(f"{name} was opened as text: open it with mode 'rb'")
    return io.BytesIO(content)


def sync_folder(folder: Path) -> None:
    """So that a new name in it outlives a power cut too."""
    with contextlib.suppress(OSError):  # some systems cannot open folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def share_weights(folder: Path, like: str) -> None:
    """Give the weights in `folder` the permissions of its file `like`: safetensors leaves them to their owner alone."""
    for file in folder.glob("*.safetensors"):
        shutil.copymode(folder / like, file)
