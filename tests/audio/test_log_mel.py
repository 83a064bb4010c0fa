"""Log-mel spectrograms against `transformers`' extractor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from mmdiff.audio.log_mel import count_frames, log_mel_spectrogram, pad_mels, split_windows


@pytest.mark.parametrize("num_mels", [80, 128])
@pytest.mark.parametrize("length", [1, 159, 160, 161, 16_000, 113_600, 113_777, 480_000])
def test_equal_to_whispers_extractor(num_mels: int, length: int) -> None:
    """Of the sound padded with silence to 30 s, the frames up to its end."""
    rng = np.random.default_rng(length)
    samples = (rng.normal(size=length) * np.hanning(length + 2)[1:-1] * 0.3).astype(np.float32)
    wanted = WhisperFeatureExtractor(feature_size=num_mels)(
        samples, sampling_rate=16_000, return_tensors="np"
    )
    ours = log_mel_spectrogram(samples, num_mels)
    assert ours.shape == (num_mels, count_frames(length)) and ours.dtype == torch.float32
    np.testing.assert_allclose(ours, wanted["input_features"][0, :, : ours.shape[1]], atol=1e-5)


def test_silence_is_finite() -> None:
    assert torch.isfinite(log_mel_spectrogram(np.zeros(3200, np.float32), 80)).all()


@pytest.mark.parametrize("seconds", [0.001, 29, 30, 31, 62])
def test_long_sounds_are_split_and_nothing_is_lost(seconds: float) -> None:
    samples = np.arange(int(seconds * 16_000), dtype=np.float32)
    windows = split_windows(samples)
    assert len(windows) == -(-len(samples) // 480_000) and max(map(len, windows)) <= 480_000
    np.testing.assert_array_equal(np.concatenate(windows), samples)


def test_batches_are_zero_behind_the_end() -> None:
    mels, lengths = pad_mels([torch.ones(80, 3), torch.ones(80, 7)])
    assert (
        mels.shape == (2, 80, 7)
        and lengths.tolist() == [3, 7]
        and mels[0, :, 3:].sum() == 0
        and mels[1].all()
    )
