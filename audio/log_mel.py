"""Log-mel spectrograms as Whisper takes them, of audio at its own length, and their windows of
at most 30 s.

Source: openai/whisper, `whisper/audio.py`. Frames are those that `transformers`'
WhisperFeatureExtractor gives for the audio padded with silence; only those behind its end are left
out.

Shapes: M mels, F frames, N windows, L samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mmdiff.audio.audio_io import SAMPLE_RATE, Samples

N_FFT, HOP = 400, 160  # samples: 25 and 10 ms
WINDOW_SECONDS = 30
DYNAMIC_RANGE = 8.0  # decades below the loudest value that are kept


def log_mel_spectrogram(samples: Samples, num_mels: int) -> Tensor:
    """The log-mel spectrogram (M, F) of audio at 16 kHz, one frame for each 10 ms begun."""
    num_frames = count_frames(len(samples))
    signal_L = torch.nn.functional.pad(
        torch.from_numpy(samples), (0, num_frames * HOP + N_FFT - len(samples))
    )
    window = torch.hann_window(N_FFT)
    spectrum = torch.stft(signal_L, N_FFT, HOP, window=window, return_complex=True)[:, :num_frames]
    mel_MF = _filters(num_mels) @ spectrum.abs().square()
    log_MF = mel_MF.clamp(min=1e-10).log10()
    return (log_MF.clamp(min=log_MF.max() - DYNAMIC_RANGE) + 4) / 4


def count_frames(num_samples: int) -> int:
    return -(-num_samples // HOP)


def split_windows(samples: Samples) -> list[Samples]:
    """Audio in pieces of at most 30 s; nothing is cut off."""
    step = WINDOW_SECONDS * SAMPLE_RATE
    return [samples[start : start + step] for start in range(0, len(samples), step)]


def pad_mels(mels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Spectrograms of several lengths as one batch (N, M, F), zero behind the end of each, and the
    lengths (N)."""
    lengths_N = torch.tensor([mel.shape[1] for mel in mels])
    longest = int(lengths_N.max())
    return torch.stack(
        [torch.nn.functional.pad(mel, (0, longest - mel.shape[1])) for mel in mels]
    ), lengths_N


@lru_cache
def _filters(num_mels: int) -> Tensor:
    """Slaney's mel filters (M, N_FFT // 2 + 1)."""
    from transformers.audio_utils import mel_filter_bank

    bank = mel_filter_bank(
        num_frequency_bins=N_FFT // 2 + 1,
        num_mel_filters=num_mels,
        min_frequency=0.0,
        max_frequency=SAMPLE_RATE / 2,
        sampling_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(np.ascontiguousarray(bank.T)).float()
