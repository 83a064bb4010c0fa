"""What users of neighbouring projects met with audio, tried here on a sentence of our own.

Each case names the public report that it follows; input and right value are ours.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch

from mmdiff.audio.audio_io import AudioError, Limits, load_audio
from mmdiff.errors import MMDiffError
from mmdiff.pipeline import Pipeline, load
from mmdiff.transcript import FORMATS, Segment, Transcript

GITHUB = "https://github.com/"
WORDS = "what color is the circle"
Samples = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(scope="module")
def tiny() -> Pipeline:
    return load("tiny", device="cpu")


@pytest.fixture(scope="module")
def sentence(root: Path) -> Samples:
    """Two seconds at 16 kHz, with silence around them so that the speech has a beginning and an
    end."""
    samples, rate = soundfile.read(root / "examples" / "question.flac", dtype="float32")
    assert rate == 16_000
    return np.pad(samples, 8_000)


def quiet(decibels: float) -> Callable[[Samples], Samples]:
    return lambda samples: samples * np.float32(10 ** (decibels / 20))


def as_16_bits(samples: Samples) -> Samples:
    return np.rint(samples * 32_767).astype(np.int16)


def behind_a_click(samples: Samples) -> Samples:
    made = quiet(-52)(samples)
    made[1000:1010] = 0.9
    return made


# What is done to the sentence -> the report. The words are always right, and so is the confidence.
HEARD: dict[str, tuple[str, Callable[[Samples], Any]]] = {
    "as it is": ("SYSTRAN/faster-whisper/issues/1253", lambda samples: samples),
    "-40 dB": ("Beingpax/VoiceInk/issues/639", quiet(-40)),
    "-52 dB": ("coaxk/subarr/issues/543", quiet(-52)),
    "-58 dB": ("saurabhav88/EnviousWispr/pull/109", quiet(-58)),
    "-52 dB in 16 bits": (
        "Beingpax/VoiceInk/issues/639",
        lambda samples: as_16_bits(quiet(-52)(samples)),
    ),
    "-52 dB behind a click": ("tmoroney/auto-subs/issues/563", behind_a_click),
    "opposite channels": (
        "m-bain/whisperX/pull/750",
        lambda samples: np.stack([samples, -samples], 1),
    ),
    "opposite channels of other levels": (
        "moona3k/macparakeet/pull/953",
        lambda samples: np.stack([0.8 * samples, -samples], 1),
    ),
    "opposite channels, -52 dB": (
        "m-bain/whisperX/pull/750",
        lambda samples: quiet(-52)(np.stack([samples, -samples], 1)),
    ),
    "one channel silent": (
        "pytorch/audio/issues/877",
        lambda samples: np.stack([samples, 0 * samples], 1),
    ),
    "channels first": ("m-bain/whisperX/issues/752", lambda samples: np.stack([samples, samples])),
    "channels last": (
        "huggingface/transformers/issues/47886",
        lambda samples: np.stack([samples, samples], 1),
    ),
    "16 bits": ("SYSTRAN/faster-whisper/issues/626", as_16_bits),
    "32 bits": (
        "theevann/streamlit-audiorecorder/issues/23",
        lambda samples: (samples * float(2**31 - 1)).astype(np.int32),
    ),
    "24 bits in 32": (
        "theevann/streamlit-audiorecorder/issues/23",
        lambda samples: (samples * float(2**23 - 1)).astype(np.int32),
    ),
    "unsigned 8 bits": (
        "theevann/streamlit-audiorecorder/issues/23",
        lambda samples: np.rint(samples * 127 + 128).astype(np.uint8),
    ),
    "a tensor of 16 bits": (
        "huggingface/transformers/issues/19888",
        lambda samples: torch.from_numpy(as_16_bits(samples)),
    ),
    "a list of floats": ("mallorbc/whisper_mic/issues/12", lambda samples: samples.tolist()),
    "off centre": (
        "nyumaya/nyumaya_audio_recognition/issues/2",
        lambda samples: samples + np.float32(0.3),
    ),
    "clipped": (
        "PiSugar/whisplay-ai-chatbot/issues/40",
        lambda samples: np.clip(4 * samples, -1, 1),
    ),
}


@pytest.mark.parametrize("name", HEARD)
def test_the_words_are_right(name: str, tiny: Pipeline, sentence: Samples) -> None:
    made = tiny.transcribe(HEARD[name][1](sentence), sample_rate=16_000)
    assert made.text == WORDS and made.confidence > 0.8


def test_a_softer_voice_behind_a_loud_one_is_heard(tiny: Pipeline, sentence: Samples) -> None:
    both = np.concatenate([sentence, quiet(-40)(sentence)])  # coaxk/subarr/issues/543
    assert tiny.transcribe(both, sample_rate=16_000).text == f"{WORDS} {WORDS}"


# What is not audio of a known scale -> the report, and what the sentence says.
REFUSED: dict[str, tuple[str, Callable[[Samples], Any], str]] = {
    "16 bits in floats": (
        "gaborvecsei/whisper-live-transcription/issues/4",
        lambda samples: as_16_bits(samples).astype(np.float32),
        "floats go from -1 to 1",
    ),
    "16 bits over 255": (
        "gaborvecsei/whisper-live-transcription/issues/4",
        lambda samples: as_16_bits(samples) / np.float32(255),
        "floats go from -1 to 1",
    ),
    "16 bits in 32": (
        "dscripka/openWakeWord/issues/295",
        lambda samples: as_16_bits(samples).astype(np.int32),
        "numpy.int16",
    ),
    "a list of integers": (
        "dscripka/openWakeWord/issues/295",
        lambda samples: as_16_bits(samples).tolist(),
        "numpy.int16",
    ),
    "a dictionary": (
        "huggingface/transformers/issues/19888",
        lambda samples: {"array": samples},
        "give a path, bytes",
    ),
    "a generator": (
        "django-oscar/django-oscar-elasticsearch/pull/40",
        lambda samples: (x for x in samples),
        "give a path, bytes",
    ),
    "not a number": (
        "huggingface/transformers/issues/47885",
        lambda samples: np.where(np.arange(len(samples)) == 9, np.nan, samples),
        "not finite",
    ),
    "infinite": (
        "mrxz/wLipSync/issues/6",
        lambda samples: np.where(np.arange(len(samples)) == 9, np.inf, samples),
        "not finite",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_scale_is_refused(name: str, tiny: Pipeline, sentence: Samples) -> None:
    _, make, reason = REFUSED[name]
    with pytest.raises(AudioError, match=reason):
        tiny.transcribe(make(sentence), sample_rate=16_000)


def test_segments_too_short_for_words_are_refused(tiny: Pipeline, sentence: Samples) -> None:
    with pytest.raises(
        MMDiffError, match=r"max_seconds=0\.001 does not fit"
    ):  # SYSTRAN/faster-whisper/issues/681
        tiny.transcribe(sentence, sample_rate=16_000, max_seconds=0.001)


# Silence, or what is hardly longer than a window, has no words and ends in no error.
EMPTY: dict[str, tuple[str, Samples]] = {
    "silence": ("MahmoudAshraf97/whisper-diarization/issues/27", np.zeros(32_000, np.float32)),
    "the noise of a converter": (
        "MahmoudAshraf97/whisper-diarization/issues/27",
        np.float32(np.rint(np.random.default_rng(0).normal(size=32_000) * 0.4) / 32_768),
    ),
    "a constant": ("xiph/LPCNet/issues/214", np.full(32_000, 0.5, np.float32)),
    "one sample": ("Nyralei/whisperx-api-server/issues/36", np.full(1, 0.5, np.float32)),
    "ten milliseconds": ("Nyralei/whisperx-api-server/issues/36", np.full(160, 0.1, np.float32)),
}


@pytest.mark.parametrize("name", EMPTY)
def test_where_there_is_no_speech_there_are_no_words(name: str, tiny: Pipeline) -> None:
    made = tiny.transcribe(EMPTY[name][1], sample_rate=16_000)
    assert made.text == "" and made.confidence == 0.0
    assert all(json.loads(FORMATS[form](made))["text"] == "" for form in ("json", "verbose_json"))


def wav(samples: Samples, size: int) -> bytes:
    """As a program writes it that cannot go back to its header."""
    held = io.BytesIO()
    soundfile.write(held, samples, 16_000, format="WAV", subtype="PCM_16")
    content = bytearray(held.getvalue())
    place = content.index(b"data") + 4
    content[place : place + 4] = content[4:8] = size.to_bytes(4, "little")
    return bytes(content)


def encoded(samples: Samples, container: str, codec: str, folder: Path) -> bytes:
    path = folder / "sentence"
    with contextlib.suppress(av.FFmpegError), av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(as_16_bits(samples)[None], format="s16", layout="mono")
        frame.rate = 16_000
        for part in [*av.AudioResampler(format=stream.codec_context.format).resample(frame), None]:
            file.mux(stream.encode(part))
    return path.read_bytes()


FILES: dict[str, tuple[str, Callable[[Samples, Path], Any]]] = {
    "WAV of 0 bytes": ("filoe/cscore/issues/12", lambda samples, _: wav(samples, 0)),
    "WAV of 0xFFFFFFFF bytes": (
        "naudio/NAudio/issues/688",
        lambda samples, _: wav(samples, 0xFFFF_FFFF),
    ),
    "FLAC in OGG": (
        "bastibe/python-soundfile/issues/424",
        lambda samples, folder: encoded(samples, "ogg", "flac", folder),
    ),
    "AAC without a container": (
        "knik0/faad2/issues/182",
        lambda samples, folder: encoded(samples, "adts", "aac", folder),
    ),
    "AAC named WAV": (
        "openvpi/dataset-tools/issues/4",
        lambda samples, folder: encoded(samples, "adts", "aac", folder),
    ),
    "M4A": (
        "bastibe/python-soundfile/issues/431",
        lambda samples, folder: encoded(samples, "mp4", "aac", folder),
    ),
    "MPEG-TS": (
        "epoupon/lms/issues/10",
        lambda samples, folder: encoded(samples, "mpegts", "aac", folder),
    ),
    "base64 without padding": (
        "mstar-project/mstar/pull/235",
        lambda samples, _: (
            "data:audio/wav;base64,"
            + base64.b64encode(wav(samples, 0xFFFF_FFFF)).decode().rstrip("=")
        ),
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_libraries_here_can_open(name: str, sentence: Samples, tmp_path: Path) -> None:
    """As long as the sentence, and as loud where it is loudest."""
    samples = load_audio(FILES[name][1](sentence, tmp_path))
    assert abs(len(samples) - len(sentence)) < 4_000
    assert np.abs(samples).max() == pytest.approx(np.abs(sentence).max(), rel=0.15)


def test_stereo_at_48_khz_comes_out_as_long_as_it_was(sentence: Samples) -> None:
    stereo = np.repeat(sentence, 3)[:, None] * np.ones(2, np.float32)  # Blaizzy/mlx-vlm/pull/2258
    assert len(load_audio(stereo, 48_000)) == pytest.approx(len(sentence), abs=2)


def test_the_limit_of_memory_is_for_what_comes_out() -> None:
    minute = np.zeros((60 * 48_000, 2), np.float32)  # argmaxinc/argmax-oss-swift/issues/16
    assert len(load_audio(minute, 48_000, Limits(decoded_bytes=60 * 16_000 * 4))) == 60 * 16_000


# Words with marks in them -> the report, and the cue.
CUES = {
    "ampersand": ("asticode/go-astisub/issues/85", "rock & roll", "rock &amp; roll"),
    "tag": ("debpalash/VoiceStudio/pull/2226", "a <b> c", "a &lt;b&gt; c"),
    "arrow": ("rany2/edge-tts/issues/184", "a --> b", "a --&gt; b"),
}


@pytest.mark.parametrize("name", CUES)
def test_marks_in_words(name: str) -> None:
    _, words, cue = CUES[name]
    assert cue in FORMATS["vtt"](Transcript((Segment(0, 1, words, 0.9),), 1.0))


def test_the_mean_log_probability_says_when_words_are_wrong(tiny: Pipeline) -> None:
    """m-bain/whisperX/pull/1350, moeru-ai/airi/issues/871: below -1 they are not to be trusted."""
    noise = np.random.default_rng(0).normal(size=32_000).astype(np.float32) / 8
    made = tiny.transcribe(noise, sample_rate=16_000, gate=False)
    assert made.text == "" or (made.confidence < 0.2 and made.segments[0].avg_logprob < 0)


def test_links_are_those_of_reports() -> None:
    rows = [*HEARD.values(), *REFUSED.values(), *EMPTY.values(), *FILES.values(), *CUES.values()]
    assert all(row[0].split("/")[2] in ("issues", "pull") for row in rows) and len(rows) >= 35
