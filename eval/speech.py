"""How well a model writes down speech, and answers spoken questions about pictures.

Generated speech is of voices that training never heard (`training/voices.py`). Recordings of people come from Debian
packages: `asterisk-core-sounds-en` with `-g722` or `-wav` (Allison Smith, CC-BY-SA 3.0) and `pocketsphinx-testdata`
(LibriVox, public domain; cards, BSD). What is not installed is left out with a message.

The word error rate is jiwer's, pooled over all words, after Whisper's normaliser of English.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np

from mmdiff.audio.decode import SAMPLE_RATE, AudioSource, Samples
from mmdiff.errors import NoSpeechError, require_extra
from mmdiff.eval.evidence import Row
from mmdiff.pipeline import Answer, Pipeline
from mmdiff.training import easy_vqa
from mmdiff.training.scenes import TEST_SEEDS
from mmdiff.training.sentences import KINDS, spoken
from mmdiff.training.speech import clip, reader

CLIPS_PER_KIND = 150
SENTENCES = ("question", "command", "everyday")  # one row of the report
IN_A_ROOM = ("question", "command")  # also read with echo, noise and so on
NUM_SPOKEN_QUESTIONS = 400
ASTERISK = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
ASTERISK_TEXTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
POCKETSPHINX = Path("/usr/share/pocketsphinx/test/data")
MIN_WORDS = 4  # of a prompt, as in the published figures on these recordings


@dataclass(frozen=True)
class Recording:
    """A recording, made or found when it is asked for, its words, and the row of the report that it belongs to."""

    load: Callable[[], AudioSource]
    text: str
    kind: str
    id: str

    @property
    def audio(self) -> dict[str, Any]:
        """As `Pipeline.transcribe` takes it: generated recordings are arrays."""
        source = self.load()
        return {"audio": source, "sample_rate": SAMPLE_RATE if isinstance(source, np.ndarray) else None}


def transcripts(
    pipeline: Pipeline, limit: int | None, batch_size: int, done: Container[str] = ()
) -> Iterator[list[Row]]:
    """The task `speech-words`: wrong words by kind of sentence, and of recordings of people."""
    for package in missing_recordings():
        warn(f"left out, since it is not installed: apt-get install {package}", stacklevel=2)
    yield from written("speech-words", pipeline, chain(generated(limit), recorded(limit)), done)


def written(
    task: str, pipeline: Pipeline, recordings: Iterable[Recording], done: Container[str]
) -> Iterator[list[Row]]:
    """A row for each recording: the words that are wrong, of how many."""
    for recording in recordings:
        if recording.id in done:
            continue
        made = pipeline.transcribe(**recording.audio)
        wrong, words = word_errors([recording.text], [made.text])
        details = {"seconds": round(made.duration, 2), "confidence": round(made.confidence, 3)}
        yield [Row(task, recording.id, recording.id, recording.kind, recording.text, made.text, wrong, words, details)]


def questions(
    pipeline: Pipeline, limit: int | None, batch_size: int, done: Container[str] = ()
) -> Iterator[list[Row]]:
    """The task `speech-questions`: spoken questions about test pictures of easy-VQA, answered."""
    for recording, picture, answer in spoken_questions(limit):
        if recording.id in done:
            continue
        audio = recording.audio
        try:
            got = pipeline.ask(picture.open(), speech=audio["audio"], sample_rate=audio["sample_rate"])
        except NoSpeechError:
            got = Answer("", (), 0)
        details = {"question": recording.text, "heard": got.heard}
        right = int(got.text.lower() == answer)
        yield [Row("speech-questions", recording.id, recording.id, recording.kind, answer, got.text, right, 1, details)]


def generated(limit: int | None) -> Iterator[Recording]:
    """Sentences of every kind by voices of the test, some also in a room."""
    for place, (kind, make) in enumerate(KINDS.items()):
        for number in range(min(limit or CLIPS_PER_KIND, CLIPS_PER_KIND)):
            seed = TEST_SEEDS.start + place * CLIPS_PER_KIND + number
            said = make(np.random.default_rng((seed, 2)))
            row = f"{voice_kind(seed)}: {'sentences' if kind in SENTENCES else kind}"
            yield Recording(partial(_clip, seed, said, False), said, row, f"{kind} {number}")
            if kind in IN_A_ROOM:
                yield Recording(partial(_clip, seed, said, True), said, f"{row}, in a room", f"{kind} {number}, room")


def voice_kind(seed: int) -> str:
    """Formant synthesis, or a voice that was made of a person's recordings."""
    return "espeak-ng" if reader(seed).engine == "espeak-ng" else "flite and festival"


def _clip(seed: int, said: str, indoors: bool) -> Samples:
    return clip(seed, said, indoors=indoors).samples


def recorded(limit: int | None) -> Iterator[Recording]:
    """People: Asterisk's digits and numbers, letters, spelling words and prompts; LibriVox; names of cards."""
    folders = {"digits": "people: numbers", "letters": "people: letters", "phonetic": "people: spelling words"}
    rows: dict[str, list[Recording]] = {}
    for key, text in _asterisk_texts():
        kind = folders.get(key.split("/")[0] if "/" in key else "", "people: prompts")
        if kind != "people: prompts" or ("/" not in key and len(text.split()) >= MIN_WORDS):
            rows.setdefault(kind, []).append(Recording(partial(_asterisk_file, key), text, kind, f"asterisk {key}"))
    for kind, folder in (("people: LibriVox", "librivox"), ("people: cards", "cards")):
        rows[kind] = [Recording(partial(Path, file), text, kind, f"{folder} {file.stem}")
                      for file, text in _pocketsphinx(POCKETSPHINX / folder)]
    for found in rows.values():
        yield from found[:limit]


def spoken_questions(limit: int | None) -> Iterator[tuple[Recording, easy_vqa.Picture, str]]:
    """A question about each of the first test pictures of easy-VQA, read by a voice of the test; and its answer."""
    for number, picture in enumerate(easy_vqa.load("test")[: min(limit or NUM_SPOKEN_QUESTIONS, NUM_SPOKEN_QUESTIONS)]):
        question, answer = picture.questions[number % len(picture.questions)]
        seed = TEST_SEEDS.start + 10**6 + number
        made = partial(_clip, seed, spoken(question), False)
        yield Recording(made, question, voice_kind(seed), f"question {number}"), picture, answer


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
