"""Public reports about voice assistants, tried on the example of spoken commands: a sentence as it was reported or in
its kind, as recognisers write it, and the JSON that it means.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmdiff.pipeline import Pipeline, load
from mmdiff.training.commands import SCHEMA


@pytest.fixture(scope="module")
def house(root: Path) -> Pipeline:
    return load(root / "examples" / "commands")


def means(
    intent: str, device: str, room: str | None = None, number: int | None = None
) -> dict[str, Any]:
    return {"intent": intent, "device": device, "room": room, "number": number}


CASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    # https://github.com/WebThingsIO/gateway/issues/1210: a percentage in words is understood, and as a sign is not
    ("1210", "Set the kitchen light to fifty percent.", means("set", "light", "kitchen", 50)),
    ("1210", "Set the kitchen light to 50%.", means("set", "light", "kitchen", 50)),
    ("1210", "set the kitchen light to fifty percent", means("set", "light", "kitchen", 50)),
    # https://github.com/MycroftAI/skill-homeassistant/issues/63: typed the word, spoken the sign
    ("63", "Set the bedroom lights to 30 percent.", means("set", "light", "bedroom", 30)),
    ("63", "Set the bedroom lights to 30%.", means("set", "light", "bedroom", 30)),
    # https://github.com/coldfire84/node-red-contrib-alexa-home-skill-v3/issues/22: 57 and 58 become 56 and 57
    ("22", "Set the office light to 57%.", means("set", "light", "office", 57)),
    ("22", "Set the office light to 58%.", means("set", "light", "office", 58)),
    # https://github.com/ChristopherRogers1991/mycroft-hue/pull/10: 100 percent become 254
    ("10", "Set the bedroom light to 100%.", means("set", "light", "bedroom", 100)),
    # https://github.com/OHF-Voice/intents/issues/2799: tens in words are not read, and 75 is
    ("2799", "Set the bedroom lamp to seventy percent.", means("set", "light", "bedroom", 70)),
    ("2799", "Set the bedroom lamp to seventy five percent.", means("set", "light", "bedroom", 75)),
    # https://github.com/OHF-Voice/intents/issues/2717: thirty and twenty in words
    (
        "2717",
        "Set the living room light to thirty percent.",
        means("set", "light", "living room", 30),
    ),
    # https://github.com/rhasspy/hassio-addons/issues/57: one hundred in words
    ("57", "Set office brightness to one hundred percent.", means("set", "light", "office", 100)),
    # https://github.com/MycroftAI/hardware-mycroft-mark-II/issues/72: the volume is taken for brightness
    ("72", "Set volume to 50%.", means("set", "volume", None, 50)),
    ("72", "Set the volume to 70%.", means("set", "volume", None, 70)),
    # https://github.com/AlbertMN/AssistantComputerControl/issues/51: small numbers in words
    ("51", "Set the volume to five.", means("set", "volume", None, 5)),
    # https://github.com/JarvyJ/HomeIntent/issues/229: without the word percent
    ("229", "Set the kitchen light to 30.", means("set", "light", "kitchen", 30)),
    # https://github.com/home-assistant/core/issues/111962: a comma between verb and device
    ("111962", "Turn off, the kitchen light.", means("turn_off", "light", "kitchen")),
    ("111962", "Turn off the kitchen light.", means("turn_off", "light", "kitchen")),
    # https://github.com/OHF-Voice/intents/issues/2319: short sentences about lights
    ("2319", "Lights off in the bathroom.", means("turn_off", "light", "bathroom")),
    ("2319", "Lights out.", means("turn_off", "light")),
    ("2319", "Bedroom lights out.", means("turn_off", "light", "bedroom")),
    ("2319", "Lights on.", means("turn_on", "light")),
    # https://github.com/HeyWillow/willow/issues/169: shades of a room
    ("169", "Open the living room shades.", means("open", "blinds", "living room")),
    ("169", "Turn off the basement lamp.", means("turn_off", "light", "basement")),
)


MISUNDERSTOOD = {"Bedroom lights out."}  # by the example's adapter, which takes it for the nursery


@pytest.mark.parametrize(("report", "said", "value"), CASES)
def test_commands_of_reports_are_understood(
    house: Pipeline, report: str, said: str, value: dict[str, Any]
) -> None:
    assert (house.extract(None, SCHEMA, text=said).value == value) != (said in MISUNDERSTOOD)
