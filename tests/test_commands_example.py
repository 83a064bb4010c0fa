"""The example of spoken commands: what its page shows, and values that fit however the audio is taken."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from mmdiff.cli.main import main
from mmdiff.pipeline import Pipeline, load
from mmdiff.training.commands import INTENTS, SCHEMA

VALUE = {"intent": "set", "device": "light", "room": "kitchen", "number": 40}


@pytest.fixture(scope="module")
def house(root: Path) -> Pipeline:
    return load(root / "examples" / "commands")


def test_its_page_shows_what_is_printed(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (root / "examples" / "commands" / "README.md").read_text()
    command, heard, printed = page.split("```console\n$ ")[1].split("```")[0].splitlines()
    monkeypatch.chdir(root)
    monkeypatch.setattr("sys.argv", command.split())
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert not ended.value.code and out == f"{printed}\n" and json.loads(out) == VALUE
    assert heard in err.splitlines()


def test_speech_gives_values_that_fit_either_way(house: Pipeline, root: Path) -> None:
    audio = str(root / "examples" / "commands" / "light.flac")
    for audio_as in ("transcript", "embeddings"):
        made = house.extract(None, SCHEMA, audio=audio, audio_as=audio_as)  # type: ignore[arg-type]
        assert jsonschema.Draft202012Validator(SCHEMA).is_valid(made.value) and made.passes == 1
        assert bool(made.heard) == (audio_as == "transcript")
        chosen = house.choose(None, "What is to be done?", INTENTS, audio=audio, audio_as=audio_as)  # type: ignore
        assert chosen.value in INTENTS


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("Turn off the lights in the living room.", ("turn_off", "light", "living room", None)),
        ("Is the garage door open?", ("status", "garage door", None, None)),
        ("start a timer for ten minutes", ("set", "timer", None, 10)),
        ("Please lock the front door.", ("lock", "door", None, None)),
    ],
)
def test_commands_are_understood_as_text(
    house: Pipeline, said: str, value: tuple[object, ...]
) -> None:
    assert tuple(house.extract(None, SCHEMA, text=said).value.values()) == value
