"""What a user can cause, as `ValueError`s that the command line prints as one sentence (exit code 2)."""

from __future__ import annotations

import importlib
from typing import Any


class MMDiffError(ValueError):
    """Bad input: the message names the offending value and says what to do."""


class NoSpeechError(MMDiffError):
    """Nobody speaks where a question was expected."""


class ContextError(MMDiffError):
    """A prompt and its answer take more positions than the model has."""


class CheckpointError(MMDiffError):
    """A checkpoint is damaged, incomplete or of another architecture."""


def require_extra(module: str, extra: str, purpose: str) -> Any:
    """A module of one of mmdiff's extras, or the sentence that says which to install.

    Raises:
        MMDiffError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MMDiffError(f"{purpose} needs {module}, which is not installed: pip install 'mmdiff[{extra}]'") from error
