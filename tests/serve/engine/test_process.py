"""The engine's loop in this process: answers that end by themselves or run out of time."""

import dataclasses
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmdiff.config import DecodingConfig
from mmdiff.pipeline import Pipeline, load
from mmdiff.serve.engine import ipc
from mmdiff.serve.engine.messages import AnswerFinished, AnswerRequest, Done, decode
from mmdiff.serve.engine.process import Engine
from mmdiff.serve.http.route_chat import ChatCompletion
from mmdiff.serve.http.schemas import ChatRequest


@pytest.fixture(scope="module")
def brief(random_tiny: Path) -> Pipeline:
    """Random weights that can say nothing but the end."""
    loaded = load(random_tiny, device="cpu")
    settings = loaded.model.model_config
    never = tuple(sorted(set(range(settings.backbone.vocab_size)) - {settings.tokens.eos}))
    loaded.model.model_config = dataclasses.replace(
        settings, tokens=dataclasses.replace(settings.tokens, never=never)
    )
    return loaded


@pytest.fixture
def talk(brief: Pipeline) -> Iterator[Any]:
    """Sends requests to an engine, and gives the events until all are done."""
    ours, theirs = socket.socketpair()
    engine = Engine(brief, theirs)

    decoding = DecodingConfig(
        gen_length=12, block_length=4, steps=12, rule="quota", order="random", cache="none"
    )

    def ask(*seconds: float) -> list[Any]:
        for number, each in enumerate(seconds):
            messages = [{"role": "user", "content": "what?"}]
            request = AnswerRequest(str(number), messages, decoding, seconds=each)
            engine.inbox.put((request, ()))
        engine._receive_all()
        for _ in range(30):
            for settings, group in list(engine.groups.items()):
                engine._step(settings, group)
        assert not engine.groups and not engine.jobs
        events = []
        while sum(isinstance(event, Done) for event in events) < len(seconds):
            events.append(decode(ipc.receive(ours)[0]))
        return events

    yield ask
    engine.transcriber.vad_thread.shutdown()
    ours.close()
    theirs.close()


def test_an_answer_without_time_is_cut_off_and_others_are_not(talk: Any) -> None:
    """Both have an end token; the late one was decided at once, so its end says nothing."""
    late, other = [event for event in talk(-1.0, 60.0) if isinstance(event, AnswerFinished)]
    assert (late.id, late.finish_reason, late.late, late.steps) == ("0", "length", True, 1)
    assert (other.id, other.finish_reason, other.late) == ("1", "stop", False)
    assert other.steps > 1


@pytest.mark.parametrize(("late", "told"), [(True, "deadline"), (False, None)])
def test_clients_are_told_what_cut_an_answer_off(late: bool, told: str | None) -> None:
    messages = [{"role": "user", "content": "what?"}]
    body = ChatRequest.model_validate({"messages": messages})
    chat = ChatCompletion(AnswerRequest("a", messages), [], body, "tiny")
    answer = AnswerFinished(
        id="a",
        index=0,
        text="a",
        finish_reason="length" if late else "stop",
        tokens=3,
        steps=1,
        blocks=1,
        confidence=0.5,
        late=late,
    )
    chat.add(answer)
    assert chat.details.get("truncated_by") == told
    assert chat.choices[0]["finish_reason"] == answer.finish_reason
