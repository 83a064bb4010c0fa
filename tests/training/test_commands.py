"""Spoken commands: their wordings, how they are written down, and turns laid out as `extract` lays them out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from mmdiff.generation import audio_message, user_message
from mmdiff.pipeline import Pipeline, load
from mmdiff.training.commands import (
    SCHEMA,
    Command,
    command,
    command_row,
    command_turn,
    digits,
    expand,
    heard,
    part_row,
    wordings,
    written,
)
from mmdiff.training.packing import pack

VALUE = {"intent": "set", "device": "light", "room": None, "number": 40}


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def many() -> list[Command]:
    return [command(rng(seed)) for seed in range(2000)]


@pytest.fixture(scope="module")
def pipeline(random_tiny: Path) -> Pipeline:
    return load(random_tiny)


def test_commands_have_values_of_the_schema(many: list[Command]) -> None:
    judge = jsonschema.Draft202012Validator(SCHEMA)
    assert all(
        judge.is_valid(made.value) and list(made.value) == list(SCHEMA["properties"])
        for made in many
    )
    for name in ("intent", "device", "room"):
        assert {made.value[name] for made in many} == {*SCHEMA["properties"][name]["enum"]} - {
            None
        } | ({None} if name == "room" else set())
    shares = Counter(
        name for made in many for name in ("room", "number") if made.value[name] is None
    )
    assert 600 < shares["room"] < 1600 and 1000 < shares["number"] < 1800


def test_texts_are_as_they_are_said(many: list[Command]) -> None:
    for made in many:
        assert made.text == made.text.lower() and not set(made.text) - set(
            "abcdefghijklmnopqrstuvwxyz' "
        ), made.text
        number = made.value["number"]
        assert number is None or str(number) in digits(made.text).split(), made.text
    assert len({made.text for made in many}) > 1800
    assert command(rng(5)) == command(rng(5))


def test_headings_are_all_used_and_wordings_are_whole() -> None:
    for heading, section in wordings().items():
        if isinstance(section, list) and heading != "misheard":
            for line in section:
                assert all(
                    line.count(pair[0]) == line.count(pair[1]) for pair in ("()", "[]", "{}")
                ), line
    assert expand("(a|b) [c]", rng(0), {"x": str}).strip()[0] in "ab"


def test_written_commands_look_like_transcripts() -> None:
    texts = {written("turn the t v to twenty five percent please", rng(seed)) for seed in range(60)}
    assert any("25%" in text for text in texts) and any("twenty-five" in text for text in texts)
    assert all("TV" in text for text in texts) and any(text.startswith("Turn") for text in texts)
    assert (
        digits("a hundred and one hundred and nineteen and twenty one")
        == "100 and 100 and 19 and 21"
    )
    assert written("is it on", rng(1)).lower().startswith("is it on")
    for seed in range(300):
        assert heard("door", rng(seed)).strip()


def test_numbers_survive_slips() -> None:
    for seed in range(300):
        text = heard("set the kitchen light to seventy nine percent", rng(seed)).lower()
        assert "79" in text or "seventy nine" in text or "seventy-nine" in text, text


@pytest.mark.parametrize("with_sound", [False, True])
def test_a_turn_is_what_extract_asks_and_lays_out(
    pipeline: Pipeline, random_tiny: Path, with_sound: bool
) -> None:
    sound = torch.zeros(80, 200) if with_sound else None
    turn = command_turn("" if with_sound else "Dim the light to 40%.", VALUE, mel=sound)
    config = pipeline.model.model_config
    tokenizer = Tokenizer.from_file(str(random_tiny / "tokenizer.json"))
    batch = pack([(None, [turn])], tokenizer, config, rng(0))
    message = (
        audio_message(np.zeros(32_000, np.float32), turn.question)
        if with_sound
        else user_message(None, turn.question)
    )
    prompt = pipeline.processor.apply_chat_template(
        [message], tokenize=True, return_dict=True, add_generation_prompt=True
    )["input_ids"][0]
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    assert torch.equal(ids[: len(prompt)], prompt)
    canvas = pipeline.start([[message]], scaffolds=[pipeline.compile(SCHEMA)]).canvas.ids_BG[0]
    hidden = torch.where(labels == -100, ids, torch.tensor(config.tokens.mask))[len(prompt) :]
    assert torch.equal(hidden, canvas)


def test_some_fields_are_asked_alone() -> None:
    numbers = 0
    for seed in range(200):
        _, (turn,) = part_row(rng(seed))
        said, _, asked = turn.question.rpartition("\nAnswer as JSON: ")  # type: ignore[union-attr]
        assert said and asked in (
            '{"number":0|null}',
            '{"intent":""}',
            '{"intent":"","number":0|null}',
        )
        numbers += any(part.slot and part.text.isdigit() for part in turn.parts)  # type: ignore[union-attr]
    assert 40 < numbers < 120


def test_rows_repeat_and_the_example_has_the_schema(root: Path) -> None:
    assert command_row(rng(3)) == command_row(rng(3)) != command_row(rng(4))
    assert json.loads((root / "examples" / "commands" / "commands.json").read_text()) == SCHEMA
