"""`mmdiff run-batch` and `mmdiff caption FOLDER` with the default model, from outside, as people
use and break it."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile

pytestmark = pytest.mark.slow
CHAT, TRANSCRIBE = "/v1/chat/completions", "/v1/audio/transcriptions"
QUESTIONS = [
    "what color is the circle?",
    "how many things are there?",
    "what is at the top left?",
    "is there a star?",
]
PICTURES = ["shapes", "circles", "one", "wide", "busy"]


def data_url(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def line(custom_id: str, url: str, body: dict[str, Any]) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}) + "\n"


def chat(root: Path, number: int, **more: Any) -> dict[str, Any]:
    picture = data_url(root / "examples" / f"{PICTURES[number % 5]}.png", "image/png")
    content = [
        {"type": "image_url", "image_url": {"url": picture}},
        {"type": "text", "text": QUESTIONS[number // 5 % 4]},
    ]
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], **more}


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "mmdiff.cli.main", *map(str, words)]


def mmdiff(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=900)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in out.read_text().splitlines()]


def said(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row says, without the time of day and the last digits of confidences."""
    body = row["response"]["body"]
    choices = [
        (each["message"]["content"], each["finish_reason"]) for each in body.get("choices", [])
    ]
    return (
        row["id"],
        row["custom_id"],
        row["response"]["status_code"],
        choices,
        body.get("usage"),
        body.get("text"),
    )


def two_channels(root: Path, file: Path) -> Path:
    """A recording in the second channel, and nothing in the first."""
    samples, rate = soundfile.read(root / "examples" / "question.flac")
    soundfile.write(file, np.stack([np.zeros_like(samples), samples], 1), rate)
    return file


@pytest.mark.long
def test_a_killed_job_ends_as_one_in_peace(root: Path, tmp_path: Path) -> None:
    """Killed three times among 200 rows, at temperatures above 0 too; the engines end with it."""
    source, peace, out = tmp_path / "in.jsonl", tmp_path / "peace.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        "".join(
            line(f"row-{number}", CHAT, chat(root, number, temperature=0.5 * (number % 2)))
            for number in range(200)
        )
    )
    done = mmdiff("run-batch", "-i", source, "-o", peace)
    assert done.returncode == 0 and "200 requests, 0 failed" in done.stderr
    for kept in (20, 90, 150):
        job = subprocess.Popen(
            command("run-batch", "-i", source, "-o", out), stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 900
        while not out.exists() or out.read_bytes().count(b"\n") < kept:
            assert job.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        pids = [child.pid for child in psutil.Process(job.pid).children()]
        job.send_signal(signal.SIGKILL)
        job.wait()
        assert kept <= out.read_bytes().count(b"\n") < 200
        while pids and time.monotonic() < until:
            pids = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
            time.sleep(0.05)
        assert not pids
    assert mmdiff("run-batch", "-i", source, "-o", out).returncode == 0
    assert [said(row) for row in rows(out)] == [said(row) for row in rows(peace)]
    assert len({row["custom_id"] for row in rows(out)}) == 200
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl", "peace.jsonl"]


def test_every_kind_of_row(root: Path, tmp_path: Path) -> None:
    """Chats, transcripts and refusals; refusals are in the server's words."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    sound = data_url(root / "examples" / "question.flac", "audio/flac")
    call = data_url(two_channels(root, tmp_path / "call.flac"), "audio/flac")
    lines = {
        "chat": (CHAT, chat(root, 0)),
        "two": (CHAT, chat(root, 1, n=2, temperature=1.0)),
        "words": (TRANSCRIBE, {"model": "tiny", "file_url": sound}),
        "subtitles": (TRANSCRIBE, {"file_url": sound, "response_format": "srt"}),
        "call": (
            TRANSCRIBE,
            {"file_url": call, "response_format": "verbose_json", "channels": "separate"},
        ),
        "stream": (CHAT, chat(root, 0, stream=True)),
        "empty": (CHAT, {"messages": []}),
        "model": (CHAT, {**chat(root, 0), "model": "gpt-9"}),
        "setting": (CHAT, chat(root, 0, colour=1)),
        "picture": (
            CHAT,
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "image_url",
                                "image_url": {"url": "data:image/png;base64,aGVsbG8="},
                            },
                            {"type": "text", "text": "what?"},
                        ],
                    }
                ]
            },
        ),
        "mono": (TRANSCRIBE, {"file_url": sound, "channels": "separate"}),
        "nothing": (TRANSCRIBE, {}),
        "address": (TRANSCRIBE, {"file_url": "http://127.0.0.1:9/a.wav"}),
        "damaged": (TRANSCRIBE, {"file_url": "data:audio/wav;base64,aGVsbG8="}),
    }
    source.write_text(
        "".join(line(name, *asked) for name, asked in lines.items()) + "not a request\n\n"
    )
    done = mmdiff("run-batch", "-i", source, "-o", out)
    assert (
        done.returncode == 0
        and "15 requests, 10 failed" in done.stderr
        and "Traceback" not in done.stderr
    )
    found = {row["custom_id"]: row for row in rows(out)}
    assert [row["custom_id"] for row in rows(out)] == [*lines, None]
    body = {name: row["response"]["body"] for name, row in found.items() if name}
    assert body["chat"]["choices"][0]["message"]["content"] == "red"
    assert len(body["two"]["choices"]) == 2
    assert "circle" in body["words"]["text"] and body["subtitles"].startswith("1\n00:00:0")
    assert [each["channel"] for each in body["call"]["segments"]] == [1]
    status = {name: row["response"]["status_code"] for name, row in found.items() if name}
    assert {name: (status[name], body[name]["error"]["code"]) for name in list(lines)[5:]} == {
        "stream": (400, "unsupported_parameter"),
        "empty": (400, "invalid_request"),
        "model": (404, "model_not_found"),
        "setting": (400, "unknown_parameter"),
        "picture": (400, "unsupported_image_format"),
        "mono": (400, "invalid_audio"),
        "nothing": (400, "invalid_request"),
        "address": (400, "media_url_not_allowed"),
        "damaged": (400, body["damaged"]["error"]["code"]),
    }
    assert found[None]["error"] == {
        "code": "invalid_json",
        "message": "line 15 is not JSON (column 1)",
        "line": 15,
    }


def test_a_folder_is_described_and_described_on(root: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "pictures", tmp_path / "captions.jsonl"
    (folder / "more").mkdir(parents=True)
    shutil.copy(root / "examples" / "one.png", folder / "b.png")
    shutil.copy(root / "examples" / "shapes.png", folder / "more" / "c.PNG")
    (folder / "a.jpg").write_bytes(b"not a picture")
    (folder / "notes.txt").write_text("not looked at")
    done = mmdiff("caption", folder, "--out", out)
    assert (
        done.returncode == 0
        and "3 images, 1 failed" in done.stderr
        and "a.jpg: image 0" in done.stderr
    )
    assert "1 file is left out, by the names not images: 1 .txt" in done.stderr
    assert [(row["picture"], row["caption"]) for row in rows(out)] == [
        ("a.jpg", None),
        ("b.png", "a teal ring"),
        ("more/c.PNG", "a red circle, a yellow triangle and a blue star"),
    ]
    before = rows(out)
    shutil.copy(root / "examples" / "one.png", folder / "a.jpg")
    assert mmdiff("caption", folder, "--out", out).returncode == 0
    assert rows(out)[1:] == before[1:] and rows(out)[0]["caption"] == "a teal ring"
    assert mmdiff("caption", folder / "b.png", "--out", out).returncode == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run-batch", "-i", "nowhere.jsonl", "-o", "out.jsonl"], "nowhere.jsonl cannot be read"),
        (["run-batch", "-i", "IN", "-o", "IN"], "give another name"),
        (["run-batch", "-i", "IN", "-o", "out.jsonl", "--model", "nothing"], "'nothing'"),
        (["run-batch", "-i", "IN", "-o", "."], "not a regular file"),
        (["caption", ".", "--out", "out.jsonl"], "holds no images"),
        (["caption", "IN", "--out", "out.jsonl"], "--out is for one folder"),
    ],
)
def test_mistakes_end_in_a_sentence(tmp_path: Path, words: list[str], says: str) -> None:
    (tmp_path / "in.jsonl").write_text(line("a", CHAT, {}))
    given = ["in.jsonl" if word == "IN" else word for word in words]
    done = subprocess.run(
        command(*given), capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert (
        done.returncode == 2 and says in done.stderr and len(done.stderr.strip().splitlines()) == 1
    )
    assert (tmp_path / "in.jsonl").read_text() == line("a", CHAT, {})
