"""Spoken commands measured: Home Assistant's sentences and labels, a person's joined words, and the rows."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest

from mmdiff.errors import NoSpeechError
from mmdiff.eval import commands
from mmdiff.eval.commands import Said, home_assistant, people, spoken_choices, spoken_commands
from mmdiff.eval.evidence import summary
from mmdiff.structured.schema.serialize import dumps
from mmdiff.training.commands import SCHEMA, digits
from mmdiff.training.tiny.scenes import TEST_SEEDS
from tests.helpers.programs import needs

VALUE = {"intent": "open", "device": "blinds", "room": None, "number": None}
SILENCE = np.zeros(16_000, np.float32)


def test_sentences_of_home_assistant_mean_what_their_labels_say() -> None:
    made = home_assistant(150)
    judge = jsonschema.Draft202012Validator(SCHEMA)
    assert len({text for text, _ in made}) == 150 and made == home_assistant(150)
    for text, value in made:
        assert judge.is_valid(value), (text, value)
        assert not set(text) - set("abcdefghijklmnopqrstuvwxyz' "), text
        assert value["room"] is None or value["room"] in text
        assert value["number"] is None or str(value["number"]) in digits(text).split(), text
        if value["device"] in ("light", "fan", "timer", "volume") and value["room"] is None:
            assert any(
                word in text for word in ("light", "lamp", "bright", "fan", "timer", "volume")
            ), text
    assert len({value["intent"] for _, value in made}) >= 7


@needs("asterisk-core-sounds-en-g722")
def test_words_of_a_person_are_joined() -> None:
    made = list(islice(people(None), 3))
    assert [each.value["number"] is None for each in made] == [True, False, False]
    assert all(
        each.value["intent"] == "decrease" and each.value["device"] == "volume" for each in made
    )
    assert made[1].typed.startswith("Decrease the audio volume ") and made[1].typed.endswith("%.")
    shorter, longer = made[0].audio(), made[1].audio()
    assert (
        shorter.dtype == np.float32 and 1.5 < len(shorter) / 16_000 < 2.5 < len(longer) / 16_000 < 6
    )


def said(limit: int | None, validation: bool = False) -> list[Said]:
    return [
        Said(
            str(number),
            str(number),
            "generated",
            "Open the blinds.",
            "espeak-ng",
            lambda: SILENCE,
            VALUE,
        )
        for number in range(2)
    ]


def test_each_command_gives_three_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "chosen", said)

    def extract(image: None, schema: Any, text: str = "", audio_as: str = "", **_: Any) -> Any:
        if audio_as == "embeddings":
            raise NoSpeechError("nothing")
        wrong = {**VALUE, "intent": "close"}
        value = VALUE if text else wrong
        heard = "" if text else "Close the blinds."
        return SimpleNamespace(value=value, text=dumps(value), heard=heard, confidence=0.5)

    model: Any = SimpleNamespace(extract=extract)
    rows = [row for (row,) in spoken_commands(model, None, 8)]
    kinds = [
        "generated, typed",
        "generated, espeak-ng, as transcript",
        "generated, espeak-ng, as embeddings",
    ]
    assert [(row.kind, row.count) for row in rows[:3]] == list(zip(kinds, (1, 0, 0), strict=True))
    assert rows[1].details["heard"] == "Close the blinds." and [
        row.details["valid"] for row in rows[:3]
    ] == [1, 1, 0]
    assert summary(rows, errors=False)["valid"] == {"count": 4, "of": 6}
    left = [row for (row,) in spoken_commands(model, None, 8, {row.id for row in rows[:5]})]
    assert left == rows[5:]


def test_a_color_is_chosen_as_a_transcript_and_as_embeddings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(commands, "_clip", lambda seed, text: SILENCE)
    texts = [
        commands._with_one_color(np.random.default_rng((TEST_SEEDS.start + 6 * 10**6 + n, 2)))
        for n in range(2)
    ]
    assert all(color in text.split() for text, color in texts)

    def choose(image: None, question: str, choices: Any, audio_as: str, **_: Any) -> Any:
        return SimpleNamespace(value=texts[0][1] if audio_as == "transcript" else "none")

    rows = [row for (row,) in spoken_choices(SimpleNamespace(choose=choose), 2, 8)]  # type: ignore[arg-type]
    assert (
        len(rows) == 4
        and rows[0].count == 1
        and rows[1].count == 0
        and rows[0].expected == texts[0][1]
    )
