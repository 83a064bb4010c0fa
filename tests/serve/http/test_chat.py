"""What clients get: OpenAI's own for completions and transcripts, plain HTTP for the rest."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openai
import pytest
from pydantic import BaseModel, Field

from mmdiff.audio.audio_io import load_audio
from tests.helpers.media import audio_file
from tests.helpers.serving import SLOW, Served, asking, data_url

COLOUR = "what color is the circle?"


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def create(client: openai.OpenAI, text: str, *media: Any, **options: Any) -> Any:
    return client.chat.completions.create(
        model="tiny", messages=asking(text, *media)["messages"], **options
    )


def test_an_image_is_answered(client: openai.OpenAI, shapes: dict[str, Any]) -> None:
    made = create(client, COLOUR, shapes)
    assert (
        made.object == "chat.completion"
        and made.model == "tiny"
        and made.id.startswith("chatcmpl-")
    )
    assert made.choices[0].message.content == "red" and made.choices[0].finish_reason == "stop"
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens > 36
    assert made.mmdiff["steps"] >= 1 and made.mmdiff["seed"] == 0


def test_words_several_images_and_audio_are_answered(
    client: openai.OpenAI, shapes: dict[str, Any], question: dict[str, Any], root: Path
) -> None:
    other = {"type": "image_url", "image_url": {"url": data_url(root / "examples" / "circles.png")}}
    assert create(client, COLOUR).choices[0].message.content
    assert create(client, "what is it?", shapes, other, max_tokens=8).usage.completion_tokens <= 8
    assert create(client, 'Is the word "color" said?', question).choices[0].message.content


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rule": "saber", "threshold": None},
        {"temperature": 0.8, "seed": 3},
        {"max_tokens": 64},
        {"steps": 32, "order": "random", "block_length": 32},
        {"stop": [" and", "zebra"]},
        {"max_tokens": 5},
    ],
)
def test_a_stream_joined_is_the_answer(
    client: openai.OpenAI, shapes: dict[str, Any], settings: dict[str, Any]
) -> None:
    usual = {
        name: settings[name]
        for name in ("temperature", "seed", "max_tokens", "stop")
        if name in settings
    }
    ours = {name: value for name, value in settings.items() if name not in usual}
    whole = create(client, "Describe the picture in detail.", shapes, extra_body=ours, **usual)
    for diffusing in (False, True):
        chunks = list(
            create(
                client,
                "Describe the picture in detail.",
                shapes,
                stream=True,
                **usual,
                extra_body={**ours, "diffusing": diffusing},
            )
        )
        joined = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert joined == whole.choices[0].message.content != ""
        assert chunks[0].choices[0].delta.role == "assistant"
        ends = [
            chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason
        ]
        assert ends == [whole.choices[0].finish_reason]
        drafts = [
            chunk
            for chunk in chunks
            if (chunk.model_extra or {}).get("mmdiff", {}).get("type") == "draft"
        ]
        assert all(not chunk.choices[0].delta.content for chunk in drafts) and (
            diffusing or not drafts
        )
        if diffusing and "stop" not in settings:
            assert drafts and {
                "block",
                "step",
                "steps",
                "offset",
                "text",
                "masked",
                "tokens",
            } <= set(drafts[0].mmdiff)


def test_stop_strings_end_an_answer(client: openai.OpenAI, shapes: dict[str, Any]) -> None:
    whole = create(client, "Describe the picture briefly.", shapes).choices[0].message.content
    cut = create(client, "Describe the picture briefly.", shapes, stop=" and").choices[0]
    assert " and" in whole and cut.message.content == whole.partition(" and")[0].rstrip()
    assert cut.finish_reason == "stop"
    short = create(client, "Describe the picture in detail.", shapes, max_completion_tokens=3)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 3


def test_several_answers_have_seeds_of_their_own(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {
        "n": 4,
        "temperature": 1.5,
        "seed": 5,
        "extra_body": {"gen_length": 12},
    }
    first, again = (create(client, "what?", **options) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2, 3] and len(set(texts)) > 1
    assert texts == [choice.message.content for choice in again.choices]
    streamed = [""] * 4
    for chunk in create(
        client, "what?", stream=True, stream_options={"include_usage": True}, **options
    ):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts
    assert chunk.choices == [] and chunk.usage.completion_tokens == first.usage.completion_tokens


def test_the_helpers_of_the_client_work(client: openai.OpenAI, shapes: dict[str, Any]) -> None:
    with client.chat.completions.stream(
        model="tiny",
        messages=asking(COLOUR, shapes)["messages"],  # type: ignore
        extra_body={"diffusing": True},
    ) as stream:
        assert stream.get_final_completion().choices[0].message.content == "red"
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_refusals_are_the_clients_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="colour") as refused:
        create(client, "what?", extra_body={"colour": 1})
    assert refused.value.param == "colour" and refused.value.code == "unknown_parameter"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(
            model="large", messages=[{"role": "user", "content": "what?"}]
        )
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="/type of the schema") as malformed:
        create(
            client,
            "what?",
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "nope"}},
            },
        )
    assert malformed.value.code == "invalid_request"


class Found(BaseModel):
    shape: Literal["circle", "star"]
    count: int = Field(ge=0, le=9)


def test_answers_in_a_given_structure_are_parsed_by_the_client(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(
        model="tiny",
        messages=[{"role": "user", "content": "what is there?"}],
        response_format=Found,
    )
    found = parsed.choices[0].message.parsed
    assert isinstance(found, Found) and parsed.choices[0].finish_reason == "stop"
    assert parsed.mmdiff["repairs"] == parsed.mmdiff["decisions"] == parsed.mmdiff["notes"] == []  # type: ignore
    assert parsed.usage.completion_tokens > 4  # type: ignore[union-attr]
    stream = create(
        client,
        "what is there?",
        stream=True,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "found", "schema": Found.model_json_schema()},
        },
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == parsed.choices[0].message.content
    anything = create(client, "what is there?", response_format={"type": "json_object"})
    assert isinstance(json.loads(anything.choices[0].message.content), dict)
    assert all(each["index"] == 0 and each["chances"] for each in anything.mmdiff["decisions"])
    with pytest.raises(openai.BadRequestError, match="raise max_tokens to at least"):
        create(
            client,
            "what?",
            max_tokens=3,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "found", "schema": Found.model_json_schema()},
            },
        )


def test_transcripts_have_openais_forms(client: openai.OpenAI, root: Path) -> None:
    sound = root / "examples" / "talk.flac"
    said = client.audio.transcriptions.create(model="tiny", file=sound)
    assert said.text.startswith("Please turn on the kitchen lights.") and said.mmdiff["speech"]  # type: ignore[attr-defined]
    verbose = client.audio.transcriptions.create(
        model="tiny",
        file=sound,
        response_format="verbose_json",
        timestamp_granularities=["segment"],
    )
    assert (
        verbose.text == said.text
        and verbose.segments
        and verbose.duration == pytest.approx(5.71, abs=0.01)
    )
    timed = client.audio.transcriptions.create(
        model="tiny",
        file=sound,
        response_format="verbose_json",
        language="en",
        prompt="kitchen",
        timestamp_granularities=["word"],
    )
    assert (
        timed.segments is None and [word.word for word in timed.words or []] == timed.text.split()
    )
    with pytest.raises(openai.BadRequestError, match="language='xx' is not known to tiny.en"):
        client.audio.transcriptions.create(model="tiny", file=sound, language="xx")
    for form, mark in (("srt", "-->"), ("vtt", "WEBVTT"), ("text", said.text)):
        assert mark in client.audio.transcriptions.create(
            model="tiny", file=sound, response_format=form
        )  # type: ignore
    events = list(client.audio.transcriptions.create(model="tiny", file=sound, stream=True))
    deltas = "".join(event.delta for event in events if event.type == "transcript.text.delta")
    assert deltas == events[-1].text == said.text  # type: ignore[union-attr]


def test_channels_of_a_call_are_transcribed_each_on_its_own(
    client: openai.OpenAI, root: Path
) -> None:
    spoken = [load_audio(root / "examples" / f"{name}.flac") for name in ("talk", "question")]
    call_NC = np.zeros((max(map(len, spoken)), 2), np.float32)
    for channel, samples in enumerate(spoken):
        call_NC[: len(samples), channel] = samples
    create = client.audio.transcriptions.create
    made = create(
        model="tiny",
        file=("call.wav", audio_file(call_NC)),
        response_format="verbose_json",
        extra_body={"channels": "separate"},
    )
    texts = {0: "", 1: ""}
    for segment in made.segments or []:
        texts[segment.channel] += segment.text  # type: ignore[attr-defined]
    assert "kitchen lights" in texts[0] and "circle" in texts[1]
    assert made.duration == pytest.approx(len(call_NC) / 16_000, abs=0.01)
    talk = root / "examples" / "talk.flac"
    with pytest.raises(openai.BadRequestError, match="has one channel") as refused:
        create(model="tiny", file=talk, extra_body={"channels": "separate"})
    assert refused.value.param == "file"
    with pytest.raises(openai.BadRequestError, match="channels"):
        create(model="tiny", file=talk, extra_body={"channels": "left"})


def test_moondreams_verbs(server: Served, root: Path) -> None:
    picture = data_url(root / "examples" / "shapes.png")
    for length in ("short", "normal", "long"):
        caption = server.client.post(
            "/v1/caption", json={"image_url": picture, "length": length}
        ).json()
        assert "circle" in caption["caption"] and caption["request_id"]
    asked = {"image_url": picture, "question": COLOUR}
    assert server.client.post("/v1/query", json=asked).json()["answer"] == "red"
    lines = server.client.post("/v1/query", json={**asked, "stream": True}).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert "".join(event.get("text", "") for event in events) == "red" == events[-1]["answer"]
    assert lines[-2] == "data: [DONE]"


def test_what_the_server_says_about_itself(server: Served) -> None:
    for path in ("/health", "/v1/health/live", "/v1/health/ready", "/docs"):
        assert server.client.get(path).status_code == 200
    schema = server.client.get("/openapi.json").json()
    held = schema["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"][
        "application/json"
    ]["schema"]
    assert "messages" in held["properties"] and "diffusing" in held["properties"]
    answer = server.client.get("/health", headers={"X-Request-Id": "mine-1"})
    assert (
        answer.headers["x-request-id"] == "mine-1"
        and answer.headers["x-content-type-options"] == "nosniff"
    )
    assert "server" not in answer.headers
    assert server.numbers()["mmdiff_engine_up"] == 1


def test_a_request_has_so_much_time(server: Served) -> None:
    """A slow one is not in the way of a quick one."""
    with server.client.stream(
        "POST", "/v1/chat/completions", json=asking("what?", stream=True, n=4, **SLOW)
    ) as slow:
        lines = slow.iter_lines()  # held, or the connection is closed
        next(lines)
        assert server.chat().status_code == 200
        assert server.numbers()["mmdiff_requests_running"] == 1
    server.settle()
