"""Levels are those of speech, and what is quiet, off centre or behind a click is as loud as
anything else."""

from __future__ import annotations

import numpy as np
import pytest

from mmdiff.audio.level import LOUD, level, level_locally

RATE = 16_000


def bursts(seconds: float = 6.0, gain: float = 0.3) -> np.ndarray:
    """Something like speech: noise that comes and goes four times a second."""
    time = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(0).normal(size=len(time))
    return (gain * noise * np.maximum(np.sin(8 * np.pi * time), 0)).astype(np.float32)


def rms(samples: np.ndarray) -> float:
    return float(20 * np.log10(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))))


@pytest.mark.parametrize("make", [level, level_locally])
@pytest.mark.parametrize("decibels", [20, 0, -40, -58])
def test_the_level_does_not_matter(make, decibels: float) -> None:  # type: ignore[no-untyped-def]
    wanted = make(bursts())
    assert abs(rms(wanted) - LOUD) < 8 and wanted.dtype == np.float32
    np.testing.assert_allclose(
        make(bursts() * np.float32(10 ** (decibels / 20))), wanted, rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("make", [level, level_locally])
def test_neither_an_offset_nor_a_click_matters(make) -> None:  # type: ignore[no-untyped-def]
    wanted, clicked = make(bursts()), bursts()
    clicked[20_000:20_010] = 1
    np.testing.assert_allclose(make(bursts() + np.float32(0.4)), wanted, atol=1e-3)
    assert abs(rms(make(clicked)) - rms(wanted)) < 1


def test_the_gain_follows_who_speaks() -> None:
    both = np.concatenate([bursts(), np.zeros(3 * RATE, np.float32), bursts(gain=0.001)])
    made = level_locally(both)
    assert abs(rms(made[: 2 * RATE]) - rms(made[-2 * RATE :])) < 3


@pytest.mark.parametrize("make", [level, level_locally])
@pytest.mark.parametrize("length", [1, 5, 511, 512, 513, 40_000])
def test_any_length(make, length: int) -> None:  # type: ignore[no-untyped-def]
    made = make(bursts()[:length])
    assert made.shape == (length,) and np.isfinite(made).all()
    assert not make(np.zeros(length, np.float32)).any()


def test_the_noise_of_a_converter_is_not_raised_to_speech() -> None:
    noise = (
        np.round(np.random.default_rng(0).normal(size=5 * RATE) * 0.4).astype(np.float32) / 32_768
    )
    assert rms(level_locally(noise)) < -25
