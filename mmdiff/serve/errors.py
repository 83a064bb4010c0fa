"""Errors of the API, all in one shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from typing import Any

RETRY_AFTER = 1  # seconds, where the same request may succeed later
LONGEST = 500  # characters of a message
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
    """A refusal. Its message is for the client, and holds no path or traceback of ours."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        if len(message) > LONGEST:
            message = f"{message[: LONGEST - 3]}..."
        super().__init__(message)
        self.status, self.code = status, code
        self.message, self.param = message, param

    @property
    def body(self) -> dict[str, Any]:
        other = "api_error" if self.status >= 500 else "invalid_request_error"
        error = {
            "message": self.message,
            "type": TYPES.get(self.status, other),
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(RETRY_AFTER)} if self.status in (429, 503) else {}


class Disconnected(Exception):
    """The client has disconnected."""


def invalid(param: str, message: str, code: str = "invalid_parameter") -> ApiError:
    """A value that does not fit."""
    return ApiError(400, code, message, param)


def shutting_down() -> ApiError:
    return ApiError(503, "shutting_down", "the server is shutting down; use another one")


def model_loading() -> ApiError:
    return ApiError(503, "model_loading", "the model is being loaded; try again in a moment")


def engine_dead() -> ApiError:
    return ApiError(500, "engine_dead", "the engine stopped while it worked on this; send it again")
