"""How the server is started and stopped: keys, limits, signals."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from mmdiff.cli.main import app
from mmdiff.errors import ContextError, MMDiffError
from mmdiff.pipeline import Pipeline
from mmdiff.serve.engine.model_info import limit_positions, model_info
from mmdiff.serve.http import server
from tests.helpers.serving import Served, asking


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The options that a command line makes, or the sentence that refuses it."""

    def parse(*arguments: str, key: str | None = None) -> Any:
        seen: list[Any] = []
        monkeypatch.setattr(server, "serve", lambda options, replicas: seen.append(options) or 0)
        monkeypatch.delenv("MMDIFF_API_KEY", raising=False)
        if key is not None:
            monkeypatch.setenv("MMDIFF_API_KEY", key)
        result = CliRunner().invoke(app, ["serve", *arguments])
        return seen[0] if seen else f"{result.exception} {result.output}"

    return parse


def test_keys_of_the_environment_are_valid_beside_those_of_the_command_line(
    options: Callable[..., Any],
) -> None:
    assert options(key="a b").api_keys == ("a", "b")
    assert options("--api-key", "c").api_keys == ("c",)
    assert options("--api-key", "c", "--api-key", "d", key="a").api_keys == ("c", "d", "a")
    assert options().api_keys == ()
    assert "MMDIFF_API_KEY is empty" in options(key="")  # never a server without a key instead
    assert "--api-key is empty" in options("--api-key", " ", key="a")


def test_origins_are_scheme_and_host(options: Callable[..., Any]) -> None:
    for origin in (
        "https://example.com",
        "http://localhost:3000",
        "*",
        "app://obsidian.md",
        "http://[::1]:80",
    ):
        assert options("--allowed-origins", origin).allowed_origins == (origin,)
    for origin in (
        "example.com",
        "https://example.com/",
        "https://example.com/app",
        "",
        "https://a b",
        "x" * 500,
    ):
        assert "is not an origin" in options("--allowed-origins", origin)
        assert len(options("--allowed-origins", origin)) < 250


def test_times_are_finite(options: Callable[..., Any]) -> None:
    for name in ("queue", "request", "shutdown", "engine"):
        assert "is not a number of seconds" in options(f"--{name}-timeout", "inf")
        assert isinstance(options(f"--{name}-timeout", "nan"), str)  # refused by its range
        assert options(f"--{name}-timeout", "2.5")


def test_a_model_uses_no_more_positions_than_it_may(endless: Pipeline) -> None:
    config = endless.model.model_config
    try:
        with pytest.raises(
            MMDiffError, match="--max-model-len 1025 is more than the 1024 positions of the model"
        ):
            limit_positions(endless, 1025)
        limit_positions(endless, 60)
        assert model_info(endless).max_model_len == 60
        endless.start(
            [[{"role": "user", "content": "hello"}]], gen_length=8, block_length=8, steps=8
        )
        with pytest.raises(ContextError, match="60 positions"):
            endless.start(
                [[{"role": "user", "content": "word " * 50}]], gen_length=8, block_length=8, steps=8
            )
    finally:
        endless.model.model_config = config


def started(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mmdiff.cli.main", "serve", "tiny", "--port", "0", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.long
def test_a_length_beyond_the_models_is_refused_at_the_start() -> None:
    ended = started("--max-model-len", "100000")
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "--max-model-len 100000 is more than the 1024 positions of the model" in ended.stderr


@pytest.mark.slow
@pytest.mark.long
def test_a_shorter_length_holds_on_every_route_and_a_hangup_drains(
    serve: Callable[..., Served],
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored
    try:
        served = serve("--max-model-len", "100", "--api-key", "a")
    finally:
        signal.signal(signal.SIGHUP, before)
    key = {"Authorization": "Bearer a"}
    models = served.client.get("/v1/models", headers=key).json()["data"]
    assert [model["max_model_len"] for model in models] == [100]
    assert served.chat("hello", key="a").status_code == 200
    long = " ".join(["word"] * 120)
    for path, body in (
        ("/v1/chat/completions", asking(long)),
        ("/v1/query", {"question": long}),
        ("/v1/chat/completions", asking("a", gen_length=101)),
        ("/v1/query", {"question": "a", "gen_length": 101}),
    ):
        answer = served.client.post(path, json=body, headers=key)
        assert answer.status_code == 400 and "100" in answer.json()["error"]["message"], path
    slow = asking(
        "what?", stream=True, gen_length=64, block_length=64, steps=64, rule="quota", cache="none"
    )
    with served.client.stream("POST", "/v1/chat/completions", json=slow, headers=key) as answer:
        lines = answer.iter_lines()
        next(lines)
        served.process.send_signal(signal.SIGHUP)
        assert list(lines)[-2] == "data: [DONE]"  # what had begun was finished
    assert served.process.wait(20) == 0


@pytest.mark.slow
@pytest.mark.long
def test_a_hangup_is_ignored_under_nohup(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a child inherits what is ignored
    try:
        served = serve()
    finally:
        signal.signal(signal.SIGHUP, before)
    served.process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert served.chat("hello").status_code == 200
