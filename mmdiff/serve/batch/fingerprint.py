"""Digest of a model's files, so that answers of one model are not taken for another's."""

from __future__ import annotations

import hashlib
from pathlib import Path

WHOLE_BYTES = 1 << 30  # files of at most this size are hashed; larger ones count by size and date
ENDINGS = (".json", ".bin", ".safetensors", ".txt", ".model", ".jinja")


def fingerprint(folder: Path) -> str:
    """A digest of a checkpoint folder's files."""
    known = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in ENDINGS or not path.is_file():
            continue
        state = path.stat()
        known.update(f"{path.name} {state.st_size}\n".encode())
        if state.st_size > WHOLE_BYTES:
            known.update(str(state.st_mtime_ns).encode())
            continue
        with open(path, "rb") as file:
            known.update(hashlib.file_digest(file, "sha256").digest())
    return known.hexdigest()[:32]
