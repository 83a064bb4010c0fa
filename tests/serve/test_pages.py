"""The examples on the pages run as they stand there, against a server on another port; so do other
people's clients."""

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.programs import needs
from tests.helpers.serving import Served, asking

PAGES = ("docs/usage.md", "docs/serving.md")
OURS = "127.0.0.1:8000"


def found(root: Path, pattern: str) -> list[str]:
    return [
        each
        for page in PAGES
        for each in re.findall(pattern, (root / page).read_text(), re.M | re.S)
    ]


def test_python(server: Served, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    blocks = found(root, r"^```py\n(.*?)^```$")
    assert len(blocks) == 2
    printed = []
    for block in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(block.replace(OURS, f"127.0.0.1:{server.port}"), "page", "exec"), {})
        printed.append(out.getvalue())
    assert printed[0] == "red\n"
    assert "Please turn on the kitchen lights." in printed[1] and printed[1].count("circle") >= 2


@needs("curl")
def test_curl(server: Served, root: Path) -> None:
    lines = found(root, r"^\$ (curl [^\n]+)$")
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(line.replace(OURS, f"127.0.0.1:{server.port}"))
        made = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True).stdout
        assert made and '"error"' not in made, made


def test_hugging_faces_client(
    server: Served, shapes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import InferenceClient, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # other tests keep away from the hub
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


NODE = """
import OpenAI from "openai";
import { readFileSync } from "node:fs";

const [base, picture] = process.argv.slice(2);
const client = new OpenAI({ baseURL: base, apiKey: "none", maxRetries: 0 });
const url = `data:image/png;base64,${readFileSync(picture).toString("base64")}`;
const messages = [{ role: "user", content: [
  { type: "image_url", image_url: { url } },
  { type: "text", text: "what color is the circle?" }] }];
const whole = await client.chat.completions.create({ model: "tiny", messages });
let joined = "";
for await (const chunk of await client.chat.completions.create(
    { model: "tiny", messages, stream: true, diffusing: true }))
  joined += chunk.choices[0].delta.content ?? "";
const helper = await client.chat.completions.stream(
    { model: "tiny", messages, diffusing: true }).finalChatCompletion();
let refused = 0;
try { await client.chat.completions.create({ model: "large", messages }); }
catch (error) { refused = error.status; }
const [first, second] = [whole, helper].map((answer) => answer.choices[0].message.content);
console.log(JSON.stringify([first, joined, second, refused]));
"""


@pytest.mark.slow
@needs("nodejs", "npm")
def test_openais_client_for_node(server: Served, root: Path, tmp_path: Path) -> None:
    (tmp_path / "ask.mjs").write_text(NODE)
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "openai@6"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=300,
    )
    said = subprocess.run(
        ["node", "ask.mjs", f"{server.url}/v1", str(root / "examples" / "shapes.png")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout) == ["red", "red", "red", 404]


LITELLM = """
import json, sys
import litellm
base, messages = sys.argv[1], json.loads(sys.argv[2])
options = {"model": "openai/tiny", "api_base": base, "api_key": "none", "num_retries": 0}
options["messages"] = messages
whole = litellm.completion(**options).choices[0].message.content
chunks = litellm.completion(**options, stream=True, extra_body={"diffusing": True})
print(json.dumps([whole, "".join(chunk.choices[0].delta.content or "" for chunk in chunks)]))
"""


@pytest.mark.slow
@pytest.mark.long
def test_litellms_client(server: Served, shapes: dict[str, Any], tmp_path: Path) -> None:
    """In an environment of its own: its pins and ours do not go together."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=300)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "litellm>=1.90"], check=True, timeout=600)
    messages = json.dumps(asking("what color is the circle?", shapes)["messages"])
    said = subprocess.run(
        [python, "-c", LITELLM, f"{server.url}/v1", messages],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout.splitlines()[-1]) == ["red", "red"]
