"""Text-to-speech voices, each for training, for validation or for the test, and the acoustics of a
room.

The voices are programs of their own: espeak-ng, flite and festival (Debian packages of the same
names, and festvox-us-slt-hts). No voice, accent or variant of one split is heard in another.

Shapes: S samples at 16 kHz.
"""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mmdiff.audio.audio_io import SAMPLE_RATE, Samples, load_audio, resample
from mmdiff.errors import MMDiffError
from mmdiff.training.tiny.scenes import pick
from mmdiff.training.tiny.sentences import pronounced

Split = Literal["train", "valid", "test"]
Rng = np.random.Generator


@dataclass(frozen=True)
class Voice:
    engine: Literal["espeak-ng", "flite", "festival"]
    name: str

    def __str__(self) -> str:
        return f"{self.engine} {self.name}"


def _espeak(accents: str, variants: str) -> tuple[Voice, ...]:
    found = []
    for accent in accents.split():
        for variant in variants.split():
            found.append(Voice("espeak-ng", f"{accent}+{variant}"))
    return tuple(found)


# Natural voices are recordings of one person each (kal, awb, rms, slt); slt is heard in the test
# alone.
NATURAL: dict[Split, tuple[Voice, ...]] = {
    "train": (Voice("flite", "kal16"), Voice("flite", "awb"), Voice("flite", "rms")),
    "valid": (),
    "test": (Voice("flite", "slt"), Voice("festival", "voice_cmu_us_slt_arctic_hts")),
}
FORMANT: dict[Split, tuple[Voice, ...]] = {
    "train": _espeak(
        "en-us en-gb en-029 en-gb-scotland en-gb-x-gbclan en-gb-x-gbcwmd",
        "m1 m2 m3 m4 m5 m7 m8 f1 f2 f3 f4 klatt klatt2 klatt4 adam Alex Andy Annie belinda "
        "benjamin david Denis Diogo ed edward Gene Henrique Hugo Iven Jacky john Lee linda Marco "
        "Mario Michael mike paul pedro quincy rob robert steph travis victor zac anika",
    ),
    "valid": _espeak("en-us en-gb", "Andrea boris steph2"),
    "test": _espeak("en-gb-x-rp en-us-nyc", "f5 m6 klatt3 Alicia max sandro Nguyen"),
}
NATURAL_SHARE = 0.5  # of the clips of a split that has natural voices


def draw_voice(split: Split, rng: Rng) -> Voice:
    natural = NATURAL[split] and rng.random() < NATURAL_SHARE
    return pick(rng, (NATURAL if natural else FORMANT)[split])


def say(text: str, voice: Voice, rng: Rng) -> Samples:
    """The sentence read aloud by the voice, (S,), at a speed drawn by `rng`, and with espeak-ng at
    a pitch too.

    Festival's voice has its own speed.

    Raises:
        MMDiffError: the program is not installed, or says nothing.
    """
    speed, pitch = 0.85 + 0.35 * rng.random(), 0.85 + 0.3 * rng.random()
    words = pronounced(text)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "said.wav"
        command = {
            "espeak-ng": [
                "espeak-ng",
                "-v",
                voice.name,
                "-s",
                str(round(165 * speed)),
                "-p",
                str(round(50 * pitch)),
                "-w",
                str(file),
                words,
            ],
            "flite": [
                "flite",
                "-voice",
                voice.name,
                "--setf",
                f"duration_stretch={1 / speed:.3f}",
                "-t",
                words,
                "-o",
                str(file),
            ],
            "festival": ["text2wave", "-eval", f"({voice.name})", "-o", str(file)],
        }[voice.engine]
        try:
            subprocess.run(
                command, input=words.encode(), capture_output=True, check=True, timeout=60
            )
        except FileNotFoundError:
            raise MMDiffError(
                f"{command[0]} is not installed; on Debian: apt-get install {voice.engine}"
            ) from None
        except subprocess.SubprocessError as error:
            raise MMDiffError(f"{voice} could not say {text!r}: {error}") from None
        return load_audio(file)


def in_a_room(samples_S: Samples, rng: Rng) -> Samples:
    """The samples with a pause before and after it and, at random, an echo, a telephone's band, and
    noise."""
    samples_S = np.pad(samples_S, [int(SAMPLE_RATE * 0.4 * rng.random()) for _ in range(2)])
    if rng.random() < 0.3:
        samples_S = echo(samples_S, seconds=0.1 + 0.4 * rng.random(), rng=rng)
    if rng.random() < 0.25:
        samples_S = telephone(samples_S)
    level = 10 ** (-0.05 * (3 + 20 * rng.random())) / max(float(np.abs(samples_S).max()), 1e-4)
    samples_S = samples_S * np.float32(level)
    if rng.random() < 0.5:
        samples_S = noisy(samples_S, ratio=8 + 27 * rng.random(), rng=rng)
    return np.clip(samples_S, -1, 1).astype(np.float32)


def echo(samples_S: Samples, seconds: float, rng: Rng) -> Samples:
    """Reverberation that falls by 60 dB in `seconds`, of random reflections behind the direct
    ones."""
    count = int(SAMPLE_RATE * seconds)
    falling = np.exp(-6.9 * np.arange(count) / count)
    response = rng.standard_normal(count) * falling * (0.03 + 0.07 * rng.random())
    response[0] = 1.0
    size = len(samples_S) + count
    return np.fft.irfft(np.fft.rfft(samples_S, size) * np.fft.rfft(response, size), size).astype(
        np.float32
    )


def telephone(samples_S: Samples) -> Samples:
    """8 kHz, 300 to 3,400 Hz, 8 bits of mu-law."""
    narrow = resample(samples_S, SAMPLE_RATE, 8000)
    spectrum, hertz = np.fft.rfft(narrow), np.fft.rfftfreq(len(narrow), 1 / 8000)
    spectrum[(hertz < 300) | (hertz > 3400)] = 0
    narrow = np.clip(np.fft.irfft(spectrum, len(narrow)), -1, 1)
    curve = np.sign(narrow) * np.log1p(255 * np.abs(narrow)) / np.log(256)
    stepped = np.round(curve * 127) / 127
    return resample(
        (np.sign(stepped) * (256 ** np.abs(stepped) - 1) / 255).astype(np.float32),
        8000,
        SAMPLE_RATE,
    )


def noisy(samples_S: Samples, ratio: float, rng: Rng) -> Samples:
    """With noise `ratio` decibels below the voice: white, or falling towards high tones."""
    spectrum = np.fft.rfft(rng.standard_normal(len(samples_S)))
    spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** (0.5 * rng.random() * 2)
    noise = np.fft.irfft(spectrum, len(samples_S))
    loudness = np.sqrt(np.mean(samples_S**2)) / max(float(np.sqrt(np.mean(noise**2))), 1e-9)
    return (samples_S + noise * loudness * 10 ** (-ratio / 20)).astype(np.float32)
