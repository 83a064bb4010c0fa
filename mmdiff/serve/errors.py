"""The one shape of everything that goes wrong: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from typing import Any

RETRY_AFTER = 1  # seconds, with answers that may be asked for again
LONGEST = 500  # characters of a message, whatever was put into it
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class ApiError(Exception):
    """An answer that is a refusal. Its message is for the client, and holds nothing of ours: no
    path, no traceback."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        message = message if len(message) <= LONGEST else f"{message[: LONGEST - 3]}..."
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param

    @property
    def body(self) -> dict[str, Any]:
        kind = TYPES.get(
            self.status, "api_error" if self.status >= 500 else "invalid_request_error"
        )
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        }

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(RETRY_AFTER)} if self.status in (429, 503) else {}


class Disconnected(Exception):
    """Nobody waits for the answer any more."""


def invalid(param: str, message: str, code: str = "invalid_parameter") -> ApiError:
    """A value that does not fit."""
    return ApiError(400, code, message, param)


def shutting_down() -> ApiError:
    return ApiError(503, "shutting_down", "the server is shutting down; ask another one")


def model_loading() -> ApiError:
    return ApiError(503, "model_loading", "the model is being loaded; ask again in a moment")


def engine_dead() -> ApiError:
    return ApiError(500, "engine_dead", "the engine stopped while it worked on this; ask again")
