"""Spoken commands and the JSON that they mean: the task `spoken-commands`, for a model such as
examples/commands.

Texts are generated, or those of Home Assistant's package `home-assistant-intents` (Apache-2.0; no
sentence of it was trained on), sampled from its templates, with its own labels as far as the schema
has a field for them. They are typed, and read by voices that training never heard. A person's are
joined out of words of Asterisk's recordings.

An answer is right where all of its JSON is.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from warnings import warn

import numpy as np

from mmdiff.audio.audio_io import SAMPLE_RATE, Samples, load_audio
from mmdiff.errors import NoSpeechError, require_extra
from mmdiff.eval.evidence import EvidenceRow
from mmdiff.eval.speech import asterisk_file, voice_kind
from mmdiff.pipeline import Pipeline
from mmdiff.structured.schema.serialize import dumps
from mmdiff.structured_verbs import AUDIO_AS
from mmdiff.training.commands import MOST, ROOMS, SCHEMA, command, digits, written
from mmdiff.training.tiny.scenes import COLOURS, TEST_SEEDS, VALID_SEEDS, pick
from mmdiff.training.tiny.sentences import KINDS, cardinal
from mmdiff.training.tiny.speech import clip

TASK, VALID_TASK, CHOICES = "spoken-commands", "spoken-commands-valid", "spoken-choices"
COMMANDS = 150  # of each source
Rng = np.random.Generator


@dataclass(frozen=True)
class Said:
    """A command: how it is typed, how it is spoken and by what, what it means, and the rows that it
    belongs to."""

    id: str
    group: str
    source: str
    typed: str
    voice: str
    audio: Callable[[], Samples]
    value: dict[str, Any]


def spoken_commands(
    pipeline: Pipeline,
    limit: int | None,
    batch_size: int,
    done: Container[str] = (),
    validation: bool = False,
) -> Iterator[list[EvidenceRow]]:
    """Rows of each command: typed, and spoken with the audio as a transcript and as embeddings."""
    for said in chosen(limit, validation):
        for form in ("typed", *AUDIO_AS):
            if (id := f"{said.id}, {form}") in done:
                continue
            kind, given = f"{said.source}, typed", dict[str, Any]({"text": said.typed})
            if form != "typed":
                kind = f"{said.source}, {said.voice}, as {form}"
                given = {"audio": said.audio(), "sample_rate": SAMPLE_RATE, "audio_as": form}
            yield [_row(VALID_TASK if validation else TASK, id, said, kind, pipeline, given)]


def _row(
    task: str, id: str, said: Said, kind: str, pipeline: Pipeline, given: dict[str, Any]
) -> EvidenceRow:
    details: dict[str, Any] = {"said": said.typed}
    try:
        made = pipeline.extract(None, SCHEMA, **given)
    except NoSpeechError:
        return EvidenceRow(
            task, id, said.group, kind, dumps(said.value), "", 0, 1, {**details, "valid": False}
        )
    if made.heard:
        details |= {"heard": made.heard}
    details |= {"confidence": round(made.confidence, 3), "valid": _is_valid(made.text)}
    return EvidenceRow(
        task,
        id,
        said.group,
        kind,
        dumps(said.value),
        made.text,
        int(made.value == said.value),
        1,
        details,
    )


def spoken_choices(
    pipeline: Pipeline, limit: int | None, batch_size: int, done: Container[str] = ()
) -> Iterator[list[EvidenceRow]]:
    """The color that a spoken sentence names, chosen among all, with the audio as a transcript and
    as embeddings."""
    for number in range(min(limit or COMMANDS, COMMANDS)):
        seed = TEST_SEEDS.start + 6 * 10**6 + number
        text, color = _with_one_color(np.random.default_rng((seed, 2)))
        for form in AUDIO_AS:
            if (id := f"{number}, {form}") in done:
                continue
            given: dict[str, Any] = {
                "audio": _clip(seed, text),
                "sample_rate": SAMPLE_RATE,
                "audio_as": form,
            }
            try:
                made = pipeline.choose(None, "What color is named?", tuple(COLOURS), **given).value
            except NoSpeechError:
                made = ""
            kind = f"{voice_kind(seed)}, as {form}"
            yield [
                EvidenceRow(
                    CHOICES,
                    id,
                    str(number),
                    kind,
                    color,
                    made,
                    int(made == color),
                    1,
                    {"said": text},
                )
            ]


def _with_one_color(rng: Rng) -> tuple[str, str]:
    while True:
        text = KINDS["question"](rng)
        if len(named := [color for color in COLOURS if color in text.split()]) == 1:
            return text, named[0]


def _is_valid(text: str) -> bool:
    """By another validator than that of `extract`."""
    jsonschema = require_extra("jsonschema", "eval", "validating JSON")
    try:
        return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid(json.loads(text)))
    except ValueError:
        return False


def chosen(limit: int | None, validation: bool = False) -> Iterator[Said]:
    """The commands of the task; of the validation, generated ones by voices of the validation
    alone."""
    count = min(limit or COMMANDS, COMMANDS)
    first = (VALID_SEEDS if validation else TEST_SEEDS).start + 4 * 10**6
    for number in range(count):
        rng = np.random.default_rng((first + number, 2))
        made = command(rng)
        yield Said(
            f"generated {number}",
            f"generated {number}",
            "generated",
            written(made.text, rng),
            voice_kind(first + number),
            partial(_clip, first + number, made.text),
            made.value,
        )
    if validation:
        return
    for number, (text, value) in enumerate(home_assistant(count)):
        seed = first + 10**5 + number
        rng = np.random.default_rng((seed, 2))
        yield Said(
            f"home assistant {number}",
            f"home assistant {number}",
            "Home Assistant",
            written(text, rng),
            voice_kind(seed),
            partial(_clip, seed, text),
            value,
        )
    yield from people(limit)


def _clip(seed: int, text: str) -> Samples:
    return clip(seed, text, indoors=False).samples


# Home Assistant's sentences

COVERS = {
    "blind": "blinds",
    "shade": "blinds",
    "shutter": "blinds",
    "curtain": "curtains",
    "door": "door",
    "garage": "garage door",
    "garage_door": "garage door",
    "gate": "gate",
    "window": "window",
}
NUMBER_SLOTS = (
    "brightness",
    "temperature",
    "position",
    "percentage",
    "volume_level",
    "minutes",
    "start_minutes",
    "volume_step",
)
Slots = dict[str, Any]


def home_assistant(count: int) -> list[tuple[str, Slots]]:
    """Sentences sampled from the package's templates, in lower case with numbers in words, and what
    they mean."""
    found: dict[str, Slots] = {}
    rng = np.random.default_rng(0)
    blocks = {intent: some for intent in MEANINGS if (some := _blocks(intent))}
    while len(found) < count:
        intent = pick(rng, tuple(blocks))
        block = pick(rng, blocks[intent])
        slots: Slots = dict(block.get("slots", {}))
        text = _sample(_parsed(pick(rng, block["sentences"])), rng, slots)
        value = MEANINGS[intent](slots)
        if value is not None:
            spoken = " ".join(
                text.replace("%", " percent").replace("°", " degrees").replace("-", " ").split()
            )
            found.setdefault(spoken, value)
    return list(found.items())


@cache
def _package() -> dict[str, Any]:
    require_extra("home_assistant_intents", "eval", "Home Assistant's sentences")
    file = importlib.resources.files("home_assistant_intents") / "data" / "en.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _blocks(intent: str) -> list[dict[str, Any]]:
    """Groups of templates whose sentences say nothing that the schema has no field for."""
    made = []
    for block in _package()["intents"][intent]["data"]:
        sentences = [each for each in block["sentences"] if _names(_parsed(each)) <= LISTS]
        if sentences:
            made.append({**block, "sentences": sentences})
    return made


LISTS = {
    "area",
    "cover_classes",
    "brightness",
    "temperature",
    "position",
    "volume",
    "volume_step",
    "volume_step_up",
    "volume_step_down",
    "fan_speed",
    "timer_minutes",
    "cover_states",
    "on_off_states",
}


@cache
def _parsed(sentence: str) -> Any:
    return (
        require_extra("hassil.parse_expression", "eval", "reading templates")
        .parse_sentence(sentence)
        .expression
    )


def _rule(name: str) -> Any:
    return _parsed(f"({_package()['expansion_rules'][name]})")


def _names(node: Any) -> set[str]:
    """The lists that a template refers to."""
    kind = type(node).__name__
    if kind == "ListReference":
        return {node.list_name}
    if kind == "RuleReference":
        return _names(_rule(node.rule_name))
    return set[str]().union(*map(_names, getattr(node, "items", ())))


def _sample(node: Any, rng: Rng, slots: Slots) -> str:
    """A text of the template, whose values are put into `slots`."""
    kind = type(node).__name__
    if kind == "TextChunk":
        return str(node.text)
    if kind == "RuleReference":
        return _sample(_rule(node.rule_name), rng, slots)
    if kind == "ListReference":
        said, slots[node.slot_name] = _value(node.list_name, rng)
        return said
    items, between = list(node.items), ""
    if kind == "Alternative":
        items = [pick(rng, tuple(items))]
    elif kind == "Permutation":
        items = [items[position] for position in rng.permutation(len(items))]
        between = " "
    return between.join([_sample(item, rng, slots) for item in items])


def _value(name: str, rng: Rng) -> tuple[str, Any]:
    """How a value of a list is said, and the value."""
    if name == "area":
        room = pick(rng, ROOMS)
        return room, room
    held = _package()["lists"][name]
    if "range" in held:
        number = int(
            rng.integers(max(1, held["range"]["from"]), min(MOST, held["range"]["to"]) + 1)
        )
        return cardinal(number), number
    option = pick(rng, tuple(held["values"]))
    if not isinstance(option, dict):
        option = {"in": option, "out": option}
    return _sample(_parsed(f"({option['in']})"), rng, {}), option["out"]


def _meant(intent: str, device: str | None, slots: Slots) -> Slots | None:
    if device is None:
        return None
    number = next((slots[name] for name in NUMBER_SLOTS if isinstance(slots.get(name), int)), None)
    return {"intent": intent, "device": device, "room": slots.get("area"), "number": number}


def _device(slots: Slots) -> str | None:
    domain, kind = slots.get("domain"), slots.get("device_class")
    if domain in ("light", "fan"):
        return str(domain)
    if domain in ("cover", None):
        return COVERS.get(str(kind))
    return None


SWITCHING = {True: "turn_on", False: "turn_off"}
MOVING = {True: "open", False: "close"}


def _switched(on: bool, slots: Slots) -> Slots | None:
    device, intents = _device(slots), SWITCHING
    if device in COVERS.values():
        intents = MOVING
    return _meant(intents[on], device, slots)


def _set(device: str, by: str, slots: Slots) -> Slots | None:
    """A device is set where the sentence says to what."""
    if by not in slots:
        return None
    return _meant("set", device, slots)


def _louder(slots: Slots) -> Slots | None:
    step = slots.get("volume_step")
    if isinstance(step, str):
        return _meant("increase" if step == "up" else "decrease", "volume", slots)
    return None  # the direction is not in the label


MEANINGS: dict[str, Callable[[Slots], Slots | None]] = {
    "HassTurnOn": partial(_switched, True),
    "HassTurnOff": partial(_switched, False),
    "HassLightSet": partial(_set, "light", "brightness"),
    "HassClimateSetTemperature": partial(_meant, "set", "thermostat"),
    "HassClimateGetTemperature": partial(_meant, "status", "thermostat"),
    "HassSetPosition": lambda slots: _meant("set", _device(slots), slots),
    "HassSetVolume": partial(_meant, "set", "volume"),
    "HassSetVolumeRelative": _louder,
    "HassFanSetSpeed": partial(_meant, "set", "fan"),
    "HassStartTimer": partial(_set, "timer", "minutes"),
    "HassCancelTimer": partial(_meant, "turn_off", "timer"),
    "HassTimerStatus": partial(_meant, "status", "timer"),
    "HassGetState": lambda slots: _meant("status", _device(slots), slots),
    "HassVacuumCleanArea": partial(_meant, "turn_on", "vacuum"),
}


# A person's words, joined

CUTS = {  # of prompts: what is said from where to where, in seconds
    "confbridge-dec-list-vol-in": ("decrease the audio volume", 0.42, 2.03),
    "confbridge-dec-list-vol-out": ("decrease the audio volume", 0.44, 2.01),
    "confbridge-dec-talk-vol-in": ("decrease your speaking volume", 0.46, 2.13),
    "confbridge-dec-talk-vol-out": ("decrease your speaking volume", 0.38, 1.93),
    "confbridge-inc-list-vol-in": ("increase the audio volume", 0.27, 2.21),
    "confbridge-inc-list-vol-out": ("increase the audio volume", 0.33, 2.19),
    "confbridge-inc-talk-vol-in": ("increase your speaking volume", 0.30, 1.89),
    "confbridge-inc-talk-vol-out": ("increase your speaking volume", 0.35, 2.09),
}
PERCENT = "letters/ascii37"
NUMBERS_EACH = 10  # of a prompt, and one without
GAP = 0.12  # seconds between words that are joined


def people(limit: int | None) -> Iterator[Said]:
    """Commands about the volume, joined out of what a person said for Asterisk; none where it is
    not installed."""
    if not all(asterisk_file(key).is_file() for key in (*CUTS, PERCENT)):
        warn(
            "left out, since it is not installed: apt-get install asterisk-core-sounds-en-g722",
            stacklevel=2,
        )
        return
    rng = np.random.default_rng(0)
    for key, (text, start, end) in list(CUTS.items())[:limit]:
        numbers = [None, *map(int, rng.permutation(np.arange(1, MOST))[:NUMBERS_EACH])]
        for number in numbers[:limit]:
            said = text
            if number is not None:
                said += f" {cardinal(number)} percent"
            value = {"intent": text.split()[0], "device": "volume", "room": None, "number": number}
            typed = f"{digits(said)[0].upper()}{digits(said)[1:]}.".replace(" percent", "%")
            made = partial(_joined, key, (start, end), number)
            yield Said(
                f"person {key} {number}",
                f"person {key}",
                "joined words",
                typed,
                "a person",
                made,
                value,
            )


def _joined(key: str, span: tuple[float, float], number: int | None) -> Samples:
    first, end = int(span[0] * SAMPLE_RATE), int(span[1] * SAMPLE_RATE)
    parts = [load_audio(asterisk_file(key))[first:end]]
    if number is not None:
        words = [number]
        if number > 20 and number % 10:
            words = [number // 10 * 10, number % 10]
        names = [*(f"digits/{word}" for word in words), PERCENT]
        parts += [_trimmed(load_audio(asterisk_file(name))) for name in names]
    gap = np.zeros(int(GAP * SAMPLE_RATE), np.float32)
    return np.concatenate([gap, *(piece for part in parts for piece in (part, gap))])


def _trimmed(samples: Samples) -> Samples:
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    return samples[loud[0] : loud[-1] + 1]
