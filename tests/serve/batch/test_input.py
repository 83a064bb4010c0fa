"""Lines of requests: what is none becomes an error with its number, and names change with what
decides answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmdiff.errors import MMDiffError
from mmdiff.serve.batch import input
from mmdiff.serve.batch.input import index_lines, read_request

URLS = ("/v1/chat/completions", "/v1/audio/transcriptions")


def line(custom_id: Any = "a", **more: Any) -> bytes:
    request = {
        "custom_id": custom_id,
        "method": "POST",
        "url": URLS[0],
        "body": {"model": "tiny"},
        **more,
    }
    return json.dumps(request).encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "in.jsonl"


def test_lines_are_found_again(path: Path) -> None:
    path.write_bytes(
        b"\xef\xbb\xbf" + line("a") + b"\r\n\n  \n" + line("b", body={"x": 1}) + b"\n" + line("c")
    )
    lines = index_lines(path, URLS, "m")
    assert [(each.number, each.custom_id) for each in lines] == [(1, "a"), (4, "b"), (5, "c")]
    with open(path, "rb") as file:
        assert [read_request(file, each, URLS, "m").body for each in reversed(lines)] == [
            {"model": "tiny"},
            {"x": 1},
            {"model": "tiny"},
        ]
    assert len({each.id for each in lines}) == 3
    assert {each.id for each in index_lines(path, URLS, "other")}.isdisjoint(
        each.id for each in lines
    )


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"{", "invalid_json"),
        (b"[]", "invalid_json"),
        (b"nul", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (line(""), "missing_custom_id"),
        (line(None), "missing_custom_id"),
        (line(7), "missing_custom_id"),
        (line(["a"]), "missing_custom_id"),
        (line(method="GET"), "invalid_method"),
        (line(url="/v1/fly"), "invalid_url"),
        (line(url=None), "invalid_url"),
        (line(url=[]), "invalid_url"),
        (line(body=None), "missing_body"),
        (line(body=[]), "missing_body"),
        (line("b"), "duplicate_custom_id"),
        (b"\0", "invalid_json"),
        (b'{"custom_id": "a"', "invalid_json"),
    ],
)
def test_what_is_no_request_is_named(path: Path, raw: bytes, code: str) -> None:
    path.write_bytes(line("b") + b"\n" + raw + b"\n" + line("c") + b"\n")
    first, bad, last = index_lines(path, URLS, None)
    assert first.problem is None and last.problem is None and bad.custom_id is None
    assert bad.problem is not None and bad.problem.code == code and bad.number == 2
    assert len(str(bad.problem)) < 300


def test_a_line_that_is_too_long_is_passed_over(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input, "MAX_LINE", 1000)
    path.write_bytes(line("a") + b"\n" + b"x" * 5000 + b"\n" + line("b") + b"\n" + b"y" * 1500)
    lines = index_lines(path, URLS, None)
    assert [each.problem.code if each.problem else each.custom_id for each in lines] == [
        "a",
        "line_too_long",
        "b",
        "line_too_long",
    ]
    with open(path, "rb") as file:
        assert read_request(file, lines[2], URLS, None).custom_id == "b"


def test_a_file_that_changes_meanwhile_is_noticed(path: Path) -> None:
    path.write_bytes(line("a") + b"\n")
    (only,) = index_lines(path, URLS, None)
    path.write_bytes(line("b") + b"\n")
    with open(path, "rb") as file, pytest.raises(MMDiffError, match="was changed"):
        read_request(file, only, URLS, None)


@pytest.mark.parametrize("content", [None, b"", b"\n \n"])
def test_no_lines_are_the_callers_mistake(path: Path, content: bytes | None) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MMDiffError, match="give a JSONL file"):
        index_lines(path, URLS, None)
