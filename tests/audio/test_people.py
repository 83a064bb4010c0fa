"""The shipped model through the command line, on recordings: people, music, beeps. They come with
Debian packages."""

import json
import subprocess
import sys

from mmdiff.eval.speech import ASTERISK, POCKETSPHINX, _pocketsphinx, word_errors
from tests.helpers.programs import needs

CARDS, LIBRIVOX, MUSIC = (
    POCKETSPHINX / "cards",
    POCKETSPHINX / "librivox",
    ASTERISK.parents[1] / "moh",
)


def mmdiff(*arguments: object) -> str:
    command = [sys.executable, "-m", "mmdiff.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


@needs("pocketsphinx-testdata")
def test_people_are_written_down_with_times() -> None:
    """Names of cards, by people: digits count as the words that they stand for."""
    recordings = list(_pocketsphinx(CARDS))
    out = mmdiff("transcribe", *[file for file, _ in recordings], "--format", "verbose_json")
    written = [json.loads(line) for line in out.splitlines()]
    assert len(written) == len(recordings) == 5
    for each in written:
        assert each["text"] == " ".join(segment["text"] for segment in each["segments"])
        assert all(
            0 <= segment["start"] < segment["end"] <= each["duration"]
            for segment in each["segments"]
        )
    wrong, words = word_errors([text for _, text in recordings], [each["text"] for each in written])
    assert wrong <= words / 2


@needs("pocketsphinx-testdata")
def test_a_book_read_aloud_is_written_down() -> None:
    file, text = min(_pocketsphinx(LIBRIVOX))
    wrong, words = word_errors([text], [mmdiff("transcribe", file)])
    assert words > 8 and wrong <= words / 10


@needs("asterisk-core-sounds-en-g722")
def test_beeps_and_silence_are_not_given_words() -> None:
    files = [
        *sorted(ASTERISK.glob("*beep*.g722")),
        *sorted(ASTERISK.glob("*2tone.g722")),
        ASTERISK / "silence" / "5.g722",
    ]
    written = [
        json.loads(line)["text"]
        for line in mmdiff("transcribe", *files, "--format", "json").splitlines()
    ]
    assert written == [""] * len(files) and len(files) >= 4


@needs("asterisk-moh-opsound-g722")
def test_music_is_hardly_given_words() -> None:
    """Eighteen minutes of it; in one place the gate hears speech for most of a second."""
    tracks = sorted(MUSIC.glob("*.g722"))
    written = [
        json.loads(line)["text"]
        for line in mmdiff("transcribe", *tracks, "--format", "json").splitlines()
    ]
    assert len(written) == len(tracks) == 5 and len(" ".join(written).split()) <= 1
