"""SpecAugment, vocal-tract length and tempo perturbation: changes to a log-mel spectrogram that
leave its words as they are.

Shapes: M mels, F frames.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mmdiff.audio.audio_io import SAMPLE_RATE

Rng = np.random.Generator

STRETCHES = (
    0.85,
    1.25,
)  # of all frequencies, at most: few voices are heard, and most are those of men
TEMPOS = (0.85, 1.2)  # of the duration


def augment(mel_MF: Tensor, rng: Rng) -> Tensor:
    """With a vocal tract of another length (Jaitly and Hinton, 2013), another tempo, and parts
    hidden."""
    if rng.random() < 0.7:
        mel_MF = stretched(mel_MF, float(rng.uniform(*STRETCHES)))
    if rng.random() < 0.5:
        length = max(1, round(mel_MF.shape[1] * float(rng.uniform(*TEMPOS))))
        mel_MF = interpolate(mel_MF[None], size=length, mode="linear")[0]
    return blotted(mel_MF, rng)


def stretched(mel_MF: Tensor, factor: float) -> Tensor:
    """With all frequencies times the factor; what is then above the highest is lost, and what is
    missing repeated."""
    import transformers.audio_utils as mels

    hertz_M = _centres(len(mel_MF)) / factor
    top = mels.hertz_to_mel(SAMPLE_RATE / 2, mel_scale="slaney")
    places_M = torch.from_numpy(
        mels.hertz_to_mel(hertz_M, mel_scale="slaney") / top * (len(mel_MF) + 1) - 1
    )
    places_M = places_M.clamp(0, len(mel_MF) - 1)
    below_M = places_M.floor().long().clamp(max=len(mel_MF) - 2)
    share_M1 = (places_M - below_M)[:, None].to(mel_MF)
    return mel_MF[below_M] * (1 - share_M1) + mel_MF[below_M + 1] * share_M1


def blotted(mel_MF: Tensor, rng: Rng) -> Tensor:
    """With a few bands and moments hidden at random: SpecAugment (arXiv 1904.08779)."""
    mel_MF = mel_MF.clone()
    for axis, most in ((0, 12), (0, 12), (1, 12), (1, 12)):
        length = mel_MF.shape[axis]
        size = int(rng.random() * min(most, length // 8))
        mel_MF.narrow(axis, int(rng.random() * (length - size)), size).fill_(float(mel_MF.mean()))
    return mel_MF


@lru_cache
def _centres(num_mels: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Hertz of the middle of each of Whisper's mel filters."""
    import transformers.audio_utils as mels

    top = mels.hertz_to_mel(SAMPLE_RATE / 2, mel_scale="slaney")
    return np.asarray(
        mels.mel_to_hertz(np.linspace(0, top, num_mels + 2)[1:-1], mel_scale="slaney")
    )
