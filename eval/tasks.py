"""What is asked and how an answer is scored: a task is a list of questions about unseen images.

A question's score is (right, total): one of one for an exact answer, facts of facts for a caption.
Add a task by adding a function to `TASKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from PIL import Image

from mmdiff.prompts import CAPTION_PROMPTS, CAPTION_ROOM
from mmdiff.training.tiny import easy_vqa
from mmdiff.training.tiny.questions import captions, questions, score_caption
from mmdiff.training.tiny.scenes import TEST_SEEDS, Scene, example

Score = tuple[int, int]  # right, total
NUM_SCENES = 1000  # test images of each scenes task
QUESTIONS_PER_SCENE = 4


@dataclass(frozen=True)
class Question:
    """One question about one image; `kind` groups the report's rows, `score` judges an answer's
    text."""

    image: Image.Image
    text: str
    kind: str
    expected: str
    score: Callable[[str], Score]
    gen_length: int | None = None  # positions of the answer; the model's default where None


def exact(expected: str, answer: str) -> Score:
    """Right when the words are the same; case, spaces at the ends and a final full stop do not
    matter."""
    return int(answer.strip().rstrip(".").lower() == expected.lower()), 1


def easy_vqa_test(limit: int | None) -> Iterator[Question]:
    """All 9,673 questions about the 1,000 test images of easy-VQA."""
    for picture in easy_vqa.load("test")[:limit]:
        image = picture.open()
        for text, answer in picture.questions:
            if answer in ("yes", "no"):
                kind = "yes/no"
            elif "color" in text:
                kind = "colour"
            else:
                kind = "shape"
            yield Question(image, text, kind, answer, partial(exact, answer))


def scenes_vqa(limit: int | None) -> Iterator[Question]:
    """Four questions about each generated test scene."""
    for image, scene, rng in map(example, TEST_SEEDS[:NUM_SCENES][:limit]):
        for qa in questions(scene, rng, QUESTIONS_PER_SCENE):
            yield Question(image, qa.question, qa.kind, qa.answer, partial(exact, qa.answer))


def scenes_captions(limit: int | None) -> Iterator[Question]:
    """A caption of every length for each generated test scene, scored by its facts."""
    for image, scene, _ in map(example, TEST_SEEDS[:NUM_SCENES][:limit]):
        for length, text in captions(scene).items():
            score = partial(_score_caption, scene, length)
            yield Question(
                image, CAPTION_PROMPTS[length], length, text, score, CAPTION_ROOM[length]
            )


def _score_caption(scene: Scene, length: str, answer: str) -> Score:
    return score_caption(answer, scene, length)  # type: ignore[arg-type]


TASKS: dict[str, Callable[[int | None], Iterator[Question]]] = {
    "easy-vqa": easy_vqa_test,
    "scenes-vqa": scenes_vqa,
    "scenes-captions": scenes_captions,
}
