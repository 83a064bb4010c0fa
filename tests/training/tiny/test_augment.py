"""Changes to spectrograms: tones move by the factor, sizes stay or follow the tempo, the input
stays as it was."""

import numpy as np
import pytest
import torch

from mmdiff.audio.log_mel import log_mel_spectrogram
from mmdiff.training.tiny.augment import augment, blotted, stretched


def tone(hertz: float) -> torch.Tensor:
    return log_mel_spectrogram(
        np.sin(np.arange(16_000) * 2 * np.pi * hertz / 16_000).astype(np.float32) * 0.3, 80
    )


@pytest.mark.parametrize("factor", [0.85, 1.0, 1.1, 1.25])
@pytest.mark.parametrize("hertz", [300.0, 1000.0, 3000.0])
def test_a_stretched_tone_is_another_tone(factor: float, hertz: float) -> None:
    moved, other = stretched(tone(hertz), factor), tone(hertz * factor)
    assert (
        moved.shape == other.shape
        and abs(int(moved[:, 50].argmax()) - int(other[:, 50].argmax())) <= 1
    )


def test_nothing_changes_by_the_factor_one() -> None:
    torch.testing.assert_close(stretched(tone(500), 1.0), tone(500))


def test_parts_are_hidden_in_a_copy() -> None:
    mel, rng = torch.rand(80, 200), np.random.default_rng(0)
    before = mel.clone()
    hidden = [(blotted(mel, rng) != mel).float().mean().item() for _ in range(50)]
    assert torch.equal(mel, before) and 0.05 < np.mean(hidden) < 0.4


def test_every_length_can_be_augmented_and_the_seed_decides() -> None:
    for length in (1, 2, 7, 300):
        made = [
            augment(
                torch.rand(80, length, generator=torch.Generator().manual_seed(1)),
                np.random.default_rng(seed),
            )
            for seed in (*range(20), 0)
        ]
        assert torch.equal(made[0], made[-1]) and all(
            0.8 * length <= mel.shape[1] <= 1.25 * length for mel in made
        )
        assert all(mel.shape[0] == 80 and torch.isfinite(mel).all() for mel in made)
