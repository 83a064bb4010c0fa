"""Servers in processes of their own, as people start them; most tests share one (`server`, in
tests/conftest.py)."""

from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.serving import Served, data_url


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Start servers with options of one's own."""
    started: list[Served] = []

    def start(*options: str, wait: bool = True) -> Served:
        started.append(Served(tmp_path / f"log{len(started)}", *options, wait=wait))
        return started[-1]

    yield start
    for served in started:
        served.client.close()
        if served.process.poll() is None:
            served.process.kill()
            served.process.wait()


@pytest.fixture(scope="session")
def shapes(root: Path) -> dict[str, Any]:
    """An image with a red circle, as a part of a message."""
    return {"type": "image_url", "image_url": {"url": data_url(root / "examples" / "shapes.png")}}


@pytest.fixture(scope="session")
def question(root: Path) -> dict[str, Any]:
    """A spoken question, as a part of a message."""
    sound = b64encode((root / "examples" / "question.flac").read_bytes()).decode()
    return {"type": "input_audio", "input_audio": {"data": sound, "format": "flac"}}
