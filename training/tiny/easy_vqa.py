"""easy-VQA: images of one shape with questions, from the `easy-vqa` package on PyPI (MIT, Victor
Zhou).

The train split is trained on, the test split only ever tested on.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image


@dataclass(frozen=True)
class EasyVqaImage:
    """A 64 x 64 pixel image and its (question, answer) pairs."""

    path: Path
    questions: tuple[tuple[str, str], ...]

    def open(self) -> Image.Image:
        return Image.open(self.path).convert("RGB")


@functools.cache
def load(split: Literal["train", "test"]) -> tuple[EasyVqaImage, ...]:
    """All images of a split, by number.

    Raises:
        ImportError: the package is not installed.
    """
    try:
        import easy_vqa
    except ImportError as error:
        raise ImportError("the easy-VQA data is missing: pip install 'mmdiff[train]'") from error
    get_questions = {"train": easy_vqa.get_train_questions, "test": easy_vqa.get_test_questions}[
        split
    ]
    get_paths = {"train": easy_vqa.get_train_image_paths, "test": easy_vqa.get_test_image_paths}[
        split
    ]
    asked: dict[int, list[tuple[str, str]]] = {}
    for question, answer, number in zip(*get_questions(), strict=True):
        asked.setdefault(number, []).append((question, answer))
    paths = get_paths()
    found = []
    for number in sorted(asked):
        found.append(EasyVqaImage(Path(paths[number]), tuple(asked[number])))
    return tuple(found)
