"""The shipped default: small enough, quick to start, and right about pictures it has not seen.

The full scores come from `mmdiff eval`; here a few hundred questions guard against shipping a
broken file.
"""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

import mmdiff
from mmdiff.eval.run import TASKS
from mmdiff.eval.structured import score_scenes
from mmdiff.modeling.hub import SHIPPED
from mmdiff.pipeline import Pipeline
from mmdiff.training.tiny import easy_vqa
from mmdiff.training.tiny.scenes import VALID_SEEDS, example
from mmdiff.training.tiny.structured import scene_schema
from tests.helpers.programs import needs

MOST_BYTES = 24_000_000


@pytest.fixture(scope="module")
def tiny() -> Pipeline:
    return mmdiff.load("tiny", device="cpu")


def test_it_is_small_and_in_bfloat16() -> None:
    files = list((SHIPPED / "tiny").iterdir())
    assert sum(file.stat().st_size for file in files) <= MOST_BYTES
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json"} <= {
        file.name for file in files
    }
    with safe_open(SHIPPED / "tiny" / "model.safetensors", framework="pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118


def test_it_answers_about_the_examples(tiny: Pipeline, root: Path) -> None:
    shapes = root / "examples" / "shapes.png"
    assert tiny.ask(shapes, "what color is the circle?").text == "red"
    assert tiny.ask(shapes, "what color is the star?").text == "blue"
    assert tiny.caption(root / "examples" / "one.png", "word").text == "ring"


@pytest.mark.parametrize(
    ("task", "least"), [("easy-vqa", 0.95), ("scenes-vqa", 0.9), ("scenes-captions", 0.75)]
)
def test_it_is_right_about_unseen_pictures(tiny: Pipeline, task: str, least: float) -> None:
    rows = [row for batch in TASKS[task].rows(tiny, 30, 32, ()) for row in batch]
    assert sum(row.count for row in rows) >= least * sum(row.of for row in rows)


def test_it_fills_in_json(tiny: Pipeline, root: Path) -> None:
    made = tiny.extract(root / "examples" / "shapes.png", scene_schema())
    assert [(thing["colour"], thing["shape"]) for thing in made.value["objects"]] == [
        ("red", "circle"),
        ("yellow", "triangle"),
        ("blue", "star"),
    ]
    scores = score_scenes(tiny, [example(seed) for seed in VALID_SEEDS[:40]], "scaffold")
    assert scores["field_f1"] > 0.75 and scores["exact_up_to_3"] > 0.7 and scores["passes"] < 12


def test_it_hears_a_voice_it_was_not_taught_by(tiny: Pipeline, root: Path) -> None:
    answer = tiny.ask(root / "examples" / "shapes.png", speech=root / "examples" / "question.flac")
    assert (answer.heard, answer.text) == ("what color is the circle", "red")
    talk = tiny.transcribe(root / "examples" / "talk.flac")
    assert len(talk.segments) == 2 and talk.language == "en"
    assert talk.segments[0].text == "Please turn on the kitchen lights."
    assert "red triangle at the top" in talk.segments[1].text


def test_it_writes_down_a_person(tiny: Pipeline, root: Path) -> None:
    """Cut from a reading for LibriVox; see examples/README.md."""
    assert tiny.transcribe(root / "examples" / "reading.flac").text == (
        "And Mr. John Dashwood had then leisure to consider how much there might be prudently in his power to do for "
        "them."
    )


def test_it_understands_spoken_questions(tiny: Pipeline, root: Path) -> None:
    folder = root / "tests" / "recordings"
    asked = json.loads((folder / "questions.json").read_text())
    answers = [
        tiny.ask(picture.open(), speech=folder / question["file"]).text.lower()
        for picture, question in zip(easy_vqa.load("test"), asked, strict=False)
    ]
    assert answers == [question["answer"] for question in asked]


@needs("espeak-ng", "flite", "festival", "festvox-us-slt-hts")
def test_it_understands_questions_in_every_test_voice(tiny: Pipeline) -> None:
    rows = [row for (row,) in TASKS["speech-questions"].rows(tiny, 30, 8, ())]
    assert sum(row.count for row in rows) >= 0.9 * len(rows)


def test_answers_stop_early(tiny: Pipeline, root: Path) -> None:
    answer = tiny.ask(root / "examples" / "shapes.png", "what color is the circle?")
    assert answer.steps <= 3
