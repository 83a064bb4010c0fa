"""Open a file that a user names, or say in one sentence why not; the same for images and audio.

And what every folder that is written needs: names that outlive a power cut, and the usual
permissions.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import shutil
import stat
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote_to_bytes

from mmdiff.errors import MMDiffError

DATA_URL = re.compile(
    r"\s*data:[^,;]*(?:;(?!\s*base64\s*[,;])[^,;]*)*;\s*base64\s*,", re.IGNORECASE
)
ADDRESS = re.compile(
    r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE
)  # of two letters at least: C:// is a drive
WHITESPACE = b" \t\r\n\f\v"
STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")
LONGEST = 80  # characters of a user's value in a message


def open_file(path: str, what: str, error_type: type[MMDiffError]) -> BinaryIO:
    """A regular file, open for reading.

    Args:
        what: such as "image", for the message.

    Raises:
        error_type: the path is empty, an address, missing, a directory, or not to be read.
    """
    shown = shorten(path)
    if not path:
        raise error_type(f"the path of the {what} is empty: give the path of a {what} file")
    if address := ADDRESS.match(path):
        how = f"download the {what} and give its path"
        if address[1].lower() == "file":
            how = "leave out 'file://'"
        raise error_type(f"{shown} is an address, not a file: {how}")
    try:
        kind = os.stat(path).st_mode
        if stat.S_ISREG(kind):
            return open(path, "rb")
    except FileNotFoundError as error:
        raise error_type(f"{shown} does not exist: give the path of a {what} file") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise error_type(
            f"{shown!r} cannot be read ({reason}): give the path of a readable {what} file"
        ) from error
    kind_name = "not a regular file"
    if stat.S_ISDIR(kind):
        kind_name = "a directory"
    raise error_type(f"{shown} is {kind_name}: give the path of a {what} file")


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
    """Give the weights in `folder` the permissions of its file `like`: safetensors leaves them to
    their owner alone."""
    for file in folder.glob("*.safetensors"):
        shutil.copymode(folder / like, file)


def is_data_url(text: str) -> bool:
    return text[:64].lstrip()[:5].lower() == "data:"


def data_url_head(url: str) -> int | None:
    """How many characters stand before the base64 of a data URL; None where it is none in
    base64."""
    head = DATA_URL.match(url[:1024])
    if head is None:
        return None
    return head.end()


def decode_data_url(url: str, error_type: type[MMDiffError]) -> bytes:
    """The bytes of a data URL (RFC 2397) in base64, in any of the spellings that clients write.

    Raises:
        error_type: it is not in base64.
    """
    head = data_url_head(url)
    if head is None:
        raise error_type(
            f"{shorten(url)!r} is not a data URL in base64: give one such as "
            "data:image/png;base64,iVBO..."
        )
    try:
        return decode_base64(url[head:])
    except ValueError as error:
        raise error_type(
            f"{shorten(url)!r} is not base64 behind its comma ({error}): encode the file again"
        ) from None


def decode_base64(text: str) -> bytes:
    """Base64 with either alphabet, with or without padding and line breaks, also percent-encoded as
    in URLs.

    Raises:
        ValueError: it is something else; the message says what.
    """
    plain = unquote_to_bytes(text) if "%" in text else text.encode()
    padded = plain.translate(STANDARD_ALPHABET, WHITESPACE)
    digits = padded.rstrip(b"=")
    if len(padded) - len(digits) > 2:
        raise ValueError("more padding than there can be")
    return base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)


def shorten(value: str) -> str:
    """A value for a message: its beginning and its end, where it is longer than `LONGEST`
    characters."""
    half = LONGEST // 2
    if len(value) <= LONGEST:
        return value
    return f"{value[:half]}…{value[1 - half :]}"
