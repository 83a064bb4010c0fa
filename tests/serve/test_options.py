"""A setting is written once: flags and schemas are derived from the fields of dataclasses."""

from dataclasses import fields
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from mmdiff.config import DecodingConfig
from mmdiff.errors import MMDiffError
from mmdiff.serve.http.schemas import TAKEN, ChatRequest
from mmdiff.serve.options import ServerOptions, with_flags


def parsed(*arguments: str) -> Any:
    """The options that a command line makes."""
    app, made = typer.Typer(), list[Any]()

    @app.command()
    @with_flags
    def command(*, twice: bool = False, **flags: Any) -> None:
        made.append(ServerOptions.of_flags(flags, max_n=2 if twice else 1))

    result = CliRunner().invoke(app, arguments)
    if isinstance(result.exception, MMDiffError):
        raise result.exception
    return made[0] if made else result.output


def test_flags_are_the_fields_of_the_options() -> None:
    assert parsed() == ServerOptions(max_n=1)
    assert parsed("--twice").max_n == 2
    given = ("folder", "--port", "1", "--api-key", "a", "--api-key", "b", "--queue-timeout", "0.5")
    expected = ServerOptions("folder", port=1, api_keys=("a", "b"), queue_timeout=0.5, max_n=1)
    assert parsed(*given) == expected


def test_flags_that_do_not_fit_are_refused() -> None:
    assert "65535" in parsed("--port", "65536")
    with pytest.raises(
        MMDiffError, match="--overload-status-code 500 does not fit; use 503 or 429"
    ):
        parsed("--overload-status-code", "500")


def test_requests_take_every_decoding_setting() -> None:
    names = {each.name for each in fields(DecodingConfig)} - set(TAKEN)
    assert names <= set(ChatRequest.model_fields)
    given = {"messages": [{"role": "user", "content": "a"}], "lookahead": 2, "cache": "none"}
    assert ChatRequest.model_validate(given).changes() == {"lookahead": 2, "cache": "none"}
