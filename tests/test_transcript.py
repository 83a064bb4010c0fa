"""Transcripts in the forms that players and OpenAI's clients read."""

import json

import pytest

from mmdiff.transcript import FORMATS, Segment, Transcript, Word, verbose

SAID = Transcript(
    (Segment(0.5, 1.25, "stop", 0.9, (5, 6)), Segment(3599.9996, 3725.0, "a --> b", 0.4)), 3725.5
)


def test_text_and_json() -> None:
    assert SAID.text == "stop a --> b" and FORMATS["text"](SAID) == "stop a --> b\n"
    assert json.loads(FORMATS["json"](SAID)) == {
        "text": "stop a --> b",
        "confidence": 0.36,
        "mmdiff": {
            "confidence": 0.36,
            "unsure": [{"start": 3600.0, "end": 3725.0, "text": "a --> b", "confidence": 0.4}],
            "speech": True,
        },
    }


def test_all_is_right_where_each_segment_is() -> None:
    assert SAID.confidence == pytest.approx(0.36) and Transcript((), 1.0).confidence == 0.0
    assert SAID.unsure == SAID.segments[1:] and Transcript((Segment(0, 1, "a", 0.49),), 1.0).unsure


def test_subtitles_have_the_marks_that_players_want() -> None:
    """SRT always has hours and a comma, WebVTT hours only where there are any, and no arrow stands
    in a text."""
    assert FORMATS["srt"](SAID) == (
        "1\n00:00:00,500 --> 00:00:01,250\nstop\n\n2\n01:00:00,000 --> 01:02:05,000\na -> b\n\n"
    )
    assert FORMATS["vtt"](SAID) == (
        "WEBVTT\n\n00:00.500 --> 00:01.250\nstop\n\n01:00:00.000 --> 01:02:05.000\na --&gt; b\n\n"
    )


def test_marks_of_webvtt_in_words_stay_words() -> None:
    said = Transcript((Segment(1.0, 1.0, "a <b> & c\n\n-->\n", 0.9),), 2.0)
    assert (
        FORMATS["vtt"](said) == "WEBVTT\n\n00:01.000 --> 00:01.001\na &lt;b&gt; &amp; c --&gt;\n\n"
    )
    assert FORMATS["srt"](said) == "1\n00:00:01,000 --> 00:00:01,001\na <b> & c ->\n\n"


def test_verbose_json_has_every_field_of_openais_segments() -> None:
    body = json.loads(FORMATS["verbose_json"](SAID))
    assert body.keys() == {
        "task",
        "language",
        "duration",
        "text",
        "confidence",
        "segments",
        "words",
        "mmdiff",
    }
    assert body["duration"] == 3725.5
    first = body["segments"][0]
    assert first.keys() == {
        "id",
        "seek",
        "start",
        "end",
        "text",
        "tokens",
        "temperature",
        "avg_logprob",
        "compression_ratio",
        "no_speech_prob",
        "confidence",
    }
    assert first["tokens"] == [5, 6] and first["avg_logprob"] == pytest.approx(-0.0527, abs=1e-3)


def test_the_mean_log_probability_goes_below_what_whisper_takes_for_wrong() -> None:
    assert Segment(0, 1, "a b", 1e-6, (5, 6)).avg_logprob < -1
    assert Segment(0, 1, "a", 0.0).avg_logprob == pytest.approx(
        -708.4, abs=0.1
    )  # finite, as JSON wants it


@pytest.mark.parametrize("form", FORMATS)
def test_silence_is_an_empty_transcript(form: str) -> None:
    silent = FORMATS[form](Transcript((), 2.0))
    assert json.loads(silent)["text"] == "" if "json" in form else silent.strip() in ("", "WEBVTT")


def test_words_have_times_and_whispers_figures_are_kept() -> None:
    words = (Word(0.5, 0.8, "stop", 0.9), Word(0.8, 1.25, "here.", 0.8))
    segment = Segment(0.5, 1.25, "stop here.", 0.7, (5, 6), words, -0.25, 0.1, 0.9, 0.2)
    body = verbose(Transcript((segment,), 2.0, "en"), ["word"])
    assert "segments" not in body and body["language"] == "en"
    assert body["words"] == [
        {"word": "stop", "start": 0.5, "end": 0.8},
        {"word": "here.", "start": 0.8, "end": 1.25},
    ]
    (found,) = verbose(Transcript((segment,), 2.0, "en"), ["segment"])["segments"]  # type: ignore[attr-defined]
    assert [
        found[key] for key in ("avg_logprob", "no_speech_prob", "compression_ratio", "temperature")
    ] == [-0.25, 0.1, 0.9, 0.2]
