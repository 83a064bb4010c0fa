"""What real clients send of their own accord: their answers sent back, empty fields, headers,
probes."""

import io
import json
import shutil
import subprocess
import time
import wave
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.helpers.serving import Served, asking

QUESTION = {"role": "user", "content": "what color is a red circle?"}


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def content(answer: Any) -> str:
    return str(answer.choices[0].message.content)


def test_an_answer_is_sent_back_in_each_of_the_clients_forms(client: openai.OpenAI) -> None:
    """The object itself, its dump, with and without what is empty, a dict, and what a stream added
    up to."""
    messages: list[Any] = [QUESTION]
    first = client.chat.completions.create(model="tiny", messages=messages)
    message = first.choices[0].message
    with client.chat.completions.stream(model="tiny", messages=messages) as stream:
        streamed = stream.get_final_completion().choices[0].message
    plain = {"role": "assistant", "content": message.content}
    again = {"role": "user", "content": "what color is a blue square?"}
    expected = content(
        client.chat.completions.create(model="tiny", messages=[*messages, plain, again])
    )
    for form in (
        message,
        message.model_dump(),
        message.model_dump(exclude_none=True),
        message.to_dict(),
        streamed,
        streamed.model_dump(),
        json.loads(message.model_dump_json()),
    ):
        answer = client.chat.completions.create(model="tiny", messages=[*messages, form, again])
        assert content(answer) == expected, form


class Shape(BaseModel):
    color: str


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_a_parsed_answer_is_sent_back(client: openai.OpenAI) -> None:
    first = client.chat.completions.parse(model="tiny", messages=[QUESTION], response_format=Shape)
    assert isinstance(first.choices[0].message.parsed, Shape)
    messages: list[Any] = [QUESTION, first.choices[0].message, QUESTION]
    assert content(client.chat.completions.create(model="tiny", messages=messages))
    messages[1] = first.choices[0].message.model_dump(warnings=False)
    assert content(client.chat.completions.create(model="tiny", messages=messages))


EMPTY: list[dict[str, Any]] = [
    {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None},
    {"refusal": "", "annotations": None, "tool_calls": [], "reasoning_content": None, "name": None},
    {
        "tool_calls": None,
        "reasoning": "",
        "provider_specific_fields": {},
        "images": [],
        "thinking_blocks": None,
    },
    {"name": "assistant", "prefix": None, "parsed": None, "id": None, "metadata": {}},
]


@pytest.mark.parametrize("empty", EMPTY)
def test_empty_fields_of_messages_ask_for_nothing(server: Served, empty: dict[str, Any]) -> None:
    def text(**more: Any) -> str:
        turns = [QUESTION, {"role": "assistant", "content": "red", **more}, {**QUESTION, **more}]
        answer = server.client.post("/v1/chat/completions", json={"messages": turns})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])

    assert text(**empty) == text()


def test_an_answer_without_words_is_sent_back(server: Served) -> None:
    for nothing in ({"content": None, "refusal": None}, {"content": ""}, {"content": []}, {}):
        messages = [QUESTION, {"role": "assistant", **nothing}, QUESTION]
        assert (
            server.client.post("/v1/chat/completions", json={"messages": messages}).status_code
            == 200
        )
    for role in ("user", "system", "developer"):
        bad = server.client.post(
            "/v1/chat/completions", json={"messages": [{"role": role, "content": None}]}
        )
        assert bad.status_code == 400 and bad.json()["error"]["param"] == "messages[0].content"


def test_what_asks_for_something_is_refused_by_name(server: Served) -> None:
    for name, value in {
        "refusal": "no",
        "annotations": [{"type": "url_citation"}],
        "audio": {"id": "a"},
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ],
        "function_call": {"name": "f", "arguments": "{}"},
        "colour": "x" * 500,
    }.items():
        messages = [QUESTION, {"role": "assistant", "content": "red", name: value}, QUESTION]
        error = server.client.post("/v1/chat/completions", json={"messages": messages}).json()[
            "error"
        ]
        assert error["param"] == f"messages[1].{name}" and error["code"] == "unknown_parameter"
        assert name in error["message"] and len(error["message"]) < 200


def test_empty_settings_ask_for_nothing(server: Served) -> None:
    names = [
        "model",
        "max_tokens",
        "max_completion_tokens",
        "n",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "response_format",
        "diffusing",
        "top_p",
        "frequency_penalty",
        "presence_penalty",
        "logprobs",
        "top_logprobs",
        "logit_bias",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "modalities",
        "user",
        "metadata",
        "store",
        "service_tier",
        "functions",
        "function_call",
        "audio",
        "prediction",
        "reasoning_effort",
        "web_search_options",
        "extra_body",
        "steps",
        "threshold",
        "gen_length",
        "verbosity",
        "an_unknown_one",
    ]
    body = asking("what color is a red circle?")
    plain = server.client.post("/v1/chat/completions", json=body).json()["choices"]
    nulls = {**body, **dict.fromkeys(names)}
    assert server.client.post("/v1/chat/completions", json=nulls).json()["choices"] == plain
    empty = {
        "tools": [],
        "stop": [],
        "logit_bias": {},
        "functions": [],
        "metadata": {},
        "user": "",
        "tool_choice": "none",
        "response_format": {"type": "text", "json_schema": None},
        "n": 1,
        "stream": False,
        "stream_options": {"include_usage": None},
        "function_call": "auto",
        "top_p": 1.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0,
        "logprobs": False,
        "top_logprobs": 0,
        "chat_template_kwargs": {},
        "min_p": 0,
        "repetition_penalty": 1.0,
        "reasoning_effort": "none",
        "verbosity": "medium",
        "modalities": ["text"],
    }
    assert (
        server.client.post("/v1/chat/completions", json={**body, **empty}).json()["choices"]
        == plain
    )
    for name, value in {
        "tools": [{"type": "function"}],
        "reasoning_effort": "high",
        "repetition_penalty": 1.2,
        "min_p": 0.1,
        "audio": {"voice": "a"},
        "functions": [{}],
    }.items():
        error = server.client.post("/v1/chat/completions", json={**body, name: value}).json()[
            "error"
        ]
        assert error["param"] == name


def test_parts_of_text_stand_in_every_role(server: Served) -> None:
    def ask(wrap: Any) -> Any:
        turns = [
            ("developer", "Answer briefly."),
            ("user", "what color is a red circle?"),
            ("assistant", "red"),
            ("user", "what color is a blue square?"),
        ]
        messages = [{"role": role, "content": wrap(text)} for role, text in turns]
        return server.client.post("/v1/chat/completions", json={"messages": messages}).json()[
            "choices"
        ]

    assert ask(lambda text: [{"type": "text", "text": text}]) == ask(lambda text: text)
    assert ask(
        lambda text: [{"type": "text", "text": text, "annotations": [], "cache_control": None}]
    ) == ask(str)


NODE = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "what color is a red circle?" }];
const again = { role: "user", content: "what color is a blue square?" };
const ask = async (turns) =>
  (await client.chat.completions.create({ model: "tiny", messages: turns })).choices[0].message;
const first = await ask(messages);
const stream = client.chat.completions.stream({ model: "tiny", messages });
const streamed = (await stream.finalChatCompletion()).choices[0].message;
const plain = { role: "assistant", content: first.content };
const expected = (await ask([...messages, plain, again])).content;
const found = [];
const empty = { ...first, tool_calls: [], annotations: [], refusal: null, audio: null };
for (const form of [first, streamed, empty])
  found.push((await ask([...messages, form, again])).content === expected);
console.log(JSON.stringify(found));
"""


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where openai's client for Node is installed."""
    folder = tmp_path_factory.mktemp("node")
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "openai@6"],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=300,
    )
    return folder


@pytest.mark.slow
@pytest.mark.long
def test_an_answer_is_sent_back_by_the_client_for_node(server: Served, node: Path) -> None:
    (node / "turns.mjs").write_text(NODE)
    said = subprocess.run(
        ["node", "turns.mjs", f"{server.url}/v1"],
        cwd=node,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout) == [True, True, True]


def test_a_spoken_question_is_answered_as_its_words_are(
    server: Served, shapes: dict[str, Any], question: dict[str, Any]
) -> None:
    def ask(*content: dict[str, Any], **settings: Any) -> dict[str, Any]:
        body = {"messages": [{"role": "user", "content": list(content)}], **settings}
        answer = server.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    files = {"file": ("q.flac", b64decode(question["input_audio"]["data"]))}
    words = server.client.post("/v1/audio/transcriptions", files=files).json()["text"]
    said = {"type": "text", "text": words}
    plain = ask(shapes, said)
    for content in (
        (shapes, question),
        (question, shapes),
        (shapes, question, {"type": "text", "text": " "}),
    ):
        spoken = ask(*content)
        assert spoken["choices"] == plain["choices"] and spoken["mmdiff"]["heard"] == words
        assert spoken["usage"] == plain["usage"]
    assert ask(question)["choices"] == ask(said)["choices"]
    assert "heard" not in plain["mmdiff"]
    form = {
        "type": "json_schema",
        "json_schema": {"name": "a", "schema": Shape.model_json_schema()},
    }
    assert (
        ask(shapes, question, response_format=form)["choices"]
        == ask(shapes, said, response_format=form)["choices"]
    )
    body = {"messages": [{"role": "user", "content": [shapes, question]}], "stream": True}
    lines = server.client.post("/v1/chat/completions", json=body).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    joined = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert joined == plain["choices"][0]["message"]["content"]


def test_silence_is_no_question(server: Served) -> None:
    held = io.BytesIO()
    with wave.open(held, "wb") as out:
        out.setparams((1, 2, 16_000, 0, "NONE", ""))
        out.writeframes(bytes(32_000))
    audio = {
        "type": "input_audio",
        "input_audio": {"data": b64encode(held.getvalue()).decode(), "format": "wav"},
    }
    answer = server.client.post(
        "/v1/chat/completions", json={"messages": [{"role": "user", "content": [audio]}]}
    )
    assert answer.status_code == 400 and "no speech" in answer.json()["error"]["message"]
    server.settle()


def test_what_is_refused_is_named_in_short(server: Served, shapes: dict[str, Any]) -> None:
    long = "x" * 10_000
    user = {"role": "user", "content": "a"}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"messages": [{"role": "user", "content": [{"type": long}]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": {"type": "text", "text": "a"}}]},
            "messages[0].content",
        ),
        ({"messages": [{"role": long, "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
        ({"messages": [user, {"role": "user", "content": [shapes]}]}, "messages[1].content"),
        ({"messages": [user], "model": long}, "model"),
        ({"messages": [user], "stop": long}, "stop"),
        ({"messages": [user], "rule": long}, "rule"),
        ({"messages": [user], "seed": 2**63}, "seed"),
        ({"messages": [user], "tools": [{"name": long}]}, "tools"),
        ({"messages": [user], "a.b": 1}, "a.b"),
        ({"messages": [user], "metadata": {"a": "\ud800"}}, "metadata.a"),
        ({"messages": [user], "\udc00": 1}, "\\udc00"),
        (
            {
                "messages": [user],
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"$ref": f"#/{long}"}},
                },
            },
            "response_format",
        ),
        (
            {
                "messages": [user],
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"const": "\ud800"}},
                },
            },
            "response_format.json_schema.schema.const",
        ),
    ]
    for body, param in cases:
        sent = json.dumps(body)
        answer = server.client.post(
            "/v1/chat/completions", content=sent, headers={"Content-Type": "application/json"}
        )
        error = answer.json()["error"]
        assert answer.status_code in (400, 404) and error["param"] == param, error
        assert (
            len(error["message"]) <= 500
            and "x" * 90 not in error["message"]
            or param == "response_format"
        )


def test_bodies_of_a_great_many_values_are_refused_at_once(server: Served) -> None:
    head, started = '{"messages":[{"role":"user","content":"a"}],"metadata":{"a":', time.monotonic()
    for value in (
        f"[{','.join(['0.1'] * 2_000_000)}]",
        f"0.{'1' * 8_000_000}",
        f"-1e{'1' * 8_000_000}",
    ):
        answer = server.client.post(
            "/v1/chat/completions",
            content=f"{head}{value}}}}}",
            headers={"Content-Type": "application/json"},
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
    assert time.monotonic() - started < 5
