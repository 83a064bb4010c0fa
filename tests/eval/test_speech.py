"""Word error rates: counted as jiwer and Whisper's normaliser do, on test voices and on recordings
of people."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmdiff.answers import Answer
from mmdiff.errors import MMDiffError, NoSpeechError
from mmdiff.eval import speech
from mmdiff.eval.speech import Recording, normalise, recorded, word_errors
from mmdiff.training.tiny.sentences import KINDS
from mmdiff.transcript import Segment, Transcript
from tests.helpers.programs import needs


def test_word_errors_are_pooled_after_normalising() -> None:
    assert word_errors(["What color is it?", "two nine three"], ["what colour is it", "293"]) == (
        0,
        5,
    )
    assert word_errors(["stop", "is there a cat"], ["do stop it", "is there cat"]) == (3, 5)
    assert normalise("hold...") == "hold" and normalise("Mr. Brown") == "mister brown"


@needs("asterisk-core-sounds-en", "asterisk-core-sounds-en-g722", "pocketsphinx-testdata")
def test_recordings_of_people_are_all_found() -> None:
    counts = Counter(recording.kind for recording in recorded(None))
    assert (
        counts["people: numbers"] == 94
        and counts["people: letters"] == 61
        and counts["people: LibriVox"] == 5
    )
    assert (
        counts["people: spelling words"] == 27
        and counts["people: cards"] == 5
        and counts["people: prompts"] > 200
    )
    assert not any("[" in recording.text or "<" in recording.text for recording in recorded(None))
    assert Counter(recording.kind for recording in recorded(2)) == dict.fromkeys(counts, 2)


def recording(name: str, text: str, kind: str) -> Recording:
    return Recording(lambda: Path(name), text, kind, name)


SAID = [
    recording("a", "turn left", "command"),
    recording("b", "what is it", "question"),
    recording("c", "ten", "number"),
]


def test_wrong_words_are_counted_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "generated", lambda limit: iter(SAID))
    heard = {"a": "turn right", "b": "what is it", "c": ""}

    def transcribe(audio: Path, **_: Any) -> Transcript:
        return Transcript((Segment(0, 1, heard[str(audio)], 0.75),), 1.0)

    rows = [row for (row,) in speech.transcripts(SimpleNamespace(transcribe=transcribe), None, 8)]  # type: ignore
    assert [(row.id, row.count, row.of) for row in rows] == [("a", 1, 2), ("b", 0, 3), ("c", 1, 1)]
    assert all(row.details == {"seconds": 1.0, "confidence": 0.75} for row in rows)
    left = [
        row
        for (row,) in speech.transcripts(
            SimpleNamespace(transcribe=transcribe), None, 8, {"a", "c"}
        )
    ]  # type: ignore
    assert left == rows[1:2]


def test_spoken_questions_are_answered_as_typed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked_with(ask: Any) -> list[tuple[str, int]]:
        asked = [
            (SAID[number], SimpleNamespace(open=lambda: None), answer)
            for number, answer in enumerate(("red", "yes"))
        ]
        monkeypatch.setattr(speech, "spoken_questions", lambda limit: iter(asked))
        rows = [row for (row,) in speech.questions(SimpleNamespace(ask=ask), None, 8)]  # type: ignore[arg-type]
        return [(row.details["heard"], row.count) for row in rows]

    def refuse(error: Exception) -> Any:
        def ask(*_: object, speech: object = None, **__: object) -> Answer:
            if speech is None:
                return Answer("red", (), 1)
            raise error

        return ask

    def answer(image: None, question: str = "", speech: object = None, **_: object) -> Answer:
        if speech is None:
            return Answer({"turn left": "red", "what is it": "yes"}[question], (), 1)
        return Answer("red", (), 1, heard="what is it")

    assert asked_with(answer) == [("what is it", 1), ("what is it", 0)]
    assert asked_with(refuse(NoSpeechError("no speech"))) == [("", 0), ("", 0)]
    with pytest.raises(
        MMDiffError, match="soxr"
    ):  # what is not the model's fault is not counted against it
        asked_with(refuse(MMDiffError("soxr is not installed")))


def test_recordings_are_made_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are done cost nothing when a run goes on."""
    monkeypatch.setattr(speech, "clip", lambda *_, **__: pytest.fail("a clip was made"))
    made = list(speech.generated(3))
    assert len(made) == len({each.id for each in made}) == 3 * (len(KINDS) + len(speech.IN_A_ROOM))
    assert {each.kind.split(":")[0] for each in made} == {"flite and festival", "espeak-ng"}
