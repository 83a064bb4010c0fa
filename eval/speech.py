"""How well a model writes down speech, and answers spoken questions about images.

Generated speech is of voices that training never heard (`training/tiny/voices.py`). Recordings of
people come from Debian
packages: `asterisk-core-sounds-en` with `-g722` or `-wav` (Allison Smith, CC-BY-SA 3.0) and
`pocketsphinx-testdata` (LibriVox, public domain; cards, BSD). What is not installed is left out
with a message.

The word error rate is jiwer's, pooled over all words, after Whisper's normaliser of English.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache, partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np

from mmdiff.answers import Answer
from mmdiff.audio.audio_io import SAMPLE_RATE, AudioSource, Samples, load_audio
from mmdiff.errors import MMDiffError, NoSpeechError, require_extra
from mmdiff.eval.evidence import EvidenceRow
from mmdiff.pipeline import Pipeline
from mmdiff.training.tiny import easy_vqa
from mmdiff.training.tiny.scenes import TEST_SEEDS, VALID_SEEDS
from mmdiff.training.tiny.sentences import KINDS, spoken
from mmdiff.training.tiny.speech import clip, reader
from mmdiff.training.tiny.voices import noisy

CLIPS_PER_KIND = 150
SENTENCES = ("question", "command", "everyday")  # one row of the report
IN_A_ROOM = ("question", "command")  # also read with echo, noise and so on
NUM_SPOKEN_QUESTIONS = 400
ASTERISK = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
ASTERISK_TEXTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
POCKETSPHINX = Path("/usr/share/pocketsphinx/test/data")
MUSIC = ASTERISK.parents[1] / "moh"
RATIOS = (None, 15, 10, 5)  # dB of speech above noise
CLIPS_IN_NOISE, PROMPTS, JOINED, NUM_TIMED = 480, 60, 12, 60
WORD_OFF = 0.15  # seconds
MIN_WORDS = 4  # of a prompt, as in the published figures on these recordings


@dataclass(frozen=True)
class Recording:
    """A recording, made or found when it is asked for, its words, and the row of the report that it
    belongs to."""

    load: Callable[[], AudioSource]
    text: str
    kind: str
    id: str

    @property
    def audio(self) -> dict[str, Any]:
        """As `Pipeline.transcribe` takes it: generated recordings are arrays."""
        source = self.load()
        return {
            "audio": source,
            "sample_rate": SAMPLE_RATE if isinstance(source, np.ndarray) else None,
        }


def transcripts(
    pipeline: Pipeline, limit: int | None, batch_size: int, done: Container[str] = ()
) -> Iterator[list[EvidenceRow]]:
    """The task `speech-words`: wrong words of voices of the test, by kind of sentence."""
    yield from written("speech-words", pipeline, generated(limit), done)


def people(
    pipeline: Pipeline, limit: int | None, batch_size: int, done: Container[str] = ()
) -> Iterator[list[EvidenceRow]]:
    """The task `speech-people`: wrong words of recordings of people."""
    for package in missing_recordings():
        warn(f"left out, since it is not installed: apt-get install {package}", stacklevel=2)
    yield from written("speech-people", pipeline, recorded(limit), done)


def written(
    task: str, pipeline: Pipeline, recordings: Iterable[Recording], done: Container[str]
) -> Iterator[list[EvidenceRow]]:
    """A row for each recording: the words that are wrong, of how many."""
    for recording in recordings:
        if recording.id in done:
            continue
        made = pipeline.transcribe(**recording.audio)
        wrong, words = word_errors([recording.text], [made.text])
        details = {"seconds": round(made.duration, 2), "confidence": round(made.confidence, 3)}
        yield [
            EvidenceRow(
                task,
                recording.id,
                recording.id,
                recording.kind,
                recording.text,
                made.text,
                wrong,
                words,
                details,
            )
        ]


def questions(
    pipeline: Pipeline, limit: int | None, batch_size: int, done: Container[str] = ()
) -> Iterator[list[EvidenceRow]]:
    """The task `speech-questions`: spoken questions about test images of easy-VQA, answered as when
    they are typed."""
    for recording, picture, answer in spoken_questions(limit):
        if recording.id in done:
            continue
        audio, image = recording.audio, picture.open()
        typed = pipeline.ask(image, recording.text).text
        try:
            got = pipeline.ask(image, speech=audio["audio"], sample_rate=audio["sample_rate"])
        except NoSpeechError:
            got = Answer("", (), 0)
        details = {"question": recording.text, "heard": got.heard, "right": answer}
        same = int(got.text == typed)
        yield [
            EvidenceRow(
                "speech-questions",
                recording.id,
                recording.id,
                recording.kind,
                typed,
                got.text,
                same,
                1,
                details,
            )
        ]


VALID_CONFIDENCE = "speech-confidence-valid"


def confidences(
    pipeline: Pipeline,
    limit: int | None,
    batch_size: int,
    done: Container[str] = (),
    validation: bool = False,
) -> Iterator[list[EvidenceRow]]:
    """The task `speech-confidence`: sentences of test voices, clean and in noise, whose confidence
    is judged; or of voices of the validation."""
    task, seeds = "speech-confidence", TEST_SEEDS
    if validation:
        task, seeds = VALID_CONFIDENCE, VALID_SEEDS
    yield from written(task, pipeline, in_noise(limit, seeds), done)


def in_noise(limit: int | None, seeds: range = TEST_SEEDS) -> Iterator[Recording]:
    """Sentences of the voices of these seeds, each at one ratio of speech to noise, in turn."""
    kinds = [KINDS[kind] for kind in SENTENCES]
    for number in range(min(limit or CLIPS_IN_NOISE, CLIPS_IN_NOISE)):
        seed = seeds.start + 2 * 10**6 + number
        ratio = RATIOS[number % len(RATIOS)]
        said = kinds[number // len(RATIOS) % len(kinds)](np.random.default_rng((seed, 2)))
        kind = "clean" if ratio is None else f"{ratio} dB above the noise"
        yield Recording(
            partial(_clip_in_noise, seed, said, ratio),
            said,
            f"{voice_kind(seed)}: {kind}",
            str(number),
        )


def _clip_in_noise(seed: int, said: str, ratio: int | None) -> Samples:
    samples = _clip(seed, said, False)
    if ratio is None:
        return samples
    return noisy(samples, ratio, np.random.default_rng((seed, 3)))


def conditions(
    pipeline: Pipeline, limit: int | None, batch_size: int, done: Container[str] = ()
) -> Iterator[list[EvidenceRow]]:
    """The task `speech-conditions`: a person's prompts made quiet, noisy, hurried, long, or with
    opposed channels."""
    yield from written("speech-conditions", pipeline, under_conditions(limit), done)


def under_conditions(limit: int | None) -> Iterator[Recording]:
    """Prompts of at least four words, alone and ten of them behind one another."""
    prompts = [each for each in recorded(None) if each.kind == "people: prompts"]
    np.random.default_rng(0).shuffle(prompts)
    for prompt in prompts[: min(limit or PROMPTS, PROMPTS)]:
        for kind, change in CONDITIONS.items():
            yield Recording(
                partial(_changed, prompt, change), prompt.text, kind, f"{kind}: {prompt.id}"
            )
    joined = [prompts[start : start + 10] for start in range(0, 10 * (limit or JOINED), 10)][
        :JOINED
    ]
    for number, group in enumerate(joined):
        text = _texts(group)
        yield Recording(
            partial(_joined, group), text, "ten prompts with gaps of 50 ms", f"joined {number}"
        )
    if limit is None:
        many = list(islice(cycle(prompts), 130))
        yield Recording(partial(_joined, many, 0.7), _texts(many), "ten minutes", "long")


def _texts(group: Sequence[Recording]) -> str:
    return " ".join(each.text for each in group)


def _changed(prompt: Recording, change: Callable[[Samples], Samples]) -> Samples:
    return change(load_audio(prompt.load()))


def _joined(group: Sequence[Recording], gap: float = 0.05) -> Samples:
    silence = np.zeros(int(gap * SAMPLE_RATE), np.float32)
    return np.concatenate([part for each in group for part in (load_audio(each.load()), silence)])


CONDITIONS: dict[str, Callable[[Samples], Samples]] = {
    "as recorded": lambda samples: samples,
    "10 dB above the noise": lambda samples: noisy(samples, 10, np.random.default_rng(0)),
    "50 dB below full scale": lambda samples: (
        samples * np.float32(10**-2.5 / max(float(np.abs(samples).max()), 1e-6))
    ),
    "stereo with opposed channels": lambda samples: np.stack([samples, -samples], 1),
}


def no_speech(
    pipeline: Pipeline, limit: int | None, batch_size: int, done: Container[str] = ()
) -> Iterator[list[EvidenceRow]]:
    """The task `speech-none`: silence, noise, tones, beeps and music, which must be given no
    word."""
    for recording in without_speech(limit):
        if recording.id not in done:
            made = pipeline.transcribe(**recording.audio)
            details = {"seconds": round(made.duration, 1)}
            yield [
                EvidenceRow(
                    "speech-none",
                    recording.id,
                    recording.id,
                    recording.kind,
                    "",
                    made.text,
                    int(bool(made.text)),
                    1,
                    details,
                )
            ]


def without_speech(limit: int | None) -> Iterator[Recording]:
    """Generated, and of Asterisk's packages: beeps, and a minute of each piece of music."""
    rng = np.random.default_rng(0)
    times = np.arange(10 * SAMPLE_RATE) / SAMPLE_RATE
    made = {
        "silence": np.zeros_like(times),
        "white noise": 0.05 * rng.standard_normal(len(times)),
        "loud noise": 0.5 * rng.standard_normal(len(times)).clip(-2, 2),
        "a tone": 0.3 * np.sin(2764.6 * times),
        "hum": 0.3 * np.sin(314.16 * times),
        "clicks": (rng.random(len(times)) < 1e-4).astype(np.float64),
        "a sweep": 0.3 * np.sin(600 * times**2),
        "noise in bursts": (times % 1 < 0.3) * 0.2 * rng.standard_normal(len(times)),
    }
    for name, samples in made.items():
        yield Recording(partial(np.asarray, samples, np.float32), "", "generated", name)
    files = [
        *ASTERISK.glob("*beep*.g722"),
        *ASTERISK.glob("*2tone.g722"),
        *ASTERISK.glob("silence/*.g722"),
    ]
    for file in sorted(files)[:limit]:
        yield Recording(
            partial(Path, file), "", "beeps and silence", f"{file.parent.name}/{file.stem}"
        )
    for file in sorted(MUSIC.glob("*.g722"))[:limit]:
        yield Recording(partial(_first_minute, file), "", "music", file.stem)


def _first_minute(file: Path) -> Samples:
    return load_audio(file)[: 60 * SAMPLE_RATE]


def word_times(
    pipeline: Pipeline, limit: int | None, batch_size: int, done: Container[str] = ()
) -> Iterator[list[EvidenceRow]]:
    """The task `speech-times`: where words begin, against the times that festival spoke them at.

    A row counts the words that are more than 150 ms off, of those that were recognised.
    """
    for number in range(min(limit or NUM_TIMED, NUM_TIMED)):
        if str(number) in done:
            continue
        text = KINDS[SENTENCES[number % len(SENTENCES)]](
            np.random.default_rng((TEST_SEEDS.start + number, 5))
        )
        samples, starts = timed_speech(text)
        made = pipeline.transcribe(samples, sample_rate=SAMPLE_RATE)
        words = []
        for segment in made.segments:
            for word in segment.words:
                words.append((normalise(word.text), word.start))
        offs = word_offsets(words, starts)
        late = sum(abs(off) > WORD_OFF for off in offs)
        details = {"milliseconds": [round(1000 * off) for off in offs]}
        yield [
            EvidenceRow(
                "speech-times",
                str(number),
                str(number),
                "festival",
                text,
                made.text,
                late,
                len(offs),
                details,
            )
        ]


def timed_speech(text: str) -> tuple[Samples, list[tuple[str, float]]]:
    """A sentence read by festival, and each of its words with the second at which it begins."""
    script = """(voice_cmu_us_slt_arctic_hts)
(set! utt (utt.synth (Utterance Text {text})))
(utt.save.wave utt {file})
(mapcar (lambda (word) (format t "%s\t%f\n" (item.name word) (item.feat word "word_start")))
  (utt.relation.items utt 'Word))"""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "said.wav"
        commands = Path(folder) / "say.scm"
        commands.write_text(script.format(text=json.dumps(text), file=json.dumps(str(file))))
        try:
            done = subprocess.run(
                ["festival", "--batch", str(commands)], capture_output=True, text=True, check=True
            )
        except FileNotFoundError:
            packages = "festival festvox-us-slt-hts"
            raise MMDiffError(
                f"festival is not installed; on Debian: apt-get install {packages}"
            ) from None
        times = []
        for line in done.stdout.splitlines():
            name, tab, start = line.partition("\t")
            if tab:
                times.append((normalise(name), float(start)))
        return load_audio(file), times


def word_offsets(
    found: Sequence[tuple[str, float]], said: Sequence[tuple[str, float]]
) -> list[float]:
    """Seconds that each recognised word begins after the same word was spoken; words that differ
    are left out."""
    blocks = SequenceMatcher(
        None, [word for word, _ in found], [word for word, _ in said], False
    ).get_matching_blocks()
    return [
        found[block.a + step][1] - said[block.b + step][1]
        for block in blocks
        for step in range(block.size)
    ]


def generated(limit: int | None) -> Iterator[Recording]:
    """Sentences of every kind by voices of the test, some also in a room."""
    for place, (kind, make) in enumerate(KINDS.items()):
        for number in range(min(limit or CLIPS_PER_KIND, CLIPS_PER_KIND)):
            seed = TEST_SEEDS.start + place * CLIPS_PER_KIND + number
            said = make(np.random.default_rng((seed, 2)))
            row = f"{voice_kind(seed)}: {'sentences' if kind in SENTENCES else kind}"
            yield Recording(partial(_clip, seed, said, False), said, row, f"{kind} {number}")
            if kind in IN_A_ROOM:
                yield Recording(
                    partial(_clip, seed, said, True),
                    said,
                    f"{row}, in a room",
                    f"{kind} {number}, room",
                )


def voice_kind(seed: int) -> str:
    """Formant synthesis, or a voice that was made of a person's recordings."""
    if reader(seed).engine == "espeak-ng":
        return "espeak-ng"
    return "flite and festival"


def _clip(seed: int, said: str, indoors: bool) -> Samples:
    return clip(seed, said, indoors=indoors).samples


def recorded(limit: int | None) -> Iterator[Recording]:
    """People: Asterisk's digits and numbers, letters, spelling words and prompts; LibriVox; names
    of cards."""
    folders = {
        "digits": "people: numbers",
        "letters": "people: letters",
        "phonetic": "people: spelling words",
    }
    rows: dict[str, list[Recording]] = {}
    for key, text in _asterisk_texts():
        folder, slash, _ = key.partition("/")
        kind = "people: prompts"
        if slash:
            kind = folders.get(folder, kind)
        if kind != "people: prompts" or (not slash and len(text.split()) >= MIN_WORDS):
            rows.setdefault(kind, []).append(
                Recording(partial(asterisk_file, key), text, kind, f"asterisk {key}")
            )
    for kind, folder in (("people: LibriVox", "librivox"), ("people: cards", "cards")):
        rows[kind] = [
            Recording(partial(Path, file), text, kind, f"{folder} {file.stem}")
            for file, text in _pocketsphinx(POCKETSPHINX / folder)
        ]
    for found in rows.values():
        yield from found[:limit]


def spoken_questions(limit: int | None) -> Iterator[tuple[Recording, easy_vqa.EasyVqaImage, str]]:
    """A question about each of the first test images of easy-VQA, read by a voice of the test;
    and its answer."""
    for number, picture in enumerate(
        easy_vqa.load("test")[: min(limit or NUM_SPOKEN_QUESTIONS, NUM_SPOKEN_QUESTIONS)]
    ):
        question, answer = picture.questions[number % len(picture.questions)]
        seed = TEST_SEEDS.start + 10**6 + number
        made = partial(_clip, seed, spoken(question), False)
        yield Recording(made, question, voice_kind(seed), f"question {number}"), picture, answer


def missing_recordings() -> list[str]:
    """Debian packages whose recordings are not here."""
    here = {
        "asterisk-core-sounds-en asterisk-core-sounds-en-g722": ASTERISK.is_dir()
        and ASTERISK_TEXTS.is_file(),
        "pocketsphinx-testdata": POCKETSPHINX.is_dir(),
    }
    return [package for package, found in here.items() if not found]


def word_errors(expected: Sequence[str], written: Sequence[str]) -> tuple[int, int]:
    """Words that are wrong, missing or too many, and words in all."""
    jiwer = require_extra("jiwer", "eval", "counting wrong words")
    references, hypotheses = [], []
    for one, other in zip(expected, written, strict=True):
        if reference := normalise(one):
            references.append(reference)
            hypotheses.append(normalise(other))
    counts = jiwer.process_words(references, hypotheses)
    wrong = counts.substitutions + counts.deletions
    return wrong + counts.insertions, wrong + counts.hits


def normalise(text: str) -> str:
    """Whisper's normaliser of English, without the lone full stop that it may leave of an
    ellipsis."""
    return " ".join(word for word in _normaliser()(text).split() if word != ".")


@cache
def _normaliser() -> Callable[[str], str]:
    english = require_extra("whisper_normalizer.english", "eval", "comparing transcripts")
    normaliser: Callable[[str], str] = english.EnglishTextNormalizer()
    return normaliser


def _asterisk_texts() -> Iterator[tuple[str, str]]:
    """Keys and words of the recordings that are here, without those of beeps, silence and the
    like."""
    if not ASTERISK_TEXTS.is_file():
        return
    for line in gzip.decompress(ASTERISK_TEXTS.read_bytes()).decode(errors="replace").splitlines():
        key, _, text = line.strip().partition(": ")
        words = re.sub(r"\[.{1,3}\]$", "", text).strip()  # "dash [-]" is said "dash"
        if (
            text
            and not line.startswith(";")
            and not re.search(r"[\[\]<>()]", words)
            and asterisk_file(key).is_file()
        ):
            yield key, words


def asterisk_file(key: str) -> Path:
    return next(
        (file for end in ("g722", "wav") if (file := ASTERISK / f"{key}.{end}").is_file()),
        ASTERISK / key,
    )


def _pocketsphinx(folder: Path) -> Iterator[tuple[Path, str]]:
    for listing in (*folder.glob("transcription"), *folder.glob("*.transcription")):
        for text, name in re.findall(r"<s> (.*?) </s> \((.*)\)", listing.read_text()):
            if (folder / f"{name}.wav").is_file():
                yield folder / f"{name}.wav", text
