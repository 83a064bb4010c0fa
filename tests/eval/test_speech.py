"""Word error rates: counted as jiwer and Whisper's normaliser do, on test voices and on recordings of people."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from programs import needs

from mmdiff.errors import MMDiffError, NoSpeechError
from mmdiff.eval import speech
from mmdiff.eval.speech import Recording, normalise, recorded, word_errors
from mmdiff.pipeline import Answer
from mmdiff.transcript import Segment, Transcript


def test_word_errors_are_pooled_after_normalising() -> None:
    assert word_errors(["What color is it?", "two nine three"], ["what colour is it", "293"]) == (0, 5)
    assert word_errors(["stop", "is there a cat"], ["do stop it", "is there cat"]) == (3, 5)
    assert normalise("hold...") == "hold" and normalise("Mr. Brown") == "mister brown"


@needs("asterisk-core-sounds-en", "asterisk-core-sounds-en-g722", "pocketsphinx-testdata")
def test_recordings_of_people_are_all_found() -> None:
    counts = Counter(recording.kind for recording in recorded(None))
    assert counts["people: numbers"] == 94 and counts["people: letters"] == 61 and counts["people: LibriVox"] == 5
    assert counts["people: spelling words"] == 27 and counts["people: cards"] == 5 and counts["people: prompts"] > 200
    assert not any("[" in recording.text or "<" in recording.text for recording in recorded(None))
    assert Counter(recording.kind for recording in recorded(2)) == dict.fromkeys(counts, 2)


def test_the_reports_count_what_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [Recording(Path("a"), "turn left", "command"), Recording(Path("b"), "what is it", "question"),
            Recording(Path("c"), "ten", "number")]
    monkeypatch.setattr(speech, "generated", lambda limit: iter(said))
    monkeypatch.setattr(speech, "recorded", lambda limit: iter(()))
    heard = {"a": "turn right", "b": "what is it", "c": ""}

    def transcribe(sound: Path, **_: Any) -> Transcript:
        return Transcript((Segment(0, 1, heard[str(sound)], 1.0),), 1.0)

    report = speech.transcripts(SimpleNamespace(transcribe=transcribe), None, 8)  # type: ignore[arg-type]
    assert (report["of"] - report["right"], report["of"], report["score"]) == (1, 5, 0.2)
    assert report["kinds"] == {"command": 0.5, "question": 0.0, "number": 1.0}
    asked = [(said[1], SimpleNamespace(open=lambda: None), answer) for answer in ("red", "yes")]
    monkeypatch.setattr(speech, "spoken_questions", lambda limit: iter(asked))
    red = SimpleNamespace(ask=lambda *_, **__: Answer("Red", (), 1, heard="what is it"))
    report = speech.questions(red, None, 8)  # type: ignore[arg-type]
    assert report["score"] == 0.5 and report["some_wrong"][0]["heard"] == "what is it"

    def refuse(error: Exception) -> Any:
        def ask(*_: object, **__: object) -> Answer:
            raise error

        return SimpleNamespace(ask=ask)

    monkeypatch.setattr(speech, "spoken_questions", lambda limit: iter(asked))
    assert speech.questions(refuse(NoSpeechError("nobody speaks")), None, 8)["score"] == 0.0
    monkeypatch.setattr(speech, "spoken_questions", lambda limit: iter(asked))
    with pytest.raises(MMDiffError, match="soxr"):  # what is not the model's fault is not counted against it
        speech.questions(refuse(MMDiffError("soxr is not installed")), None, 8)
