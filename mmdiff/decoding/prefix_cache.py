"""Prefix caching: encoded images and audio, and keys and values of prompts, which requests share,
by what they were made from.

Keys are hashes of contents (pixels or spectrograms, and token ids), so a picture is known again
whatever its file is called. A segment's key holds all segments before it, as its keys and values
do. All keys begin with the version of the weights, and what other weights made is dropped. The
store keeps within a number of bytes and drops what was not used for longest.

Shapes: B rows, P prompt columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from cachetools import LRUCache
from torch import Tensor, nn

from mmdiff.modeling.multimodal import Encoder
from mmdiff.modeling.weights_version import WeightsVersion

Key = bytes


class PrefixCache:
    """Tensors by key, the least recently used dropped first; one too large for it is not kept."""

    def __init__(self, max_bytes: int) -> None:
        self._kept: LRUCache[Key, Tensor] = LRUCache(
            max_bytes, getsizeof=lambda tensor: tensor.nbytes
        )
        self._weights, self._version = WeightsVersion(), 0
        self.hits = self.misses = 0

    def version(self, model: nn.Module) -> Key:
        """What the keys begin with of all that this model makes now; what it made with other
        weights is dropped."""
        if not self._kept.maxsize:
            return b""
        version = self._weights.of(model)
        if version != self._version:
            self._version = version
            self._kept.clear()
        return version.to_bytes(8, "little")

    def clear(self) -> None:
        """Drop everything."""
        self._kept.clear()
        self._weights.forget()

    def __reduce__(self) -> tuple[type[PrefixCache], tuple[int]]:
        """A copy in another process starts empty."""
        return PrefixCache, (int(self._kept.maxsize),)

    def get(self, key: Key) -> Tensor | None:
        found: Tensor | None = self._kept.get(key)
        self.hits += found is not None
        self.misses += found is None
        return found

    def put(self, key: Key, tensor: Tensor) -> None:
        """Keep a copy: a view would hold on to the whole tensor that it is part of."""
        if tensor.nbytes <= self._kept.maxsize:
            self._kept[key] = tensor.clone(memory_format=torch.contiguous_format)

    def __contains__(self, key: Key) -> bool:
        return key in self._kept

    @property
    def num_bytes(self) -> int:
        return int(self._kept.currsize)

    def __len__(self) -> int:
        return len(self._kept)


def digest(*parts: bytes | Tensor) -> Key:
    """A hash of contents, numbers' types and shapes."""
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Tensor):
            made.update(f"{part.dtype}{tuple(part.shape)}".encode())
            made.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        else:
            made.update(len(part).to_bytes(8, "little") + part)
    return made.digest()


@dataclass(frozen=True)
class EncodedMedia:
    """One picture or window of sound: its key, and how many placeholders it fills."""

    key: Key
    length: int


class CachingEncoder:
    """An encoder that encodes only what the store does not hold, and notes what went through it."""

    def __init__(self, encoder: Encoder, store: PrefixCache, version: Key) -> None:
        self.encoder, self.store, self.version = encoder, store, version
        self.pictures: list[EncodedMedia] = []
        self.sounds: list[EncodedMedia] = []

    def encode_images(
        self, pixel_values: Tensor, image_sizes: Tensor, image_grids: Tensor
    ) -> list[Tensor]:
        """As `MMDiffModel.encode_images`."""
        counts = (1 + image_grids.prod(dim=1)).tolist()
        views, numbers = pixel_values.split(counts), torch.arange(len(pixel_values)).split(counts)
        keys = [
            digest(self.version, b"picture", *each)
            for each in zip(views, image_sizes, image_grids, strict=True)
        ]

        def encode(new: Sequence[int]) -> list[Tensor]:
            chosen = torch.cat([numbers[number] for number in new])
            return self.encoder.encode_images(
                pixel_values[chosen], image_sizes[list(new)], image_grids[list(new)]
            )

        made = self._remembered(keys, encode)
        self.pictures = [
            EncodedMedia(key, len(embeds)) for key, embeds in zip(keys, made, strict=True)
        ]
        return made

    def encode_audio(self, input_features: Tensor, feature_lengths: Tensor) -> list[Tensor]:
        """As `MMDiffModel.encode_audio`."""
        lengths = feature_lengths.tolist()
        sounds = [mels[:, :length] for mels, length in zip(input_features, lengths, strict=True)]
        keys = [digest(self.version, b"sound", mels) for mels in sounds]

        def encode(new: Sequence[int]) -> list[Tensor]:
            return self.encoder.encode_audio(input_features[list(new)], feature_lengths[list(new)])

        made = self._remembered(keys, encode)
        self.sounds = [
            EncodedMedia(key, len(embeds)) for key, embeds in zip(keys, made, strict=True)
        ]
        return made

    def _remembered(
        self, keys: Sequence[Key], encode: Callable[[Sequence[int]], list[Tensor]]
    ) -> list[Tensor]:
        found = {key: self.store.get(key) for key in dict.fromkeys(keys)}
        new = [
            keys.index(key) for key, embeds in found.items() if embeds is None
        ]  # the same picture twice: once
        for number, embeds in zip(new, encode(new) if new else [], strict=True):
            found[keys[number]] = embeds
            self.store.put(keys[number], embeds)
        return [embeds for embeds in (found[key] for key in keys) if embeds is not None]


@dataclass(frozen=True)
class PrefixBlock:
    """Columns of a row's own prompt, counted without padding, and the key of all up to its end."""

    first: int
    end: int
    key: Key


def prompt_blocks(
    ids_BP: Tensor,
    valid_BP: Tensor,
    segments_BP: Tensor,
    placeholders: dict[int, list[EncodedMedia]],
    version: Key,
) -> list[list[PrefixBlock]]:
    """The segments of each row.

    Args:
        version: of the weights, with which every key begins.
        placeholders: what stands at the placeholders of each id, in reading order over the batch.
    """
    waiting = {token: iter(media) for token, media in placeholders.items()}
    rows = []
    for ids_P, valid_P, segments_P in zip(ids_BP, valid_BP, segments_BP, strict=True):
        key, first, row = version, 0, []
        ids_N, lengths = (
            ids_P[valid_P],
            torch.unique_consecutive(segments_P[valid_P], return_counts=True)[1],
        )
        for part_N in ids_N.split(lengths.tolist()):
            counts = {token: int((part_N == token).sum()) for token in waiting}
            inside = [
                media.key for token, left in waiting.items() for media in _fill(left, counts[token])
            ]
            key = digest(key, part_N, *inside)
            row.append(PrefixBlock(first, first + len(part_N), key))
            first += len(part_N)
        rows.append(row)
    return rows


def _fill(left: Iterator[EncodedMedia], count: int) -> list[EncodedMedia]:
    """The next media that fill so many placeholders."""
    taken: list[EncodedMedia] = []
    while sum(media.length for media in taken) < count:
        taken.append(next(left))
    return taken
