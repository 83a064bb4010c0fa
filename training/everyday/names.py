"""Everyday names: what a person calls a thing, with aliases, its kind, and the emoji that show it.

The list is `names.txt`; its head says how it is written.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from mmdiff.errors import MMDiffError
from mmdiff.training.everyday.drawings import Emoji, emoji_slugs, emoji_table
from mmdiff.training.everyday.sources import FOLDER

FILE = Path(__file__).with_name("names.txt")
NOT_EVERYDAY = ("country-flag", "subdivision-flag", "skin-tone")
THINGS = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
CLOTHES = {  # folders of the photographs
    "dress": "dress",
    "hat": "hat",
    "longsleeve": "long-sleeved shirt",
    "outwear": "jacket",
    "pants": "pants",
    "shirt": "shirt",
    "shoes": "shoe",
    "shorts": "shorts",
    "skirt": "skirt",
    "t-shirt": "t-shirt",
}


@dataclass(frozen=True)
class Name:
    """An everyday name, and what else a person may say for the same thing."""

    name: str
    aliases: tuple[str, ...]
    kind: str
    codes: tuple[str, ...]  # code points of emoji

    def matches(self, said: str) -> bool:
        """Whether a name or alias was said."""
        return said.lower() in {word.lower() for word in (self.name, *self.aliases)}


def read_names(file: Path = FILE) -> list[tuple[str, str, list[str], list[str]]]:
    """Kind, name, aliases and emoji (by Unicode's names) of each line.

    Raises:
        MMDiffError: a line does not fit; the message says which.
    """
    found = []
    kind = ""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if text.startswith("["):
            kind = text.strip("[]")
            continue
        parts = [part.strip() for part in text.split("|")]
        if len(parts) > 3 or not parts[0] or not kind:
            raise MMDiffError(
                f"line {number} of {file} is {text[:80]!r}: write name | aliases | emoji"
            )
        parts += [""] * (3 - len(parts))
        emoji = _listed(parts[2]) or [parts[0].lower().replace(" ", "-").replace("'", "")]
        if emoji == ["-"]:
            emoji = []
        found.append((kind, parts[0], _listed(parts[1]), emoji))
    return found


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


@functools.cache
def everyday_names(folder: Path = FOLDER) -> tuple[Name, ...]:
    """Those of the list, then those of emoji that it leaves out."""
    slugs, table = emoji_slugs(folder), emoji_table(folder)
    names = []
    listed: set[str] = set()
    for kind, name, aliases, emoji in read_names():
        codes = tuple(map(slugs.__getitem__, emoji))
        listed.update(codes)
        names.append(Name(name, tuple(aliases), kind, codes))
    for slug, code in slugs.items():
        if code in table and code not in listed and is_everyday(table[code]):
            name = slug.replace("-", " ")
            names.append(Name(name, table[code].short_names, _kind(table[code]), (code,)))
    return tuple(names)


def is_everyday(emoji: Emoji) -> bool:
    """Flags of countries, skin tones, and persons that are joined of several emoji are not."""
    joined_persons = "-200d-" in emoji.code and emoji.category == "People & Body"
    return emoji.subcategory not in NOT_EVERYDAY and not joined_persons


def _kind(emoji: Emoji) -> str:
    """Of an emoji that the list leaves out."""
    kinds = {"Smileys & Emotion": "face", "People & Body": "person or hand", "Flags": "flag"}
    if emoji.subcategory in ("heart", "emotion", "arrow"):
        return emoji.subcategory
    return kinds.get(emoji.category, "symbol")


@functools.cache
def names_by_code(folder: Path = FOLDER) -> dict[str, Name]:
    """The name of each emoji."""
    found = {}
    for name in everyday_names(folder):
        for code in name.codes:
            found[code] = name
    return found


def is_thing(code: str, folder: Path = FOLDER) -> bool:
    """Whether an emoji shows an animal, food, place, activity or object: no face, person, sign."""
    return emoji_table(folder)[code].category in THINGS
