"""Features of many images by a frozen tower, cached on disk in shards.

What a run was broken off at is made again; finished shards stay. A cache belongs to one tower and
one list of images, whose ids are stored beside it.

Shapes: N images, F features: mean and maximum of each channel of each map.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from mmdiff.vision.map_tower import MapTower
from mmdiff.vision.namer import pooled

SHARD, BATCH = 256, 16
Array = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Features:
    """A cached table: an id and a name for each image, and its features."""

    ids: list[str]
    names: list[str]
    values_NF: Array


Item = tuple[str, str, Image.Image]  # id, name, RGB image


def cached_features(folder: Path, title: str, tower: MapTower, items: Iterable[Item]) -> Features:
    """Features of the items, from the folder where they are there.

    Args:
        folder: of this table alone.
        title: for the progress bar.
        items: made lazily and in a fixed order; those of finished shards are skipped cheaply where
            the whole table is done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "done").is_file():
        shards = enumerate(_batches(items, SHARD))
        for number, shard in track(shards, title):
            _make_shard(folder / f"{number:04}", tower, shard)
        (folder / "done").touch()
    return load_features(folder)


def load_features(folder: Path) -> Features:
    """A finished table."""
    ids: list[str] = []
    names: list[str] = []
    tables = []
    for file in sorted(folder.glob("*.npy")):
        listed = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        ids += listed["ids"]
        names += listed["names"]
        tables.append(np.load(file))
    return Features(ids, names, np.concatenate(tables))


def _make_shard(stem: Path, tower: MapTower, items: Sequence[Item]) -> None:
    file = stem.with_suffix(".npy")
    if file.is_file():
        return
    tables = []
    for batch in _batches(items, BATCH):
        tables.append(tower_features(tower, [image for _, _, image in batch]))
    listed = {"ids": [item[0] for item in items], "names": [item[1] for item in items]}
    stem.with_suffix(".json").write_text(json.dumps(listed), encoding="utf-8")
    new = stem.with_suffix(".new")
    with new.open("wb") as stream:
        np.save(stream, np.concatenate(tables))
    new.replace(file)


def fast(tower: MapTower) -> MapTower:
    """The tower in bfloat16 with channels last: on processors with AVX-512 four times as fast,
    features 2.6 % of their size off (cosine 0.9996)."""
    return tower.bfloat16().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def tower_features(tower: MapTower, images: Sequence[Image.Image]) -> Array:
    """Of images that have the tower's size (N, F)."""
    dtype = next(tower.parameters()).dtype
    pixels_N3SS = pixels_of(images).to(dtype, memory_format=torch.channels_last)
    with torch.inference_mode():
        maps = [each.float() for each in tower.maps(pixels_N3SS)]
        return pooled(maps).half().numpy()


def pixels_of(images: Sequence[Image.Image]) -> Tensor:
    """Normalised as EfficientNet-Lite takes them (N, 3, S, S)."""
    bytes_NSS3 = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return (bytes_NSS3.permute(0, 3, 1, 2).float() - 127) / 128


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
