"""What a user can cause, as `ValueError`s that the command line prints as one sentence (exit code
2)."""

from __future__ import annotations

import importlib
from typing import Any


class MMDiffError(ValueError):
    """Bad input: the message names the offending value and says what to do."""


class NoSpeechError(MMDiffError):
    """Audio without speech where a question was expected."""


class ContextError(MMDiffError):
    """A prompt and its answer take more positions than the model has."""


class CheckpointError(MMDiffError):
    """A checkpoint is damaged, incomplete or of another architecture."""


class OldPackageError(MMDiffError):
    """A package that mmdiff always needs is older than it may be."""

    def __init__(self, package: str, version: str, least: str) -> None:
        super().__init__(
            f"mmdiff needs {package} {least} or later, and {version} is installed: pip install "
            f"'{package}>={least}'"
        )


def require_extra(module: str, extra: str, purpose: str) -> Any:
    """A module of one of mmdiff's extras, or the sentence that says which to install.

    Raises:
        MMDiffError: it is not installed, or is and cannot be imported.
    """
    package = module.partition(".")[0]
    command = f"pip install 'mmdiff[{extra}]'"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == package:
            raise MMDiffError(
                f"{purpose} needs {package}, which is not installed: {command}"
            ) from error
        reason = f"{error.name} is missing"
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        reason = _first_line(
            error
        )  # a system library that is missing, or a build for another torch
    command = f"pip install --force-reinstall --no-deps {package.replace('_', '-')}"
    raise MMDiffError(
        f"{purpose} needs {package}, which is installed but cannot be imported ({reason}); try "
        f"{command}"
    )


def require_posix(purpose: str) -> None:
    """What the system must have for processes that are locked, limited and told to stop by signals.

    Raises:
        MMDiffError: it has not.
    """
    try:
        import fcntl  # noqa: F401
        import resource  # noqa: F401
    except ImportError as error:
        raise MMDiffError(
            f"{purpose} needs Linux or macOS (this Python has no module {error.name}); on "
            "Windows use WSL"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:80]
