"""A setting is written once: flags are derived from the fields of dataclasses."""

from dataclasses import fields, replace
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from mmdiff.cli.flags import FLAGGED_SETTINGS, FlagGroup, decoding_flags, flags_of, with_flags
from mmdiff.cli.main import app
from mmdiff.config import DecodingConfig, help_of
from mmdiff.errors import MMDiffError
from mmdiff.serve.options import ServerOptions


def parsed(group: FlagGroup, *arguments: str) -> Any:
    """What a command line makes of the flags, or what is said about it."""
    command_line, made = typer.Typer(), list[Any]()

    @command_line.command()
    @with_flags(given=group)
    def command(given: Any, twice: bool = False) -> None:
        made.append((given, twice))

    result = CliRunner().invoke(command_line, arguments)
    if isinstance(result.exception, MMDiffError):
        raise result.exception
    return made[0] if made else result.output


def test_flags_are_the_fields_of_the_options() -> None:
    server = flags_of(ServerOptions)
    assert parsed(server) == (ServerOptions(), False)
    assert parsed(server, "--twice") == (ServerOptions(), True)
    given = ("folder", "--port", "1", "--api-key", "a", "--api-key", "b", "--queue-timeout", "0.5")
    expected = ServerOptions("folder", port=1, api_keys=("a", "b"), queue_timeout=0.5)
    assert parsed(server, *given) == (expected, False)


def test_flags_that_do_not_fit_are_refused() -> None:
    assert "65535" in parsed(flags_of(ServerOptions), "--port", "65536")
    with pytest.raises(
        MMDiffError, match="--overload-status-code 500 does not fit; use 503 or 429"
    ):
        replace(ServerOptions(), overload_status_code=500).check()
    with pytest.raises(MMDiffError, match="--set 'steps' does not fit; give NAME=VALUE"):
        parsed(decoding_flags(), "--set", "steps")


def test_decoding_settings_that_are_given_come_by_name() -> None:
    group = decoding_flags("threshold", "steps")
    assert parsed(group) == ({}, False)
    assert parsed(group, "--steps", "0", "--set", "rule=wino") == (
        {"steps": 0, "rule": "wino"},
        False,
    )
    assert parsed(group, "--threshold", "0.5", "--set", "threshold=null") == (
        {"threshold": None},
        False,
    )
    assert "No such option" in parsed(group, "--gen-length", "8")
    assert "No such option" in parsed(decoding_flags("steps", any_setting=False), "--set", "a=1")


def test_ask_has_every_flag_of_the_decoding_settings() -> None:
    flags = {each.name: each for each in get_command(app).commands["ask"].params}
    for field in fields(DecodingConfig):
        assert ("flag" in field.metadata) == (field.name in FLAGGED_SETTINGS)
    for name in FLAGGED_SETTINGS:
        assert flags[name].help == help_of(DecodingConfig, name)
        assert flags[name].default is None
