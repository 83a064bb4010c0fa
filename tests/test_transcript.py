"""Transcripts in the forms that players and OpenAI's clients read."""

import json

import pytest

from mmdiff.transcript import FORMATS, Segment, Transcript

SAID = Transcript((Segment(0.5, 1.25, "stop", 0.9, (5, 6)), Segment(3599.9996, 3725.0, "a --> b", 0.5)), 3725.5)


def test_text_and_json() -> None:
    assert SAID.text == "stop a --> b" and FORMATS["text"](SAID) == "stop a --> b\n"
    assert json.loads(FORMATS["json"](SAID)) == {"text": "stop a --> b"}
    assert SAID.as_dict()["segments"] == [
        {"start": 0.5, "end": 1.25, "text": "stop", "confidence": 0.9},
        {"start": 3600.0, "end": 3725.0, "text": "a --> b", "confidence": 0.5},
    ]


def test_subtitles_have_the_marks_that_players_want() -> None:
    """SRT always has hours and a comma, WebVTT hours only where there are any, and no arrow stands in a text."""
    assert FORMATS["srt"](SAID) == (
        "1\n00:00:00,500 --> 00:00:01,250\nstop\n\n2\n01:00:00,000 --> 01:02:05,000\na -> b\n\n")
    assert FORMATS["vtt"](SAID) == (
        "WEBVTT\n\n00:00.500 --> 00:01.250\nstop\n\n01:00:00.000 --> 01:02:05.000\na -> b\n\n")


def test_verbose_json_has_every_field_of_openais_segments() -> None:
    body = json.loads(FORMATS["verbose_json"](SAID))
    assert body.keys() == {"task", "language", "duration", "text", "segments"} and body["duration"] == 3725.5
    first = body["segments"][0]
    assert first.keys() == {"id", "seek", "start", "end", "text", "tokens", "temperature", "avg_logprob",
                            "compression_ratio", "no_speech_prob"}
    assert first["tokens"] == [5, 6] and first["avg_logprob"] == pytest.approx(-0.1054, abs=1e-3)


@pytest.mark.parametrize("form", FORMATS)
def test_silence_is_an_empty_transcript(form: str) -> None:
    silent = FORMATS[form](Transcript((), 2.0))
    assert json.loads(silent)["text"] == "" if "json" in form else silent.strip() in ("", "WEBVTT")
