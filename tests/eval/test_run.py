"""Scores are what they say: of the test pictures only, all of them, and right for the right words
alone."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mmdiff
from mmdiff.answers import Answer
from mmdiff.config import DecodingConfig
from mmdiff.eval import tasks
from mmdiff.eval.run import ask_all, evaluate
from mmdiff.eval.tasks import NUM_SCENES, QUESTIONS_PER_SCENE, TASKS, Question, exact
from mmdiff.prompts import CAPTION_PROMPTS, CAPTION_ROOM
from mmdiff.training.tiny import easy_vqa
from mmdiff.training.tiny.scenes import TEST_SEEDS, TRAIN_SEEDS, Scene, example


def fake_model() -> SimpleNamespace:
    """As much of a model as a report tells of."""
    return SimpleNamespace(
        device=torch.device("cpu"),
        dtype=torch.float32,
        parameters=lambda: iter(()),
        model_config=SimpleNamespace(decoding=DecodingConfig()),
    )


class Known:
    """Stands in for a pipeline: answers from a dictionary, after a change to what it says."""

    def __init__(self, names: Sequence[str], limit: int, say: Callable[[str], str] = str) -> None:
        asked = [question for name in names for question in TASKS[name](limit)]
        self.answers = {(q.image.tobytes(), q.text): q.expected for q in asked}
        self.model = fake_model()
        self.speech_facts = {"name": "none"}
        self.say, self.batches = say, list[int]()
        self.rooms: set[tuple[str, int | None]] = set()

    def ask(
        self, images: list[Image.Image], questions: list[str], gen_length: int | None = None
    ) -> list[Answer]:
        self.batches.append(len(questions))
        self.rooms |= {(text, gen_length) for text in questions}
        texts = [
            self.answers[image.tobytes(), text]
            for image, text in zip(images, questions, strict=True)
        ]
        return [Answer(self.say(text), (), steps=3) for text in texts]


def measured(
    pipeline: Any, names: Sequence[str], limit: int | None, batch_size: int = 16
) -> dict[str, Any]:
    return evaluate(pipeline, names, limit, batch_size)


@pytest.mark.parametrize(
    ("expected", "answer", "right"),
    [
        ("yes", "yes", 1),
        ("yes", " Yes. \n", 1),
        ("top left", "Top left.", 1),
        ("yes", "no", 0),
        ("yes", "", 0),
        ("yes", "yes yes", 0),
        ("yes", "yes, it is", 0),
        ("red", "dark red", 0),
        ("gray", "grey", 0),  # one spelling is asked for
        ("3", "three", 0),
        ("3", "3", 1),
    ],
)
def test_exact_asks_for_the_same_words(expected: str, answer: str, right: int) -> None:
    """Looking for the word inside the answer would count "yes and no" as right twice."""
    assert exact(expected, answer) == (right, 1)


def test_perfect_answers_score_one_of_one() -> None:
    """Every expected answer must pass its own judge, also the captions."""
    pipeline = Known(list(TASKS), limit=12)
    report = measured(pipeline, list(TASKS), limit=12)
    assert report.keys() == {"circumstances", "command", "date", "batch_size", "processor", "tasks"}
    told = report["circumstances"]
    assert told["versions"]["mmdiff"] == mmdiff.__version__
    assert torch.__version__.startswith(
        told["versions"]["torch"]
    )  # which may name the build too, as in 2.6.0+cu124
    assert told["limit"] == 12 and told["dtype"] == "float32" and told["seed"] == 0
    assert list(report["tasks"]) == list(TASKS)
    for task in report["tasks"].values():
        assert task.keys() == {
            "questions",
            "measure",
            "score",
            "interval",
            "count",
            "of",
            "kinds",
            "steps_per_answer",
            "passes_per_answer",
            "seconds",
            "confidence_auc",
        }
        assert task["score"] == 1.0 and task["count"] == task["of"] >= task["questions"]
        assert all(
            kind["score"] == 1.0 and kind["interval"] == [1.0, 1.0]
            for kind in task["kinds"].values()
        )
        assert task["steps_per_answer"] == 3
    assert report["tasks"]["easy-vqa"]["kinds"].keys() == {"yes/no", "colour", "shape"}
    assert report["tasks"]["scenes-captions"]["kinds"].keys() == {"word", "short", "long"}
    assert json.loads(json.dumps(report)) == report


def test_wrong_answers_cost_what_they_should() -> None:
    """A model that always says yes: its score is the share of yes, and only yes/no questions give
    it any."""
    pipeline = Known(["easy-vqa"], limit=15, say=lambda _: "yes")
    task = measured(pipeline, ["easy-vqa"], limit=15)["tasks"]["easy-vqa"]
    wanted = [question.expected for question in TASKS["easy-vqa"](15)]
    assert task["of"] == task["questions"] == len(wanted) and task["count"] == wanted.count("yes")
    assert (
        task["score"] == pytest.approx(wanted.count("yes") / len(wanted))
        and 0.2 < task["score"] < 0.7
    )
    low, high = task["interval"]
    assert low < task["score"] < high
    kinds = {kind: scored["score"] for kind, scored in task["kinds"].items()}
    assert kinds["colour"] == kinds["shape"] == 0
    assert kinds["yes/no"] == pytest.approx(
        wanted.count("yes") / sum(w in ("yes", "no") for w in wanted)
    )


def test_captions_get_part_of_their_facts() -> None:
    pipeline = Known(["scenes-captions"], limit=10, say=lambda text: text.split(",")[0])
    task = measured(pipeline, ["scenes-captions"], limit=10)["tasks"]["scenes-captions"]
    assert task["questions"] == 30 < task["of"]
    kinds = {kind: scored["score"] for kind, scored in task["kinds"].items()}
    assert kinds["word"] == 1.0 > kinds["short"] > 0 < kinds["long"] < 1
    assert 0 < task["count"] < task["of"]


def test_captions_are_given_the_room_they_have_elsewhere() -> None:
    """A batch has one length of canvas: a long caption in a short one's batch would be cut off."""
    pipeline = Known(list(TASKS), limit=3)
    measured(pipeline, ["scenes-captions"], limit=3, batch_size=2)
    assert pipeline.rooms == {
        (CAPTION_PROMPTS[length], room) for length, room in CAPTION_ROOM.items()
    }
    assert sorted(pipeline.batches) == [1, 1, 1, 2, 2, 2]
    pipeline.rooms.clear()
    measured(pipeline, ["scenes-vqa", "easy-vqa"], limit=3)
    assert {room for _, room in pipeline.rooms} == {None}


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batch_size_changes_no_score(batch_size: int) -> None:
    """Also the last, smaller batch is asked and counted."""
    pipeline: Any = Known(["scenes-vqa"], limit=5, say=lambda text: text if len(text) % 2 else "no")
    rows = list(chain.from_iterable(ask_all("scenes-vqa", pipeline, 5, batch_size)))
    assert rows == list(chain.from_iterable(ask_all("scenes-vqa", pipeline, 5, 3)))
    count = len(rows)
    assert pipeline.batches[: -(-count // batch_size)] == [
        min(batch_size, count - start) for start in range(0, count, batch_size)
    ]


def test_easy_vqa_is_asked_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """9,673 questions about 1,000 pictures, none of them of the train split."""
    opened = []

    def note(picture: easy_vqa.EasyVqaImage) -> Image.Image:
        opened.append(picture.path)
        return Image.new("RGB", (64, 64))

    monkeypatch.setattr(easy_vqa.EasyVqaImage, "open", note)
    asked = list(TASKS["easy-vqa"](None))
    assert len(asked) == 9673 and len(opened) == len(set(opened)) == 1000
    assert all(path.parts[-3:-1] == ("test", "images") for path in opened)
    assert not set(opened) & {picture.path for picture in easy_vqa.load("train")}
    kinds = {
        kind: {q.expected for q in asked if q.kind == kind}
        for kind in ("yes/no", "shape", "colour")
    }
    assert kinds["yes/no"] == {"yes", "no"} and kinds["shape"] == {
        "circle",
        "rectangle",
        "triangle",
    }
    assert kinds["colour"] == {"red", "green", "blue", "black", "gray", "teal", "brown", "yellow"}
    assert sum(q.kind in kinds for q in asked) == 9673
    images = [question.image for question in TASKS["easy-vqa"](3)]
    assert len({id(image) for image in images}) == 3 < len(images)


@pytest.mark.parametrize(
    ("name", "each"), [("scenes-vqa", QUESTIONS_PER_SCENE), ("scenes-captions", 3)]
)
@pytest.mark.parametrize(("limit", "pictures"), [(None, NUM_SCENES), (7, 7), (10**6, NUM_SCENES)])
def test_scenes_have_test_seeds(
    monkeypatch: pytest.MonkeyPatch, name: str, each: int, limit: int | None, pictures: int
) -> None:
    """The same pictures every time; a high limit used to ask about more than the task has."""
    image, scene, _ = example(TEST_SEEDS[0])
    seeds: list[int] = []

    def note(seed: int) -> tuple[Image.Image, Scene, np.random.Generator]:
        seeds.append(seed)
        return image, scene, np.random.default_rng(seed)

    monkeypatch.setattr(tasks, "example", note)
    asked = list(TASKS[name](limit))
    assert seeds == list(TEST_SEEDS[:pictures])
    assert all(seed in TEST_SEEDS and seed not in TRAIN_SEEDS for seed in seeds)
    assert len(asked) == each * pictures


@pytest.mark.parametrize("name", TASKS)
def test_questions_are_the_same_every_time(name: str) -> None:
    """Scores can be compared only where the questions are the same."""

    def told(question: Question) -> tuple[Any, ...]:
        return tuple(
            getattr(question, field.name)
            for field in dataclasses.fields(question)
            if field.name != "score"
        )

    first, second = ([told(question) for question in TASKS[name](6)] for _ in range(2))
    assert [one[1:] for one in first] == [other[1:] for other in second]
    assert all(
        one[0].tobytes() == other[0].tobytes() for one, other in zip(first, second, strict=True)
    )
    assert all(
        image.mode == "RGB" and text and kind and expected
        for image, text, kind, expected, *_ in first
    )
