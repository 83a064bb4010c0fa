"""Spoken commands for a house and the JSON that each means: texts of many wordings, as they are
said and written down.

A command has an intent, a device, a room and a number; what is not said is null. Its text is
spelled in three ways: as it is spoken (lower case, numbers in words), as Whisper writes it down
(capitals, marks, digits), and as CTC spells it by ear (with slips).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from mmdiff.audio.audio_io import SAMPLE_RATE
from mmdiff.pipeline import load
from mmdiff.prompts import EXTRACT_PROMPT
from mmdiff.structured.schema.serialize import dumps, outline, pieces
from mmdiff.training.packing import Row, Turn
from mmdiff.training.tiny.scenes import TRAIN_SEEDS, pick
from mmdiff.training.tiny.sentences import cardinal
from mmdiff.training.tiny.speech import clip
from mmdiff.training.tiny.structured import AnswerPart

Rng = np.random.Generator

INTENTS = (
    "turn_on",
    "turn_off",
    "open",
    "close",
    "lock",
    "unlock",
    "set",
    "increase",
    "decrease",
    "status",
)
DEVICES = (
    "light",
    "fan",
    "thermostat",
    "blinds",
    "curtains",
    "door",
    "window",
    "garage door",
    "gate",
    "tv",
    "music",
    "volume",
    "timer",
    "vacuum",
    "oven",
    "coffee machine",
    "dishwasher",
    "washing machine",
)
ROOMS = (
    "kitchen",
    "living room",
    "bedroom",
    "bathroom",
    "office",
    "garage",
    "garden",
    "hallway",
    "dining room",
    "basement",
    "attic",
    "nursery",
)
SHARD = 100  # commands that are transcribed in one go
MOST = 100  # percent, degrees or minutes
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "intent": {"enum": list(INTENTS)},
        "device": {"enum": [*DEVICES, None]},
        "room": {"enum": [*ROOMS, None]},
        "number": {"type": ["integer", "null"], "minimum": 0, "maximum": MOST},
    },
    "required": ["intent", "device", "room", "number"],
    "additionalProperties": False,
}
NUMBERS: tuple[int | None, ...] = (*range(MOST + 1), None)

WORDINGS = Path(__file__).with_name("commands.txt")
SWITCHED = (
    "light",
    "fan",
    "thermostat",
    "tv",
    "music",
    "vacuum",
    "oven",
    "coffee machine",
    "dishwasher",
    "washing machine",
)
OPENED = ("blinds", "curtains", "door", "window", "garage door", "gate")
LOCKED = ("door", "window", "garage door", "gate")
INDOORS = (
    "light",
    "fan",
    "thermostat",
    "tv",
    "music",
    "blinds",
    "curtains",
    "door",
    "window",
    "volume",
    "vacuum",
    "timer",
)  # said with a room
SET = (
    "light",
    "light",
    "thermostat",
    "thermostat",
    "blinds",
    "curtains",
    "fan",
    "volume",
    "timer",
    "timer",
    "window",
)
TURNED = ("light", "thermostat", "fan", "volume", "volume")  # up and down
ASKED = (
    "switched",
    "opened",
    "locked",
    "light",
    "thermostat",
    "thermostat",
    "volume",
    "timer",
    "timer",
)
NOWHERE = ("",) * 12 + ("here", "in here", "in this room", "everywhere", "in the house", "at home")
DEGREES = ("degrees", "degrees", "degrees", "degree", "degrees celsius", "")


@dataclass(frozen=True)
class Command:
    """What is said, in lower case with numbers in words, and what it means."""

    text: str
    value: dict[str, Any]


def command(rng: Rng) -> Command:
    """A command at random; about half of them name a room, and those that have one a number."""
    intent = pick(rng, (*INTENTS, "turn_on", "turn_off", "set", "set", "status"))
    device, templates = _wording(intent, rng)
    template, place = pick(rng, templates), pick(rng, ROOMS)
    with_room = "{room}" in template or (
        "{in}" in template and device in INDOORS and rng.random() < 0.55
    )
    number, with_step = _number(device, rng), rng.random() < 0.4
    words = wordings()
    room = words["rooms"][place]
    said: dict[str, Callable[[], str]] = {
        "the": lambda: pick(rng, ("the", "the", "my", "our")),
        "is": lambda: pick(rng, ("is", "is", "are")),
        "device": lambda: words["devices"][device],
        "room": lambda: room,
        "n": lambda: "{number}",
        "deg": lambda: pick(rng, DEGREES),
        "by": lambda: _step(device) if with_step else "",
        "in": lambda: _somewhere(device, room) if with_room else pick(rng, NOWHERE),
    }
    text = expand(template, rng, said)
    value = {
        "intent": intent,
        "device": device,
        "room": place if with_room else None,
        "number": number if "{number}" in text else None,
    }
    text = " ".join(text.replace("{number}", cardinal(number)).split())
    polite, share = ("politely asked", 0.2) if intent == "status" else ("politely", 0.4)
    if rng.random() < share:
        text = pick(rng, words[polite]).format(text)
    return Command(text, value)


def _number(device: str, rng: Rng) -> int:
    """Degrees are mostly those of rooms, and every other number is a round one."""
    if device == "thermostat" and rng.random() < 0.7:
        return int(rng.integers(10, 31))
    if rng.random() < 0.4:
        return 5 * int(rng.integers(1, 21))
    return int(rng.integers(device == "timer", MOST + 1))


def _step(device: str) -> str:
    unit = "{deg}" if device == "thermostat" else wordings()["<percent>"]
    return f"(by|by|by|) {{n}} {unit}"


def _somewhere(device: str, room: str) -> str:
    preposition = "in" if device == "timer" else "(in|in|in|in|of|for|at|on)"
    return f"{preposition} [the|the|the|my|our] {room}"


def _wording(intent: str, rng: Rng) -> tuple[str, Sequence[str]]:
    """A device that the intent goes with, and the templates of both."""
    words = wordings()
    if intent in ("turn_on", "turn_off"):
        switched: tuple[str, ...] = (*SWITCHED, "light", "light", "fan")
        if intent == "turn_off":
            switched += ("timer",)  # it is cancelled
        device = pick(rng, switched)
        own: Sequence[str] = words.get(f"{intent} {device}", ())
        if device == "timer" or (own and rng.random() < 0.35):
            return device, own
        return device, words[intent]
    if intent in ("open", "close"):
        return pick(rng, OPENED), words[intent]
    if intent in ("lock", "unlock"):
        return pick(rng, (*LOCKED, "door", "door")), words[intent]
    if intent == "set":
        device = pick(rng, SET)
        if device in ("curtains", "window"):
            return device, words["set blinds"]
        return device, words[f"set {device}"]
    if intent != "status":
        device = pick(rng, TURNED)
        return device, words[f"{intent} {device}"]
    kind = pick(rng, ASKED)
    kinds: dict[str, Sequence[str]] = {
        "switched": (*SWITCHED, "light", "light"),
        "opened": OPENED,
        "locked": LOCKED,
    }
    return pick(rng, kinds.get(kind, (kind,))), words[f"status {kind}"]


@cache
def wordings() -> dict[str, Any]:
    """The sections of commands.txt by their headings: templates, or where lines have colons what
    stands for a name."""
    found: dict[str, Any] = {}
    short: dict[str, str] = {}
    for line in WORDINGS.read_text(encoding="utf-8").splitlines():
        if line.startswith("<") and not found:
            name, _, text = line.partition(" ")
            short[name] = text
        elif line.startswith("= "):
            section: list[str] = []
            found[line[2:]] = section
        elif line and not line.startswith("#"):
            section.append(re.sub("|".join(short), lambda name: short[name[0]], line))
    pairs = {}
    for heading in ("devices", "rooms", "misheard"):
        pairs[heading] = [tuple(line.split(": ")) for line in found[heading]]
    found |= {
        "devices": dict(pairs["devices"]),
        "rooms": dict(pairs["rooms"]),
        "misheard": pairs["misheard"],
    }
    return found | short


def expand(template: str, rng: Rng, said: dict[str, Callable[[], str]]) -> str:
    """A template with one of each (a|b), some of each [a|b], and its names filled in."""
    inner = re.compile(r"\(([^()\[\]]*)\)|\[([^()\[\]]*)\]|\{(" + "|".join(said) + r")\}")
    while (found := inner.search(template)) is not None:
        options, maybe, name = found.groups()
        if name is not None:
            made = said[name]()
        elif options is not None:
            made = pick(rng, options.split("|"))
        elif rng.random() < 0.6:
            made = pick(rng, maybe.split("|"))
        else:
            made = ""
        template = template[: found.start()] + made + template[found.end() :]
    return template


def heard(text: str, rng: Rng) -> str:
    """The text as a recogniser may write it down: as Whisper does, or in lower case by ear; at
    times with slips."""
    if rng.random() < 0.25:
        text = _slipped(text, rng)
    if rng.random() < 0.65:
        return written(text, rng)
    return text


def written(text: str, rng: Rng) -> str:
    """With a capital, marks, and mostly with digits, as Whisper writes."""
    if rng.random() < 0.85:
        text = digits(text)
        if rng.random() < 0.8:
            text = text.replace(" percent", "%")
        if rng.random() < 0.3:
            text = re.sub(r"(\d) minute (?=\w)", r"\1-minute ", text)
    elif rng.random() < 0.8:
        text = re.sub(r"(\w+ty) (one|two|three|four|five|six|seven|eight|nine)\b", r"\1-\2", text)
    text = re.sub(r"\bt v\b|\btv\b", "TV", re.sub(r"\bi\b", "I", text))
    if rng.random() < 0.3:
        text = re.sub(
            r"^((?:please|hey|ok|okay|now|computer|alright|um|so|hey computer|hello)) ",
            r"\1, ",
            text,
        )
        text = re.sub(r" (please|thanks|thank you|now)$", r", \1", text)
    marks = (".", ".", ".", ".", "", "!")
    if text.startswith(ASKING):
        marks = ("?", "?", "?", "?", "?", ".")
    mark = pick(rng, marks)
    if rng.random() < 0.1:
        return text + mark
    return text[0].upper() + text[1:] + mark


ASKING = (
    "is ",
    "are ",
    "did ",
    "what",
    "how",
    "which",
    "can ",
    "could ",
    "would ",
    "will ",
    "when",
)
WORD_VALUES = {cardinal(number): str(number) for number in range(MOST + 1)} | {"a hundred": "100"}
_NUMBERS = re.compile(r"\b(" + "|".join(sorted(WORD_VALUES, key=len, reverse=True)) + r")\b")


def digits(text: str) -> str:
    """Numbers in words as digits."""
    return _NUMBERS.sub(lambda found: WORD_VALUES[found[1]], text)


def _slipped(text: str, rng: Rng) -> str:
    """With a word taken for another, or a few letters wrong, missing or doubled; numbers are left
    alone."""
    found = [pair for pair in wordings()["misheard"] if re.search(rf"\b{pair[0]}\b", text)]
    if found and rng.random() < 0.6:
        right, wrong = pick(rng, found)
        return re.sub(rf"\b{right}\b", wrong, text, count=1)
    words = text.split()
    places = []
    for place, word in enumerate(words):
        if len(word) > 2 and word not in _NUMBER_WORDS:
            places.append(place)
    if not places:
        return text
    place = pick(rng, places)
    word, at = words[place], int(rng.integers(len(words[place])))
    kind = rng.random()
    if kind < 0.15 and len(words) > 1:
        del words[place]
    elif kind < 0.6:
        words[place] = word[:at] + pick(rng, "aeiourstnldm") + word[at + 1 :]
    elif kind < 0.85:
        words[place] = word[:at] + word[at + 1 :]
    else:
        words[place] = word[: at + 1] + word[at:]
    return " ".join(words)


_NUMBER_WORDS = frozenset(" ".join(WORD_VALUES).split())
_SPELLED = {
    "/device": tuple(map(dumps, (*DEVICES, None))),
    "/room": tuple(map(dumps, (*ROOMS, None))),
    "/intent": INTENTS,
    "/number": tuple(map(dumps, NUMBERS)),
}


def schema_of(fields: Sequence[str] = tuple(SCHEMA["properties"])) -> dict[str, Any]:
    """The schema with some of its members."""
    return {
        **SCHEMA,
        "properties": {name: SCHEMA["properties"][name] for name in fields},
        "required": list(fields),
    }


def parts(value: dict[str, Any]) -> list[AnswerPart]:
    """The pieces of a command's JSON, laid out as `extract` does."""
    laid_out = []
    for piece in pieces(value, ("/device", "/room")):
        spelled: Sequence[str] = ()
        if piece.slot:
            spelled = _SPELLED[piece.path]
        laid_out.append(AnswerPart(piece.text, piece.slot, int(piece.slot), spelled))
    return laid_out


def command_turn(said: str, value: dict[str, Any], **more: Any) -> Turn:
    """A command, and its JSON to be filled in."""
    asked = EXTRACT_PROMPT.format(outline(schema_of(tuple(value))))
    if said:
        asked = f"{said}\n{asked}"
    laid_out = parts(value)
    return Turn(asked, "", parts=laid_out, num_scaffolded=len(laid_out), **more)


def command_row(rng: Rng) -> Row:
    """A written command of the training."""
    made = _trained(rng)
    return None, [command_turn(heard(made.text, rng), made.value)]


def part_row(rng: Rng) -> Row:
    """A written command of which only the number or the intent is asked, or both: these are learned
    last."""
    fields = pick(rng, PARTS)
    made = _trained(rng)
    while _is_easy(made.value, fields) and rng.random() < 0.7:
        made = _trained(rng)
    return None, [command_turn(heard(made.text, rng), {name: made.value[name] for name in fields})]


PARTS = (("number",), ("intent",), ("intent",), ("intent", "number"))


def _is_easy(value: dict[str, Any], fields: Sequence[str]) -> bool:
    """Nothing where a number is asked, and among intents those without a counterpart."""
    if fields == ("intent",):
        return value["intent"] in ("set", "status")
    return value["number"] is None


def _trained(rng: Rng) -> Command:
    return command(
        np.random.default_rng((int(rng.integers(TRAIN_SEEDS.start, TRAIN_SEEDS.stop)), 7))
    )


@dataclass(frozen=True)
class HeardCommands:
    """A source of commands as speech recognition wrote them down, with its own mistakes."""

    commands: Sequence[Command]

    def __call__(self, rng: Rng) -> Row:
        made = self.commands[int(rng.integers(len(self.commands)))]
        return None, [command_turn(made.text, made.value)]


def heard_commands(folder: Path, count: int, workers: int = 2) -> HeardCommands:
    """The first `count` commands of a folder, read by voices of the training and transcribed with
    `tiny` by the ears of `Pipeline.transcribe`.

    What the folder does not hold yet is made; stop at any time, finished shards are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:04}.json" for number in range(-(-count // SHARD))]
    missing = [number for number, file in enumerate(files) if not file.is_file()]
    if missing:
        # A forked process would hang in threads that the parent has started.
        pool = ProcessPoolExecutor(workers, get_context("spawn"))
        with pool:
            made = pool.map(_transcribe_shard, [files[number] for number in missing], missing)
            for _ in track(made, "commands heard", len(missing)):
                pass
    found = []
    for file in files:
        found += [Command(text, value) for text, value in json.loads(file.read_text()) if text]
    return HeardCommands(found[:count])


def _transcribe_shard(file: Path, number: int) -> None:
    torch.set_num_threads(1)
    pipeline = load("tiny", dtype="float32")
    heard = []
    for seed in range(number * SHARD, (number + 1) * SHARD):
        made = command(np.random.default_rng((seed, 8)))
        samples = clip(TRAIN_SEEDS.start + seed, made.text, indoors=False).samples
        heard.append((pipeline.transcribe(samples, sample_rate=SAMPLE_RATE).text, made.value))
    new = file.with_suffix(".new")
    new.write_text(json.dumps(heard))
    new.replace(file)
