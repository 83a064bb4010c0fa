"""The examples on the pages run as they stand there, against a server on another port; so do other people's clients."""

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from serving import Served, asking

PAGES = ("README.md", "docs/serving.md")
OURS = "127.0.0.1:8000"


def found(root: Path, pattern: str) -> list[str]:
    return [each for page in PAGES for each in re.findall(pattern, (root / page).read_text(), re.M | re.S)]


def test_python(server: Served, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    blocks = found(root, r"^```py\n(.*?)^```$")
    assert len(blocks) == 2
    printed = []
    for block in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(block.replace(OURS, f"127.0.0.1:{server.port}"), "page", "exec"), {})
        printed.append(out.getvalue())
    assert printed[0] == "red\n" and "turn on the kitchen lights" in printed[1] and printed[1].count("circle") >= 2


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(server: Served, root: Path) -> None:
    lines = found(root, r"^\$ (curl [^\n]+)$")
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(line.replace(OURS, f"127.0.0.1:{server.port}"))
        made = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True).stdout
        assert made and '"error"' not in made, made


def test_hugging_faces_client(server: Served, shapes: dict[str, Any]) -> None:
    from huggingface_hub import InferenceClient

    client = InferenceClient(base_url=f"{server.url}/v1", api_key="none")
    messages = asking("what color is the circle?", shapes)["messages"]
    assert client.chat_completion(messages, model="tiny").choices[0].message.content == "red"
    extra = {"diffusing": True}
    chunks = client.chat_completion(messages, model="tiny", stream=True, extra_body=extra)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "red"


def test_events_are_well_formed(server: Served, shapes: dict[str, Any]) -> None:
    body = asking("Describe the picture in detail.", shapes, stream=True, diffusing=True)
    answer = server.client.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    for event in events[:-2]:
        chunk = json.loads(event.removeprefix("data: "))
        assert chunk["object"] == "chat.completion.chunk" and len(chunk["choices"]) == 1
        assert chunk["choices"][0]["delta"].keys() <= {"role", "content"}
