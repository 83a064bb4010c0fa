"""Clips of speech as a function of their seed, and their spectrograms, made once and kept on disk.

The range of a seed says what the clip may be used for, as with scenes, and so which voices may be
heard in it.

Shapes: M mels, F frames of 10 ms.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from mmdiff.audio.audio_io import Samples
from mmdiff.audio.log_mel import log_mel_spectrogram
from mmdiff.training.tiny.scenes import TEST_SEEDS, TRAIN_SEEDS, VALID_SEEDS
from mmdiff.training.tiny.sentences import sentence
from mmdiff.training.tiny.voices import Split, Voice, draw_voice, in_a_room, say

SHARD = 500  # clips in one folder
SEEDS: dict[Split, range] = {"train": TRAIN_SEEDS, "valid": VALID_SEEDS, "test": TEST_SEEDS}


@dataclass(frozen=True)
class Clip:
    """A sentence and its audio at 16 kHz."""

    text: str
    voice: Voice
    samples: Samples


def clip(seed: int, text: str | None = None, indoors: bool = True) -> Clip:
    """What is said, by whom and in what room follows from the seed.

    Args:
        text: what is said instead.
        indoors: whether to add a room's echo, noise and so on; the voice alone otherwise.
    """
    rng = np.random.default_rng((seed, 1))
    said, voice = text or sentence(rng), draw_voice(_split(seed), rng)
    samples = say(said, voice, rng)
    return Clip(said, voice, in_a_room(samples, rng) if indoors else samples)


def reader(seed: int) -> Voice:
    """The voice that reads a text given to `clip`."""
    return draw_voice(_split(seed), np.random.default_rng((seed, 1)))


def _split(seed: int) -> Split:
    return next(name for name, seeds in SEEDS.items() if seed in seeds)


class Speech:
    """The first `count` clips of a folder: spectrograms and texts, by number."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count

    def __getitem__(self, number: int) -> tuple[Tensor, str]:
        """The spectrogram (M, F) in float32, and the sentence."""
        frames, clips = self._shards[number // SHARD]
        text, first, end = clips[number % SHARD]
        return torch.from_numpy(frames[first:end].astype(np.float32)).T, text

    @cached_property
    def by_length(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """The numbers of all clips, the shortest first."""
        lengths = [end - first for _, clips in self._shards for _, first, end in clips][
            : self.count
        ]
        return np.argsort(lengths, kind="stable")

    @cached_property
    def _shards(
        self,
    ) -> list[tuple[np.ndarray[tuple[int, int], np.dtype[np.float16]], list[tuple[str, int, int]]]]:
        folders = []
        for number in range(-(-self.count // SHARD)):
            folders.append(_shard(self.folder, number))
        found = []
        for folder in folders:
            found.append(
                (
                    np.load(folder / "mels.npy", mmap_mode="r"),
                    json.loads((folder / "clips.json").read_text()),
                )
            )
        return found


def prepare(
    folder: Path, num_mels: int, count: int, split: Split = "train", workers: int = 2
) -> Speech:
    """Make the clips that `folder` does not hold yet; stop at any time, finished shards are
    kept."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [n for n in range(-(-count // SHARD)) if not _shard(folder, n).is_dir()]
    if missing:
        first = SEEDS[split].start
        seeds = []
        for n in missing:
            seeds.append(range(first + n * SHARD, first + (n + 1) * SHARD))
        with ProcessPoolExecutor(workers, initializer=_one_thread) as pool:
            made = pool.map(
                _make_shard, [folder] * len(missing), [num_mels] * len(missing), missing, seeds
            )
            for _ in track(made, "speech", len(missing)):
                pass
    return Speech(folder, count)


def _make_shard(folder: Path, num_mels: int, number: int, seeds: Sequence[int]) -> None:
    frames, clips = [], []
    end = 0
    for seed in seeds:
        made = clip(seed)
        mel = log_mel_spectrogram(made.samples, num_mels).T.half().numpy()
        clips.append((made.text, end, end + len(mel)))
        end += len(mel)
        frames.append(mel)
    new = folder / f"new-{number:04}-{os.getpid()}"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    np.save(new / "mels.npy", np.concatenate(frames))
    (new / "clips.json").write_text(json.dumps(clips))
    new.rename(_shard(folder, number))


def _shard(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:04}"


def _one_thread() -> None:
    torch.set_num_threads(1)
