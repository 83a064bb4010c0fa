"""The engine's loop in this process: answers that end by themselves or run out of time."""

import asyncio
import dataclasses
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmdiff.pipeline import Pipeline, load
from mmdiff.serve.engine import ipc
from mmdiff.serve.engine.process import Engine
from mmdiff.serve.http.route_chat import Chat
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
    """Asks an engine, and gives the events until all is done."""
    ours, theirs = socket.socketpair()
    engine = Engine(brief, theirs)

    def ask(*jobs: dict[str, Any]) -> list[ipc.IpcMessage]:
        for number, job in enumerate(jobs):
            usual = {
                "op": "answer",
                "id": str(number),
                "messages": [{"role": "user", "content": "what?"}],
                "n": 1,
                "seed": 0,
                "limit": None,
                "decoding": {
                    "gen_length": 12,
                    "block_length": 4,
                    "steps": 12,
                    "rule": "quota",
                    "order": "random",
                    "cache": "none",
                },
                "stop": [],
                "stream": False,
                "drafts": False,
                "seconds": 60.0,
            }
            engine.inbox.put(({**usual, **job}, ()))
        engine._take_in()
        for _ in range(30):
            for settings, group in list(engine.groups.items()):
                engine._step(settings, group)
        assert not engine.groups and not engine.jobs
        events = []
        while sum(event["event"] == "done" for event in events) < len(jobs):
            events.append(ipc.receive(ours)[0])
        return events

    yield ask
    engine.listener.shutdown()
    ours.close()
    theirs.close()


def test_an_answer_without_time_is_cut_off_and_others_are_not(talk: Any) -> None:
    """Both have an end token; the late one was decided at once, so its end says nothing."""
    events = talk({"seconds": -1.0}, {})
    late, other = [event for event in events if event["event"] == "row"]
    assert (late["id"], late["finish"], late["late"], late["steps"]) == ("0", "length", True, 1)
    assert (other["id"], other["finish"], other["late"]) == ("1", "stop", False)
    assert other["steps"] > 1


@pytest.mark.parametrize(("late", "told"), [(True, "deadline"), (False, None)])
def test_clients_are_told_what_cut_an_answer_off(late: bool, told: str | None) -> None:
    asked = ChatRequest.model_validate({"messages": [{"role": "user", "content": "what?"}]})
    chat = Chat(SimpleNamespace(tokens=Counter()), SimpleNamespace(id="a"), asked, "tiny", 0)  # type: ignore[arg-type]
    row = {
        "event": "row",
        "row": 0,
        "text": "a",
        "finish": "length" if late else "stop",
        "tokens": 3,
        "steps": 1,
        "blocks": 1,
        "confidence": 0.5,
        "late": late,
    }
    asyncio.run(chat._heard(row))
    assert (
        chat.details.get("truncated_by") == told
        and chat.choices[0]["finish_reason"] == row["finish"]
    )
