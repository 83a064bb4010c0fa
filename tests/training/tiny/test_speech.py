"""Speech for training: voices of a split stay in it, seeds decide everything, and what is kept is
what is heard."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mmdiff.audio.audio_io import Samples
from mmdiff.audio.log_mel import log_mel_spectrogram
from mmdiff.errors import MMDiffError
from mmdiff.training.tiny import speech
from mmdiff.training.tiny.scenes import TEST_SEEDS, TRAIN_SEEDS, VALID_SEEDS
from mmdiff.training.tiny.speech import clip, prepare
from mmdiff.training.tiny.voices import (
    FORMANT,
    NATURAL,
    Voice,
    draw_voice,
    echo,
    in_a_room,
    noisy,
    say,
    telephone,
)
from tests.helpers.programs import needs

TONE = np.sin(np.arange(16_000) * 2 * np.pi * 440 / 16_000).astype(np.float32) * 0.3
ENGINES = {
    "festival": ("festival", "festvox-us-slt-hts")
}  # the packages of an engine, where they are not its name
VOICES = [FORMANT["train"][0], *NATURAL["train"], *NATURAL["test"]]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tone in place of a voice: what is tested is everything around it."""

    def tone(text: str, voice: Voice, rng: np.random.Generator) -> Samples:
        seconds = 0.5 + 0.05 * len(text) + 0.1 * rng.random()
        hertz = 200 + len(str(voice))
        return (
            np.sin(np.arange(int(seconds * 16_000)) * 2 * np.pi * hertz / 16_000).astype(np.float32)
            * 0.3
        )

    monkeypatch.setattr(speech, "say", tone)


def test_no_voice_is_heard_in_two_splits() -> None:
    every = [{*NATURAL[split], *FORMANT[split]} for split in ("train", "valid", "test")]
    assert not every[0] & every[1] and not every[0] & every[2] and not every[1] & every[2]
    variants = [{voice.name.split("+")[-1] for voice in split} for split in FORMANT.values()]
    assert (
        not variants[0] & variants[1]
        and not variants[0] & variants[2]
        and not variants[1] & variants[2]
    )
    accents = [
        {voice.name.split("+")[0] for voice in FORMANT[split]} for split in ("train", "test")
    ]
    assert not accents[0] & accents[1]
    rng = np.random.default_rng(0)
    assert {draw_voice("test", rng) for _ in range(400)} == every[2]


@pytest.mark.parametrize(
    "voice",
    [
        pytest.param(voice, marks=needs(*ENGINES.get(voice.engine, (voice.engine,))), id=str(voice))
        for voice in VOICES
    ],
)
def test_every_engine_speaks(voice: Voice) -> None:
    said = say("what color is the circle", voice, np.random.default_rng(0))
    assert (
        said.dtype == np.float32
        and 0.7 < len(said) / 16_000 < 4
        and 0.01 < np.abs(said).max() <= 1.5
    )


@pytest.mark.usefixtures("stand_in")
def test_a_seed_decides_the_clip_and_its_split() -> None:
    one, same = clip(TRAIN_SEEDS[5]), clip(TRAIN_SEEDS[5])
    assert (
        one.text == same.text
        and one.voice == same.voice
        and np.array_equal(one.samples, same.samples)
    )
    assert clip(TEST_SEEDS[5]).voice in {*NATURAL["test"], *FORMANT["test"]}
    assert clip(VALID_SEEDS[5]).voice in FORMANT["valid"]
    assert clip(TRAIN_SEEDS[5], "stop").text == "stop"


def test_a_program_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(
        MMDiffError, match="flite is not installed; on Debian: apt-get install flite"
    ):
        say("stop", Voice("flite", "rms"), np.random.default_rng(0))


def test_rooms() -> None:
    rng = np.random.default_rng(0)
    quiet = noisy(TONE, ratio=20, rng=rng) - TONE
    assert 10 * np.log10(np.mean(TONE**2) / np.mean(quiet**2)) == pytest.approx(20, abs=0.1)
    high = np.sin(np.arange(16_000) * 2 * np.pi * 6000 / 16_000).astype(np.float32)
    loud = {
        name: float(np.sqrt(np.mean(telephone(tone)[2000:-2000] ** 2)))
        for name, tone in (("high", high), ("low", TONE))
    }
    assert loud["high"] < 0.02 < 0.15 < loud["low"]  # its edges may ring
    assert len(echo(TONE, 0.2, rng)) == 16_000 + 3200
    for seed in range(20):
        heard = in_a_room(TONE, np.random.default_rng(seed))
        assert heard.dtype == np.float32 and np.isfinite(heard).all() and np.abs(heard).max() <= 1


@pytest.mark.usefixtures("stand_in")
def test_shards_hold_the_spectrograms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted or not: a shard is there whole or not at all, and is not made twice."""
    monkeypatch.setattr(speech, "SHARD", 2)
    for number in (0, 1):
        speech._make_shard(tmp_path, 80, number, range(2 * number, 2 * number + 2))
    made = prepare(tmp_path, 80, 4)
    for number in range(4):
        mel, text = made[number]
        wanted = clip(number)
        assert text == wanted.text
        torch.testing.assert_close(
            mel, log_mel_spectrogram(wanted.samples, 80), atol=2e-3, rtol=1e-3
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shard-0000", "shard-0001"]
