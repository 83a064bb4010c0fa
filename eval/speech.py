"""How well a model writes down speech, and answers spoken questions about pictures.

Generated speech is of voices that training never heard (`training/voices.py`). Recordings of people come from Debian
packages: `asterisk-core-sounds-en` with `-g722` or `-wav` (Allison Smith, CC-BY-SA 3.0) and `pocketsphinx-testdata`
(LibriVox, public domain; cards, BSD). What is not installed is left out with a message.

The word error rate is jiwer's, pooled over all words, after Whisper's normaliser of English.
"""

from __future__ import annotations

import gzip
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np
from rich.progress import track

from mmdiff.audio.decode import SAMPLE_RATE, AudioSource
from mmdiff.errors import NoSpeechError, require_extra
from mmdiff.pipeline import Pipeline
from mmdiff.training import easy_vqa
from mmdiff.training.scenes import TEST_SEEDS
from mmdiff.training.sentences import KINDS, spoken
from mmdiff.training.speech import clip

CLIPS_PER_KIND = 150
SPOKEN_KINDS = ("question", "command")  # those of the score
NUM_SPOKEN_QUESTIONS = 400
ASTERISK = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
ASTERISK_TEXTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
POCKETSPHINX = Path("/usr/share/pocketsphinx/test/data")
MIN_WORDS = 4  # of a prompt, as in the published figures on these recordings


@dataclass(frozen=True)
class Recording:
    """A sound, the words in it, and the row of the report that it belongs to."""

    sound: AudioSource
    text: str
    kind: str


def transcripts(pipeline: Pipeline, limit: int | None, batch_size: int) -> dict[str, Any]:
    """The task `speech-words`: word error rates by kind of sentence, and of recordings of people."""
    for package in missing_recordings():
        warn(f"left out, since it is not installed: apt-get install {package}", stacklevel=2)
    return _word_report(pipeline, [*generated(limit), *recorded(limit)], batch_size)


def questions(pipeline: Pipeline, limit: int | None, batch_size: int) -> dict[str, Any]:
    """The task `speech-questions`: spoken questions about test pictures of easy-VQA, answered."""
    started, right = time.monotonic(), 0
    wrong: list[dict[str, str]] = []
    asked = list(spoken_questions(limit))
    for recording, picture, answer in track(asked, f"speech-questions: {len(asked)} questions"):
        try:
            got = pipeline.ask(picture.open(), speech=recording.sound, sample_rate=SAMPLE_RATE)
        except NoSpeechError:
            got = None
        if got is not None and got.text.lower() == answer:
            right += 1
        elif len(wrong) < 20:
            wrong.append({"question": recording.text, "expected": answer, "answer": got.text if got else "",
                          "heard": got.heard if got else ""})
    return {"questions": len(asked), "score": right / len(asked), "right": right, "of": len(asked), "kinds": {},
            "seconds": round(time.monotonic() - started, 1), "some_wrong": wrong}


def _word_report(pipeline: Pipeline, recordings: Sequence[Recording], batch_size: int) -> dict[str, Any]:
    started = time.monotonic()
    written: dict[str, list[tuple[str, str]]] = {}
    seconds = 0.0
    for recording in track(recordings, f"speech-words: {len(recordings)} recordings"):
        rate = SAMPLE_RATE if isinstance(recording.sound, np.ndarray) else None
        transcript = pipeline.transcribe(recording.sound, sample_rate=rate, batch_size=batch_size)
        seconds += transcript.duration
        written.setdefault(recording.kind, []).append((recording.text, transcript.text))
    counts = {kind: word_errors(*zip(*pairs, strict=True)) for kind, pairs in written.items()}
    wrong, words = (sum(counts[kind][i] for kind in SPOKEN_KINDS if kind in counts) for i in (0, 1))
    return {
        "questions": len(recordings), "measure": "word error rate", "score": wrong / words, "right": words - wrong,
        "of": words, "of_what": "questions and commands",
        "kinds": {kind: errors / of for kind, (errors, of) in counts.items()},
        "words": {kind: of for kind, (_, of) in counts.items()},
        "seconds": round(time.monotonic() - started, 1), "seconds_of_sound": round(seconds, 1),
        "some_wrong": [{"kind": kind, "expected": text, "answer": answer} for kind, pairs in written.items()
                       for text, answer in [pair for pair in pairs if normalise(pair[0]) != normalise(pair[1])][:6]],
    }


def generated(limit: int | None) -> Iterator[Recording]:
    """Sentences of every kind by voices of the test; questions and commands also with echo, noise and so on."""
    for place, (kind, make) in enumerate(KINDS.items()):
        for number in range(min(limit or CLIPS_PER_KIND, CLIPS_PER_KIND)):
            seed = TEST_SEEDS.start + place * CLIPS_PER_KIND + number
            said = make(np.random.default_rng((seed, 2)))
            yield Recording(clip(seed, said, indoors=False).samples, said, kind)
            if kind in SPOKEN_KINDS:
                yield Recording(clip(seed, said).samples, said, f"{kind}, in a room")


def recorded(limit: int | None) -> Iterator[Recording]:
    """People: Asterisk's digits and numbers, letters, spelling words and prompts; LibriVox; names of cards."""
    folders = {"digits": "people: numbers", "letters": "people: letters", "phonetic": "people: spelling words"}
    rows: dict[str, list[Recording]] = {}
    for key, text in _asterisk_texts():
        kind = folders.get(key.split("/")[0] if "/" in key else "", "people: prompts")
        if kind != "people: prompts" or ("/" not in key and len(text.split()) >= MIN_WORDS):
            rows.setdefault(kind, []).append(Recording(_asterisk_file(key), text, kind))
    for kind, folder in (("people: LibriVox", "librivox"), ("people: cards", "cards")):
        rows[kind] = [Recording(file, text, kind) for file, text in _pocketsphinx(POCKETSPHINX / folder)]
    for found in rows.values():
        yield from found[:limit]


def spoken_questions(limit: int | None) -> Iterator[tuple[Recording, easy_vqa.Picture, str]]:
    """A question about each of the first test pictures of easy-VQA, read by a voice of the test; and its answer."""
    for number, picture in enumerate(easy_vqa.load("test")[: min(limit or NUM_SPOKEN_QUESTIONS, NUM_SPOKEN_QUESTIONS)]):
        question, answer = picture.questions[number % len(picture.questions)]
        seed = TEST_SEEDS.start + 10**6 + number
        yield Recording(clip(seed, spoken(question), indoors=False).samples, question, "question"), picture, answer


def missing_recordings() -> list[str]:
    """Debian packages whose recordings are not here."""
    here = {"asterisk-core-sounds-en asterisk-core-sounds-en-g722": ASTERISK.is_dir() and ASTERISK_TEXTS.is_file(),
            "pocketsphinx-testdata": POCKETSPHINX.is_dir()}
    return [package for package, found in here.items() if not found]


def word_errors(expected: Sequence[str], written: Sequence[str]) -> tuple[int, int]:
    """Words that are wrong, missing or too many, and words in all."""
    jiwer = require_extra("jiwer", "eval", "counting wrong words")
    pairs = [(normalise(one), normalise(other)) for one, other in zip(expected, written, strict=True)]
    pairs = [pair for pair in pairs if pair[0]]
    counts = jiwer.process_words([one for one, _ in pairs], [other for _, other in pairs])
    wrong = counts.substitutions + counts.deletions
    return wrong + counts.insertions, wrong + counts.hits


def normalise(text: str) -> str:
    """Whisper's normaliser of English, without the lone full stop that it may leave of an ellipsis."""
    return " ".join(word for word in _normaliser()(text).split() if word != ".")


@cache
def _normaliser() -> Callable[[str], str]:
    english = require_extra("whisper_normalizer.english", "eval", "comparing transcripts")
    normaliser: Callable[[str], str] = english.EnglishTextNormalizer()
    return normaliser


def _asterisk_texts() -> Iterator[tuple[str, str]]:
    """Keys and words of the recordings that are here, without those of beeps, silence and the like."""
    if not ASTERISK_TEXTS.is_file():
        return
    for line in gzip.open(ASTERISK_TEXTS, "rt", encoding="utf-8", errors="replace"):
        key, _, text = line.strip().partition(": ")
        words = re.sub(r"\[.{1,3}\]$", "", text).strip()  # "dash [-]" is said "dash"
        if text and not line.startswith(";") and not re.search(r"[\[\]<>()]", words) and _asterisk_file(key).is_file():
            yield key, words


def _asterisk_file(key: str) -> Path:
    return next((file for end in ("g722", "wav") if (file := ASTERISK / f"{key}.{end}").is_file()), ASTERISK / key)


def _pocketsphinx(folder: Path) -> Iterator[tuple[Path, str]]:
    for listing in (*folder.glob("transcription"), *folder.glob("*.transcription")):
        for text, name in re.findall(r"<s> (.*?) </s> \((.*)\)", listing.read_text()):
            if (folder / f"{name}.wav").is_file():
                yield folder / f"{name}.wav", text
