"""A job over a file of requests: killed anywhere, changed between runs, run twice at once, it does
each row once.

Bodies are answered by a stand-in that needs no model; `test_run_batch` has the real one.
"""

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mmdiff.errors import MMDiffError
from mmdiff.serve.batch.fingerprint import fingerprint
from mmdiff.serve.batch.run import rows_by, run_batch
from mmdiff.serve.batch.worker_pool import JobOutcome

URL = "/v1/chat/completions"
JOB = """
import asyncio, sys
from contextlib import asynccontextmanager
from pathlib import Path
from mmdiff.serve.batch.run import rows_by, run_batch

source, out, log = map(Path, sys.argv[1:4])

@asynccontextmanager
async def asking():
    with open(log, "a") as asked:
        async def ask(url, body, name):
            asked.write(body["text"] + "\\n"); asked.flush()
            await asyncio.sleep(0.002 * (1 + hash(body["text"]) % 5))
            return 200, {"text": body["text"][::-1]}
        yield ask

print("started", flush=True)
asyncio.run(run_batch(source, out, rows_by(asking, 8), urls=["/v1/chat/completions"], settings="m"))
"""


def line(custom_id: str, text: str | None = None) -> str:
    return json.dumps(
        {"custom_id": custom_id, "method": "POST", "url": URL, "body": {"text": text or custom_id}}
    )


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in out.read_bytes().splitlines()]


class Asked:
    """A stand-in for the engine, which counts its requests."""

    def __init__(
        self, reply: Callable[[dict[str, Any]], tuple[int, dict[str, Any]]] | None = None
    ) -> None:
        self.texts: list[str] = []
        self.reply = reply or (lambda body: (200, {"text": body["text"][::-1]}))

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Any]:
        async def ask(url: str, body: dict[str, Any], name: str) -> tuple[int, dict[str, Any]]:
            self.texts.append(body["text"])
            await asyncio.sleep(0)
            return self.reply(body)

        yield ask


def run(
    source: Path, out: Path, asked: Asked | None = None, settings: Any = "m"
) -> tuple[int, int]:
    done = finish(source, out, asked, settings)
    return done.rows, done.failed


def finish(source: Path, out: Path, asked: Asked | None = None, settings: Any = "m") -> JobOutcome:
    return asyncio.run(
        run_batch(source, out, rows_by(asked or Asked(), 3), urls=[URL], settings=settings)
    )


def write(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("kills", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_again_and_again_it_does_every_row_once(tmp_path: Path, kills: int) -> None:
    """`kill -9` at random moments; the output then equals that of a run in peace, byte by byte."""
    names = [f"row-{number}" for number in range(200)]
    source = write(tmp_path / "in.jsonl", [line(name) for name in names])
    run(source, tmp_path / "peace.jsonl")
    out, log, chance = tmp_path / "out.jsonl", tmp_path / "log", random.Random(kills)
    command = [sys.executable, "-c", JOB, str(source), str(out), str(log)]
    killed = 0
    while killed < kills:
        job = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert job.stdout is not None and job.stdout.readline() == b"started\n"
        time.sleep(chance.uniform(0, 0.35 if killed % 2 else 0.12))
        job.kill()
        job.communicate()
        killed += 1
        if out.exists():
            found = [row["custom_id"] for row in rows_so_far(out)]
            assert len(found) == len(set(found))
            if len(found) == 200:  # begin again, for there are kills left
                out.unlink()
                log.unlink()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert out.read_bytes() == (tmp_path / "peace.jsonl").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "log", "out.jsonl", "peace.jsonl"]
    asked = log.read_text().split()
    assert set(asked) == set(names) and len(asked) <= 200 + 8 * kills


def rows_so_far(out: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in out.read_bytes().split(b"\n")[:-1]]


CHANGES: dict[
    str, tuple[list[str], Any, set[str]]
] = {  # lines of the second run, its settings, what is asked again
    "nothing": (["a", "b", "c", "d"], "m", set()),
    "order": (["d", "a", "c", "b"], "m", set()),
    "a row more in front": (["x", "a", "b", "c", "d"], "m", {"x"}),
    "a row more between": (["a", "b", "x", "c", "d"], "m", {"x"}),
    "a row less": (["a", "c", "d"], "m", set()),
    "an edited body": (["a", "b=other", "c", "d"], "m", {"other"}),
    "another name for a body": (["a", "e=b", "c", "d"], "m", {"b"}),
    "swapped bodies": (["a=b", "b=a", "c", "d"], "m", {"a", "b"}),
    "another model": (["a", "b", "c", "d"], "n", {"a", "b", "c", "d"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_only_what_changed_is_done_again(tmp_path: Path, change: str) -> None:
    names, settings, again = CHANGES[change]
    source, out = (
        write(tmp_path / "in.jsonl", [line(name) for name in "abcd"]),
        tmp_path / "out.jsonl",
    )
    assert run(source, out) == (4, 0)
    given = [(name.split("=")[0], name.split("=")[-1]) for name in names]
    write(source, [line(name, text) for name, text in given])
    asked = Asked()
    run(source, out, asked, settings)
    assert set(asked.texts) == again and len(asked.texts) == len(again)
    assert [(row["custom_id"], row["response"]["body"]["text"]) for row in rows(out)] == [
        (name, text[::-1]) for name, text in given
    ]


def test_bad_lines_are_rows_and_the_job_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    source = write(
        tmp_path / "in.jsonl", [line("a"), "{", line("a"), "", line("b"), '{"custom_id": "c"}']
    )
    refused = {
        "error": {
            "message": "no",
            "type": "invalid_request_error",
            "param": "text",
            "code": "invalid_request",
        }
    }
    asked = Asked(lambda body: (400, refused) if body["text"] == "b" else (200, {}))
    assert run(source, out, asked) == (5, 4)
    found = rows(out)
    assert [row["custom_id"] for row in found] == ["a", None, None, "b", None]
    assert found[3]["response"]["status_code"] == 400 and found[3]["response"]["body"] == refused
    assert [row["error"] and (row["error"]["line"], row["error"]["code"]) for row in found] == [
        None,
        (2, "invalid_json"),
        (3, "duplicate_custom_id"),
        None,
        (6, "invalid_url"),
    ]
    again = Asked()
    done = finish(source, out, again)
    assert (done.rows, done.failed) == (
        5,
        4,
    ) and again.texts == []  # what was refused for good stays so
    assert done.failures[0].startswith("line 2 is not JSON")
    assert done.failures[1:3] == ("line 3 has the custom_id of line 1, 'a'", "b: no")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_tried_again(tmp_path: Path, status: int) -> None:
    source, out = write(tmp_path / "in.jsonl", [line("a"), line("b")]), tmp_path / "out.jsonl"
    error = {
        "error": {
            "message": "busy",
            "type": "overloaded_error",
            "param": None,
            "code": "queue_full",
        }
    }
    assert run(
        source, out, Asked(lambda body: (status, error) if body["text"] == "b" else (200, {}))
    ) == (2, 1)
    asked = Asked()
    assert run(source, out, asked) == (2, 0) and asked.texts == ["b"]


def test_a_second_job_on_the_same_output_is_refused(tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", [line("a")]), tmp_path / "out.jsonl"

    @asynccontextmanager
    async def meddling() -> AsyncIterator[Any]:
        with pytest.raises(MMDiffError, match=rf"another job \(process {os.getpid()}\) writes"):
            await run_batch(source, out, rows_by(Asked(), 1), urls=[URL], settings="m")
        async with Asked()() as ask:
            yield ask

    outcome = asyncio.run(run_batch(source, out, rows_by(meddling, 1), urls=[URL], settings="m"))
    assert outcome == JobOutcome(1, 0)


def test_a_full_disk_ends_the_job_and_it_goes_on_later(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk's."""
    source = write(tmp_path / "in.jsonl", [line(f"row-{number}") for number in range(200)])
    run(source, tmp_path / "peace.jsonl")
    out, log = tmp_path / "out.jsonl", tmp_path / "log"
    limited = (
        "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
    )
    command = [sys.executable, "-c", limited + JOB, str(source), str(out), str(log)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (
        done.returncode != 0
        and "rows are kept: free some space and run the same command again" in done.stderr
    )
    kept = rows(out)
    assert 20 < len(kept) < 200
    asked = Asked()
    assert run(source, out, asked) == (200, 0)
    assert not {row["custom_id"] for row in kept} & set(asked.texts)
    assert out.read_bytes() == (tmp_path / "peace.jsonl").read_bytes()


def test_models_are_told_apart_by_their_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    first = fingerprint(tmp_path)
    (tmp_path / "notes.md").write_text("of no matter")
    assert fingerprint(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"weighty")
    assert fingerprint(tmp_path) != first
