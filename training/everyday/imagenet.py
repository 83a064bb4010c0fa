"""Everyday names of ImageNet's 1,000 classes, from `imagenet.txt` and WordNet's words for each."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from mmdiff.errors import MMDiffError, require_extra
from mmdiff.training.everyday.names import everyday_names
from mmdiff.training.everyday.sources import FOLDER
from mmdiff.training.everyday.wordnet import load_wordnet

FILE = Path(__file__).with_name("imagenet.txt")
NUM_CLASSES = 1000


@functools.cache
def imagenet_synsets() -> tuple[int, ...]:
    """WordNet offsets of the classes, in the order of published classifiers."""
    timm_data = require_extra("timm.data", "towers", "ImageNet's names")
    info = timm_data.ImageNetInfo()
    labels = [info.index_to_label_name(number) for number in range(NUM_CLASSES)]
    return tuple(int(label.removeprefix("n")) for label in labels)


@functools.cache
def imagenet_names(folder: Path = FOLDER) -> tuple[str, ...]:
    """An everyday name for each class; several classes may share one."""
    listed = read_overrides()
    known = {name.name.lower(): name.name for name in everyday_names(folder)}
    wordnet = load_wordnet(folder)
    names = []
    for number, synset in enumerate(imagenet_synsets()):
        words = wordnet.words(synset)
        own = [known[word.lower()] for word in words if word.lower() in known]
        names.append(listed.get(number) or (own or list(words))[0])
    return tuple(names)


def read_overrides(file: Path = FILE) -> dict[int, str]:
    """Names by class; a later line wins.

    Raises:
        MMDiffError: a line does not fit.
    """
    found: dict[int, str] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        classes, _, name = line.partition(" = ")
        try:
            numbers = list(_numbers(classes))
        except ValueError:
            raise MMDiffError(
                f"{line[:80]!r} in {file} does not fit: write 10-14,20 = name"
            ) from None
        for number in numbers:
            found[number] = name
    return found


def _numbers(text: str) -> Iterator[int]:
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
